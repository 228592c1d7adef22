"""Log directories of trainings, and what a training goes on from: a complete checkpoint and its place in the schedule.

TensorFlow's saver renames a checkpoint's files when they are written, the index last; where that was interrupted, or
a disk was full, there is no index or it does not fit the data. So a checkpoint counts when it is read whole.
"""
import argparse
import glob
import json
import os
import re
import shutil
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from runtime.compat import tf  # before tensorpack
from tensorpack import logger

from runtime.errors import InputError
from runtime.files import WholeFile

# Saved in every checkpoint beside the weights: they turn its count of steps into epochs
STEPS_PER_EPOCH, OFFSET, TOTAL_BATCH = ['training/' + n for n in ('steps_per_epoch', 'step_offset', 'total_batch')]


class Start(NamedTuple):
    """Where a training begins. `global_step` counts all steps that were made; the schedule's, under this number of ranks,
    are `offset` less. An epoch's steps are counted from 0."""
    steps_per_epoch: int
    global_step: int = 0
    offset: int = 0
    checkpoint: Optional[str] = None  # everything is restored from it; None: begins anew, or with other weights
    former_batch: Optional[int] = None

    @property
    def epoch(self) -> int:
        return (self.global_step - self.offset) // self.steps_per_epoch + 1

    @property
    def step_of_epoch(self) -> int:
        return (self.global_step - self.offset) % self.steps_per_epoch


def start_after(checkpoint: str, steps_per_epoch: int) -> Start:
    """Go on from a checkpoint, under perhaps another number of steps an epoch: at the same fraction of the epoch."""
    reader = tf.train.load_checkpoint(checkpoint)

    def read(name: str, default: int) -> int:
        return int(reader.get_tensor(name)) if reader.has_tensor(name) else default

    global_step = read('global_step', 0)
    former = read(STEPS_PER_EPOCH, steps_per_epoch)
    schedule_step = (global_step - read(OFFSET, 0)) * steps_per_epoch // former
    return Start(steps_per_epoch, global_step, global_step - schedule_step, checkpoint, read(TOTAL_BATCH, 0) or None)


def step_of(checkpoint: str) -> int:
    """The number in its name."""
    return int(re.search(r'model-(\d+)', os.path.basename(checkpoint)).group(1))


def saved_checkpoints(directory: str) -> List[str]:
    """The prefixes of all checkpoints that have an index, the newest first."""
    found = [path[:-len('.index')] for path in glob.glob(os.path.join(glob.escape(directory), 'model-*.index'))
             if re.match(r'model-\d+\.index$', os.path.basename(path))]
    return sorted(found, key=step_of, reverse=True)


def damage(checkpoint: str) -> Optional[str]:
    """What is wrong with a checkpoint's files, in words: reads all of it, against its checksums. None when it is good."""
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for name in reader.get_variable_to_shape_map():
            value = reader.get_tensor(name)
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                return '%s is not finite' % name
        return None if reader.has_tensor('global_step') else 'it has no global_step'
    except Exception as e:  # a damaged file can end in many: all that happens here is reading it
        return str(e).split('\n')[0][:200]


def newest_complete(directory: str) -> Optional[str]:
    """The prefix of the newest checkpoint that is complete; those that are not are named in the log."""
    for checkpoint in saved_checkpoints(directory):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning('%s is incomplete or damaged (%s): going back to the one before' % (checkpoint, problem))
    return None


def log_directory(options: argparse.Namespace, ranks: Any, batch: Any = None) -> str:
    name = 'PGD-{o.arch}{o.depth}-Batch{batch}-{ranks}GPUs-iter{o.attack_iter}-epsilon{o.attack_epsilon}' \
           '-step{o.attack_step_size}'.format(o=options, ranks=ranks, batch=batch or options.batch)
    return os.path.join('train_log', name + ('-' + options.logdir if options.logdir else ''))


def directory_to_resume(options: argparse.Namespace, ranks: int) -> Optional[str]:
    """The log directory that --resume means: the one it names; else the one of these flags; else the only one that
    differs in ranks and batch alone. None when there is none yet. Raises InputError where that isn't clear."""
    if options.resume:
        if not saved_checkpoints(options.resume):
            raise InputError('--resume: there is no checkpoint in %s' % options.resume)
        return options.resume
    own = log_directory(options, ranks)
    if saved_checkpoints(own):
        return own
    # the name is matched as a whole: * would also take a --logdir that begins alike
    pattern = re.escape(os.path.basename(log_directory(options, 'RANKS', 'BATCH')))
    pattern = re.compile(pattern.replace('RANKS', r'\d+').replace('BATCH', r'\d+') + '$')
    others = [path for path in sorted(glob.glob(os.path.join('train_log', '*')))
              if pattern.match(os.path.basename(path)) and saved_checkpoints(path)]
    if len(others) > 1:
        raise InputError('--resume could mean %s: name one of them with --resume DIR' % ' or '.join(others))
    return others[0] if others else None


def holds_training(path: str) -> bool:
    """Whether anything was learnt there; one that ended before its first epoch did leaves a log alone."""
    names = os.listdir(path) if os.path.isdir(path) else []
    return any(name == 'stats.json' or name == 'checkpoint' or name.startswith('model-') for name in names)


def prepare_log_directory(path: str, *, resume: bool, overwrite: bool, keep: Optional[str]) -> None:
    """Create it, or with `resume` go on in it. Raises InputError rather than mixing two trainings or deleting one, or
    the checkpoint `keep`."""
    try:
        if holds_training(path) and not resume:
            if not overwrite:
                raise InputError('%s holds an earlier training: continue it with --resume, choose another name with '
                                 '--logdir, or delete it with --overwrite' % path)
            if keep and os.path.realpath(keep).startswith(os.path.realpath(path) + os.sep):
                raise InputError('--overwrite would delete %s, which holds the checkpoint of --load: choose another '
                                 'name with --logdir' % path)
            shutil.rmtree(path)
        logger.set_logger_dir(path, action='k')
    except OSError as e:
        raise InputError('cannot write the log directory %s: %s' % (path, e.strerror))


def read_statistics(directory: str) -> List[Dict[str, Any]]:
    """The records of stats.json; none where it is missing or was damaged."""
    try:
        with open(os.path.join(directory, 'stats.json')) as f:
            return json.load(f)
    except (OSError, ValueError):
        return []


def write_json(path: str, value: Any) -> None:
    """The file is there as a whole or not at all. Raises RunError on a full disk, else InputError."""
    with WholeFile(path) as f:
        json.dump(value, f)


def forget_after(directory: str, global_step: int) -> None:
    """Drop records of steps that are going to be made again."""
    records = read_statistics(directory)
    kept = [r for r in records if r.get('global_step', 0) <= global_step]
    if len(kept) < len(records):
        write_json(os.path.join(directory, 'stats.json'), kept)


def evaluated_epochs(directory: str) -> List[int]:
    """Those whose evaluation is in stats.json: a training may be stopped before it is there."""
    return [r['epoch_num'] for r in read_statistics(directory) if 'eval-clean/error-top1' in r and 'epoch_num' in r]
