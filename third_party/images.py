"""Decode an image file, and cut it to a network's input for validation or, at random, for training.

Images are uint8 arrays (height, width, 3) in BGR order. The random augmentation is that of tensorpack's
`imgaug` (tests compare the two), written here because `import tensorpack` loads TensorFlow, several seconds
and hundreds of megabytes in each data-serving process that never uses it, and because a colour change that
is one affine map of the colours costs a tenth of the same change made step by step.
"""
import contextlib
import os
import re
import zlib
from typing import NamedTuple, Optional

import cv2
import jpeg_region
import numpy as np
from jpeg_region import decode_region, jpeg_size

from runtime.errors import InputError, NoMemory, RunError
from runtime.limits import refusal

# OpenCV's own lines on stderr about a bad file; the InputError says the same, with the file's name. What libjpeg and
# libpng write is kept back where they are called; a jpeg_region from before needs "make setup" for it.
if hasattr(cv2, 'setLogLevel'):
    cv2.setLogLevel(0)
quiet_decoders = getattr(jpeg_region, 'quiet_decoders', contextlib.nullcontext)

GREY = np.array([0.114, 0.587, 0.299])  # luma of B, G, R: ITU-R BT.601, as in OpenCV
# Principal components of ImageNet's colours (Krizhevsky et al. 2012), in 0..255 units: eigenvalues, and the
# components as columns, rows in BGR order.
LIGHTING_EIGENVALUES = 255 * np.array([0.2175, 0.0188, 0.0045])
LIGHTING_COMPONENTS = np.array([[-0.5836, -0.6948, 0.4203],
                                [-0.5808, -0.0045, -0.8140],
                                [-0.5675, 0.7192, 0.4009]])
JITTER = 0.4
LIGHTING = 0.1
MIN_CROP_AREA = 0.08
MAX_ELONGATION = 32
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
NO_MEMORY = -4  # cv2.Error.StsNoMem, which old versions don't name


def decode(path: str) -> np.ndarray:
    """Decode the image in a file: uint8 (height, width, 3) BGR.

    It may be whatever OpenCV reads: JPEG (also grey and CMYK), PNG, TIFF, WebP, BMP, PPM, JPEG 2000. Grey is repeated,
    16 bits become 8, an alpha channel is dropped, the EXIF orientation is applied. Not GIF, which OpenCV's
    wheels don't read. Raises InputError, naming the file, where it cannot be read or is not a whole image; see
    `check_complete` for what that finds. Raises NoMemory where there is none for its pixels.
    """
    return _decode_bytes(read_complete(path), path)


def read_complete(path: str) -> bytes:
    """Return the file's bytes. Raises InputError where `check_complete` finds something wrong with them."""
    data = read_file(path)
    _require_complete(data, path)
    return data


