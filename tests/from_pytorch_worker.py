"""Worker of test_from_pytorch.py: checkpoints in many forms, and what becomes of them, in .venv-torch."""
import argparse
import collections
import json
import os
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from torch_networks_worker import error, randomized, torchvision_network

from benchmarks.torchvision_import import import_torchvision
from interop.from_torch import import_network
from interop.torch_files import collect, read_states
from interop.torch_networks import load_network
from runtime.errors import InputError
from tools.from_pytorch import convert

torch.set_num_threads(1)
CLASSES = 7
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def normalizer(prefix, mean='mean', std='std', shape=(1, 3, 1, 1), factor=1):
    return {prefix + name: factor * torch.tensor(value).view(shape) for name, value in [(mean, MEAN), (std, STD)]}


def changed(state, **changes):
    """Return a state with other tensors; None leaves one out. An underscore of a name here is a dot there."""
    state = dict(state)
    for name, value in changes.items():
        key = name.replace('__', '.')
        state.pop(key, None)
        if value is not None:
            state[key] = value
    return state


def imported(content, **options):
    states = {}
    collect(content, '', states)
    return import_network(states, 'C', **options)


def forms():
    """Import the same network from many forms: {form: [equal, mean, std, notes]}."""
    state = torchvision_network('resnet18', 1, CLASSES).state_dict()
    other = torchvision_network('resnet18', 2, CLASSES).state_dict()
    plain = imported(state)
    optimizer = {'state': {0: {'momentum_buffer': torch.zeros(3)}}, 'param_groups': [{'lr': 0.1}]}
    robustness = {**under('module.model.', state), **under('module.attacker.model.', state),
                  **normalizer('module.normalizer.', 'new_mean', 'new_std', (3, 1, 1)),
                  **normalizer('module.attacker.normalize.', 'new_mean', 'new_std', (3, 1, 1))}
    contents = {
        'plain': state,
        'without counters': {key: value for key, value in state.items() if not key.endswith('tracked')},
        'state_dict': {'epoch': 3, 'arch': 'resnet18', 'best_acc1': torch.tensor(1.), 'optimizer': optimizer,
                       'state_dict': under('module.', state)},
        'model': {'model': state, 'optimizer': optimizer, 'lr_scheduler': {'base_lrs': [0.1]}, 'epoch': 3},
        'model.': under('model.', state),
        'module.model.': {'state_dict': under('module.model.', state)},
        'model.module.': {'model': under('model.module.', state)},
        'model.state_dict': {'model': {'state_dict': under('_orig_mod.module.', state)}},
        'robustness': {'model': robustness, 'optimizer': optimizer, 'epoch': 90},
        'in float32 with a normalizer': {**under('model.', state), **normalizer('normalize.')},
        'a sequence': {**under('1.', state), **normalizer('0.')},
        'mu and sigma': {**state, **normalizer('', 'mu', 'sigma')},
        'of 255': {**under('model.', state), **normalizer('normalizer.', factor=255)},
        'beside the state': {'state_dict': state, 'mean': MEAN, 'std': torch.tensor(STD)},
        'arrays': {'model': {key: value.numpy() for key, value in state.items()}, 'mean': np.array(MEAN),
                   'std': np.array(STD, '>f4')},
        'divided by 255': {**under('model.', state), 'normalize.mean': torch.zeros(3),
                           'normalize.std': torch.full((3,), 255.)},
        'one number': {**under('model.', state), 'normalize.mean': torch.tensor(0.5),
                       'normalize.std': torch.tensor([0.25])},
        'averaged beside': {'model': state, 'model_ema': {**under('module.', other), 'n_averaged': torch.tensor(5)}},
        'average alone': {'model_ema': {**under('module.', state), 'n_averaged': torch.tensor(5)}},
        'twice the same': {'a': state, 'b': state},
    }
    results = {}
    for name, content in contents.items():
        got = imported(content)
        equal = got.arch == 'resnet18' and set(got.weights) == set(plain.weights) and all(
            np.array_equal(got.weights[key], plain.weights[key]) for key in plain.weights if 'input' not in key)
        results[name] = [equal, got.weights['input/mean'].tolist(), got.weights['input/std'].tolist(), got.notes]
    chosen = imported(contents['averaged beside'], prefix='model_ema.module')
    results['averaged chosen'] = [bool((chosen.weights['linear/b'] == other['fc.bias'].numpy()).all()), [], [], []]
    return results


def dtypes():
    """Import networks of other dtypes: {dtype: [dtype, largest relative difference, notes]}."""
    state = torchvision_network('resnet18', 1, CLASSES).state_dict()
    results = {}
    for dtype in torch.float16, torch.bfloat16, torch.float64:
        got = imported({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()})
        w, expected = got.weights['group1/block0/conv1/W'], state['layer2.0.conv1.weight'].permute(2, 3, 1, 0).numpy()
        results[str(dtype)] = [str(w.dtype), float(np.abs(w - expected).max() / np.abs(expected).max()), got.notes]
    return results


