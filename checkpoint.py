"""Checkpoints: the files, and whether they fit a network. Nothing half-loaded ever gets evaluated.

TensorFlow is loaded by what needs it: a wrong name is told at once.
"""
import contextlib
import glob
import logging
import os
import re
import tempfile
import zipfile
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Optional

import numpy as np

from nets import EMBEDDED, LAST_LAYER, OPERATIONS, TORCHVISION, Denoising, Network, all_networks, is_own
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


def num_classes(weights: Weights, path: str, network: Network) -> int:
    """Return the number of classes of the network whose weights these are, whatever `network` has."""
    sizes = sorted((weights[name].ndim, weights[name].shape[axis]) for name, axis in network.class_axes().items()
                   if name in weights and weights[name].ndim > axis)
    if sizes:
        return sizes[0][1]  # where they differ, as the bias has it
    check_prefix(weights, path)
    if is_own(network.arch):
        raise InputError('checkpoint %s: the variables of --arch %s that would tell the number of classes are missing '
                         'or differ' % (path, network.arch))
    raise InputError('checkpoint %s has no linear/b with one value a class: it is not of a network of the zoo' % path)


def check_prefix(weights: Weights, path: str) -> None:
    """Raise InputError where the variables of a network stand under a prefix, such as one of a tower."""
    known = ('linear/b', 'conv0/W')  # the two ends of every network
    prefixes = sorted({name[:-len(end)] for name in weights for end in known if name.endswith(end)})
    if prefixes and '' not in prefixes:
        raise InputError('checkpoint %s has its variables under %s, which is no part of their names: save it again '
                         'without that (and only one network), {name[%d:]: value} for each name that begins with %s'
                         % (path, listed(prefixes), len(prefixes[0]), prefixes[0]))


def without_head(weights: Weights, path: str, network: Network) -> Weights:
    """Return all weights but those of the last layer, which depends on the classes. Raises InputError, as below."""
    fit_checkpoint(weights, network._replace(num_classes=num_classes(weights, path, network)), path)
    last = network.class_axes()
    return {name: value for name, value in weights.items() if name not in last}


def fit_checkpoint(weights: Weights, network: Network, path: str) -> Weights:
    """Return the weights as float32, if they are exactly those of the network.

    Raises InputError that names the missing, extra and wrongly shaped variables and, where one of the zoo's networks
    would fit, its flags.
    """
    problems = misfits(weights, network)
    if not problems:
        refuse(weights, path, lambda name, value: value.dtype.kind == 'c',
               'complex numbers, of which a network would use the real part alone: save real ones')
        refuse(weights, path, lambda name, value: value.dtype.kind not in 'fiu', 'not numbers')
        halves = sorted({str(value.dtype) for value in weights.values()
                         if value.dtype.kind == 'f' and value.dtype.itemsize == 2})
        if halves:
            log.info('checkpoint %s has %s numbers: they are converted to float32', path, ' and '.join(halves))
        with np.errstate(over='ignore'):
            weights = {name: value.astype(np.float32) for name, value in weights.items()}
        refuse(weights, path, lambda name, value: not np.isfinite(value).all(),
               'infinite, not a number, or beyond float32')
        refuse(weights, path, lambda name, value: name.endswith('/variance/EMA') and bool((value < 0).any()),
               'variances below 0, which have no root: give a checkpoint that was not damaged or averaged wrongly')
        refuse(weights, path, lambda name, value: name == 'input/std' and bool((value <= 0).any()),
               'a standard deviation that is not above 0, by which images can\'t be divided')
        return weights
    check_prefix(weights, path)
    named = network.arch if network.depth is None else '%s with depth %d' % (network.arch, network.depth)
    raise InputError('checkpoint %s does not fit %s and %d classes: %s. %s' % (
        path, named, network.num_classes, '; '.join(problems), advice(weights, network, recorded_denoising(path))))


def refuse(weights: Weights, path: str, bad: Callable[[str, Any], bool], what: str) -> None:
    """Raise InputError that names the variables that are bad."""
    names = [name for name, value in weights.items() if bad(name, value)]
    if names:
        raise InputError('checkpoint %s: %s: %s' % (path, what, listed(names)))


