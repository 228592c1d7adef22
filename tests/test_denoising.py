"""Every denoising operation and block, beside NumPy in float64, and the networks that are made of them."""
from runtime.compat import tf, xla_compile

import helpers
import numpy as np
import pytest
from forked import run_main
from jobs import FAKE
from lanes import once
from other_cpus import call_as

import checkpoint
import fitting
import nets
from denoising import OPERATIONS, denoising_block
from kernels.mode import Mode
from main import parse_options
from nets import find_network, network_named
from resnet_model import Features
from runtime.errors import InputError
from runtime.hardware import session_config

NHWC = Mode()
# of the largest number: of the shorter dtypes eight roundings
ROUNDING = {'float32': 1e-5, 'float16': 8 * 2 ** -11, 'bfloat16': 8 * 2 ** -9}


# --- NumPy -----------------------------------------------------------------------------------------------------------

def neighbours(x, i, j, repeated):
    """Yield (row, column) of the 3x3 neighbours of a position: those that exist, or with the map's edge repeated."""
    height, width = x.shape[1:3]
    for row in (i - 1, i, i + 1):
        for column in (j - 1, j, j + 1):
            inside = 0 <= row < height and 0 <= column < width
            if inside or repeated:
                yield min(max(row, 0), height - 1), min(max(column, 0), width - 1)


def filtered(x, of_position, repeated=False):
    """Compute of_position(i, j, values (N, neighbours, channels), their (row, column)) everywhere."""
    y = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            places = list(neighbours(x, i, j, repeated))
            y[:, i, j] = of_position(i, j, np.stack([x[:, r, c] for r, c in places], axis=1), places)
    return y


def pairwise(x, theta, phi, kind):
    """`kind`: words of an operation's name. theta, phi: maps."""
    d = theta.shape[3]

    def weights(products):
        return helpers.softmax(products / np.sqrt(d)) if 'softmax' in kind else products / products.shape[-1]
    if 'bilateral' in kind:
        return filtered(x, lambda i, j, values, places: np.einsum('nk,nkc->nc', weights(np.stack(
            [(theta[:, i, j] * phi[:, r, c]).sum(axis=-1) for r, c in places], axis=1)), values))
    t, p, m = [a.reshape(len(a), -1, a.shape[3]) for a in (theta, phi, x)]
    return (weights(t @ p.transpose(0, 2, 1)) @ m).reshape(x.shape)


def expected(name, x, weights):
    if name == 'none':
        return x
    if name == 'mean':
        return filtered(x, lambda i, j, values, places: values.mean(axis=1))
    if name == 'median':
        return filtered(x, lambda i, j, values, places: np.median(values, axis=1), repeated=True)
    theta, phi = [x @ weights['embedding_%s/W' % e][0, 0].astype(np.float64) for e in ('theta', 'phi')] \
        if name in nets.EMBEDDED else (x, x)
    return pairwise(x, theta, phi, name)


def gradients_of(function, x, upstream):
    """Differentiate sum(function(x) * upstream) by differences."""
    step, gradient = 1e-5, np.empty(x.size)
    for k in range(x.size):
        moved = [x.copy(), x.copy()]
        for value, sign in zip(moved, (1, -1)):
            value.flat[k] += sign * step
        gradient[k] = ((function(moved[0]) - function(moved[1])) * upstream).sum() / (2 * step)
    return gradient.reshape(x.shape)


# --- TensorFlow ------------------------------------------------------------------------------------------------------

def compute(build, x, upstream, mode, seed=0):
    """Return y = build(x) and the gradient of sum(y * upstream), as NHWC float64, and the variables' values, drawn by
    `seed` so that weights matter."""
    nchw = mode.data_format == 'NCHW'

    def both(features, factors):
        y = build(features)
        return tf.concat([tf.reshape(tf.cast(t, tf.float32), [-1]) for t in
                          (y, tf.gradients(y, features, factors)[0])], axis=0)
    with tf.Graph().as_default() as graph:
        fed = [tf.placeholder(tf.float32, (np.transpose(a, [0, 3, 1, 2]) if nchw else a).shape) for a in (x, upstream)]
        low = [tf.cast(t, mode.dtype) for t in fed]
        flat = xla_compile(both, *low) if nchw else both(*low)
        rng = np.random.RandomState(seed)
        weights = {v.op.name: random_value(rng, v) for v in tf.global_variables()}
        with tf.Session(graph=graph, config=session_config()) as session:
            checkpoint.assign_weights(session, weights)
            flat = session.run(flat, {t: np.transpose(a, [0, 3, 1, 2]) if nchw else a
                                      for t, a in zip(fed, (x, upstream))})
    parts = [part.reshape(fed[0].shape.as_list()).astype(np.float64) for part in np.split(flat, 2)]
    return [np.transpose(part, [0, 2, 3, 1]) if nchw else part for part in parts], weights


