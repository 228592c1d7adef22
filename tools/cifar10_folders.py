"""What trainings on CIFAR-10 share: their folder, the photos in it and their server, and how a training ended."""
import logging
import os
import re
import tempfile
from typing import IO, ContextManager, Dict, List, Tuple

from runtime.errors import InputError
from runtime.locks import InUse, take_lock
from tools.commands import data_server

log = logging.getLogger(__name__)

NOTE = 'made-of.txt'  # in the folder of links
SHAPE = ['--image-size', '32']
BATCH = 128


def served(photos: str, out: str) -> ContextManager[str]:
    """Serve the photos to trainings by a data server, which writes to out/server.log: with its endpoint."""
    flags = ['--batch', str(BATCH), '--workers', '1', '--min-crop-area', '0.5'] + SHAPE
    return data_server(photos, flags, os.path.join(out, 'server.log'), out)


def work_in(data: str, out: str, val_images: int, program: str) -> Tuple[str, str, IO]:
    """Return the folder that a program works in, the folder of links in it, and its lock, a file to be kept open.

    Raises InputError as `lock` and `link_photos` do, and where one folder is no name or lies in the other.
    """
    if not data or not out:
        raise InputError('%s is empty' % ('DATA' if not data else '--out'))
    data, out = os.path.realpath(data), os.path.realpath(out)
    if (data + os.sep).startswith(out + os.sep):
        raise InputError('DATA must not lie in the folder --out: give another one')
    locked = lock(out, program)
    return out, link_photos(data, out, val_images), locked


def photos_by_class(folder: str) -> Dict[str, List[str]]:
    """List the photos of a folder with a folder for each class: {class: paths}, both sorted.

    Raises InputError where a folder cannot be read.
    """
    try:
        classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith('.'))
        return {name: sorted(os.path.join(folder, name, f) for f in os.listdir(os.path.join(folder, name))
                             if not f.startswith('.')) for name in classes}
    except OSError as e:
        raise InputError('cannot read %s, which should have a folder for each class: %s' % (folder, e.strerror))


def link_photos(data: str, out: str, val_images: int) -> str:
    """Make the folder out/photos of links, and return it: all training photos of `data`, and `val_images` others.

    Each class has as many validation photos. A folder that is there already is used where it is of the same photos.
    Raises InputError where it is of others, where `data` has too few, and where nothing can be written.
    """
    train, val = [photos_by_class(os.path.join(data, split)) for split in ('train', 'val')]
    if not train or set(train) != set(val):
        raise InputError('%s must have the same classes, one or more, in train/ and val/' % data)
    each = val_images // len(val)
    if val_images < 1 or val_images % len(val):
        raise InputError('--val-images must be a multiple of %d, the number of classes' % len(val))
    for split, least, classes in (('train', 1, train), ('val', each, val)):
        for name, paths in classes.items():
            if len(paths) < least:
                raise InputError('%s has %d photos, %d are needed (--val-images)' % (
                    os.path.join(data, split, name), len(paths), least))
    photos, made_of = os.path.join(out, 'photos'), 'DATA %s --val-images %d' % (data, val_images)
    if os.path.lexists(photos):
        try:
            with open(os.path.join(photos, NOTE)) as f:
                found = f.read().strip()
        except OSError:
            raise InputError('%s is not of this program\'s making: give another --out' % photos)
        if found != made_of:
            raise InputError('%s is of %s: give another --out' % (photos, found))
        return photos
    try:
        part = tempfile.mkdtemp(prefix='.photos-', dir=out)
        os.symlink(os.path.join(data, 'train'), os.path.join(part, 'train'))
        for name, paths in val.items():
            os.makedirs(os.path.join(part, 'val', name))
            for path in paths[:each]:
                os.symlink(path, os.path.join(part, 'val', name, os.path.basename(path)))
        with open(os.path.join(part, NOTE), 'w') as f:
            f.write(made_of + '\n')
        os.chmod(part, 0o755)
        os.rename(part, photos)
    except OSError as e:
        raise InputError('cannot write to %s: %s' % (out, e.strerror))
    return photos


def lock(out: str, program: str) -> IO:
    """Make the folder, and keep others of these programs out of it while the returned file stays open.

    program: its name, for those. Raises InputError where another one is at work in it, or it cannot be made.
    """
    try:
        os.makedirs(out, exist_ok=True)
        file = open(os.path.join(out, '.lock'), 'a+')
        try:
            unlocked = take_lock(file.fileno())
        except InUse:
            file.seek(0)
            raise InputError('another %s is at work in %s: wait for it, or give another --out' % (
                file.read().strip() or 'program', out))
        file.truncate(0)
        file.write(program + '\n')
        file.flush()
    except OSError as e:
        raise InputError('cannot write to %s: %s' % (out, e.strerror))
    if unlocked:
        log.warning('the file system of %s has no locks (%s): see to it that no other program works there meanwhile',
                    out, unlocked)
    return file


def finished_checkpoint(log_directory: str, max_epoch: int) -> str:
    """Return the last checkpoint of a training. Raises InputError where it was stopped before its end."""
    from training.log_directory import newest_complete  # with TensorFlow: wrong flags are told without
    from training.records import evaluated_epochs
    epochs = max(evaluated_epochs(log_directory), default=0)
    if epochs < max_epoch:
        raise InputError('the training was stopped after %d of %d epochs: give the same command again, and it goes on'
                         % (epochs, max_epoch))
    checkpoint = newest_complete(log_directory)
    if checkpoint is None:
        raise InputError('there is no complete checkpoint in %s' % log_directory)
    return checkpoint


def divergence(log: str) -> str:
    """Return what a training, whose output is in a file, said last where its loss or weights left all bounds, else an
    empty text."""
    if not os.path.exists(log):
        return ''
    with open(log, errors='replace') as f:
        errors = re.findall(r'^main\.py: (?:error|failed): (?:rank \d+ on \S+: )?(.*)', f.read(), re.MULTILINE)
    return errors[-1] if errors and re.match(r'the (loss is|weights are not finite)', errors[-1]) else ''
