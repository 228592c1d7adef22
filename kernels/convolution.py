"""Which kernel computes a convolution: TensorFlow's, a matrix product, or this project's ops for CPUs (cpu_conv)."""
from typing import Optional

from runtime.compat import FAST_CONVOLUTION_GRADIENTS, tf

from cpu_conv import conv2d, isa, takes

from kernels.mode import Mode, computes_on_cpu, constant_during_attack, num_channels, pad_positions, spatial
from runtime.hardware import has_gpu

FEW_POSITIONS = 16  # up to which a CPU is faster with a matrix product than with a convolution
TILED_POSITIONS = 64  # above which Winograd's algorithm pays where weights are used once: preparing them takes time too


def instruction_set() -> str:
    """Return what convolutions are computed by: 'gpu', or the instructions of the CPU that the ops use."""
    return 'gpu' if has_gpu() else isa()


def convolution(x: tf.Tensor, w: tf.Tensor, mode: Mode, stride: int = 1, *, symmetric: bool = False) -> tf.Tensor:
    """Convolve a feature map, padding SAME, or alike on all sides, which with a stride is not the same.

    Args:
        x: (N, H, W, C), or in NCHW (N, C, H, W); H, W and C must be known. w: (kernel height, kernel width, C / groups,
            channels out) of the same dtype. stride: in both directions. symmetric: pad half a kernel on each side.
    Returns:
        (N, ceil(H / stride), ceil(W / stride), channels out), in the mode's layout.
    """
    groups, padding = num_channels(x, mode) // int(w.shape[2]), 'SAME'
    if mode.data_format == 'NHWC' and groups == 1 and not mode.plain:
        y = convolution_on_few_positions(x, w, stride, symmetric=symmetric)
        if y is not None:
            return y
    if symmetric and stride > 1 and int(w.shape[0]) > 1:
        x, padding = pad_positions(x, int(w.shape[0]) // 2, mode), 'VALID'
    if mode.data_format == 'NHWC' and groups > 1:
        return grouped_convolution(x, w, groups, stride, padding=padding, plain=mode.plain)
    if mode.training and not mode.plain and padding == 'SAME' and mode.data_format == 'NHWC' and \
            trains_faster(x, w, stride):
        return conv2d(x, w, stride)
    return tf.nn.conv2d(x, w, strides=spatial([stride, stride], mode), padding=padding, data_format=mode.data_format)


def grouped_convolution(x: tf.Tensor, w: tf.Tensor, groups: int, stride: int, *, padding: str = 'SAME',
                        plain: bool = False) -> tf.Tensor:
    """Convolve NHWC features in groups.

    TensorFlow's kernels for CPUs have no gradient of it: there cpu_conv computes it where it can and `plain` is False,
    and else it is done group by group.
    """
    strides = [1, stride, stride, 1]
    if not computes_on_cpu():
        return tf.nn.conv2d(x, w, strides=strides, padding=padding)
    if not plain and padding == 'SAME' and takes(x, w, stride):
        return conv2d(x, w, stride)
    with constant_during_attack():
        weights = tf.split(w, groups, axis=3)
    return tf.concat([tf.nn.conv2d(a, b, strides=strides, padding=padding)
                      for a, b in zip(tf.split(x, groups, axis=3), weights)], axis=3)


def convolution_on_few_positions(x: tf.Tensor, w: tf.Tensor, stride: int, *,
                                 symmetric: bool = False) -> Optional[tf.Tensor]:
    """Convolve NHWC features, padded as above, by a matrix product; None where that would not be faster.

    On a few positions the time goes into the weights, which TensorFlow's CPU convolutions reorder at every call.
    """
    kernel, channels_in, channels_out = int(w.shape[0]), int(w.shape[2]), int(w.shape[3])
    height, width = int(x.shape[1]), int(x.shape[2])
    if kernel == 1 and height * width <= FEW_POSITIONS * stride ** 2:
        x, out, used = x[:, ::stride, ::stride], [-(-height // stride), -(-width // stride)], w
    elif max(height, width) <= stride:
        # One position is left: a linear layer of the whole map and the part of the kernel that lies on it. SAME pads
        # kernel - size, the smaller half of it before.
        top, left = [kernel // 2 if symmetric else max(0, kernel - size) // 2 for size in (height, width)]
        with constant_during_attack():
            used, out = w[top:top + height, left:left + width], [1, 1]
    else:
        return None
    with constant_during_attack():
        matrix = tf.reshape(used, [-1, channels_out])
    product = tf.matmul(tf.reshape(x, [-1, int(used.shape[0]) * int(used.shape[1]) * channels_in]), matrix)
    return tf.reshape(product, [-1] + out + [channels_out])


def trains_faster(x: tf.Tensor, w: tf.Tensor, stride: int) -> bool:
    """Tell whether conv2d with its gradients is faster than TensorFlow's convolution of NHWC features, where weights
    change at every step."""
    if not computes_on_cpu() or isa() == 'any_cpu' or not takes(x, w, stride):
        return False
    in_tiles = int(w.shape[0]) == 3 and stride == 1
    return not FAST_CONVOLUTION_GRADIENTS or (in_tiles and int(x.shape[1]) * int(x.shape[2]) > TILED_POSITIONS)
