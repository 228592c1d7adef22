"""Find and label the images of an ImageNet-style folder.

    DIR/train/<class>/*          training images
    DIR/val/<class>/*            validation images, or
    DIR/val/* and DIR/val.txt    (or DIR/val/val.txt) of lines `file label`, by index or class name

Classes are, in this order of precedence: the lines of the `classes_file`; the lines of DIR/synsets.txt; all
1000 of ILSVRC-2012 when the class folders are some of its wnids; else the sorted names of the folders in
train/ (of those in val/ when there is no training set). A flat val/ with nothing else to tell the classes
has ILSVRC-2012's.

Names that start with a dot are ignored everywhere. Every other file of a class folder is an image of the
set, whatever its name ends in: what cannot be decoded is for the reader to report, as a file left out here
would make the set silently smaller. Symbolic links to folders and files count as what they point to.

All orders are those of `sorted()` on strings, so they are the same on every machine and in every locale.
"""
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from runtime.errors import InputError

ILSVRC_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ilsvrc2012_synsets.txt')
# What is meant as an image, and is not left out silently. A GIF is named as one that cannot be read.
IMAGE_ENDINGS = ('.jpeg', '.jpg', '.jpe', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm',
                 '.jp2')

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Labelled images, sorted by their path within the data folder."""
    paths: List[str]        # data_dir + '/' + split + ...
    labels: List[int]       # of the same length, indices into class_names
    class_names: List[str]  # all classes of the task, also those without an image here

    def __len__(self) -> int:
        return len(self.paths)

    def listing(self, data_dir: str) -> List[object]:
        """List class names, every image's path in the folder, and labels: what tells the set without reading files."""
        return [self.class_names, [os.path.relpath(path, data_dir) for path in self.paths], self.labels]

    def digest(self, data_dir: str, contents: Sequence[str]) -> str:
        """Return the SHA-256 of every image's path in the folder, label and content, in order.

        It is the same wherever the folder lies. contents: the SHA-256 of each image's file, in hexadecimal digits.
        """
        sha256 = hashlib.sha256()
        for path, label, content in zip(self.paths, self.labels, contents):
            line = '%s\0%d\0%s\n' % (os.path.relpath(path, data_dir), label, content)
            sha256.update(line.encode('utf-8', 'surrogateescape'))
        return sha256.hexdigest()


def load_dataset(data_dir: str, split: str, classes_file: Optional[str] = None) -> Dataset:
    """List all images of `split` ('train' or 'val') with their labels.

    Raises InputError, naming the file, folder or line, where a folder is missing or empty, a class folder is
    not in the list of classes, an image lies outside the class folders, or val.txt does not fit the files.
    """
    names = class_names(data_dir, classes_file)
    index = {name: i for i, name in enumerate(names)}
    label_file = _label_file(data_dir) if split == 'val' else None
    if label_file:
        paths, labels = _labelled_by_file(os.path.join(data_dir, split), label_file, index)
    else:
        paths, labels = _labelled_by_folder(os.path.join(data_dir, split), index)
    return Dataset(paths, labels, names)


def count_images(data_dir: str, split: str) -> int:
    """Count the images that `load_dataset` finds, without listing them or looking at labels."""
    label_file = _label_file(data_dir) if split == 'val' else None
    if label_file:
        return len(_read_lines(label_file))
    top = os.path.join(data_dir, split)
    return sum(len(_class_files(os.path.join(top, folder))) for folder in _class_folders(top))


