"""The Python API, on networks of 14 layers for images of 32 pixels."""
from runtime.compat import USES_BFLOAT16_UNITS

import helpers
import numpy as np
import pytest
from helpers import NumpyNetwork
from lanes import once

from inference import load_classifier
from runtime.errors import InputError

SIZE = 32


@pytest.fixture(scope='module')
def clf(classifier):
    return classifier('ResNet')


def photos(count=5, seed=0):
    return helpers.images(count, SIZE, seed)


# --- logits and gradients --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arch', helpers.ARCHITECTURES)
def test_logits(arch, classifier, weights_of):
    logits = classifier(arch).logits(photos())
    assert logits.dtype == np.float32 and logits.shape == (5, 10)
    np.testing.assert_allclose(logits, NumpyNetwork(arch, 14, weights_of(arch)).logits(photos()), atol=1e-4)


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.int64])
def test_pixels_of_any_type(clf, dtype):
    pixels, labels = photos(), np.arange(5)
    assert (clf.logits(pixels.astype(dtype)) == clf.logits(pixels)).all()
    assert (clf.loss_gradient(pixels.astype(dtype), labels) == clf.loss_gradient(pixels, labels)).all()
    attacked = [clf.pgd(p, labels, steps=2)[0] for p in (pixels.astype(dtype), pixels)]
    assert (attacked[0] == attacked[1]).all()


def test_fractions_of_a_pixel_count(clf, weights_of):
    pixels = photos() * 0.5 + 0.25
    expected = NumpyNetwork('ResNet', 14, weights_of('ResNet')).logits(pixels)
    np.testing.assert_allclose(clf.logits(pixels), expected, atol=1e-4)


@pytest.mark.parametrize('arch', helpers.ARCHITECTURES)
def test_gradient_equals_finite_differences(arch, classifier, weights_of):
    """Of the cross-entropy, in pixels of 0..255: along the gradient, along random directions and for single pixels."""
    pixels, labels = photos(4).astype(np.float64), np.array([0, 3, 9, 3])
    gradient = classifier(arch).loss_gradient(pixels, labels)
    assert gradient.dtype == np.float32 and gradient.shape == pixels.shape
    network = NumpyNetwork(arch, 14, weights_of(arch))
    flat = gradient.reshape(4, -1).astype(np.float64)
    norm = np.linalg.norm(flat, axis=1)
    assert (norm > 1e-4).all()
    rng = np.random.RandomState(0)
    directions = [flat / norm[:, None], rng.standard_normal(flat.shape) / np.sqrt(flat.shape[1])]
    for rank in 1, 2:
        pixel = np.zeros_like(flat)
        pixel[np.arange(4), np.argsort(-np.abs(flat), axis=1)[:, rank]] = 1
        directions.append(pixel)
    h = 1e-4
    for direction in directions:
        step = h * direction.reshape(pixels.shape)
        difference = [helpers.cross_entropy(network.logits(pixels + sign * step), labels) for sign in (1, -1)]
        slope = (difference[0] - difference[1]) / (2 * h)
        assert (np.abs(slope - (flat * direction).sum(axis=1)) < 1e-3 * norm).all()


def test_gradient_of_an_image_is_its_own(clf):
    pixels, labels = photos(), np.array([1, 2, 3, 4, 5])
    together = clf.loss_gradient(pixels, labels)
    alone = clf.loss_gradient(pixels[2:3], labels[2:3])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-3 * np.abs(alone).max())


def test_vjp_of_a_loss_is_its_gradient(clf):
    """Of more images than a batch: sum(v * logits) has the gradient of the cross-entropy where v is softmax - label."""
    pixels, labels = photos(10), np.arange(10)
    assert len(pixels) > clf.batch
    gradient = clf.loss_gradient(pixels, labels)
    product = clf.vjp(pixels, helpers.softmax(clf.logits(pixels).astype(np.float64)) - np.eye(10)[labels])
    assert product.dtype == np.float32 and product.shape == pixels.shape
    np.testing.assert_allclose(product, gradient, atol=1e-3 * np.abs(gradient).max())


