"""Grouped 2-D convolution on CPUs, forward and both gradients, which TensorFlow lacks there or computes slowly."""
import functools
import importlib.util
from typing import Any

import tensorflow as tf

__all__ = ['grouped_conv2d']


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    spec = importlib.util.find_spec('grouped_conv._ops')
    if spec is None:
        raise ImportError('the compiled ops of grouped_conv are missing: install the package with pip, or run the '
                          'set-up again')
    return tf.load_op_library(spec.origin)


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


@tf.RegisterGradient('GroupedConv2D')
def _gradient(op: Any, upstream: Any) -> Any:
    x, w = op.inputs
    stride, library = op.get_attr('stride'), _library()
    shapes = [tf.shape(input=tensor) for tensor in (x, w)]
    return (library.grouped_conv2d_input_gradient(shapes[0], w, upstream, stride=stride),
            library.grouped_conv2d_filter_gradient(x, shapes[1], upstream, stride=stride))
