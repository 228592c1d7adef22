"""Find and label the images of an ImageNet-style folder.

    DIR/train/<class>/*          training images
    DIR/val/<class>/*            validation images, or
    DIR/val/* and DIR/val.txt    (or DIR/val/val.txt) of lines `file label`, by index or class name

Classes are, in this order of precedence: the lines of the `classes_file`; the lines of DIR/synsets.txt; all
1000 of ILSVRC-2012 when the class folders are some of its wnids; the numbers 0..N-1, in that order, when the
names of the class folders are these (`0` .. `11`, `00` .. `11`; other whole numbers are refused); else the
sorted names of the class folders. Class folders are those in train/ (those in val/ when there is no training
set) that have an image in train/ or val/. A flat val/ with nothing else to tell the classes has ILSVRC-2012's.

Names that start with a dot are ignored everywhere, and so are the folders that systems make (see
folders.py). Every other file of a folder that has an image is an image of the
set, whatever its name ends in: what cannot be decoded is for the reader to report, as a file left out here
would make the set silently smaller. A folder whose files are all of another kind (a README.txt) has no image.
Symbolic links to folders and files count as what they point to.

All orders are those of `sorted()` on strings, so they are the same on every machine and in every locale.
"""
import hashlib
import logging
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from runtime.errors import InputError
from third_party.class_folders import (
    has_image_in_a_split,
    in_order_of_numbers,
    is_number,
    place_of,
    warn_of_mixed_numbers,
    warn_of_no_classes,
)
from third_party.folders import (
    IMAGE_ENDINGS,
    list_folder,
    may_be_image,
    read_lines,
    require_folder,
    scan,
)
from third_party.label_file import find_label_file, label_files, labelled_by_file, labels_in

ILSVRC_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ilsvrc2012_synsets.txt')

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Labelled images, sorted by their path within the data folder."""
    paths: List[str]        # data_dir + '/' + split + ...
    labels: List[int]       # of the same length, indices into class_names
    class_names: List[str]  # all classes of the task, also those without an image here
    indices: Optional[Sequence[int]] = None  # the images' positions in the whole set, where this is a part of it

    def __len__(self) -> int:
        return len(self.paths)

    def index(self, position: int) -> int:
        """Return the position in the whole set of the image at a position here."""
        return position if self.indices is None else self.indices[position]

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
    source = _classes_file(data_dir, classes_file)
    index = _index(names, source)
    label_file = find_label_file(data_dir) if split == 'val' else None
    if label_file:
        paths, labels = labelled_by_file(os.path.join(data_dir, split), label_file, names, source, index)
    else:
        ignored = label_files(data_dir) if split == 'val' else []
        paths, labels = _labelled_by_folder(os.path.join(data_dir, split), names, source, index)
        if ignored:
            logger.warning('%s is not read: the class folders in %s say what the labels are', ignored[0],
                           os.path.join(data_dir, split))
    return Dataset(paths, labels, names)


def count_images(data_dir: str, split: str) -> int:
    """Count the images that `load_dataset` finds, without listing them or looking at labels."""
    label_file = find_label_file(data_dir) if split == 'val' else None
    if label_file:
        return len(read_lines(label_file))
    top = os.path.join(data_dir, split)
    return sum(len(_class_files(os.path.join(top, folder))) for folder in _class_folders(top))


def check_folders(data_dir: str, split: str) -> None:
    """Raise InputError where `split` has no class folders, without listing what is in them."""
    _class_folders(os.path.join(data_dir, split))


# --- the classes -----------------------------------------------------------------------------------------------------

def class_names(data_dir: str, classes_file: Optional[str] = None) -> List[str]:
    """Return the names of the classes in label order: see the top of this file for where they come from.

    Raises InputError where the folder has no classes, a single one, ILSVRC-2012's and others, or numbers with gaps.
    """
    require_folder(data_dir)
    source = _classes_file(data_dir, classes_file)
    if source:
        return read_classes(source)
    folders = _folders_of(data_dir, 'train')
    if not folders and find_label_file(data_dir):
        return ilsvrc_names()
    folders = folders or _folders_of(data_dir, 'val')
    if not folders:
        raise InputError('%s has no class folders: expected train/CLASS/* and val/CLASS/*, or val/* with a '
                         'val.txt' % data_dir)
    ilsvrc = ilsvrc_names()
    if set(folders).issubset(ilsvrc):  # before a look into a thousand folders, which takes seconds on a file server
        return ilsvrc
    label_file = find_label_file(data_dir)
    labels = set(labels_in(label_file)) if label_file else set()
    used = [f for f in folders if f in labels or has_image_in_a_split(data_dir, f)] or folders
    known = set(ilsvrc).intersection(used)
    if len(known) == len(used):
        warn_of_no_classes(data_dir, [f for f in folders if f not in ilsvrc])
        return ilsvrc
    odd = [f for f in used if not re.match(r'n\d{8}$', f)]
    if known and odd:  # most likely a stray folder, and sorted names would give every image a wrong label
        raise InputError('%s has class folders of ILSVRC-2012 and also \'%s\': move that away, or name all '
                         'classes in label order with --classes FILE' % (data_dir, odd[0]))
    if len(used) < 2:
        raise InputError('%s has a single class, %s: that leaves nothing to classify' % (data_dir, used[0]))
    empty = [f for f in folders if f not in used]
    numbers = all(is_number(f) for f in used)
    names = in_order_of_numbers(data_dir, used, empty) if numbers else used
    if empty and not numbers and used != folders[:len(used)] and any(label.isdigit() for label in labels):
        raise InputError('%s has numbers as labels, and it depends on the empty class folder %s what they mean: remove '
                         'it, or name all classes in label order with --classes FILE'
                         % (label_file, place_of(data_dir, empty[0])))
    if not numbers:
        warn_of_mixed_numbers(data_dir, names)
    warn_of_no_classes(data_dir, empty)
    return names


def _classes_file(data_dir: str, classes_file: Optional[str]) -> Optional[str]:
    """Return the file that lists the classes: the given one or synsets.txt; None where folders or ILSVRC-2012 tell."""
    synsets = os.path.join(data_dir, 'synsets.txt')
    return classes_file or (synsets if os.path.exists(synsets) else None)


def read_classes(path: str) -> List[str]:
    """Read class names in label order from a text file: one a line; what follows a tab is a remark.

    Where all lines begin with a wnid, as in ILSVRC's synset_words.txt (`n01440764 tench, Tinca tinca`), it is the name,
    and the rest is a remark. Raises InputError where the file can't be read, or has a class twice or a single one.
    """
    lines = read_lines(path)
    if _begin_with_wnids(lines):
        names = [line[:len('n01440764')] for line in lines]
    else:
        names = [line.split('\t')[0].strip() for line in lines]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise InputError('%s: the class \'%s\' is there twice' % (path, twice))
    if len(names) < 2:
        raise InputError('%s: a single class leaves nothing to classify; write one a line' % path)
    return names


def _begin_with_wnids(lines: List[str]) -> bool:
    return all(re.match(r'n\d{8}([\s,;:]|$)', line) for line in lines)


def _index(names: List[str], source: Optional[str]) -> Dict[str, int]:
    """Return the label of every class's name, and of its whole line in the file where only a wnid was taken of it."""
    lines = read_lines(source) if source else []
    whole = {line: label for label, line in enumerate(lines)} if _begin_with_wnids(lines) else {}
    return dict(whole, **{name: label for label, name in enumerate(names)})


