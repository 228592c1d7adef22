"""The backbone: a bottleneck ResNet or ResNeXt, post-activation, as in Section 6 of the paper.

Every function takes a feature map and a `Mode`, which says how to compute it. Variables are created or reused by name,
so the same function builds the training tower and the attacker's copy of the network.
"""
from typing import Callable, List, NamedTuple, Optional

from runtime.compat import tf

from kernels.convolution import convolution
from kernels.frozen_layers import Bottleneck, FoldedConvolution, fast_stem, fused_bottleneck, has_fast_stem, is_fused
from kernels.mode import Mode, constant_during_attack, num_channels, pad_positions, positions_axes, spatial
from runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

# As in training with large mini-batches (Goyal et al. 2017), which Section 5 follows: moving averages of a batch's
# statistics keep nine tenths in each step
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

class Features(NamedTuple):
    """A feature map, whose ReLU may still be to come: whoever reads it can often compute that in passing."""
    tensor: tf.Tensor
    relu_to_come: bool

    def relu(self) -> tf.Tensor:
        """Return the features after their ReLU."""
        return tf.nn.relu(self.tensor) if self.relu_to_come else self.tensor


# A layer that may follow a group or a block, and computes the features' ReLU: the features, a name for its variables,
# the mode
Block = Callable[[Features, str, Mode], tf.Tensor]


# --- layers ----------------------------------------------------------------------------------------------------------

def weight(name: str, shape: List[int], initializer: Callable, trainable: bool = True) -> tf.Tensor:
    """Create or reuse a float32 variable; outside of the attack's loop, where it is constant."""
    with constant_during_attack():
        return tf.get_variable(name, shape, tf.float32, initializer=initializer, trainable=trainable)


class ConvNorm(NamedTuple):
    """A convolution without bias and the BatchNorm after it: float32 variables, and the convolution's stride."""
    w: tf.Tensor  # (height, width, channels in / groups, channels out)
    gamma: tf.Tensor  # this and the others: (channels out,)
    beta: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    stride: int = 1
    symmetric: bool = False  # padded alike on all sides, not SAME
    epsilon: float = BATCH_NORM_EPSILON

    def folded(self) -> FoldedConvolution:
        """Return the one convolution that this is while BatchNorm is in test mode, an affine map with constant
        numbers."""
        with constant_during_attack():
            scale = self.gamma * tf.rsqrt(self.variance + self.epsilon)
            return FoldedConvolution(self.w * scale, self.beta - self.mean * scale, self.stride, self.symmetric)


def conv_norm_layer(name: str, shape: List[int], *, stride: int = 1, symmetric: bool = False,
                    initial_gamma: float = 1.0, epsilon: float = BATCH_NORM_EPSILON) -> ConvNorm:
    """Create or reuse the variables of a ConvNorm; shape: that of its weights.

    Convolutions begin with a variance of 2 / (kernel area x channels out), He et al.'s initialisation by fan-out.
    """
    with tf.variable_scope(name):
        he_normal = tf.variance_scaling_initializer(scale=2.0, mode='fan_out', distribution='untruncated_normal')
        w = weight('W', shape, he_normal)
        with tf.variable_scope('bn'):
            gamma = weight('gamma', shape[3:], tf.constant_initializer(initial_gamma))
            beta = weight('beta', shape[3:], tf.zeros_initializer())
            mean = weight('mean/EMA', shape[3:], tf.zeros_initializer(), trainable=False)
            variance = weight('variance/EMA', shape[3:], tf.ones_initializer(), trainable=False)
    return ConvNorm(w, gamma, beta, mean, variance, stride, symmetric, epsilon)


def conv_norm(x: tf.Tensor, layer: ConvNorm, mode: Mode) -> tf.Tensor:
    """Convolve, padded as the layer says, and normalise: by the batch's statistics in training, else the tracked ones.

    Section 5: in training each worker normalises by its own 32 images. The attack, in test mode, must leave the tracked
    statistics alone.
    """
    if mode.folds_batch_norm:
        folded = layer.folded()
        with constant_during_attack():
            w, bias = tf.cast(folded.w, mode.dtype), tf.cast(folded.bias, mode.dtype)
        x = convolution(x, w, mode, layer.stride, symmetric=layer.symmetric)
        return tf.nn.bias_add(x, bias, data_format=mode.data_format)
    with constant_during_attack():
        w = tf.cast(layer.w, mode.dtype)
    return batch_norm(convolution(x, w, mode, layer.stride, symmetric=layer.symmetric), layer, mode)


