"""What TensorFlow computes slowly on CPUs: convolutions, with constant weights and trained, and a median filter."""
import ctypes
import functools
import importlib.util
from typing import Any, NamedTuple, Optional

import tensorflow as tf

__all__ = ['FEW_GROUPED_POSITIONS', 'FROZEN_CHANNELS', 'Addend', 'conv2d', 'frozen_conv', 'frozen_conv_gradient',
           'frozen_weights', 'has_bfloat16', 'isa', 'median_of_neighbours', 'takes']

FROZEN_CHANNELS = 32  # in and out, of frozen_conv: multiples of it
# Positions of a map up to which preparing the weights would take longer than Winograd's algorithm saves
FEW_GROUPED_POSITIONS = 16


def _compiled() -> str:
    spec = importlib.util.find_spec('cpu_conv._ops')
    if spec is None or spec.origin is None:
        raise ImportError('the compiled ops of cpu_conv are missing: install the package with pip, or run the set-up '
                          'again')
    return spec.origin


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    return tf.load_op_library(_compiled())


@functools.lru_cache(maxsize=None)
def isa() -> str:
    """Return what the ops compute with: any_cpu, avx2, avx512 or avx512_bf16.

    With CPU_CONV_ISA, one of the first three, in the environment it is no more than that: for tests.
    """
    _library()
    name = ctypes.CDLL(_compiled()).cpu_conv_isa
    name.restype = ctypes.c_char_p
    return name().decode()


def has_bfloat16() -> bool:
    """Tell whether frozen_conv computes in bfloat16 on this CPU."""
    return isa() == 'avx512_bf16'


# --- convolutions that are trained -----------------------------------------------------------------------------------
# A convolution is linear in x and in w: the gradients of its gradients are the same three operations.

def conv2d(x: Any, w: Any, stride: int) -> Any:
    """Convolve, in groups or not, padding SAME. Its derivatives, of any order, are computed alike.

    By this package's ops where `takes` says so: 1x1 or 3x3 in float32, by and large. Elsewhere by TensorFlow, group by
    group, since its kernels for CPUs have no gradient of a convolution in groups.

    Args:
        x: (N, height, width, channels) of a float dtype; the number of channels must be known. They are in as many
            groups as w's third dimension goes into them.
        w: (kernel height, kernel width, channels / groups, channels out), of known shape; neighbouring outputs form a
            group.
        stride: in both directions.
    Returns:
        (N, ceil(height / stride), ceil(width / stride), channels out). By the ops the same numbers for any number of
        threads. What is not a number in one of several narrow groups may spread to others.
    Raises:
        ValueError: a shape is not known, or the channels don't divide into groups.
    """
    _check_groups(x, w)

    @tf.custom_gradient
    def convolution(x: Any, w: Any) -> Any:
        return _forward(x, w, stride), lambda upstream: (_input_gradient(x, w, upstream, stride),
                                                         _filter_gradient(x, w, upstream, stride))
    return convolution(x, w)


# Whatever these depend on must be an argument of the inner function: TensorFlow follows everything else back to
# variables.

def _input_gradient(x: Any, w: Any, upstream: Any, stride: int) -> Any:
    """Return the gradient to x, of which only the shape matters."""
    @tf.custom_gradient
    def to_x(x: Any, w: Any, upstream: Any) -> Any:
        return _to_input(x, w, upstream, stride), lambda second: (None, _filter_gradient(second, w, upstream, stride),
                                                                  conv2d(second, w, stride))
    return to_x(x, w, upstream)


def _filter_gradient(x: Any, w: Any, upstream: Any, stride: int) -> Any:
    """Return the gradient to w, of which only the shape matters."""
    @tf.custom_gradient
    def to_w(x: Any, w: Any, upstream: Any) -> Any:
        return _to_filter(x, w, upstream, stride), lambda second: (_input_gradient(x, second, upstream, stride), None,
                                                                   conv2d(x, second, stride))
    return to_w(x, w, upstream)