def refused_states():
    """Return what is said of networks that don't fit: {case: text}."""
    state = torchvision_network('resnet18', 1, CLASSES).state_dict()
    models = import_torchvision().models
    with torch.device('meta'):
        others = {name: getattr(models, name)().state_dict() for name in (
            'vit_b_16', 'efficientnet_b0', 'densenet121', 'mobilenet_v3_small')}
        groups = models.ResNet(models.resnet.Bottleneck, [3, 4, 6, 3], groups=16, width_per_group=8).state_dict()
    nan = torch.full((64,), float('nan'))
    other = torchvision_network('resnet18', 2, CLASSES).state_dict()
    contents = {
        **others, 'another ResNeXt': groups,
        'no fc': changed(state, fc__weight=None, fc__bias=None),
        'no conv1': changed(under('module.', state), module__conv1__weight=None),
        'another head': changed(under('backbone.', state), backbone__fc__weight=None, backbone__fc__bias=None,
                                head__weight=torch.zeros(7, 512)),
        'one more': changed(state, layer1__0__se__weight=torch.zeros(3)),
        'biases': changed(state, conv1__bias=torch.zeros(64)),
        'shape': changed(state, conv1__weight=torch.zeros(64, 1, 7, 7)),
        'nan': changed(state, bn1__bias=nan),
        'variance': changed(state, bn1__running_var=-torch.ones(64)),
        'beyond': changed(state, bn1__bias=torch.full((64,), 1e300, dtype=torch.float64)),
        'integers': changed(state, fc__bias=torch.zeros(7, dtype=torch.int64)),
        'std 0': {**under('model.', state), **normalizer('normalize.', factor=0)},
        'std nan': {**under('model.', state), **normalizer('normalize.', factor=float('nan'))},
        'std next to 0': {**under('model.', state), **normalizer('normalize.', factor=1e-30)},
        'two units': changed(state, mean=torch.tensor(MEAN), std=torch.full((3,), 2.)),
        'one class': changed(state, fc__weight=torch.zeros(1, 512), fc__bias=torch.zeros(1)),
        'no class': changed(state, fc__weight=torch.zeros(0, 512), fc__bias=torch.zeros(0)),
        'mean alone': changed(state, mean=torch.tensor(MEAN)),
        'two means': {**state, **normalizer('a.'), **normalizer('b.', factor=0.5)},
        'a mean of another size': changed(state, normalize__mean=torch.zeros(4)),
        'two networks': {**under('student.', state), **under('teacher.', other)},
        'counters alone': {key: value for key, value in state.items() if key.endswith('tracked')},
    }
    results = {}
    for name, content in contents.items():
        try:
            imported(content)
            results[name] = 'imported'
        except InputError as e:
            results[name] = str(e)
    try:
        imported(state, prefix='model.')
    except InputError as e:
        results['no such prefix'] = str(e)
    return results


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('it-ran',)


def files():
    """Return what is said of files of every kind: {case: text}, '' for those that are read."""
    tensors = {'a': torch.arange(1000.), 'b': torch.zeros(2, 2)}
    os.mkdir('folder')
    torch.save(tensors, 'zip')
    torch.save(tensors, 'legacy', _use_new_zipfile_serialization=False)
    save_file(tensors, 'good.safetensors')
    torch.save({'model': tensors, 'args': argparse.Namespace(lr=0.1, out=pathlib.Path('o')), 'mean': np.zeros(3),
                'best': np.float64(0.5), 'np': np.float32(1),
                'history': collections.OrderedDict(loss=[1., 2.])}, 'trainer')
    for name in 'zip', 'legacy', 'good.safetensors':
        with open(name, 'rb') as f, open('half ' + name, 'wb') as half:
            half.write(f.read()[:1500])
    torch.save({'state_dict': tensors, 'hook': Code()}, 'code')
    torch.save({'state_dict': tensors, 'hook': Code()}, 'legacy code', _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), 'module')
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), 'script')
    np.savez('arrays.npz', a=np.zeros(3))
    for name, content in {'tensor': torch.zeros(3), 'list': [torch.zeros(3)], 'nothing': {}, 'optimizer': {
            'state': {0: {'momentum_buffer': torch.zeros(3)}}, 'param_groups': [{'lr': 0.1}]}}.items():
        torch.save(content, name)
    for name, content in {'empty': b'', 'text': b'epoch,loss\n1,2\n', 'html': b'<!DOCTYPE html>\n<html>', 'lfs': (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n'), 'noise': bytes(range(200, 256)) * 9,
            'pickle': b'\x80\x02', 'short zip': b'PK'}.items():
        with open(name, 'wb') as f:
            f.write(content)
    results = {}
    for name in sorted(os.listdir('.')) + ['nowhere']:
        try:
            states = read_states(name)
            read = [state['a'] for state in states.values() if 'a' in state]
            results[name] = '' if len(read) == 1 and torch.equal(read[0], tensors['a']) else 'read as something else'
        except InputError as e:
            results[name] = str(e)
    results['ran'] = os.path.exists('it-ran')
    return results


def whole():
    """Convert files as a user does; the networks must compute what their own did."""
    timm = import_torchvision() and __import__('timm')
    theirs = randomized(timm.create_model('resnet18', num_classes=CLASSES), 3)
    save_file(theirs.state_dict(), 'timm.safetensors')
    flags = convert('timm.safetensors', 'of timm.npz')
    images = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        result = [flags, error(load_network('of timm.npz', 'resnet18')(images), theirs((images - mean) / std))]
    # what the command line of the next test gets
    state = torchvision_network('resnet18', 1, 1001).half().state_dict()
    torch.save({'state_dict': under('module.', state)}, 'background.pth')
    return result + [float(state['fc.bias'][0]), float(state['fc.bias'][1])]


if __name__ == '__main__':
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
