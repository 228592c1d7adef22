"""Decode a rectangle of a JPEG, at the cost of little more than the rectangle, to the same pixels as a whole decoding.

OpenCV decodes whole images only, and no package on PyPI gives access to libjpeg-turbo's partial decoding.
"""
import contextlib
import ctypes
import importlib.util
from typing import Iterator, Optional, Tuple

import numpy as np

__all__ = ['decode_region', 'jpeg_size', 'quiet_decoders']

MAX_PIXELS = 1 << 30  # of a whole image: OpenCV's limit; a progressive JPEG is read into memory as a whole
# Start of frame: 0xc0 .. 0xcf but for those that define tables.
_FRAMES = frozenset(range(0xc0, 0xd0)) - {0xc4, 0xc8, 0xcc}


def _load() -> ctypes.CDLL:
    spec = importlib.util.find_spec('jpeg_region._decode')
    if spec is None:
        raise ImportError('the compiled part of jpeg_region is missing: install the package with pip, or run the '
                          'set-up again')
    library = ctypes.CDLL(spec.origin)
    library.decode_region.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                                      ctypes.c_int, ctypes.c_void_p]
    return library


_library = _load()


def jpeg_size(data: bytes) -> Optional[Tuple[int, int]]:
    """Return the height and width of an upright JPEG in pixels.

    None for all else: another format, a damaged header, more than MAX_PIXELS, or a JPEG with EXIF data, which may say
    that it is to be turned.
    """
    if not data.startswith(b'\xff\xd8'):
        return None
    position = 2
    while data[position:position + 1] == b'\xff' and position + 9 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2:position + 4], 'big')
        if marker in _FRAMES:
            height, width = [int.from_bytes(data[position + at:position + at + 2], 'big') for at in (5, 7)]
            return (height, width) if 0 < height * width <= MAX_PIXELS else None
        if marker == 0xe1 and data[position + 4:position + 10] == b'Exif\0\0':
            return None
        position += 2 + length
    return None


def decode_region(data: bytes, *, x: int, y: int, width: int, height: int) -> Optional[np.ndarray]:
    """Decode a rectangle: uint8 (height, width, 3) BGR, equal to that of a whole decoding with libjpeg's defaults.

    None where that cannot be promised: the rectangle lies outside the image, the data are damaged as far as they were
    read, the colours are CMYK, or it is no JPEG. Then decode the whole image.
    """
    size = jpeg_size(data)
    if size is None or not (0 <= x <= size[1] - width and 0 <= y <= size[0] - height and width > 0 and height > 0):
        return None
    region = np.empty((height, width, 3), np.uint8)
    return region if _library.decode_region(data, len(data), x, y, width, height, region.ctypes.data) else None


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep what C libraries write to stderr in this thread, within, from being shown.

    Their lines about an image, such as `Corrupt JPEG data: bad Huffman code`, don't say which one it is.
    """
    _library.begin_quiet()
    try:
        yield
    finally:
        _library.end_quiet()
