"""The guard against catastrophic overfitting: what it finds, what it does then, and what checkpoints tell of it."""
import re
import shutil
from types import SimpleNamespace

from runtime.compat import tf  # before tensorpack

import methods_worker as worker
import numpy as np
import pytest
from jobs import statistics, tiny_trainings
from methods_worker import NAMES
from test_attack import PIXEL

from training.overfitting import (
    FOUND,
    NOT_MEASURED,
    STEP_FACTOR,
    Errors,
    Guard,
    Memory,
    Remembered,
    attack_step_factor,
    remembered,
)


def found_in(memory, errors):
    """Return what is found in epochs of 100 steps with these errors."""
    return [memory.is_overfitted(Errors(*of_epoch), 100 * (k + 1)) for k, of_epoch in enumerate(errors)]


def test_overfitting_over_several_epochs_is_found():
    """Errors of a real training, with plain FGSM of budget 32 on two classes of photos: apart by degrees."""
    memory = Memory(distance=0.05)
    errors = [(0.484, 0.672), (0.293, 0.754), (0.211, 0.875), (0.176, 0.871), (0.125, 0.957)]
    assert found_in(memory, errors) == [False, True, True, True, True]
    assert (memory.distance, memory.good_step) == (0.05, 100)


def test_the_smallest_distance_counts():
    memory = Memory(distance=0.2)
    assert found_in(memory, [(0.3, 0.42), (0.3, 0.35), (0.2, 0.54)]) == [False] * 3
    assert (memory.distance, memory.good_step) == (pytest.approx(0.05), 300)


@pytest.mark.parametrize('before, errors, distance', [
    (0.05, Errors(0.1, 0.3), 0.2), (0.05, Errors(0.1, 0.9), 0.05),  # it has overfitted already
    (NOT_MEASURED, Errors(0.1, 0.3), 0.2), (NOT_MEASURED, Errors(0.1, 0.9), 0.8)])
def test_of_another_attack_the_distance_is_measured_anew(before, errors, distance):
    memory = Memory(distance=before)
    memory.begin_with(errors)
    assert memory.distance == pytest.approx(distance)


class Measured(Guard):
    """A guard that is told what it measures: `errors` of each time, None where a signal comes."""

    def __init__(self, session, errors, distance, **options):
        said = self.said = []
        super().__init__(None, 32, 4, SimpleNamespace(is_chief=True, size=1), one_step=None, several_steps=None,
                         step_factor=None, advice=['this', 'that'], warn=said.append, **options)
        self.errors, self.batches, self.found = iter(errors), [()], []
        self.variables = [tf.Variable(value) for value in (1.0, distance, 0)]
        session.run(tf.global_variables_initializer())
        monitors = SimpleNamespace(put_scalar=lambda name, value: name == FOUND and self.found.append(value))
        self.trainer = SimpleNamespace(monitors=monitors, epoch_num=0, global_step=0, sess=session)
        self._before_train()

    def measure(self):
        return next(self.errors)

    def epoch(self):
        self._before_epoch()
        self.trainer.epoch_num += 1
        self.trainer.global_step += 100
        self._trigger_epoch()


def test_a_warning_is_said_again_when_the_network_had_recovered(session):
    overfitted, good = Errors(0.1, 0.9), Errors(0.4, 0.5)
    guard = Measured(session, [good, overfitted, overfitted, good, overfitted], 0.0)
    for _ in range(5):
        guard.epoch()
    assert guard.found == [0, 1, 1, 0, 1] and session.run(guard.variables) == [1, 0, 400]
    first, second = guard.said
    assert 'in epoch 2:' in first and 'After step 100 it had not overfitted. What may avoid it: this, or that;' in first
    assert 'in epoch 5:' in second and 'After step 400 it had not' in second


def test_a_signal_while_the_guard_measures_is_no_verdict(session):
    guard = Measured(session, [Errors(0.1, 0.9), None], 0.0)
    guard.epoch()
    before = session.run(guard.variables)
    guard.epoch()
    assert guard.found == [1] and session.run(guard.variables) == before


