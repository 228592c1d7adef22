"""Attacked images on disk: PNG files of whole pixel values, still within the budget, and a manifest of them.

A manifest is a CSV with at least the columns `file` (relative to the manifest) and `label`. With it the images are scored
again, by another network (prediction.py).
"""
import csv
import os
from typing import Dict, NamedTuple, Tuple

import cv2
import numpy as np

from errors import InputError
from evaluation import Strength
from third_party.batches import Batch

MANIFEST = 'manifest.csv'


def quantised(images: np.ndarray, clean: np.ndarray, epsilon: float) -> np.ndarray:
    """Whole pixel values, uint8, of images in [-1, 1]: the nearest ones within epsilon of the `clean` uint8 images."""
    radius = int(epsilon)  # clean pixels are whole numbers, so changes are too
    clean = clean.astype(np.int32)
    nearest = np.rint((images.astype(np.float64) + 1) * 127.5).astype(np.int32)
    return np.clip(np.clip(nearest, clean - radius, clean + radius), 0, 255).astype(np.uint8)


def file_name(position: int, strength: Strength) -> str:
    return '%06d-iter%d-epsilon%g.png' % (position, strength.num_iter, strength.epsilon)


def prepare_directory(path: str, *, continued: bool) -> None:
    """Create it. Raises InputError where it holds something that is not of this evaluation, or can't be written."""
    try:
        os.makedirs(path, exist_ok=True)
        if os.listdir(path) and not continued:
            raise InputError('%s is not empty: choose another folder for --save-adversarial, or remove it' % path)
        if not os.access(path, os.W_OK):
            raise InputError('cannot write to %s' % path)
    except OSError as e:
        raise InputError('cannot write to %s: %s' % (path, e.strerror))


class ImageWriter:
    """An evaluation.Keep: writes a batch's images and returns them as written."""

    def __init__(self, directory: str):
        self._directory = directory

    def __call__(self, batch: Batch, strength: Strength, images: np.ndarray) -> np.ndarray:
        kept = quantised(images, batch.images, strength.epsilon)
        for position, image in zip(batch.indices, kept):
            path = os.path.join(self._directory, file_name(position, strength))
            try:
                with open(path + '.part', 'wb') as f:
                    f.write(cv2.imencode('.png', image)[1].tobytes())
                os.replace(path + '.part', path)
            except OSError as e:
                raise InputError('cannot write %s: %s' % (path, e.strerror))
        return kept.astype(np.float32) * np.float32(2 / 255) - 1


class Listed(NamedTuple):
    """One image of a manifest; the target is -1, and the strength empty, where the manifest doesn't have them."""
    label: int
    target: int
    strength: Tuple[str, ...]  # attack_iter and epsilon, as they stand there


def read_manifest(path: str) -> Dict[str, Listed]:
    """{real path of an image: what the manifest says of it}. Raises InputError, naming the line, for a malformed one."""
    folder = os.path.dirname(os.path.abspath(path))
    listed: Dict[str, Listed] = {}
    try:
        with open(path, newline='', encoding='utf-8', errors='surrogateescape') as f:
            reader = csv.DictReader(f)
            if not {'file', 'label'} <= set(reader.fieldnames or []):
                raise InputError('%s is no manifest: its first line must name the columns `file` and `label`' % path)
            for row in reader:
                listed[os.path.realpath(os.path.join(folder, row['file']))] = Listed(
                    int(row['label']), int(row.get('target') or -1),
                    tuple(row[name] for name in ('attack_iter', 'epsilon') if row.get(name)))
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    except (ValueError, TypeError, csv.Error) as e:
        if isinstance(e, InputError):
            raise
        raise InputError('%s, line %d: %s' % (path, reader.line_num, e))
    if not listed:
        raise InputError('%s lists no image' % path)
    return listed
