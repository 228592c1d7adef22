"""Against what the published code computes, in the folder that REFERENCE_DIR names; without it these are skipped."""
import json
import os

from runtime.compat import tf  # before tensorpack

import helpers
import numpy as np
import pytest
from lanes import once
from tensorpack.tfutils.tower import TrainTowerContext

import checkpoint
from adv_model import AdversarialModel, NoOpAttacker, smoothed_loss
from inference import load_classifier
from kernels.mode import native_mode
from nets import Network
from runtime.errors import InputError
from runtime.hardware import session_config  # before tensorpack

pytestmark = pytest.mark.slow

NETWORKS = ['ResNet-50', 'ResNetDenoise-50', 'ResNeXtDenoiseAll-50']


@pytest.fixture(scope='module')
def reference_weights(reference_dir, python, tmp_path_factory):
    """reference_weights(network) -> an .npz of its seed-0 weights."""
    folder = tmp_path_factory.mktemp('reference')

    def make(network):
        path = str(folder / (network + '.npz'))
        if not os.path.exists(path):
            process = python(os.path.join(reference_dir, 'make_weights.py'), network, '--out', path)
            assert process.returncode == 0, process.stderr
        return path
    return make


@pytest.fixture(scope='module')
def published(reference_dir):
    """published(network) -> {name: array}, the results recorded from the published code."""
    def load(network):
        with np.load(os.path.join(reference_dir, 'expected-%s.npz' % network)) as f:
            return {name: f[name] for name in f.files}
    return load


def load(path, network, **options):
    arch, depth = network.split('-')
    return load_classifier(path, arch=arch, depth=int(depth), **options)


@pytest.mark.parametrize('network', NETWORKS)
def test_comparison_of_the_reference(network, reference_dir, python):
    """Logits, gradient, and the attacks of 1 and 3 steps, by the reference's own program."""
    process = python(os.path.join(reference_dir, 'compare.py'), network, timeout=900)
    print(process.stdout)
    assert process.returncode == 0, process.stdout + process.stderr


# lane tf1 takes twice as long for them, and its first three steps are compared above
@pytest.mark.parametrize('network', [pytest.param('ResNet-50', marks=once), 'ResNetDenoise-50',
                                     pytest.param('ResNeXtDenoiseAll-50', marks=once)])
def test_loss_and_ten_steps(network, published, reference_weights):
    expected = published(network)
    images, label, target = expected['image'], expected['label'], expected['target']
    clf = load(reference_weights(network), network, batch=4)
    logits = clf.logits(images)
    assert np.abs(logits - expected['logits']).max() < 1e-4 * expected['logits'].std()
    np.testing.assert_allclose(helpers.cross_entropy(logits, target), expected['target_cross_entropy'], rtol=1e-4)
    with tf.Graph().as_default(), tf.Session() as session:
        loss = session.run(smoothed_loss(tf.constant(logits), tf.constant(label)))
    assert loss == pytest.approx(float(expected['smoothed_loss']), rel=1e-4)

    before, after = expected['target_cross_entropy'], helpers.cross_entropy(expected['logits_10_steps'], target)
    adversarial, targets = clf.pgd(images, label, targets=target, steps=10, start_from_noise=False)
    attacked = clf.logits(adversarial)
    clf.close()
    assert (targets == target).all()
    assert np.abs(adversarial - images.astype(np.float32)).max() <= 16 + 2e-5
    # ten steps amplify rounding, so it is the attack's strength that is compared, as after three
    strength = (before - helpers.cross_entropy(attacked, target)) / (before - after)
    print('%s: strength after 10 steps, by image: %s' % (network, strength))
    assert 0.9 < strength.mean() < 1.1
    assert strength.min() > 0.7
    # The outcome itself must be the published one wherever it was no close call: where the margin between the target's
    # logit and the best other is more than a tenth (the tolerance above) of what the ten steps moved it by.
    margin, start = helpers.target_margin(expected['logits_10_steps'], target), helpers.target_margin(logits, target)
    clear = np.abs(margin) > 0.1 * np.abs(margin - start)
    assert clear.sum() >= 2
    np.testing.assert_array_equal((helpers.target_margin(attacked, target) > 0)[clear], (margin > 0)[clear])


