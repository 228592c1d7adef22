"""The val.txt of a flat validation set: which file has which label."""
import logging
import os
import posixpath
import re
from typing import Dict, Iterator, List, Optional, Tuple

from runtime.errors import InputError
from third_party.folders import IMAGE_ENDINGS, list_folder, read_lines

logger = logging.getLogger(__name__)


def find_label_file(data_dir: str) -> Optional[str]:
    """Find the val.txt of a flat validation set; None where val/ has class folders instead."""
    top = os.path.join(data_dir, 'val')
    candidates = label_files(data_dir)
    if not candidates or not os.path.isdir(top):
        return None
    folders, files = list_folder(top)
    if folders and not any(f.lower().endswith(IMAGE_ENDINGS) for f in files):
        return None
    if len(candidates) == 2:
        raise InputError('there is a %s and a %s: remove one' % tuple(candidates))
    return candidates[0]


def label_files(data_dir: str) -> List[str]:
    """List the files where a val.txt may be meant."""
    places = (os.path.join(data_dir, 'val.txt'), os.path.join(data_dir, 'val', 'val.txt'))
    return [path for path in places if os.path.isfile(path)]


def labels_in(label_file: str) -> Iterator[str]:
    """List what may be meant as a label, of every line: its last word, and all after its first one."""
    for line in read_lines(label_file):
        yield line.rsplit(None, 1)[-1]
        yield line.split(None, 1)[-1]


def labelled_by_file(top: str, label_file: str, names: List[str], classes_file: Optional[str],
                     index: Dict[str, int]) -> Tuple[List[str], List[int]]:
    """Return the paths and labels of the images in val/ (`top`), sorted by the path within it.

    names: of the classes, from the `classes_file` where there is one; index: the label of all that names one. Raises
    InputError, naming the line, for a file that isn't there, isn't in val/ or was listed before, and for a label that
    no class has.
    """
    present = set(list_folder(top)[1])
    lines: Dict[str, int] = {}
    labels: Dict[str, int] = {}
    for number, line in enumerate(read_lines(label_file), 1):
        where = '%s, line %d (\'%s\')' % (label_file, number, line)
        written, label = _parse(line, where, index, names, classes_file)
        name = _within(top, written, where)
        if name not in present and not os.path.isfile(os.path.join(top, name)):
            raise InputError('%s: there is no such file in %s' % (where, top))
        if name in lines:
            raise InputError('%s: this file was listed before, in line %d' % (where, lines[name]))
        lines[name], labels[name] = number, label
    unlisted = sorted(n for n in present.difference(labels) if n.lower().endswith(IMAGE_ENDINGS))
    if unlisted:
        logger.warning('%d images of %s, such as %s, are not in %s and so not in the validation set',
                       len(unlisted), top, unlisted[0], label_file)
    ordered = sorted(labels)
    return [os.path.join(top, name) for name in ordered], [labels[name] for name in ordered]


def _within(top: str, name: str, where: str) -> str:
    """Return the one way to write a file's path within val/: `./a`, `b/../a`, `../val/a` and `/data/val/a` are all `a`.

    Links are not followed, but for those on the way to val/: many sets consist of links to a store elsewhere.
    """
    path = posixpath.normpath(posixpath.join(os.path.abspath(top), name))
    for folder in (os.path.abspath(top), os.path.realpath(top)):
        if path.startswith(folder.rstrip('/') + '/'):
            return os.path.relpath(path, folder)
    raise InputError('%s: the file is not in %s' % (where, top))


def _parse(line: str, where: str, index: Dict[str, int], names: List[str], classes_file: Optional[str]
           ) -> Tuple[str, int]:
    """Return the file and the label of one line. One of them may contain spaces, where that leaves no doubt.

    Raises InputError, beginning with `where`, for a line that is none and for a label that no class has.
    """
    fields = line.rsplit(None, 1)
    if len(fields) != 2:
        raise InputError('%s: expected a file and its label' % where)
    name, label = fields
    if re.match(r'\d+$', label):
        number = int(label)
        if number >= len(names):
            raise InputError('%s: the label must be from 0 to %d' % (where, len(names) - 1))
        if index.get(label, number) != number:
            advice = 'name the classes in label order with --classes FILE' if classes_file is None else \
                'put that class at its number in %s, or write names instead of indices' % classes_file
            raise InputError('%s: the label is both an index and the name of class %d: %s'
                             % (where, index[label], advice))
        return name, number
    if label in index:
        return name, index[label]
    name, label = line.split(None, 1)
    if label in index:
        return name, index[label]
    raise InputError('%s: the label is neither an index nor one of the %d classes (%s, ...)'
                     % (where, len(names), names[0]))
