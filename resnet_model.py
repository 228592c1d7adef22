"""The layers: convolution with BatchNorm, the bottleneck, the non-local denoising operations (Section 4 of the paper).

Every function takes a feature map and a `Mode`, which says how to compute it, and returns a feature map. Variables are
created or reused by name, so the same function builds the training tower and the attacker's copy of the network.
"""
from typing import Callable, List, NamedTuple, Optional, Tuple

from attention import softmax_attention
from compat import FAST_CONVOLUTION_GRADIENTS, has_gpu, in_xla, tf
from cpu_conv import FEW_GROUPED_POSITIONS, FROZEN_CHANNELS, conv2d, isa
from frozen import (FrozenConvolution, constant_during_attack, frozen_bottleneck, frozen_stem, is_faster_frozen)

BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5
FEW_POSITIONS = 16  # up to which a CPU is faster with a matrix product than with a convolution
TILED_POSITIONS = 64  # above which Winograd's algorithm pays where weights are used once: preparing them takes time too


class Mode(NamedTuple):
    """How a network is computed. Which network it is stands in nets.py.

    Outside of training weights are constants: gradients reach the image, and on CPUs (frozen.py) nothing else.
    """
    training: bool = False  # BatchNorm uses (and tracks) the statistics of the batch; otherwise the tracked ones
    data_format: str = 'NHWC'  # or 'NCHW', the GPU's layout
    dtype: tf.DType = tf.float32  # of activations and of conv and linear weights; variables are float32


def native_mode(data_format: Optional[str] = None) -> Mode:
    """For float32 inference in a layout; by default in the device's own one: NCHW on a GPU, NHWC on a CPU."""
    if data_format not in (None, 'NHWC', 'NCHW'):
        raise ValueError('data_format is NHWC or NCHW, not %r' % (data_format,))
    return Mode(data_format=data_format or ('NCHW' if has_gpu() else 'NHWC'))


def channel_axis(mode: Mode) -> int:
    return 3 if mode.data_format == 'NHWC' else 1


def num_channels(x: tf.Tensor, mode: Mode) -> int:
    return int(x.shape[channel_axis(mode)])


def num_positions(x: tf.Tensor, mode: Mode) -> int:
    height, width = x.shape[1:3] if mode.data_format == 'NHWC' else x.shape[2:4]
    return int(height) * int(width)


def spatial(values: List[int], mode: Mode) -> List[int]:
    """[height, width] with 1 for batch and channels, in the mode's layout."""
    return [1] + values + [1] if mode.data_format == 'NHWC' else [1, 1] + values


# --- weights ---------------------------------------------------------------------------------------------------------

def conv_initializer() -> Callable:
    return tf.variance_scaling_initializer(scale=2.0, mode='fan_out', distribution='untruncated_normal')


def embedding_initializer() -> Callable:
    return tf.random_normal_initializer(stddev=0.01)


def weight(name: str, shape: List[int], initializer: Callable, trainable: bool = True) -> tf.Tensor:
    with constant_during_attack():
        return tf.get_variable(name, shape, tf.float32, initializer=initializer, trainable=trainable)


# --- convolution, BatchNorm, linear ----------------------------------------------------------------------------------

def grouped_convolution(x: tf.Tensor, w: tf.Tensor, groups: int, stride: int) -> tf.Tensor:
    """NHWC grouped convolution. TensorFlow's kernels for CPUs have no gradient of it; XLA's and those of GPUs have.

    On CPUs an op of this project's computes it in float32; in other dtypes TensorFlow does, group by group.
    """
    strides = [1, stride, stride, 1]
    if in_xla() or has_gpu():
        return tf.nn.conv2d(x, w, strides=strides, padding='SAME')
    if w.dtype == tf.float32:
        return conv2d(x, w, stride)
    with constant_during_attack():
        weights = tf.split(w, groups, axis=3)
    return tf.concat([tf.nn.conv2d(a, b, strides=strides, padding='SAME')
                      for a, b in zip(tf.split(x, groups, axis=3), weights)], axis=3)


