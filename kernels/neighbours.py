"""Filters of a feature map over the 3x3 neighbours of a position: mean, median, and means weighted as one says.

None holds the map nine times: neighbours are shifted maps that come and go, or the products of rows of a map.
"""
from typing import Any, Callable, List, Tuple

from runtime.compat import tf

import cpu_conv
import numpy as np

from kernels.mode import Mode, computes_on_cpu, positions_axes, spatial


def mean_of_neighbours(x: tf.Tensor, mode: Mode) -> tf.Tensor:
    """Average each channel over the 3x3 neighbours that exist: 9, at an edge 6, in a corner 4.

    x: a feature map in the mode's layout, of known height and width. Returns one like it.
    """
    # A convolution of each channel by itself, which CPUs compute in the time of a sum; pooling and its gradient, and
    # shifts by padding and slicing even more so, take many times as long. bfloat16 has none in TensorFlow 1.
    dtype = tf.float32 if x.dtype == tf.bfloat16 else x.dtype
    height, width = [int(x.shape[axis]) for axis in positions_axes(mode)]
    channels = int(x.shape[3 if mode.data_format == 'NHWC' else 1])
    kernel = tf.constant(np.full([3, 3, channels, 1], 1 / 9), dtype)
    mean = tf.nn.depthwise_conv2d(tf.cast(x, dtype), kernel, spatial([1, 1], mode), 'SAME',
                                  data_format=mode.data_format)
    missing = 9 / np.outer(number_of_neighbours(height), number_of_neighbours(width))
    missing = missing[None, :, :, None] if mode.data_format == 'NHWC' else missing[None, None]
    return tf.cast(mean * tf.constant(missing, dtype), x.dtype)


def number_of_neighbours(size: int) -> np.ndarray:
    """Count, for each of `size` places in a row, itself and those beside it."""
    places = np.arange(size)
    return 1 + (places > 0) + (places < size - 1)


# --- the median ------------------------------------------------------------------------------------------------------

def shifted(x: tf.Tensor, step: int, axis: int) -> tf.Tensor:
    """Return the map of each position's neighbour before it (step -1) or after it (1); at the edge, of itself."""
    if step == 0:
        return x
    first, last = ends(x, axis)
    return tf.concat([first, but(x, axis, last=1)] if step < 0 else [but(x, axis, first=1), last], axis=axis)


def shifted_back(g: tf.Tensor, step: int, axis: int) -> tf.Tensor:
    """Return the gradient to x from that to shifted(x, step, axis)."""
    if step == 0 or int(g.shape[axis]) == 1:
        return g
    first, last = ends(g, axis)
    if step < 0:
        return tf.concat([first + but(but(g, axis, first=1), axis, last=int(g.shape[axis]) - 2),
                          but(g, axis, first=2), tf.zeros_like(first)], axis=axis)
    return tf.concat([tf.zeros_like(first), but(g, axis, last=2),
                      last + but(but(g, axis, last=1), axis, first=int(g.shape[axis]) - 2)], axis=axis)


def ends(x: tf.Tensor, axis: int) -> Tuple[tf.Tensor, tf.Tensor]:
    """Return the first and the last row, or column."""
    size = int(x.shape[axis])
    return but(x, axis, last=size - 1), but(x, axis, first=size - 1)


def but(x: tf.Tensor, axis: int, first: int = 0, last: int = 0) -> tf.Tensor:
    """Leave out the first or last rows, or columns."""
    index: List[Any] = [slice(None)] * 4
    index[axis] = slice(first, int(x.shape[axis]) - last)
    return x[tuple(index)]


def median_of_three(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.minimum(a, b), tf.minimum(tf.maximum(a, b), c))


