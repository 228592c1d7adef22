"""Attackers of one's own: the worked example beside PGD, and the adversarial-robustness-toolbox's."""
import os
import re

import numpy as np
import pytest
from evaluating import alone, evaluate
from photos import photographs, write_split

from runtime.errors import InputError, RunError
from tools.mpi import read_figures

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MOMENTUM = 'attacks.momentum:MomentumAttacker'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 30)
    return folder


class Strange:
    """Made like an attacker, and is none."""

    def __init__(self, num_iter, epsilon, step_size, *, num_classes, seed=0, loss_scale=1.0, xla=False):
        pass


def test_momentum_beside_pgd(root, data, weights_file, tmp_path):
    """By success rate, on a network without defence: neither is the other, and the example is no weaker by much."""
    tables, success = [], []
    for i, flags in enumerate([[], ['--attacker', MOMENTUM]]):
        table = tmp_path / ('%d.csv' % i)
        done = evaluate(root, alone, data, weights_file(), '--attack-iter', '4,12', '--attack-epsilon', 3,
                        '--per-image', table, *flags)
        success.append(read_figures(done.stdout)['Attack Success Rate'])
        tables.append(table.read_text())
    assert min(success) > 0.4 and success[1] > success[0] - 0.15
    assert tables[0] != tables[1]


@pytest.mark.parametrize('project, status, message', [
    ('adversarial', 1, r'failed: the attack.* changed pixels by up to .*; its budget was 16'),
    ('adversarial / 0.0', 2, r'error: the attack.* 3 steps and epsilon 16 made pixels that are no numbers')])
def test_an_attacker_that_leaves_its_budget_is_caught(python, data, weights_file, tmp_path, project, status, message):
    (tmp_path / 'greedy.py').write_text(
        'from adv_model import PGDAttacker\n'
        'class Greedy(PGDAttacker):\n'
        '    def project(self, adversarial, image):\n'
        '        return %s\n' % project)
    done = python(os.path.join(ROOT, 'main.py'), '--eval', '--load', weights_file(), '--data', data, '-d', 14,
                  '--image-size', 32, '--attack-iter', 3, '--attacker', 'greedy:Greedy', cwd=tmp_path)
    assert done.returncode == status and 'Top1 Error' not in done.stdout
    assert re.search('main.py: ' + message, done.stderr)
    assert 'Traceback' not in done.stderr


RETURNS = '''
from runtime.compat import tf
from adv_model import Attacker as Base

class Attacker(Base):
    def __init__(self, num_iter, epsilon, step_size, *, num_classes, seed=0, loss_scale=1.0, xla=False):
        pass

    def attack(self, image, label, logits, index=None):
        return %s
'''
DIRECTION = '''
from adv_model import PGDAttacker

class Attacker(PGDAttacker):
    def direction(self, gradient, state):
        return %s, state
'''


@pytest.mark.parametrize('source, kind, said', [
    (RETURNS % 'image', InputError, 'does not return two tensors'),
    (RETURNS % '(image, None)', InputError, 'does not return two tensors'),
    (RETURNS % 'image[:, :16], label', InputError, r'returns images of float32 \(.*16, 32, 3\), not of float32 '),
    (RETURNS % 'tf.cast(image, tf.int32), label', InputError, 'returns images of int32'),
    (RETURNS % 'image, tf.cast(label, tf.float32)', InputError, 'returns target labels of float32'),
    (RETURNS % 'image, logits(image)', InputError, 'returns target labels of float32'),
    (RETURNS % 'image, label.no_such_thing', InputError, r'fails \(AttributeError: .*attacker_\d+.py, line 10\)'),
    (RETURNS % 'tf.reshape(image, [2, 64, 32, 3]), label', InputError, r'returns images of float32 \(2, 64, 32, 3\)'),
    (RETURNS % 'image[:2], label', RunError, r'makes of 4 images \(2, 32, 32, 3\) images and \(4,\) target labels'),
    (RETURNS % 'image, label[:2]', RunError,
     r'makes of 4 images \(4, 32, 32, 3\) images and \(2,\) target labels'),
    (RETURNS % 'tf.py_func(lambda x: x[9], [image], tf.float32), label', RunError, 'fails .*IndexError'),
    (DIRECTION % 'gradient[:, :5, :5]', InputError, r'fails \(ValueError: '),
    (DIRECTION % '"left"', InputError, 'fails ')])
def test_attackers_of_a_wrong_shape(source, kind, said, attacker_of):
    from runtime.compat import tf

    from adv_model import AttackTower
    from evaluation.attack import attack_batch
    from evaluation.attackers import check_attack, errors_of_attacker
    from evaluation.outcomes import Strength
    from kernels.mode import Mode
    from runtime.hardware import session_config
    from third_party.batches import Batch
    attacker = attacker_of(source)
    with pytest.raises(kind, match='the attacker Attacker ' + said) as raised, tf.Graph().as_default():
        with errors_of_attacker(attacker, InputError):
            tower = AttackTower(Linear(), 32, mode=Mode(), attack_mode=Mode(), attacker=attacker)
        check_attack(tower)
        with tf.Session(config=session_config()) as session:
            attack_batch(tower, session, Batch(np.zeros((4, 32, 32, 3), np.uint8), np.arange(4, dtype=np.int32),
                                               np.arange(4)), [Strength(3)])
    assert '\n' not in str(raised.value)


