"""Methods of adversarial training: what their attacks, losses and updates are, against NumPy."""
import signal

from runtime.compat import tf

import helpers
import methods_worker as worker
import numpy as np
import pytest
from jobs import tiny_trainings
from methods_worker import BATCH, CLASSES, HIDDEN, NAMES, SIZE, TRACKED
from test_attack import PIXEL, LinearClassifier

from adv_model import scale_pixels
from attacks.pgd import PGDAttacker
from main import parse_options
from training.attackers import FastAttacker, TradesAttacker
from training.callbacks import LossGuard
from training.methods import method_of

# --- attackers -------------------------------------------------------------------------------------------------------

def attacked(session, attacker, classifier, image, label):
    """Return where an attack of a batch of uint8 images starts and ends, in [-1, 1]."""
    starts = []
    begin = attacker.start
    attacker.start = lambda *given: starts.append(begin(*given)) or starts[-1]
    x = scale_pixels(tf.constant(image))
    end, target = attacker.attack(x, tf.constant(label), classifier.logits)
    clean, start, end, target = session.run([x, starts[0], end, target])
    return clean, start, end, target


def batch(count=60):
    rng = np.random.RandomState(1)
    return rng.randint(0, 256, (count, 4, 4, 3)).astype(np.uint8), rng.randint(0, 6, count).astype(np.int32)


def test_fast_takes_one_long_step_from_noise_in_the_ball(session):
    image, label = batch()
    classifier = LinearClassifier()
    clean, start, end, target = attacked(session, FastAttacker(16., 20., num_classes=6), classifier, image, label)
    noise = start - clean
    inside = (np.abs(start) < 1)
    assert 15.5 * PIXEL < np.abs(noise).max() < 16.001 * PIXEL and abs(noise[inside].mean()) < PIXEL
    expected = np.clip(start + 20 * PIXEL * np.sign(classifier.gradient(start, label)), clean - 16 * PIXEL,
                       clean + 16 * PIXEL).clip(-1, 1)
    np.testing.assert_allclose(end, expected, atol=1e-6)
    assert (target == -1).all()


def test_n_fgsm_takes_a_step_of_epsilon_from_more_noise_and_is_not_projected(session):
    image, label = batch()
    classifier = LinearClassifier()
    attacker = FastAttacker(16., 16., num_classes=6, noise=2.0)
    clean, start, end, _ = attacked(session, attacker, classifier, image, label)
    noise = (start - clean)[np.abs(start) < 1]
    assert 31 * PIXEL < np.abs(noise).max() < 32.001 * PIXEL and 14 < np.abs(noise).mean() / PIXEL < 17
    expected = np.clip(start + 16 * PIXEL * np.sign(classifier.gradient(start, label)), -1, 1)
    np.testing.assert_allclose(end, expected, atol=1e-6)
    assert np.abs(end - clean).max() > 40 * PIXEL


def divergence_gradient(classifier, clean, x):
    """Of KL(clean || x) to x."""
    def probabilities(images):
        return helpers.softmax(images.reshape(len(images), -1) @ classifier.matrix.astype(np.float64))
    return ((probabilities(x) - probabilities(clean)) @ classifier.matrix.T).reshape(x.shape)


def test_trades_attacks_the_divergence_from_the_clean_images(session):
    image, label = batch()
    classifier = LinearClassifier()
    classifier.matrix *= 0.1  # a distribution that isn't one-hot
    clean, start, end, target = attacked(session, TradesAttacker(3, 8., 2., num_classes=6), classifier, image, label)
    noise = (start - clean) * 127.5 / 255  # of [0, 1]
    assert abs(noise.std() - 0.001) < 5e-5 and abs(noise.mean()) < 1e-4
    x = start.astype(np.float64)
    for _ in range(3):  # epsilon / steps is more than the step
        x = x + 8 / 3 * PIXEL * np.sign(divergence_gradient(classifier, clean, x))
        x = np.clip(x, clean - 8 * PIXEL, clean + 8 * PIXEL).clip(-1, 1)
    # all but some whose gradient rounds to the other sign: it is a difference of almost the same probabilities at first
    assert (np.abs(end - x) < 1e-5).mean() > 0.99
    assert (target == -1).all()


