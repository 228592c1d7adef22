"""Losses and goals of attacks against NumPy in float64, and what an attack by each does."""
from runtime.compat import tf

import numpy as np
import pytest
from test_attack import CLASSES, LinearClassifier, batch, pgd_attacker

from adv_model import AttackTower
from attacks import losses
from attacks.table import ATTACKERS, GOALS, LOSSES, address_of, check_aim, fewest_classes
from kernels.mode import Mode
from runtime.errors import InputError
from runtime.own_code import load_code


def loss_of(name, goal, z, label, target):
    """The loss of one image, written from the articles: z (classes,) float64."""
    y, t = z[label], z[target]
    ordered = np.sort(z)[::-1]
    if name == 'ce':
        of = label if goal == 'untargeted' else target
        cross_entropy = np.log(np.exp(z - z.max()).sum()) + z.max() - z[of]
        return cross_entropy if goal == 'untargeted' else -cross_entropy
    if name == 'margin':
        return np.delete(z, label).max() - y if goal == 'untargeted' else t - np.delete(z, target).max()
    if goal == 'untargeted':
        return -(y - np.delete(z, label).max()) / (ordered[0] - ordered[2])
    return -(y - t) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


def losses_in_graph(name, goal, logits, label, target):
    function = getattr(losses, LOSSES[name].function)
    return function(logits, label, target if goal == 'targeted' else None)


def aims():
    return [(name, goal) for name in LOSSES for goal in GOALS]


@pytest.mark.parametrize('name, goal', aims())
@pytest.mark.parametrize('classes', [4, 10])
def test_losses_and_gradients_are_those_of_the_articles(session, name, goal, classes):
    rng = np.random.RandomState(1)
    logits = (rng.standard_normal((30, classes)) * 3).astype(np.float32)
    label = rng.randint(0, classes, 30).astype(np.int32)
    target = ((label + rng.randint(1, classes, 30)) % classes).astype(np.int32)
    label[:10] = logits[:10].argmax(axis=1)  # those that are right, which have the margins of the other sign
    target[:10] = (label[:10] + 1) % classes
    z = tf.constant(logits)
    loss = losses_in_graph(name, goal, z, tf.constant(label), tf.constant(target))
    loss, gradient = session.run([loss, tf.gradients(loss, z)[0]])

    def expected(which, change=0.0):
        return loss_of(name, goal, logits[which] + change, label[which], target[which])

    np.testing.assert_allclose(loss, [expected(i) for i in range(30)], rtol=1e-5, atol=1e-5)
    small = 1e-6 * np.eye(classes)
    differences = [[(expected(i, d) - expected(i, -d)) / 2e-6 for d in small] for i in range(30)]
    np.testing.assert_allclose(gradient, differences, atol=1e-4)


@pytest.mark.parametrize('goal', GOALS)
def test_dlr_does_not_see_the_scale_of_logits(session, goal):
    logits = np.random.RandomState(0).standard_normal((9, 7)).astype(np.float32)
    label, target = tf.range(9) % 7, (tf.range(9) + 2) % 7
    of = [losses_in_graph('dlr', goal, tf.constant(scale * logits), label, target) for scale in (1, 1000)]
    np.testing.assert_allclose(*session.run(of), rtol=1e-5)


@pytest.mark.parametrize('name, goal', aims())
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_make_no_gradient(session, name, goal, value):
    """Whichever of an image it is; other images' gradients are fine."""
    logits = np.random.RandomState(0).standard_normal((6, 5)).astype(np.float32)
    logits[np.arange(5), np.arange(5)] = value
    z = tf.constant(logits)
    loss = losses_in_graph(name, goal, z, tf.constant([0] * 6), tf.constant([1] * 6))
    gradient = session.run(tf.gradients(loss, z)[0])
    assert np.isfinite(gradient[5]).all()
    finite_anyway = name == 'ce' and value == -np.inf  # a class without probability
    assert finite_anyway or np.isnan(gradient[:5]).any(axis=1).all()


