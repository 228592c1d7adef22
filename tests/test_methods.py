"""Methods of adversarial training: what their attacks, losses and updates are, against NumPy."""
import json
import os
import re
import shutil
import signal
import subprocess

from runtime.compat import tf

import helpers
import methods_worker as worker
import numpy as np
import pytest
from forked import run_python
from jobs import statistics
from methods_worker import BATCH, CLASSES, HIDDEN, NAMES, SIZE, TRACKED
from test_attack import PIXEL, LinearClassifier

from adv_model import scale_pixels
from attacks.pgd import PGDAttacker
from main import parse_options
from runtime.errors import InputError
from tools.mpi import mpirun
from training.attackers import FastAttacker, TradesAttacker
from training.callbacks import LossGuard
from training.flags import is_guarded
from training.log_directory import log_directory_of
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


def test_between_epochs_steps_have_their_usual_size():
    options = parse_options(['--fake', '--method', 'fast', '--attack-step-size', '20'])
    assert options.attack_step_size == 1.0 and options.training_step_size == 20.0
    options = parse_options(['--fake', '--attack-step-size', '2'])
    assert options.attack_step_size == options.training_step_size == 2.0


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


def run_worker(folder, *scenarios, ranks=1, status=0):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'methods_worker.py')
    arguments = [script, str(folder)] + [json.dumps(s) for s in scenarios]
    if ranks == 1:
        done = run_python(*arguments, cwd=str(folder))
    else:
        root = os.path.dirname(os.path.dirname(script))
        done = subprocess.run(mpirun(ranks, arguments), cwd=str(folder), stdin=subprocess.DEVNULL,
                              env=dict(os.environ, PYTHONPATH=os.pathsep.join([root, os.path.dirname(script)])),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-5000:]
    warned = re.findall(r'^catastrophic overfitting.*(?:acts on it|from now on)$', done.stderr, re.MULTILINE)
    assert len(warned) == len(re.findall('WRN.* catastrophic overfitting', done.stdout))
    return done.stdout


FREE = ['--method', 'free', '--replays', '3', '--accumulate', '2', '--attack-epsilon', '8', '--ema', '0.9',
        '--on-overfitting', 'ignore']
# in the second replay of the third step: there are two micro-batches, and three replays
KILLED = dict(name='killed', flags=FREE, epochs=2, dies_in=2 * 6 + 3)
GUARDED = ['--method', 'fast', '--attack-epsilon', '8', '--ema', '0.9', '--on-overfitting']
# after 2 steps the weights are 1.2e-3 from the first ones, after 4 steps 1.8e-3 to 2.0e-3, after 8 3.2e-3; on two ranks
# they are 5e-4, 1.1e-3 and 2.4e-3
RESTORING = dict(name='restore', flags=GUARDED + ['restore'], epochs=7, rate=1e-4, overfits_at=1.5e-3)
# its weights are nearer the first ones: 3.8e-4 after 2 steps, 7.2e-4 after 4
FREE_RESTORING = dict(RESTORING, name='restore-free', overfits_at=5e-4, flags=[
    '--method', 'free', '--replays', '1', '--attack-epsilon', '8', '--accumulate', '2', '--on-overfitting', 'restore'])
# and from where that ended: with the same attack, and with another one
AGAIN = dict(RESTORING, name='again', restore='again/model-8')
OTHER_STEP = dict(RESTORING, name='other-step', restore='other-step/model-8', epochs=5,
                  flags=RESTORING['flags'] + ['--attack-step-size', '5'])
WARNING = dict(name='warn', flags=GUARDED[:-1], epochs=3, rate=1e-4, overfits_at=1.5e-3)
# from where that had overfitted already
WARNED = dict(WARNING, name='warned', restore='warn/model-4')
WARNED_OTHERWISE = dict(WARNED, name='warned-otherwise', flags=WARNING['flags'] + ['--attack-step-size', '5'])
# in the first epoch; and from the beginning on, which is no leap
FIRST = dict(name='first', flags=GUARDED + ['stop'], epochs=2, rate=1e-4, overfits_at=1e-4, save_every=1)
ALWAYS = dict(name='always', flags=GUARDED + ['stop'], epochs=1, rate=1e-4, overfits_at=-1.0)
STOPPING = dict(name='stop', flags=GUARDED + ['stop'], epochs=3, steps=4, rate=1e-4, overfits_at=2.5e-3, save_every=1,
                kept=2)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the folder of all scenarios' results, and what was said."""
    folder = tmp_path_factory.mktemp('methods')
    said = run_worker(folder, RESTORING, KILLED, status=-signal.SIGKILL)
    for again in AGAIN, OTHER_STEP:
        shutil.copytree(str(folder / 'restore'), str(folder / again['name']))
    said += run_worker(
        folder, dict(name='free', flags=FREE), dict(KILLED, name='resumed', restore='killed/model-2', dies_in=None),
        dict(name='trades', flags=['--method', 'trades', '--beta', '3', '--attack-iter', '2'], steps=3),
        WARNING, WARNED, WARNED_OTHERWISE, STOPPING, FIRST, ALWAYS, AGAIN, OTHER_STEP, FREE_RESTORING)
    return folder, said


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
    check_free(trained[0], 'free', optimizer, ranks=1)
    # one that was killed within the replays of a batch goes on with all that its last checkpoint, of before that, has;
    # the perturbation begins anew
    assert sorted(path.name for path in (trained[0] / 'killed').glob('*.index')) == ['model-2.index']
    check_free(trained[0], 'resumed', optimizer, ranks=1)