def ilsvrc_names() -> List[str]:
    """Return the 1000 wnids of ILSVRC-2012 in label order."""
    return read_classes(ILSVRC_FILE)


def _no_such_class(folder: str, names: List[str], source: Optional[str]) -> InputError:
    """Say that a folder is none of the classes, and what is wrong, or to do, depending on where these come from."""
    name = os.path.basename(folder)
    text = 'the class folder %s is not among the %d classes (%s, ...)' % (folder, len(names), names[0])
    if source is None:
        return InputError('%s: name all classes in label order with --classes FILE' % text)
    beside = re.compile(r"""(^|.*[\s,;:|="'/])%s([\s,;:|="'/]|$)""" % re.escape(name), re.IGNORECASE)
    for number, line in enumerate(names, 1):
        if beside.match(line):
            return InputError('%s of %s. Its line %d is \'%s\': a line must be the name of a class folder, and nothing '
                              'else but a remark after a tab' % (text, source, number, line))
    return InputError('%s of %s: its lines must be the names of all class folders. Add this one, or move the folder '
                      'away' % (text, source))


# --- the images ------------------------------------------------------------------------------------------------------

def find_images(directory: str) -> List[str]:
    """List all files below `directory`, as `directory` + '/' + relative path, sorted by the relative path.

    The order is that of the relative paths as strings (`find -L . | LC_ALL=C sort`). Symbolic links are
    followed, except to a folder that contains the link. Broken links are listed, so that they can be
    reported; hidden files and folders, pipes and devices are not. Raises InputError for a missing,
    unreadable or empty folder.
    """
    require_folder(directory)
    found: List[str] = []
    pending: List[Tuple[str, Tuple[Tuple[int, int], ...]]] = [('', (_identity(directory),))]
    while pending:
        prefix, ancestors = pending.pop()
        for entry in scan(os.path.join(directory, prefix)):
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


def _labelled_by_folder(top: str, names: List[str], source: Optional[str],
                        index: Dict[str, int]) -> Tuple[List[str], List[int]]:
    paths: List[str] = []
    labels: List[int] = []
    for folder in _class_folders(top):
        files = _class_files(os.path.join(top, folder))
        if files and folder not in index:
            raise _no_such_class(os.path.join(top, folder), names, source)
        others = not files and bool(list_folder(os.path.join(top, folder))[1])
        if not files and folder in index or others and source:  # a class keeps its label, as the others' depend on it
            logger.warning('the class folder %s %s', os.path.join(top, folder),
                           'has files, and none of them is an image' if others else 'is empty')
        paths.extend(os.path.join(top, folder, name) for name in files)
        labels.extend(index[folder] for _ in files)
    if not paths:
        raise InputError('all class folders in %s are empty' % top)
    return paths, labels


def _folders_of(data_dir: str, split: str) -> List[str]:
    top = os.path.join(data_dir, split)
    return list_folder(top)[0] if os.path.isdir(top) else []


def _class_folders(top: str) -> List[str]:
    require_folder(top)
    folders, files = list_folder(top)
    loose = [f for f in files if f.lower().endswith(IMAGE_ENDINGS)]
    if loose:
        raise InputError('%s is in no class folder%s' % (
            os.path.join(top, loose[0]),
            '' if folders or not top.endswith('val') else ', and there is no val.txt with its label'))
    if not folders:
        raise InputError('there are no class folders in %s' % top)
    return folders


def _class_files(folder: str) -> List[str]:
    """List all files of a class folder; none where no file is an image."""
    folders, files = list_folder(folder)
    if folders:
        raise InputError('%s is a folder inside a class folder: only files are expected there'
                         % os.path.join(folder, folders[0]))
    return files if any(may_be_image(os.path.join(folder, name)) for name in files) else []


def _identity(path: str) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