def _check_groups(x: Any, w: Any) -> None:
    if x.shape.ndims != 4 or w.shape.ndims != 4 or None in w.shape.as_list() + x.shape[3:].as_list():
        raise ValueError('x and w have four dimensions, and all but those of images are known; not %s and %s'
                         % (x.shape, w.shape))
    (_, _, of_group, channels_out), channels = w.shape.as_list(), int(x.shape[3])
    if 0 in [channels] + w.shape.as_list() or channels % of_group or channels_out % (channels // of_group):
        raise ValueError('channels don\'t divide into groups, or something is empty: x %s, w %s' % (x.shape, w.shape))


def takes(x: Any, w: Any, stride: int) -> bool:
    """Tell whether the ops compute a convolution, rather than TensorFlow."""
    (height, width, of_group, channels_out), channels = w.shape.as_list(), int(x.shape[3])
    if x.dtype != tf.float32 or height != width or height not in (1, 3) or stride > 3:
        return False
    if channels % FROZEN_CHANNELS or channels_out % FROZEN_CHANNELS:
        return False
    if of_group == channels:
        return True
    rows, columns = x.shape[1:3].as_list()
    if isa() == 'any_cpu' or (rows and columns and rows * columns <= FEW_GROUPED_POSITIONS):
        return False
    return (height == 3 and stride == 1 and channels_out == channels and
            (of_group % FROZEN_CHANNELS == 0 or of_group in (2, 4, 8, 16)))


def _by_group(compute: Any, groups: int, inputs: Any, axis: int) -> Any:
    """Apply `compute` to each group's part of `inputs`, which are cut along their last axis, and join along `axis`."""
    if groups == 1:
        return compute(*inputs)
    parts = zip(*[tf.split(t, groups, axis=3) for t in inputs])
    return tf.concat([compute(*of_group) for of_group in parts], axis=axis)


def _forward(x: Any, w: Any, stride: int) -> Any:
    groups, strides = int(x.shape[3]) // int(w.shape[2]), [1, stride, stride, 1]
    if takes(x, w, stride):
        return frozen_conv(x, frozen_weights(w, tf.float32, stride=stride, groups=groups), stride=stride)
    return _by_group(lambda x, w: tf.nn.conv2d(x, w, strides=strides, padding='SAME'), groups, [x, w], axis=3)


def _to_input(x: Any, w: Any, upstream: Any, stride: int) -> Any:
    groups, strides = int(x.shape[3]) // int(w.shape[2]), [1, stride, stride, 1]
    if takes(x, w, stride):
        turned = frozen_weights(w, tf.float32, stride=stride, groups=groups, turned=True)
        return frozen_conv_gradient(upstream, turned, x, stride=stride)
    shape = tf.concat([tf.shape(input=x)[:3], [int(w.shape[2])]], axis=0)
    return _by_group(lambda w, upstream: tf.compat.v1.nn.conv2d_backprop_input(shape, w, upstream, strides, 'SAME'),
                     groups, [w, upstream], axis=3)


def _to_filter(x: Any, w: Any, upstream: Any, stride: int) -> Any:
    kernel, groups, strides = w.shape.as_list(), int(x.shape[3]) // int(w.shape[2]), [1, stride, stride, 1]
    # for narrow groups the zeros between them would cost more than Winograd's algorithm saves
    if takes(x, w, stride) and kernel[2] >= FROZEN_CHANNELS:
        return _library().conv_filter_gradient(x, tf.shape(input=w), upstream, stride=stride)
    shape = kernel[:3] + [kernel[3] // groups]
    return _by_group(lambda x, upstream: tf.compat.v1.nn.conv2d_backprop_filter(x, shape, upstream, strides, 'SAME'),
                     groups, [x, upstream], axis=3)


# --- convolutions with constant weights ------------------------------------------------------------------------------

def frozen_weights(w: Any, dtype: Any, *, turned: bool = False, stride: int = 1, groups: int = 1) -> Any:
    """Prepare weights as frozen_conv takes them.

    Args:
        w: (1, 1, channels in, channels out) or (3, 3, channels in / groups, channels out) float32; channels in and out
            are multiples of FROZEN_CHANNELS, and those of a group, 3x3 of stride 1, that too or 2, 4, 8 or 16.
        dtype: float32, or bfloat16 where `has_bfloat16()`.
        turned: for the gradient to the inputs of a convolution with w: from `channels out` to `channels in`.
        stride: of the 3x3 convolution, at most 3; of stride 1 it is computed by Winograd's algorithm.
    Returns:
        (1 or 36, channels out / 32, weights of a channel, 32) of `dtype`, in an order of its own. When run it raises
        InvalidArgumentError for other shapes of w.
    """
    return _library().frozen_weights(w, T=dtype, turned=turned, stride=stride, groups=groups)


class Addend(NamedTuple):
    """What is added to a convolution's result: a tensor like it, or with `relu` its ReLU. With a stride the tensor has
    every stride-th row and column alone; 3x3 convolutions of stride 1 don't take that."""
    tensor: Any
    relu: bool = False
    stride: int = 1


def frozen_conv(x: Any, weights: Any, *, stride: int = 1, relu: bool = False, bias: Optional[Any] = None,
                addend: Optional[Addend] = None, mask: Optional[Any] = None, symmetric: bool = False) -> Any:
    """Convolve, padding SAME, with constant weights, together with what stands around it in a residual block.

    y = convolution of x + bias + addend where mask > 0, and 0 elsewhere. With `relu` it is the convolution of relu(x).
    The gradients that TensorFlow asks for reach x and the addend, and have derivatives of any order; they are computed
    by TensorFlow or conv2d. Whoever needs speed computes the gradient to x as

        frozen_conv(gradient of y, turned weights, mask=x if relu else None),

    or, 3x3 with a stride, by frozen_conv_gradient. Of 1x1 with a stride this makes the gradient in those rows and
    columns alone that were read.

    Args:
        x: (N, height, width, channels in), float32 or bfloat16; all others are of that dtype.
        weights: by frozen_weights. bias: (channels out,). mask: like the result.
        stride: of rows and columns; 3x3 weights have been prepared for it. symmetric: pad alike on all sides.
    Returns:
        (N, ceil(height / stride), ceil(width / stride), channels out). An image's result does not depend on the batch
        that it is in, nor on the number of threads. When run it raises InvalidArgumentError where sizes don't fit.
    Raises:
        ValueError: the weights were prepared for something else.
    """
    _check_weights(weights, x, stride, turned=False)
    return _run(x, weights, bias, addend, mask, relu=relu, stride=stride, masked=mask is not None, turned=False,
                symmetric=symmetric)


def frozen_conv_gradient(upstream: Any, weights: Any, x: Any, *, stride: int, relu: bool = False,
                         addend: Optional[Addend] = None, symmetric: bool = False) -> Any:
    """Compute the gradient to the inputs of frozen_conv with a stride.

    Args:
        upstream: the gradient to its result. weights: by frozen_weights, turned. x: its input; without `relu` only the
            shape matters. stride, relu, symmetric: its. addend: added to the gradient, before the ReLU's own.
    Returns:
        (N, height, width, channels in) like x. Raises as frozen_conv.
    """
    _check_weights(weights, upstream, stride, turned=True)
    return _run(upstream, weights, None, addend, x, relu=False, stride=stride, masked=relu, turned=True,
                symmetric=symmetric)


def _run(x: Any, weights: Any, bias: Optional[Any], addend: Optional[Addend], gate: Optional[Any], **how: Any) -> Any:
    added = addend or Addend(None)
    bias, tensor, gate = [tf.zeros([0], x.dtype) if t is None else t for t in (bias, added.tensor, gate)]
    return _library().frozen_conv(x, weights, bias, tensor, gate, relu_addend=added.relu, addend_stride=added.stride,
                                  **how)


def _preparation(weights: Any) -> Any:
    op = weights.op
    while op.type != 'FrozenWeights':  # where they come into a loop
        op = op.inputs[0].op
    return op


def _check_weights(weights: Any, x: Any, stride: int, turned: bool) -> None:
    op = _preparation(weights)
    (kernel, _, channels_in, channels_out), prepared = op.inputs[0].shape.as_list(), op.get_attr('stride')
    backwards = op.get_attr('turned')
    if kernel == 3 and prepared != stride:
        raise ValueError('the weights are prepared for a stride of %d, not %d' % (prepared, stride))
    if (turned and not backwards) or (kernel == 3 and stride > 1 and backwards and not turned):
        raise ValueError('turned weights, and only these, are for the gradient of a convolution with a stride')
    expected = channels_out if backwards else channels_in and channels_in * op.get_attr('groups')
    if None not in (expected, x.shape[3:].as_list()[0]) and int(x.shape[3]) != expected:
        raise ValueError('weights of %d channels are not of a convolution of x with %d' % (expected, int(x.shape[3])))


@tf.RegisterGradient('FrozenConv')
def _of_frozen_conv(op: Any, upstream: Any) -> Any:
    x, weights, _, addend, mask = op.inputs
    prepared = _preparation(weights)
    if op.get_attr('masked'):
        upstream = _where_positive(mask, upstream)
    d_addend = None
    if addend.shape.ndims != 1:
        step = op.get_attr('addend_stride')
        d_addend = upstream[:, ::step, ::step]
        d_addend = _where_positive(addend, d_addend) if op.get_attr('relu_addend') else d_addend
    how = [op.get_attr(name) for name in ('stride', 'turned', 'symmetric')]
    d_x = _gradient_of_convolution(prepared, x, upstream, *how)
    d_x = _where_positive(x, d_x) if op.get_attr('relu') else d_x
    return d_x, None, None, d_addend, None


def _gradient_of_convolution(prepared: Any, x: Any, upstream: Any, stride: int, turned: bool, symmetric: bool) -> Any:
    """Return the gradient to x. `prepared`: the FrozenWeights; the last three: attributes of the FrozenConv."""
    w, groups = prepared.inputs[0], prepared.get_attr('groups')
    if prepared.get_attr('turned') and groups == 1 and not turned:
        w = tf.transpose(w[::-1, ::-1], [0, 1, 3, 2])
    if groups > 1:  # of stride 1
        wide, upstream = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
        d_x = conv2d(upstream, w, 1) if prepared.get_attr('turned') else _input_gradient(wide, w, upstream, 1)
        return tf.cast(d_x, x.dtype)
    w, strides = tf.cast(w, x.dtype), [1, stride, stride, 1]
    border = w.shape.as_list()[0] // 2
    if not symmetric or stride == 1 or border == 0:
        if turned:
            return tf.nn.conv2d(upstream, w, strides=strides, padding='SAME')
        return tf.compat.v1.nn.conv2d_backprop_input(tf.shape(input=x), w, upstream, strides, 'SAME')
    sides = [[0, 0], [border, border], [border, border], [0, 0]]
    if turned:
        return tf.nn.conv2d(tf.pad(tensor=upstream, paddings=sides), w, strides=strides, padding='VALID')
    padded = tf.shape(input=x) + [0, 2 * border, 2 * border, 0]
    d_padded = tf.compat.v1.nn.conv2d_backprop_input(padded, w, upstream, strides, 'VALID')
    return d_padded[:, border:-border, border:-border]


def _where_positive(gate: Any, value: Any) -> Any:
    return value * tf.cast(gate > 0, value.dtype)


# --- the median of neighbours ----------------------------------------------------------------------------------------

def median_of_neighbours(x: Any) -> Any:
    """Return the median of each channel over 3x3 neighbours; beyond its edge the map is repeated.

    x: (N, height, width, channels) float32. Returns one like it, NaN where a neighbour is. Its gradient goes to the
    neighbour that is the median, the first one of several, and has derivatives of any order.
    """
    return _library().median_of_neighbours(x)


@tf.RegisterGradient('MedianOfNeighbours')
def _of_median(op: Any, upstream: Any) -> Any:
    return _library().median_of_neighbours_gradient(op.inputs[0], op.outputs[0], upstream)


# Which neighbour is the median does not change with small changes of x: gradients are linear in the third input alone.

@tf.RegisterGradient('MedianOfNeighboursGradient')
def _of_median_gradient(op: Any, second: Any) -> Any:
    return None, None, _library().median_of_neighbours_chosen(*op.inputs[:2], second)


@tf.RegisterGradient('MedianOfNeighboursChosen')
def _of_median_chosen(op: Any, upstream: Any) -> Any:
    return None, None, _library().median_of_neighbours_gradient(*op.inputs[:2], upstream)
