"""APGD against the article's algorithm in NumPy, on networks whose gradients are known."""
from runtime.compat import tf

import helpers
import numpy as np
import pytest
from lanes import once

from attacks.apgd import APGDAttacker
from kernels.mode import Mode
from runtime.hardware import session_config

CLASSES = 5
SHAPE = (4, 4, 3)
PIXEL = 2 / 255  # on the scale of [-1, 1]
EPSILON = 16.0


class TwoLayers:
    """Logits and gradients of a small network of two layers, in TensorFlow and NumPy, both in float64."""

    def __init__(self, scale=1.0):
        rng = np.random.RandomState(3)
        self.first = rng.standard_normal((np.prod(SHAPE), 40)) * 0.5
        self.last = rng.standard_normal((40, CLASSES)) * scale

    def logits(self, x):
        hidden = tf.tanh(tf.matmul(tf.cast(tf.reshape(x, [-1, len(self.first)]), tf.float64), self.first))
        return tf.cast(tf.matmul(hidden, self.last), tf.float32)

    def numpy_logits(self, x):
        return np.tanh(x.reshape(len(x), -1) @ self.first) @ self.last

    def gradient(self, x, upstream):
        hidden = np.tanh(x.reshape(len(x), -1) @ self.first)
        return (upstream @ self.last.T * (1 - hidden ** 2) @ self.first.T).reshape(x.shape)


def targeted_dlr(z, label, target):
    """Loss and gradient to the logits of one image."""
    order = np.argsort(z)[::-1]
    below = z[order[0]] - (z[order[2]] + z[order[3]]) / 2
    above = z[target] - z[label]
    gradient = np.zeros(len(z))
    gradient[target] += 1 / below
    gradient[label] -= 1 / below
    for k, factor in zip(order[[0, 2, 3]], (1, -0.5, -0.5)):
        gradient[k] -= factor * above / below ** 2
    return above / below, gradient


def cross_entropy(z, label, target):
    p = helpers.softmax(z[None])[0]
    return -np.log(p[label]), p - np.eye(len(z))[label]


LOSSES = {('ce', 'untargeted'): cross_entropy, ('dlr', 'targeted'): targeted_dlr}


def apgd(network, function, image, start, label, target, steps):
    """The article's Algorithm 1 for one image; returns the first point that is taken for the target, that is wrong, and
    the best, and the best losses after each checkpoint and at the end."""
    def project(x):
        return np.clip(x, np.maximum(image - EPSILON * PIXEL, -1), np.minimum(image + EPSILON * PIXEL, 1))

    def loss_and_gradient(x):
        loss, upstream = function(network.numpy_logits(x[None])[0], label, target)
        return loss, network.gradient(x[None], upstream[None])[0]

    percent, last = [0, 22], 22
    while last < 100:
        last += max(percent[-1] - percent[-2] - 3, 6)
        percent.append(last)
    checkpoints = [int(np.ceil(round(p * steps / 100, 9))) for p in percent if p < 100]
    points = [start]
    x, before, eta = start, start, 2 * EPSILON * PIXEL
    loss, gradient = loss_and_gradient(x)
    best = x, loss, gradient
    raised, last, eta_then, best_then, at_checkpoints = 0, 0, eta, loss, {0: loss}
    for k in range(1, steps + 1):
        z = project(x + eta * np.sign(gradient))
        after = z if k == 1 else project(x + 0.75 * (z - x) + 0.25 * (x - before))
        x, before, loss_before = after, x, loss
        loss, gradient = loss_and_gradient(x)
        points.append(x)
        raised += loss > loss_before
        if loss > best[1]:
            best = x, loss, gradient
        if k in checkpoints:
            at_checkpoints[k] = best[1]
            halve = raised < 0.75 * (k - last) or (eta == eta_then and best[1] == best_then)
            eta_then, best_then, raised, last = eta, best[1], 0, k
            if halve:
                eta /= 2
                x, loss, gradient = best
    predictions = network.numpy_logits(np.array(points)).argmax(axis=1)
    found = [points[i[0]] for i in (np.flatnonzero(predictions == target), np.flatnonzero(predictions != label))
             if len(i)]
    return (found + [best[0]])[0], [at_checkpoints[k] for k in checkpoints] + [best[1]]


