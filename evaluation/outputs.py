"""Where a job writes: never over what it reads, nor over what somebody made."""
import argparse
import os
import re
from typing import List, Tuple

from checkpoint import OF_PYTORCH, checkpoint_files
from evaluation.plan import LIKELIEST, RANDOM
from runtime.errors import InputError
from third_party.folders import IMAGE_ENDINGS

# Of images, checkpoints and programs: no file of results is called so
OTHERS = re.compile(r'.*(%s|\.index|\.meta|\.data-\d{5}-of-\d{5})$' % '|'.join(
    map(re.escape, (*IMAGE_ENDINGS, *OF_PYTORCH, '.npz', '.ckpt', '.onnx', '.py', '.so'))), re.IGNORECASE)


def check_outputs(options: argparse.Namespace) -> None:
    """Check where main.py, or a tool that has some of its flags, would write.

    Raises InputError where that is what it reads, another kind of file that is there, or twice the same one.
    """
    given = {flag: value for flag, value in vars(options).items() if value}
    outputs: List[Tuple[str, str]] = [
        (flag, given[flag]) for flag in ('results', 'per_image', 'journal') if flag in given]
    if 'save_adversarial' in given:
        outputs.append(('save_adversarial', os.path.join(given['save_adversarial'], 'manifest.csv')))
    if 'eval_directory' in given:
        outputs.append(('prediction_file', given['prediction_file']))
    read = [(flag, given[flag]) for flag in ('load', 'classes', 'labels', 'subset', 'targets')
            if given.get(flag, RANDOM) not in (RANDOM, LIKELIEST)]
    read += [('load', path) for path in (checkpoint_files(given['load']) if 'load' in given else [])]
    if 'data' in given:
        read += [('data', os.path.join(given['data'], name)) for name in ('synsets.txt', 'val.txt', 'train.txt')]
    taken = {os.path.realpath(path): flag for flag, path in read}
    data = os.path.realpath(given['data']) + os.sep if 'data' in given else None
    for flag, path in outputs:
        path, named = os.path.realpath(path), '--' + flag.replace('_', '-')
        if path in taken:
            raise InputError('%s and %s--%s are the same file: give each another name'
                             % (named, 'one of ' * (taken[path] == 'data'), taken[path].replace('_', '-')))
        if data and any(path.startswith(os.path.join(data, split) + os.sep) for split in ('train', 'val')):
            raise InputError('%s lies among the images of --data: give another place' % named)
        if OTHERS.match(path) and os.path.exists(path):
            raise InputError('%s would replace %s, which is no file of results by its name: give another name, or '
                             'remove it' % (named, path))
        taken[path] = flag
