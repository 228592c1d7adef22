"""Checkpoints: their files, the variables that these hold, and what training writes down beside them.

TensorFlow is loaded by what needs it: a wrong name is told at once.
"""
import contextlib
import glob
import logging
import os
import re
import tempfile
import zipfile
from typing import TYPE_CHECKING, Dict, Iterable, Iterator, List, Optional

import numpy as np

from nets import LAST_LAYER, Denoising, Network, is_own
from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime.compat import tf

log = logging.getLogger(__name__)

# Variables that training keeps beside the network's: the optimizer's, the schedule's, the smoothed summaries
TRAINING_ONLY = re.compile(r'^(global_step|learning_rate|training/.*|EMA/.*|.*/Momentum|.*/EMA/(biased|local_step))$')
DENOISING = 'training/denoise'  # among them: what the denoising blocks are, as characters' numbers
AVERAGES = 'training/ema/'  # and the name of a variable: its moving average, of a training with --ema
WEIGHTS = ('raw', 'ema')  # of a checkpoint: the variables as they are, or their averages
MAX_NAMED = 4
OF_PYTORCH = ('.pth', '.pt', '.safetensors', '.pth.tar')

Weights = Dict[str, np.ndarray]


def tf_prefix(path: str) -> str:
    """Return the prefix of a TF checkpoint that is named by one of its files, or by the prefix itself."""
    return re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)


def checkpoint_files(path: str) -> List[str]:
    """List the files that hold a checkpoint's weights, sorted."""
    if path.endswith('.npz'):
        return [path]
    prefix = tf_prefix(path)
    return sorted(glob.glob(glob.escape(prefix) + '.index') + glob.glob(glob.escape(prefix) + '.data-*'))


def check_files(path: str) -> None:
    """Raise InputError where there is no checkpoint at `path`, or an .npz file that is cut off or no archive."""
    if path.endswith('.npz'):
        if not os.path.isfile(path):
            raise InputError('no checkpoint %s' % path)
        try:
            zipfile.ZipFile(path).close()  # reads where its members are, which stands at its end
        except Exception as e:  # a damaged file can end in many: all that happens here is reading it
            raise damaged_npz(path, e)
    elif path.endswith(OF_PYTORCH) and os.path.isfile(path):
        raise InputError('%s is a file of PyTorch: python -m tools.from_pytorch makes an .npz file of it' % path)
    elif not os.path.isfile(tf_prefix(path) + '.index'):
        raise InputError('no checkpoint %s: give an .npz file, or model-<step> as training writes it, '
                         'which has a %s.index' % (path, os.path.basename(tf_prefix(path))))


def damaged_npz(path: str, error: Exception) -> InputError:
    return InputError('checkpoint %s can\'t be read, it is damaged or not an .npz of plain arrays (%s); '
                      'get it again' % (path, error))


def read_checkpoint(path: str, which: str = 'raw') -> Weights:
    """Read an .npz file or a TF checkpoint (its prefix, or one of its files): {variable name: array}.

    A `:0` after a name is dropped. Variables of training alone are left out. Nothing is ever unpickled.
    which: 'ema' reads the averages of the variables in their place, which a training with --ema keeps.
    Raises InputError where there is no checkpoint, one that can't be read, one that has a variable twice, or that has
    no averages.
    """
    averaged = which == 'ema'
    weights = read_npz(path) if path.endswith('.npz') else read_tf_checkpoint(path, averaged=averaged)
    check_names(weights, path)
    if not averaged:
        return {variable(name): value for name, value in weights.items() if not TRAINING_ONLY.match(variable(name))}
    averages = {variable(name)[len(AVERAGES):]: value for name, value in weights.items() if name.startswith(AVERAGES)}
    if not averages:
        raise InputError('checkpoint %s has no averaged weights, which a training keeps with --ema: leave out '
                         '--weights ema' % path)
    return averages


def variable(name: str) -> str:
    """Return the variable that a name of a checkpoint means."""
    return name[:-2] if name.endswith(':0') else name