def photos(count, seed=0):
    rng = np.random.RandomState(seed)
    return np.clip(rng.uniform(-1.2, 1.2, (count,) + SHAPE), -1, 1).astype(np.float32)


@pytest.mark.parametrize('loss, goal', list(LOSSES))
@pytest.mark.parametrize('steps, xla', [(1, False), (7, False), (10, True), (100, False)])
def test_it_is_the_article(session, loss, goal, steps, xla):
    """Losses after each checkpoint, and which point comes out."""
    network, image = TwoLayers(), photos(60)
    logits = network.numpy_logits(image)
    label = logits.argmax(axis=1).astype(np.int32)
    target = np.where(goal == 'targeted', logits.argsort(axis=1)[:, 0], -1).astype(np.int32)
    attacker = APGDAttacker(steps, EPSILON, 1.0, num_classes=CLASSES, loss=loss, goal=goal, xla=xla)
    start = attacker.start(tf.constant(image), tf.range(60))
    how = dict(num_iter=tf.constant(steps), label=tf.constant(label))
    climb = attacker.climb(start, tf.constant(image), tf.constant(target), network.logits, **how)
    start, (result, losses) = session.run([start, climb])

    assert np.abs(result - image).max() < EPSILON * PIXEL + 1e-6 and np.abs(result).max() <= 1
    expected = [apgd(network, LOSSES[loss, goal], *of, steps) for of in zip(image, start, label, target)]
    expected_losses = np.array([e[1] for e in expected])
    # but for an image with a gradient of almost 0, whose sign is a matter of rounding
    same = (np.abs(losses - expected_losses) < 1e-4 + 1e-3 * np.abs(expected_losses)).all(axis=1)
    assert same.mean() > 0.94
    results = np.array([[LOSSES[loss, goal](network.numpy_logits(x[None])[0], label[i], target[i])[0] for x in pair]
                        for i, pair in enumerate(zip(result, [e[0] for e in expected]))])
    assert (np.abs(results[:, 0] - results[:, 1]) < 1e-4 + 1e-3 * np.abs(results[:, 1])).mean() > 0.94
    if steps == 100:
        assert (losses[:, 1:] >= losses[:, :-1]).all() and (losses[:, 5] > losses[:, 1]).mean() > 0.5


@pytest.mark.parametrize('goal', ['targeted', 'untargeted'])
def test_which_point_is_the_result(session, goal):
    """Of an easy image the first that the goal was reached at; the best of an image whose label nothing changes."""
    network, image = TwoLayers(), photos(30)
    logits = network.numpy_logits(image)
    label, target = logits.argmax(axis=1).astype(np.int32), logits.argsort(axis=1)[:, -2].astype(np.int32)
    attacker = APGDAttacker(20, 60.0, 1.0, num_classes=CLASSES, goal=goal)
    start = tf.constant(image)
    result = session.run(attacker.iterate(start, start, tf.constant(target), network.logits, num_iter=20,
                                          label=tf.constant(label)))
    prediction = network.numpy_logits(result).argmax(axis=1)
    assert np.mean(prediction == target if goal == 'targeted' else prediction != label) > 0.9
    # one that is wrong before the first step stays as it is
    wrong = (label + 1) % CLASSES if goal == 'untargeted' else label
    result = session.run(attacker.iterate(start, start, tf.constant(label), network.logits, num_iter=20,
                                          label=tf.constant(wrong)))
    assert np.array_equal(result, image)


def test_masked_gradients(session):
    """Where logits are large the cross-entropy has no gradient in float32: nothing is found. DLR does not mind."""
    network, image = TwoLayers(scale=1e4), photos(60)
    label = network.numpy_logits(image).argmax(axis=1).astype(np.int32)
    wrong = {}
    for loss in 'ce', 'dlr', 'margin':
        attacker = APGDAttacker(20, EPSILON, 1.0, num_classes=CLASSES, loss=loss, goal='untargeted')
        result = session.run(attacker.attack(tf.constant(image), tf.constant(label), network.logits, tf.range(60))[0])
        wrong[loss] = np.mean(network.numpy_logits(result).argmax(axis=1) != label)
    plain = APGDAttacker(20, EPSILON, 1.0, num_classes=CLASSES, loss='dlr', goal='untargeted')
    expected = session.run(plain.attack(tf.constant(image), tf.constant(label), TwoLayers().logits, tf.range(60))[0])
    assert wrong['dlr'] == np.mean(network.numpy_logits(expected).argmax(axis=1) != label)
    assert wrong['dlr'] > wrong['ce'] + 0.3 and wrong['margin'] > wrong['ce'] + 0.3


