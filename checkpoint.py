"""Checkpoints: the files, and whether they fit a network. Nothing half-loaded ever gets evaluated."""
import re
import zipfile
from typing import Dict, List

from runtime.compat import tf

import numpy as np

from checkpoint_files import check_files, damaged_npz, tf_prefix
from nets import Network
from runtime.errors import InputError
from zoo import ARCHITECTURES, DEPTHS

# Variables that training keeps beside the network's: the optimizer's, the schedule's, the smoothed summaries
TRAINING_ONLY = re.compile(r'^(global_step|learning_rate|training/.*|EMA/.*|.*/Momentum|.*/EMA/(biased|local_step))$')
MAX_NAMED = 4

Weights = Dict[str, np.ndarray]


def read_checkpoint(path: str) -> Weights:
    """Read an .npz file or a TF checkpoint (its prefix, or one of its files): {variable name: array}.

    A `:0` after a name is dropped. Variables of training alone are left out. Nothing is ever unpickled.
    Raises InputError where there is no checkpoint, or one that can't be read.
    """
    weights = read_npz(path) if path.endswith('.npz') else read_tf_checkpoint(path)
    weights = {(name[:-2] if name.endswith(':0') else name): value for name, value in weights.items()}
    return {name: value for name, value in weights.items() if not TRAINING_ONLY.match(name)}


def read_npz(path: str) -> Weights:
    check_files(path)
    try:
        # not np.load: for a damaged archive NumPy 1.18 also prints a traceback
        with zipfile.ZipFile(path) as archive:
            return {re.sub(r'\.npy$', '', name): read_array(archive, name) for name in archive.namelist()}
    except Exception as e:  # a damaged file can end in many: all that happens here is reading it
        raise damaged_npz(path, e)


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def read_tf_checkpoint(path: str) -> Weights:
    check_files(path)
    prefix = tf_prefix(path)
    try:
        reader = tf.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
                if not TRAINING_ONLY.match(name)}
    except Exception as e:  # as above
        raise InputError('checkpoint %s can\'t be read (%s)' % (prefix, str(e).split('\n')[0]))


def num_classes(weights: Weights, path: str) -> int:
    """Return the number of classes of the network whose weights these are."""
    if 'linear/b' not in weights or weights['linear/b'].ndim != 1:
        raise InputError('checkpoint %s has no linear/b with one value a class: it is not of a network of the zoo'
                         % path)
    return len(weights['linear/b'])


def without_head(weights: Weights, path: str, network: Network) -> Weights:
    """Return all weights but those of the last layer, which depends on the classes. Raises InputError, as below."""
    fit_checkpoint(weights, network._replace(num_classes=num_classes(weights, path)), path)
    return {name: value for name, value in weights.items() if not name.startswith('linear/')}


def fit_checkpoint(weights: Weights, network: Network, path: str) -> Weights:
    """Return the weights as float32, if they are exactly those of the network.

    Raises InputError that names the missing, extra and wrongly shaped variables and, where one of the zoo's networks
    would fit, its flags.
    """
    problems = misfits(weights, network)
    if not problems:
        bad = [name for name, value in weights.items() if not np.issubdtype(value.dtype, np.number)]
        if bad:
            raise InputError('checkpoint %s: not numbers: %s' % (path, listed(bad)))
        with np.errstate(over='ignore'):
            weights = {name: value.astype(np.float32) for name, value in weights.items()}
        bad = [name for name, value in weights.items() if not np.isfinite(value).all()]
        if bad:
            raise InputError('checkpoint %s: infinite, not a number, or beyond float32: %s' % (path, listed(bad)))
        return weights
    raise InputError('checkpoint %s does not fit %s with depth %d and %d classes: %s. %s' % (
        path, network.arch, network.depth, network.num_classes, '; '.join(problems), advice(weights, network)))


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


def advice(weights: Weights, network: Network) -> str:
    if 'linear/b' not in weights or weights['linear/b'].ndim != 1:
        return 'It fits no network of the zoo'
    classes = len(weights['linear/b'])
    blocks = sum(name.endswith('/conv3/W') for name in weights)
    for arch in ARCHITECTURES:
        for depth in DEPTHS:
            if blocks != sum(DEPTHS[depth]):  # most networks need not be built to be told apart
                continue
            if misfits(weights, Network(arch, depth, classes)):
                continue
            if (arch, depth) == (network.arch, network.depth):
                return 'The checkpoint has %d classes, the data %d' % (classes, network.num_classes)
            return 'It fits --arch %s -d %d' % (arch, depth)
    return 'It fits no network of the zoo'


def assign_weights(session: tf.Session, weights: Weights) -> None:
    """Give every variable of the session's graph its value in `weights`."""
    with session.graph.as_default():
        variables = tf.global_variables()
        values = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in variables]
        assign = tf.group(*[v.assign(value) for v, value in zip(variables, values)])
    session.run(assign, {value: weights[v.op.name] for v, value in zip(variables, values)})
