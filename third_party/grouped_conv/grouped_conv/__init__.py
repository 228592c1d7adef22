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
