"""Attacked images on disk: PNG files of whole pixel values, still within the budget, and a manifest of them.

A manifest is a CSV with at least the columns `file` (relative to the manifest) and `label`. With it the images are
scored again, by another network (scoring.py).
"""
import csv
import math
import os
import re
import socket
from typing import Any, Dict, Iterable, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from evaluation.outcomes import Strength
from runtime.errors import InputError
from runtime.files import WholeFile, cannot_write, require_file
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


def file_name(index: int, strength: Strength, attacker: str = '') -> str:
    """Name the file of an attacked image. attacker: where there are several."""
    of_attacker = '-' + re.sub('[^A-Za-z0-9_.]', '-', attacker) if attacker else ''
    return '%06d-iter%d-epsilon%s%s.png' % (index, strength.num_iter, strength.epsilon_text, of_attacker)


def prepare_directory(path: str, expected: Iterable[str], *, continued: bool) -> int:
    """Create the folder, as the chief; return what `check_directory` needs. expected: the names of the images that an
    evaluation which is continued has put there.

    Raises InputError where it can't be written, holds something that is not of this evaluation, or lacks images.
    """
    try:
        os.makedirs(path, exist_ok=True)
        check_unused(path, continued=continued)
        names = set(os.listdir(path))
        missing = [name for name in expected if name not in names]
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
    """Writes images of a batch and returns all as they would be written, uint8: an attack.Saver. attacker: as of
    file_name."""

    def __init__(self, directory: str, attacker: str = ''):
        self._directory, self._attacker = directory, attacker

    def __call__(self, batch: Batch, strength: Strength, images: np.ndarray, which: np.ndarray) -> np.ndarray:
        kept = quantised(images, batch.images, strength.epsilon)
        for index, image in zip(batch.indices[which], kept[which]):
            with WholeFile(os.path.join(self._directory, file_name(index, strength, self._attacker)), 'wb') as f:
                f.write(cv2.imencode('.png', image)[1].tobytes())
        return kept


class Listed(NamedTuple):
    """One image of a manifest; the target is -1, and the strength empty, where the manifest doesn't have them."""
    label: int
    target: int
    strength: Tuple[Any, ...]  # attack_iter and epsilon, and the attacker where the manifest names it
    clean: bool  # not attacked, as far as the manifest says


def read_manifest(path: str) -> Dict[str, Listed]:
    """Return {real path of an image: what the manifest says of it}. Raises InputError, naming the line of what is
    wrong."""
    return {image: listed for image, (listed, _) in read_rows(path).items()}


def check_listed(listed: Dict[str, Listed], paths: Sequence[str], directory: str) -> None:
    """Raise InputError where a manifest lists none of the images below a folder."""
    if listed and not any(os.path.realpath(path) in listed for path in paths):
        raise InputError('the manifest lists %d images, and none of those in %s: its files are named relative to itself'
                         % (len(listed), directory))


def check_labels(listed: Dict[str, Listed], num_classes: int) -> None:
    """Raise InputError, naming an image, where a manifest is of other classes than the network's."""
    for what, fewest in (('label', 0), ('target', -1)):
        numbers = {path: getattr(row, what) for path, row in listed.items()}
        wrong = [path for path, number in numbers.items() if number not in range(fewest, num_classes)]
        if wrong:
            from_one = what == 'label' and min(numbers.values()) == 1 and max(numbers.values()) == num_classes
            raise InputError('the manifest gives %s the %s %d, and the network\'s classes are 0 to %d%s' % (
                wrong[0], what, numbers[wrong[0]], num_classes - 1,
                ': its labels begin at 1, so take 1 from each' if from_one else ''))


def read_rows(path: str) -> Dict[str, Tuple[Listed, Dict[str, str]]]:
    """Return, as read_manifest does, what the manifest says of images, and with it their lines, {column: text}."""
    require_file(path)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    listed: Dict[str, Tuple[Listed, Dict[str, str]]] = {}
    where = path
    try:
        with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as f:
            rows = csv.reader(f)
            columns = next(rows, [])
            if not {'file', 'label'} <= set(columns):
                raise InputError('%s is no manifest: its first line must name the columns `file` and `label`' % path)
            twice = [name for i, name in enumerate(columns) if name in columns[:i]]
            if twice:
                raise InputError('%s, line 1: the column `%s` is there twice' % (path, twice[0]))
            for row in filter(None, rows):  # without empty lines
                where = '%s, line %d' % (path, rows.line_num)
                if len(row) != len(columns):
                    raise InputError('%s: it has %d values, and the first line names %d columns'
                                     % (where, len(row), len(columns)))
                values = dict(zip(columns, row))
                if not values['file'] or '\0' in values['file']:
                    raise InputError('%s: the image has no name of a file' % where)
                image = os.path.realpath(os.path.join(folder, values['file']))
                if image in listed:
                    raise InputError('%s: %s is listed twice' % (where, values['file']))
                listed[image] = listed_as(values, where), values
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    except csv.Error as e:
        raise InputError('%s: behind it is a line that no CSV has (%s)' % (where, e))
    if not listed:
        raise InputError('%s lists no image' % path)
    return listed


def listed_as(values: Dict[str, str], where: str) -> Listed:
    """Return what a line, {column: text}, says of an image. Raises InputError, which begins with `where`."""
    def number(column: str, *, whole: bool = True) -> Optional[float]:
        text = values.get(column, '').strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf or whole and value != int(value):
            raise InputError('%s: %s is %r, and must be a %snumber, 0 or more'
                             % (where, column, text, 'whole ' if whole else ''))
        return value

    label, attack_iter, epsilon = number('label'), number('attack_iter'), number('epsilon', whole=False)
    target = None if values.get('target', '').strip() == '-1' else number('target')
    if label is None:
        raise InputError('%s: the image has no label' % where)
    if label == target:
        raise InputError('%s: %s has its label as its target' % (where, values['file']))
    strength: Tuple[Any, ...] = tuple(value for value in (attack_iter, epsilon) if value is not None)
    if len(strength) == 2 and values.get('attacker'):
        strength += (values['attacker'],)
    clean = attack_iter == 0 if attack_iter is not None else not strength and target is None
    return Listed(int(label), -1 if target is None else int(target), strength, clean)


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