class Linear:
    """A network that is built in no time."""
    num_classes = 10

    def logits(self, x, mode):
        return x[:, 0, :10, 0]


def test_a_user_sees_one_line_of_a_wrong_attacker(python, data, weights_file, tmp_path):
    (tmp_path / 'wrong.py').write_text(RETURNS % 'image, logits(image)')
    done = python(os.path.join(ROOT, 'main.py'), '--eval', '--load', weights_file(), '--data', data, '-d', 14,
                  '--image-size', 32, '--attack-iter', 3, '--attacker', 'wrong:Attacker', cwd=tmp_path)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert re.search('main.py: error: the attacker Attacker returns target labels of float32', done.stderr)


def test_momentum_is_that_of_the_article(weights_of):
    """One step is FGSM towards the target; three follow the sum of normalised gradients, computed here in NumPy."""
    from runtime.compat import tf

    from attacks.momentum import MomentumAttacker
    from checkpoint import assign_weights
    from kernels.mode import Mode
    from nets import Network
    from runtime.hardware import session_config
    network = Network('ResNet', 14, 10)
    clean = np.random.RandomState(0).uniform(-0.5, 0.5, (2, 32, 32, 3)).astype(np.float32)
    target = np.array([3, 4], np.int32)
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 32, 32, 3])
        attacker = MomentumAttacker(3, 100.0, 1.0, num_classes=10)
        gradient = attacker.gradient(x, tf.constant(target), lambda y: network.logits(y, Mode()))
        attacked = attacker.iterate(x, x, tf.constant(target), lambda y: network.logits(y, Mode()), num_iter=3)
    with tf.Session(graph=graph, config=session_config()) as session:
        assign_weights(session, weights_of())
        result = session.run(attacked, {x: clean})
        expected, momentum = clean.astype(np.float64), 0
        for _ in range(3):
            g = session.run(gradient, {x: expected.astype(np.float32)}).astype(np.float64)
            momentum = momentum + g / np.abs(g).sum(axis=(1, 2, 3), keepdims=True)
            expected = np.clip(expected - 100 / 3 * 2 / 255 * np.sign(momentum), -1, 1)
    assert np.mean(np.abs(result - expected) > 1e-4) < 0.01  # a sign near zero may differ


@pytest.mark.parametrize('name, said', [
    ('no_such_module:Attacker', 'no_such_module'), ('adv_model', 'module:Class'), ('adv_model:NoSuch', 'NoSuch'),
    ('adv_model:NoOpAttacker', 'TypeError'), ('test_attackers:Strange', 'no subclass')])
def test_what_is_no_attacker(python, data, weights_file, name, said):
    done = python('main.py', '--eval', '--load', weights_file(), '--data', data, '-d', 14, '--image-size', 32,
                  '--attacker', name)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert re.search('main.py: error: the attacker .*(%s)' % said, done.stderr), done.stderr


def test_attacks_of_the_toolbox(classifier):
    """AutoPGD (gradients) and Square (queries alone), within their budgets, fool the network."""
    evasion = pytest.importorskip('art.attacks.evasion',
                                  reason='the extra adversarial-robustness-toolbox is not installed')
    from examples.art_estimator import ArtEstimator
    from third_party.images import validation_image
    network = classifier()
    images = np.stack([validation_image(p, 32) for p in photographs(12)]).astype(np.float32)
    labels = network.logits(images).argmax(axis=1)
    targets = (labels + 1) % 10
    estimator = ArtEstimator(network)

    logits = network.logits(images)
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(12), targets]
    assert estimator.compute_loss(images, targets) == pytest.approx(loss, rel=1e-5)
    assert estimator.compute_loss(images, np.eye(10)[targets], reduction='mean') == pytest.approx(loss.mean(), rel=1e-5)
    assert np.array_equal(estimator.loss_gradient(images, np.eye(10)[targets]), network.loss_gradient(images, targets))

    def generate(aim, **how):
        attacked = evasion.AutoProjectedGradientDescent(estimator, eps=8., eps_step=2., max_iter=10, nb_random_init=1,
                                                        loss_type=None, verbose=False, **how).generate(images, aim)
        assert np.abs(attacked - images).max() <= 8.001
        return network.logits(np.clip(attacked, 0, 255)).argmax(axis=1)

    assert np.mean(generate(labels) != labels) > 0.9
    # towards a target it is no worse than the paper's attack, but for an image
    by_pgd = network.logits(network.pgd(images, labels, targets, steps=10, epsilon=8.)[0]).argmax(axis=1)
    assert np.sum(generate(targets, targeted=True) == targets) >= np.sum(by_pgd == targets) - 1

    attacked = evasion.SquareAttack(estimator, eps=16., max_iter=60, nb_restarts=1, verbose=False).generate(
        images, np.eye(10)[labels])
    assert np.abs(attacked - images).max() <= 16.001
    assert np.mean(network.logits(np.clip(attacked, 0, 255)).argmax(axis=1) != labels) > 0.3


