"""Decode and cut images as torchvision does for its networks, with Pillow: the same pixels, in BGR order.

torchvision's `ImageFolder` decodes with Pillow, converts to RGB, and leaves an EXIF orientation alone; `Resize(256)`
and `CenterCrop(224)` follow. Tests compare all of it with torchvision itself.
"""
import contextlib
import io
import logging
import warnings
from typing import Iterator

import cv2
import numpy as np
from jpeg_region import MAX_PIXELS, decode_region
from PIL import Image

from runtime.errors import InputError, NoMemory, RunError
from runtime.limits import refusal
from third_party import images
from third_party.images import PNG_SIGNATURE, check_complete, quiet_decoders, read_complete

# What `images.decode` reads. Pillow has many more, of which some start other programs.
FORMATS = ('JPEG', 'PNG', 'TIFF', 'WEBP', 'BMP', 'PPM', 'JPEG2000')
MAX_ELONGATION = 1024  # of an image that is resized as a whole, which takes 300 MB for each of those at work
# Pillow warns of photos of 90 million pixels, and refuses those of twice that; here OpenCV's limit holds for all
Image.MAX_IMAGE_PIXELS = None
# Its warnings and errors don't name the file; an InputError does. Filters can't be set for one thread
warnings.filterwarnings('ignore', module=r'PIL\.')
logging.getLogger('PIL').setLevel(logging.CRITICAL)


def decode(path: str) -> np.ndarray:
    """Decode the image in a file as Pillow's `convert('RGB')` gives it: uint8 (height, width, 3), but in BGR order.

    It may be of the kinds that `images.decode` reads. Grey is repeated, a palette's and an alpha channel's transparency
    is dropped, CMYK is converted without its profile, and the EXIF orientation is not applied. 16 bits of three
    channels become 8; those of a grey image are cut off at 255, which leaves it mostly white. Raises InputError, with
    the words of `images.decode`, where the file cannot be read or is not a whole image.
    """
    return _decode_bytes(read_complete(path), path)


def check_decodable(data: bytes, path: str) -> None:
    """Raise InputError where `decode` would for the file at `path` that has these bytes.

    Of a JPEG the header, the tables and the first rows are decoded for it, which takes a twentieth of the time. Other
    files are decoded, and so are JPEGs that are odd.
    """
    problem = check_complete(data)
    if problem:
        raise InputError('%s is not a readable image: %s' % (path, problem))
    if decode_region(data, x=0, y=0, width=1, height=1) is None:
        _decode_bytes(data, path)
    else:
        with _opened(data, path):
            pass


def torchvision_image(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Resize the shortest edge to size * 256 / 224, and cut out the centre, as torchvision's networks see an image.

    This is `Resize` and `CenterCrop` of torchvision on Pillow's images: bilinear, antialiased, the longer edge and the
    offsets rounded as there. uint8 (height, width, 3) of any order of colours -> uint8 (size, size, 3).
    """
    height, width = image.shape[:2]
    short = int(round(size * 256 / 224.))
    long = int(short * max(height, width) / min(height, width))
    new_height, new_width = (long, short) if width <= height else (short, long)
    top, left = int(round((new_height - size) / 2.)), int(round((new_width - size) / 2.))
    whole = Image.fromarray(image)
    if long <= MAX_ELONGATION * short:
        resized = _resized(whole, new_width, new_height)
        return np.array(resized.crop((left, top, left + size, top + size)))
    # all of it, resized, would take gigabytes; a place within an image is rounded, so this may differ by 1
    x_scale, y_scale = width / float(new_width), height / float(new_height)
    box = left * x_scale, top * y_scale, (left + size) * x_scale, (top + size) * y_scale
    return np.array(whole.resize((size, size), Image.BILINEAR, box))


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize as Pillow 13 does, whose order of the two directions depends on the shape.

    Each of them rounds to whole numbers, so that the order shows, by 1. Pillow before 13 had one order for all.
    """
    down, across = image.height - height, image.width - width
    between = (image.width, height) if down > max(0, 2 * across) else (width, image.height)
    return image.resize(between, Image.BILINEAR).resize((width, height), Image.BILINEAR)


@contextlib.contextmanager
def _opened(data: bytes, path: str) -> Iterator[Image.Image]:
    """Open an image file, whose header is read; whatever goes wrong within is an InputError that names it."""
    try:
        with quiet_decoders(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError('%s is not a readable image: %dx%d pixels are more than 2**30'
                                 % (path, image.width, image.height))
            yield image
    except (InputError, RunError):
        raise
    except (MemoryError, cv2.error):  # all that the latter can fail for here
        raise NoMemory('cannot decode %s: %s' % (path, refusal(MemoryError())))
    except Exception:  # Pillow's decoders raise nearly all of Python's
        raise InputError('%s is not a readable image: corrupt, or of a format unknown to Pillow' % path)


def _decode_bytes(data: bytes, path: str) -> np.ndarray:
    if data.startswith(PNG_SIGNATURE):
        images.check_decodable(data, path)  # Pillow fills what a PNG lacks with black
    with _opened(data, path) as image:
        return cv2.cvtColor(np.asarray(image.convert('RGB')), cv2.COLOR_RGB2BGR)
