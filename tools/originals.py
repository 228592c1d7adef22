"""Which images of several attackers were made of the same original, and what is that one's label.

The manifest's row of an image is, the first of these that there is:
1. the row of that very file;
2. the row whose `file`, folders and all, is the end of the image's path: `n01/7.png` of `attackerA/n01/7.png`; of
   several the longest;
3. the row whose `file` ends with the image's path within the deepest folder that has all of its attacker's images:
   `val/n01/7.png` for `attackerA/n01/7.png`, where attackerA has other folders too.
An image's ending may be another one (.png for .JPEG) where no row has the same.

Images whose rows have the same `path` (the column that --save-adversarial writes) were made of the same original; where
there is no `path`, those of the same row. A manifest that lists each attacker's own files has a row for each: of these
the original is the path within the deepest folder that has all of the attacker's.
"""
import collections
import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from evaluation.saved_images import Listed, read_rows
from runtime.errors import InputError
from third_party.folders import IMAGE_ENDINGS

Parts = Tuple[str, ...]


class Attacker(NamedTuple):
    """What is known of an attacker's images: a name for it, and their paths."""
    name: str
    paths: Sequence[str]


class Row(NamedTuple):
    """A manifest's row: what it says of the image, the image's name there, and its `path`, '' without one."""
    listed: Listed
    file: str
    original: str


class Originals(NamedTuple):
    """Every original with its label, in the manifest's order, and each attacker's versions: {original: position in its
    paths}. unlisted: each attacker's images that have no row."""
    labels: Dict[str, int]
    versions: List[Dict[str, int]]
    unlisted: List[List[str]]


def read_manifests(paths: Sequence[str]) -> Dict[str, Row]:
    """Read manifests as one: {real path of an image: its row}. Raises InputError where two of them contradict each
    other, and as saved_images.read_manifest does."""
    rows: Dict[str, Row] = {}
    for path in paths:
        for image, (listed, values) in read_rows(path).items():
            if image in rows and rows[image].listed.label != listed.label:
                raise InputError('%s: the label of %s is %d, and in another manifest %d'
                                 % (path, values['file'], listed.label, rows[image].listed.label))
            rows[image] = Row(listed, values['file'], values.get('path', ''))
    return rows


def parts_of(path: str, *, bare: bool) -> Parts:
    """Return the folders and the name of a path; bare: without an image's ending."""
    parts = tuple(part for part in os.path.normpath(path).split('/') if part not in ('', '.', '..'))
    stem, ending = os.path.splitext(parts[-1] if parts else '')
    return parts[:-1] + (stem,) if bare and ending.lower() in IMAGE_ENDINGS else parts


def ends_of(parts: Parts) -> Iterator[Parts]:
    """Yield all ends of a path, the longest first."""
    return (parts[i:] for i in range(len(parts)))


def common_folder(paths: Sequence[str]) -> str:
    """Return the deepest folder that has all of the files, which need not exist."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


class Rows:
    """Finds the row of an image."""

    def __init__(self, rows: Dict[str, Row]):
        self._rows = rows
        # real paths of the rows; keys: whether without endings, and parts of their names
        self._named: Dict[Tuple[bool, Parts], Set[str]] = collections.defaultdict(set)
        self._ending: Dict[Tuple[bool, Parts], Set[str]] = collections.defaultdict(set)
        for image, row in rows.items():
            for bare in (False, True):
                parts = parts_of(row.file, bare=bare)
                self._named[bare, parts].add(image)
                for end in ends_of(parts):
                    self._ending[bare, end].add(image)

    def find(self, path: str, within: str) -> Optional[Tuple[str, bool]]:
        """Return the real path of an image's row, and whether the row is of that very file; None without one.

        within: the path in its attacker's folder. Raises InputError where several rows are as good.
        """
        image = os.path.realpath(path)
        if image in self._rows:
            return image, True
        for bare in (False, True):
            candidates = [self._named.get((bare, end)) for end in ends_of(parts_of(path, bare=bare))]
            for rows in candidates + [self._ending.get((bare, parts_of(within, bare=bare)))]:
                if rows and len(rows) > 1:
                    raise InputError('%s may be %s of --labels or %s: have the images of each attacker in folders as '
                                     'the manifest has them' % ((path,) + tuple(
                                         self._rows[row].file for row in sorted(rows)[:2])))
                if rows:
                    return next(iter(rows)), False
        return None


def find_originals(attackers: Sequence[Attacker], rows: Dict[str, Row]) -> Originals:
    """Find the original of every attacker's images. rows: as read_manifests returns them.

    Raises InputError, which names the images, where an attacker has two of one original, where nobody can say which row
    an image's is, and where images of one original have different labels.
    """
    by_name = Rows(rows)
    found: List[List[Optional[Tuple[str, bool]]]] = []
    for attacker in attackers:
        folder = common_folder(attacker.paths)
        found.append([by_name.find(path, os.path.relpath(os.path.abspath(path), folder)) for path in attacker.paths])
    names = names_of_originals([[f for f in of_one if f] for of_one in found], rows)
    labels: Dict[str, int] = {}
    for image, row in rows.items():
        label = labels.setdefault(names[image], row.listed.label)
        if label != row.listed.label:
            raise InputError('%s has the label %d in --labels, and another image of the same original, %s, has %d'
                             % (row.file, row.listed.label, names[image], label))
    versions: List[Dict[str, int]] = []
    for attacker, of_one in zip(attackers, found):
        seen: Dict[str, int] = {}
        for position, row_found in enumerate(of_one):
            if row_found:
                first = seen.setdefault(names[row_found[0]], position)
                if first != position:
                    raise InputError('%s has two images of %s: %s and %s'
                                     % (attacker.name, names[row_found[0]], attacker.paths[first],
                                        attacker.paths[position]))
        versions.append(seen)
    unlisted = [[path for path, f in zip(attacker.paths, of_one) if not f]
                for attacker, of_one in zip(attackers, found)]
    return Originals({name: labels[name] for name in dict.fromkeys(names.values())}, versions, unlisted)


def names_of_originals(found: Sequence[Sequence[Tuple[str, bool]]], rows: Dict[str, Row]) -> Dict[str, str]:
    """Return {real path of a row: its original}. found: what Rows.find found of each attacker's images."""
    names = {image: row.original or row.file for image, row in rows.items()}
    used = [{image for image, _ in of_one} for of_one in found]
    own_files = all(very_file for of_one in found for _, very_file in of_one)
    if len(found) > 1 and own_files and sum(map(len, used)) == len(set().union(*used)):
        folders = sorted({common_folder(sorted(images)) for images in used if images}, key=len, reverse=True)
        for image, row in rows.items():
            folder = next((f for f in folders if image.startswith(os.path.join(f, ''))), None)
            if folder and not row.original:
                names[image] = '/'.join(parts_of(os.path.relpath(image, folder), bare=True))
    return names