@pytest.mark.parametrize('arch', helpers.ARCHITECTURES)
def test_vjp_equals_finite_differences(arch, classifier, weights_of):
    """In pixels of 0..255, along the product itself: no loss makes these cotangents."""
    pixels, v = photos(3).astype(np.float64), np.random.RandomState(1).standard_normal((3, 10)) * [[1], [100], [0.01]]
    product = classifier(arch).vjp(pixels, v).reshape(3, -1).astype(np.float64)
    network, norm, h = NumpyNetwork(arch, 14, weights_of(arch)), np.linalg.norm(product, axis=1), 1e-4
    step = h * (product / norm[:, None]).reshape(pixels.shape)
    above, below = [(v * network.logits(pixels + sign * step)).sum(axis=1) for sign in (1, -1)]
    np.testing.assert_allclose((above - below) / (2 * h), norm, rtol=1e-3)


def test_vjp_of_nothing_is_nothing(clf):
    assert not clf.vjp(photos(2), np.zeros((2, 10), int)).any()


def test_batch_changes_nothing(clf, weights_file):
    small = load_classifier(weights_file('ResNet'), 'ResNet', 14, image_size=SIZE, batch=3)
    pixels, labels = photos(10), np.arange(10)
    assert clf.batch < 10 and clf.batch % 3
    np.testing.assert_allclose(small.logits(pixels), clf.logits(pixels), atol=1e-4)
    gradient = clf.loss_gradient(pixels, labels)
    np.testing.assert_allclose(small.loss_gradient(pixels, labels), gradient, atol=1e-3 * np.abs(gradient).max())
    (few, few_targets), (many, many_targets) = [c.pgd(pixels, labels, steps=1, seed=3) for c in (small, clf)]
    assert (few_targets == many_targets).all()
    # signs of gradients near 0 may differ
    assert (np.abs(few - many) < 1e-3).mean(axis=(1, 2, 3)).min() > 0.98
    small.close()
    for call in (small.logits, lambda x: small.loss_gradient(x, labels), lambda x: small.pgd(x, labels),
                 lambda x: small.classify(x, labels)):
        with pytest.raises(ValueError, match='this classifier is closed'):
            call(pixels)
    small.close()


def test_no_images(clf):
    nothing, no_labels = np.zeros((0, SIZE, SIZE, 3), np.uint8), np.zeros(0, int)
    assert clf.logits(nothing).shape == (0, 10)
    assert clf.loss_gradient(nothing, no_labels).shape == nothing.shape
    assert clf.vjp(nothing, np.zeros((0, 10))).shape == nothing.shape
    adversarial, targets = clf.pgd(nothing, no_labels)
    assert adversarial.shape == nothing.shape and targets.shape == (0,)


# --- reduced precision -----------------------------------------------------------------------------------------------

@pytest.mark.skipif(not USES_BFLOAT16_UNITS, reason='TensorFlow 1 takes minutes for it')
def test_bfloat16_is_near_float32(clf, weights_file):
    """Logits, gradients and labels, up to the rounding of bfloat16, of which there must be some."""
    other = load_classifier(weights_file('ResNet'), 'ResNet', 14, image_size=SIZE, batch=8, dtype='bfloat16')
    pixels, labels = photos(16), np.arange(16) % 10
    expected, logits = clf.logits(pixels), other.logits(pixels)
    assert logits.dtype == np.float32
    error = np.abs(logits - expected).max() / expected.std()
    assert 1e-4 < error < 0.1
    # only labels that are about as likely as the next one may change
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 0.1 * expected.std()
    same = other.classify(pixels, labels)[0] == clf.classify(pixels, labels)[0]
    assert clear.sum() >= 8 and same[clear].all()
    for ours, plain in ((other.loss_gradient(pixels, labels), clf.loss_gradient(pixels, labels)),
                        (other.vjp(pixels, np.eye(10)[labels]), clf.vjp(pixels, np.eye(10)[labels]))):
        assert ours.dtype == np.float32
        assert 1e-4 < np.linalg.norm(ours - plain) / np.linalg.norm(plain) < 0.2
    attacked = other.pgd(pixels, labels, steps=2, epsilon=8.)[0]
    assert attacked.dtype == np.float32 and np.abs(attacked - pixels).max() <= 8 + 2e-5
    other.close()