def misfits(weights: Weights, network: Network) -> List[str]:
    """Say what doesn't fit, in words; nothing where all does."""
    expected = network.variable_shapes()
    missing = sorted(set(expected) - set(weights))
    extra = sorted(set(weights) - set(expected))
    shape = ['%s is %s, not %s' % (name, weights[name].shape, expected[name])
             for name in sorted(set(expected) & set(weights)) if weights[name].shape != expected[name]]
    return ['%d %s: %s' % (len(names), what, listed(names))
            for what, names in [('missing', missing), ('extra', extra), ('of another shape', shape)] if names]


def listed(names: List[str]) -> str:
    return ', '.join(names[:MAX_NAMED]) + (', ...' if len(names) > MAX_NAMED else '')


def advice(weights: Weights, network: Network, recorded: Optional[Denoising] = None) -> str:
    axes = dict(zip(LAST_LAYER, (1, 0)), **network.class_axes())
    classes = {weights[name].shape[axis] for name, axis in axes.items()
               if name in weights and weights[name].ndim > axis}
    if len(classes) != 1:
        return 'It fits no network of the zoo'
    num, blocks = classes.pop(), sum(name.endswith('/conv1/W') for name in weights)
    others = [candidate for candidate, count in all_networks(num)  # most networks need not be built to be told apart
              if count == blocks and (candidate.arch in TORCHVISION) == ('input/mean' in weights)]
    variants = [with_denoising(other, weights, recorded) for other in others]
    if recorded:  # blocks may have no variables, so that a network without them fits too
        variants.sort(key=lambda variant: variant.denoising != recorded)
    for other in dict.fromkeys([network._replace(num_classes=num)] + variants + others):
        candidate = network._replace(**other._asdict())  # by whatever `network` is built
        if misfits(weights, candidate):
            continue
        if candidate.name == network.name:
            return 'The checkpoint has %d classes, the data %d' % (num, network.num_classes) + (
                '; it seems to begin with a background class, which tools.from_pytorch --drop-background takes off'
                if num == network.num_classes + 1 else '')
        same = [name for name in OPERATIONS if candidate.denoising and name != candidate.denoising.operation and
                (name in EMBEDDED) == (candidate.denoising.operation in EMBEDDED)]
        return 'It fits %s' % ' '.join(candidate.flags) + (
            '; or it has other blocks with the same variables, such as --denoise %s' % ', '.join(same)
            if candidate.variant and not recorded else '')
    return 'It fits no network of the zoo'


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


def mistaken_denoising(network: Network, path: str) -> List[str]:
    """Say what there is to warn of where a checkpoint fits a network, but was trained with other denoising blocks."""
    recorded, own = recorded_denoising(path), network.denoising
    if recorded is None:
        have_variables = own is None or own.form != 'no-1x1' or own.operation in EMBEDDED
        return [] if have_variables else [
            'checkpoint %s doesn\'t say that it was trained with denoising blocks, and those of %s have no variables: '
            'a network without any fits, too' % (path, network.name)]
    if recorded == own:
        return []
    return ['checkpoint %s was trained with --denoise %s --denoise-where %s --denoise-block %s, and %s computes '
            'something else with its variables: give these flags, of an --arch with denoising blocks'
            % (path, *recorded, network.name)]


def with_denoising(network: Network, weights: Weights, recorded: Optional[Denoising]) -> Network:
    """Return the network with the denoising blocks that a checkpoint records, or else those that its variables' names
    suggest."""
    if network.denoising is None:
        return network
    if recorded is None:
        names = [name for name in weights if '/non_local/' in name or '_denoise/' in name]
        embedded = any('/embedding_' in name for name in names)
        own = network.denoising.operation
        where = network.denoising.where if not names else 'block' if '/non_local/' in names[0] else 'group'
        recorded = Denoising(own if (own in EMBEDDED) == embedded else 'softmax' if embedded else 'dot-product-plain',
                             where, 'full' if any(name.endswith('/conv/W') for name in names) else 'no-1x1')
    try:
        return network.with_denoising(*recorded)
    except InputError:  # of a later version
        return network


def assign_weights(session: 'tf.Session', weights: Weights) -> None:
    """Give every variable of the session's graph its value in `weights`."""
    from runtime.compat import tf
    with session.graph.as_default():
        variables = tf.global_variables()
        values = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in variables]
        assign = tf.group(*[v.assign(value) for v, value in zip(variables, values)])
    session.run(assign, {value: weights[v.op.name] for v, value in zip(variables, values)})
