"""What CPUs compute while weights are constant: the op beside NumPy, on every instruction set, and blocks of it."""
import hashlib

from runtime.compat import FAST_CONVOLUTION_GRADIENTS, tf

import helpers
import numpy as np
import pytest
from cpu_conv import Addend, frozen_conv, frozen_conv_gradient, frozen_weights, has_bfloat16
from other_cpus import call_as, check_threads

import checkpoint
from kernels.frozen_layers import Bottleneck, FoldedConvolution, fast_stem, fused_bottleneck
from kernels.mode import Mode
from kernels.prepared import prepared_weights
from nets import Network, network_named
from runtime.hardware import cpu_flags, session_config

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason='this CPU has no instructions for products of bfloat16')
DTYPES = ['float32', pytest.param('bfloat16', marks=needs_bfloat16)]
TOLERANCE = {'float32': 1e-5, 'bfloat16': 0.03}  # of the largest number


def run(fetches, feed=None, threads=2):
    config = session_config()
    config.intra_op_parallelism_threads = threads
    with tf.Session(config=config) as session:
        session.run(tf.global_variables_initializer())
        return session.run(fetches, feed)


def compute(x, w, dtype='float32', threads=2, prepare=None, **around):
    """Return frozen_conv of float32 arrays, or frozen_conv_gradient where there is a `like`, computed in `dtype`.

    prepare: options of frozen_weights. The arrays are fed: constants TensorFlow would compute ahead of the session.
    """
    with tf.Graph().as_default():
        arrays = {name: value for name, value in dict(around, x=x, w=w).items() if isinstance(value, np.ndarray)}
        fed = {name: tf.placeholder(tf.float32, value.shape) for name, value in arrays.items()}
        low = dict(around, **{name: tf.cast(tensor, dtype) for name, tensor in fed.items() if name != 'w'})
        added = [low.pop(name, default)
                 for name, default in [('addend', None), ('relu_addend', False), ('addend_stride', 1)]]
        addend = Addend(*added) if added[0] is not None else None
        weights = frozen_weights(fed['w'], dtype, **(prepare or {}))
        if 'like' in low:
            y = frozen_conv_gradient(low.pop('x'), weights, low.pop('like'), addend=addend, **low)
        else:
            y = frozen_conv(weights=weights, addend=addend, **low)
        return run(tf.cast(y, tf.float32), {fed[name]: value for name, value in arrays.items()}, threads)


def check(computed, expected, dtype='float32'):
    assert computed.shape == expected.shape
    np.testing.assert_allclose(computed, expected, atol=TOLERANCE[dtype] * np.abs(expected).max(), rtol=0)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


# --- the op ----------------------------------------------------------------------------------------------------------

def check_op(dtype, batch, height, width, channels_in, channels_out, kernel, seed=0):
    """Forward as in a block, and its gradient."""
    rng = np.random.RandomState(seed)
    x, w = normal(rng, batch, height, width, channels_in), normal(rng, kernel, kernel, channels_in, channels_out)
    bias, upstream = normal(rng, channels_out), normal(rng, batch, height, width, channels_out)
    more = {'addend': normal(rng, *upstream.shape), 'relu_addend': True} if kernel == 1 else {}
    expected = helpers.convolution(helpers.relu(x), w) + bias + helpers.relu(more.get('addend', np.zeros(1)))
    check(compute(x, w, dtype, relu=True, bias=bias, **more), expected, dtype)
    d_x = helpers.convolution_gradients(x, w, upstream)[0]
    more = {'addend': normal(rng, *x.shape)} if kernel == 1 else {}
    computed = compute(upstream, w, dtype, prepare={'turned': True}, mask=x, **more)
    check(computed, (d_x + more.get('addend', 0)) * (x > 0), dtype)
    check(compute(x, w, dtype), helpers.convolution(x, w), dtype)
    if kernel == 1:
        check(compute(x, w, dtype, stride=2), helpers.convolution(x, w, 2), dtype)
        addend = normal(rng, *upstream[:, ::2, ::2].shape)
        spread = np.zeros_like(upstream)
        spread[:, ::2, ::2] = helpers.relu(addend)
        computed = compute(x, w, dtype, addend=addend, addend_stride=2, relu_addend=True)
        check(computed, helpers.convolution(x, w) + spread, dtype)


def check_sizes(dtype):
    for kernel in (1, 3):
        # of several units; fewer tiles than a unit; tiles over the edge, one pixel
        for i, sizes in enumerate([(9, 28, 28, 32, 64), (1, 9, 5, 64, 32), (3, 14, 14, 96, 32), (40, 4, 4, 32, 32),
                                   (1, 1, 1, 32, 64), (2, 1, 7, 64, 96), (5, 2, 2, 32, 32)]):
            check_op(dtype, *sizes, kernel=kernel, seed=i)