@pytest.mark.parametrize('goal', ['targeted', 'untargeted'])
@pytest.mark.parametrize('xla', [False, True])
def test_what_overflows_does_not_stand_still(session, goal, xla):
    """It would look like a robust network. What was reached before is kept."""
    network, image = TwoLayers(), photos(8)
    label = network.numpy_logits(image).argmax(axis=1).astype(np.int32)
    label[:4] = (label[:4] + 1) % CLASSES  # these are wrong at the start

    def overflowing(x):
        """No number where the image has moved."""
        moved = tf.reduce_any(tf.not_equal(x, tf.constant(image)), axis=[1, 2, 3])
        return network.logits(x) / tf.cast(tf.logical_not(moved), tf.float32)[:, None]

    attacker = APGDAttacker(5, EPSILON, 1.0, num_classes=CLASSES, loss='margin', goal=goal, xla=xla)
    start = tf.constant(image)
    result = session.run(attacker.iterate(start, start, tf.constant((label + 2) % CLASSES), overflowing, num_iter=5,
                                          label=tf.constant(label)))
    assert np.isnan(result[4:]).all()
    # those that are wrong, towards a target that they are not
    assert np.array_equal(result[:4], image[:4]) if goal == 'untargeted' else np.isnan(result[:4]).all()


def test_the_network_is_computed_once_a_step():
    """Forwards and backwards in the loop, and forwards once after it, where the graph has one gradient alone."""
    network, calls = TwoLayers(), []
    with tf.Graph().as_default():
        attacker = APGDAttacker(100, EPSILON, 1.0, num_classes=CLASSES)
        attacker.attack(tf.zeros((2,) + SHAPE), tf.zeros([2], tf.int32), lambda x: calls.append(x) or network.logits(x))
    assert len(calls) == 2


@pytest.mark.parametrize('dtype, data_format, xla', [
    ('bfloat16', 'NHWC', False), pytest.param('float32', 'NCHW', True, marks=[once, pytest.mark.slow]),
    pytest.param('float16', 'NHWC', True, marks=[once, pytest.mark.slow])])
def test_precisions_and_layouts(weights_of, dtype, data_format, xla):
    """On a network of the zoo, by the tower: it follows the targets that it is given, and repeats itself."""
    from adv_model import AttackTower
    from checkpoint import assign_weights
    from nets import Network
    mode = Mode(dtype=tf.as_dtype(dtype), data_format=data_format)
    with tf.Graph().as_default() as graph:
        tower = AttackTower(Network('ResNet', 14, 10), 32, mode=Mode(), attack_mode=mode, attacker=APGDAttacker,
                            loss='dlr', xla=xla, loss_scale=128.0 if dtype == 'float16' else 1.0)
    assert tower.takes_targets and not tower.shares_steps
    images = helpers.images(4, 32)
    feed = {tower.image: images, tower.index: range(4), tower.num_iter: 20, tower.epsilon: 16.0, tower.step_size: 1.0}
    with tf.Session(graph=graph, config=session_config()) as session:
        assign_weights(session, weights_of())
        feed[tower.label] = label = session.run(tower.prediction, feed)
        result, towards = session.run(tower.attacked, feed)
        again = session.run(tower.result, {**feed, tower.towards: towards})
        other = session.run(tower.result, {**feed, tower.towards: (towards + 1) % 10})
        prediction = session.run(tower.prediction, {tower.current: result})
    assert np.array_equal(result, again) and (result != other).any() and (towards != label).all()
    assert np.abs(result - (images * PIXEL - 1)).max() < 16.0 * PIXEL + 1e-5
    assert (prediction != label).mean() >= 0.5
