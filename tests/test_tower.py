"""The training tower of a small network, against NumPy: its graph, its cost, and what an attack leaves alone."""
from runtime.compat import tf  # before tensorpack

import helpers
import numpy as np
import pytest
from helpers import NumpyNetwork
from lanes import once
from tensorpack.tfutils.tower import TrainTowerContext
from test_attack import LOOPS, pgd_attacker

import checkpoint
from adv_model import CLEAN_START_PROBABILITY, AdversarialModel, NoOpAttacker, PGDAttacker, scale_pixels
from kernels.mode import Mode, attack_settings
from nets import Network
from runtime.hardware import session_config  # before tensorpack
from runtime.pixels import unscale_pixels


class RecordingAttacker(PGDAttacker):
    """Keeps its tensors for the test."""

    def attack(self, image, label, logits, index=None):
        self.image = image
        self.result = super().attack(image, label, logits, index)
        return self.result


@pytest.fixture(scope='module')
def tower(weights_of):
    """The training tower of a small network with random weights, and its session."""
    weights = weights_of('ResNetDenoise')
    attacker = RecordingAttacker(3, 16., 1., num_classes=10, clean_start_probability=CLEAN_START_PROBABILITY)
    with tf.Graph().as_default() as graph:
        model = AdversarialModel(Network('ResNetDenoise', 14, 10), attacker, 32, mode=Mode(), attack_mode=Mode())
        inputs = [tf.placeholder(spec.dtype, spec.shape, name=spec.name) for spec in model.inputs()]
        with TrainTowerContext(''):
            cost = model.build_graph(*inputs)
        network_variables = [v for v in tf.global_variables() if v.op.name in weights]
        assert len(network_variables) == len(weights)
        session = tf.Session(config=session_config())
        session.run(tf.global_variables_initializer())
        for variable in network_variables:
            variable.load(weights[variable.op.name], session)
        yield dict(graph=graph, attacker=attacker, inputs=inputs, cost=cost, session=session, weights=weights,
                   variables=network_variables)
        session.close()


def training_batch():
    return helpers.images(6, 32, seed=3), np.array([0, 9, 3, 3, 5, 1], np.int32)


def test_the_tower_takes_uint8_images():
    specs = AdversarialModel(Network('ResNet', 14), NoOpAttacker(), 224, mode=Mode(), attack_mode=Mode()).inputs()
    assert [(s.dtype, s.shape.as_list()) for s in specs] == [(tf.uint8, [None, 224, 224, 3]), (tf.int32, [None])]


def test_attack_in_the_tower_is_one_loop_with_folded_weights_outside(tower):
    operations = tower['graph'].get_operations()
    assert sum(op.type in LOOPS for op in operations) == 1
    in_loop = [op for op in operations if op._get_control_flow_context() is not None]
    assert any(op.type == 'Conv2D' for op in in_loop) and any(op.type == 'Sign' for op in in_loop)
    # what scales the weights by BatchNorm's coefficients runs once per attack
    assert any(op.type == 'Rsqrt' for op in operations) and not any(op.type == 'Rsqrt' for op in in_loop)


def test_attack_leaves_the_statistics_of_batchnorm_alone(tower):
    norms = sum(name.endswith('/gamma') for name in tower['weights'])
    with tower['graph'].as_default():
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    assert len(updates) == 2 * norms and len(set(updates)) == 2 * norms, 'mean and variance of the tower alone'
    assert all(op._get_control_flow_context() is None for op in updates)
    session, feed = tower['session'], dict(zip(tower['inputs'], training_batch()))
    for fetched in tower['attacker'].result, tower['cost']:
        session.run(fetched, feed)
        for variable, value in zip(tower['variables'], session.run(tower['variables'])):
            assert (value == tower['weights'][variable.op.name]).all(), variable.op.name


def test_gradient_does_not_pass_the_attack(tower):
    with tower['graph'].as_default():
        assert tf.gradients(tower['cost'], [tower['attacker'].image, tower['attacker'].result[0]])[0] is None


def test_cost_and_metrics_equal_numpy(tower):
    pixels, label = training_batch()
    named = [tower['graph'].get_tensor_by_name(name + ':0') for name in [
        'smoothed-loss', 'l2_regularize_loss', 'train-error-top1', 'train-error-top5', 'attack-success-rate']]
    cost, (adversarial, target), (loss, decay, error_1, error_5, success) = tower['session'].run(
        [tower['cost'], tower['attacker'].result, named], dict(zip(tower['inputs'], [pixels, label])))
    assert np.abs((adversarial + 1) * 127.5 - pixels).max() > 10, 'it is the attacked images that are learnt'

    weights = tower['weights']
    logits = NumpyNetwork('ResNetDenoise', 14, weights, training=True).logits((adversarial + 1) * 127.5)
    assert loss == pytest.approx(helpers.smoothed_cross_entropy(logits, label, 0.1).mean(), rel=1e-3)
    squares = sum((value.astype(np.float64) ** 2).sum() for name, value in weights.items() if name.endswith('/W'))
    assert decay == pytest.approx(1e-4 / 2 * squares, rel=1e-4)
    assert cost == pytest.approx(loss + decay, rel=1e-5)
    order = np.argsort(-logits, axis=1)
    assert error_1 == pytest.approx((order[:, 0] != label).mean())
    assert error_5 == pytest.approx((order[:, :5] != label[:, None]).all(axis=1).mean())
    assert success == pytest.approx((order[:, 0] == target).mean())


