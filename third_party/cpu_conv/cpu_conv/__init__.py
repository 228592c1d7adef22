"""Convolutions on CPUs which TensorFlow lacks there or computes slowly: in groups, and with constant weights."""
import ctypes
import functools
import importlib.util
from typing import Any, Optional

import tensorflow as tf

__all__ = ['FROZEN_CHANNELS', 'frozen_conv', 'frozen_weights', 'grouped_conv2d', 'has_bfloat16', 'isa']

FROZEN_CHANNELS = 32  # in and out, of frozen_conv: multiples of it


def _compiled() -> str:
    spec = importlib.util.find_spec('cpu_conv._ops')
    if spec is None:
        raise ImportError('the compiled ops of cpu_conv are missing: install the package with pip, or run the set-up again')
    return spec.origin


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    return tf.load_op_library(_compiled())


@functools.lru_cache(maxsize=None)
def isa() -> str:
    """What the ops compute with: any_cpu, avx2, avx512 or avx512_bf16; with CPU_CONV_ISA in the environment no more than it."""
    _library()
    name = ctypes.CDLL(_compiled()).cpu_conv_isa
    name.restype = ctypes.c_char_p
    return name().decode()


def has_bfloat16() -> bool:
    """Whether frozen_conv computes in bfloat16 on this CPU."""
    return isa() == 'avx512_bf16'


def grouped_conv2d(x: Any, w: Any, stride: int) -> Any:
    """Convolution in groups, padding SAME.

    Args:
        x: (N, height, width, channels) float32. Its channels are in as many groups as w's third dimension goes into them.
        w: (kernel height, kernel width, channels / groups, channels out) float32; neighbouring outputs form a group.
        stride: in both directions.
    Returns:
        (N, ceil(height / stride), ceil(width / stride), channels out) float32. The same numbers for any number of threads.
        When run it raises InvalidArgumentError where the channels don't divide into groups.
    """
    return _library().grouped_conv2d(x, w, stride=stride)


def _input_gradient(x_shape: Any, w: Any, upstream: Any, stride: int) -> Any:
    return _library().grouped_conv2d_input_gradient(x_shape, w, upstream, stride=stride)


def _filter_gradient(x: Any, w_shape: Any, upstream: Any, stride: int) -> Any:
    return _library().grouped_conv2d_filter_gradient(x, w_shape, upstream, stride=stride)


@tf.RegisterGradient('GroupedConv2D')
def _of_forward(op: Any, upstream: Any) -> Any:
    (x, w), stride = op.inputs, op.get_attr('stride')
    return (_input_gradient(tf.shape(input=x), w, upstream, stride), _filter_gradient(x, tf.shape(input=w), upstream, stride))


# The convolution is linear in x and in w: the gradients of its gradients are the same three operations.
@tf.RegisterGradient('GroupedConv2DInputGradient')
def _of_input_gradient(op: Any, upstream: Any) -> Any:
    (_, w, former), stride = op.inputs, op.get_attr('stride')
    return None, _filter_gradient(upstream, tf.shape(input=w), former, stride), grouped_conv2d(upstream, w, stride)


@tf.RegisterGradient('GroupedConv2DFilterGradient')
def _of_filter_gradient(op: Any, upstream: Any) -> Any:
    (x, _, former), stride = op.inputs, op.get_attr('stride')
    return _input_gradient(tf.shape(input=x), upstream, former, stride), None, grouped_conv2d(x, upstream, stride)


def frozen_weights(w: Any, dtype: Any, *, turned: bool = False) -> Any:
    """Constant weights as frozen_conv takes them.

    Args:
        w: (1, 1, channels in, channels out) or (3, 3, channels in, channels out) float32; multiples of FROZEN_CHANNELS.
        dtype: float32, or bfloat16 where `has_bfloat16()`.
        turned: for the gradient to the inputs of a convolution with w: from `channels out` to `channels in`.
    Returns:
        (1 or 36, channels out / 32, channels in, 32) of `dtype`, in an order of its own; the 3x3 ones transformed for
        Winograd's algorithm. When run it raises InvalidArgumentError for other shapes of w.
    """
    return _library().frozen_weights(w, T=dtype, turned=turned)


def frozen_conv(x: Any, weights: Any, *, relu: bool = False, bias: Optional[Any] = None, addend: Optional[Any] = None,
                relu_addend: bool = False, mask: Optional[Any] = None, stride: int = 1, addend_stride: int = 1) -> Any:
    """Convolution, padding SAME, with constant weights, and what stands around it in a residual block.

    y = convolution of x + bias + addend, where mask > 0, and 0 elsewhere; of relu(x) and with relu(addend) if so said.
    Its gradients reach x and the addend. They are made of TensorFlow's own operations, for derivatives of any order; that to
    x is faster as frozen_conv(gradient of y, turned weights, mask=x), without the mask if not `relu`, and with a stride that
    makes only those rows and columns of it that are not zeros.

    Args:
        x: (N, height, width, channels in), float32 or bfloat16; all others are of that dtype.
        weights: by frozen_weights. bias: (channels out,). mask: like the result.
        addend: like the result; with `addend_stride` of every so-manieth row and column alone. stride: of rows and columns.
            Neither goes with 3x3 weights.
    Returns:
        (N, ceil(height / stride), ceil(width / stride), channels out). An image's result does not depend on the batch that it is in, nor on the number
        of threads. When run it raises InvalidArgumentError where sizes don't fit.
    """
    bias, addend, mask = [tf.zeros([0], x.dtype) if t is None else t for t in (bias, addend, mask)]
    return _library().frozen_conv(x, weights, bias, addend, mask, relu=relu, relu_addend=relu_addend, stride=stride,
                                  addend_stride=addend_stride)


@tf.RegisterGradient('FrozenConv')
def _of_frozen_conv(op: Any, upstream: Any) -> Any:
    x, weights, _, addend, mask = op.inputs
    prepared = weights.op
    while prepared.type != 'FrozenWeights':  # where they come into a loop
        prepared = prepared.inputs[0].op
    w = tf.cast(prepared.inputs[0], x.dtype)
    if prepared.get_attr('turned'):
        w = tf.transpose(w[::-1, ::-1], [0, 1, 3, 2])
    if mask.shape.ndims != 1:
        upstream = _where_positive(mask, upstream)
    stride, step = op.get_attr('stride'), op.get_attr('addend_stride')
    of_x = tf.compat.v1.nn.conv2d_backprop_input(tf.shape(x), w, upstream, [1, stride, stride, 1], 'SAME')
    of_x = _where_positive(x, of_x) if op.get_attr('relu') else of_x
    of_addend = None
    if addend.shape.ndims != 1:
        of_addend = upstream[:, ::step, ::step]
        of_addend = _where_positive(addend, of_addend) if op.get_attr('relu_addend') else of_addend
    return of_x, None, None, of_addend, None


def _where_positive(gate: Any, value: Any) -> Any:
    return value * tf.cast(gate > 0, value.dtype)
