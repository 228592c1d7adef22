"""The zoo's networks and their layers, against the paper's description and NumPy."""
import json
import os

from runtime.compat import tf, xla_compile

import helpers
import numpy as np
import pytest
from helpers import ARCHITECTURES, NumpyNetwork

import checkpoint
from denoising import non_local_dot_product, non_local_softmax
from kernels.convolution import convolution
from kernels.mode import Mode
from nets import ARCHITECTURES as ZOO
from nets import DEPTHS, Network, find_network
from runtime.errors import InputError
from runtime.hardware import session_config

NHWC, NCHW = Mode(data_format='NHWC'), Mode(data_format='NCHW')
slow = pytest.mark.slow


def run(fetches, feed=None):
    with tf.Session(config=session_config()) as session:
        session.run(tf.global_variables_initializer())
        return session.run(fetches, feed)


def in_layout(build, mode):
    """`build`, which takes features in the mode's layout, as a function of NHWC ones; NCHW needs XLA on a CPU."""
    if mode.data_format == 'NHWC':
        return build
    return lambda *inputs: xla_compile(build, *inputs)


def to_layout(x, mode):
    return x if mode.data_format == 'NHWC' else np.ascontiguousarray(np.transpose(x, [0, 3, 1, 2]))


def to_nhwc(x, mode):
    return x if mode.data_format == 'NHWC' else np.transpose(x, [0, 2, 3, 1])


# --- the zoo ---------------------------------------------------------------------------------------------------------