# --- the attack ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('steps, epsilon, step_size, noise', [
    (10, 16., 1., True), (3, 16., 1., False), (4, 2., 1., True), (2, 8., 20., True), (1, .5, 1., False)])
def test_attack_keeps_its_budget(clf, steps, epsilon, step_size, noise):
    pixels = photos()
    adversarial, targets = clf.pgd(pixels, np.arange(5), steps=steps, epsilon=epsilon, step_size=step_size,
                                   start_from_noise=noise)
    assert adversarial.dtype == np.float32 and adversarial.shape == pixels.shape
    moved = np.abs(adversarial - pixels.astype(np.float32))
    # exact, but for the rounding of the difference itself
    assert epsilon * 0.99 < moved.max() <= epsilon + 2e-5
    assert adversarial.min() >= 0 and adversarial.max() <= 255
    assert targets.dtype == np.int32 and targets.shape == (5,)


def test_attack_equals_its_definition(clf):
    """Steps along the sign of `loss_gradient`, in NumPy."""
    pixels, labels, targets = photos().astype(np.float32), np.arange(5), np.arange(5) + 4
    x = pixels
    for _ in range(4):  # alpha is max(1, 16 / 4)
        moved = x - 4 * np.sign(clf.loss_gradient(x, targets))
        x = np.clip(moved, np.maximum(pixels - 16, 0), np.minimum(pixels + 16, 255))
    adversarial, _ = clf.pgd(pixels, labels, targets=targets, steps=4, start_from_noise=False)
    assert (np.abs(adversarial - x) < 0.01).mean() > 0.97
    before, after, expected = [helpers.cross_entropy(clf.logits(a), targets).mean() for a in (pixels, adversarial, x)]
    assert before - after == pytest.approx(before - expected, rel=0.02)


def test_zero_steps_leave_the_images(clf):
    pixels = photos()
    adversarial, targets = clf.pgd(pixels, np.arange(5), steps=0, seed=2)
    assert adversarial.dtype == np.float32 and (adversarial == pixels).all()
    assert (targets != np.arange(5)).all()


def test_no_budget_leaves_the_images(clf):
    assert (clf.pgd(photos(), np.arange(5), steps=2, epsilon=0)[0] == photos()).all()


@pytest.mark.parametrize('targets', [[9, 8, 7, 6, 5], np.array([9, 8, 7, 6, 5], np.int64)])
def test_given_targets_are_attacked_and_returned(clf, targets):
    pixels, labels = photos(), [0, 1, 2, 3, 4]
    adversarial, returned = clf.pgd(pixels, labels, targets=targets, steps=20)
    assert returned.dtype == np.int32 and (returned == [9, 8, 7, 6, 5]).all()
    before, after = [helpers.cross_entropy(clf.logits(x), targets) for x in (pixels, adversarial)]
    assert (after < before).all()


def test_drawn_targets_are_wrong_labels_and_attacked(clf):
    pixels, labels = photos(16), np.arange(16) % 10
    adversarial, targets = clf.pgd(pixels, labels, steps=4)
    assert (targets != labels).all() and targets.min() >= 0 and targets.max() <= 9 and len(set(targets)) > 5
    before, after = [helpers.cross_entropy(clf.logits(x), targets) for x in (pixels, adversarial)]
    assert (after < before).mean() > 0.9


def test_same_seed_same_attack(clf):
    pixels, labels = photos(20), np.arange(20) % 10
    (first, targets), (again, targets_again), (other, other_targets) = [
        clf.pgd(pixels, labels, steps=1, seed=seed) for seed in (1, 1, 2 ** 31 - 1)]
    assert (targets == targets_again).all() and (first == again).all()
    assert (targets != other_targets).mean() > 0.5
    assert (first != other).mean() > 0.5