@pytest.mark.parametrize('dtype', DTYPES)
def test_op(dtype):
    check_sizes(dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_op_with_weights_that_all_threads_share(dtype):
    check_op(dtype, 3, 7, 7, 512, 512, kernel=3)
    check_op(dtype, 6, 28, 28, 352, 352, kernel=3)  # tiles of two units


@pytest.mark.parametrize('isa', ['any_cpu', 'avx2', 'avx512'])
def test_op_on_other_cpus(isa):
    call_as(isa, 'test_frozen', 'check_sizes("float32")')


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kernel, channels', [(1, 64), (3, 64), (3, 512)])
def test_the_rest_of_the_batch_does_not_change_an_image(dtype, kernel, channels):
    rng = np.random.RandomState(1)
    x, w = normal(rng, 9, 7, 7, channels), normal(rng, kernel, kernel, channels, channels)
    together = compute(x, w, dtype)
    for part in (slice(0, 1), slice(4, 9)):
        assert np.array_equal(compute(x[part], w, dtype), together[part])


def print_digests(threads):
    rng = np.random.RandomState(1)
    for dtype in ['float32'] + ['bfloat16'] * has_bfloat16():
        for kernel, channels in (1, 64), (3, 64), (3, 512):
            x, w = normal(rng, 9, 7, 7, channels), normal(rng, kernel, kernel, channels, channels)
            y = compute(x, w, dtype, threads=threads)
            print(hashlib.sha1(y.tobytes()).hexdigest())


def test_threads_change_nothing():
    check_threads('test_frozen', 'print_digests(%d)')


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size, stride, symmetric', [
    ((8, 9), 2, False), ((9, 8), 2, False), ((1, 3), 2, False), ((10, 7), 3, False),
    ((8, 9), 2, True), ((9, 8), 2, True), ((2, 1), 2, True)])
