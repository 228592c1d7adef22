"""The attackers, loss and metrics, against NumPy: on a linear classifier where the network does not matter."""
from runtime.compat import tf

import helpers
import numpy as np
import pytest

from adv_model import (
    CLEAN_START_PROBABILITY,
    NoOpAttacker,
    PGDAttacker,
    adversarial_logits,
    is_target,
    is_wrong,
    scale_pixels,
    smoothed_loss,
)
from kernels.mode import Mode
from runtime.pixels import effective_step_size, unscale_pixels

CLASSES = 6
SHAPE = (4, 4, 3)
PIXEL = 2 / 255  # on the scale of [-1, 1]


class LinearClassifier:
    """For images of 4x4 pixels: logits and gradients are known exactly."""

    def __init__(self, classes=CLASSES):
        self.matrix = np.random.RandomState(5).standard_normal((np.prod(SHAPE), classes)).astype(np.float32)

    def logits(self, x):
        return tf.matmul(tf.reshape(x, [-1, self.matrix.shape[0]]), tf.constant(self.matrix))

    def gradient(self, x, target):
        """Of the cross-entropy, in NumPy."""
        probabilities = helpers.softmax(x.reshape(len(x), -1) @ self.matrix.astype(np.float64))
        probabilities[np.arange(len(x)), target] -= 1
        return (probabilities @ self.matrix.T).reshape(x.shape)

    def pgd(self, image, start, target, steps, epsilon, alpha):
        """The paper's attack, in [-1, 1]; epsilon and alpha in pixels."""
        x = start.astype(np.float64)
        for _ in range(steps):
            x = x - alpha * PIXEL * np.sign(self.gradient(x, target))
            x = np.clip(np.clip(x, image - epsilon * PIXEL, image + epsilon * PIXEL), -1, 1)
        return x


def batch(count, seed=0):
    """Images in [-1, 1], of which some pixels are at its ends; labels."""
    rng = np.random.RandomState(seed)
    image = np.clip(rng.uniform(-1.3, 1.3, (count,) + SHAPE), -1, 1).astype(np.float32)
    return image, rng.randint(0, CLASSES, count).astype(np.int32)


def pgd_attacker(steps=10, epsilon=16.0, step_size=1.0, num_classes=CLASSES, **options):
    return PGDAttacker(steps, epsilon, step_size, num_classes=num_classes, **options)


# --- steps and budget ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('steps, epsilon, step_size, alpha', [
    (10, 16, 1, 1.6), (1, 16, 1, 16), (16, 16, 1, 1), (100, 16, 1, 1), (30, 16, 1, 1), (10, 8, 2, 2), (4, 2, .1, .5)])
def test_step_size(session, steps, epsilon, step_size, alpha):
    assert effective_step_size(steps, epsilon, step_size) == pytest.approx(alpha)
    tensors = [tf.placeholder(tf.int32, []), tf.placeholder(tf.float32, []), tf.placeholder(tf.float32, [])]
    computed = session.run(pgd_attacker(*tensors).step_size, dict(zip(tensors, [steps, epsilon, step_size])))
    assert computed == pytest.approx(alpha)


@pytest.mark.parametrize('steps, epsilon, step_size', [
    (1, 16., 1.), (3, 16., 1.), (10, 16., 1.), (20, 16., 1.), (5, 4., 3.), (8, 8., .5), (2, 40., 1.), (9, .5, 1.)])
def test_attack_equals_numpy_and_keeps_its_budget(session, steps, epsilon, step_size):
    classifier, (image, label) = LinearClassifier(), batch(20)
    attacker = pgd_attacker(steps, epsilon, step_size)
    index = tf.range(20)
    adversarial, target = attacker.attack(tf.constant(image), tf.constant(label), classifier.logits, index)
    start = attacker.start(tf.constant(image), index)
    adversarial, target, start = session.run([adversarial, target, start])

    moved = np.abs(adversarial - image) / PIXEL
    assert epsilon * 0.99 < moved.max() < epsilon * (1 + 1e-5) + 1e-4
    assert adversarial.min() >= -1 and adversarial.max() <= 1
    expected = classifier.pgd(image, start, target, steps, epsilon, max(step_size, epsilon / steps))
    # but for a rare gradient of almost 0, whose sign is a matter of rounding
    assert (np.abs(adversarial - expected) < 1e-4).mean() > 0.998


