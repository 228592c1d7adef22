"""Where a job writes: never over what it reads, nor over what somebody made."""
import argparse
import os
import re
from typing import Iterable, List, Optional, Sequence, Tuple

from checkpoint import OF_PYTORCH, checkpoint_files
from evaluation.plan import LIKELIEST, RANDOM
from runtime.errors import InputError
from third_party.folders import IMAGE_ENDINGS

# Of images, checkpoints and programs: no file of results is called so
OTHERS = re.compile(r'.*(%s|\.index|\.meta|\.data-\d{5}-of-\d{5})$' % '|'.join(
    map(re.escape, (*IMAGE_ENDINGS, *OF_PYTORCH, '.npz', '.ckpt', '.onnx', '.py', '.so'))), re.IGNORECASE)


Named = Tuple[str, str]  # a path, after what it is called in messages


def check_apart(outputs: Iterable[Named], read: Iterable[Named], folders: Sequence[Named] = ()) -> None:
    """Raise InputError where a job would write over what it reads, among the images of folders, over another kind of
    file that is there, or twice to the same one."""
    taken = {os.path.realpath(path): name for name, path in read}
    for name, path in outputs:
        path = os.path.realpath(path)
        if path in taken:
            raise InputError('%s and %s are the same file: give each another name' % (name, taken[path]))
        for of, folder in folders:
            if path.startswith(os.path.realpath(folder) + os.sep):
                raise InputError('%s lies among the images of %s: give another place' % (name, of))
        if OTHERS.match(path) and os.path.exists(path):
            raise InputError('%s would replace %s, which is no file of results by its name: give another name, or '
                             'remove it' % (name, path))
        taken[path] = name


def check_outputs(options: argparse.Namespace) -> None:
    """Check where main.py, or a tool with some of its flags, would write. Raises InputError as check_apart does."""
    given = {flag: value for flag, value in vars(options).items() if value}

    def flag(name: str) -> str:
        return '--' + name.replace('_', '-')
    outputs = [(flag(name), given[name]) for name in ('results', 'per_image', 'journal') if name in given]
    if 'save_adversarial' in given:
        outputs.append((flag('save_adversarial'), os.path.join(given['save_adversarial'], 'manifest.csv')))
    if 'eval_directory' in given:
        outputs.append((flag('prediction_file'), given['prediction_file']))
    read = [(flag(name), given[name]) for name in ('load', 'classes', 'labels', 'subset', 'targets')
            if given.get(name, RANDOM) not in (RANDOM, LIKELIEST)]
    read += files_of_checkpoint(flag('load'), given.get('load'))
    folders = []
    if 'data' in given:
        read += [('one of --data', os.path.join(given['data'], name)) for name in ('synsets.txt', 'val.txt',
                                                                                   'train.txt')]
        folders = [('--data', os.path.join(given['data'], split)) for split in ('train', 'val')]
    check_apart(outputs, read, folders)


def files_of_checkpoint(name: str, path: Optional[str]) -> List[Named]:
    """List the files of a checkpoint, where one is given, for check_apart."""
    return [(name, file) for file in checkpoint_files(path)] if path else []