def test_3x3_with_a_stride(dtype, size, stride, symmetric):
    """In a block, and its gradient, with all that can go with it."""
    rng = np.random.RandomState(6)
    x, w, bias = normal(rng, 2, *size, 32), normal(rng, 3, 3, 32, 64), normal(rng, 64)
    y = helpers.convolution(helpers.relu(x), w, stride, symmetric)
    addend, mask, upstream = [normal(rng, *y.shape) for _ in range(3)]
    computed = compute(x, w, dtype, prepare={'stride': stride}, stride=stride, symmetric=symmetric, relu=True,
                       bias=bias, addend=addend, mask=mask)
    check(computed, (y + bias + addend) * (mask > 0), dtype)
    d_x = helpers.convolution_gradients(x, w, upstream, stride, symmetric)[0]
    addend = normal(rng, *x.shape)
    computed = compute(upstream, w, dtype, prepare={'stride': stride, 'turned': True}, stride=stride,
                       symmetric=symmetric, like=x, addend=addend)
    check(computed, d_x + addend, dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('groups, width', [(8, 8), (6, 16), (3, 32), (2, 64)])
def test_in_groups(dtype, groups, width):
    rng = np.random.RandomState(7)
    channels = groups * width
    x, w, bias = normal(rng, 3, 9, 14, channels), normal(rng, 3, 3, width, channels), normal(rng, channels)
    mask, upstream = normal(rng, *x.shape), normal(rng, *x.shape)
    computed = compute(x, w, dtype, prepare={'groups': groups}, relu=True, bias=bias, mask=mask)
    check(computed, (helpers.convolution(helpers.relu(x), w) + bias) * (mask > 0), dtype)
    computed = compute(upstream, w, dtype, prepare={'groups': groups, 'turned': True}, mask=mask)
    check(computed, helpers.convolution_gradients(x, w, upstream)[0] * (mask > 0), dtype)


@pytest.mark.parametrize('prepare, around, message', [
    ({}, {'stride': 2}, 'for a stride of 1, not 2'),
    ({'stride': 3, 'turned': True}, {'stride': 2, 'like': True}, 'for a stride of 3, not 2'),
    ({'stride': 2, 'turned': True}, {'stride': 2}, 'turned weights'),
    ({}, {'like': True, 'stride': 1}, 'turned weights'),
    ({'groups': 2}, {}, 'weights of 64 channels are not of a convolution of x with 32')])
def test_weights_that_are_prepared_for_something_else(prepare, around, message):
    x = np.zeros([1, 4, 4, 32], np.float32)
    around = {name: x if value is True else value for name, value in around.items()}
    with pytest.raises(ValueError, match=message):
        compute(x, np.zeros([3, 3, 32, 32], np.float32), prepare=prepare, **around)


def test_an_addend_that_is_needed_again_is_left_alone():
    rng = np.random.RandomState(2)
    value, w = normal(rng, 2, 5, 5, 32), normal(rng, 1, 1, 32, 32)
    with tf.Graph().as_default():
        given = tf.placeholder(tf.float32, value.shape)
        addend = given * 2  # in memory of its own
        y = frozen_conv(given, frozen_weights(tf.constant(w), tf.float32), addend=Addend(addend))
        with tf.control_dependencies([y]):
            later = addend + 1
        sums, later = run([y, later], {given: value})
    check(sums, helpers.convolution(value, w) + 2 * value)
    np.testing.assert_array_equal(later, 2 * value + 1)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kernel', [1, 3])
def test_what_is_not_a_number_stays_so(kernel, dtype):
    """As with TensorFlow's ReLU: nothing is hidden from those who look for it."""
    x, w = np.ones([1, 8, 8, 32], np.float32), np.ones([kernel, kernel, 32, 32], np.float32)
    broken = x.copy()
    broken[0, 3, 3, 5] = np.nan
    assert np.isnan(compute(broken, w, dtype, mask=broken)[0, 3, 3, 5])  # a gradient's
    for relu in (True, False):
        assert np.isnan(compute(broken, w, dtype, relu=relu)[0, 3, 3]).all()
        if kernel == 1:
            assert np.isnan(compute(x, w, dtype, addend=broken, relu_addend=relu)[0, 3, 3, 5])


@pytest.mark.parametrize('kernel', [1, 3])
def test_no_images(kernel):
    x, w = np.zeros([0, 4, 4, 32], np.float32), np.ones([kernel, kernel, 32, 64], np.float32)
    assert compute(x, w).shape == (0, 4, 4, 64)


@pytest.mark.parametrize('x_shape, w_shape, around, message', [
    ((1, 4, 4, 32), (5, 5, 32, 32), {}, 'w must be'),
    ((1, 4, 4, 32), (3, 1, 32, 32), {}, 'w must be'),
    ((1, 4, 4, 48), (1, 1, 48, 32), {}, 'w must have|evenly divisible'),
    ((1, 4, 4, 32), (1, 1, 32, 40), {}, 'w must have|evenly divisible'),
    ((1, 4, 4, 64), (3, 3, 32, 32), {}, 'of a convolution of x'),
    ((1, 4, 4, 32), (1, 1, 32, 64), {'bias': (32,)}, r'has the shape \[32\], not \[64\]'),
    ((1, 4, 4, 32), (1, 1, 32, 64), {'addend': (1, 4, 4, 32)}, 'has the shape'),
    ((1, 4, 4, 32), (1, 1, 32, 64), {'mask': (1, 4, 64)}, 'has the shape'),
    ((1, 4, 4, 32), (3, 3, 32, 32), {'addend': (1, 4, 4, 32)}, '3x3 of stride 1 with an addend'),
    ((1, 4, 4, 32), (3, 3, 32, 32), {'stride': 2}, 'for a stride of 1'),
    ((1, 4, 5, 32), (1, 1, 32, 32), {'addend': (1, 2, 2, 32), 'addend_stride': 2}, r'not \[1,2,3,32\]')])
def test_what_does_not_fit_is_an_error(x_shape, w_shape, around, message):
    around = {name: np.zeros(value, np.float32) if isinstance(value, tuple) else value
              for name, value in around.items()}
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError), match=message):
        compute(np.zeros(x_shape, np.float32), np.zeros(w_shape, np.float32), **around)


# --- blocks ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('stride, with_shortcut, size', [
    (1, False, (8, 8)), (1, True, (8, 8)), (2, True, (8, 8)), (2, True, (7, 10)), (2, True, (1, 3))])
