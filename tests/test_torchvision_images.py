"""--preprocess torchvision: the pixels of torchvision itself, and nothing of Pillow's own warnings and limits."""
import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from test_decoder_messages import corrupt_jpeg

from runtime.errors import InputError
from third_party.pillow import decode, torchvision_image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TORCH = os.path.join(ROOT, '.venv-torch', 'bin', 'python')

# Runs in the environment of PyTorch. What torchvision's wheel has compiled need not fit the PyTorch there; its
# transforms need none of it, but for the names of two operations.
PEER = '''
import sys
import numpy as np
import torch
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Compose, Resize

seen = {}
for job in sys.argv[2:]:
    path, edge, size = job.rsplit(',', 2)
    seen[job] = np.asarray(Compose([Resize(int(edge)), CenterCrop(int(size))])(default_loader(path)))
np.savez(sys.argv[1], **seen)
'''


def photo(width, height, seed=0):
    """An RGB image of smooth colours with some noise, full of edges where it is small."""
    rng = np.random.RandomState(seed)
    coarse = Image.fromarray(rng.randint(0, 256, (7, 9, 3)).astype(np.uint8)).resize((width, height), Image.BICUBIC)
    noisy = np.asarray(coarse) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def sixteen(channels):
    image = np.asarray(photo(90, 70)).astype(np.uint16)[..., :channels] * 200
    return cv2.imencode('.png', image)[1].tobytes()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(photo(90, 70), 'JPEG', exif=exif)


def palette():
    return photo(90, 70).quantize(100)


# width, height: the longer edge is cut to a whole number of pixels (500 / 375 * 256 is 341.33), and offsets of .5 go to
# the even one: half of 341 - 224 is 58.5, of 343 - 224 59.5. Of 256 or 224 nothing, or little, is resized. Pillow 13
# resizes what is more than twice as high as wide in another order of directions
SIZES = [(500, 375), (375, 500), (343, 256), (256, 341), (257, 256), (256, 256), (224, 224), (256, 224), (224, 256),
         (1, 1), (2, 3), (31, 17), (100, 99), (640, 481), (333, 1000), (400, 1201), (1201, 400), (300, 600),
         (301, 603), (227, 229), (1000, 31), (3, 150)]
