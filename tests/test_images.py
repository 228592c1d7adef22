"""Decoding real image files of all kinds, and cutting them to size."""
import io
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError
from third_party import images
from third_party.images import decode, training_image, validation_image


def photo(height=60, width=80, seed=0):
    """uint8 BGR: smooth colours, which JPEG keeps closely, and noise, so that every block has data."""
    rng = np.random.RandomState(seed)
    coarse = rng.uniform(0, 255, (4, 5, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pil(image=None):
    return Image.fromarray((photo() if image is None else image)[..., ::-1].copy())


def with_alpha():
    image = pil().convert('RGBA')
    image.putalpha(Image.fromarray(np.linspace(0, 255, 60 * 80).astype(np.uint8).reshape(60, 80)))
    return image


def wide(bits=257):
    return photo().astype(np.uint16) * bits


def grey16():
    return Image.fromarray(wide()[..., 0])


def cv_encoded(ending, image):
    return cv2.imencode(ending, image)[1].tobytes()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    return encoded(Image.fromarray(np.rot90(photo())[..., ::-1].copy()), 'JPEG', quality=95, exif=exif)


def with_restart_markers():
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_RST_INTERVAL, 1]
    return cv2.imencode('.jpg', photo(), options)[1].tobytes()


def with_thumbnail():
    """A JPEG with a whole JPEG inside its APP1 segment."""
    inner = encoded(pil(photo(20, 30)), 'JPEG')
    data = encoded(pil(), 'JPEG', quality=95)
    return data[:2] + b'\xff\xe1' + struct.pack('>H', len(inner) + 2) + inner + data[2:]


GREY = cv2.cvtColor(cv2.cvtColor(photo(), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
FIRST = photo()[..., :1].repeat(3, 2)

# name: (bytes of the file, expected image, largest mean difference)
KINDS = {
    'jpeg': (lambda: encoded(pil(), 'JPEG', quality=95), photo(), 4),
    'progressive': (lambda: encoded(pil(), 'JPEG', quality=95, progressive=True), photo(), 4),
    'restart-markers': (with_restart_markers, photo(), 4),
    'grey-jpeg': (lambda: encoded(pil().convert('L'), 'JPEG', quality=95), GREY, 3),
    'cmyk-jpeg': (lambda: encoded(pil().convert('CMYK'), 'JPEG', quality=95), photo(), 4),
    'exif-jpeg': (rotated, photo(), 4),
    'thumbnail-jpeg': (with_thumbnail, photo(), 4),
    'bytes-after-the-end': (lambda: encoded(pil(), 'JPEG', quality=95) + b'\0' * 77, photo(), 4),
    'png': (lambda: encoded(pil(), 'PNG'), photo(), 0),
    'png-bytes-after-the-end': (lambda: encoded(pil(), 'PNG') + b'xyz', photo(), 0),
    'grey-png': (lambda: encoded(pil().convert('L'), 'PNG'), GREY, 1),
    'palette-png': (lambda: encoded(pil().quantize(256), 'PNG'), photo(), 12),
    'rgba-png': (lambda: encoded(with_alpha(), 'PNG'), photo(), 0),
    'grey-alpha-png': (lambda: encoded(with_alpha().convert('LA'), 'PNG'), GREY, 1),
    '16-bit-png': (lambda: cv_encoded('.png', wide()), photo(), 0),
    '16-bit-grey-png': (lambda: encoded(grey16(), 'PNG'), FIRST, 0),
    'tiff': (lambda: encoded(pil(), 'TIFF'), photo(), 0),
    'lzw-tiff': (lambda: cv_encoded('.tiff', photo()), photo(), 0),
    '16-bit-tiff': (lambda: cv_encoded('.tiff', wide()), photo(), 0),
    'cmyk-tiff': (lambda: encoded(pil().convert('CMYK'), 'TIFF'), photo(), 1),
    'webp': (lambda: encoded(pil(), 'WEBP', quality=95), photo(), 5),
    'bmp': (lambda: encoded(pil(), 'BMP'), photo(), 0),
    'ppm': (lambda: encoded(pil(), 'PPM'), photo(), 0)}


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_decode(kind, tmp_path, capfd):
    make, expected, tolerance = KINDS[kind]
    path = tmp_path / 'n02105855_2933.JPEG'  # whatever the name says, the bytes count
    path.write_bytes(make())
    image = decode(str(path))
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= tolerance
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('keep', [0.02, 0.3, 0.6, 0.95, -2, -1])
@pytest.mark.parametrize('kind', sorted(set(KINDS) - {'bytes-after-the-end', 'png-bytes-after-the-end'}))
def test_truncated_file_is_named(kind, keep, tmp_path):
    data = KINDS[kind][0]()
    path = tmp_path / 'cut.JPEG'
    path.write_bytes(data[:int(len(data) * keep) if keep > 0 else keep])
    with pytest.raises(InputError, match='cut.JPEG is not a readable image'):
        decode(str(path))


def test_truncated_jpeg_and_png_print_nothing(tmp_path, capfd):
    for kind in ('jpeg', 'progressive', 'png', 'bmp', 'webp'):
        data = KINDS[kind][0]()
        (tmp_path / 'cut').write_bytes(data[:len(data) // 2])
        with pytest.raises(InputError):
            decode(str(tmp_path / 'cut'))
    assert capfd.readouterr() == ('', '')


def test_overwritten_jpeg_is_named(tmp_path):
    """A block of other bytes in the image data, as on a failing disk."""
    data = encoded(pil(photo(400, 500)), 'JPEG', quality=95)
    rng, found = np.random.RandomState(0), 0
    for _ in range(40):
        at = rng.randint(len(data) // 4, len(data) - 2000)
        (tmp_path / 'bad').write_bytes(data[:at] + rng.bytes(1024) + data[at + 1024:])
        try:
            decode(str(tmp_path / 'bad'))
        except InputError as e:
            assert 'bad' in str(e)
            found += 1
    assert found >= 36


@pytest.mark.parametrize('at', [0.2, 0.5, 0.9])
def test_overwritten_png_is_named(tmp_path, at):
    data = bytearray(encoded(pil(), 'PNG'))
    data[int(len(data) * at)] ^= 1
    (tmp_path / 'bad').write_bytes(bytes(data))
    with pytest.raises(InputError, match='PNG is corrupt'):
        decode(str(tmp_path / 'bad'))


@pytest.mark.parametrize('data', [
    b'', b'hello', b'\xff\xd8', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF89a', b'\xff\xd8' + b'\xff' * 99,
    b'RIFF\0\0\0\0WEBP', b'BM', b'\0' * 5000])
def test_no_image(tmp_path, data, capfd):
    (tmp_path / 'none.jpg').write_bytes(data)
    with pytest.raises(InputError, match='none.jpg'):
        decode(str(tmp_path / 'none.jpg'))
    assert capfd.readouterr() == ('', '')


def test_a_gif_is_refused_with_advice(tmp_path):
    (tmp_path / 'x.gif').write_bytes(encoded(pil(), 'GIF'))
    with pytest.raises(InputError, match='x.gif .*GIF is not supported, convert it to PNG'):
        decode(str(tmp_path / 'x.gif'))


def test_no_file(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    os.symlink('nowhere', str(tmp_path / 'broken'))
    for name in ('missing', 'broken', 'pipe', ''):
        with pytest.raises(InputError, match=name):
            decode(str(tmp_path / name))


def test_too_many_pixels_is_one_line(tmp_path):
    data = bytearray(encoded(pil(photo(4, 4)), 'BMP'))
    data[18:26] = struct.pack('<ii', 60000, 60000)
    (tmp_path / 'bomb').write_bytes(bytes(data))
    with pytest.raises(InputError, match='bomb') as info:
        decode(str(tmp_path / 'bomb'))
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('size, edge', [(224, 256), (32, 37), (64, 73), (1, 1), (299, 342)])
def test_validation_keeps_256_of_224(size, edge):
    image = photo(100, 150)
    resized = cv2.resize(image, (int(edge * 1.5 + 0.5), edge), interpolation=cv2.INTER_CUBIC)
    y, x = (edge - size) // 2, (resized.shape[1] - size) // 2
    assert np.array_equal(validation_image(image, size), resized[y:y + size, x:x + size])


@pytest.mark.parametrize('height, width', [(1, 1), (1, 5000), (9000, 2), (7, 3), (224, 224), (2000, 1999)])
def test_any_shape_can_be_cut(height, width):
    image = photo(height, width)
    assert validation_image(image).shape == (224, 224, 3)
    for seed in range(20):
        result = training_image(image, np.random.RandomState(seed), 32)
        assert result.shape == (32, 32, 3) and result.dtype == np.uint8


def test_training_image_fills_the_batch_and_follows_the_seed():
    image, batch = photo(100, 150), np.zeros((2, 32, 32, 3), np.uint8)
    training_image(image, np.random.RandomState(1), 32, out=batch[1])
    assert not batch[0].any()
    assert np.array_equal(batch[1], training_image(image, np.random.RandomState(1), 32))
    assert not np.array_equal(batch[1], training_image(image, np.random.RandomState(2), 32))


def test_distribution_of_crops():
    rng = np.random.RandomState(0)
    crops = np.array([images.random_crop(1000, 1000, rng) for _ in range(20000)], float)
    y, x, h, w = crops.T
    area, ratio = h * w / 1e6, w / h
    assert 0.079 < area.min() < 0.09 and area.max() > 0.97
    assert 0.748 < ratio.min() < 0.755 and 1.325 < ratio.max() < 1.337
    assert abs(np.log(ratio).mean()) < 0.005  # as often tall as wide
    assert (y + h).max() <= 1000 and (x + w).max() <= 1000 and y.min() == x.min() == 0
    assert abs((x / (1000 - w + 1e-9))[w < 900].mean() - 0.5) < 0.01


def test_half_of_the_images_are_mirrored():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 200
    sides = []
    for seed in range(400):
        result = training_image(image, np.random.RandomState(seed), 32).astype(float)
        sides.append(np.sign(result[:, 16:].mean() - result[:, :16].mean()))
    assert 150 < sides.count(1) < 250 and 150 < sides.count(-1) < 250


COMPARISON = '''
import sys
sys.modules['tensorflow'] = None  # tensorpack's image part does without
import cv2, numpy as np
from tensorpack.dataflow import imgaug
sys.path.insert(0, sys.argv[1])
from third_party import images

rng = np.random.RandomState(0)
photos = []
for shape in [(375, 500), (90, 60), (300, 1200), (40, 1000)]:
    coarse = rng.uniform(0, 255, (6, 6, 3)).astype('f4')
    noisy = cv2.resize(coarse, shape[::-1]) + rng.normal(0, 9, shape + (3,))
    photos.append(np.clip(noisy, 0, 255).astype('u1'))

crop = imgaug.GoogleNetRandomCropAndResize((0.08, 1.), (3 / 4., 4 / 3.), 224, cv2.INTER_CUBIC)
validation = imgaug.AugmentorList([imgaug.ResizeShortestEdge(256, cv2.INTER_CUBIC), imgaug.CenterCrop(224)])
images.random_colours = lambda mean, rng: np.eye(3, 4, dtype='f4')
cv2.flip = lambda image, axis: image
for seed in range(100):
    photo = photos[seed % 4]
    crop.rng = np.random.RandomState(seed)
    ours = images.training_image(photo, np.random.RandomState(seed))
    assert np.array_equal(crop.augment(photo), ours), seed
for photo in photos:
    assert np.array_equal(validation.augment(photo), images.validation_image(photo))

eigenvectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
steps = [imgaug.BrightnessScale((0.6, 1.4), clip=False), imgaug.Contrast((0.6, 1.4), rgb=False, clip=False),
         imgaug.Saturation(0.4, rgb=False, clip=False)]
lighting = imgaug.Lighting(0.1, eigval=255 * np.array([0.2175, 0.0188, 0.0045][::-1]),
                           eigvec=eigenvectors[::-1, ::-1], clip=False)
worst = 0
for seed in range(300):
    photo = photos[seed % 4]
    order, factors, light = rng.permutation(3), rng.uniform(0.6, 1.4, 3), rng.normal(0, 0.1, 3)
    expected = photo.astype('f4')
    for k in order:
        expected = steps[k]._augment(expected, factors[k].astype('f4')).astype('f4')
    expected = np.clip(lighting._augment(expected, light[::-1].astype('f4')), 0, 255)
    noise = images.LIGHTING_COMPONENTS.dot(images.LIGHTING_EIGENVALUES * light)
    matrix = images.colour_matrix(np.array(cv2.mean(photo)[:3]), order, factors, noise)
    worst = max(worst, np.abs(cv2.transform(photo, matrix) - expected).max())
print('worst', worst)
assert worst <= 1
'''


def test_augmentation_is_that_of_tensorpack():
    """The same crops and pixels from the same random numbers; colours within one level of 255."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    run = subprocess.run([sys.executable, '-c', COMPARISON, root], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, universal_newlines=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'worst' in run.stdout


def test_random_colours_have_the_stated_ranges():
    rng = np.random.RandomState(0)
    grey = np.array([[[100., 100., 100.]]])
    gains, shifts = [], []
    for _ in range(4000):
        matrix = images.random_colours(np.full(3, 100.), rng)
        value = matrix[:, :3].dot(grey[0, 0]) + matrix[:, 3]
        gains.append(images.GREY.dot(value) / 100)  # brightness and lighting alone change a grey image
        shifts.append(value - value.mean())
    assert 0.99 < np.mean(gains) < 1.01
    assert abs(np.std(gains) - np.sqrt(0.8 ** 2 / 12 + 0.055 ** 2)) < 0.01
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.2