def test_flags_make_the_attackers_of_the_papers():
    def attacker(*flags):
        return method_of(parse_options(['--fake', '-d', '14'] + list(flags))).attacker(num_classes=6)

    paper = attacker('--attack-iter', '30')
    assert type(paper) is PGDAttacker and (paper.goal, paper.step_size, paper.clean_start_probability) == (
        'targeted', 1.0, 0.2)
    assert attacker('--attack-goal', 'untargeted').goal == 'untargeted'
    fast = attacker('--method', 'fast', '--attack-epsilon', '8')
    assert (fast.epsilon, fast.step_size, fast.noise, fast.goal, fast.num_iter) == (8, 10, None, 'untargeted', 1)
    assert fast.clean_start_probability == 0
    assert attacker('--method', 'fast', '--attack-goal', 'targeted').goal == 'targeted'
    n_fgsm = attacker('--method', 'fast', '--noise', '2', '--attack-epsilon', '8')
    assert (n_fgsm.step_size, n_fgsm.noise) == (8, 2)
    assert attacker('--method', 'fast', '--attack-step-size', '3').step_size == 3
    trades = attacker('--method', 'trades', '--attack-iter', '10', '--attack-epsilon', '8', '--attack-step-size', '2')
    assert (trades.num_iter, trades.step_size) == (10, 2)


def test_a_loss_explodes_beyond_what_the_methods_can_be():
    def limit(*flags):
        method = method_of(parse_options(['--fake', '-d', '14'] + list(flags)))
        return LossGuard(10, 0, None, method.largest_loss).limit
    assert limit() == limit('--method', 'fast') == pytest.approx(100 * np.log(10))
    assert limit('--method', 'trades', '--beta', '5') == pytest.approx(6 * 100 * np.log(10))


@pytest.mark.parametrize('flags, goal, trained, guarded', [
    ('--attack-iter 5', 'targeted', (5, 1.6), 10), ('--attack-iter 5 --attack-step-size 2', 'targeted', (5, 2), 10),
    ('--attack-iter 5 --attack-goal untargeted', 'untargeted', (5, 1.6), 10),
    ('--method fast', 'untargeted', (1, 10), 10), ('--method fast --attack-step-size 3', 'untargeted', (1, 3), 3),
    ('--method fast --noise 2', 'untargeted', (1, 8), 8), ('--method free', 'untargeted', None, 8),
    ('--method trades --attack-iter 4', 'untargeted', (4, 2), 10)])
def test_steps_of_trainings_and_of_the_guard(session, flags, goal, trained, guarded):
    """In pixels, of a budget of 8; halved, they are of half the size, also where PGD would take longer ones, but those
    of the attack that the guard compares with one step."""
    method = method_of(parse_options(['--fake', '-d', '14', '--attack-epsilon', '8'] + flags.split()))
    half = tf.placeholder_with_default(0.5, [])
    for make, expected in (method.attacker, trained), (method.one_step, (1, guarded)):
        if expected is not None:  # the attack of free is its replays'
            whole, halved = make(num_classes=6), make(num_classes=6, step_factor=half)
            assert (whole.num_iter, whole.step_size) == expected and (whole.epsilon, whole.goal) == (8, goal)
            assert session.run(halved.step_size) == pytest.approx(expected[1] / 2)
    several = method.several_steps(num_classes=6)
    assert type(several) is PGDAttacker and (several.num_iter, several.step_size, several.epsilon, several.goal) == (
        10, 1, 8, goal)


def test_trainings_that_attack_alike_have_attacks_of_the_same_name():
    """As a budget and a number of steps may ask for longer steps than the flag says."""
    def name(flags):
        return method_of(parse_options(['--fake', '--attack-epsilon', '8'] + flags.split())).attack_name()
    assert name('--attack-iter 2') == name('--attack-iter 2 --attack-step-size 3') != name('--attack-iter 3')
    assert name('--method trades --attack-iter 2') == name('--method trades --attack-iter 2 --attack-step-size 4')
    assert name('--method fast') != name('--method fast --attack-step-size 4') != name('--method free')


# --- updates ---------------------------------------------------------------------------------------------------------

