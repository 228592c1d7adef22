"""A network's parts for CPUs while its weights are constant, as during an attack: the same up to rounding, but faster.

NHWC features; BatchNorm is folded into the weights. Gradients reach the features alone.
"""
from typing import Callable, List, NamedTuple, Optional, Tuple

from compat import has_gpu, in_xla, max_pool_gradient, tf
from cpu_conv import FROZEN_CHANNELS, frozen_conv, frozen_weights, has_bfloat16, isa
from distributed import cpu_flags


def constant_during_attack():
    """A scope for what depends on weights alone, which are constant while a batch is attacked.

    It puts the operations outside of the attack's `while_loop` (and of an XLA cluster), where they run once per attack
    instead of once per step. Variables are created here too: inside of a loop they could not be initialised.
    """
    return tf.control_dependencies(None)


def space_to_channels(w: tf.Tensor) -> tf.Tensor:
    """Of a stride-2 7x7 convolution's weights: those of the stride-1 4x4 one that makes the gradient of its input.

    (7, 7, c, out) -> (4, 4, out, 4 c), whose output holds the 2x2 input pixels of a position in its channels. An input
    pixel 2p + a meets the output i by the tap k = 2 (p - i) + a + 2: four of them for a = 0, three and a zero for a = 1.
    """
    channels, out = int(w.shape[2]), int(w.shape[3])
    taps = tf.reshape(tf.pad(w, [[0, 1], [0, 1], [0, 0], [0, 0]]), [4, 2, 4, 2, channels, out])
    taps = tf.transpose(tf.reverse(taps, [0, 2]), [0, 2, 5, 1, 3, 4])
    return tf.reshape(taps, [4, 4, out, 4 * channels])


def frozen_stem(x: tf.Tensor, w: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """NHWC 7x7/2 convolution with a bias, and max-pooling, with a gradient of the image alone that is fast on CPUs.

    Height and width must be even. The convolutions of CPUs are three times slower than need be where few channels come
    out, as with the three of an image's gradient; here all four pixels under a stride are channels of one position.
    """
    with constant_during_attack():
        backwards = space_to_channels(w)

    @tf.custom_gradient
    def stem(image: tf.Tensor, forwards: tf.Tensor, bias: tf.Tensor, backwards: tf.Tensor):
        features = tf.nn.bias_add(tf.nn.conv2d(image, forwards, strides=[1, 2, 2, 1], padding='SAME'), bias)
        pooled = tf.nn.max_pool(features, [1, 3, 3, 1], [1, 2, 2, 1], 'SAME')

        def gradient(upstream: tf.Tensor):
            of_features = max_pool_gradient(features, pooled, upstream)
            of_features = tf.pad(of_features, [[0, 0], [2, 1], [2, 1], [0, 0]])
            of_image = tf.nn.conv2d(of_features, backwards, strides=[1] * 4, padding='VALID')
            return tf.depth_to_space(of_image, 2), None, None, None
        return pooled, gradient
    return stem(x, w, bias, backwards)


# --- the bottleneck --------------------------------------------------------------------------------------------------

class FrozenConvolution(NamedTuple):
    """A convolution with BatchNorm folded into it: float32 weights (height, width, channels in / groups, channels out), bias."""
    w: tf.Tensor
    bias: tf.Tensor
    stride: int = 1
    groups: int = 1
    otherwise: Optional[Callable] = None  # features, weights -> features: instead of frozen_conv, where there is another way

    def apply(self, x: tf.Tensor, *, relu: bool, **sum_with) -> Tuple[tf.Tensor, Callable]:
        """Of x, or of its ReLU, plus frozen_conv's `addend`; and the function that makes the gradient to x of the result's.

        That function can add something to the gradient to the ReLU (`addend`) or leave its own gradient out (`to_relu`).
        With a stride a 1x1 convolution's makes the rows and columns that are met alone.
        """
        if self.otherwise is not None:
            assert not sum_with, 'only frozen_conv adds something'
            return self.apply_otherwise(x, relu)
        is_3x3 = int(self.w.shape[0]) == 3
        kind = dict(stride=self.stride if is_3x3 else 1, groups=self.groups)
        with constant_during_attack():
            weights, bias = frozen_weights(self.w, x.dtype, **kind), tf.cast(self.bias, x.dtype)

        def gradient(upstream: tf.Tensor, to_relu: bool = False, **sum_with) -> tf.Tensor:
            with constant_during_attack():
                turned = frozen_weights(self.w, upstream.dtype, turned=True, **kind)
            if kind['stride'] > 1:
                sum_with = dict(sum_with, stride=self.stride, like=x)
            return frozen_conv(upstream, turned, mask=x if relu and not to_relu else None, **sum_with)
        return frozen_conv(x, weights, relu=relu, bias=bias, stride=self.stride, **sum_with), gradient

    def apply_otherwise(self, x: tf.Tensor, relu: bool) -> Tuple[tf.Tensor, Callable]:
        with constant_during_attack():
            w, bias = tf.cast(self.w, x.dtype), tf.cast(self.bias, x.dtype)
        rectified = tf.nn.relu(x) if relu else x
        y = tf.nn.bias_add(self.otherwise(rectified, w), bias)
        return y, lambda upstream: tf.gradients(y, x, upstream)[0]


def is_faster_frozen(dtype: tf.DType, channels: List[int]) -> bool:
    """Whether frozen_bottleneck computes a block with these numbers of channels, and is the faster way."""
    if in_xla() or has_gpu() or any(c % FROZEN_CHANNELS for c in channels):
        return False
    if dtype == tf.bfloat16:  # of matrix units TensorFlow's own convolutions make use
        return has_bfloat16() and 'amx_bf16' not in cpu_flags()
    return dtype == tf.float32 and isa() != 'any_cpu'


def frozen_bottleneck(x: tf.Tensor, conv1: FrozenConvolution, conv2: FrozenConvolution, conv3: FrozenConvolution,
                      shortcut: Optional[FrozenConvolution], *, relu: bool) -> tf.Tensor:
    """conv3(relu(conv2(relu(conv1(relu(x)))))) + shortcut(relu(x)); without a shortcut + relu(x). `relu`: of x, or x as it is.

    ReLUs, sums and their gradients are computed where the convolutions read and write, and only what is before a ReLU is
    kept for the gradient: beside the convolutions a block's time goes into moving features.
    """
    @tf.custom_gradient
    def block(x: tf.Tensor):
        a, of_x = conv1.apply(x, relu=relu)
        b, of_a = conv2.apply(a, relu=True)
        other, of_other = (x, None) if shortcut is None else shortcut.apply(x, relu=relu)
        y, of_b = conv3.apply(b, relu=True, addend=other, relu_addend=relu and shortcut is None)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            other_way = upstream if shortcut is None else of_other(upstream, to_relu=True)
            return of_x(of_a(of_b(upstream)), addend=other_way, addend_stride=1 if shortcut is None else shortcut.stride)
        return y, gradient
    return block(x)
