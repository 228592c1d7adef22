"""A network's parts for CPUs while its weights are constant, as during an attack: the same up to rounding, but faster.

NHWC features; BatchNorm is folded into the weights. Gradients reach the features alone.
"""
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Tuple

from runtime.compat import max_pool_gradient, tf

from cpu_conv import (
    FEW_GROUPED_POSITIONS,
    FROZEN_CHANNELS,
    Addend,
    frozen_conv,
    frozen_conv_gradient,
    frozen_weights,
    has_bfloat16,
    isa,
)

from kernels.convolution import convolution
from kernels.mode import Mode, computes_on_cpu, constant_during_attack, num_positions
from runtime.hardware import cpu_flags

# --- the stem --------------------------------------------------------------------------------------------------------


def has_fast_stem(x: tf.Tensor, mode: Mode) -> bool:
    """Tell whether `fast_stem` computes the stem on images of this size."""
    return mode.folds_batch_norm and mode.data_format == 'NHWC' and not any(int(n) % 2 for n in x.shape[1:3])


def space_to_channels(w: tf.Tensor) -> tf.Tensor:
    """Return the weights of the stride-1 4x4 convolution that makes the gradient of a stride-2 7x7 one's input.

    (7, 7, c, out) -> (4, 4, out, 4 c), whose output holds the 2x2 input pixels of a position in its channels. An input
    pixel 2p + a reaches the output i by the tap k = 2 (p - i) + a + 2: four of them for a = 0, three and a zero for a =
    1.
    """
    channels, out = int(w.shape[2]), int(w.shape[3])
    taps = tf.reshape(tf.pad(w, [[0, 1], [0, 1], [0, 0], [0, 0]]), [4, 2, 4, 2, channels, out])
    taps = tf.transpose(tf.reverse(taps, [0, 2]), [0, 2, 5, 1, 3, 4])
    return tf.reshape(taps, [4, 4, out, 4 * channels])