def convolution_on_few_positions(x: tf.Tensor, w: tf.Tensor, stride: int) -> Optional[tf.Tensor]:
    """NHWC convolution, padding SAME, as a matrix product; None where that would not be faster.

    On a few positions the time goes into the weights, which TensorFlow's CPU convolutions reorder at every call.
    """
    kernel, channels_in, channels_out = int(w.shape[0]), int(w.shape[2]), int(w.shape[3])
    height, width = int(x.shape[1]), int(x.shape[2])
    if kernel == 1 and height * width <= FEW_POSITIONS * stride ** 2:
        x, out, meets = x[:, ::stride, ::stride], [-(-height // stride), -(-width // stride)], w
    elif max(height, width) <= stride:
        # One position is left: a linear layer of the whole map and the part of the kernel that meets it. SAME pads
        # kernel - size, the smaller half of it before.
        top, left = [max(0, kernel - size) // 2 for size in (height, width)]
        with constant_during_attack():
            meets, out = w[top:top + height, left:left + width], [1, 1]
    else:
        return None
    with constant_during_attack():
        matrix = tf.reshape(meets, [-1, channels_out])
    product = tf.matmul(tf.reshape(x, [-1, int(meets.shape[0]) * int(meets.shape[1]) * channels_in]), matrix)
    return tf.reshape(product, [-1] + out + [channels_out])


def trains_faster(x: tf.Tensor, w: tf.Tensor, stride: int) -> bool:
    """Whether conv2d is faster than TensorFlow's NHWC convolution with its gradients, where weights change at every step."""
    if in_xla() or has_gpu() or isa() == 'any_cpu' or x.dtype != tf.float32:
        return False
    if any(int(n) % FROZEN_CHANNELS for n in w.shape[2:]):
        return False
    in_tiles = int(w.shape[0]) == 3 and stride == 1
    return not FAST_CONVOLUTION_GRADIENTS or (in_tiles and int(x.shape[1]) * int(x.shape[2]) > TILED_POSITIONS)


def apply_convolution(x: tf.Tensor, w: tf.Tensor, mode: Mode, stride: int = 1) -> tf.Tensor:
    """Convolution, padding SAME. `w` is (height, width, channels in / groups, channels out)."""
    groups = num_channels(x, mode) // int(w.shape[2])
    if mode.data_format == 'NHWC':
        if groups > 1:
            return grouped_convolution(x, w, groups, stride)
        y = convolution_on_few_positions(x, w, stride)
        if y is not None:
            return y
        if mode.training and trains_faster(x, w, stride):
            return conv2d(x, w, stride)
    return tf.nn.conv2d(x, w, strides=spatial([stride, stride], mode), padding='SAME', data_format=mode.data_format)


def embedding(x: tf.Tensor, name: str, channels: int, mode: Mode) -> tf.Tensor:
    """A 1x1 convolution without bias or normalisation."""
    with tf.variable_scope(name):
        w = weight('W', [1, 1, num_channels(x, mode), channels], embedding_initializer())
        with constant_during_attack():
            w = tf.cast(w, mode.dtype)
    return apply_convolution(x, w, mode)


class ConvNormWeights(NamedTuple):
    """Float32 variables: (height, width, channels in / groups, channels out), and four times (channels out,)."""
    w: tf.Tensor
    gamma: tf.Tensor
    beta: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor

    def folded(self, dtype: tf.DType) -> Tuple[tf.Tensor, tf.Tensor]:
        """Weights and bias of the convolution that is this one with BatchNorm in test mode."""
        with constant_during_attack():
            scale = self.gamma * tf.rsqrt(self.variance + BATCH_NORM_EPSILON)
            return tf.cast(self.w * scale, dtype), tf.cast(self.beta - self.mean * scale, dtype)


def conv_norm_weights(name: str, shape: List[int], initial_gamma: float = 1.0) -> ConvNormWeights:
    with tf.variable_scope(name):
        w = weight('W', shape, conv_initializer())
        with tf.variable_scope('bn'):
            gamma = weight('gamma', shape[3:], tf.constant_initializer(initial_gamma))
            beta = weight('beta', shape[3:], tf.zeros_initializer())
            mean = weight('mean/EMA', shape[3:], tf.zeros_initializer(), trainable=False)
            variance = weight('variance/EMA', shape[3:], tf.ones_initializer(), trainable=False)
    return ConvNormWeights(w, gamma, beta, mean, variance)


def folds(mode: Mode) -> bool:
    """Whether BatchNorm is computed as a part of the convolution before it."""
    return not mode.training and mode.dtype != tf.float16


def conv_norm(x: tf.Tensor, name: str, channels: int, kernel: int, mode: Mode, *, stride: int = 1, groups: int = 1,
              initial_gamma: float = 1.0) -> tf.Tensor:
    """Convolution without bias, then BatchNorm.

    Outside of training BatchNorm is an affine map with constant coefficients. It is folded into the convolution's
    weights in float32, which saves a pass over the activations. In float16 it stays apart and in float32, because folded
    weights may leave that dtype's range; bfloat16 has float32's.
    """
    weights = conv_norm_weights(name, [kernel, kernel, num_channels(x, mode) // groups, channels], initial_gamma)
    with tf.name_scope(name):
        if folds(mode):
            w, bias = weights.folded(mode.dtype)
            return tf.nn.bias_add(apply_convolution(x, w, mode, stride), bias, data_format=mode.data_format)
        with constant_during_attack():
            w = tf.cast(weights.w, mode.dtype)
        x = apply_convolution(x, w, mode, stride)
        normalise = dict(epsilon=BATCH_NORM_EPSILON, data_format=mode.data_format)
        if not mode.training:
            return tf.nn.fused_batch_norm(x, *weights[1:], is_training=False, **normalise)[0]
        x, mean, variance = tf.nn.fused_batch_norm(x, weights.gamma, weights.beta, is_training=True, **normalise)
        for tracked, value in (weights.mean, mean), (weights.variance, variance):
            # (1 - momentum) towards the batch; tensorpack runs this collection once per training step
            update = tf.assign_sub(tracked, (1 - BATCH_NORM_MOMENTUM) * (tracked - value))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update.op)
        return x


def linear(x: tf.Tensor, name: str, outputs: int, mode: Mode) -> tf.Tensor:
    with tf.variable_scope(name):
        w = weight('W', [int(x.shape[1]), outputs], tf.random_normal_initializer(stddev=0.01))
        b = weight('b', [outputs], tf.zeros_initializer())
        with constant_during_attack():
            w, b = tf.cast(w, mode.dtype), tf.cast(b, mode.dtype)
        return tf.matmul(x, w) + b


# --- denoising blocks (Section 4) ------------------------------------------------------------------------------------

def as_matrix(x: tf.Tensor, mode: Mode) -> tf.Tensor:
    """Feature map -> (batch, positions, channels), or (batch, channels, positions) in NCHW."""
    positions, c = num_positions(x, mode), num_channels(x, mode)
    return tf.reshape(x, [-1, positions, c] if mode.data_format == 'NHWC' else [-1, c, positions])


def non_local_softmax(x: tf.Tensor, mode: Mode) -> tf.Tensor:
    """Non-local means, embedded Gaussian: y_i = sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(d)) x_j."""
    channels = num_channels(x, mode) // 2
    theta = as_matrix(embedding(x, 'embedding_theta', channels, mode), mode)
    phi = as_matrix(embedding(x, 'embedding_phi', channels, mode), mode)
    matrices = [theta * channels ** -0.5, phi, as_matrix(x, mode)]
    if mode.data_format == 'NCHW':
        matrices = [tf.transpose(m, [0, 2, 1]) for m in matrices]
    y = softmax_attention(*matrices)
    return tf.reshape(tf.transpose(y, [0, 2, 1]) if mode.data_format == 'NCHW' else y, tf.shape(x))


def non_local_dot_product(x: tf.Tensor, mode: Mode) -> tf.Tensor:
    """Non-local means, dot product without embedding: y_i = 1/N sum_j (x_i . x_j) x_j over the N positions.

    The product of the three matrices is associative; the cheaper of its two orders depends on the sizes.
    """
    m, positions = as_matrix(x, mode), num_positions(x, mode)
    m_t = tf.transpose(m, [0, 2, 1]) / positions  # divided before it is summed over: float16 ends at 65504
    # m is (positions, channels) or its transpose: m m^T m either way
    rows = positions if mode.data_format == 'NHWC' else num_channels(x, mode)
    columns = positions * num_channels(x, mode) // rows
    y = tf.matmul(tf.matmul(m, m_t), m) if rows < columns else tf.matmul(m, tf.matmul(m_t, m))
    return tf.reshape(y, tf.shape(x))


def denoising(x: tf.Tensor, name: str, operation: Callable, mode: Mode) -> tf.Tensor:
    """A denoising block: x + BN(conv1x1(operation(x))). Its last gamma starts at 0: at first it is the identity."""
    with tf.variable_scope(name):
        denoised = operation(x, mode)
        denoised.set_shape(x.shape)
        return x + conv_norm(denoised, 'conv', num_channels(x, mode), 1, mode, initial_gamma=0.0)


# --- the network -----------------------------------------------------------------------------------------------------

def bottleneck(x: tf.Tensor, channels: int, stride: int, mode: Mode, *, width: int, groups: int, relu: bool) -> tf.Tensor:
    """1x1, 3x3 (with the stride, in groups), 1x1 convolutions of `width`, `width` and 4 * `channels` channels.

    The block's last ReLU is left to what comes next: with `relu` that of x is computed here.
    """
    channels_in, out = num_channels(x, mode), 4 * channels
    shortcut = channels_in != out or stride != 1
    if folds(mode) and mode.data_format == 'NHWC' and is_faster_frozen(mode.dtype, [channels_in, width, out]):
        # the middle one: on a single position a matrix product; in groups, with a stride or on few positions, as without this
        positions = num_positions(x, mode)
        frozen = positions > 1 if groups == 1 else stride == 1 and positions > FEW_GROUPED_POSITIONS
        return frozen_bottleneck(
            x, frozen_convolution('conv1', [1, 1, channels_in, width], mode),
            frozen_convolution('conv2', [3, 3, width // groups, width], mode, stride=stride, groups=groups,
                               frozen=frozen),
            frozen_convolution('conv3', [1, 1, width, out], mode, initial_gamma=0.0),
            frozen_convolution('convshortcut', [1, 1, channels_in, out], mode, stride=stride) if shortcut else None, relu=relu)
    x = tf.nn.relu(x) if relu else x
    y = tf.nn.relu(conv_norm(x, 'conv1', width, 1, mode))
    y = tf.nn.relu(conv_norm(y, 'conv2', width, 3, mode, stride=stride, groups=groups))
    y = conv_norm(y, 'conv3', out, 1, mode, initial_gamma=0.0)
    return y + (conv_norm(x, 'convshortcut', out, 1, mode, stride=stride) if shortcut else x)


def frozen_convolution(name: str, shape: List[int], mode: Mode, *, stride: int = 1, groups: int = 1, frozen: bool = True,
                       initial_gamma: float = 1.0) -> FrozenConvolution:
    folded = conv_norm_weights(name, shape, initial_gamma).folded(tf.float32)
    with constant_during_attack():
        w, bias = [tf.stop_gradient(t) for t in folded]
    return FrozenConvolution(w, bias, stride, groups, None if frozen else lambda x, w: apply_convolution(x, w, mode, stride))


def stem(x: tf.Tensor, mode: Mode) -> tf.Tensor:
    """7x7/2 convolution with BatchNorm, 3x3/2 max-pooling. The maximum of ReLUs is the ReLU of the maximum, and that
    of fewer positions: it is left to the caller."""
    if folds(mode) and mode.data_format == 'NHWC' and not any(int(n) % 2 for n in x.shape[1:3]):
        return frozen_stem(x, *conv_norm_weights('conv0', [7, 7, num_channels(x, mode), 64]).folded(mode.dtype))
    x = conv_norm(x, 'conv0', 64, 7, mode, stride=2)
    return tf.nn.max_pool(x, spatial([3, 3], mode), spatial([2, 2], mode), 'SAME', data_format=mode.data_format)


def backbone(image: tf.Tensor, num_blocks: List[int], num_classes: int, mode: Mode, *, groups: int = 1,
             width_per_group: int = 64, after_group: Optional[Callable] = None,
             after_block: Optional[Callable] = None) -> tf.Tensor:
    """Stem, four groups of bottlenecks, global average pool, linear layer.

    `image` is (N, H, W, 3) float32 in [-1, 1]; returns logits, (N, num_classes) float32. A denoising operation may
    follow every group (`after_group`) or every residual block (`after_block`).
    """
    x = tf.cast(image, mode.dtype)
    if mode.data_format == 'NCHW':
        x = tf.transpose(x, [0, 3, 1, 2])
    x, relu = stem(x, mode), True  # whether x is before a ReLU
    for g, blocks in enumerate(num_blocks):
        channels = 64 * 2 ** g
        for b in range(blocks):
            with tf.variable_scope('group%d/block%d' % (g, b)):
                x = bottleneck(x, channels, 2 if g > 0 and b == 0 else 1, mode,
                               width=groups * width_per_group * 2 ** g, groups=groups, relu=relu)
                relu = after_block is None
                if after_block is not None:
                    x = denoising(tf.nn.relu(x), 'non_local', after_block, mode)
        if after_group is not None:
            x, relu = denoising(tf.nn.relu(x) if relu else x, 'group%d_denoise' % g, after_group, mode), False
    x = tf.nn.relu(x) if relu else x
    if mode.dtype == tf.bfloat16:  # has no digits to spare, and the last layer costs nothing
        x, mode = tf.cast(x, tf.float32), mode._replace(dtype=tf.float32)
    x = tf.reduce_mean(x, [1, 2] if mode.data_format == 'NHWC' else [2, 3])
    return tf.cast(linear(x, 'linear', num_classes, mode), tf.float32)
