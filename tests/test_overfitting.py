"""The guard against catastrophic overfitting: what it finds, and what checkpoints tell of it."""
from types import SimpleNamespace

from runtime.compat import tf  # before tensorpack

import pytest
from tensorpack import logger

from training import overfitting
from training.overfitting import FOUND, NOT_MEASURED, STEP_FACTOR, Guard, Remembered, attack_step_factor, remembered


def found_in(session, errors, distance=0.0):
    """Return what a guard finds in epochs of 100 steps and these errors, and the guard."""
    found = []

    class Measured(Guard):
        def _setup_graph(self):
            self.memory = [tf.Variable(value) for value in (1.0, distance, 0)]

        def measure(self):
            return errors[len(found)]

    def put_scalar(name, value):
        if name == FOUND:
            found.append(value)
    guard = Measured(None, 32, 4, SimpleNamespace(is_chief=True, size=1), one_step=None, several=None, step_factor=None)
    guard.trainer = SimpleNamespace(monitors=SimpleNamespace(put_scalar=put_scalar), epoch_num=0, global_step=0,
                                    sess=session)
    guard._setup_graph()
    session.run(tf.global_variables_initializer())
    guard._before_train()
    for _ in errors:
        guard.trainer.epoch_num += 1
        guard.trainer.global_step += 100
        guard._trigger_epoch()
    return found, guard


def test_overfitting_over_several_epochs_is_found(session):
    """Errors of a real training, with plain FGSM of budget 32 on two classes of photos: apart by degrees."""
    errors = [(0.484, 0.672), (0.293, 0.754), (0.211, 0.875), (0.176, 0.871), (0.125, 0.957)]
    found, guard = found_in(session, errors, distance=0.05)
    assert found == [0, 1, 1, 1, 1]
    assert session.run(guard.memory) == [1, pytest.approx(0.05), 100]


def test_the_smallest_distance_counts_and_is_told_to_checkpoints(session):
    found, guard = found_in(session, [(0.3, 0.42), (0.3, 0.35), (0.2, 0.54)], distance=0.2)
    assert found == [0, 0, 0] and session.run(guard.memory) == [1, pytest.approx(0.05), 300]


def test_a_warning_is_said_again_when_the_network_had_recovered(session, monkeypatch):
    said = []
    monkeypatch.setattr(overfitting, 'warn', said.append)
    overfitted, good = (0.1, 0.9), (0.4, 0.5)
    found, guard = found_in(session, [good, overfitted, overfitted, good, overfitted])
    assert found == [0, 1, 1, 0, 1] and guard.good_step == 400
    assert len(said) == 2 and 'in epoch 2:' in said[0] and 'After step 100 it had not overfitted' in said[0]
    assert 'in epoch 5:' in said[1] and 'After step 400 it had not' in said[1]


@pytest.mark.parametrize('errors, distance', [
    ((0.1, 0.3), 0.2),
    ((0.1, 0.9), 0.05),  # it has overfitted already
    (None, NOT_MEASURED)])  # a signal came: the distance of before is another attack's
def test_with_another_attack_it_measures_anew(session, errors, distance):
    _, guard = found_in(session, [], distance=0.05)
    guard.batches, guard.anew, guard.measure = [()], True, lambda: errors
    guard._before_epoch()
    assert session.run(guard.memory[1]) == pytest.approx(distance)


@pytest.mark.parametrize('factor, attack, expected, words', [
    (1.0, 'attack', Remembered(1.0, True), []), (0.5, 'attack', Remembered(0.5, True), ['steps are 0.5 times']),
    (1.0, 'another', Remembered(1.0, False), []),
    (0.5, 'another', Remembered(1.0, False), ['steps were 0.5 times', 'another one now'])])
def test_a_halved_step_is_that_of_one_attack(session, tmp_path, monkeypatch, factor, attack, expected, words):
    said = []
    monkeypatch.setattr(logger, 'info', said.append)
    variable = attack_step_factor('attack')
    session.run(tf.global_variables_initializer())
    variable.load(factor, session)
    path = tf.train.Saver(tf.global_variables()).save(session, str(tmp_path / 'model'), write_meta_graph=False)
    assert remembered(path, attack) == expected
    assert len(said) == bool(words) and all(word in said[0] for word in words)


def test_a_checkpoint_that_does_not_say_which_attack_is_of_the_same(session, tmp_path):
    """As those of before it was recorded, and of trainings without a guard."""
    for name, expected in ('linear/W', Remembered()), (STEP_FACTOR, Remembered(0.25)):
        variable = tf.get_variable(name, initializer=0.25)
        session.run(tf.global_variables_initializer())
        path = tf.train.Saver([variable]).save(session, str(tmp_path / 'model'), write_meta_graph=False)
        assert remembered(path, 'attack') == expected