def check_names(names: Iterable[str], path: str) -> None:
    """Raise InputError where two names, or one that stands there twice, mean the same variable: which one counts?"""
    named: Dict[str, List[str]] = {}
    for name in names:
        if not TRAINING_ONLY.match(variable(name)):
            named.setdefault(variable(name), []).append(name)
    twice = [' and '.join(sorted(same)) for same in named.values() if len(same) > 1]
    if twice:
        raise InputError('checkpoint %s has the same variable twice: %s. Save it again with the right ones alone'
                         % (path, listed(twice)))


def read_npz(path: str) -> Weights:
    check_files(path)
    try:
        # not np.load: for a damaged archive NumPy 1.18 also prints a traceback
        with zipfile.ZipFile(path) as archive:
            check_names([re.sub(r'\.npy$', '', name) for name in archive.namelist()], path)
            return {re.sub(r'\.npy$', '', name): read_array(archive, name) for name in archive.namelist()}
    except InputError:
        raise
    except Exception as e:  # a damaged file can end in many: all that happens here is reading it
        raise damaged_npz(path, e)


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


@contextlib.contextmanager
def in_utf8(prefix: str) -> Iterator[str]:
    """Give a checkpoint's prefix as TensorFlow can read it, whose paths are UTF-8: itself, or that of links to it."""
    if prefix.encode('utf-8', 'replace').decode() == prefix:
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in checkpoint_files(prefix):
            os.symlink(os.path.abspath(path), os.path.join(folder, 'model' + path[len(prefix):]))
        yield os.path.join(folder, 'model')


def read_tf_checkpoint(path: str, *, averaged: bool = False) -> Weights:
    check_files(path)
    from runtime.compat import tf
    prefix = tf_prefix(path)
    try:
        with in_utf8(prefix) as readable:
            reader = tf.train.load_checkpoint(readable)
            return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
                    if (name.startswith(AVERAGES) if averaged else not TRAINING_ONLY.match(name))}
    except Exception as e:  # as above
        raise InputError('checkpoint %s can\'t be read (%s)' % (prefix, str(e).split('\n')[0]))


def classes_in(path: str, arch: str) -> Optional[int]:
    """Return the number of classes of an .npz file of a network of the zoo; None where that can't be told without
    reading all of a checkpoint."""
    if is_own(arch) or not path.endswith('.npz'):
        return None
    with contextlib.suppress(Exception):  # it is said what is wrong with it when all of it is read
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if variable(name[:-len('.npy')]) == LAST_LAYER[1]:
                    return read_array(archive, name).shape[0]
    return None


def listed(names: List[str]) -> str:
    """Name the first few."""
    return ', '.join(names[:MAX_NAMED]) + (', ...' if len(names) > MAX_NAMED else '')


def assign_weights(session: 'tf.Session', weights: Weights) -> None:
    """Give every variable of the session's graph its value in `weights`."""
    from runtime.compat import tf
    with session.graph.as_default():
        variables = tf.global_variables()
        values = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in variables]
        assign = tf.group(*[v.assign(value) for v, value in zip(variables, values)])
    session.run(assign, {value: weights[v.op.name] for v, value in zip(variables, values)})


# --- denoising blocks ------------------------------------------------------------------------------------------------

def denoising_record(network: Network) -> Optional[np.ndarray]:
    """Return what training adds to its checkpoints, under DENOISING: (characters,) int64; None without such blocks."""
    return as_numbers(' '.join(network.denoising)) if network.denoising else None


def as_numbers(text: str) -> np.ndarray:
    """Return what a checkpoint can hold of a text, its characters' numbers: (characters,) int64."""
    return np.array([ord(c) for c in text], np.int64)


def recorded_denoising(path: str) -> Optional[Denoising]:
    """Read what the denoising blocks of a checkpoint are; None where it doesn't say so, as the published ones."""
    try:
        if path.endswith('.npz'):
            with zipfile.ZipFile(path) as archive:
                numbers = read_array(archive, DENOISING + '.npy')
        else:
            from runtime.compat import tf
            with in_utf8(tf_prefix(path)) as readable:
                numbers = tf.train.load_checkpoint(readable).get_tensor(DENOISING)
        return Denoising(*''.join(map(chr, numbers)).split(' '))
    except Exception:  # there is none, or a later version's; whether the rest can be read is told elsewhere
        return None