def random_value(rng, variable):
    shape = variable.shape.as_list()
    if variable.op.name.endswith('/W'):
        return rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[2]).astype(np.float32)
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


def features(shape, dtype='float32'):
    """Draw a map and a gradient, of numbers that `dtype` has. None of the map is another one's equal: of its median
    differences would tell nothing then."""
    rng = np.random.RandomState(sum(shape))
    x = np.abs(rng.standard_normal(shape))
    upstream = rng.standard_normal(shape)
    if dtype == 'bfloat16':
        return [(a.astype(np.float32).view(np.uint32) & 0xffff0000).view(np.float32) for a in
                (x.astype(np.float32), upstream.astype(np.float32))]
    return [a.astype(dtype).astype(np.float32) for a in (x, upstream)]


def check(name, shape, mode, *, gradients=True):
    dtype = mode.dtype.name
    x, upstream = features(shape, dtype)
    (y, d_x), weights = compute(lambda f: OPERATIONS[name](f, mode), x, upstream, mode)
    x, upstream = x.astype(np.float64), upstream.astype(np.float64)
    if dtype != 'float32':
        weights = {n: v.astype(np.float16) if dtype == 'float16' else v for n, v in weights.items()}
    value = expected(name, x, weights)
    np.testing.assert_allclose(y, value, rtol=0, atol=ROUNDING[dtype] * np.abs(value).max())
    if gradients:
        value = gradients_of(lambda a: expected(name, a, weights), x, upstream)
        np.testing.assert_allclose(d_x, value, rtol=0, atol=ROUNDING[dtype] * np.abs(value).max())


SHAPES = [(2, 5, 3, 6), (1, 1, 7, 4), (1, 4, 1, 4), (2, 1, 1, 4), (1, 2, 2, 8)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', OPERATIONS)
def test_values_and_gradients(name, shape):
    check(name, shape, NHWC)


# TensorFlow 1's XLA takes long for the median's many comparisons
@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name == 'median'))
                                  for name in OPERATIONS])
def test_values_and_gradients_in_nchw(name):
    check(name, SHAPES[0], Mode(data_format='NCHW'))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', OPERATIONS)
def test_few_digits(name, dtype):
    # a rounded number may be another one's equal, and then which of them is the median is another one's question
    check(name, SHAPES[0], Mode(dtype=tf.as_dtype(dtype)), gradients=name != 'median')


