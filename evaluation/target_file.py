"""The file of --targets: lines `path,target`, which say towards which class each image is attacked."""
import csv
from typing import Dict, List

from runtime.errors import InputError
from runtime.files import require_file
from third_party.imagenet import Dataset
from third_party.subset import Names


def read_targets(path: str, whole: Dataset, evaluated: Dataset, data_dir: str) -> Dict[int, int]:
    """Return {index of an image: its target label} of a file that has every evaluated image.

    Images are named as Names finds them, classes by their names or label numbers; a first line `path,target` is a
    heading. whole: the validation set, of which the file may have images that are not evaluated. Raises InputError,
    naming the line, for what is no image, no class, an image's own label or there twice.
    """
    names, labels = Names(whole, data_dir), {name: label for label, name in enumerate(whole.class_names)}
    targets: Dict[int, int] = {}
    for where, row in rows_of(path):
        position = names.position(','.join(row[:-1]), where)
        target = class_of(row[-1], labels, where)
        if position in targets:
            raise InputError('%s: %s has a target already' % (where, ','.join(row[:-1])))
        if target == whole.labels[position]:
            raise InputError('%s: %s has its label as its target' % (where, ','.join(row[:-1])))
        targets[position] = target
    by_index = {whole.index(position): target for position, target in targets.items()}
    missing = [evaluated.paths[i] for i in range(len(evaluated)) if evaluated.index(i) not in by_index]
    if missing:
        raise InputError('%s has no target for %d of the %d images, such as %s'
                         % (path, len(missing), len(evaluated), missing[0]))
    return by_index


def rows_of(path: str) -> List:
    """Return the lines of a CSV, each as what to call it in a message and its values, two or more. A path may have
    commas in it, with or without quotes."""
    require_file(path)
    rows = []
    try:
        with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as f:
            reader = csv.reader(f)
            for row in reader:
                where = '%s, line %d' % (path, reader.line_num)
                values = [value.strip() for value in row]
                if not values or reader.line_num == 1 and values == ['path', 'target']:
                    continue
                if len(values) < 2:
                    raise InputError('%s: expected a path and a target with a comma between them' % where)
                rows.append((where, values))
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    except csv.Error as e:
        raise InputError('%s: there is a line that no CSV has (%s)' % (path, e))
    return rows


def class_of(text: str, labels: Dict[str, int], where: str) -> int:
    """Return the label that a class's name or number means. labels: {name: label} of all classes. Raises InputError,
    which begins with `where`."""
    by_name = labels.get(text)
    by_number = int(text) if text.isdecimal() and int(text) < len(labels) else None
    if by_name is None and by_number is None:
        raise InputError('%s: the target %r is neither the name of one of the %d classes (%s, ...) nor a number from '
                         '0 to %d' % (where, text, len(labels), next(iter(labels)), len(labels) - 1))
    if by_name is not None and by_number is not None and by_name != by_number:
        raise InputError('%s: the target %s is the number of a class and the name of another one' % (where, text))
    return next(label for label in (by_name, by_number) if label is not None)