@pytest.mark.parametrize('name, goal', aims())
@pytest.mark.parametrize('xla', [False, True])
def test_steps_raise_the_loss(session, name, goal, xla):
    """A step goes by the sign of the loss's gradient; of many the loss is larger than of none."""
    classifier, (image, label) = LinearClassifier(), batch(20)
    attacker = pgd_attacker(20, loss=name, goal=goal, xla=xla)
    adversarial, target = attacker.attack(tf.constant(image), tf.constant(label), classifier.logits, tf.range(20))
    aim = adversarial, target
    moved = attacker.iterate(tf.constant(image), tf.constant(image), target, classifier.logits, num_iter=1,
                             **attacker.known(tf.constant(label)))
    x = tf.constant(image)
    loss = losses_in_graph(name, goal, classifier.logits(x), tf.constant(label), target)
    moved, gradient, before, (adversarial, target) = session.run([moved, tf.gradients(loss, x)[0], loss, aim])
    expected = np.clip(image + np.sign(gradient) * 2 / 255, -1, 1)
    clear = np.abs(gradient) > 1e-5  # the DLR of an image whose label is third is 1 all around it
    assert clear.mean() > 0.9 and (np.abs(moved - expected)[clear] < 1e-5).mean() > 0.998
    after = session.run(loss, {x: adversarial})
    assert (after > before)[clear.all(axis=(1, 2, 3))].all()
    assert (target == -1).all() if goal == 'untargeted' else ((target >= 0) & (target != label)).all()


def test_untargeted_steps_need_no_target(session):
    """What is fed as the target of an untargeted attack does not matter."""
    classifier, (image, label) = LinearClassifier(), batch(8)
    attacker = pgd_attacker(5, goal='untargeted', loss='dlr')
    results = session.run([attacker.iterate(tf.constant(image), tf.constant(image), tf.fill([8], of), classifier.logits,
                                            num_iter=5, label=tf.constant(label)) for of in (-1, 3)])
    assert np.array_equal(*results)


# --- the table -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ATTACKERS)
def test_the_table_has_attackers(name):
    from adv_model import Attacker
    assert issubclass(load_code('the attacker', address_of(name)), Attacker)
    assert address_of('one.of:Ones') == 'one.of:Ones'


@pytest.mark.parametrize('arguments, said', [
    (('cw', 'targeted', 10), "no loss 'cw'.*ce, margin, dlr"), (('ce', 'both', 10), "no goal 'both'.*targeted"),
    (('dlr', 'untargeted', 2), 'needs 3 classes, and the network has 2'), (('dlr', 'targeted', 3), 'needs 4 classes'),
    (('margin', 'untargeted', 1), 'needs 2 classes'), (('ce', 'targeted', 10, 10), 'from 1 to 9'),
    (('ce', 'targeted', 10, 0), 'from 1 to 9'), (('ce', 'untargeted', 10, 2), 'an untargeted one none')])
def test_aims_that_are_none(arguments, said):
    with pytest.raises(InputError, match=said):
        check_aim(*arguments)


def test_unknown_attacker():
    with pytest.raises(InputError, match="no attacker 'cw'; choose one of pgd, momentum, apgd, or module:Class"):
        address_of('cw')


@pytest.mark.parametrize('name, goal', aims())
def test_fewest_classes_are_enough(session, name, goal):
    """A loss is a number there, where logits differ."""
    classes = fewest_classes(name, goal)
    check_aim(name, goal, classes)
    logits = tf.constant(np.arange(classes)[None].astype(np.float32))
    assert np.isfinite(session.run(losses_in_graph(name, goal, logits, tf.constant([0]), tf.constant([1]))))


# --- targets and noise of the tower ----------------------------------------------------------------------------------

class Linear:
    """A network that is built in no time."""

    def __init__(self, num_classes=CLASSES):
        self.num_classes = num_classes
        self.classifier = LinearClassifier(num_classes)

    def logits(self, x, mode):
        return self.classifier.logits(x)


def tower_of(num_classes=CLASSES, **options):
    return AttackTower(Linear(num_classes), 4, mode=Mode(), attack_mode=Mode(), **options)


