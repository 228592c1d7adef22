"""Against what the published code computes, in the folder that REFERENCE_DIR names; without it these are skipped."""
import os

import numpy as np
import pytest

import helpers
from adv_model import smoothed_loss
from compat import tf
from errors import InputError
from inference import load_classifier

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


@pytest.mark.parametrize('network', NETWORKS)
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


def test_a_published_network_is_recognised(reference_weights):
    """Given as another of the same depth, by the names and shapes of the published file."""
    with pytest.raises(InputError, match='--arch ResNetDenoise -d 152'):
        load(reference_weights('ResNetDenoise-152'), 'ResNet-152')