def test_zoo_has_the_published_networks():
    assert set(ZOO) >= set(ARCHITECTURES)
    assert {depth: DEPTHS[depth] for depth in (50, 101, 152)} == {
        50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_variables_of_the_small_networks(arch):
    assert Network(arch, 14, 7).variable_shapes() == helpers.expected_shapes(arch, 14, 7)


def test_whoever_gets_the_list_of_variables_may_change_it():
    network = Network('ResNetDenoise', 14, 7)
    shapes = network.variable_shapes()
    expected = dict(shapes)
    shapes.clear()
    assert network.variable_shapes() == network._replace(image_size=64).variable_shapes() == expected != {}
    assert network._replace(num_classes=8).variable_shapes()['linear/b'] == (8,)


@slow
@pytest.mark.parametrize('depth', [50, 101, 152])
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_variables_of_the_published_networks(arch, depth):
    shapes = Network(arch, depth).variable_shapes()
    assert shapes == helpers.expected_shapes(arch, depth, 1000)
    if os.environ.get('REFERENCE_DIR'):
        with open(os.path.join(os.environ['REFERENCE_DIR'], 'variables.json')) as f:
            published = json.load(f)['%s-%d' % (arch, depth)]
        assert shapes == {name: tuple(shape) for name, shape in published.items()}


def test_expectations_are_the_published_variables(reference_dir):
    with open(os.path.join(reference_dir, 'variables.json')) as f:
        published = json.load(f)
    assert len(published) == 9
    for name, shapes in published.items():
        arch, depth = name.split('-')
        assert helpers.expected_shapes(arch, int(depth), 1000) == {n: tuple(s) for n, s in shapes.items()}, name


@pytest.mark.parametrize('arch, depth, named', [('NoSuch', 50, ['NoSuch'] + ARCHITECTURES),
                                                ('ResNet', 34, ['34', '50', '101', '152'])])
def test_unknown_network_is_an_input_error(arch, depth, named):
    with pytest.raises(InputError) as e:
        find_network(arch, depth)
    assert all(word in str(e.value) for word in named)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('arch', ['ResNetDenoise', 'ResNeXtDenoiseAll'])
def test_initial_values(arch):
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        Network(arch, 14, 1000).logits(tf.zeros([1, 32, 32, 3]), NHWC)
        values = run({v.op.name: v for v in tf.global_variables()})
    assert len(values) == len(helpers.expected_shapes(arch, 14, 1000))
    for name, value in values.items():
        if name.endswith('/W'):
            height, width, _, out = value.shape if value.ndim == 4 else (1, 1) + value.shape
            deviation = 0.01 if name == 'linear/W' or 'embedding' in name else (2.0 / (height * width * out)) ** 0.5
            # five standard errors
            assert abs(value.std() / deviation - 1) < 5 / np.sqrt(2 * value.size), name
            assert abs(value.mean()) < 5 * deviation / np.sqrt(value.size), name
        elif name.endswith('gamma'):
            assert (value == (0 if helpers.ends_a_branch(name) else 1)).all(), name
        elif name.endswith('variance/EMA'):
            assert (value == 1).all(), name
        else:
            assert name.endswith(('/beta', 'mean/EMA', 'linear/b')) and (value == 0).all(), name


def test_new_denoising_blocks_change_nothing():
    """Their last gamma starts at 0, so a ResNetDenoise starts as the ResNet of its other weights."""
    pixels = helpers.images(2, 32)
    results = {}
    with tf.Graph().as_default():
        image = tf.constant(pixels.astype(np.float32) * (2 / 255) - 1)
        tf.set_random_seed(0)
        results['ResNetDenoise'] = Network('ResNetDenoise', 14, 10).logits(image, NHWC)
        results['ResNet'] = Network('ResNet', 14, 10).logits(image, NHWC)  # reuses the variables
        results = run(results)
    assert np.abs(results['ResNet']).max() > 0
    np.testing.assert_allclose(results['ResNetDenoise'], results['ResNet'], rtol=1e-5, atol=1e-7)


# --- whole networks against NumPy ------------------------------------------------------------------------------------

def compute(network, weights, pixels, mode):
    """Logits of float32 pixels in [0, 255] in a mode; in training mode also the updated variables."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [None] + list(pixels.shape[1:]))
        logits = in_layout(lambda x: network.logits(x, mode), mode)(image)
        with tf.Session(graph=graph, config=session_config()) as session:
            checkpoint.assign_weights(session, weights)
            feed = {image: pixels.astype(np.float32) * (2 / 255) - 1}
            if not mode.training:
                assert not tf.get_collection(tf.GraphKeys.UPDATE_OPS)
                return session.run(logits, feed)
            computed, _ = session.run([logits, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], feed)
            return computed, session.run({v.op.name: v for v in tf.global_variables()})


def assert_close_logits(computed, expected, tolerance=1e-4):
    """Relative to how much an image changes the logits."""
    assert computed.shape == expected.shape and np.isfinite(expected).all()
    deviation = expected.std(axis=0).mean()
    assert deviation > 0.05, 'the images should matter'
    assert np.abs(computed - expected).max() < tolerance * deviation


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_logits_equal_numpy(arch, weights_of):
    """Also with odd sizes on the way: 40, 20, 10, 5, 3 and 2 pixels."""
    weights, pixels = weights_of(arch), helpers.images(3, 40)
    assert_close_logits(compute(Network(arch, 14, 10), weights, pixels, NHWC),
                        NumpyNetwork(arch, 14, weights).logits(pixels))


@slow
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_published_depth_equals_numpy(arch, weights_of):
    weights, pixels = weights_of(arch, 50, 20), helpers.images(2, 64)
    # more blocks add up to larger features: rounding weighs more
    assert_close_logits(compute(Network(arch, 50, 20), weights, pixels, NHWC),
                        NumpyNetwork(arch, 50, weights).logits(pixels), tolerance=1e-3)


@pytest.mark.parametrize('arch', ['ResNet'] + [pytest.param(a, marks=slow) for a in ARCHITECTURES[1:]])
def test_nchw_equals_numpy(arch, weights_of):
    weights, pixels = weights_of(arch), helpers.images(3, 40)
    assert_close_logits(compute(Network(arch, 14, 10), weights, pixels, NCHW),
                        NumpyNetwork(arch, 14, weights).logits(pixels))


@pytest.mark.parametrize('arch', ['ResNetDenoise', 'ResNeXtDenoiseAll'])
def test_training_uses_and_tracks_batch_statistics(arch, weights_of):
    weights, pixels = weights_of(arch), helpers.images(6, 32)
    numpy_network = NumpyNetwork(arch, 14, weights, training=True)
    expected = numpy_network.logits(pixels)
    computed, after = compute(Network(arch, 14, 10), weights, pixels, Mode(training=True))
    assert_close_logits(computed, expected, tolerance=1e-3)

    for name, (mean, variance, count) in numpy_network.statistics.items():
        for kind, value in [('mean', mean), ('variance', variance * count / (count - 1))]:  # the unbiased one
            name_of_average = '%s/bn/%s/EMA' % (name, kind)
            tracked = 0.9 * weights.pop(name_of_average) + 0.1 * value
            np.testing.assert_allclose(after.pop(name_of_average), tracked, rtol=2e-3,
                                       atol=1e-3 * np.abs(tracked).mean(), err_msg=name_of_average)
    assert set(after) == set(weights)
    for name, value in weights.items():
        assert (after[name] == value).all(), name


def test_other_images_of_the_batch_do_not_matter(weights_of):
    arch = 'ResNetDenoise'
    weights, pixels = weights_of(arch), helpers.images(5, 32)
    network = Network(arch, 14, 10)
    together = compute(network, weights, pixels, NHWC)
    np.testing.assert_allclose(together[2:3], compute(network, weights, pixels[2:3], NHWC), rtol=1e-3, atol=1e-4)
    assert np.abs(together[2] - together[3]).max() > 0.05


# --- layers ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size, groups, channels, out, kernel, stride, layout', [
    ((7, 6), 1, 5, 7, 3, 2, 'NHWC'),
    ((7, 6), 1, 5, 7, 3, 2, 'NCHW'),
    ((7, 6), 1, 5, 7, 1, 2, 'NHWC'),
    ((9, 9), 1, 4, 3, 1, 2, 'NHWC'),
    ((4, 4), 1, 5, 7, 1, 1, 'NHWC'),
    ((1, 1), 1, 5, 7, 3, 1, 'NHWC'),  # the middle of the kernel
    ((2, 2), 1, 5, 7, 3, 2, 'NHWC'),  # its upper left
    ((1, 2), 1, 5, 7, 3, 2, 'NHWC'),
    ((2, 2), 1, 5, 7, 7, 2, 'NHWC'),
    ((2, 2), 1, 5, 7, 3, 1, 'NHWC'),
    ((7, 6), 32, 256, 256, 3, 1, 'NHWC'),  # as in ResNeXt's first group: 8 channels in each
    pytest.param((7, 6), 8, 64, 64, 3, 2, 'NCHW', marks=slow),
    ((7, 6), 32, 512, 512, 3, 2, 'NHWC'),
    ((7, 6), 3, 9, 6, 3, 2, 'NHWC'),  # not a power of two
    ((7, 6), 3, 9, 6, 3, 2, 'NCHW'),
    ((7, 6), 5, 60, 10, 3, 1, 'NHWC'),  # 12 channels in each of five
    ((7, 6), 2, 160, 4, 1, 1, 'NHWC'),  # wide groups
    ((1, 1), 4, 8, 8, 3, 1, 'NHWC'),
    ((7, 6), 4, 8, 8, 1, 2, 'NHWC'),  # most positions have no gradient
    ((5, 8), 2, 40, 36, 5, 3, 'NHWC'),  # 18 outputs a group: 16 and 2
])
def test_convolution_and_its_gradients(size, groups, channels, out, kernel, stride, layout):
    check_convolution(size, groups, channels, out, kernel, stride, layout)


@pytest.mark.parametrize('size, groups, channels, out, kernel, stride, layout', [
    ((8, 7), 1, 5, 7, 3, 2, 'NHWC'),  # the even size tells it from SAME
    ((8, 7), 1, 5, 7, 3, 2, 'NCHW'),
    ((8, 8), 4, 8, 8, 3, 2, 'NHWC'),
    ((8, 7), 1, 32, 32, 3, 2, 'NHWC'),  # as trained
    ((2, 2), 1, 5, 7, 3, 2, 'NHWC'),  # one position is left, under the kernel's lower right
    ((8, 8), 1, 5, 7, 1, 2, 'NHWC'),
])
@pytest.mark.parametrize('training', [False, True])
def test_symmetric_padding(size, groups, channels, out, kernel, stride, layout, training):
    check_convolution(size, groups, channels, out, kernel, stride, layout, symmetric=True, training=training)


def check_convolution(size, groups, channels, out, kernel, stride, layout, symmetric=False, training=False):
    mode = Mode(data_format=layout, training=training)
    rng = np.random.RandomState(0)
    x = rng.standard_normal((2,) + size + (channels,)).astype(np.float32)
    w = (rng.standard_normal((kernel, kernel, channels // groups, out)) * 0.2).astype(np.float32)
    expected = helpers.convolution(x, w, stride, symmetric)
    upstream = rng.standard_normal(expected.shape).astype(np.float32)

    def build(features, weights, factors):
        y = convolution(features, weights, mode, stride, symmetric=symmetric)
        d_x, d_w = tf.gradients(tf.reduce_sum(y * factors), [features, weights])
        return tf.concat([tf.reshape(t, [-1]) for t in (y, d_x, d_w)], axis=0)

    with tf.Graph().as_default():
        flat = run(in_layout(build, mode)(*[tf.constant(a) for a in (
            to_layout(x, mode), w, to_layout(upstream, mode))]))
    y, d_x, d_w = np.split(flat, np.cumsum([expected.size, x.size]))
    d_x_expected, d_w_expected = helpers.convolution_gradients(x, w, upstream, stride, symmetric)
    for computed, value, layout_changes in [(y, expected, True), (d_x, d_x_expected, True), (d_w, d_w_expected, False)]:
        if layout_changes:
            computed = to_nhwc(computed.reshape(to_layout(value, mode).shape), mode)
        np.testing.assert_allclose(computed.reshape(value.shape), value, atol=1e-4 * np.abs(value).max())


def check_block(operation, expected, x, mode, tolerance=1e-5):
    with tf.Graph().as_default():
        tf.set_random_seed(3)
        variables = {}

        def build(features):
            y = operation(features, mode)
            variables.update({v.op.name: v for v in tf.global_variables()})
            return y

        y = in_layout(build, mode)(tf.cast(tf.constant(to_layout(x, mode)), mode.dtype))
        y, values = run([tf.cast(y, tf.float32), variables])
    value = expected(x, values)
    np.testing.assert_allclose(to_nhwc(y, mode), value, atol=tolerance * np.abs(value).max())


@pytest.mark.parametrize('layout', ['NHWC', 'NCHW'])
@pytest.mark.parametrize('shape', [(2, 3, 4, 20), (2, 6, 5, 4), (1, 3, 2, 6), (2, 1, 1, 8)])
def test_dot_product_denoising(shape, layout):
    """With fewer, more and as many positions than channels."""
    x = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    check_block(non_local_dot_product, lambda x, _: helpers.dot_product_denoising(x), x, Mode(data_format=layout))


@pytest.mark.parametrize('layout', ['NHWC', 'NCHW'])
def test_softmax_denoising(layout):
    # large features: the embeddings start small, and the softmax should not be flat
    x = (np.random.RandomState(0).standard_normal((2, 5, 4, 16)) * 30).astype(np.float32)

    def expected(x, weights):
        theta, phi = [weights['embedding_%s/W' % e][0, 0] for e in ['theta', 'phi']]
        assert theta.shape == phi.shape == (16, 8)
        y = helpers.softmax_denoising(x, theta, phi)
        assert np.abs(y - x.mean(axis=(1, 2), keepdims=True)).max() > 0.5, 'not just the mean over positions'
        return y

    check_block(non_local_softmax, expected, x, Mode(data_format=layout))


@pytest.mark.parametrize('shape, layout', [((1, 28, 28, 512), 'NHWC'), ((1, 14, 14, 1024), 'NCHW')])
def test_dot_product_denoising_in_float16(shape, layout):
    """As large as for images of 224 pixels: the result is far inside of float16's range, and must not overflow."""
    x = np.abs(np.random.RandomState(0).standard_normal(shape)).astype(np.float32)
    expected = helpers.dot_product_denoising(x)
    assert expected.max() < 0.1 * np.finfo(np.float16).max
    mode = Mode(data_format=layout, dtype=tf.float16)
    with tf.Graph().as_default():
        y = run(xla_compile(lambda features: non_local_dot_product(features, mode),
                            tf.constant(to_layout(x, mode).astype(np.float16))))
    np.testing.assert_allclose(to_nhwc(y, mode), expected, atol=0.02 * expected.max())


@slow
@pytest.mark.parametrize('layout', ['NHWC', 'NCHW'])
def test_float16_logits(layout, weights_of):
    """As the float16 attack computes them."""
    weights, pixels = weights_of('ResNetDenoise'), helpers.images(4, 32)
    network = Network('ResNetDenoise', 14, 10)
    with tf.Graph().as_default() as graph:
        mode = Mode(data_format=layout, dtype=tf.float16)
        logits = xla_compile(lambda x: network.logits(x, mode), tf.constant(pixels.astype(np.float32) * (2 / 255) - 1))
        assert logits.dtype == tf.float32
        assert all(v.dtype.base_dtype == tf.float32 for v in tf.global_variables())
        with tf.Session(graph=graph, config=session_config()) as session:
            checkpoint.assign_weights(session, weights)
            computed = session.run(logits)
    expected = NumpyNetwork('ResNetDenoise', 14, weights).logits(pixels)
    # float16 rounds by up to 1/2048 in each of some 20 layers
    assert 1e-5 < np.abs(computed - expected).max() / np.abs(expected).max() < 0.02