def forward_backward(weights, x, upstream):
    """Return the logits of scaled images (N, 4, 4, 3), and the gradients of sum(upstream(logits) * logits) to both
    weights and to the images; float64."""
    one, two = [np.asarray(weights[name], np.float64) for name in NAMES]
    flat = x.reshape(len(x), -1)
    hidden = np.tanh(flat @ one)
    logits = hidden @ two
    d_logits = upstream(logits)
    d_hidden = d_logits @ two.T * (1 - hidden ** 2)
    return logits, {NAMES[0]: flat.T @ d_hidden, NAMES[1]: hidden.T @ d_logits}, (d_hidden @ one.T).reshape(x.shape)


def smoothed_gradient(label):
    """Of the mean cross-entropy with smoothed labels to logits."""
    smoothed = np.eye(CLASSES)[label] * 0.9 + 0.1 / CLASSES
    return lambda logits: (helpers.softmax(logits) - smoothed) / len(label)


class Optimizer:
    """Nesterov's momentum, weight decay and averages, from the first weights or a state; and each rank's statistic."""

    def __init__(self, decay=None, ranks=1):
        self.weights = {name: value.astype(np.float64) for name, value in worker.first_weights().items()}
        self.momentum = {name: 0.0 for name in NAMES}
        self.averages, self.decay = dict(self.weights), decay
        self.tracked, self.tracked_averages = np.zeros((2, ranks, HIDDEN))

    def track(self, x, rank=0):
        hidden = np.tanh(x.reshape(len(x), -1) @ self.weights[NAMES[0]])
        self.tracked[rank] += 0.1 * (hidden.mean(axis=0) - self.tracked[rank])

    def update(self, gradients):
        for name in NAMES:
            gradient = gradients[name] + 1e-4 * self.weights[name]
            self.momentum[name] = 0.9 * self.momentum[name] + gradient
            self.weights[name] = self.weights[name] - 0.1 * (gradient + 0.9 * self.momentum[name])
            if self.decay:
                self.averages[name] = self.decay * self.averages[name] + (1 - self.decay) * self.weights[name]
        if self.decay:
            self.tracked_averages += (1 - self.decay) * (self.tracked - self.tracked_averages)