@pytest.mark.parametrize('factor, attack, now, words', [
    (1.0, 'attack', 1.0, ''), (0.5, 'attack', 0.5, 'steps are 0.5 times'), (1.0, 'another', 1.0, ''),
    (0.5, 'another', 1.0, 'steps were 0.5 times')])
def test_a_halved_step_is_that_of_one_attack(session, tmp_path, factor, attack, now, words):
    variable = attack_step_factor('attack')
    session.run(tf.global_variables_initializer())
    variable.load(factor, session)
    path = tf.train.Saver(tf.global_variables()).save(session, str(tmp_path / 'model'), write_meta_graph=False)
    known = remembered(path, attack)
    assert known == Remembered(factor, attack == 'attack') and known.factor == now
    assert words in known.text and bool(words) == bool(known.text)


def test_a_checkpoint_that_does_not_say_which_attack_is_of_the_same(session, tmp_path):
    """As those of before it was recorded, and of trainings without a guard."""
    for name, expected in ('linear/W', Remembered()), (STEP_FACTOR, Remembered(0.25)):
        variable = tf.get_variable(name, initializer=0.25)
        session.run(tf.global_variables_initializer())
        path = tf.train.Saver([variable]).save(session, str(tmp_path / 'model'), write_meta_graph=False)
        assert remembered(path, 'attack') == expected


# --- trainings -------------------------------------------------------------------------------------------------------

GUARDED = ['--method', 'fast', '--attack-epsilon', '8', '--ema', '0.9', '--on-overfitting']
# after 2 steps the weights are 1.2e-3 from the first ones, after 4 steps 1.8e-3 to 2.0e-3, after 8 3.2e-3; on two ranks
# they are 5e-4, 1.1e-3 and 2.4e-3
RESTORING = dict(name='restore', flags=GUARDED + ['restore'], epochs=7, save_every=1, rate=1e-4, overfits_at=1.5e-3)
# its weights are nearer the first ones: 3.8e-4 after 2 steps, 7.2e-4 after 4
FREE_RESTORING = dict(RESTORING, name='restore-free', overfits_at=5e-4, flags=[
    '--method', 'free', '--replays', '1', '--attack-epsilon', '8', '--accumulate', '2', '--on-overfitting', 'restore'])
# and from where that ended: with the same attack, and with another one
AGAIN = dict(RESTORING, name='again', restore='again/model-8')
OTHER_STEP = dict(RESTORING, name='other-step', restore='other-step/model-8', epochs=5,
                  flags=RESTORING['flags'] + ['--attack-step-size', '5'])
WARNING = dict(name='warn', flags=GUARDED[:-1], epochs=3, rate=1e-4, overfits_at=1.5e-3)
# a signal comes before that knows what the distance is of the other attack
SIGNALLED = dict(OTHER_STEP, signalled=True)
# from where that had overfitted already
WARNED = dict(WARNING, name='warned', restore='warn/model-4')
WARNED_OTHERWISE = dict(WARNED, name='warned-otherwise', flags=WARNING['flags'] + ['--attack-step-size', '5'])
# in the first epoch; and from the beginning on, which is no leap
FIRST = dict(name='first', flags=GUARDED + ['stop'], epochs=2, rate=1e-4, overfits_at=1e-4, save_every=1)
ALWAYS = dict(name='always', flags=GUARDED + ['stop'], epochs=1, rate=1e-4, overfits_at=-1.0)
STOPPING = dict(name='stop', flags=GUARDED + ['stop'], epochs=3, steps=4, rate=1e-4, overfits_at=2.5e-3, save_every=1,
                kept=2)