def median(x: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Compute the median of 3x3 neighbours by a network of comparisons. rows, columns: the axes."""
    above, below = shifted(x, -1, rows), shifted(x, 1, rows)
    # each column of three sorted, which its three windows share
    low, high = tf.minimum(above, x), tf.maximum(above, x)
    low, middle, high = tf.minimum(low, below), tf.maximum(low, tf.minimum(high, below)), tf.maximum(high, below)

    def of_columns(combine: Callable, sorted_rows: tf.Tensor) -> tf.Tensor:
        return combine(shifted(sorted_rows, -1, columns), sorted_rows, shifted(sorted_rows, 1, columns))
    # at least five of the nine are not below the greatest of the lows, and so on: it is the median of these three
    return median_of_three(of_columns(lambda a, b, c: tf.maximum(tf.maximum(a, b), c), low),
                           of_columns(median_of_three, middle),
                           of_columns(lambda a, b, c: tf.minimum(tf.minimum(a, b), c), high))


def median_of_neighbours(x: tf.Tensor, mode: Mode) -> tf.Tensor:
    """Return the median of each channel over 3x3 neighbours; beyond the edge the map is repeated.

    Its gradient goes to the neighbour that is the median, the first one of several.
    x: a feature map in the mode's layout, of known height and width. Returns one like it.
    """
    if mode.data_format == 'NHWC' and not mode.plain and x.dtype != tf.float64 and computes_on_cpu():
        # in float32, which has all numbers of the shorter dtypes: a median is not rounded
        return tf.cast(cpu_conv.median_of_neighbours(tf.cast(x, tf.float32)), x.dtype)
    rows, columns = positions_axes(mode)
    # The comparisons' own gradients would keep and mask each of their two dozen maps; so would a map for each
    # neighbour. It is enough to look for the median once more.

    @tf.custom_gradient
    def filtered(x: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        y = median(x, rows, columns)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            left = upstream  # of positions whose median is not found yet
            zeros, by_row = tf.zeros_like(upstream), []
            for i in (-1, 0, 1):
                row, in_row = shifted(x, i, rows), []
                for j in (-1, 0, 1):
                    if (i, j) == (1, 1):  # what is left, NaN among it, is the last one's
                        in_row.append(shifted_back(left, j, columns))
                        continue
                    found = tf.equal(shifted(row, j, columns), y)
                    in_row.append(shifted_back(tf.where(found, left, zeros), j, columns))
                    left = tf.where(found, zeros, left)
                by_row.append(shifted_back(tf.add_n(in_row), i, rows))
            return tf.add_n(by_row)
        return y, gradient

    y = filtered(x)
    y.set_shape(x.shape)
    return y


# --- weighted means --------------------------------------------------------------------------------------------------

def band(height: int, width: int) -> np.ndarray:
    """Tell which neighbours exist: (height, width, 3, width) of 0 and 1: for each position those in the rows above, of
    it and below."""
    near = np.abs(np.arange(width)[:, None] - np.arange(width)) <= 1
    rows = np.arange(height)[:, None] + np.arange(-1, 2)
    return near[None, :, None] * ((rows >= 0) & (rows < height))[:, None, :, None]


def neighbouring_row(x: tf.Tensor, k: int) -> tf.Tensor:
    """Shift an NHWC map by rows: the row above each (k = 0), itself or the one below; zeros beyond the edge."""
    if k == 1:
        return x
    nothing = tf.zeros_like(x[:, :1])
    return tf.concat([nothing, x[:, :-1]] if k == 0 else [x[:, 1:], nothing], axis=1)


def weighted_mean_of_neighbours(theta: tf.Tensor, phi: tf.Tensor, x: tf.Tensor, *, softmax: bool) -> tf.Tensor:
    """Compute y_i = sum_j w_ij x_j over the 3x3 neighbours j that exist; w_ij = softmax_j(theta_i . phi_j), or that
    product over the number of these neighbours.

    Rows are multiplied with their neighbouring rows, which computes more products than there are neighbours (of 56
    columns 168 instead of 9) and is still much faster than nine maps of them.

    Args:
        theta, phi: (N, H, W, d). x: (N, H, W, channels). Of one dtype; H and W must be known.
    Returns:
        like x. Its gradients reach all three.
    """
    height, width = int(x.shape[1]), int(x.shape[2])
    exists = band(height, width)
    exists = exists.reshape([1, height, width, 3 * width]).astype(np.float32)
    # of each position's products those with neighbours; the softmax's others go to -infinity, as far as float32 has it
    factor = None if softmax else exists / exists.sum(axis=3, keepdims=True)
    if x.dtype == tf.float16 and factor is not None:  # divided before it is summed over: float16 ends at 65504
        theta, factor = theta / 8, factor * 8
    columns = [slice(k * width, (k + 1) * width) for k in range(3)]

    @tf.custom_gradient
    def mean(theta: tf.Tensor, phi: tf.Tensor, x: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        products = tf.cast(tf.concat([tf.matmul(theta, neighbouring_row(phi, k), transpose_b=True) for k in range(3)],
                                     axis=3), tf.float32)
        weights = tf.nn.softmax(products + tf.constant(np.where(exists > 0, 0, -1e30).astype(np.float32))) \
            if softmax else products * tf.constant(factor)
        low = tf.cast(weights, x.dtype)
        y = tf.add_n([tf.matmul(low[..., columns[k]], neighbouring_row(x, k)) for k in range(3)])

        def gradient(upstream: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            d_weights = tf.cast(tf.concat([tf.matmul(upstream, neighbouring_row(x, k), transpose_b=True)
                                           for k in range(3)], axis=3), tf.float32)
            if softmax:  # less the part that the others take up, as weights sum to 1
                d_products = weights * (d_weights - tf.reduce_sum(weights * d_weights, axis=3, keepdims=True))
            else:
                d_products = d_weights * tf.constant(factor)
            d_products = tf.cast(d_products, x.dtype)
            d_theta = tf.add_n([tf.matmul(d_products[..., columns[k]], neighbouring_row(phi, k)) for k in range(3)])
            # row r is above row r + 1: what one gets from the other goes the other way
            d_phi, d_x = [tf.add_n([neighbouring_row(tf.matmul(w[..., columns[k]], of, transpose_a=True), 2 - k)
                                    for k in range(3)]) for w, of in [(d_products, theta), (low, upstream)]]
            return d_theta, d_phi, d_x
        return y, gradient

    y = mean(theta, phi, x)
    y.set_shape(x.shape)
    return y