def class_names(data_dir: str, classes_file: Optional[str] = None) -> List[str]:
    """Return the names of the classes in label order: see the top of this file for where they come from.

    Raises InputError where the folder has no classes, a single one, or ILSVRC-2012's and others.
    """
    _require_folder(data_dir)
    if classes_file:
        return read_classes(classes_file)
    synsets = os.path.join(data_dir, 'synsets.txt')
    if os.path.exists(synsets):
        return read_classes(synsets)
    folders = _folders_of(data_dir, 'train')
    if not folders and _label_file(data_dir):
        return ilsvrc_names()
    folders = folders or _folders_of(data_dir, 'val')
    if not folders:
        raise InputError('%s has no class folders: expected train/CLASS/* and val/CLASS/*, or val/* with a '
                         'val.txt' % data_dir)
    ilsvrc = ilsvrc_names()
    known = set(ilsvrc).intersection(folders)
    if len(known) == len(folders):
        return ilsvrc
    odd = [f for f in folders if not re.match(r'n\d{8}$', f)]
    if known and odd:  # most likely a stray folder, and sorted names would give every image a wrong label
        raise InputError('%s has class folders of ILSVRC-2012 and also %r: move that away, or name all '
                         'classes in label order with --classes FILE' % (data_dir, odd[0]))
    if len(folders) < 2:
        raise InputError('%s has a single class, %s: that leaves nothing to classify' % (data_dir, folders[0]))
    return folders


def read_classes(path: str) -> List[str]:
    """Read class names in label order from a text file: one a line; what follows a tab is a remark.

    Raises InputError where the file can't be read, or has a class twice or a single one.
    """
    names = [line.split('\t')[0].strip() for line in _read_lines(path)]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise InputError('%s: the class %r is there twice' % (path, twice))
    if len(names) < 2:
        raise InputError('%s: a single class leaves nothing to classify' % path)
    return names


def ilsvrc_names() -> List[str]:
    """Return the 1000 wnids of ILSVRC-2012 in label order."""
    return read_classes(ILSVRC_FILE)


def find_images(directory: str) -> List[str]:
    """List all files below `directory`, as `directory` + '/' + relative path, sorted by the relative path.

    The order is that of the relative paths as strings (`find -L . | LC_ALL=C sort`). Symbolic links are
    followed, except to a folder that contains the link. Broken links are listed, so that they can be
    reported; hidden files and folders, pipes and devices are not. Raises InputError for a missing,
    unreadable or empty folder.
    """
    _require_folder(directory)
    found: List[str] = []
    pending: List[Tuple[str, Tuple[Tuple[int, int], ...]]] = [('', (_identity(directory),))]
    while pending:
        prefix, ancestors = pending.pop()
        for entry in _scan(os.path.join(directory, prefix)):
            name = prefix + entry.name
            if entry.is_dir():
                identity = _identity(entry.path)
                if identity not in ancestors:
                    pending.append((name + '/', ancestors + (identity,)))
            elif entry.is_file() or entry.is_symlink():
                found.append(name)
    if not found:
        raise InputError('there is no image in %s' % directory)
    return [os.path.join(directory, name) for name in sorted(found)]


def _labelled_by_folder(top: str, index: Dict[str, int]) -> Tuple[List[str], List[int]]:
    paths: List[str] = []
    labels: List[int] = []
    for folder in _class_folders(top):
        if folder not in index:
            raise InputError('the class folder %s is not among the %d classes (%s, ...): name all classes '
                             'in label order with --classes FILE'
                             % (os.path.join(top, folder), len(index), next(iter(index))))
        files = _class_files(os.path.join(top, folder))
        if not files:  # the class keeps its label, as the others' depend on it
            logger.warning('the class folder %s is empty', os.path.join(top, folder))
        paths.extend(os.path.join(top, folder, name) for name in files)
        labels.extend([index[folder]] * len(files))
    if not paths:
        raise InputError('all class folders in %s are empty' % top)
    return paths, labels


def _labelled_by_file(top: str, label_file: str, index: Dict[str, int]) -> Tuple[List[str], List[int]]:
    present = set(_list_folder(top)[1])
    names = list(index)
    labels: Dict[str, int] = {}
    for number, line in enumerate(_read_lines(label_file), 1):
        where = '%s, line %d (%r)' % (label_file, number, line)
        name, label = _parse_label(line, where, index, names)
        if name not in present and not os.path.isfile(os.path.join(top, name)):
            raise InputError('%s: there is no such file in %s' % (where, top))
        if name in labels:
            raise InputError('%s: this file was listed before' % where)
        labels[name] = label
    unlisted = sorted(n for n in present.difference(labels) if n.lower().endswith(IMAGE_ENDINGS))
    if unlisted:
        logger.warning('%d images of %s, such as %s, are not in %s and so not in the validation set',
                       len(unlisted), top, unlisted[0], label_file)
    ordered = sorted(labels)
    return [os.path.join(top, name) for name in ordered], [labels[name] for name in ordered]