@pytest.mark.slow
def test_free_on_two_ranks(tmp_path):
    """Each has its perturbations, and both the average gradients."""
    run_worker(tmp_path, dict(name='free', flags=FREE), ranks=2)
    check_free(tmp_path, 'free', Optimizer(decay=0.9, ranks=2), ranks=2)


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


def test_trades_learns_clean_images_and_the_divergence(trained):
    optimizer = Optimizer()
    images, labels = worker.stream(0)
    with np.load(str(trained[0] / 'trades-0.npz')) as kept:
        for step in range(3):
            clean, label = images[2 + step] / 127.5 - 1, labels[2 + step]  # the attack was timed with two batches
            loss, gradients, divergence = trades_gradients(optimizer.weights, clean, kept['adversarial'][step], label,
                                                           beta=3)
            assert kept['loss'][step] == pytest.approx(loss, rel=1e-5) and divergence > 0.1
            for x in clean, kept['adversarial'][step]:  # in this order
                optimizer.track(x)
            np.testing.assert_allclose(kept[TRACKED][step], optimizer.tracked[0], atol=2e-6)
            optimizer.update(gradients)
            for name in NAMES:
                np.testing.assert_allclose(kept[name][step], optimizer.weights[name], atol=2e-5)
                optimizer.weights[name] = kept[name][step].astype(np.float64)  # each step by itself


# --- the guard -------------------------------------------------------------------------------------------------------

def check_restored(folder, ranks):
    """Each rank is back at the good weights after three overfitted epochs; the fourth one ends the training."""
    for rank in range(ranks):
        with np.load(str(folder / ('restore-%d.npz' % rank))) as kept:
            for name in NAMES:
                good, overfitted, after = kept['epoch/' + name][0], kept[name][3], kept['epoch/' + name]
                assert (good == kept[name][1]).all() and (overfitted != good).any()
                assert len(after) == 4 and all((value == good).all() for value in after)
    records = statistics(folder / 'restore')
    assert [record['overfitting/found'] for record in records] == [0, 1, 1, 1, 1]
    good = tf.train.load_checkpoint(str(folder / 'restore' / 'model-2'))
    for step, factor in (4, 0.5), (6, 0.25), (8, 0.125):
        reader = tf.train.load_checkpoint(str(folder / 'restore' / ('model-%d' % step)))
        for name in [*NAMES, 'one/W/Momentum', 'training/ema/one/W']:
            assert (reader.get_tensor(name) == good.get_tensor(name)).all(), name
        assert reader.get_tensor('global_step') == step
        assert reader.get_tensor('training/attack_step_factor') == factor
        assert reader.get_tensor('training/overfitting/good_step') == step
        assert reader.get_tensor('training/overfitting/distance') == 0  # as measured anew


def test_the_guard_goes_back_to_the_last_good_checkpoint_with_half_of_the_step(trained):
    folder, said = trained
    assert re.search(r'catastrophic overfitting in epoch 2: the error on training images is 0.000 under one step and '
                     r'1.000 under 10 steps.* Going back to the weights of .*model-2; .* 0.5 times', said)
    assert re.search('RunError: catastrophic overfitting in epoch 5: .*, with 0.125 of the attack\'s step; the last '
                     'checkpoint before that is .*model-8. Go on from it with more '
                     'steps, by --method pgd, and with --resume .*/restore$', said, re.MULTILINE)
    check_restored(folder, ranks=1)


def test_a_halved_step_is_of_one_attack(trained):
    """A training that goes on with the same one goes on with an eighth of its step; with another one it begins anew."""
    folder, said = trained
    ends = re.findall(r"RunError: catastrophic overfitting in epoch 5: .*with 0.125 of the attack's step; .*/(\S+)$",
                      said, re.MULTILINE)
    assert ends == ['restore', 'again', 'restore-free']
    assert said.count('0.125 times as long as at the beginning, since the network overfitted\n') == 1
    assert said.count('the attack is another one now') == 1
    reader = tf.train.load_checkpoint(str(folder / 'other-step' / 'model-10'))
    assert reader.get_tensor('training/attack_step_factor') == 0.5