def guarded_trainings(folder, *scenarios, ranks=1):
    """Run them; returns what was said. Warnings are on stderr as well."""
    done = tiny_trainings(folder, *scenarios, ranks=ranks)
    warned = re.findall(r'^catastrophic overfitting.*(?:acts on it|from now on)$', done.stderr, re.MULTILINE)
    assert len(warned) == len(re.findall('WRN.* catastrophic overfitting', done.stdout))
    return done.stdout


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the folder of all trainings' results, and what was said."""
    folder = tmp_path_factory.mktemp('overfitting')
    said = guarded_trainings(folder, RESTORING)
    for again in AGAIN, OTHER_STEP:
        shutil.copytree(str(folder / 'restore'), str(folder / again['name']))
    said += guarded_trainings(folder, SIGNALLED)
    (folder / 'files').write_text(' '.join(sorted(path.name for path in (folder / 'other-step').glob('model-*.index'))))
    said += guarded_trainings(folder, WARNING, WARNED, WARNED_OTHERWISE, STOPPING, FIRST, ALWAYS, AGAIN, OTHER_STEP,
                              FREE_RESTORING)
    return folder, said


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
    # those within the overfitted epochs have another name; the last one's, too, which ended the training
    names = sorted(path.stem for path in (folder / 'restore').glob('*.index'))
    assert names == ['model-%d' % k for k in (1, 2, 4, 6, 8)] + ['overfitted-%d' % k for k in (3, 5, 7, 9)]
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
                     'checkpoint before that is .*model-8. Go on from it with '
                     '--resume .*/restore, and with several steps, by --method pgd$', said, re.MULTILINE)
    check_restored(folder, ranks=1)


def test_a_halved_step_is_of_one_attack(trained):
    """A training that goes on with the same one goes on with an eighth of its step; with another one it begins anew."""
    folder, said = trained
    ends = re.findall(r"RunError: catastrophic overfitting in epoch 5: .*with 0.125 of the attack's step; .*--resume "
                      r'\S+/(\S+), and', said)
    assert ends == ['restore', 'again', 'restore-free']
    reader = tf.train.load_checkpoint(str(folder / 'other-step' / 'model-10'))
    assert reader.get_tensor('training/attack_step_factor') == 0.5


def test_a_signal_before_another_attack_is_measured_leaves_checkpoints_as_they_are(trained):
    """So that the next process measures it."""
    folder, _ = trained
    assert (folder / 'files').read_text().split() == ['model-%d.index' % k for k in (1, 2, 4, 6, 8)]


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
    assert re.search('RunError: catastrophic overfitting in epoch 2: .*; the last .* before that is .*model-4\\. Go on '
                     'from it with --resume .*/stop, and with a smaller --attack-step-size, or --noise 2, or several '
                     'steps, by --method pgd', said)
    check_stopped(folder)


def test_the_guard_compares_the_first_epoch_with_the_beginning(trained):
    folder, said = trained
    assert re.search('RunError: catastrophic overfitting in epoch 1: .* 0.000 apart before; there is no check', said)
    assert sorted(path.stem for path in (folder / 'first').glob('*.index')) == ['overfitted-1']
    assert [record['overfitting/found'] for record in statistics(folder / 'always')] == [0]
    assert (folder / 'always' / 'model-2.index').exists()


def check_warned(folder, name):
    """The distance is that of before the network overfitted, and the last good checkpoint, though it was resumed since.
    """
    assert [record['overfitting/found'] for record in statistics(folder / name)] == [1]
    reader = tf.train.load_checkpoint(str(folder / name / 'model-6'))
    assert [reader.get_tensor('training/overfitting/' + what) for what in ('distance', 'good_step')] == [0, 2]


@pytest.mark.slow
def test_the_guard_on_two_ranks(tmp_path):
    """Both end at once, and go back at once; one says so."""
    said = guarded_trainings(tmp_path, dict(WARNING, overfits_at=8e-4), dict(WARNED, overfits_at=8e-4),
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


def test_a_resumed_training_knows_that_it_has_overfitted(trained):
    """Also where it goes on with a smaller step, as the warning says."""
    folder, said = trained
    check_warned(folder, 'warned')
    check_warned(folder, 'warned-otherwise')
    assert said.count('After step 2 it had not overfitted') == 3