def free_step(optimizer, held, perturbations, replays, epsilon):
    """Replay what all ranks hold, (images, labels) of each micro-batch, and move the perturbations."""
    for _ in range(replays):
        sums = {name: 0.0 for name in NAMES}
        for place, (image, label) in enumerate(held):
            moved = image / 127.5 - 1 + perturbations[place]
            optimizer.track(moved.clip(-1, 1), rank=place * len(optimizer.tracked) // len(held))
            _, gradients, d_x = forward_backward(optimizer.weights, moved.clip(-1, 1), smoothed_gradient(label))
            d_x = np.where(np.abs(moved) > 1, 0, d_x)
            perturbations[place] = np.clip(perturbations[place] + epsilon * PIXEL * np.sign(d_x), -epsilon * PIXEL,
                                           epsilon * PIXEL)
            for name in NAMES:
                sums[name] = sums[name] + gradients[name] / len(held)
        optimizer.update(sums)


FREE = ['--method', 'free', '--replays', '3', '--accumulate', '2', '--attack-epsilon', '8', '--ema', '0.9',
        '--on-overfitting', 'ignore']
TRADES = dict(name='trades', flags=['--method', 'trades', '--beta', '3', '--attack-iter', '2'], steps=3)
# in the second replay of the third step: there are two micro-batches, and three replays
KILLED = dict(name='killed', flags=FREE, epochs=2, dies_in=2 * 6 + 3)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the folder of the trainings' results."""
    folder = tmp_path_factory.mktemp('methods')
    tiny_trainings(folder, KILLED, status=-signal.SIGKILL)
    tiny_trainings(
        folder, dict(name='free', flags=FREE), dict(KILLED, name='resumed', restore='killed/model-2', dies_in=None),
        TRADES)
    return folder


def held_batches(ranks, step, micro_batches, drawn):
    """What the ranks hold in a step; before the first one so many batches were drawn."""
    begin = drawn + step * micro_batches
    return [(images[place], labels[place]) for images, labels in map(worker.stream, range(ranks))
            for place in range(begin, begin + micro_batches)]


def check_free(folder, name, optimizer, ranks):
    perturbations = [np.zeros((BATCH, SIZE, SIZE, 3))] * (2 * ranks)
    for step in range(2):
        free_step(optimizer, held_batches(ranks, step, 2, drawn=2), perturbations, replays=3, epsilon=8)
        for rank in range(ranks):
            with np.load(str(folder / ('%s-%d.npz' % (name, rank)))) as kept:
                np.testing.assert_allclose(kept['perturbation'][step], perturbations[2 * rank:2 * rank + 2], atol=1e-6)
                for variable in NAMES:
                    np.testing.assert_allclose(kept[variable][step], optimizer.weights[variable], atol=2e-5)
                    np.testing.assert_allclose(kept['ema/' + variable][step], optimizer.averages[variable], atol=2e-5)
                np.testing.assert_allclose(kept[TRACKED][step], optimizer.tracked[rank], atol=2e-6)
                np.testing.assert_allclose(kept['ema/' + TRACKED][step], optimizer.tracked_averages[rank], atol=2e-6)
    assert np.abs(perturbations).max() > 7.9 * PIXEL


def test_free_updates_weights_and_perturbation_from_one_backward_pass(trained):
    """Two micro-batches, three replays of both: momentum, weight decay and averages follow each of the updates."""
    optimizer = Optimizer(decay=0.9)
    check_free(trained, 'free', optimizer, ranks=1)
    # one that was killed within the replays of a batch goes on with all that its last checkpoint, of before that, has;
    # the perturbation begins anew
    assert sorted(path.name for path in (trained / 'killed').glob('*.index')) == ['model-2.index']
    check_free(trained, 'resumed', optimizer, ranks=1)


@pytest.mark.slow
def test_two_ranks_average_gradients(tmp_path):
    """Of free, each has its perturbations."""
    tiny_trainings(tmp_path, dict(name='free', flags=FREE), TRADES, ranks=2)
    check_free(tmp_path, 'free', Optimizer(decay=0.9, ranks=2), ranks=2)
    check_trades(tmp_path, ranks=2)


def trades_gradients(weights, clean, x, label, beta):
    """Return loss and gradients of the smoothed loss of clean images + beta KL(clean || attacked), and KL."""
    p_clean, p_attacked = [helpers.softmax(forward_backward(weights, given, np.zeros_like)[0]) for given in (clean, x)]
    ratio = np.log(p_clean / p_attacked)
    divergence = (p_clean * ratio).sum(axis=1, keepdims=True)
    of_loss = smoothed_gradient(label)
    logits, of_clean, _ = forward_backward(
        weights, clean, lambda z: of_loss(z) + beta * p_clean * (ratio - divergence) / len(label))
    _, of_attacked, _ = forward_backward(weights, x, lambda z: beta * (p_attacked - p_clean) / len(label))
    loss = helpers.smoothed_cross_entropy(logits, label, 0.1).mean() + beta * divergence.mean()
    return loss, {name: of_clean[name] + of_attacked[name] for name in NAMES}, divergence.mean()


def check_trades(folder, ranks):
    optimizer = Optimizer(ranks=ranks)
    kept = [np.load(str(folder / ('trades-%d.npz' % rank))) for rank in range(ranks)]
    for step in range(3):
        sums = {name: 0.0 for name in NAMES}
        for rank, (images, labels) in enumerate(map(worker.stream, range(ranks))):
            place = step + 2 * (rank == 0)  # the chief timed the attack with two batches
            clean, label = images[place] / 127.5 - 1, labels[place]
            attacked = kept[rank]['adversarial'][step]
            loss, gradients, divergence = trades_gradients(optimizer.weights, clean, attacked, label, beta=3)
            assert kept[rank]['loss'][step] == pytest.approx(loss, rel=1e-5) and divergence > 0.1
            for x in clean, attacked:  # in this order
                optimizer.track(x, rank)
            np.testing.assert_allclose(kept[rank][TRACKED][step], optimizer.tracked[rank], atol=2e-6)
            sums = {name: sums[name] + gradients[name] / ranks for name in NAMES}
        optimizer.update(sums)
        for name in NAMES:
            for of_rank in kept:
                np.testing.assert_allclose(of_rank[name][step], optimizer.weights[name], atol=2e-5)
            optimizer.weights[name] = kept[0][name][step].astype(np.float64)  # each step by itself


def test_trades_learns_clean_images_and_the_divergence(trained):
    check_trades(trained, ranks=1)
