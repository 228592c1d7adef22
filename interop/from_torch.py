"""Which of torchvision's ResNets a checkpoint of PyTorch is of, and its weights as this project has them."""
import functools
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

import checkpoint
import fitting
import nets
from interop.torch_files import State
from interop.torch_names import COUNTER, TENSOR, npz_layout, variable_of
from interop.torch_networks import network
from runtime.errors import InputError
from runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

SMALLEST_STD = 1e-4  # of the input: less than that of any photo, in whatever unit
COUNTERS = (COUNTER, 'n_averaged')  # what averages count, which nothing here uses
# A copy of the network that is not the network itself: of robustness' attacker, or a moving average
COPIES = re.compile(r'(^|[._])(attacker|ema|swa)([._]|$)')
ATTACKER = re.compile(r'(^|\.)attacker\.')
MEAN = re.compile(r'(^|.*[._])(mean|mu)s?$')
STD = re.compile(r'(^|.*[._])(std|sigma)s?$')


class Imported(NamedTuple):
    """A network's weights, and what is to be said of them."""
    arch: str
    num_classes: int
    weights: checkpoint.Weights  # float32, by the names and in the layout of .npz files
    notes: List[str]
    warnings: List[str]


class Candidate(NamedTuple):
    """A network in a file."""
    place: str  # of its dictionary
    prefix: str  # in front of its tensors' names there
    tensors: State

    @property
    def title(self) -> str:
        return self.place + self.prefix


def import_network(states: Dict[str, State], path: str, prefix: Optional[str] = None,
                   drop_background: bool = False) -> Imported:
    """Find a network of torchvision's among the tensors of a file, and convert it.

    Args:
        states: as from read_states. path: for messages. prefix: which network, where the file has several.
        drop_background: leave out output 0.
    Raises:
        runtime.errors.InputError: there is none, it has tensors that no such network has or lacks some, or values that
            are none of a network.
    """
    found = candidates(states)
    chosen = choose(found, path, prefix, states)
    rest = {key: value for key, value in states[chosen.place].items() if not ignored(key, chosen, found)}
    around = {place + key: value for place, state in states.items() for key, value in state.items()
              if place != chosen.place and chosen.place.startswith(place)}
    means, stds = [{key: value for key, value in {**rest, **around}.items()
                    if kind.match(key) and value.numel() in (1, 3)} for kind in (MEAN, STD)]
    extra = [chosen.place + key for key in rest if key not in means and key not in stds]
    arch = find_architecture(chosen, extra, path)
    notes, warnings = [], []
    if found[1:]:
        others = [other.title for other in found if other is not chosen and not ATTACKER.search(other.title)]
        if others:
            notes.append('the network under %s is used; others are under %s (--prefix)'
                         % (chosen.title or 'no prefix', ', '.join(others)))
    check_numbers(chosen.tensors, path, notes)
    tensors = {key: value.detach().float() for key, value in chosen.tensors.items()}
    check_values(tensors, path)
    classes = len(tensors['fc.bias'])
    if classes < 2:
        raise InputError('%s has %d outputs, which tell no classes apart' % (path, classes))
    if drop_background:
        if classes < 3:
            raise InputError('--drop-background: %s has %d classes, of which none can be spared' % (path, classes))
        tensors.update({key: tensors[key][1:] for key in ('fc.weight', 'fc.bias')})
        classes -= 1
    elif classes == 1001:
        warnings.append('%s has 1001 classes: one is likely a background class at index 0, which shifts all labels by '
                        'one; --drop-background leaves it out' % path)
    tensors.update(normalisation(means, stds, path, notes))
    weights = {variable_of(key): npz_layout(value).contiguous().numpy() for key, value in tensors.items()}
    return Imported(arch, classes, weights, notes, warnings)


# --- which network ---------------------------------------------------------------------------------------------------

def candidates(states: Dict[str, State]) -> List[Candidate]:
    """List all that looks like a ResNet, likeliest first."""
    found: Dict[Tuple[str, str], State] = {}
    for place, state in states.items():
        for key, value in state.items():
            match = re.match(r'((?:.*?\.)??)(%s)$' % TENSOR.pattern, key)
            if match and not key.endswith(COUNTERS):
                found.setdefault((place, match.group(1)), {})[match.group(2)] = value
    networks = [Candidate(place, prefix, tensors) for (place, prefix), tensors in found.items()
                if any(name.startswith('layer1.0.') for name in tensors)]
    return sorted(networks, key=lambda n: (bool(COPIES.search(n.title)), len(n.title)))


def choose(found: List[Candidate], path: str, prefix: Optional[str], states: Dict[str, State]) -> Candidate:
    """Return the one that is meant."""
    if not found:
        names = [place + key for place, state in states.items() for key in state]
        missing = ['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight']
        raise InputError('%s is none of torchvision\'s ResNets: missing: %s, ...; it has: %s'
                         % (path, ', '.join(missing), checkpoint.listed(names)))
    if prefix is not None:
        named = [network for network in found if network.title.rstrip('.') == prefix.rstrip('.')]
        if not named:
            raise InputError('--prefix %s: %s has no network under it, but under %s'
                             % (prefix, path, titles(found)))
        return named[0]
    rivals = [network for network in found[1:] if not COPIES.search(network.title)] \
        if not COPIES.search(found[0].title) else found[1:]
    if any(not same(found[0].tensors, rival.tensors) for rival in rivals):
        raise InputError('%s has several networks, under %s: choose one by --prefix' % (path, titles(found)))
    return found[0]


def titles(found: List[Candidate]) -> str:
    return ', '.join(network.title or '\'\' (none)' for network in found)


