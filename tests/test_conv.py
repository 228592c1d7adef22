"""Trained convolutions on CPUs, in groups or not: the ops beside NumPy, on every instruction set, and their use."""
import hashlib

from runtime.compat import tf, xla_compile

import cpu_conv
import helpers
import numpy as np
import pytest
from cpu_conv import conv2d
from other_cpus import call_as, check_threads

from kernels.convolution import convolution
from kernels.mode import Mode
from runtime.hardware import session_config


def compute(x, w, upstream, stride, threads=2, known=True):
    """The convolution and its gradients to x and w; `known`: whether the features' height and width are."""
    with tf.Graph().as_default():
        shapes = [[None] + list(a.shape[1:]) if known else [None] * (a.ndim - 1) + [a.shape[-1]] for a in (x, upstream)]
        inputs = [tf.placeholder(tf.float32, shape) for shape in (shapes[0], w.shape, shapes[1])]
        y = conv2d(*inputs[:2], stride=stride)
        config = session_config()
        config.intra_op_parallelism_threads = threads
        with tf.Session(config=config) as session:
            return session.run([y] + tf.gradients(y, inputs[:2], inputs[2]), dict(zip(inputs, [x, w, upstream])))


def arrays(rng, batch, size, groups, channels, out, kernel, stride):
    x = rng.standard_normal((batch,) + size + (groups * channels,)).astype(np.float32)
    w = rng.standard_normal((kernel, kernel, channels, groups * out)).astype(np.float32)
    upstream = rng.standard_normal((batch,) + tuple(-(-n // stride) for n in size) + (groups * out,)).astype(np.float32)
    return x, w, upstream


def check(x, w, upstream, stride, known=True):
    expected = [helpers.convolution(x, w, stride)] + list(helpers.convolution_gradients(x, w, upstream, stride))
    for computed, value in zip(compute(x, w, upstream, stride, known=known), expected):
        assert computed.shape == value.shape
        np.testing.assert_allclose(computed, value, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize('known', [True, False])  # what is not known is computed by other loops
@pytest.mark.parametrize('batch, size, groups, channels, out, kernel, stride', [
    (2, (56, 56), 32, 8, 8, 3, 1), (1, (57, 55), 32, 16, 16, 3, 2), (3, (14, 14), 32, 32, 32, 3, 1),
    (2, (7, 7), 32, 64, 64, 3, 1), (1, (14, 14), 4, 64, 64, 3, 2),
    (11, (20, 20), 32, 8, 8, 3, 1),  # images in 6 parts, groups in 6 blocks: the last ones are smaller
    (1, (4, 500), 16, 32, 8, 3, 2)])  # too wide for more than a row at a time
def test_layers_of_a_network(batch, size, groups, channels, out, kernel, stride, known):
    x, w, upstream = arrays(np.random.RandomState(1), batch, size, groups, channels, out, kernel, stride)
    check(x, w, upstream, stride=stride, known=known)


def check_random_sizes(count):
    rng = np.random.RandomState(0)
    # without groups, and of whole panels: 1x1 and 3x3, tiles over the edge, rows of several units
    for size, channels, out, kernel, stride in [
            ((9, 7), 32, 64, 1, 1), ((8, 9), 64, 32, 1, 2), ((7, 7), 32, 32, 1, 3), ((14, 15), 64, 96, 3, 1),
            ((9, 8), 32, 64, 3, 2), ((8, 9), 64, 32, 3, 2), ((7, 8), 32, 32, 3, 3), ((1, 3), 32, 32, 3, 2),
            ((90, 80), 64, 64, 1, 1), ((60, 90), 32, 32, 3, 1)]:
        check(*arrays(rng, 2, size, 1, channels, out, kernel, stride), stride=stride)
    for groups, channels in (16, 2), (8, 4), (12, 8), (6, 16), (3, 32), (2, 96):
        check(*arrays(rng, 3, (9, 14), groups, channels, channels, 3, 1), stride=1)
    check(*arrays(rng, 2, (40, 45), 32, 16, 16, 3, 1), stride=1)  # of several units an image
    for _ in range(count):
        size = tuple(rng.randint(1, 20, 2))
        batch, groups, channels, out, kernel, stride = [rng.randint(1, most + 1) for most in (3, 5, 40, 40, 5, 3)]
        check(*arrays(rng, batch, size, groups, channels, out, kernel, stride), stride=stride)


def test_random_sizes():
    check_random_sizes(60)


@pytest.mark.parametrize('isa', ['any_cpu', 'avx2'])
def test_the_kernels_of_other_cpus(isa):
    call_as(isa, 'test_conv', 'check_random_sizes(30)')


@pytest.mark.parametrize('kernel', [(1, 4), (3, 1), (2, 5)])
def test_kernels_that_are_not_square(kernel):
    """Equal to a square kernel that is filled up with zeros, for odd sizes on the same side."""
    rng = np.random.RandomState(6)
    x, w, upstream = arrays(rng, 2, (9, 11), 3, 8, 4, 5, 1)
    rows, columns = kernel
    top, left = (5 - rows) // 2 + (5 - rows) % 2, (5 - columns) // 2 + (5 - columns) % 2
    inside = (slice(top, top + rows), slice(left, left + columns))
    filled = np.zeros_like(w)
    filled[inside] = w[inside]
    expected = [helpers.convolution(x, filled, 1)] + list(helpers.convolution_gradients(x, filled, upstream, 1))
    expected[2] = expected[2][inside]
    for computed, value in zip(compute(x, np.ascontiguousarray(w[inside]), upstream, 1), expected):
        np.testing.assert_allclose(computed, value, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize('groups, channels, out, kernel, stride', [
    (2, 3, 4, 3, 2), (1, 32, 32, 3, 1), (2, 16, 16, 3, 1), (1, 32, 32, 3, 2), (1, 32, 32, 1, 2)])
def test_second_derivatives(groups, channels, out, kernel, stride):
    """Of products of gradients, beside finite differences along a direction."""
    rng = np.random.RandomState(7)
    x, w, _ = arrays(rng, 1, (5, 6), groups, channels, out, kernel, stride)
    w *= (3 / (channels * kernel ** 2)) ** 0.5
    directions = [rng.standard_normal(a.shape).astype(np.float32) for a in (x, w)]

    def slope_and_gradients(inputs):
        loss = tf.reduce_sum(conv2d(inputs[0], inputs[1], stride) ** 3)
        gradients = tf.gradients(loss, inputs)
        slope = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(gradients, directions)])
        return slope, tf.gradients(slope, inputs)
    with tf.Graph().as_default():
        inputs = [tf.placeholder(tf.float32, a.shape) for a in (x, w)]
        slope, second = slope_and_gradients(inputs)
        along = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(second, directions)])
        with tf.Session(config=session_config()) as session:
            moved = [session.run(slope, {i: a + step * d for i, a, d in zip(inputs, (x, w), directions)})
                     for step in (-0.003, 0.003)]
            computed = session.run(along, dict(zip(inputs, (x, w))))
    assert computed == pytest.approx((moved[1] - moved[0]) / 0.006, rel=5e-3)


@pytest.mark.parametrize('dtype, size, stride, plain, used', [
    ('float32', 8, 1, False, True), ('bfloat16', 8, 1, False, False), ('float32', 4, 1, False, False),
    ('float32', 8, 2, False, False), ('float32', 8, 1, True, False)])
def test_where_the_op_is_used_in_groups(dtype, size, stride, plain, used):
    with tf.Graph().as_default() as graph:
        mode = Mode(dtype=tf.as_dtype(dtype), plain=plain)
        convolution(tf.zeros([1, size, size, 32], dtype), tf.zeros([3, 3, 8, 32], dtype), mode, stride)
        types = [op.type for op in graph.get_operations()]
        assert (types.count('FrozenConv'), types.count('Conv2D')) == ((1, 0) if used else (0, 4))


def print_digests(threads):
    for i, (groups, channels, out, kernel, stride) in enumerate([
            (1, 64, 64, 3, 1), (3, 32, 32, 3, 1), (8, 8, 8, 3, 1),
            (1, 32, 64, 3, 2), (1, 32, 64, 1, 1), (32, 8, 8, 3, 1)]):
        inputs = arrays(np.random.RandomState(i), 11, (15, 13), groups, channels, out, kernel, stride)
        by_ops = compute(*inputs, stride=stride, threads=threads)[:2 if channels < 32 else 3]
        print([hashlib.sha1(a.tobytes()).hexdigest() for a in by_ops])


def test_threads_change_nothing():
    check_threads('test_conv', 'print_digests(%d)')


@pytest.mark.parametrize('groups, channels', [(2, 4), (2, 32), (1, 32)])
def test_no_images(groups, channels):
    x, w, upstream = arrays(np.random.RandomState(3), 0, (6, 6), groups, channels, channels, 3, 1)
    y, d_x, d_w = compute(x, w, upstream, 1)
    assert y.shape == d_x.shape == (0, 6, 6, groups * channels) and d_w.shape == w.shape and not d_w.any()


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('x_shape, w_shape', [
    ((1, 5, 5, 8), (3, 3, 3, 8)), ((1, 5, 5, 8), (3, 3, 4, 7)), ((5, 5, 8), (3, 3, 4, 8)), ((1, 5, 5, 8), (3, 3, 0, 8)),
    ((1, 5, 5, 8), (0, 3, 4, 8)), ((1, 5, 5, 0), (3, 3, 4, 8)), ((1, 5, 5, 32), (3, 3, 32, 0)),
    ((1, 5, 5, 32), (3, 3, 0, 32)), ((1, 5, 5, 0), (3, 3, 32, 32)), ((1, 5, 5, 32), (0, 0, 32, 32))])
def test_shapes_that_do_not_fit_are_an_error(x_shape, w_shape, known):
    x, w, upstream = [np.zeros(shape, np.float32) for shape in (x_shape, w_shape, (1, 5, 5, 8))]
    with pytest.raises(ValueError, match='groups|dimensions'):
        compute(x, w, upstream, 1, known=known)


def test_a_gradient_of_another_shape_is_an_error():
    """Where the graph can't tell: its height."""
    channels = 32
    with tf.Graph().as_default():
        x, upstream = [tf.placeholder(tf.float32, [None, None, None, channels]) for _ in range(2)]
        w = tf.zeros([3, 3, channels, channels])
        gradients = tf.gradients(conv2d(x, w, 1), [x, w], upstream)
        for gradient in gradients:
            with tf.Session(config=session_config()) as session:
                with pytest.raises(tf.errors.InvalidArgumentError, match='shape|mask of the size'):
                    session.run(gradient, {x: np.zeros([1, 5, 5, channels]), upstream: np.zeros([1, 4, 5, channels])})


@pytest.mark.parametrize('x_shape, w_shape', [
    ((1, 5, 5, 0), (3, 3, 32, 32)), ((1, 5, 5, 32), (3, 3, 32, 0)), ((1, 5, 5, 32), (3, 3, 8, 32)),
    ((1, 5, 5, 48), (3, 3, 48, 32))])
def test_the_gradient_to_weights_by_itself(x_shape, w_shape):
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        op = cpu_conv._library().conv_filter_gradient
        with pytest.raises(tf.errors.InvalidArgumentError, match='no gradient for weights'):
            session.run(op(tf.zeros(x_shape), w_shape, tf.zeros([1, 5, 5, w_shape[3]]), stride=1))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_other_dtypes(dtype):
    x, w, upstream = arrays(np.random.RandomState(4), 2, (9, 8), 4, 8, 8, 3, 2)
    with tf.Graph().as_default():
        inputs = [tf.constant(a) for a in (x, w, upstream)]
        low = [tf.cast(a, dtype) for a in inputs]
        y = convolution(low[0], low[1], Mode(dtype=tf.as_dtype(dtype)), 2)
        results = [tf.cast(t, tf.float32) for t in [y] + tf.gradients(y, low[:2], low[2])]
        with tf.Session(config=session_config()) as session:
            results = session.run(results)
    expected = [helpers.convolution(x, w, 2)] + list(helpers.convolution_gradients(x, w, upstream, 2))
    for computed, value in zip(results, expected):
        np.testing.assert_allclose(computed, value, atol=0.03 * np.abs(value).max())


def test_in_xla():
    """Where no op of ours can go."""
    x, w, upstream = arrays(np.random.RandomState(5), 2, (9, 8), 4, 8, 8, 3, 2)

    def build(features, weights, factors):
        y = convolution(features, weights, Mode(), 2)
        parts = [y] + tf.gradients(y, [features, weights], factors)
        return tf.concat([tf.reshape(t, [-1]) for t in parts], axis=0)

    with tf.Graph().as_default():
        compiled = xla_compile(build, *[tf.constant(a) for a in (x, w, upstream)])
        with tf.Session(config=session_config()) as session:
            flat = session.run(compiled)
    expected = [helpers.convolution(x, w, 2)] + list(helpers.convolution_gradients(x, w, upstream, 2))
    for computed, value in zip(np.split(flat, np.cumsum([upstream.size, x.size])), expected):
        np.testing.assert_allclose(computed.reshape(value.shape), value, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize('groups', [1, 4])
def test_convolutions_of_variables_one_after_another(groups):
    """Gradients to each one's variable, whatever else the features depend on; beside NumPy."""
    strides = [1, 2, 2]
    x, w, _ = arrays(np.random.RandomState(8), 2, (9, 8), groups, 32 // groups, 32 // groups, 3, 1)
    w, upstream = 0.1 * w, np.random.RandomState(9).standard_normal((2, 3, 2, 32)).astype(np.float32)
    with tf.Graph().as_default():
        weights = [tf.get_variable(name, initializer=w) for name in 'abc']
        y = tf.placeholder_with_default(x, [None] + list(x.shape[1:]))
        for variable, stride in zip(weights, strides):
            y = conv2d(y, variable, stride)
        gradients = tf.gradients(y, weights, upstream)
        with tf.Session(config=session_config()) as session:
            session.run(tf.global_variables_initializer())
            computed = session.run(gradients)
    features = [x]
    for stride in strides[:-1]:
        features.append(helpers.convolution(features[-1], w, stride))
    factor = upstream
    for gradient, feature, stride in list(zip(computed, features, strides))[::-1]:
        factor, expected = helpers.convolution_gradients(feature, w, factor, stride)
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