@pytest.mark.parametrize('xla', [False, True])
def test_an_attack_whose_logits_overflow_does_not_stand_still(session, xla):
    """It would look like a robust network."""
    image, label = batch(5)
    half = LinearClassifier()
    half.matrix = (np.sign(half.matrix) * 6e4).astype(np.float16)
    attacker = pgd_attacker(loss_scale=128.0, xla=xla)
    adversarial = session.run(attacker.attack(
        tf.constant(image), tf.constant(label),
        lambda x: tf.cast(tf.matmul(tf.reshape(tf.cast(x, tf.float16), [5, -1]), half.matrix), tf.float32))[0])
    assert np.isnan(adversarial).all()


def test_first_of_ten_steps_moves_alpha(session):
    """Every pixel by max(1, 16 / 10), against the sign of the gradient, where the budget and [0, 255] allow it."""
    classifier, (image, label) = LinearClassifier(), batch(20)
    target = (label + 1) % CLASSES
    moved = session.run(pgd_attacker(10).iterate(tf.constant(image), tf.constant(image), tf.constant(target),
                                                 classifier.logits, num_iter=1))
    expected = np.clip(image - 1.6 * PIXEL * np.sign(classifier.gradient(image, target)), -1, 1)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert ((np.abs(moved - image) > 1.59 * PIXEL) & (np.abs(moved - image) < 1.61 * PIXEL)).mean() > 0.7


@pytest.mark.parametrize('arch', helpers.ARCHITECTURES)
def test_step_follows_the_networks_gradient(arch, classifier):
    clf, pixels = classifier(arch), helpers.images(4, 32)
    labels, targets = np.arange(4), np.arange(4) + 3
    gradient = clf.loss_gradient(pixels, targets)
    moved, _ = clf.pgd(pixels, labels, targets=targets, steps=1, epsilon=16., start_from_noise=False)
    expected = np.clip(pixels - 16. * np.sign(gradient), 0, 255)
    clear = np.abs(gradient) > 1e-3 * np.abs(gradient).mean()
    assert clear.mean() > 0.9
    np.testing.assert_allclose(moved[clear], expected[clear], atol=1e-3)


def test_two_parts_are_one_attack(session):
    """A long attack passes the results of the shorter ones with its step size."""
    classifier, (image, label) = LinearClassifier(), batch(8)
    attacker = pgd_attacker(50)
    arguments = tf.constant(image), tf.constant((label + 1) % CLASSES), classifier.logits
    half = attacker.iterate(tf.constant(image), *arguments, num_iter=20)
    in_parts = attacker.iterate(half, *arguments, num_iter=tf.constant(30))
    at_once = attacker.iterate(tf.constant(image), *arguments, num_iter=50)
    in_parts, at_once, half = session.run([in_parts, at_once, half])
    assert (in_parts == at_once).all()
    assert (half != at_once).any()