def test_an_images_attack_depends_on_its_position_alone(clf):
    pixels, labels = photos(8), np.arange(8)
    changed = pixels.copy()
    changed[0] = 255 - changed[0]
    (first, targets), (second, second_targets) = [clf.pgd(p, labels, steps=1, seed=5) for p in (pixels, changed)]
    assert (targets == second_targets).all()
    np.testing.assert_allclose(first[1:], second[1:], atol=1e-3)


def test_start_from_noise(clf):
    pixels, labels, targets = photos(), np.arange(5), np.arange(5) + 1
    clean, clean_again, noisy = [
        clf.pgd(pixels, labels, targets=targets, steps=1, start_from_noise=noise, seed=seed)[0]
        for noise, seed in ((False, 0), (False, 1), (True, 0))]
    assert (clean == clean_again).all(), 'without noise nothing is random'
    assert (clean != noisy).any()


# --- wrong arguments -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('images', [
    np.zeros((SIZE, SIZE, 3)), np.zeros((1, 3, SIZE, SIZE)), np.zeros((1, SIZE, SIZE, 4)),
    np.zeros((1, SIZE, SIZE, 1)),
    np.zeros((1, 224, 224, 3)), []], ids=lambda x: str(np.shape(x)))
def test_images_of_a_wrong_shape(clf, images):
    for call in clf.logits, lambda x: clf.loss_gradient(x, [0]), lambda x: clf.pgd(x, [0]):
        with pytest.raises(ValueError, match=r'not \(N, 32, 32, 3\)'):
            call(images)


@pytest.mark.parametrize('value', [-1, 255.5, np.nan, np.inf])
def test_pixels_out_of_range(clf, value):
    pixels = photos(2).astype(np.float32)
    pixels[1, 3, 4, 2] = value
    for call in (clf.logits, lambda x: clf.loss_gradient(x, [0, 1]), lambda x: clf.pgd(x, [0, 1]),
                 lambda x: clf.vjp(x, np.ones((2, 10)))):
        with pytest.raises(ValueError, match=r'in \[0, 255\]'):
            call(pixels)


@pytest.mark.parametrize('labels, text', [
    ([0], '2 integers'), ([0, 1, 2], '2 integers'), ([[0, 1]], '2 integers'), (0, '2 integers'),
    ([0., 1.], 'integers'),
    ([0, 10], r'0\.\.9'), ([-1, 0], r'0\.\.9'), (['a', 'b'], 'integers')])
def test_wrong_labels(clf, labels, text):
    pixels = photos(2)
    for call in (lambda: clf.loss_gradient(pixels, labels), lambda: clf.pgd(pixels, labels),
                 lambda: clf.pgd(pixels, [0, 1], targets=labels)):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize('cotangents, text', [
    (np.ones((1, 10)), r'shape \(2, 10\)'), (np.ones((2, 9)), r'shape \(2, 10\)'), (np.ones(10), r'shape \(2, 10\)'),
    (np.ones((2, 10), complex), 'not complex128'), ([['a'] * 10] * 2, 'numbers'),
    (np.full((2, 10), np.nan), 'finite'), (np.full((2, 10), 1e39), 'finite')])
def test_wrong_cotangents(clf, cotangents, text):
    with pytest.raises(ValueError, match=text):
        clf.vjp(photos(2), cotangents)


@pytest.mark.parametrize('wrong, text', [
    (dict(steps=-1), 'not negative'), (dict(steps=1.5), 'whole number'), (dict(epsilon=-1.), 'not negative'),
    (dict(step_size=-1.), 'not negative'), (dict(seed=-1), 'seed is from 0'), (dict(seed=2 ** 31), 'seed is from 0')])
def test_wrong_attack(clf, wrong, text):
    with pytest.raises(ValueError, match=text):
        clf.pgd(photos(2), [0, 1], **wrong)


