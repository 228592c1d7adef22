"""Which class folders are classes, and the order of those that are numbers."""
import logging
import os
import re
from typing import List

from runtime.errors import InputError
from third_party.folders import has_images

logger = logging.getLogger(__name__)


def is_number(name: str) -> bool:
    """Tell whether a name is a whole number."""
    return bool(re.match(r'[-+]?[0-9]+$', name))


def warn_of_no_classes(data_dir: str, folders: List[str]) -> None:
    """Say of folders without an image that they are no classes."""
    if folders:
        logger.warning('the class folder %s%s has no image in any split and is taken for no class: if it is one, name '
                       'all classes in label order with --classes FILE', place_of(data_dir, folders[0]),
                       ', one of %d such,' % len(folders) if len(folders) > 1 else '')


def warn_of_mixed_numbers(data_dir: str, names: List[str]) -> None:
    """Say where numbers among names have other labels: all are sorted as text, 10 before 2."""
    wrong = [label for label, name in enumerate(names) if is_number(name) and int(name) != label]
    if wrong:
        logger.warning('the class folders of %s are numbers and names, \'%s\' for one, and so sorted as text: class '
                       '\'%s\' has label %d. Move what is no class away, or name all classes in label order with '
                       '--classes FILE', data_dir, next(n for n in names if not is_number(n)), names[wrong[0]],
                       wrong[0])


def in_order_of_numbers(data_dir: str, folders: List[str], empty: List[str]) -> List[str]:
    """Sort names that are whole numbers as such, so that each is its label. Raises InputError unless they are 0..N-1.

    With a gap, or from 1 on, nobody can tell whether a number or its place among them is meant. empty: the names of
    folders without an image, which may be what is in a gap.
    """
    ordered = sorted(folders, key=int)
    wrong = [name for label, name in enumerate(ordered) if int(name) != label]
    gaps = [name for name in sorted(filter(is_number, empty), key=int) if int(name) < int(ordered[-1])]
    if wrong and gaps:
        raise InputError('the class folders of %s are numbers, and %s, one of those, has no image in any split: '
                         'give it its images, or name all classes in label order with --classes FILE' % (
                             data_dir, ', '.join(place_of(data_dir, name) for name in gaps)))
    if wrong:
        raise InputError('the class folders of %s are numbers, but not those from 0 to %d (%s would have label %d): '
                         'name all classes in label order with --classes FILE'
                         % (data_dir, len(folders) - 1, wrong[0], ordered.index(wrong[0])))
    return ordered


def has_image_in_a_split(data_dir: str, folder: str) -> bool:
    """Tell whether a class folder has an image in train/ or in val/."""
    return any(has_images(os.path.join(data_dir, split, folder)) for split in ('train', 'val'))


def place_of(data_dir: str, folder: str) -> str:
    """Return the path of a class folder, in train/ where it is there."""
    return next(path for path in (os.path.join(data_dir, split, folder) for split in ('train', 'val'))
                if os.path.isdir(path))