def test_without_an_attack_its_success_is_unknown(tower):
    """It is no figure of a standard training, of which it would be 0."""
    def summaries(graph):
        return {op.name.split('/')[-1] for op in graph.get_collection(tf.GraphKeys.SUMMARIES)
                for op in [op.op]} | {v.name for v in graph.get_operations() if 'EMA/attack-success-rate' in v.name}

    with tf.Graph().as_default() as graph:
        model = AdversarialModel(Network('ResNet', 14, 10), NoOpAttacker(), 32, mode=Mode(), attack_mode=Mode())
        with TrainTowerContext(''):
            model.build_graph(*[tf.placeholder(spec.dtype, spec.shape, name=spec.name) for spec in model.inputs()])
    attacked, plain = [' '.join(summaries(g)) for g in (tower['graph'], graph)]
    assert 'train-error-top1' in attacked and 'train-error-top1' in plain
    assert 'attack-success-rate' in attacked and 'attack-success-rate' not in plain


def test_optimizer_is_nesterov_momentum(session):
    model = AdversarialModel(Network('ResNet', 14), NoOpAttacker(), 32, mode=Mode(), attack_mode=Mode())
    value = tf.get_variable('value', initializer=[1.0, -2.0])
    step = model.optimizer().minimize(tf.reduce_sum(value ** 2))
    session.run(tf.global_variables_initializer())
    x, momentum = np.array([1.0, -2.0]), 0.0
    for _ in range(3):
        session.run(step)
        momentum = 0.9 * momentum + 2 * x
        x = x - 0.1 * (2 * x + 0.9 * momentum)
        np.testing.assert_allclose(session.run(value), x, rtol=1e-5)


def weights_for_float16(arch, weights):
    """In ResNeXtDenoiseAll with smaller features: dot-product denoising is cubic in them, and stays below 65504."""
    if arch != 'ResNeXtDenoiseAll':
        return weights
    smaller = ('conv3/bn/gamma', 'conv3/bn/beta', 'convshortcut/bn/gamma', 'convshortcut/bn/beta')
    scales = {'linear/W': 8, 'non_local/conv/bn/variance/EMA': 0.6 ** 6}
    scales.update({ending: 0.6 for ending in smaller})
    return {name: value * np.float32(next((scale for ending, scale in scales.items() if name.endswith(ending)), 1))
            for name, value in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['ResNet', 'ResNetDenoise', pytest.param('ResNeXtDenoiseAll', marks=once)])
def test_float16_attack_under_xla_is_as_strong(arch, weights_of):
    """--use-fp16xla, on a CPU: within the budget, and in the float32 network about as good as the float32 attack."""
    pixels, label = helpers.images(4, 32, seed=1), np.arange(4, dtype=np.int32)
    network = Network(arch, 14, 10)
    results = []
    with tf.Graph().as_default() as graph:
        image = scale_pixels(tf.constant(pixels))
        for fast in False, True:
            settings = attack_settings(*(('float16', True) if fast else ()))
            attacker = pgd_attacker(4, 8., 1., num_classes=10, loss_scale=settings['loss_scale'], xla=settings['xla'])
            adversarial, target = attacker.attack(
                image, tf.constant(label), lambda x, mode=settings['attack_mode']: network.logits(x, mode), tf.range(4))
            results.append((unscale_pixels(adversarial), target, network.logits(adversarial, Mode())))
        clean = network.logits(image, Mode())
        with tf.Session(graph=graph, config=session_config()) as session:
            checkpoint.assign_weights(session, weights_for_float16(arch, weights_of(arch)))
            (slow, target, slow_logits), (fast, fast_target, fast_logits), clean = session.run(results + [clean])
    assert attack_settings('float16')['attack_mode'].dtype == tf.float16
    assert (target == fast_target).all()
    assert np.isfinite(fast).all() and np.abs(fast - pixels).max() < 8.01
    assert fast.min() >= 0 and fast.max() <= 255
    assert (fast != slow).any(), 'float16 was not used'
    before, after, after_fast = [helpers.cross_entropy(x, target).mean() for x in (clean, slow_logits, fast_logits)]
    assert after < before - 1
    assert (before - after_fast) / (before - after) == pytest.approx(1, abs=0.1)
    rates = [(x.argmax(axis=1) == target).mean() for x in (slow_logits, fast_logits)]
    assert abs(rates[0] - rates[1]) <= 1 / 4
