"""Whether a checkpoint's variables are those of a network, and what to say where they are not: nothing half-loaded ever
gets evaluated.

    weights = fit_checkpoint(read_checkpoint(path), network, path)
"""
import logging
from typing import Any, Callable, List, Optional

import numpy as np

from checkpoint import Weights, listed, recorded_denoising
from nets import EMBEDDED, LAST_LAYER, OPERATIONS, TORCHVISION, Denoising, Network, all_networks, is_own
from runtime.errors import InputError

log = logging.getLogger(__name__)


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


def without_head(weights: Weights, path: str, network: Network) -> Weights:
    """Return all weights but those of the last layer, which depends on the classes. Raises InputError as fit_checkpoint
    does."""
    fit_checkpoint(weights, network._replace(num_classes=num_classes(weights, path, network)), path)
    last = network.class_axes()
    return {name: value for name, value in weights.items() if name not in last}


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