# --- what shares the steps of a longer attack ------------------------------------------------------------------------

OLD_STYLE = '''
from adv_model import PGDAttacker
from compat import tf

class Attacker(PGDAttacker):
    """Made before attackers had a state: it has a loop of its own."""

    def iterate(self, start, image, target, logits, *, num_iter):
        def step(i, adversarial, total):
            total = total + self.gradient(adversarial, target, logits)
            total.set_shape(adversarial.shape)
            return i + 1, self.move(adversarial, total, image), total
        return tf.while_loop(lambda i, *_: i < num_iter, step, [tf.constant(0), start, tf.zeros_like(start)],
                             back_prop=False)[1]
'''
KNOWS_ITS_LENGTH = '''
from runtime.compat import tf
from adv_model import PGDAttacker

class Attacker(PGDAttacker):
    """Each step is the smaller the longer the attack."""

    def direction(self, gradient, state):
        return gradient * tf.cast(self.num_iter % 3 - 1, tf.float32), state
'''
TARGETS_BY_LENGTH = '''
from adv_model import PGDAttacker

class Attacker(PGDAttacker):
    def targets(self, label, index=None):
        return (label + 1 + self.num_iter % 2) % self.num_classes
'''
COUNTS_STEPS = '''
from runtime.compat import tf
from adv_model import PGDAttacker

class Attacker(PGDAttacker):
    """Goes away from the target in every third step."""

    def initial_state(self, image):
        return tf.zeros([tf.shape(image)[0], 1, 1, 1]),  # a tuple

    def direction(self, gradient, state):
        away = tf.equal(state[0] % 3, 2) & tf.ones_like(gradient, tf.bool)
        return tf.where(away, -gradient, gradient), [state[0] + 1]
'''


@pytest.fixture
def attacker_of(tmp_path, monkeypatch):
    """attacker_of(source) -> the class `Attacker` of a module with that source, loaded as --attacker does."""
    from evaluation.attackers import load_attacker
    monkeypatch.chdir(tmp_path)

    def load(source):
        name = 'attacker_%d' % abs(hash(source))
        (tmp_path / (name + '.py')).write_text(source)
        return load_attacker(name + ':Attacker')
    return load


@pytest.mark.parametrize('source, shares', [
    (None, True), (MOMENTUM, True), (COUNTS_STEPS, True), (KNOWS_ITS_LENGTH, False),
    (TARGETS_BY_LENGTH, False), (OLD_STYLE, False)],
    ids=['pgd', 'momentum', 'counts steps', 'knows its length', 'targets by length', 'old style'])
def test_strengths_together_are_those_alone(source, shares, attacker_of, weights_of):
    """An attacker whose steps have a state shares them as PGD does; one whose steps know how many there will be, or
    with a loop of its own, does not. Either way each strength is what it is by itself."""
    from runtime.compat import tf

    from adv_model import AttackTower, PGDAttacker
    from checkpoint import assign_weights
    from evaluation.attack import attack_batch, attacks
    from evaluation.attackers import load_attacker
    from evaluation.outcomes import Strength
    from kernels.mode import Mode
    from nets import Network
    from runtime.hardware import session_config
    from third_party.batches import Batch
    attacker = PGDAttacker if source is None else load_attacker(source) if ':' in source[:60] else attacker_of(source)
    with tf.Graph().as_default() as graph:
        tower = AttackTower(Network('ResNet', 14, 10), 32, mode=Mode(), attack_mode=Mode(), attacker=attacker)
    assert tower.shares_steps == shares
    batch = Batch(np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3)).astype(np.uint8),
                  np.arange(4, dtype=np.int32), np.arange(4))
    strengths = [Strength(k, 4.0) for k in (13, 5, 8)]
    with tf.Session(graph=graph, config=session_config()) as session:
        assign_weights(session, weights_of())
        clean = session.run(tower.clean, {tower.image: batch.images})
        together = dict(attacks(tower, session, batch, clean, strengths))
        for strength in strengths:
            (_, alone_), = attacks(tower, session, batch, clean, [strength])
            assert np.array_equal(together[strength].images, alone_.images), strength
            assert np.array_equal(together[strength].targets, alone_.targets)
        assert (together[strengths[0]].images != together[strengths[1]].images).any()
        assert len(attack_batch(tower, session, batch, strengths)) == 4
