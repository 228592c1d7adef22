"""Arguments of the Python API, checked and as arrays of the dtype that graphs take."""
from typing import Optional

import numpy as np

from runtime.errors import InputError
from runtime.flag_values import LARGEST
from runtime.pixels import LARGEST_IMAGE


def check_sizes(image_size: int, batch: int) -> None:
    """Raise InputError where these are no whole numbers, or out of range."""
    for name, value, largest in (('image_size', image_size, LARGEST_IMAGE), ('batch', batch, LARGEST)):
        if not isinstance(value, (int, np.integer)) or not 1 <= value <= largest:
            raise InputError('%s is a whole number from 1 to %d, not %r' % (name, largest, value))


def checked_images(images: np.ndarray, image_size: int) -> np.ndarray:
    """Return images, (N, image_size, image_size, 3) in [0, 255], as float32. Raises ValueError for others."""
    images = np.asarray(images)
    if images.dtype.kind not in 'uif':
        raise ValueError('images are numbers, uint8 or float, not %s' % images.dtype)
    if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
        raise ValueError('images have the shape %s, not (N, %d, %d, 3)' % (images.shape, image_size, image_size))
    images = images.astype(np.float32)
    if images.size and not (images.min() >= 0 and images.max() <= 255):
        raise ValueError('images are in [0, 255]; these go from %s to %s' % (images.min(), images.max()))
    return images


def checked_labels(labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Return labels, (count,) integers below num_classes, as int32. Raises ValueError for others."""
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError('labels are %d integers, not %s of shape %s' % (count, labels.dtype, labels.shape))
    if count and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError('labels are in 0..%d' % (num_classes - 1))
    return labels.astype(np.int32)


def checked_cotangents(cotangents: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Return cotangents of logits, (count, num_classes) finite numbers, as float32. Raises ValueError for others."""
    cotangents = np.asarray(cotangents)
    shape = (count, num_classes)
    if cotangents.shape != shape or cotangents.dtype.kind not in 'fiu':
        raise ValueError('cotangents are numbers of shape %s, not %s of shape %s'
                         % (shape, cotangents.dtype, cotangents.shape))
    with np.errstate(over='ignore'):
        cotangents = cotangents.astype(np.float32)
    if not np.isfinite(cotangents).all():
        raise ValueError('cotangents are finite numbers of float32; some of these are not')
    return cotangents


def checked_indices(indices: Optional[np.ndarray], count: int) -> np.ndarray:
    """Return indices as (count,) int64, which by default are 0, 1, ... Raises ValueError for others."""
    checked = np.arange(count) if indices is None else np.asarray(indices)
    if checked.shape != (count,) or checked.size and not (checked.dtype.kind in 'iu' and checked.min() >= 0):
        raise ValueError('indices are %d whole numbers from 0 on' % count)
    return checked.astype(np.int64)