def batch_norm(x: tf.Tensor, layer: ConvNorm, mode: Mode) -> tf.Tensor:
    """Normalise each channel: by the batch's statistics in training, which are tracked, else by the tracked ones."""
    normalise = dict(epsilon=layer.epsilon, data_format=mode.data_format)
    if not mode.training:
        return tf.nn.fused_batch_norm(x, layer.gamma, layer.beta, layer.mean, layer.variance, is_training=False,
                                      **normalise)[0]
    x, mean, variance = tf.nn.fused_batch_norm(x, layer.gamma, layer.beta, is_training=True, **normalise)
    for tracked, value in (layer.mean, mean), (layer.variance, variance):
        # tensorpack runs this collection once per training step
        update = tf.assign_sub(tracked, (1 - BATCH_NORM_MOMENTUM) * (tracked - value))
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update.op)
    return x


def linear(x: tf.Tensor, name: str, outputs: int, mode: Mode) -> tf.Tensor:
    """Map (N, channels) to (N, outputs); its weights begin as N(0, 0.01), as in large-batch training."""
    with tf.variable_scope(name):
        w = weight('W', [int(x.shape[1]), outputs], tf.random_normal_initializer(stddev=0.01))
        b = weight('b', [outputs], tf.zeros_initializer())
        with constant_during_attack():
            w, b = tf.cast(w, mode.dtype), tf.cast(b, mode.dtype)
        return tf.matmul(x, w) + b


# --- the network -----------------------------------------------------------------------------------------------------

def standardised(image: tf.Tensor) -> tf.Tensor:
    """Turn NHWC images, BGR in [-1, 1], into what torchvision's networks take: RGB in [0, 1], less the mean, over the
    standard deviation."""
    with tf.variable_scope('input'):
        mean = weight('mean', [3], tf.constant_initializer(IMAGENET_MEAN), trainable=False)
        std = weight('std', [3], tf.constant_initializer(IMAGENET_STD), trainable=False)
    return ((tf.reverse(image, [3]) + 1.0) / 2.0 - mean) / std


def stem(x: tf.Tensor, mode: Mode, *, symmetric: bool = False) -> Features:
    """Convolve the image by 7x7 with a stride of 2, normalise, and max-pool 3x3 with a stride of 2; both padded SAME,
    or `symmetric`, alike on all sides.

    The maximum of ReLUs is the ReLU of the maximum, and that of fewer positions: it is left to what comes next.
    """
    layer = conv_norm_layer('conv0', [7, 7, num_channels(x, mode), 64], stride=2, symmetric=symmetric)
    if has_fast_stem(x, mode):
        folded = layer.folded()
        with constant_during_attack():
            w, bias = tf.cast(folded.w, mode.dtype), tf.cast(folded.bias, mode.dtype)
        return Features(fast_stem(x, w, bias, symmetric=symmetric), relu_to_come=True)
    x = conv_norm(x, layer, mode)
    if symmetric:
        x = pad_positions(x, 1, mode, x.dtype.min)
    x = tf.nn.max_pool(x, spatial([3, 3], mode), spatial([2, 2], mode), 'VALID' if symmetric else 'SAME',
                       data_format=mode.data_format)
    return Features(x, relu_to_come=True)