def test_free_takes_halved_steps_too(trained):
    """Of 8 pixels at first, clipped at 8; after three times of 1."""
    folder, _ = trained
    assert sum(record['overfitting/found'] for record in statistics(folder / 'restore-free')) == 4
    with np.load(str(folder / 'restore-free-0.npz')) as kept:
        first, *_, last = [np.round(np.abs(p) / PIXEL) for p in kept['perturbation']]
        begin = kept['adversarial'][0]
    assert set(first.ravel()) <= {0, 8} and 1 in last % 2 and 8 in last
    # the guard takes one batch for each of its measurements, of ceil(256 / 3) batches, not one for each micro-batch
    images = worker.stream(0, labelled=True)[0] / 127.5 - 1
    which = [k for k in range(worker.BATCHES) if np.allclose(images[k], begin, atol=1e-6)]
    assert which == [(86 + 2 + 2 - 1) % worker.BATCHES]


def check_stopped(folder):
    """The good checkpoint is kept, though 2 are and its epoch had 4; those after it have another name."""
    good = tf.train.load_checkpoint(str(folder / 'stop' / 'model-4'))
    assert good.get_tensor('training/overfitting/good_step') == 4
    last = statistics(folder / 'stop')[-1]
    assert last['global_step'] == 8 and last['overfitting/found'] == 1
    assert last['overfitting/error-1step'] == 0 and last['overfitting/error-10step'] == 1
    assert sorted(path.name for path in (folder / 'stop').glob('*.index')) == ['model-4.index', 'overfitted-7.index']
    assert tf.train.load_checkpoint(str(folder / 'stop' / 'overfitted-7')).get_tensor('global_step') == 7


def test_the_guard_ends_a_training(trained):
    folder, said = trained
    assert re.search('RunError: catastrophic overfitting in epoch 2: .*; the last .* before that is .*model-4.', said)
    check_stopped(folder)


def test_the_guard_compares_the_first_epoch_with_the_beginning(trained):
    folder, said = trained
    assert re.search('RunError: catastrophic overfitting in epoch 1: .* 0.000 apart before; there is no check', said)
    assert sorted(path.stem for path in (folder / 'first').glob('*.index')) == ['overfitted-1']
    assert [record['overfitting/found'] for record in statistics(folder / 'always')] == [0]
    assert (folder / 'always' / 'model-2.index').exists()


@pytest.mark.slow
def test_the_guard_on_two_ranks(tmp_path):
    """Both end at once, and go back at once; one says so."""
    said = run_worker(tmp_path, dict(WARNING, overfits_at=8e-4), dict(WARNED, overfits_at=8e-4),
                      dict(RESTORING, overfits_at=8e-4), dict(STOPPING, overfits_at=1.7e-3), ranks=2)
    assert said.count('--on-overfitting stop or restore acts on it') == 2
    check_warned(tmp_path, 'warned')
    ends = re.findall('^RunError: catastrophic overfitting in epoch ([0-9])', said, re.MULTILINE)
    assert sorted(ends) == ['2', '2', '5', '5']
    check_restored(tmp_path, ranks=2)
    check_stopped(tmp_path)


def test_the_guard_warns_once(trained):
    folder, said = trained
    assert said.count('--on-overfitting stop or restore acts on it') == 1 + 2  # WARNED and WARNED_OTHERWISE
    assert [record['overfitting/found'] for record in statistics(folder / 'warn')] == [0, 1, 1]
    assert (folder / 'warn' / 'model-6.index').exists()


def check_warned(folder, name):
    """The distance is that of before the network overfitted, and the last good checkpoint, though it was resumed since.
    """
    assert [record['overfitting/found'] for record in statistics(folder / name)] == [1]
    reader = tf.train.load_checkpoint(str(folder / name / 'model-6'))
    assert [reader.get_tensor('training/overfitting/' + what) for what in ('distance', 'good_step')] == [0, 2]


def test_a_resumed_training_knows_that_it_has_overfitted(trained):
    """Also where it goes on with a smaller step, as the warning says."""
    folder, said = trained
    check_warned(folder, 'warned')
    check_warned(folder, 'warned-otherwise')
    assert said.count('After step 2 it had not overfitted') == 3


def test_a_halved_step_is_one_of_half_the_size(session):
    options = parse_options(['--fake', '--method', 'fast', '--attack-epsilon', '8'])
    factor = tf.placeholder_with_default(0.5, [])
    assert session.run(method_of(options).attacker(num_classes=6, step_factor=factor).step_size) == 5.0
    assert session.run(method_of(options).one_step(num_classes=6, step_factor=factor).step_size) == 5.0


