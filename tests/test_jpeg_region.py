"""Rectangles of JPEGs are those of the whole image; what is out of the ordinary is left to the whole decoding."""
import io
import random

import cv2
import numpy as np
import pytest
from jpeg_region import decode_region, jpeg_size
from PIL import Image
from sklearn.datasets import load_sample_images

from runtime.errors import InputError
from third_party.images import decode, load_training_image, training_image

PHOTO = load_sample_images().images[0][:301, :403]  # RGB; sizes that no block of a JPEG divides


def jpeg(photo=PHOTO, mode='RGB', **options):
    data = io.BytesIO()
    Image.fromarray(photo).convert(mode).save(data, 'JPEG', **dict(dict(quality=90), **options))
    return data.getvalue()


def by_opencv(flag, value):
    return cv2.imencode('.jpg', PHOTO, [flag, value])[1].tobytes()


KINDS = {
    '4:4:0': by_opencv(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x121111),
    '4:1:1': by_opencv(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111),
    'restart markers': by_opencv(cv2.IMWRITE_JPEG_RST_INTERVAL, 5),
    '4:2:0': jpeg(subsampling=2), '4:2:2': jpeg(subsampling=1), '4:4:4': jpeg(subsampling=0), 'grey': jpeg(mode='L'),
    'progressive': jpeg(progressive=True), 'optimised': jpeg(optimize=True, quality=50),
    'tiny': jpeg(PHOTO[:5, :3]), 'one row': jpeg(PHOTO[:1]), 'one column': jpeg(PHOTO[:, :1])}


def whole(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_the_pixels_of_the_whole_image(kind):
    data, rng = KINDS[kind], random.Random(0)
    image = whole(data)
    height, width = image.shape[:2]
    assert jpeg_size(data) == (height, width)
    for i in range(300):
        w, h = (width, height) if i == 0 else (rng.randint(1, width), rng.randint(1, height))
        x = rng.choice([0, rng.randint(0, width - w), width - w])
        y = rng.choice([0, rng.randint(0, height - h), height - h])
        region = decode_region(data, x=x, y=y, width=w, height=h)
        np.testing.assert_array_equal(region, image[y:y + h, x:x + w], '%s' % [x, y, w, h])


@pytest.mark.parametrize('x, y, width, height', [
    (-1, 0, 5, 5), (0, -1, 5, 5), (400, 0, 5, 5), (0, 300, 5, 5), (0, 0, 404, 5), (0, 0, 5, 0), (0, 0, 0, 5),
    (2 ** 31 - 1, 0, 5, 5), (5, 5, 2 ** 31 - 1, 1)])
def test_outside_of_the_image(x, y, width, height):
    assert decode_region(KINDS['4:2:0'], x=x, y=y, width=width, height=height) is None


def test_what_is_left_to_the_whole_decoding():
    assert decode_region(jpeg(mode='CMYK'), x=0, y=0, width=5, height=5) is None
    exif = Image.Exif()
    exif[0x0112] = 6
    assert jpeg_size(jpeg(exif=exif)) is None
    for data in (b'', b'\xff\xd8', b'\x89PNG', b'\xff\xd8\xff\xe0', KINDS['4:2:0'][:20]):
        assert jpeg_size(data) is None and decode_region(data, x=0, y=0, width=1, height=1) is None
    cut = KINDS['4:2:0'][:len(KINDS['4:2:0']) // 2]
    assert decode_region(cut, x=0, y=250, width=50, height=50) is None


@pytest.mark.parametrize('progressive', [False, True])
def test_more_pixels_than_memory(tmp_path, progressive):
    """A small file that says it were 65,535 pixels high and wide is refused, whatever the crop."""
    data = bytearray(jpeg(progressive=progressive))
    frame = data.index(b'\xff\xc2' if progressive else b'\xff\xc0')
    data[frame + 5:frame + 9] = b'\xff' * 4
    assert jpeg_size(bytes(data)) is None and decode_region(bytes(data), x=0, y=0, width=5, height=5) is None
    path = str(tmp_path / 'image')
    with open(path, 'wb') as f:
        f.write(data)
    with pytest.raises(InputError, match='not a readable image'):
        load_training_image(path, np.random.RandomState(0), 64)


def test_damaged_files_do_no_harm():
    """They are refused, or give some pixels: bytes of a JPEG have no checksum."""
    rng, refused = random.Random(0), 0
    for _ in range(3000):
        data = bytearray(rng.choice([KINDS['4:2:0'], KINDS['progressive'], KINDS['grey']]))
        for _ in range(rng.randint(1, 10)):
            data[rng.randrange(min(len(data), rng.choice([700, 10 ** 6])))] = rng.randrange(256)
        region = decode_region(bytes(data), x=30, y=20, width=9, height=9)
        refused += region is None
        jpeg_size(bytes(data))
    assert refused > 500


@pytest.mark.parametrize('kind', ['4:2:0', 'grey', 'one row', 'tiny', 'png', 'cmyk', 'turned'])
def test_a_training_image_is_that_of_the_whole_decoding(tmp_path, kind):
    path = str(tmp_path / 'image')
    exif = Image.Exif()
    exif[0x0112] = 6
    others = {'cmyk': jpeg(mode='CMYK'), 'turned': jpeg(exif=exif),
              'png': cv2.imencode('.png', PHOTO)[1].tobytes()}
    with open(path, 'wb') as f:
        f.write(dict(KINDS, **others)[kind])
    for seed in range(20):
        expected = training_image(decode(path), np.random.RandomState(seed), 64)
        np.testing.assert_array_equal(load_training_image(path, np.random.RandomState(seed), 64), expected)
