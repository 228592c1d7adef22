"""Log directories of trainings, and what a training goes on from: a complete checkpoint and its place in the schedule.

TensorFlow's saver renames a checkpoint's files when they are written, the index last; where that was interrupted, or
a disk was full, there is no index or it does not fit the data. So a checkpoint counts when it is read whole.

TensorFlow and tensorpack are loaded by what needs them: a directory that can't be used is told at once.
"""
import argparse
import glob
import io
import logging
import os
import re
import shutil
import socket
import time
from typing import Any, List, NamedTuple, Optional

import numpy as np

from checkpoint import DENOISING
from evaluation.outcomes import Strength
from nets import network_of
from runtime.errors import InputError
from runtime.files import check_folder
from runtime.locks import InUse, is_locked, take_lock
from training.methods import method_of

log = logging.getLogger(__name__)

LOCK = '.lock'  # a file of every log directory

# Saved in every checkpoint beside the weights: they turn its count of steps into epochs
STEPS_PER_EPOCH, OFFSET, TOTAL_BATCH = ['training/' + n for n in ('steps_per_epoch', 'step_offset', 'total_batch')]
ATTACK = 'training/attack'  # and, with the guard of overfitting.py, which attack was trained with
OWN_OF_A_TRAINING = (STEPS_PER_EPOCH, OFFSET, TOTAL_BATCH, DENOISING, ATTACK)  # not taken over from a checkpoint


class Start(NamedTuple):
    """Where a training begins. `global_step` counts all steps that were made; the schedule's, under this number of
    ranks, are `offset` less. An epoch's steps are counted from 0."""
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
    """Return where a training goes on from a checkpoint: at the same fraction of the epoch, where an epoch has another
    number of steps now."""
    from runtime.compat import tf
    reader = tf.train.load_checkpoint(checkpoint)

    def read(name: str, default: int) -> int:
        return int(reader.get_tensor(name)) if reader.has_tensor(name) else default

    global_step = read('global_step', 0)
    former = read(STEPS_PER_EPOCH, steps_per_epoch)
    schedule_step = (global_step - read(OFFSET, 0)) * steps_per_epoch // former
    return Start(steps_per_epoch, global_step, global_step - schedule_step, checkpoint, read(TOTAL_BATCH, 0) or None)


def step_of(checkpoint: str) -> int:
    """Return the number in a checkpoint's name."""
    return int(re.findall(r'model-(\d+)', os.path.basename(checkpoint))[0])


def saved_checkpoints(directory: str) -> List[str]:
    """List the prefixes of all checkpoints that have an index, the newest first."""
    found = [path[:-len('.index')] for path in glob.glob(os.path.join(glob.escape(directory), 'model-*.index'))
             if re.match(r'model-\d+\.index$', os.path.basename(path))]
    return sorted(found, key=step_of, reverse=True)


def damage(checkpoint: str) -> Optional[str]:
    """Say what is wrong with a checkpoint's files, reading all of it against its checksums; None when it is good."""
    from runtime.compat import tf
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        for name in reader.get_variable_to_shape_map():
            value = reader.get_tensor(name)
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                return '%s is not finite' % name
        return None if reader.has_tensor('global_step') else 'it has no global_step'
    except Exception as e:  # a damaged file can end in many: all that happens here is reading it
        return str(e).split('\n')[0][:200]


def warn(said: str) -> None:
    """Say it on stderr, as all warnings, and in the training's log file."""
    import runtime.compat  # noqa: F401  before tensorpack

    from tensorpack import logger
    log.warning('%s', said)
    logger.warning(said)


def newest_complete(directory: str) -> Optional[str]:
    """Return the prefix of the newest checkpoint that is complete; those that are not are warned of."""
    for checkpoint in saved_checkpoints(directory):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        warn('%s is incomplete or damaged (%s): going back to the one before' % (checkpoint, problem))
    return None


class LogName(NamedTuple):
    """What the name of a training's log directory says."""
    arch: str
    depth: Optional[int]
    batch: Any  # per rank
    ranks: Any
    attack: Strength
    suffix: Optional[str] = None  # --logdir
    variant: str = ''  # of the network, as nets.Network has it
    method: str = 'PGD'  # as Method.name has it

    def path(self) -> str:
        """Return the directory, below train_log/."""
        name = '%s-%s%s%s' % (self.method, self.arch.replace(':', '.'), self.depth or '', self.variant)
        name += '-Batch{0.batch}-{0.ranks}GPUs'.format(self)
        name += '-iter{0.num_iter}-epsilon{0.epsilon}-step{0.step_size}'.format(self.attack)
        return os.path.join('train_log', name + ('-' + self.suffix if self.suffix else ''))

    def fits(self, path: str) -> bool:
        """Tell whether a directory's name is this one, but for batch and ranks."""
        # nothing in a name is a NUL; it is compared as a whole: a --logdir may begin as another one does
        parts = os.path.basename(self._replace(batch='\0', ranks='\0').path()).split('\0')
        return re.match(r'\d+'.join(map(re.escape, parts)) + '$', os.path.basename(os.path.normpath(path))) is not None


