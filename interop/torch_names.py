"""What a variable of an .npz file is called in PyTorch's networks, and how it lies there. Imports no PyTorch.

    layer2.0.conv3.weight (outputs, inputs, height, width) <-> group1/block0/conv3/W (height, width, inputs, outputs)
"""
import re
from typing import Any

NORMS = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'mean/EMA', 'running_var': 'variance/EMA'}
# What BatchNorm counts for averages of another kind than the one that is in use
COUNTER = 'num_batches_tracked'
# A tensor of a ResNet of torchvision's names
TENSOR = re.compile(r'(?:(?:layer[1-9]\.\d+\.)?(?:conv|bn)\d|layer[1-9]\.\d+\.downsample\.[01]|fc)\.\w+')


def variable_of(key: str) -> str:
    """Return the name in an .npz file of what PyTorch's networks call `key`."""
    layer, _, kind = key.rpartition('.')
    layer = re.sub(r'^layer(\d)', lambda found: 'group%d' % (int(found.group(1)) - 1), layer)
    layer = re.sub(r'^(group\d)\.(\d+)', r'\1/block\2', layer)
    layer = re.sub(r'^(group\d/block\d+)\.denoise', r'\1/non_local', layer)
    layer = re.sub(r'^(group\d)\.denoise', r'\1_denoise', layer)
    place, _, layer = layer.rpartition('.')
    place += '/' if place else ''
    if layer == 'input':
        return 'input/' + kind
    if layer == 'fc':
        return 'linear/' + {'weight': 'W', 'bias': 'b'}.get(kind, kind)
    if layer in ('theta', 'phi'):
        return '%sembedding_%s/W' % (place, layer)
    if layer in ('0', '1'):  # of `downsample`, a convolution and its BatchNorm
        place, layer = place[:-len('.downsample/')] + '/', {'0': 'convshortcut', '1': 'bnshortcut'}[layer]
    if not place:  # the stem
        layer = {'conv1': 'conv0', 'bn1': 'bn0'}.get(layer, layer)
    if layer.startswith('conv'):
        return '%s%s/%s' % (place, layer, {'weight': 'W'}.get(kind, kind))
    return '%sconv%s/bn/%s' % (place, layer[len('bn'):], NORMS.get(kind, kind))


def npz_layout(tensor: Any) -> Any:
    """Return a view of a network's tensor with the axes that it has in an .npz file."""
    return tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor.t() if tensor.dim() == 2 else tensor


def torch_layout(tensor: Any) -> Any:
    """Return a view of a tensor from an .npz file with the axes that it has in a network: undoes `npz_layout`."""
    return tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.t() if tensor.dim() == 2 else tensor
