"""The best checkpoint of a training, which need not be the last: a robust network begins to overfit long before."""
import glob
import os
import re
import shutil
from typing import Dict, List, Optional, Tuple

from checkpoint import checkpoint_files
from training.records import read_statistics

STEP, ERROR = 'best-step', 'best-error'  # in stats.json


def results_of(directory: str, metric: str) -> List[Tuple[float, int]]:
    """List the metric's values in stats.json, with the steps after which they were measured."""
    return [(r[metric], r['global_step']) for r in read_statistics(directory) if metric in r and 'global_step' in r]


def checkpoint_at(directory: str, kind: str, step: int) -> Optional[str]:
    """Return the prefix of the checkpoint of this kind, 'model' or 'best', after a step; None where it isn't there."""
    prefix = os.path.join(directory, '%s-%d' % (kind, step))
    return prefix if os.path.isfile(prefix + '.index') else None


def kept_files(directory: str) -> Dict[int, List[str]]:
    """List the files of the checkpoints that are kept as the best, by their steps."""
    found: Dict[int, List[str]] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), 'best-*.*'))):
        match = re.match(r'best-(0|[1-9]\d*)\.(index|data-\d{5}-of-\d{5})(\.part)?$', os.path.basename(path))
        if match:
            found.setdefault(int(match.group(1)), []).append(path)
    return found


def best_checkpoint(directory: str) -> Optional[str]:
    """Return the prefix of the best checkpoint that is kept; None where there is none."""
    steps = [step for step in kept_files(directory) if checkpoint_at(directory, 'best', step)]
    return checkpoint_at(directory, 'best', max(steps)) if steps else None


def keep(directory: str, step: int) -> bool:
    """Keep the checkpoint after a step as the best, in place of another one; tell whether it is there.

    It is the same file by another name, where the file system has such. The index, which makes a checkpoint of the
    files, comes last and goes first.
    """
    prefix = os.path.join(directory, 'best-%d' % step)
    model = checkpoint_at(directory, 'model', step)
    if model is not None:
        # one of that name may be from before the training went back, and came here again
        if os.path.isfile(prefix + '.index') and not os.path.samefile(prefix + '.index', model + '.index'):
            os.unlink(prefix + '.index')
        for path in checkpoint_files(model):  # sorted, so the index is the last
            link_or_copy(path, prefix + path[len(model):])
    elif checkpoint_at(directory, 'best', step) is None:
        return False
    for other, paths in kept_files(directory).items():
        if other != step:
            for path in sorted(paths, key=lambda path: not path.endswith('.index')):
                os.unlink(path)
    return True


def link_or_copy(path: str, to: str) -> None:
    if os.path.exists(to) and os.path.samefile(path, to):
        return
    part = to + '.part'
    if os.path.lexists(part):
        os.unlink(part)
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)
    os.replace(part, to)


def find_best(directory: str, metric: str) -> Optional[Tuple[float, int]]:
    """Return the lowest value of stats.json whose checkpoint is there, and its step, and keep that checkpoint.

    Of equal ones it is the first. So it is found again by a training that goes on, also where that goes back.
    """
    for value, step in sorted(results_of(directory, metric)):
        if keep(directory, step):
            return value, step
    return None