def fast_stem(x: tf.Tensor, w: tf.Tensor, bias: tf.Tensor, *, symmetric: bool = False) -> tf.Tensor:
    """Convolve NHWC images by 7x7/2 weights, add the bias, max-pool 3x3/2; the gradient is fast on CPUs and the image's
    alone.

    Height and width must be even. The convolutions of CPUs are three times slower than need be where few channels come
    out, as with the three of an image's gradient; here all four pixels under a stride are channels of one position.

    symmetric: pad alike on all sides. Of an even size SAME pads 2 rows before the image and 3 after it. With 3 and 1
    rows of zeros more the convolution makes what symmetric padding makes, and a row of features on each side of it:
    there the bias is so low that the maximum never takes them, which is how a symmetric pooling is padded.
    """
    with constant_during_attack():
        backwards = space_to_channels(w)
        if symmetric:
            bias = tf.pad(tf.zeros([int(n) // 2 for n in x.shape[1:3]], w.dtype)[:, :, None] + bias,
                          [[1, 1], [1, 1], [0, 0]], constant_values=w.dtype.min)
    padding = 'VALID' if symmetric else 'SAME'

    @tf.custom_gradient
    def stem(image: tf.Tensor, forwards: tf.Tensor, bias: tf.Tensor,
             backwards: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        features = tf.nn.conv2d(image, forwards, strides=[1, 2, 2, 1], padding='SAME')
        features = features + bias if symmetric else tf.nn.bias_add(features, bias)
        pooled = tf.nn.max_pool(features, [1, 3, 3, 1], [1, 2, 2, 1], padding)

        def gradient(upstream: tf.Tensor) -> Tuple[Optional[tf.Tensor], ...]:
            d_features = max_pool_gradient(features, pooled, upstream, padding)
            d_features = tf.pad(d_features, [[0, 0], [2, 1], [2, 1], [0, 0]])
            d_image = tf.nn.conv2d(d_features, backwards, strides=[1] * 4, padding='VALID')
            return tf.depth_to_space(d_image, 2), None, None, None
        return pooled, gradient
    if symmetric:
        x = tf.pad(x, [[0, 0], [3, 1], [3, 1], [0, 0]])
    return stem(x, w, bias, backwards)


# --- the bottleneck --------------------------------------------------------------------------------------------------

class FoldedConvolution(NamedTuple):
    """A convolution with the BatchNorm after it as a part of it: constants of float32."""
    w: tf.Tensor  # (height, width, channels in / groups, channels out)
    bias: tf.Tensor
    stride: int = 1
    symmetric: bool = False  # padded alike on all sides, not SAME


class Bottleneck(NamedTuple):
    """The layers of a residual block, of any one kind. Without a shortcut its input is added as it is."""
    conv1: Any
    conv2: Any
    conv3: Any
    shortcut: Optional[Any] = None


class Fused(NamedTuple):
    """A layer of a fused block: features before their ReLU, and what makes the gradient to its input."""
    features: tf.Tensor
    gradient: Callable[..., tf.Tensor]


def is_fused(block: Bottleneck, mode: Mode) -> bool:
    """Tell whether `fused_bottleneck` computes a block of layers with weights `w`, and is the faster way here."""
    return uses_frozen([block.conv1.w.shape[2], block.conv2.w.shape[3], block.conv3.w.shape[3]], mode)


def uses_frozen(channels: Iterable[Any], mode: Mode) -> bool:
    """Tell whether frozen_conv computes convolutions from and to so many channels, and is the faster way here."""
    if not mode.folds_batch_norm or mode.data_format != 'NHWC' or not computes_on_cpu():
        return False
    if any(int(n) % FROZEN_CHANNELS for n in channels):
        return False
    if mode.dtype == tf.bfloat16:  # TensorFlow's own convolutions make use of matrix units
        return has_bfloat16() and 'amx_bf16' not in cpu_flags()
    return mode.dtype == tf.float32 and isa() != 'any_cpu'


def fused_bottleneck(x: tf.Tensor, block: Bottleneck, mode: Mode, *, relu: bool) -> tf.Tensor:
    """Compute conv3(relu(conv2(relu(conv1(relu(x)))))) + shortcut(relu(x)), without a shortcut + relu(x).

    ReLUs, sums and their gradients are computed where the convolutions read and write, and only what is before a ReLU
    is kept for the gradient: beside the convolutions a block's time goes into moving features.

    Args:
        x: (N, H, W, channels in). block: of FoldedConvolution. relu: whether x is still before its ReLU.
    Returns:
        (N, ceil(H / stride), ceil(W / stride), channels out), before its ReLU. Its gradient reaches x alone.
    """
    with constant_during_attack():  # TensorFlow follows whatever a custom gradient depends on back to variables
        conv1, conv2, conv3 = [constant(layer) for layer in block[:3]]
        shortcut = None if block.shortcut is None else constant(block.shortcut)
    # on a single position a matrix product is as fast; so is what there is in groups with a stride or on few positions
    groups, positions = int(conv1.w.shape[3]) // int(conv2.w.shape[2]), num_positions(x, mode)
    is_faster = positions > 1 if groups == 1 else conv2.stride == 1 and positions > FEW_GROUPED_POSITIONS

    @tf.custom_gradient
    def compute(x: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        a = fused(x, conv1, relu=relu)
        b = fused(a.features, conv2, relu=True) if is_faster else unfused(a.features, conv2, mode, relu=True)
        other = None if shortcut is None else fused(x, shortcut, relu=relu)
        c = fused(b.features, conv3, relu=True,
                  addend=Addend(x, relu=relu) if other is None else Addend(other.features))

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            other_way = Addend(upstream) if other is None or shortcut is None else \
                Addend(other.gradient(upstream, to_relu=True), stride=shortcut.stride)
            return a.gradient(b.gradient(c.gradient(upstream)), addend=other_way)
        return c.features, gradient
    return compute(x)


def fused_denoising(x: tf.Tensor, operation: Callable[..., tf.Tensor], embeddings: List[FoldedConvolution],
                    conv: FoldedConvolution, *, relu: bool, residual: bool) -> tf.Tensor:
    """Compute conv(operation(embeddings of relu(x), ..., relu(x))), and with `residual` + relu(x).

    The sum, and of the gradient the sums over embeddings and the last ReLU, are computed where 1x1 convolutions read
    and write.

    Args:
        x: (N, H, W, channels). operation: a function of feature maps without variables, with TensorFlow's gradient.
        embeddings, conv: 1x1 convolutions. relu: whether x is still before its ReLU.
    Returns:
        (N, H, W, channels). Its gradient reaches x alone.
    """
    with constant_during_attack():  # as above
        conv, embeddings = constant(conv), [constant(layer) for layer in embeddings]

    @tf.custom_gradient
    def compute(x: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        features = tf.nn.relu(x) if relu else x
        embedded = [fused(x, layer, relu=relu) for layer in embeddings]
        # each by itself: the way from the features by the embeddings is not the operation's
        inputs = [tf.identity(t) for t in [e.features for e in embedded] + [features]]
        denoised = operation(*inputs)
        denoised.set_shape(x.shape)
        c = fused(denoised, conv, relu=False, addend=Addend(features) if residual else None)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            gradients = tf.gradients(denoised, inputs, c.gradient(upstream))
            total = gradients.pop() + upstream if residual else gradients.pop()
            for i, (embedding, d) in enumerate(zip(embedded, gradients)):
                total = embedding.gradient(d, to_relu=i < len(embedded) - 1, addend=Addend(total))
            return tf.gradients(features, x, total)[0] if relu and not embedded else total
        return c.features, gradient
    return compute(x)


def constant(layer: FoldedConvolution) -> FoldedConvolution:
    return layer._replace(w=tf.stop_gradient(layer.w), bias=tf.stop_gradient(layer.bias))


def fused(x: tf.Tensor, layer: FoldedConvolution, *, relu: bool, addend: Optional[Addend] = None) -> Fused:
    """Convolve x, or its ReLU, and add something, by frozen_conv.

    The gradient's function can add something to the gradient to the ReLU (`addend`) or leave the ReLU's own gradient
    out (`to_relu`). With a stride that of a 1x1 convolution makes only the rows and columns that are used.
    """
    is_3x3 = int(layer.w.shape[0]) == 3
    kind = dict(stride=layer.stride if is_3x3 else 1, groups=int(x.shape[3]) // int(layer.w.shape[2]))
    how = dict(stride=layer.stride, symmetric=layer.symmetric)
    with constant_during_attack():
        weights, bias = frozen_weights(layer.w, x.dtype, **kind), tf.cast(layer.bias, x.dtype)

    def gradient(upstream: tf.Tensor, to_relu: bool = False, addend: Optional[Addend] = None) -> tf.Tensor:
        with constant_during_attack():
            turned = frozen_weights(layer.w, upstream.dtype, turned=True, **kind)
        if kind['stride'] > 1:
            return frozen_conv_gradient(upstream, turned, x, relu=relu and not to_relu, addend=addend, **how)
        return frozen_conv(upstream, turned, mask=x if relu and not to_relu else None, addend=addend)
    return Fused(frozen_conv(x, weights, relu=relu, bias=bias, addend=addend, **how), gradient)


def unfused(x: tf.Tensor, layer: FoldedConvolution, mode: Mode, *, relu: bool) -> Fused:
    """Convolve x, or its ReLU, by the kernel that `convolution` chooses."""
    with constant_during_attack():
        w, bias = tf.cast(layer.w, x.dtype), tf.cast(layer.bias, x.dtype)
    x_of_conv = tf.nn.relu(x) if relu else x
    y = tf.nn.bias_add(convolution(x_of_conv, w, mode, layer.stride, symmetric=layer.symmetric), bias)
    return Fused(y, lambda upstream: tf.gradients(y, x, upstream)[0])