KINDS = {
    'half-colours.jpg': lambda: saved(photo(301, 203), 'JPEG', subsampling=1, quality=60),
    'all-colours.jpg': lambda: saved(photo(301, 203), 'JPEG', subsampling=0, quality=95),
    'progressive.jpg': lambda: saved(photo(203, 301), 'JPEG', progressive=True),
    'turned.jpg': turned, 'grey.jpg': lambda: saved(photo(90, 70).convert('L'), 'JPEG'),
    'cmyk.jpg': lambda: saved(photo(90, 70).convert('CMYK'), 'JPEG'), 'missing-codes.jpg': corrupt_jpeg,
    'grey.png': lambda: saved(photo(90, 70).convert('L'), 'PNG'), 'palette.png': lambda: saved(palette(), 'PNG'),
    'transparent-palette.png': lambda: saved(palette(), 'PNG', transparency=bytes(range(0, 200, 2))),
    'alpha.png': lambda: saved(photo(90, 70).convert('RGBA'), 'PNG'),
    'grey-alpha.png': lambda: saved(photo(90, 70).convert('LA'), 'PNG'),
    'two.png': lambda: saved(photo(90, 70).convert('1'), 'PNG'), '16-bit-grey.png': lambda: sixteen(1),
    '16-bit.png': lambda: sixteen(3), 'cmyk.tiff': lambda: saved(photo(90, 70).convert('CMYK'), 'TIFF'),
    'x.webp': lambda: saved(photo(90, 70), 'WEBP'), 'x.bmp': lambda: saved(photo(90, 70), 'BMP'),
    'x.ppm': lambda: saved(photo(90, 70), 'PPM')}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Return {name: path} of images of many sizes and kinds."""
    folder = tmp_path_factory.mktemp('photos')
    contents = {name: make() for name, make in KINDS.items()}
    for i, (width, height) in enumerate(SIZES):
        contents['%dx%d.jpg' % (width, height)] = saved(photo(width, height, i), 'JPEG')
        contents['%dx%d.png' % (width, height)] = saved(photo(width, height, i), 'PNG')
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: str(folder / name) for name in contents}


@pytest.fixture(scope='module')
def torchvision(files, tmp_path_factory):
    """Return torchvision(name, edge=256, size=224) -> what torchvision makes of a file, RGB."""
    if not os.path.exists(TORCH):
        pytest.skip('torchvision is not there: TEST_TOOLS=1 make test installs it')
    jobs = ['%s,256,224' % path for path in files.values()]
    jobs += ['%s,%d,%d' % (files[name], edge, size) for name in RESIZED for size, edge in EDGES.items()]
    out = str(tmp_path_factory.mktemp('seen') / 'seen.npz')
    done = subprocess.run([TORCH, '-c', PEER, out] + jobs, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(out) as seen:
        images = dict(seen)
    return lambda name, edge=256, size=224: images['%s,%d,%d' % (files[name], edge, size)]


EDGES = {1: 1, 32: 37, 64: 73, 299: 342}  # of networks of other sizes: size * 256 / 224, as for validation
RESIZED = ['500x375.jpg', '31x17.png', '3x150.png']


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(KINDS) + ['%dx%d.%s' % (w, h, end) for w, h in SIZES for end in ('jpg', 'png')])
def test_the_pixels_are_those_of_torchvision(files, torchvision, name):
    image = torchvision_image(decode(files[name]))
    assert image.dtype == np.uint8 and image.shape == (224, 224, 3)
    assert np.array_equal(image[..., ::-1], torchvision(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', RESIZED)
@pytest.mark.parametrize('size', sorted(EDGES))
def test_a_network_of_another_size(files, torchvision, name, size):
    image = torchvision_image(decode(files[name]), size)
    assert np.array_equal(image[..., ::-1], torchvision(name, EDGES[size], size))


@pytest.mark.parametrize('width, height', [(5000, 1), (2, 9000)])
def test_a_very_long_image_is_cut_before_it_is_enlarged(width, height):
    """For a small network all of it can be enlarged, to compare: places in between are rounded."""
    image, edge = photo(width, height), int(round(8 * 256 / 224.))
    whole = image.resize((edge * width // min(width, height), edge * height // min(width, height)), Image.BILINEAR)
    x, y = [int(round((n - 8) / 2.)) for n in whole.size]
    cut = torchvision_image(np.asarray(image), 8)
    assert np.abs(np.asarray(whole.crop((x, y, x + 8, y + 8))).astype(int) - cut).max() <= 1
    assert torchvision_image(np.asarray(image)).shape == (224, 224, 3)


def test_orders_of_colours_give_the_same(files):
    image = decode(files['31x17.png'])
    assert np.array_equal(torchvision_image(image), torchvision_image(image[..., ::-1].copy())[..., ::-1])
    assert np.array_equal(image[..., ::-1], np.asarray(Image.open(files['31x17.png'])))


QUIETLY = '''
import sys
from PIL import Image
Image.MAX_IMAGE_PIXELS = 100  # as if the images were far larger
from third_party.preparations import PREPARATIONS
preparation = PREPARATIONS['torchvision']()
for path in sys.argv[1:]:
    with open(path, 'rb') as f:
        preparation.check(f.read(), path)
    preparation.load(path, 224)
'''


def test_pillow_neither_warns_nor_refuses_large_images(files):
    """Such as those with a transparent palette, and damaged ones that are decoded all the same."""
    done = subprocess.run([sys.executable, '-c', QUIETLY] + sorted(files.values()), cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize('content', [
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', saved(photo(9, 9), 'PCX'),
    b'RIFF\0\0\0\0WEBP', b'BM', b'\0' * 5000, saved(photo(9, 9), 'TIFF')[:99]])
def test_what_is_no_image_to_other_preparations_is_none(tmp_path, content):
    """Pillow would start Ghostscript for some."""
    (tmp_path / 'x.JPEG').write_bytes(content)
    with pytest.raises(InputError) as info:
        decode(str(tmp_path / 'x.JPEG'))
    assert str(info.value) == '%s is not a readable image: corrupt, or of a format unknown to Pillow' % (
        tmp_path / 'x.JPEG')


def test_the_flags_are_known_without_a_decoder():
    """A wrong command line is told before anything is loaded."""
    code = 'import main, sys; main.command_line(); print(sorted({"cv2", "PIL", "tensorflow"} & set(sys.modules)))'
    assert subprocess.check_output([sys.executable, '-c', code], cwd=ROOT, universal_newlines=True) == '[]\n'