def _parse_label(line: str, where: str, index: Dict[str, int], names: List[str]) -> Tuple[str, int]:
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
            raise InputError('%s: the label is both an index and the name of class %d: name the classes in '
                             'label order with --classes FILE' % (where, index[label]))
        return name, number
    if label in index:
        return name, index[label]
    name, label = line.split(None, 1)
    if label in index:
        return name, index[label]
    raise InputError('%s: the label is neither an index nor one of the %d classes (%s, ...)'
                     % (where, len(names), names[0]))


def _label_file(data_dir: str) -> Optional[str]:
    """Find the val.txt of a flat validation set; None where val/ has class folders instead."""
    top = os.path.join(data_dir, 'val')
    places = (os.path.join(data_dir, 'val.txt'), os.path.join(top, 'val.txt'))
    candidates = [path for path in places if os.path.isfile(path)]
    if not candidates or not os.path.isdir(top):
        return None
    folders, files = _list_folder(top)
    if folders and not any(f.lower().endswith(IMAGE_ENDINGS) for f in files):
        return None
    if len(candidates) == 2:
        raise InputError('there is a %s and a %s: remove one' % tuple(candidates))
    return candidates[0]


def _folders_of(data_dir: str, split: str) -> List[str]:
    top = os.path.join(data_dir, split)
    return _list_folder(top)[0] if os.path.isdir(top) else []


def _class_folders(top: str) -> List[str]:
    _require_folder(top)
    folders, files = _list_folder(top)
    loose = [f for f in files if f.lower().endswith(IMAGE_ENDINGS)]
    if loose:
        raise InputError('%s is in no class folder%s' % (
            os.path.join(top, loose[0]),
            '' if folders or not top.endswith('val') else ', and there is no val.txt with its label'))
    if not folders:
        raise InputError('there are no class folders in %s' % top)
    return folders


def _class_files(folder: str) -> List[str]:
    folders, files = _list_folder(folder)
    if folders:
        raise InputError('%s is a folder inside a class folder: only files are expected there'
                         % os.path.join(folder, folders[0]))
    return files


def _list_folder(path: str) -> Tuple[List[str], List[str]]:
    """Return the sorted names of the folders and of the files in a folder, without hidden ones."""
    folders: List[str] = []
    files: List[str] = []
    for entry in _scan(path):
        if entry.is_file():
            files.append(entry.name)
        elif entry.is_dir():
            folders.append(entry.name)
        else:
            raise InputError('%s is %s' % (entry.path, 'a broken symbolic link' if entry.is_symlink()
                                           else 'neither a file nor a folder'))
    # '/' as in a relative path, so that the whole set is sorted by relative path
    return sorted(folders, key=lambda name: name + '/'), sorted(files)


def _scan(path: str) -> List[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as e:
        raise InputError('cannot read the folder %s: %s' % (path, e.strerror))


def _identity(path: str) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _require_folder(path: str) -> None:
    if not os.path.isdir(path):
        raise InputError(('%s is not a folder' if os.path.exists(path) else 'there is no folder %s') % path)


def _read_lines(path: str) -> List[str]:
    """Return the stripped lines of a text file; empty ones are allowed at its end only."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            lines = [line.strip() for line in f.read().rstrip().split('\n')]
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    except UnicodeDecodeError:
        raise InputError('%s is not a text file in UTF-8' % path)
    if lines == ['']:
        raise InputError('%s is empty' % path)
    if '' in lines:
        raise InputError('%s, line %d: the line is empty' % (path, lines.index('') + 1))
    return lines