def same(one: State, other: State) -> bool:
    """Tell whether two networks have the same tensors."""
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def ignored(key: str, chosen: Candidate, found: List[Candidate]) -> bool:
    """Tell whether a tensor beside a network is known to be no part of it."""
    if key.endswith(COUNTERS) or ATTACKER.search(key) and not ATTACKER.search(chosen.prefix):
        return True
    if key.startswith(chosen.prefix) and key[len(chosen.prefix):] in chosen.tensors:
        return True
    return any(other.place == chosen.place and other.prefix and key.startswith(other.prefix)
               for other in found if other is not chosen and not chosen.prefix.startswith(other.prefix))


@functools.lru_cache(maxsize=None)
def shapes_of(arch: str, classes: int) -> Dict[str, Tuple[int, ...]]:
    """Return {name: shape} of the tensors that a file of a network has."""
    with torch.device('meta'):
        net = network(arch, None, classes)
    return {key: tuple(value.shape) for key, value in net.state_dict().items()
            if not key.endswith(COUNTER) and not key.startswith('input.')}


def find_architecture(chosen: Candidate, extra: List[str], path: str) -> str:
    """Return the name of the network whose tensors these are, all of them and no others."""
    tensors = chosen.tensors
    classes = tensors['fc.weight'].shape[0] if 'fc.weight' in tensors and tensors['fc.weight'].dim() == 2 else 1000
    nearest: List[Tuple[int, str, List[str]]] = []
    for arch in nets.TORCHVISION:
        expected = shapes_of(arch, classes)
        missing = [chosen.title + key for key in expected if key not in tensors]
        left = [chosen.title + key for key in tensors if key not in expected] + extra
        other = ['%s%s is %s, not %s' % (chosen.title, key, tuple(tensors[key].shape), expected[key])
                 for key in expected if key in tensors and tuple(tensors[key].shape) != expected[key]]
        problems = ['%d %s: %s' % (len(names), what, checkpoint.listed(names)) for what, names in [
            ('missing', missing), ('left over', left), ('of another shape', other)] if names]
        if not problems:
            return arch
        nearest.append((len(missing) + len(left) + len(other), arch, problems))
    _, arch, problems = min(nearest)
    raise InputError('%s is none of torchvision\'s ResNets. Nearest is %s: %s' % (path, arch, '; '.join(problems)))


# --- its values ------------------------------------------------------------------------------------------------------

def check_numbers(tensors: State, path: str, notes: List[str]) -> None:
    """Raise InputError for tensors of other numbers than real ones; note those that are not float32."""
    def plain(value: torch.Tensor) -> bool:
        return value.is_floating_point() and value.layout == torch.strided and not (value.is_quantized or value.is_meta)
    fitting.refuse(tensors, path, lambda key, value: not plain(value),
                   'not of plain floating-point numbers, but quantized, sparse, complex, whole or without values')
    kinds: Dict[str, int] = {}
    for value in tensors.values():
        if value.dtype != torch.float32:
            name = str(value.dtype).replace('torch.', '')
            kinds[name] = kinds.get(name, 0) + 1
    for name, count in sorted(kinds.items()):
        notes.append('%d of %d tensors are %s, and were converted to float32' % (count, len(tensors), name))


def check_values(tensors: State, path: str) -> None:
    """Raise InputError for values, float32 by now, that no network has."""
    fitting.refuse(tensors, path, lambda key, value: not bool(torch.isfinite(value).all()),
                   'infinite, not a number, or beyond float32')
    fitting.refuse(tensors, path, lambda key, value: key.endswith('.running_var') and bool((value < 0).any()),
                   'variances below 0, which have no root: give a checkpoint that was not damaged or averaged '
                   'wrongly')


def normalisation(means: State, stds: State, path: str, notes: List[str]) -> State:
    """Return the mean and the standard deviation of a network's input: the file's, or else ImageNet's."""
    if not means and not stds:
        notes.append('%s has no mean and std of the input: ImageNet\'s are used, as in torchvision' % path)
        return {'input.mean': torch.tensor(IMAGENET_MEAN), 'input.std': torch.tensor(IMAGENET_STD)}
    if not means or not stds:
        raise InputError('%s has %s for its input, but no %s' % (
            path, ', '.join(means or stds), 'mean' if stds else 'standard deviation'))
    mean, std = one_of(means, path), one_of(stds, path)
    if bool((std < SMALLEST_STD).any()):
        raise InputError('%s: a standard deviation that is not above 0: %s is %s'
                         % (path, ', '.join(stds), std.tolist()))
    if bool(((mean > 0) & (mean < 1)).all()) and bool((std > 1).any()):
        raise InputError('%s: %s is of pixels in [0, 1] and %s of those in [0, 255]: which are they?'
                         % (path, ', '.join(means), ', '.join(stds)))
    if bool((mean > 1).any()) or bool((std > 1).any()):
        notes.append('%s are of pixels in [0, 255], and were divided by 255' % ', '.join(list(means) + list(stds)))
        mean, std = mean / 255, std / 255
    notes.append('mean %s and std %s of the input are the file\'s (%s)' % (
        rounded(mean), rounded(std), ', '.join(list(means) + list(stds))))
    return {'input.mean': mean, 'input.std': std}


def one_of(tensors: State, path: str) -> torch.Tensor:
    """Return the three numbers, float32, that stand in a file under one or several names."""
    values = [value.detach().float().reshape(-1).expand(3) for value in tensors.values()]
    if not bool(torch.isfinite(torch.stack(values)).all()):
        raise InputError('%s: infinite or not a number: %s' % (path, ', '.join(tensors)))
    if any(not torch.equal(value, values[0]) for value in values):
        raise InputError('%s has several normalisations of the input that differ: %s' % (path, ', '.join(tensors)))
    return values[0].clone()


def rounded(tensor: torch.Tensor) -> Any:
    return tuple(round(value, 4) for value in tensor.tolist())
