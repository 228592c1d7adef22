"""A part of a data set, and lists that name its images as leaderboards and people write them."""
import os
from typing import Dict, List

from runtime.errors import InputError
from third_party.folders import read_lines
from third_party.imagenet import Dataset


def subset(dataset: Dataset, data_dir: str, which: str) -> Dataset:
    """Return the part of a validation set that `which` says: so many images, spread evenly over it, or those that the
    lines of a file name.

    Its images keep their `index`, their order and all classes. Raises InputError where there aren't so many, or an
    image of the file is not in the set or there twice.
    """
    if which.isdecimal():
        count = int(which)
        if not 1 <= count <= len(dataset):
            raise InputError('--subset %s: from 1 to %d images can be chosen' % (which, len(dataset)))
        chosen = [i * len(dataset) // count for i in range(count)]
    else:
        names = Names(dataset, data_dir)
        lines: Dict[int, int] = {}
        for number, line in enumerate(read_lines(which), 1):
            position = names.position(line, '%s, line %d' % (which, number))
            if position in lines:
                raise InputError('%s, line %d: %s is there twice, first in line %d'
                                 % (which, number, line, lines[position]))
            lines[position] = number
        chosen = sorted(lines)
    return Dataset([dataset.paths[i] for i in chosen], [dataset.labels[i] for i in chosen], dataset.class_names,
                   [dataset.index(i) for i in chosen])


class Names:
    """Finds images by their paths, also within a validation set's folder, or by their files' names alone where only
    one has it.

    A `val/` may stand in front, and where the set has no class folders, that of a class.
    """

    def __init__(self, dataset: Dataset, data_dir: str):
        self._top = os.path.join(data_dir, 'val')
        paths = [os.path.relpath(path, self._top) for path in dataset.paths]
        self._by_path = {path: i for i, path in enumerate(paths)}
        self._as_listed = {os.path.normpath(path): i for i, path in enumerate(dataset.paths)}  # as --per-image has them
        self._by_name: Dict[str, List[int]] = {}
        for i, path in enumerate(paths):
            self._by_name.setdefault(os.path.basename(path), []).append(i)

    def position(self, name: str, where: str) -> int:
        """Return the position of the image that is named so. Raises InputError, which begins with `where`."""
        path = os.path.normpath(name)
        if path not in self._by_path and path.startswith('val' + os.sep):
            path = path[len('val' + os.sep):]
        for known in (self._by_path, self._as_listed):
            if path in known:
                return known[path]
        folder, name_alone = os.path.split(path)
        found = self._by_name.get(name_alone, [])
        if folder and name_alone not in self._by_path:  # of another class, in a set that has folders of classes
            found = []
        if not found:
            raise InputError('%s: there is no image %s in %s' % (where, name, self._top))
        if len(found) > 1:
            raise InputError('%s: there are %d images %s in %s: name the folder too'
                             % (where, len(found), name, self._top))
        return found[0]