def test_where_the_median_is_several():
    """As after a ReLU, which makes many zeros: all of the gradient arrives, at neighbours with that value."""
    x = np.maximum(np.random.RandomState(0).standard_normal((4, 5, 3)), 0).astype(np.float32)
    upstream = np.zeros((20, 4, 5, 3))  # for each position an image
    for k in range(20):
        upstream[k, k // 5, k % 5] = 1
    (y, d_x), _ = compute(lambda f: OPERATIONS['median'](f, NHWC), np.stack([x] * 20), upstream, NHWC)
    assert (d_x.sum(axis=(1, 2)) == 1).all()
    np.testing.assert_array_equal(y[0].reshape(20, 3), (d_x * x).sum(axis=(1, 2)))
    near = [list(neighbours(d_x, k // 5, k % 5, False)) for k in range(20)]
    assert all(sum(d_x[k][place].sum() for place in near[k]) == 3 for k in range(20))


def check_medians():
    """By the op for CPUs beside TensorFlow's comparisons, to the last bit: threads take 128 channels or more, and the
    gradient is computed of 128 at a time. A second time with equal numbers, as after a ReLU."""
    maps = [features(shape) for shape in [(2, 5, 3, 70), (1, 1, 9, 130), (3, 7, 8, 128), (1, 6, 1, 3), (1, 4, 5, 300)]]
    for x, upstream in maps + [(np.maximum(x - 0.7, 0), upstream) for x, upstream in maps]:
        (y, d_x), (y_plain, d_plain) = [
            compute(lambda f, mode=mode: OPERATIONS['median'](f, mode), x, upstream, mode)[0]
            for mode in (NHWC, Mode(plain=True))]
        np.testing.assert_array_equal(y, y_plain)
        np.testing.assert_allclose(d_x, d_plain, rtol=0, atol=1e-6 * np.abs(d_plain).max())


def test_medians():
    check_medians()


@pytest.mark.parametrize('isa', ['any_cpu', 'avx2'])
def test_medians_on_other_cpus(isa):
    call_as(isa, 'test_denoising', 'check_medians()')


@pytest.mark.parametrize('row', range(6))
def test_the_median_of_what_is_no_number(row):
    """It is none, wherever it stands in the window, so that a training sees that it diverges; no gradient is lost."""
    x, upstream = features((1, 6, 6, 140))
    for channel in range(0, 140, 2):
        x[0, row, channel // 2 % 6, channel] = np.nan
    (y, d_x), _ = compute(lambda f: OPERATIONS['median'](f, NHWC), x, upstream, NHWC)
    np.testing.assert_array_equal(y, expected('median', x.astype(np.float64), {}).astype(np.float32))
    assert np.isnan(y).any()
    np.testing.assert_allclose(d_x.sum(axis=(1, 2)), upstream.sum(axis=(1, 2)), atol=1e-5)


@pytest.mark.parametrize('shape', [(0, 3, 3, 4), (1, 0, 3, 4), (1, 3, 0, 4), (1, 3, 3, 0)])
def test_the_median_of_nothing(shape):
    nothing = np.zeros(shape, np.float32)
    (y, d_x), _ = compute(lambda f: OPERATIONS['median'](f, NHWC), nothing, nothing, NHWC)
    assert y.shape == d_x.shape == shape


def test_the_table_has_the_names():
    assert tuple(OPERATIONS) == nets.OPERATIONS
    assert {name for name, operation in OPERATIONS.items() if getattr(operation, 'embedded', False)} == set(
        nets.EMBEDDED)


# --- blocks ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('relu_to_come', [True, False])
@pytest.mark.parametrize('form', nets.FORMS)
@pytest.mark.parametrize('name', ['softmax', 'dot-product-plain', 'bilateral-dot-product', 'median'])
def test_block(name, form, relu_to_come):
    """By the kernels for constant weights where the CPU has them, beside TensorFlow's layer by layer, and NumPy."""
    x, upstream = features((2, 4, 3, 64))
    x = x - 0.5
    block = denoising_block(OPERATIONS[name], form)
    (y, d_x), weights = compute(lambda f: block(Features(f, relu_to_come), 'b', NHWC), x, upstream, NHWC)
    plain = Mode(plain=True)
    (y_plain, d_plain), _ = compute(lambda f: block(Features(f, relu_to_come), 'b', plain), x, upstream, plain)
    after = np.maximum(x, 0) if relu_to_come else x
    after = after.astype(np.float64)
    value = expected(name, after, {n[2:]: v for n, v in weights.items()})
    if form != 'no-1x1':
        w, gamma, beta, mean, variance = [weights['b/conv/' + n].astype(np.float64) for n in (
            'W', 'bn/gamma', 'bn/beta', 'bn/mean/EMA', 'bn/variance/EMA')]
        value = (value @ w[0, 0] - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    value = value + (after if form != 'no-residual' else 0)
    for computed, other in [(y, value), (y_plain, value), (d_x, d_plain)]:
        np.testing.assert_allclose(computed, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize('form, gamma', [('full', 0), ('no-residual', 1)])
def test_how_a_block_begins(form, gamma):
    """As the identity, or where nothing is added to the features, as something."""
    with tf.Graph().as_default():
        x = tf.random_uniform([1, 3, 3, 32])
        y = denoising_block(OPERATIONS['mean'], form)(Features(x, False), 'b', Mode(training=True))
        variables = {v.op.name: v for v in tf.global_variables()}
        with tf.Session(config=session_config()) as session:
            session.run(tf.global_variables_initializer())
            (before, after), scale = session.run([x, y]), session.run(variables['b/conv/bn/gamma'])
    assert (scale == gamma).all() and np.isfinite(after).all() and after.std() > 0.1
    assert np.array_equal(before, after) == (form == 'full')


# --- networks --------------------------------------------------------------------------------------------------------

def test_names():
    """A network has one name, also where it is said what it is anyway."""
    assert find_network('ResNetDenoise', 14, denoise='softmax', denoise_where='group', denoise_block='full') == \
        find_network('ResNetDenoise', 14)
    for name, flags in [('ResNetDenoise-14', ''), ('ResNetDenoise-50-mean', '--denoise mean'),
                        ('ResNeXtDenoiseAll-50-group', '--denoise-where group'),
                        ('ResNetDenoise-50-bilateral-dot-product-block-no-1x1',
                         '--denoise bilateral-dot-product --denoise-where block --denoise-block no-1x1')]:
        network = network_named(name)
        assert network.name == name
        assert network.flags == ['--arch', network.arch, '-d', str(network.depth)] + flags.split()


@pytest.mark.parametrize('name, changes', [
    ('mean', {}), ('dot-product', {'embedding': True}), ('none-block', {'where': 'block'}),
    ('bilateral-softmax-no-residual', {'embedding': True}), ('median-no-1x1', {'conv': False})])
def test_variables(name, changes):
    """Of an operation its embeddings, of a form its convolution, and of a place its name."""
    shapes = network_named('ResNetDenoise-14-' + name)._replace(num_classes=7).variable_shapes()
    wanted = helpers.expected_shapes('ResNet', 14, 7)
    for group, channels in enumerate([256, 512, 1024, 2048]):
        where = 'group%d_denoise/' % group if 'where' not in changes else 'group%d/block0/non_local/' % group
        if changes.get('embedding'):
            wanted.update({where + 'embedding_%s/W' % e: (1, 1, channels, channels // 2) for e in ('theta', 'phi')})
        if changes.get('conv', True):
            wanted[where + 'conv/W'] = (1, 1, channels, channels)
            wanted.update({where + 'conv/bn/' + s: (channels,) for s in ('gamma', 'beta', 'mean/EMA', 'variance/EMA')})
    assert shapes == wanted


def test_placebo_has_a_bottleneck_more_in_each_group():
    assert 3 * sum(find_network('ResNetPlacebo', 152).num_blocks) + 2 == 164
    shapes = find_network('ResNetPlacebo', 14, 7).variable_shapes()
    more = set(shapes) - set(helpers.expected_shapes('ResNet', 14, 7))
    assert {name.rsplit('/conv', 1)[0] for name in more} == {'group%d/block1' % g for g in range(4)}
    assert {shapes['group3/block1/conv%d/W' % k] for k in (1, 3)} == {(1, 1, 2048, 512), (1, 1, 512, 2048)}


@pytest.mark.parametrize('name', ['median-block', pytest.param('bilateral-softmax', marks=pytest.mark.slow),
                                  pytest.param('mean-no-1x1', marks=pytest.mark.slow)])
def test_a_network_is_attacked(name, tmp_path):
    """As load_classifier makes it, on images whose last map has a single position."""
    from inference import load_classifier
    network = network_named('ResNetDenoise-14-' + name)._replace(num_classes=5)
    path = str(tmp_path / 'a.npz')
    np.savez(path, **helpers.random_weights(network.variable_shapes(), 0))
    classifier = load_classifier(path, 'ResNetDenoise', 14, image_size=32, batch=2, denoise=network.denoise,
                                 denoise_where=network.denoise_where, denoise_block=network.denoise_block)
    images = helpers.images(2, 32)
    logits = classifier.logits(images)
    adversarial, targets = classifier.pgd(images, [0, 1], targets=[2, 2], steps=2, epsilon=8.)
    assert np.isfinite(logits).all() and np.abs(logits - logits[0]).max() > 0
    after = helpers.target_margin(classifier.logits(adversarial), targets)
    assert (after > helpers.target_margin(logits, targets)).all()


@pytest.mark.parametrize('arch, flags, said', [
    ('ResNetDenoise', dict(denoise='gaussian'), '--denoise is one of softmax, .*, none, not .gaussian.'),
    ('ResNetDenoise', dict(denoise_where='layer'), '--denoise-where is one of group, block, not .layer.'),
    ('ResNetDenoise', dict(denoise_block='none'), '--denoise-block is one of full, no-1x1, no-residual, not .none.'),
    ('ResNet', dict(denoise='mean'), '--denoise mean: ResNet has no denoising blocks; ResNetDenoise and'),
    ('ResNetPlacebo', dict(denoise_block='no-1x1'), 'ResNetPlacebo has no denoising blocks'),
    ('resnet50', dict(denoise='none'), 'resnet50 has no denoising blocks'),
    ('examples.efficientnet_lite0:network', dict(denoise_where='block'), 'has no denoising blocks')])
def test_bad_input(arch, flags, said):
    with pytest.raises(InputError, match=said):
        find_network(arch, **flags)


# --- checkpoints -----------------------------------------------------------------------------------------------------

@pytest.fixture
def saved(tmp_path):
    """Return saved(name, record) -> the path of a checkpoint of that network with 7 classes."""
    def save(name, record):
        network = network_named(name)._replace(num_classes=7)
        path = str(tmp_path / ('%s-%d.npz' % (name, record)))
        weights = helpers.random_weights(network.variable_shapes(), 0)
        if record:
            weights[checkpoint.DENOISING] = checkpoint.denoising_record(network)
        np.savez(path, **weights)
        return path
    return save


def test_another_operation_with_the_same_variables_is_warned_of(saved):
    mean, median = [network_named('ResNetDenoise-14-' + name)._replace(num_classes=7) for name in ('mean', 'median')]
    path = saved('ResNetDenoise-14-mean', True)
    fitting.fit_checkpoint(checkpoint.read_checkpoint(path), median, path)
    assert fitting.mistaken_denoising(mean, path) == []
    warning, = fitting.mistaken_denoising(median, path)
    assert '--denoise mean --denoise-where group --denoise-block full' in warning and 'median' in warning
    assert '\n' not in warning
    assert fitting.mistaken_denoising(median, saved('ResNetDenoise-14-mean', False)) == [], 'it does not say'


def test_blocks_without_variables_are_warned_of_where_nothing_says_that_they_are_there(saved):
    network = network_named('ResNetDenoise-14-median-no-1x1')._replace(num_classes=7)
    for name, record, warned in [('ResNet-14', False, 1), ('ResNetDenoise-14-median-no-1x1', True, 0)]:
        path = saved(name, record)
        fitting.fit_checkpoint(checkpoint.read_checkpoint(path), network, path)
        said = fitting.mistaken_denoising(network, path)
        assert len(said) == warned and all('those of %s have no variables' % network.name in text for text in said)


@pytest.mark.parametrize('record', [False, True])
@pytest.mark.parametrize('name, own', [('ResNetDenoise-14-median', 'dot-product-plain'),
                                       pytest.param('ResNetDenoise-14-bilateral-softmax-block', None,
                                                    marks=pytest.mark.slow)])
def test_advice(name, own, record, saved):
    network, path = network_named('ResNetDenoise-14')._replace(num_classes=7), saved(name, record)
    with pytest.raises(InputError) as e:
        fitting.fit_checkpoint(checkpoint.read_checkpoint(path), network, path)
    advice = str(e.value)[str(e.value).index('It fits'):]
    if record:
        assert advice == 'It fits ' + ' '.join(network_named(name).flags)
    else:
        fits = network_named(name)._replace(denoise=own)
        assert advice.startswith('It fits %s; or it has other blocks with the same variables' % ' '.join(fits.flags))
        assert network_named(name).denoise in advice


# --- main.py ---------------------------------------------------------------------------------------------------------

@once
@pytest.mark.slow
def test_training_says_what_it_trains(tmp_path, caplog):
    """In the log directory's name and in the checkpoint, which then is warned of where it is loaded as another."""
    from inference import load_classifier
    flags = ['--arch', 'ResNetDenoise', '--denoise', 'mean', '--denoise-where', 'group', '--steps-per-epoch', '1']
    done = run_main(*FAKE, *flags, '--max-epoch', '1', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = str(tmp_path / 'train_log' / 'PGD-ResNetDenoise14-mean-Batch4-1GPUs-iter0-epsilon16.0-step1.0' / 'model-1')
    assert checkpoint.recorded_denoising(path) == ('mean', 'group', 'full')
    resumed = run_main(*FAKE, *flags, '--max-epoch', '2', '--resume', cwd=tmp_path)
    assert resumed.returncode == 0 and checkpoint.recorded_denoising(path[:-1] + '2') is not None, resumed.stderr
    for denoise, warned in [('mean', 0), ('median', 1)]:
        caplog.clear()
        load_classifier(path, 'ResNetDenoise', 14, image_size=32, denoise=denoise)
        assert sum('--denoise mean' in record.getMessage() for record in caplog.records) == warned


@pytest.mark.parametrize('flags, said', [
    ('--arch ResNetDenoise --denoise gaussian', '--denoise is one of softmax, '),
    ('--arch ResNetDenoise --denoise=', '--denoise is one of softmax, '),
    ('--arch ResNetDenoise --denoise-where layer', '--denoise-where is one of group, block'),
    ('--denoise mean', 'ResNet has no denoising blocks')])
def test_bad_flags(flags, said):
    with pytest.raises(InputError, match=said):
        parse_options(['--fake'] + flags.split())
