"""Every attacker, loss and goal by the Python API, on a network of the zoo and on one whose gradients are masked."""
import helpers
import numpy as np
import pytest

from attacks.table import ATTACKERS, GOALS
from inference import load_classifier
from runtime.errors import InputError

SIZE = 32


def photos(count=8):
    return helpers.images(count, SIZE, seed=1)


@pytest.fixture(scope='module')
def clf(classifier):
    return classifier()


def error(clf, images, labels):
    return np.mean(clf.logits(images).argmax(axis=1) != labels)


@pytest.mark.parametrize('goal', GOALS)
@pytest.mark.parametrize('attacker', ATTACKERS)
def test_each_attacker(clf, attacker, goal):
    """Within the budget; what was asked for becomes more likely; the seed decides on all that is random."""
    pixels = photos()
    labels = clf.logits(pixels).argmax(axis=1)
    adversarial, targets = clf.attack(pixels, labels, attacker=attacker, goal=goal, steps=5, epsilon=4.)
    assert adversarial.dtype == np.float32 and targets.dtype == np.int32
    assert 3.9 < np.abs(adversarial - pixels.astype(np.float32)).max() <= 4 + 2e-5
    again = clf.attack(pixels, labels, attacker=attacker, goal=goal, steps=5, epsilon=4.)
    assert np.array_equal(again[0], adversarial) and np.array_equal(again[1], targets)
    before, after = clf.logits(pixels), clf.logits(adversarial)
    if goal == 'untargeted':
        assert (targets == -1).all()
        assert (helpers.cross_entropy(after, labels) > helpers.cross_entropy(before, labels)).mean() > 0.8
    else:
        assert (targets != labels).all() and np.array_equal(targets, clf.pgd(pixels, labels, steps=0)[1])
        assert (helpers.cross_entropy(after, targets) < helpers.cross_entropy(before, targets)).mean() > 0.8
        given = (targets + 1) % 10
        other, returned = clf.attack(pixels, labels, given, attacker=attacker, steps=5, epsilon=4.)
        assert np.array_equal(returned, given) and (other != adversarial).any()


def test_pgd_is_the_default_attack(clf):
    pixels, labels = photos(), np.arange(8)
    for one, other in zip(clf.attack(pixels, labels, steps=3, seed=4), clf.pgd(pixels, labels, steps=3, seed=4)):
        assert np.array_equal(one, other)


@pytest.mark.parametrize('attacker', ['pgd', 'apgd'])
def test_indices_are_what_is_random(clf, attacker):
    """A part of a set is attacked as it would be among the others."""
    pixels, labels = photos(), np.arange(8)
    whole, of_part = [clf.attack(pixels[part], labels[part], attacker=attacker, steps=1, indices=np.arange(8)[part])
                      for part in (slice(None), [5, 2])]
    assert np.array_equal(whole[1][[5, 2]], of_part[1])
    assert (np.abs(whole[0][[5, 2]] - of_part[0]) < 0.01).mean() > 0.98


def test_apgd_starts_from_noise_or_not(clf):
    pixels = photos()
    labels = clf.logits(pixels).argmax(axis=1)
    how = dict(attacker='apgd', goal='untargeted', steps=2, epsilon=0.2)
    clean, again, noisy, other = [clf.attack(pixels, labels, start_from_noise=noise, seed=seed, **how)[0]
                                  for noise, seed in ((False, 0), (False, 1), (True, 0), (True, 1))]
    assert np.array_equal(clean, again) and (clean != noisy).any() and (noisy != other).any()


def test_zero_steps_leave_the_images(clf):
    for goal in GOALS:
        adversarial, targets = clf.attack(photos(), np.arange(8), attacker='apgd', goal=goal, steps=0)
        assert np.array_equal(adversarial, photos()) and (targets == -1).all() == (goal == 'untargeted')


def test_masked_gradients(clf, weights_of, tmp_path):
    """Of a network whose logits are a thousand times larger the cross-entropy has no gradient in float32, the others
    have that of the network itself; so are robust networks told from those that only look like it."""
    weights = weights_of()
    scaled = {name: value * 1000 if name.startswith('linear/') else value for name, value in weights.items()}
    np.savez(tmp_path / 'masked.npz', **scaled)
    masked = load_classifier(str(tmp_path / 'masked.npz'), arch='ResNet', depth=14, image_size=SIZE, batch=16)
    pixels = photos(16)
    labels = clf.logits(pixels).argmax(axis=1)
    errors = {(loss, name): error(network, network.attack(pixels, labels, attacker='apgd', loss=loss, goal='untargeted',
                                                          steps=10, epsilon=8., start_from_noise=False)[0], labels)
              for loss in ('ce', 'dlr') for name, network in (('itself', clf), ('masked', masked))}
    masked.close()
    assert errors['ce', 'itself'] > 0.7 and errors['dlr', 'itself'] > 0.7
    assert errors['ce', 'masked'] < 0.3 and abs(errors['dlr', 'masked'] - errors['dlr', 'itself']) < 0.15


@pytest.mark.parametrize('wrong, text', [
    (dict(attacker='cw'), "no attacker 'cw'"), (dict(loss='cw'), "no loss 'cw'"), (dict(goal='both'), "no goal 'both'"),
    (dict(attacker='adv_model:NoSuch'), 'NoSuch'), (dict(goal='untargeted', targets=[1, 2]), 'has no targets'),
    (dict(indices=[1]), '2 whole numbers'), (dict(indices=[-1, 0]), '2 whole numbers')])
def test_wrong_attacks(clf, wrong, text):
    with pytest.raises(ValueError, match=text):
        clf.attack(photos(2), [0, 1], **wrong)


def test_few_classes(weights_file, weights_of, tmp_path):
    few = load_classifier(weights_file(classes=3), arch='ResNet', depth=14, image_size=SIZE)
    with pytest.raises(InputError, match='the loss dlr of a targeted attack needs 4 classes, and the network has 3'):
        few.attack(photos(2), [0, 1], loss='dlr')
    assert few.attack(photos(2), [0, 1], loss='dlr', goal='untargeted', steps=1)[0].shape == (2, SIZE, SIZE, 3)
    few.close()
    with pytest.raises(ValueError, match='closed'):
        few.attack(photos(2), [0, 1], loss='margin')