def test_bottleneck_and_its_gradient(dtype, relu, stride, with_shortcut, size):
    """Beside TensorFlow's own operations."""
    rng = np.random.RandomState(3)
    channels, width, out = 64, 32, 128 if with_shortcut else 64
    x, factor = normal(rng, 3, *size, channels), normal(rng, 3, *[-(-n // stride) for n in size], out)
    shapes = [(1, 1, channels, width), (3, 3, width, width), (1, 1, width, out), (1, 1, channels, out)]
    folded = [(normal(rng, *shape) * (shape[0] ** 2 * shape[2]) ** -0.5, normal(rng, shape[3])) for shape in shapes]

    def plain(x):
        def conv(x, k, step=1):
            return tf.nn.conv2d(x, folded[k][0], strides=[1, step, step, 1], padding='SAME') + folded[k][1]
        x = tf.nn.relu(x) if relu else x
        y = conv(tf.nn.relu(conv(tf.nn.relu(conv(x, 0)), 1, stride)), 2)
        return y + (conv(x, 3, stride) if with_shortcut else x)

    with tf.Graph().as_default():
        parts = [FoldedConvolution(tf.constant(w), tf.constant(b), stride if k in (1, 3) else 1)
                 for k, (w, b) in enumerate(folded)]
        image, block = tf.constant(x), Bottleneck(*parts if with_shortcut else parts[:3])
        ours = tf.cast(fused_bottleneck(tf.cast(image, dtype), block, Mode(), relu=relu), tf.float32)
        computed, expected = run([(y, tf.gradients(y, image, factor)[0]) for y in (ours, plain(image))])
    for a, b in zip(computed, expected):
        # in bfloat16 a gradient may pass a ReLU whose input is close to 0, or not
        assert np.linalg.norm(a - b) < (1e-5 if dtype == 'float32' else 0.05) * np.linalg.norm(b)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('relu', [True, False])
def test_gradients_of_the_op(stride, relu):
    """To x and the addend, by TensorFlow's operations."""
    rng = np.random.RandomState(4)
    w, mask, addend = normal(rng, 1, 1, 32, 64), normal(rng, 2, 3, 4, 64), normal(rng, 2, 2, 2, 64)
    x, factor = normal(rng, 2, 3 * stride, 4 * stride, 32), normal(rng, 2, 3, 4, 64)
    with tf.Graph().as_default():
        fed = [tf.placeholder(tf.float32, a.shape) for a in (x, addend)]
        y = frozen_conv(fed[0], frozen_weights(tf.constant(w), tf.float32), relu=relu, mask=tf.constant(mask),
                        stride=stride, addend=Addend(fed[1], relu=relu, stride=2))
        computed = run(tf.gradients(y, fed, factor), dict(zip(fed, (x, addend))))
    passed = factor * (mask > 0)
    d_x = helpers.convolution_gradients(x, w, passed, stride)[0]
    check(computed[0], d_x * (x > 0) if relu else d_x)
    check(computed[1], passed[:, ::2, ::2] * ((addend > 0) | (not relu)))


@pytest.mark.parametrize('size', [(8, 9), (7, 10)])
@pytest.mark.parametrize('symmetric', [False, True])
def test_gradients_of_3x3_with_a_stride(size, symmetric):
    """By TensorFlow's operations, of the convolution and of its gradient."""
    rng = np.random.RandomState(8)
    x, w = normal(rng, 2, *size, 32), normal(rng, 3, 3, 32, 64)
    expected = helpers.convolution(x, w, 2, symmetric)
    factor = normal(rng, *expected.shape)
    with tf.Graph().as_default():
        fed = [tf.placeholder(tf.float32, a.shape) for a in (x, factor)]
        y = frozen_conv(fed[0], frozen_weights(tf.constant(w), tf.float32, stride=2), stride=2, symmetric=symmetric)
        turned = frozen_weights(tf.constant(w), tf.float32, stride=2, turned=True)
        d_x = frozen_conv_gradient(fed[1], turned, fed[0], stride=2, symmetric=symmetric)
        computed = run([tf.gradients(y, fed[0], fed[1])[0], tf.gradients(d_x, fed[1], fed[0])[0]],
                       dict(zip(fed, (x, factor))))
    check(computed[0], helpers.convolution_gradients(x, w, factor, 2, symmetric)[0])
    check(computed[1], expected)


@pytest.mark.parametrize('name', ['ResNetDenoise-14', 'ResNetDenoise-14-median', 'ResNeXtDenoiseAll-14'])
def test_second_derivatives_of_a_network(name):
    """In a loop, as an attacker may want them: beside those of TensorFlow's own convolutions."""
    network = network_named(name)._replace(num_classes=5)
    weights = helpers.random_weights(network.variable_shapes(), seed=0)
    rng = np.random.RandomState(5)
    image, direction = rng.uniform(-1, 1, (2, 33, 33, 3)).astype(np.float32), normal(rng, 2, 33, 33, 3)

    def product(x, mode):
        """Of the matrix of second derivatives and a direction."""
        gradient = tf.gradients(tf.reduce_sum(tf.nn.log_softmax(network.logits(x, mode))[:, 0] ** 2), x)[0]
        return tf.gradients(tf.reduce_sum(gradient * direction), x)[0]

    results = []
    for mode in Mode(), Mode(plain=True):
        with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
            x = tf.placeholder(tf.float32, image.shape)
            _, y = tf.while_loop(lambda i, _: i < 1, lambda i, _, x=x, mode=mode: (i + 1, product(x, mode)),
                                 [0, tf.zeros_like(x)], back_prop=False)
            checkpoint.assign_weights(session, weights)
            results.append(session.run(y, {x: image}))
    assert np.linalg.norm(results[0] - results[1]) < 1e-3 * np.linalg.norm(results[1]) > 0


@pytest.mark.parametrize('arch, used', [('ResNet', 16), ('ResNetDenoise', 28), ('ResNeXtDenoiseAll', 17)])
def test_where_the_op_is_used(arch, used):
    def count(mode):
        with tf.Graph().as_default() as graph:
            Network(arch, 14, 10).logits(tf.zeros([1, 64, 64, 3]), mode)
            return sum(op.type == 'FrozenConv' for op in graph.get_operations())
    assert count(Mode()) == used
    # TensorFlow's own convolutions use matrix units
    assert count(Mode(dtype=tf.bfloat16)) == (used if has_bfloat16() and 'amx_bf16' not in cpu_flags() else 0)
    assert count(Mode(plain=True)) == 0
    assert count(Mode(dtype=tf.float16)) == count(Mode(data_format='NCHW')) == 0
    # in training 3x3 ones of stride 1 on large maps, or all but those with a stride in groups
    # and 1x1 ones on up to 16 positions, which are matrix products
    everywhere = {'ResNet': 11, 'ResNetDenoise': 17, 'ResNeXtDenoiseAll': 10}
    assert count(Mode(training=True)) == (1 if FAST_CONVOLUTION_GRADIENTS else everywhere[arch])


def test_weights_are_prepared_outside_of_the_loop():
    with tf.Graph().as_default() as graph:
        def step(i, x):
            logits = Network('ResNet', 14, 10).logits(x, Mode())
            return i + 1, x - tf.gradients(tf.reduce_sum(logits ** 2), x)[0]
        tf.while_loop(lambda i, x: i < 3, step, [0, tf.zeros([1, 32, 32, 3])], back_prop=False)
        prepared = [op for op in graph.get_operations() if op.type == 'FrozenWeights']
        assert len(prepared) > 10 and all(op._get_control_flow_context() is None for op in prepared)


@pytest.mark.parametrize('height, width', [(32, 32), (14, 22)])
def test_stem_and_its_gradient(height, width):
    """The one with a gradient written by hand, and TensorFlow's own operations."""
    rng = np.random.RandomState(0)
    x, w, bias = normal(rng, 2, height, width, 3), normal(rng, 7, 7, 3, 64), normal(rng, 64)
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, [None, height, width, 3])
        ours = tf.nn.relu(fast_stem(image, tf.constant(w), tf.constant(bias)))
        plain = tf.nn.relu(tf.nn.conv2d(image, w, strides=[1, 2, 2, 1], padding='SAME') + bias)
        plain = tf.nn.max_pool(plain, [1, 3, 3, 1], [1, 2, 2, 1], 'SAME')
        upstream = normal(rng, 2, *plain.shape.as_list()[1:])
        ours, plain = run([(y, tf.gradients(y, image, upstream)[0]) for y in (ours, plain)], {image: x})
    for a, b in zip(ours, plain):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


# --- what is prepared once -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arch', helpers.ARCHITECTURES)
def test_a_pass_takes_weights_that_were_prepared(arch, weights_of):
    """Logits and gradient are the same with these, and others with other ones."""
    pixels = helpers.images(3, 32).astype(np.float32) / 128 - 1
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, [None, 32, 32, 3])
        logits = Network(arch, 14, 10).logits(image, Mode())
        wanted = [logits, tf.gradients(logits[:, 3], image)[0]]
        weights = prepared_weights(wanted)
        assert len(weights) == len({t.name for t in weights}) and {t.op.type for t in weights} == {'FrozenWeights'}
        with tf.Session(config=session_config()) as session:
            checkpoint.assign_weights(session, weights_of(arch))
            values, expected = session.run([weights, wanted], {image: pixels})
            same, other = [session.run(wanted, {image: pixels, **{t: factor * v for t, v in zip(weights, values)}})
                           for factor in (np.float32(1), np.float32(0.5))]
    for a, b, c in zip(same, expected, other):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
        assert np.abs(c - b).max() > 0.01 * np.abs(b).max()