def read_file(path: str) -> bytes:
    """Return the file's bytes. Raises InputError, naming it, where they can't be read, and RunError where the system
    refuses to open more files."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            raise InputError('%s is not a file' % path)  # opening a named pipe would wait for ever
        with open(path, 'rb') as f:
            return f.read()
    except OSError as e:
        if refusal(e):  # nothing is wrong with the image
            raise RunError('cannot read %s: %s' % (path, refusal(e)))
        raise InputError('cannot read %s: %s' % (path, e.strerror))


def _require_complete(data: bytes, path: str) -> None:
    problem = check_complete(data)
    if problem:
        raise InputError('%s is not a readable image: %s' % (path, problem))


def check_decodable(data: bytes, path: str) -> None:
    """Raise InputError where `decode` would for the file at `path` that has these bytes.

    Of a JPEG the tables and the first rows are decoded for it, which takes a twentieth of the time. Other files are
    decoded, and so are JPEGs that are odd: a PNG's checksums may be right, and its image data no image.
    """
    _require_complete(data, path)
    if decode_region(data, x=0, y=0, width=1, height=1) is None:
        _decode_bytes(data, path)


def _decode_bytes(data: bytes, path: str) -> np.ndarray:
    try:
        with quiet_decoders():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:  # such as more pixels than OpenCV allows
        if e.code == NO_MEMORY:
            raise NoMemory('cannot decode %s: %s' % (path, refusal(MemoryError())))
        raise InputError('%s is not a readable image: %s' % (path, getattr(e, 'err', None) or e))
    if image is None:
        raise InputError('%s is not a readable image: corrupt, or of an unknown format' % path)
    return image


def check_complete(data: bytes) -> Optional[str]:
    """Say what is wrong with the bytes of an image file; returns None where nothing is seen to be.

    Finds what a decoder may fill with grey and pass on: a JPEG that ends early or whose image data is
    interrupted by bytes that no encoder writes (most overwritten blocks), a PNG with a missing or changed
    part. Damage inside a JPEG that still is a valid code stream stays unseen, as JPEG has no checksums.
    Bytes after the image, or between its segments, are tolerated, as they occur in ImageNet.
    """
    if not data:
        return 'the file is empty'
    if data.startswith(b'\xff\xd8'):
        return _check_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return _check_png(data)
    if data.startswith(b'GIF8'):
        return 'GIF is not supported, convert it to PNG'
    return None


# In entropy-coded data a 0xff byte is followed by 0 (it is data), a restart marker, or the marker of what
# comes next.
_JPEG_MARKER = re.compile(b'\xff[^\x00\xff\xd0-\xd7]')
_JPEG_AFTER_SCAN = frozenset(b'\xc4\xd9\xda\xdb\xdc\xdd\xfe' + bytes(range(0xe0, 0xf0)))


def _check_jpeg(data: bytes) -> Optional[str]:
    position, in_scan = 2, False
    while True:
        found = _JPEG_MARKER.search(data, position)
        if not found:
            return 'the JPEG is truncated'
        marker, position = data[found.start() + 1], found.end()
        if marker == 0xd9:
            return None
        if in_scan and marker not in _JPEG_AFTER_SCAN:
            return 'the JPEG is corrupt at byte %d' % found.start()
        if marker != 0x01:  # the one other marker without a length
            position += int.from_bytes(data[position:position + 2], 'big')
        in_scan = in_scan or marker == 0xda


def _check_png(data: bytes) -> Optional[str]:
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position:position + 4], 'big')
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4:end - 4]) != int.from_bytes(data[end - 4:end], 'big'):
            return 'the PNG is corrupt at byte %d' % position
        if data[position + 4:position + 8] == b'IEND':
            return None
        position = end
    return 'the PNG is truncated'


def validation_image(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Resize the shortest edge to size * 256 / 224, and cut out the centre, for evaluation: uint8 (size, size, 3)."""
    return _resized_centre(image, int(round(size * 256 / 224.)), size)