def test_more_steps_are_a_stronger_attack(classifier):
    clf, pixels, labels = classifier('ResNet'), helpers.images(8, 32), np.arange(8)
    targets = (labels + 1) % 10
    losses = [helpers.cross_entropy(clf.logits(clf.pgd(
        pixels, labels, targets=targets, steps=steps, epsilon=4., start_from_noise=False)[0]), targets).mean()
        for steps in [0, 1, 3, 10, 30]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1


def test_no_attack(session):
    image, label = batch(5)
    unchanged, target = session.run(NoOpAttacker().attack(tf.constant(image), tf.constant(label), None))
    assert (unchanged == image).all()
    assert target.dtype == np.int32 and (target == -1).all()
    assert not session.run(is_target(tf.constant(np.eye(5, CLASSES, dtype=np.float32)), tf.constant(target))).any()


# --- what is random --------------------------------------------------------------------------------------------------

def chi_square(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2).sum() / expected


@pytest.mark.parametrize('by_index', [True, False])
def test_targets_are_uniform_over_the_wrong_labels(session, by_index):
    tf.set_random_seed(2)
    label = np.repeat(np.arange(CLASSES, dtype=np.int32), 2000)
    target = session.run(pgd_attacker(seed=4).targets(
        tf.constant(label), tf.range(len(label)) if by_index else None))
    assert target.dtype == np.int32
    assert not (target == label).any()
    for k in range(CLASSES):
        counts = np.bincount(target[label == k], minlength=CLASSES)
        assert counts.sum() == 2000 and len(counts) == CLASSES
        assert chi_square(np.delete(counts, k)) < 18.5, 'p < 0.001 with 4 degrees of freedom'


def test_targets_of_two_and_of_a_thousand_classes(session):
    label = np.array([0, 1, 1, 0], np.int32)
    assert (session.run(pgd_attacker(num_classes=2).targets(tf.constant(label), tf.range(4))) == 1 - label).all()
    label = np.full(1000, 999, np.int32)
    target = session.run(pgd_attacker(num_classes=1000).targets(tf.constant(label), tf.range(1000)))
    assert target.min() >= 0 and target.max() <= 998
    assert 580 < len(set(target)) < 680, '632 of 999 expected'


def test_noise_is_uniform_in_the_ball(session):
    image = np.zeros((400,) + SHAPE, np.float32)
    noise = session.run(pgd_attacker(epsilon=16.).start(tf.constant(image), tf.range(400))) / (16 * PIXEL)
    assert noise.min() >= -1 and noise.max() <= 1
    counts, _ = np.histogram(noise, bins=20, range=(-1, 1))
    assert chi_square(counts) < 43.8, 'p < 0.001 with 19 degrees of freedom'
    # no two images and no two pixels move together
    flat = noise.reshape(400, -1)
    for rows in flat, flat.T:
        correlation = np.corrcoef(rows) - np.eye(len(rows))
        assert np.abs(correlation).max() < 6 / np.sqrt(rows.shape[1])


def test_noise_keeps_to_valid_pixels(session):
    image, _ = batch(50)
    start = session.run(pgd_attacker().start(tf.constant(image), tf.range(50)))
    assert start.min() >= -1 and start.max() <= 1
    assert np.abs(start - image).max() <= 16 * PIXEL * (1 + 1e-5)


def test_an_images_attack_depends_on_its_index_and_the_seed_alone(session):
    image, label = batch(6)
    index = tf.placeholder(tf.int64, [None])
    image_in, label_in = tf.placeholder(tf.float32, (None,) + SHAPE), tf.placeholder(tf.int32, [None])

    def random_parts(attacker):
        return attacker.targets(label_in, index), attacker.start(image_in, index)

    first, second = random_parts(pgd_attacker(num_classes=1000, seed=1)), random_parts(
        pgd_attacker(num_classes=1000, seed=2))

    def of(parts, positions, indices):
        return session.run(parts, {image_in: image[positions], label_in: label[positions], index: indices})

    everything = of(first, [0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15])
    other_batch = of(first, [4, 1], [14, 11])
    for whole, part in zip(everything, other_batch):
        assert (whole[[4, 1]] == part).all()
    for different in of(first, [4, 1], [24, 21]), of(second, [4, 1], [14, 11]):
        assert (different[0] != other_batch[0]).all()
        assert (different[1] != other_batch[1]).mean() > 0.9


def test_without_index_every_run_is_another(session):
    image, label = batch(4)
    attacker = pgd_attacker(num_classes=1000)
    random_parts = attacker.targets(tf.constant(label)), attacker.start(tf.constant(image))
    runs = [session.run(random_parts) for _ in range(2)]
    assert (runs[0][0] != runs[1][0]).any() and (runs[0][1] != runs[1][1]).any()


@pytest.mark.parametrize('probability', [CLEAN_START_PROBABILITY, 0.0])
def test_a_fifth_of_the_training_batches_starts_clean(session, probability):
    assert CLEAN_START_PROBABILITY == 0.2
    tf.set_random_seed(3)
    image, _ = batch(3)
    start = pgd_attacker(clean_start_probability=probability).start(tf.constant(image))
    same = np.array([(session.run(start) == image).mean(axis=(1, 2, 3)) for _ in range(400)])
    clean = (same == 1).all(axis=1)
    assert (same[~clean] < 0.5).all(), 'a batch starts clean as a whole, or not at all'
    # 80 of 400 expected, with a standard deviation of 8
    assert 50 < clean.sum() < 110 if probability else clean.sum() == 0


# --- in the graph ----------------------------------------------------------------------------------------------------

LOOPS = ('LoopCond', 'While', 'StatelessWhile')


def test_more_steps_are_no_larger_graph():
    sizes = []
    for steps in 1, 100:
        with tf.Graph().as_default() as graph:
            image, label = batch(2)
            pgd_attacker(steps).attack(tf.constant(image), tf.constant(label), LinearClassifier().logits)
            sizes.append(len(graph.get_operations()))
            assert sum(op.type in LOOPS for op in graph.get_operations()) == 1
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize('attacker', [pgd_attacker(3), NoOpAttacker()])
def test_adversarial_images_are_constants_for_training(attacker):
    seen = []

    class Recorder:
        def logits(self, image, mode):
            seen.append(mode)
            return LinearClassifier().logits(image)

    with tf.Graph().as_default():
        image, label = [tf.constant(a) for a in batch(2)]
        logits, _ = adversarial_logits(Recorder(), attacker, image, label, attack_mode=Mode(),
                                       mode=Mode(training=True))
        assert tf.gradients(logits, image) == [None]
        assert seen[-1].training and not any(mode.training for mode in seen[:-1])
        with pytest.raises(ValueError, match='BatchNorm'):
            adversarial_logits(Recorder(), attacker, image, label, attack_mode=Mode(training=True), mode=Mode())


# --- loss and metrics ------------------------------------------------------------------------------------------------

def test_pixel_scale(session):
    scaled = session.run(scale_pixels(tf.constant([0, 51, 255], tf.uint8)))
    np.testing.assert_allclose(scaled, [-1, -0.6, 1], atol=1e-6)
    assert scaled.dtype == np.float32
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(session.run(unscale_pixels(scale_pixels(tf.constant(pixels)))), pixels, atol=1e-4)


@pytest.mark.parametrize('classes', [2, 10, 1000])
def test_smoothed_loss(session, classes):
    rng = np.random.RandomState(0)
    logits, label = (rng.standard_normal((7, classes)) * 5).astype(np.float32), rng.randint(0, classes, 7)
    loss = session.run(smoothed_loss(tf.constant(logits), tf.constant(label)))
    # smoothing 0.1: the labels are 0.9 and 0.1 / classes everywhere
    target = np.full((7, classes), 0.1 / classes)
    target[np.arange(7), label] += 0.9
    expected = -(target * np.log(helpers.softmax(logits.astype(np.float64)))).sum(axis=1).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_wrong_is_not_among_the_k_largest(session):
    logits = tf.constant([[0., 5, 4, 3, 2, 1]] * 6)
    label = tf.range(6)
    assert session.run(is_wrong(logits, label, 1)).tolist() == [True, False, True, True, True, True]
    assert session.run(is_wrong(logits, label, 2)).tolist() == [True, False, False, True, True, True]
    assert session.run(is_wrong(logits, label, 5)).tolist() == [True, False, False, False, False, False]


def test_top_five_of_three_classes_is_never_wrong(session):
    assert session.run(is_wrong(tf.constant([[3., 2, 1]] * 3), tf.range(3), 5)).tolist() == [False] * 3


@pytest.mark.parametrize('k', [1, 5])
def test_logits_that_are_not_numbers_are_wrong(session, k):
    nan = np.full((10, 10), np.nan, np.float32)
    assert session.run(is_wrong(tf.constant(nan), tf.range(10), k)).all()
    one_nan = np.eye(10, dtype=np.float32)
    one_nan[np.arange(10), (np.arange(10) + 1) % 10] = np.nan
    assert session.run(is_wrong(tf.constant(one_nan), tf.range(10), k)).all()


def test_success_is_the_target_label_first(session):
    logits = tf.constant(np.eye(4, dtype=np.float32))
    assert session.run(is_target(logits, tf.constant([0, 1, 3, -1]))).tolist() == [True, True, False, False]


def test_logits_that_are_not_numbers_are_no_success(session):
    nan = tf.constant(np.full((10, 10), np.nan, np.float32))
    assert not session.run(is_target(nan, tf.range(10))).any()


def test_targets_and_noise_are_the_same_in_every_version():
    """In both lanes, on every machine: what one group measured another can repeat."""
    with tf.Graph().as_default(), tf.Session() as session:
        attacker = PGDAttacker(10, 16.0, 1.0, num_classes=1000, seed=3)
        targets = attacker.targets(tf.zeros([8], tf.int32), tf.range(8))
        start = attacker.start(tf.zeros([2, 4, 4, 3]), tf.range(2))
        targets, start = session.run([targets, start])
    assert targets.tolist() == [832, 233, 32, 778, 686, 509, 901, 498]
    assert start[1, 0, 0] * 255 / 2 == pytest.approx([-14.7161, 1.3551, -1.9206], abs=1e-4)
