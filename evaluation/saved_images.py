"""Attacked images on disk: PNG files of whole pixel values, still within the budget, and a manifest of them.

A manifest is a CSV with at least the columns `file` (relative to the manifest) and `label`. With it the images are
scored again, by another network (scoring.py).
"""
import csv
import os
import socket
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from evaluation.outcomes import Strength
from runtime.errors import InputError
from runtime.files import WholeFile, cannot_write
from runtime.pixels import unscale_pixels
from third_party.batches import Batch

MANIFEST = 'manifest.csv'
TOKEN = '.evaluation'  # a file by which all ranks know the folder


def quantised(images: np.ndarray, clean: np.ndarray, epsilon: float) -> np.ndarray:
    """Round images in [-1, 1] to the nearest whole pixel values, uint8, within epsilon of the `clean` uint8 images."""
    radius = int(epsilon)  # clean pixels are whole numbers, so changes are too
    clean = clean.astype(np.int32)
    nearest = np.rint(unscale_pixels(images.astype(np.float64))).astype(np.int32)
    return np.clip(np.clip(nearest, clean - radius, clean + radius), 0, 255).astype(np.uint8)


def file_name(position: int, strength: Strength) -> str:
    return '%06d-iter%d-epsilon%s.png' % (position, strength.num_iter, strength.epsilon_text)


def prepare_directory(path: str, strengths: Sequence[Strength], *, continued: bool, done: int) -> int:
    """Create the folder, as the chief; return what `check_directory` needs.

    Raises InputError where it can't be written, holds something that is not of this evaluation, or lacks images of the
    first `done` positions of one that is continued.
    """
    try:
        os.makedirs(path, exist_ok=True)
        check_unused(path, continued=continued)
        names = set(os.listdir(path))
        missing = [name for name in (file_name(i, s) for i in range(done) for s in strengths) if name not in names]
        if missing:
            raise InputError('%s lacks %d images that the journal says are there, such as %s: give the folder of the '
                             'evaluation that is continued, or another journal' % (path, len(missing), missing[0]))
        for name in names:
            if name.endswith('.part'):  # left by a process that was killed
                os.unlink(os.path.join(path, name))
        token = int.from_bytes(os.urandom(4), 'little')
        with WholeFile(os.path.join(path, TOKEN)) as f:
            f.write('%d\n' % token)
        return token
    except OSError as e:
        raise cannot_write(path, e)


def check_unused(path: str, *, continued: bool) -> None:
    """Raise InputError where the folder holds something already, and no evaluation of it is continued."""
    if not continued and os.path.isdir(path) and os.listdir(path):
        raise InputError('%s is not empty: choose another folder for --save-adversarial, or remove it' % path)


def check_directory(path: str, token: int) -> None:
    """Raise InputError, at a rank on another machine, where this is not the folder that the chief prepared."""
    try:
        with open(os.path.join(path, TOKEN)) as f:
            same = f.read() == '%d\n' % token
    except OSError:
        same = False
    if not same or not os.access(path, os.W_OK):
        raise InputError('%s is not the same folder, or can\'t be written, on %s: --save-adversarial needs one that '
                         'all machines share' % (path, socket.gethostname()))


class ImageWriter:
    """Writes a batch's images and returns them as written, uint8: an attack.Saver."""

    def __init__(self, directory: str):
        self._directory = directory

    def __call__(self, batch: Batch, strength: Strength, images: np.ndarray) -> np.ndarray:
        kept = quantised(images, batch.images, strength.epsilon)
        for position, image in zip(batch.indices, kept):
            with WholeFile(os.path.join(self._directory, file_name(position, strength)), 'wb') as f:
                f.write(cv2.imencode('.png', image)[1].tobytes())
        return kept


class Listed(NamedTuple):
    """One image of a manifest; the target is -1, and the strength empty, where the manifest doesn't have them."""
    label: int
    target: int
    strength: Tuple[float, ...]  # attack_iter and epsilon
    clean: bool  # not attacked, as far as the manifest says


def read_manifest(path: str) -> Dict[str, Listed]:
    """Return {real path of an image: what the manifest says of it}. Raises InputError, naming the line of what is
    wrong."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    listed: Dict[str, Listed] = {}
    try:
        with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as f:
            reader = csv.DictReader(f)
            if not {'file', 'label'} <= set(reader.fieldnames or []):
                raise InputError('%s is no manifest: its first line must name the columns `file` and `label`' % path)
            for row in reader:
                image = os.path.realpath(os.path.join(folder, row['file']))
                if image in listed:
                    raise ValueError('%s is listed twice' % row['file'])
                label, target = int(row['label']), int(row.get('target') or -1)
                if label == target:
                    raise ValueError('%s has its label as its target' % row['file'])
                strength = tuple(float(row[name]) for name in ('attack_iter', 'epsilon') if row.get(name))
                clean = float(row['attack_iter']) == 0 if row.get('attack_iter') else not strength and target < 0
                listed[image] = Listed(label, target, strength, clean)
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    except InputError:
        raise
    except (ValueError, TypeError, csv.Error) as e:
        raise InputError('%s, line %d: %s' % (path, reader.line_num, e))
    if not listed:
        raise InputError('%s lists no image' % path)
    return listed


def find_manifest(directory: str, given: Optional[str]) -> Dict[str, Listed]:
    """Read the manifest that is given, or else the folder's own; empty without. Somebody else's manifest.csv is
    none."""
    own = os.path.join(directory, MANIFEST)
    if given:
        return read_manifest(given)
    try:
        return read_manifest(own)
    except InputError:
        return {}