@pytest.mark.parametrize('wrong, text', [
    (dict(path=None), 'name of a file, not None'), (dict(path=7), 'name of a file, not 7'),
    (dict(batch=0), 'batch is a whole number from 1 .*, not 0'), (dict(batch=-1), 'batch'), (dict(batch=1.5), 'batch'),
    (dict(batch=None), 'batch'), (dict(image_size=0), 'image_size'), (dict(image_size='224'), 'image_size'),
    (dict(image_size=2000000), 'image_size is a whole number from 1 to 8192, not 2000000'),
    (dict(path=''), 'no checkpoint'), (dict(arch=None), 'no architecture'), (dict(depth='14'), 'no depth')])
def test_wrong_arguments_of_loading(weights_file, wrong, text):
    with pytest.raises(InputError, match=text):
        load_classifier(**dict(dict(path=weights_file('ResNet'), arch='ResNet', depth=14, image_size=SIZE), **wrong))


@pytest.mark.parametrize('images', [
    np.zeros((2, SIZE, SIZE, 3), bool), np.zeros((2, SIZE, SIZE, 3), complex), np.full((2, SIZE, SIZE, 3), None), None])
def test_images_that_are_no_numbers(clf, images):
    for call in clf.logits, lambda x: clf.loss_gradient(x, [0, 1]), lambda x: clf.pgd(x, [0, 1]):
        with pytest.raises(ValueError, match='images are numbers, uint8 or float, not'):
            call(images)


def test_wrong_layout(weights_file):
    with pytest.raises(ValueError, match='NHWC or NCHW'):
        load_classifier(weights_file('ResNet'), 'ResNet', 14, image_size=SIZE, data_format='nchw')


@pytest.mark.parametrize('dtype', ['float16', 'half', None])
def test_wrong_dtype(weights_file, dtype):
    with pytest.raises(ValueError, match='dtype is float32 or bfloat16, not .*%s' % (dtype or 'None')):
        load_classifier(weights_file('ResNet'), 'ResNet', 14, image_size=SIZE, dtype=dtype)


# --- the environment -------------------------------------------------------------------------------------------------

WITHOUT_MPI = '''
import sys

class Absent:
    """What is not installed."""
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('horovod', 'mpi4py'):
            raise ImportError('%s is not installed' % name)

sys.meta_path.insert(0, Absent())
try:
    import horovod
except ImportError:
    pass
else:
    sys.exit('the test is wrong')

import numpy as np
from inference import load_classifier
clf = load_classifier(sys.argv[1], 'ResNet', 14, image_size=32)
np.save(sys.argv[2], clf.logits(np.load(sys.argv[3])))
'''


@once
def test_needs_neither_horovod_nor_mpi(clf, python, weights_file, tmp_path):
    np.save(str(tmp_path / 'images.npy'), photos())
    process = python('-c', WITHOUT_MPI, weights_file('ResNet'), tmp_path / 'logits.npy', tmp_path / 'images.npy',
                     env={'PATH': str(tmp_path)}, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(np.load(str(tmp_path / 'logits.npy')), clf.logits(photos()), atol=1e-5)


@pytest.mark.slow
def test_nchw_gives_the_same_results(clf, weights_file):
    """By XLA on a CPU; from the same file."""
    other = load_classifier(weights_file('ResNet'), 'ResNet', 14, image_size=SIZE, data_format='NCHW', batch=8)
    pixels, labels, targets = photos(), np.arange(5), np.arange(5) + 2
    np.testing.assert_allclose(other.logits(pixels), clf.logits(pixels), atol=1e-4)
    gradient = clf.loss_gradient(pixels, targets)
    np.testing.assert_allclose(other.loss_gradient(pixels, targets), gradient, atol=1e-3 * np.abs(gradient).max())
    v = np.random.RandomState(0).standard_normal((5, 10))
    product = clf.vjp(pixels, v)
    np.testing.assert_allclose(other.vjp(pixels, v), product, atol=1e-3 * np.abs(product).max())
    (first, aims), (second, other_aims) = [c.pgd(pixels, labels, steps=3, seed=1) for c in (clf, other)]
    assert (aims == other_aims).all()
    assert (np.abs(first - second) < 0.01).mean() > 0.95
    other.close()
