"""What lies in a folder, in an order that is the same on every machine, and the lines of a text file.

Names that start with a dot are ignored, and so is what systems and file servers put into folders by themselves: such a
folder is no class, and nothing in it is an image of the set.
"""
import os
import re
from typing import List, Tuple

from runtime.errors import InputError
from runtime.files import require_file

# What is meant as an image, and is not left out silently. A GIF is named as one that cannot be read.
IMAGE_ENDINGS = ('.jpeg', '.jpg', '.jpe', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm',
                 '.jp2')
# Of JPEG, PNG, GIF, BMP, TIFF, WebP, PPM and its like, JPEG 2000: a class's images need not have endings
IMAGE_BEGINNINGS = re.compile(rb'''
    \xff\xd8 | \x89PNG | GIF8 | BM.{4}\0\0\0\0 | II\*\0 | MM\0\* | RIFF.{4}WEBP | P[1-7]\s
    | \0\0\0\x0cjP | \xff\x4f\xff\x51
    ''', re.VERBOSE | re.DOTALL)
# In any case: file systems of Windows and macOS don't keep it.
SYSTEM_FOLDERS = re.compile(r"""
    lost\+found | system\ volume\ information | \$recycle\.bin | found\.\d{3}     # repairs, Windows
    | __macosx | network\ trash\ folder | temporary\ items                        # macOS, also in ZIP files
    | @eadir | \#recycle | \#snapshot | @recycle | @recently-snapshot | @tmp      # network storage
    | ~snapshot | __pycache__ | \$extend | recycler | recycled | config\.msi | @sharebin
    | thevolumesettingsfolder | thefindbycontentfolder
    """, re.VERBOSE | re.IGNORECASE)
SYSTEM_FILES = re.compile(r'(eh)?thumbs\.db|desktop\.ini|icon\r', re.IGNORECASE)


def list_folder(path: str) -> Tuple[List[str], List[str]]:
    """Return the sorted names of the folders and of the files in a folder, without hidden ones.

    Raises InputError for a broken link, and for what is neither.
    """
    folders: List[str] = []
    files: List[str] = []
    for entry in scan(path):
        if entry.is_file():
            files.append(entry.name)
        elif entry.is_dir():
            folders.append(entry.name)
        else:
            raise InputError('%s is %s' % (entry.path, 'a broken symbolic link' if entry.is_symlink()
                                           else 'neither a file nor a folder'))
    # '/' as in a relative path, so that the whole set is sorted by relative path
    return sorted(folders, key=lambda name: name + '/'), sorted(files)


def has_images(path: str) -> bool:
    """Tell whether a folder has a file that may be meant as an image, or a folder, which is no part of a class and is
    named as such; False where there is no such folder."""
    if not os.path.isdir(path):
        return False
    try:
        with os.scandir(path) as entries:  # the first will do: a class may have a million
            return any(entry.is_dir() or may_be_image(entry.path) for entry in entries if _counts(entry))
    except OSError as e:
        raise InputError('cannot read the folder %s: %s' % (path, e.strerror))


def may_be_image(path: str) -> bool:
    """Tell whether a file may be meant as an image: by its name, or by how it begins; an empty one where its name has
    no ending."""
    if path.lower().endswith(IMAGE_ENDINGS):
        return True
    if not os.path.isfile(path):  # what is wrong with it is said by those who list it
        return True
    try:
        with open(path, 'rb') as f:
            begin = f.read(12)
    except OSError:
        return True
    return bool(IMAGE_BEGINNINGS.match(begin)) or not begin and '.' not in os.path.basename(path)


def scan(path: str) -> List[os.DirEntry]:
    """List what is in a folder, without what is hidden or a system's own, in any order."""
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if _counts(entry)]
    except OSError as e:
        raise InputError('cannot read the folder %s: %s' % (path, e.strerror))


def _counts(entry: os.DirEntry) -> bool:
    return not entry.name.startswith('.') and not _is_of_system(entry)


def _is_of_system(entry: os.DirEntry) -> bool:
    if SYSTEM_FOLDERS.fullmatch(entry.name):
        return entry.is_dir()
    return bool(SYSTEM_FILES.fullmatch(entry.name)) and entry.is_file()


def require_folder(path: str) -> None:
    """Raise InputError where there is no folder at `path`."""
    if not os.path.isdir(path):
        raise InputError(('%s is not a folder' if os.path.exists(path) else 'there is no folder %s') % path)


def read_lines(path: str) -> List[str]:
    """Return the stripped lines of a text file; empty ones are allowed at its end only."""
    require_file(path)
    try:
        # names of files are bytes: what is not UTF-8 in them is kept
        with open(path, encoding='utf-8-sig', errors='surrogateescape') as f:
            text = f.read()
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    if '\0' in text:
        raise InputError('%s is not a text file in UTF-8' % path)
    lines = [line.strip() for line in text.rstrip().split('\n')]
    if lines == ['']:
        raise InputError('%s is empty' % path)
    if '' in lines:
        raise InputError('%s, line %d: the line is empty' % (path, lines.index('') + 1))
    return lines