def test_nchw_gives_the_published_logits(published, reference_weights):
    """Under XLA on a CPU, from the same weights."""
    expected = published('ResNet-50')
    clf = load(reference_weights('ResNet-50'), 'ResNet-50', data_format='NCHW', batch=4)
    error = np.abs(clf.logits(expected['image']) - expected['logits']).max() / expected['logits'].std()
    clf.close()
    assert error < 1e-4


def test_a_published_network_is_recognised(reference_dir, tmp_path):
    """Given as another of the same depth, by the names and shapes of the published file."""
    with open(os.path.join(reference_dir, 'variables.json')) as f:
        shapes = json.load(f)['ResNetDenoise-152']
    np.savez(str(tmp_path / 'weights.npz'), **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    with pytest.raises(InputError, match='--arch ResNetDenoise -d 152'):
        load(str(tmp_path / 'weights.npz'), 'ResNet-152')


EVERY = 97  # of a large variable's elements the published results hold each so-manieth
LARGE = 300000
# What follows these shifts normalises the batch, which takes a shift away: nothing but rounding moves them
ROUNDING_ALONE = ['group%d_denoise/conv/bn/beta' % group for group in range(3)]


def step_of_training(network, images, label, weights):
    """The cost, and {variable: value} after one step of standard training at a rate of 0.1, from these weights."""
    arch, depth = network.split('-')
    mode = native_mode()
    with tf.Graph().as_default() as graph:
        model = AdversarialModel(Network(arch, int(depth)), NoOpAttacker(), images.shape[1],
                                 mode=mode, attack_mode=mode)
        inputs = [tf.placeholder(spec.dtype, spec.shape) for spec in model.inputs()]
        with TrainTowerContext(''):
            cost = model.build_graph(*inputs)
        optimizer = model.optimizer()
        gradients = [(g, v) for g, v in optimizer.compute_gradients(cost) if g is not None]
        # updates are in place: each waits for all that is still to be read
        with tf.control_dependencies([g for g, _ in gradients] + tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            step = optimizer.apply_gradients([(tf.identity(g), v) for g, v in gradients])
        variables = {v.op.name: v for v in tf.global_variables() if v.op.name in weights}
        with tf.Session(graph=graph, config=session_config()) as session:
            session.run(tf.global_variables_initializer())
            for name, variable in variables.items():
                variable.load(weights[name], session)
            feed = dict(zip(inputs, [images, label]))
            before = session.run(cost, feed)
            session.run(step, feed)
            return before, session.run(variables)


@pytest.mark.parametrize('network', [pytest.param('ResNet-50', marks=once), 'ResNetDenoise-50'])
def test_a_step_of_training_is_the_published_one(network, reference_dir, published, reference_weights):
    """Its cost, and what every variable becomes. Rounding is measured by the step: the difference's norm over the
    step's.
    """
    photos = published(network)
    with np.load(os.path.join(reference_dir, 'training-step-%s.npz' % network)) as f:
        expected = {name: f[name] for name in f.files}
    weights = checkpoint.read_checkpoint(reference_weights(network))
    cost, after = step_of_training(network, photos['image'], photos['label'], weights)
    assert cost == pytest.approx(float(expected.pop('cost')), rel=1e-5)

    error, moved = {}, 0
    for name, value in expected.items():
        if name in ROUNDING_ALONE:
            continue
        before, computed = [v[name].ravel()[::EVERY if v[name].size >= LARGE else 1] for v in (weights, after)]
        step = np.linalg.norm(value.ravel() - before)
        moved += step > 0
        error[name] = np.linalg.norm(value.ravel() - computed) / max(step, 1e-12)
    assert moved == len(error) >= 200
    print('%s: difference over step %.1e at the median, %.1e at most' % (
        network, np.median(list(error.values())), max(error.values())))
    assert np.median(list(error.values())) < 5e-3 and max(error.values()) < 0.06