def resized_image(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Resize the whole image, whatever its shape, with cubic interpolation, as the published code scores a folder:
    uint8 (size, size, 3). An image of that size stays as it is."""
    if image.shape[:2] == (size, size):
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""
    y: int
    x: int
    height: int
    width: int


def training_image(image: np.ndarray, rng: np.random.RandomState, size: int = 224,
                   out: Optional[np.ndarray] = None, min_area: float = MIN_CROP_AREA) -> np.ndarray:
    """Cut a random crop out of an image, and change its colours at random, for training.

    A crop of `min_area` (8%) to 100% of the area and 3/4 to 4/3 in width to height, resized with cubic interpolation;
    brightness, contrast and saturation changed by factors in 0.6..1.4 in random order; PCA lighting noise of
    deviation 0.1; mirrored half of the time. The colours are rounded and clipped once, at the end. `out`:
    uint8 (size, size, 3), C-contiguous, to write the result to. Returns the result.
    """
    part = _cut(image, random_crop(image.shape[0], image.shape[1], rng, min_area), size)
    return _with_random_colours(part, rng, size, out)


def load_training_image(path: str, rng: np.random.RandomState, size: int = 224, out: Optional[np.ndarray] = None,
                        min_area: float = MIN_CROP_AREA) -> np.ndarray:
    """Return `training_image(decode(path), ...)`, to the same pixels, in less time: of a JPEG only the crop is decoded.

    Raises InputError as `decode` does, but for damage below the crop of a JPEG, which is not read.
    """
    data = read_complete(path)
    shape = jpeg_size(data)
    if shape is None:
        return training_image(_decode_bytes(data, path), rng, size, out, min_area)
    crop = random_crop(shape[0], shape[1], rng, min_area)
    part = crop and decode_region(data, **crop._asdict())
    if part is None:
        image = _decode_bytes(data, path)
        if image.shape[:2] != shape:  # an odd file, of which OpenCV makes something else
            crop = random_crop(image.shape[0], image.shape[1], rng, min_area)
        part = _cut(image, crop, size)
    return _with_random_colours(part, rng, size, out)


def _cut(image: np.ndarray, crop: Optional[Crop], size: int) -> np.ndarray:
    if crop is None:
        return _resized_centre(image, size, size)
    return image[crop.y:crop.y + crop.height, crop.x:crop.x + crop.width]


def _with_random_colours(part: np.ndarray, rng: np.random.RandomState, size: int,
                         out: Optional[np.ndarray]) -> np.ndarray:
    """Resize to `size`, change the colours at random, and mirror half of the time."""
    if part.shape[:2] != (size, size):
        part = cv2.resize(part, (size, size), interpolation=cv2.INTER_CUBIC)
    colours = random_colours(np.array(cv2.mean(part)[:3]), rng)
    if rng.uniform() < 0.5:
        part = cv2.flip(part, 1)
    return cv2.transform(part, colours, dst=out)


def random_crop(height: int, width: int, rng: np.random.RandomState,
                min_area: float = MIN_CROP_AREA) -> Optional[Crop]:
    """Draw a rectangle of the training distribution; None if none of ten fits, as in a very long image."""
    for _ in range(10):
        area = rng.uniform(min_area, 1.) * height * width
        ratio = rng.uniform(3 / 4., 4 / 3.)
        w = max(1, int(np.sqrt(area * ratio) + 0.5))
        h = max(1, int(np.sqrt(area / ratio) + 0.5))
        if rng.uniform() < 0.5:
            w, h = h, w
        if h <= height and w <= width:
            x = rng.randint(0, width - w + 1)
            y = rng.randint(0, height - h + 1)
            return Crop(y, x, h, w)
    return None


def random_colours(mean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draw a change of colours as a matrix, float32 (3, 4): new BGR = matrix @ (B, G, R, 1).

    mean: (3,), the image's mean colour, which the change of contrast leaves where it is.
    """
    order = rng.permutation(3)
    factors = rng.uniform(1 - JITTER, 1 + JITTER, 3)
    lighting = LIGHTING_COMPONENTS.dot(LIGHTING_EIGENVALUES * rng.normal(0, LIGHTING, 3))
    return colour_matrix(mean, order, factors, lighting)


def colour_matrix(mean: np.ndarray, order: np.ndarray, factors: np.ndarray,
                  lighting: np.ndarray) -> np.ndarray:
    """Compose brightness (0), contrast (1) and saturation (2), in `order` and by their `factors`, then `lighting`.

    All of these are affine maps of a pixel's colour (contrast also of the mean of the grey image, which is
    linear in the mean colour), so their composition is one such map. Returns float32 (3, 4).
    """
    matrix = np.eye(3, 4)
    for which in order:
        factor = factors[which]
        if which == 2:
            matrix = factor * matrix + (1 - factor) * GREY.dot(matrix)  # the same grey in each row
        else:
            matrix = factor * matrix
            if which == 1:  # matrix is already scaled; its grey mean over factor is that before the change
                grey_mean = GREY.dot(matrix[:, :3].dot(mean) + matrix[:, 3]) / factor
                matrix[:, 3] += (1 - factor) * grey_mean
    matrix[:, 3] += lighting
    return matrix.astype(np.float32)


def _resized_centre(image: np.ndarray, shortest_edge: int, size: int) -> np.ndarray:
    """Resize the shortest edge to `shortest_edge` with cubic interpolation, and cut out the central (size, size)."""
    image = _middle(image)
    height, width = image.shape[:2]
    scale = shortest_edge / float(min(height, width))
    if height < width:
        new_height, new_width = shortest_edge, int(scale * width + 0.5)
    else:
        new_height, new_width = int(scale * height + 0.5), shortest_edge
    resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_CUBIC)
    y, x = (new_height - size) // 2, (new_width - size) // 2
    return resized[y:y + size, x:x + size]


def _middle(image: np.ndarray) -> np.ndarray:
    """Cut off the far ends of an image that is so long that resizing all of it would take gigabytes."""
    height, width = image.shape[:2]
    limit = MAX_ELONGATION * min(height, width)
    y, x = max(0, height - limit) // 2, max(0, width - limit) // 2
    return image[y:height - y, x:width - x]