def bottleneck(x: Features, channels: int, stride: int, mode: Mode, *, width: int, groups: int,
               symmetric: bool = False) -> Features:
    """Add to x what 1x1, 3x3 (with the stride, in groups) and 1x1 convolutions make of it.

    They have `width`, `width` and 4 * `channels` outputs. The last gamma begins at 0, so that a residual block is the
    identity at first (Section 5 takes this from training with large mini-batches).
    """
    channels_in, out = num_channels(x.tensor, mode), 4 * channels
    block = Bottleneck(
        conv1=conv_norm_layer('conv1', [1, 1, channels_in, width]),
        conv2=conv_norm_layer('conv2', [3, 3, width // groups, width], stride=stride, symmetric=symmetric),
        conv3=conv_norm_layer('conv3', [1, 1, width, out], initial_gamma=0.0),
        shortcut=conv_norm_layer('convshortcut', [1, 1, channels_in, out], stride=stride)
        if channels_in != out or stride != 1 else None)
    if is_fused(block, mode):
        folded = Bottleneck(*[layer and layer.folded() for layer in block])
        return Features(fused_bottleneck(x.tensor, folded, mode, relu=x.relu_to_come), relu_to_come=True)
    x = x.relu()
    y = tf.nn.relu(conv_norm(x, block.conv1, mode))
    y = tf.nn.relu(conv_norm(y, block.conv2, mode))
    y = conv_norm(y, block.conv3, mode)
    return Features(y + (x if block.shortcut is None else conv_norm(x, block.shortcut, mode)), relu_to_come=True)


def basic_block(x: Features, channels: int, stride: int, mode: Mode, *, symmetric: bool = False) -> Features:
    """Add to x what two 3x3 convolutions make of it, the first one with the stride: the block of 18 and 34 layers.

    The last gamma begins at 0, as a bottleneck's.
    """
    channels_in = num_channels(x.tensor, mode)
    conv1 = conv_norm_layer('conv1', [3, 3, channels_in, channels], stride=stride, symmetric=symmetric)
    conv2 = conv_norm_layer('conv2', [3, 3, channels, channels], initial_gamma=0.0)
    x = x.relu()
    y = conv_norm(tf.nn.relu(conv_norm(x, conv1, mode)), conv2, mode)
    if channels_in != channels or stride != 1:
        x = conv_norm(x, conv_norm_layer('convshortcut', [1, 1, channels_in, channels], stride=stride), mode)
    return Features(y + x, relu_to_come=True)


def backbone(image: tf.Tensor, num_blocks: List[int], num_classes: int, mode: Mode, *, block: str = 'bottleneck',
             groups: int = 1, width_per_group: int = 64, torchvision: bool = False,
             after_group: Optional[Block] = None, after_block: Optional[Block] = None) -> tf.Tensor:
    """Compute logits: stem, four groups of residual blocks, global average pool, linear layer.

    Args:
        image: (N, H, W, 3) float32 in [-1, 1], BGR. num_blocks: residual blocks in each group. block: 'bottleneck' or
            'basic'. groups, width_per_group: of the 3x3 convolutions in the first group of bottlenecks; the width
            doubles from group to group.
        torchvision: pad alike on all sides, and standardise images, as its networks do.
        after_group, after_block: a denoising block that follows every group, or every residual block.
    Returns:
        (N, num_classes) float32.
    """
    x = tf.cast(standardised(image) if torchvision else image, mode.dtype)
    if mode.data_format == 'NCHW':
        x = tf.transpose(x, [0, 3, 1, 2])
    features = stem(x, mode, symmetric=torchvision)
    for g, blocks in enumerate(num_blocks):
        for b in range(blocks):
            channels, stride = 64 * 2 ** g, 2 if g > 0 and b == 0 else 1
            with tf.variable_scope('group%d/block%d' % (g, b)):
                if block == 'basic':
                    features = basic_block(features, channels, stride, mode, symmetric=torchvision)
                else:
                    features = bottleneck(features, channels, stride, mode, width=groups * width_per_group * 2 ** g,
                                          groups=groups, symmetric=torchvision)
                if after_block is not None:
                    features = Features(after_block(features, 'non_local', mode), relu_to_come=False)
        if after_group is not None:
            features = Features(after_group(features, 'group%d_denoise' % g, mode), relu_to_come=False)
    x = features.relu()
    if mode.dtype == tf.bfloat16:  # has no digits to spare, and the last layer costs nothing
        x, mode = tf.cast(x, tf.float32), mode._replace(dtype=tf.float32)
    x = tf.reduce_mean(x, positions_axes(mode))
    return tf.cast(linear(x, 'linear', num_classes, mode), tf.float32)