def test_several_targets_are_distinct_wrong_labels(session):
    """The first is the one of an attack with one target; each choice of several is as likely; none depends on the
    batch."""
    towers = {n: tower_of(num_targets=n) for n in (1, 2, CLASSES - 1)}
    label, index = np.full(4000, 2), np.arange(4000)

    def targets(n, of=slice(None), seed=5):
        tower = towers[n]
        return session.run(tower.targets, {tower.label: label[of], tower.index: index[of], tower.seed: seed})

    two, every = targets(2), targets(CLASSES - 1)
    assert targets(1).shape == (4000, 1) and every.dtype == np.int32
    assert (two[:, 0] == targets(1)[:, 0]).all() and (every[:, :2] == two).all()
    assert (np.sort(every, axis=1) == [0, 1, 3, 4, 5]).all()
    counts = np.unique(two, axis=0, return_counts=True)[1]
    assert len(counts) == 20 and 140 < counts.min() and counts.max() < 260  # 200 expected, standard deviation 14
    assert np.array_equal(targets(2, slice(7, 9)), two[7:9])
    assert (targets(2, slice(99), seed=6) != two[:99]).any()


def test_several_targets_of_an_untargeted_attack(session):
    tower = tower_of(goal='untargeted')
    assert (session.run(tower.targets, {tower.label: [1, 2], tower.index: [0, 1]}) == -1).all()
    for options in dict(goal='untargeted', num_targets=2), dict(num_targets=CLASSES), dict(num_classes=3, loss='dlr'):
        with pytest.raises(InputError):
            tower_of(**options)


def test_noise_of_restarts(session):
    """Restart r is made by adding r * 2**31 to the seed: every restart, seed and image has noise of its own, and no
    seed's is another's restart."""
    tower = tower_of()
    noise = [session.run(tower.start, {tower.image: np.full((20, 4, 4, 3), 127), tower.index: range(20),
                                       tower.epsilon: 16, tower.seed: seed + restart * 2 ** 31}).reshape(20, -1)
             for restart in (0, 1, 2, 3, 100, 2 ** 20) for seed in (0, 1, 2, 2 ** 31 - 1)]
    noise = np.concatenate(noise)
    assert len(np.unique(noise, axis=0)) == len(noise) == 480
    assert np.abs(np.corrcoef(noise)[~np.eye(480, dtype=bool)]).max() < 0.75  # of 48 numbers each


# --- attackers of one's own ------------------------------------------------------------------------------------------

def test_attackers_that_take_no_loss_or_goal_are_refused(session):
    from adv_model import Attacker, PGDAttacker

    class Plain(Attacker):
        def __init__(self, num_iter, epsilon, step_size, *, num_classes, seed=0, loss_scale=1.0, xla=False):
            pass

        def attack(self, image, label, logits, index=None):
            return image, label

    class OwnGradient(PGDAttacker):
        def gradient(self, adversarial, target, logits):
            return tf.gradients(logits(adversarial), adversarial)[0]

    assert not tower_of(attacker=Plain).takes_targets
    assert tower_of(attacker=OwnGradient).takes_targets
    with pytest.raises(InputError, match='the attacker Plain takes no loss and no goal'):
        tower_of(attacker=Plain, loss='dlr', goal='untargeted')
    with pytest.raises(InputError, match='OwnGradient can\'t follow the goal untargeted: its gradient takes no label'):
        tower_of(attacker=OwnGradient, goal='untargeted')


@pytest.mark.parametrize('goal', GOALS)
@pytest.mark.parametrize('name', ['momentum', 'examples.translation_invariant:TranslationInvariantAttacker'])
def test_other_directions_follow_loss_and_goal(session, name, goal):
    classifier, (image, label) = LinearClassifier(), batch(12)
    attacker = load_code('the attacker', address_of(name))(10, 32.0, 1.0, num_classes=CLASSES, loss='margin', goal=goal)
    attacked = attacker.attack(tf.constant(image), tf.constant(label), classifier.logits, tf.range(12))
    adversarial, target = session.run(attacked)
    x = tf.constant(image)
    loss = losses_in_graph('margin', goal, classifier.logits(x), tf.constant(label), tf.constant(target))
    assert (session.run(loss, {x: adversarial}) > session.run(loss)).mean() > 0.9