# --- flags -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('flags, name', [
    ('', 'PGD-ResNet50-Batch32-2GPUs-iter30-epsilon16.0-step1.0'),
    ('--attack-iter 0 --logdir a', 'PGD-ResNet50-Batch32-2GPUs-iter0-epsilon16.0-step1.0-a'),
    ('--attack-goal untargeted', 'PGD-untargeted-ResNet50-Batch32-2GPUs-iter30-epsilon16.0-step1.0'),
    ('--method fast', 'Fast-ResNet50-Batch32-2GPUs-iter1-epsilon16.0-step20.0'),
    ('--method fast --noise 2', 'Fast-noise2.0-ResNet50-Batch32-2GPUs-iter1-epsilon16.0-step16.0'),
    ('--method free', 'Free-replays8-ResNet50-Batch32-2GPUs-iter1-epsilon16.0-step16.0'),
    ('--method trades --beta 2 --schedule cosine --ema 0.99',
     'TRADES-beta2.0-cosine-ema0.99-ResNet50-Batch32-2GPUs-iter30-epsilon16.0-step1.0')])
def test_methods_have_log_directories_of_their_own(flags, name):
    assert log_directory_of(parse_options(['--fake'] + flags.split()), 2) == os.path.join('train_log', name)


@pytest.mark.parametrize('flags, said', [
    ('--replays 4', '--replays goes with --method free, not with --method pgd'),
    ('--method free --replays 4 --attack-iter 2', 'by one step in each of its --replays, not by --attack-iter 2'),
    ('--method free --attack-iter 0', 'not by --attack-iter 0'), ('--method free --xla', 'has no attack apart from'),
    ('--method free --attack-goal targeted', 'no attack that is targeted'),
    ('--method free --replays 0', 'not a whole number'), ('--method free --replays 70000', 'at most 65536'),
    ('--method fast --attack-iter 7', '--method fast attacks by one step, not by --attack-iter 7'),
    ('--method fast --beta 6', '--beta goes with --method trades, not with --method fast'),
    ('--method trades --beta 1e30', '--beta 1e\\+30: above 10000 nothing is learnt'),
    ('--method trades --noise 2', '--noise goes with --method fast'),
    ('--method trades --attack-iter 0', 'needs an attack'),
    ('--method trades --attack-goal targeted', 'no attack that is targeted'), ('--method other', 'invalid choice'),
    ('--ema 1', "'1' is not a number between 0 and 1"), ('--ema 0', 'between 0 and 1'),
    ('--ema nan', 'between 0 and 1'), ('--ema 0.9999999999', '0.9999999999: above 0.999999 averages don\'t follow'),
    ('--method fast --noise 32 --attack-epsilon 8', '--noise 32 times --attack-epsilon 8 is more than 255'),
    ('--weights ema', '--weights goes with --load'), ('--attack-iter 0 --on-overfitting stop', 'goes with adversarial'),
    ('--keep-best eval-clean/error-top1', '--keep-best needs evaluations between epochs, and a training with --fake')])
def test_flags_that_do_not_go_together(flags, said):
    with pytest.raises(InputError, match=said):
        parse_options(['--fake'] + flags.split())


@pytest.mark.parametrize('flags, guarded', [
    ('', False), ('--method trades', False), ('--method fast', True), ('--method free', True),
    ('--on-overfitting stop', True), ('--method fast --on-overfitting restore', True),
    ('--method free --on-overfitting ignore', False), ('--on-overfitting ignore', False)])
def test_who_is_guarded_against_overfitting(flags, guarded):
    assert is_guarded(parse_options(['--fake'] + flags.split())) == guarded


@pytest.mark.parametrize('flags, refused', [
    ('--keep-best eval-10step/error-top1', False), ('--keep-best eval-100step/error-top5', False),
    ('--keep-best eval-10step/attack-success-rate', False), ('--keep-best eval-11step/error-top1', True),
    ('--keep-best eval-10step/attack-success-rate --method fast', True), ('--keep-best loss', True),
    ('--keep-best eval-ema-10step/error-top1', True), ('--keep-best eval-ema-10step/error-top1 --ema 0.9', False),
    ('--keep-best eval-10step/error-top1 --training-eval clean', True),
    ('--keep-best eval-clean/error-top1 --training-eval clean', False),
    ('--keep-best eval-clean/error-top1 --training-eval none', True)])
def test_only_what_is_evaluated_can_be_the_best(flags, refused):
    if refused:
        with pytest.raises(InputError, match='--keep-best'):
            parse_options(['--data', 'd'] + flags.split())
    else:
        parse_options(['--data', 'd'] + flags.split())
