"""Attention: by softmax, and by products of matrices.

The matrix of all pairs of positions in a 56x56 map is 39 MB an image. Where there are many positions, the softmax never
holds all of it; the products do where the caller asks for that order.
"""
from typing import Callable, List, Tuple

from runtime.compat import tf

FEW_POSITIONS = 1024  # up to which the matrices of a whole batch are small beside the network's other features
ROWS_TOGETHER = 448  # of a larger matrix: with 3136 columns of float32 they are 5.6 MB, and stay in a CPU's cache


def softmax_attention(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, *, few_positions: int = FEW_POSITIONS,
                      rows_together: int = ROWS_TOGETHER) -> tf.Tensor:
    """Compute y_i = sum_j softmax_j(queries_i . keys_j) values_j.

    Where there are many positions, rows of the softmax are computed some at a time, image by image. Of each row only
    the logarithm of its normaliser is kept for the gradient, which computes the row again from that.

    Args:
        queries, keys: (N, positions, channels). values: (N, positions, any channels). Of one dtype; the number of
            positions must be known.
    Returns:
        like `values`. Its gradients reach all three.
    """
    positions = int(queries.shape[1])
    if positions <= few_positions:
        return tf.matmul(tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True)), values)
    rows = [slice(i, min(i + rows_together, positions)) for i in range(0, positions, rows_together)]
    dtype = values.dtype

    @tf.custom_gradient
    def attention(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        y, normalisers = by_image(lambda x: forward(x[0], x[1], x[2], rows), [q, k, v], [dtype, tf.float32])

        def gradient(upstream: tf.Tensor) -> List[tf.Tensor]:
            return by_image(lambda x: backward(x[0], x[1], x[2], x[3], x[4], x[5], rows),
                            [q, k, v, y, normalisers, upstream], [dtype] * 3)
        return y, gradient

    y = attention(queries, keys, values)
    y.set_shape(values.shape)
    return y


def by_image(function: Callable, tensors: List[tf.Tensor], dtypes: List[tf.DType]) -> List[tf.Tensor]:
    """Apply a function of one image's tensors, which returns several, to each image."""
    return list(tf.map_fn(lambda x: tuple(function(x)), tuple(tensors), dtype=tuple(dtypes), parallel_iterations=1,
                          back_prop=False))


def forward(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, rows: List[slice]) -> Tuple[tf.Tensor, tf.Tensor]:
    """Compute, for one image without its axis, y and the logarithms of the softmax's normalisers, (positions, 1)
    float32."""
    ys, normalisers = [], []
    for row in rows:
        scores = tf.cast(tf.matmul(q[row], k, transpose_b=True), tf.float32)
        largest = tf.reduce_max(scores, axis=1, keepdims=True)
        exponentials = tf.exp(scores - largest)
        total = tf.reduce_sum(exponentials, axis=1, keepdims=True)
        if v.dtype == tf.float16:  # divided before it is summed over: float16 ends at 65504
            ys.append(tf.matmul(tf.cast(exponentials / total, v.dtype), v))
        else:
            ys.append(tf.cast(tf.cast(tf.matmul(tf.cast(exponentials, v.dtype), v), tf.float32) / total, v.dtype))
        normalisers.append(largest + tf.log(total))
    return tf.concat(ys, axis=0), tf.concat(normalisers, axis=0)


def backward(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, y: tf.Tensor, normalisers: tf.Tensor, upstream: tf.Tensor,
             rows: List[slice]) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Compute, for one image without its axis, the gradients to q, k and v from that to y."""
    d_q, d_k, d_v = [], [], []
    for row in rows:
        g = upstream[row]
        weights = tf.exp(tf.cast(tf.matmul(q[row], k, transpose_b=True), tf.float32) - normalisers[row])
        d_weights = tf.cast(tf.matmul(g, v, transpose_b=True), tf.float32)
        # the part of a weight's gradient that the others take up, as they sum to 1
        shared = tf.reduce_sum(tf.cast(g, tf.float32) * tf.cast(y[row], tf.float32), axis=1, keepdims=True)
        d_scores = tf.cast(weights * (d_weights - shared), q.dtype)
        d_q.append(tf.matmul(d_scores, k))
        d_k.append(tf.cast(tf.matmul(d_scores, q[row], transpose_a=True), tf.float32))
        d_v.append(tf.cast(tf.matmul(tf.cast(weights, v.dtype), g, transpose_a=True), tf.float32))
    return tf.concat(d_q, axis=0), tf.cast(tf.add_n(d_k), k.dtype), tf.cast(tf.add_n(d_v), v.dtype)


# --- dot products ----------------------------------------------------------------------------------------------------

def triple_product(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, *, left_first: bool) -> tf.Tensor:
    """Compute (a b^T) c, or a (b^T c): (N, m, n) by (N, k, n) by (N, k, l) -> (N, m, l)."""
    if left_first:
        return tf.matmul(tf.matmul(a, b, transpose_b=True), c)
    return tf.matmul(a, tf.matmul(b, c, transpose_a=True))


def product_with_itself(x: tf.Tensor, divisor: int, *, left_first: bool) -> tf.Tensor:
    """Compute (x x^T / divisor) x, or x (x^T x / divisor), of matrices (N, rows, columns); returns what is like x.

    The inner product is symmetric, which saves the gradient one product of four.
    """
    def inner(x: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, other, transpose_a=not left_first, transpose_b=left_first)

    def outer(s: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(s, x) if left_first else tf.matmul(x, s)

    def divided(x: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        factor = 1 / divisor  # TensorFlow 1 has no division of bfloat16 by a constant
        if x.dtype == tf.float16:  # before it is summed over: float16 ends at 65504
            return inner(x * factor, other)
        return inner(x, other) * factor

    @tf.custom_gradient
    def product(x: tf.Tensor) -> Tuple[tf.Tensor, Callable]:
        s = divided(x, x)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            d_s = divided(x, upstream)
            return outer(s, upstream) + outer(d_s + tf.transpose(d_s, [0, 2, 1]), x)
        return outer(s, x), gradient

    y = product(x)
    y.set_shape(x.shape)
    return y