def directory_to_resume(name: LogName, given: str) -> Optional[str]:
    """Find the log directory that --resume means: the one it names; else the one of these flags; else the only one that
    differs in ranks and batch alone. None when there is none yet. Raises InputError where that isn't clear."""
    if given:
        if not saved_checkpoints(given):
            raise InputError('--resume: there is no checkpoint in %s' % given)
        return given
    if saved_checkpoints(name.path()):
        return name.path()
    others = [path for path in sorted(glob.glob(os.path.join('train_log', '*')))
              if name.fits(path) and saved_checkpoints(path)]
    if len(others) > 1:
        raise InputError('--resume could mean %s: name one of them with --resume DIR' % ' or '.join(others))
    return others[0] if others else None


def log_name_of(options: argparse.Namespace, ranks: int) -> LogName:
    """Return what the flags of a training under so many ranks make its log directory's name of."""
    method = method_of(options)
    more = [] if options.schedule == 'steps' else [options.schedule]
    more += [] if options.ema is None else ['ema%s' % options.ema]
    return LogName(options.arch, options.depth, options.batch, ranks, method.strength, options.logdir,
                   network_of(options).variant, '-'.join([method.name()] + more))


def log_directory_of(options: argparse.Namespace, ranks: int) -> str:
    """Return the log directory that the flags of a training under so many ranks mean. Raises InputError as
    `directory_to_resume` does."""
    name = log_name_of(options, ranks)
    return (directory_to_resume(name, options.resume) if options.resume is not None else None) or name.path()


def holds_training(path: str) -> bool:
    """Tell whether anything was learnt there; a training that ended before its first epoch did leaves only a log."""
    names = os.listdir(path) if os.path.isdir(path) else []
    return any(name == 'stats.json' or name == 'checkpoint' or name.startswith('model-') for name in names)


def prepare_log_directory(path: str, *, resume: bool, overwrite: bool, keep: Optional[str]) -> None:
    """Create the directory, or with `resume` go on in it; until this process ends it is this training's alone.

    Raises InputError rather than mixing two trainings or deleting one, or the checkpoint `keep`.
    """
    import runtime.compat  # noqa: F401  before tensorpack

    from tensorpack import logger
    try:
        os.makedirs(path, exist_ok=True)
        lock(path)
        if holds_training(path) and not resume:
            check_deletable(path, overwrite=overwrite, keep=keep)
            delete_training(path)
        logger.set_logger_dir(path, action='k')
        for handler in logging.getLogger('tensorpack').handlers:  # paths in its log file are bytes, too
            if isinstance(handler, logging.FileHandler) and isinstance(handler.stream, io.TextIOWrapper):
                handler.stream.reconfigure(errors='surrogateescape')
    except OSError as e:
        raise InputError('cannot write the log directory %s: %s' % (path, e.strerror))


def check_log_directory(path: str, *, resume: bool, overwrite: bool, keep: Optional[str]) -> None:
    """Raise InputError where `prepare_log_directory` would, as far as that is known now; nothing is changed."""
    check_folder(path, 'cannot write the log directory %s: %s')
    if is_locked(os.path.join(path, LOCK)):
        with open(os.path.join(path, LOCK), 'rb') as f:
            raise in_use(path, owner_of(f.fileno()))
    if holds_training(path) and not resume:
        check_deletable(path, overwrite=overwrite, keep=keep)


def check_deletable(path: str, *, overwrite: bool, keep: Optional[str]) -> None:
    """Raise InputError where the training in a log directory may not be deleted."""
    if not overwrite:
        raise InputError('%s holds an earlier training: continue it with --resume, choose another name with '
                         '--logdir, or delete it with --overwrite' % path)
    if keep and os.path.realpath(keep).startswith(os.path.realpath(path) + os.sep):
        raise InputError('--overwrite would delete %s, which holds the checkpoint of --load: choose another '
                         'name with --logdir' % path)


def delete_training(path: str) -> None:
    """Delete all that the directory holds but its lock: in a new file another process could take a second one."""
    with os.scandir(path) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != LOCK:
                os.unlink(entry.path)


def lock(directory: str) -> None:
    """Keep other trainings out of a log directory until this process ends, however it ends.

    The system's lock goes with the process, so the file that stays behind is no obstacle; it says who has it. Raises
    InputError, naming that process, where another training has the lock.
    """
    # The descriptor stays open on purpose. No program that this one starts inherits it: it could outlive the training.
    descriptor = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        unlocked = take_lock(descriptor)
    except InUse:
        owner = owner_of(descriptor)
        os.close(descriptor)
        raise in_use(directory, owner)
    except OSError:
        os.close(descriptor)
        raise
    if unlocked:
        os.close(descriptor)
        log.warning('the file system of %s has no locks (%s): see to it that no other training uses it meanwhile',
                    directory, unlocked)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, ('process %d on %s\n' % (os.getpid(), socket.gethostname())).encode(), 0)


def in_use(directory: str, owner: str) -> InputError:
    return InputError('the log directory %s is in use by another training, %s: wait for its end, or choose another '
                      'name with --logdir' % (directory, owner))


def owner_of(descriptor: int) -> str:
    """Read who has a lock; it writes that when it has the lock, which may be a moment ago."""
    for _ in range(20):
        text = os.pread(descriptor, 1000, 0).decode('utf-8', 'replace')
        if text.endswith('\n'):
            return text.strip()
        time.sleep(0.05)
    return 'an unknown process'
