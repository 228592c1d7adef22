"""The guard against catastrophic overfitting, which ends trainings with one-step attacks: within an epoch or a few a
network becomes robust to one step and to nothing else (Wong, Rice and Kolter 2020).

After each epoch the network is attacked by one step and by several, on a few batches that it doesn't train on.
"""
import itertools
import math
import os
import time
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback, logger

from adv_model import Attacker, PGDAttacker, attacked_images, is_wrong, scale_pixels
from checkpoint import AVERAGES, checkpoint_files
from kernels.mode import native_mode
from nets import Network
from runtime.distributed import World
from runtime.errors import RunError
from training.callbacks import Saver
from training.log_directory import OWN_OF_A_TRAINING, damage, saved_checkpoints, step_of
from training.records import read_statistics

STEP_FACTOR = 'training/attack_step_factor'  # in checkpoints: times which the attack's steps are
STEPS = 10
LEAP = 0.3  # by how much the errors' distance may be above its smallest: where epochs are short, it grows over several
IMAGES = 256  # that are attacked, on all ranks together; the errors' standard deviation is 3 points or less
MOST_RESTORES = 3  # one after another: an eighth of the step overfits as well, and less is hardly an attack
ONE_STEP, SEVERAL, FOUND, RESTORES, RESTORED_DISTANCE = ['overfitting/' + name for name in (
    'error-1step', 'error-%dstep' % STEPS, 'found', 'restores', 'distance-restored')]


class Earlier(NamedTuple):
    """What was measured before."""
    # of the error under several steps from that under one, with which the next epoch's is compared; None: not known
    distance: Optional[float] = None
    good_step: int = 0                # after which the network had not overfitted
    restores: int = 0                 # one after another, before any other epoch without overfitting


class Guard(Callback):
    """Measures after every epoch, before its checkpoint, and does something when the network overfits.

    Args:
        network: its variables are those of the graph. image_size, batch: of the training.
        one_step: makes the attack of one step, several: the one that it is compared with.
        action: None: says so. 'stop': ends the training by a RunError. 'restore': goes back to the last good
            checkpoint, with all that it holds but the place in the schedule, and halves the attack's steps; the fourth
            time in a row it ends the training.
        directory: of the checkpoints, the chief's. step_factor: the variable, with 'restore'. saver, monitors: the
            chief's.
        earlier: as of earlier_measurement.
        stopped: tells whether to leave off, on all ranks at once; what is not measured is no verdict.
    """

    _chief_only = False

    def __init__(self, network: Network, image_size: int, batch: int, world: World, *,
                 one_step: Callable[[], Attacker], several: Callable[[], Attacker], action: Optional[str] = None,
                 directory: Optional[str] = None, step_factor: Optional[tf.Variable] = None,
                 saver: Optional[Saver] = None, monitors: Sequence[Any] = (), earlier: Optional[Earlier] = None,
                 stopped: Callable[[], bool] = lambda: False):
        self.network, self.image_size, self.world = network, image_size, world
        self.one_step, self.several, self.action = one_step, several, action
        self.directory, self.step_factor, self.saver, self.monitors = directory, step_factor, saver, monitors
        self.distance, self.good_step, self.restores = earlier or Earlier()
        self.stopped = stopped
        self.batches: List[List[np.ndarray]] = []
        self.num_batches = math.ceil(IMAGES / (batch * world.size))

    def _setup_graph(self) -> None:
        mode = native_mode()
        with tf.name_scope('overfitting'):
            self.image = tf.placeholder(tf.uint8, [None, self.image_size, self.image_size, 3], 'image')
            self.label = tf.placeholder(tf.int32, [None], 'label')
            image = scale_pixels(self.image)
            self.wrong = []
            for attacker in self.one_step(), self.several():
                attacked, _ = attacked_images(self.network, attacker, image, self.label, mode)
                wrong = is_wrong(self.network.logits(attacked, mode), self.label, 1)
                self.wrong.append(tf.reduce_sum(tf.cast(wrong, tf.float32)))

    def _before_train(self) -> None:
        self.spare()

    def spare(self) -> None:
        """Have the last good checkpoint kept, however many an epoch has."""
        if self.saver is not None and self.action:
            self.saver.spared = self.good_step

    def _before_epoch(self) -> None:
        if not self.batches:  # a training that only makes up for an evaluation needs no data
            self.batches = [self.trainer.draw() for _ in range(self.num_batches)]
        if self.distance is None:  # of the weights that it begins with
            self.distance = self.measured_distance()

    def measure(self) -> Optional[Tuple[float, float]]:
        """Return the error on all ranks' images under one step and under several; None when the training ends."""
        counts = np.zeros(3)
        for images, labels in self.batches:
            if self.stopped():
                return None
            wrong = self.trainer.sess.run(self.wrong, {self.image: images, self.label: labels})
            counts += [*wrong, len(labels)]
        one, several, total = self.world.sum(counts)
        return one / total, several / total

    def measured_distance(self) -> Optional[float]:
        """Return how far apart the two errors are now; None when the training ends."""
        errors = self.measure()
        return None if errors is None else errors[1] - errors[0]

    def _trigger_epoch(self) -> None:
        errors = self.measure()
        if errors is None or self.distance is None:  # a signal came
            return
        one, several = errors
        put = self.trainer.monitors.put_scalar
        put(ONE_STEP, one)
        put(SEVERAL, several)
        found = several - one > self.distance + LEAP
        put(FOUND, float(found))
        if not found:
            self.distance = min(self.distance, several - one)
            self.good_step, self.restores = self.global_step, 0
            self.spare()
            return
        said = ('catastrophic overfitting in epoch %d: the error on training images is %.3f under one step and %.3f '
                'under %d steps; they were %.3f apart before'
                % (self.epoch_num, one, several, STEPS, self.distance))
        if self.action is None:
            self.distance = several - one
            if self.world.is_chief:
                logger.warning('%s. A smaller --attack-step-size, more --noise or --replays, or --method pgd avoid it; '
                               '--on-overfitting stop or restore acts on it' % said)
            return
        good = self.world.from_chief(self.world.patiently(
            lambda: self.last_good() if self.world.is_chief else None))
        if self.action == 'stop' or good is None or self.restores == MOST_RESTORES:
            self.end(said, good)
        self.restore(said, good)

    def last_good(self) -> Optional[str]:
        """Return the newest complete checkpoint of before the epoch, as the chief; None where there is none."""
        return next((path for path in saved_checkpoints(self.directory or '')
                     if step_of(path) <= self.good_step and damage(path) is None), None)

    def end(self, said: str, good: Optional[str]) -> None:
        for monitor in self.monitors:
            monitor.trigger_epoch()  # what was measured is in stats.json all the same
        if self.world.is_chief:
            set_aside_after(step_of(good) if good else self.good_step, self.directory or '')
        else:
            time.sleep(3)  # all ranks see it: one of them should say so
        if good is None:
            raise RunError('%s; there is no checkpoint from before that to go back to. Lower --attack-step-size, or '
                           'take more steps, with --method pgd' % said)
        raise RunError('%s; the last checkpoint before that is %s. Go on from it with a lower --attack-step-size, or '
                       'with more steps, by --method pgd, and with --resume %s'
                       % (said, good, os.path.dirname(good)))

    def restore(self, said: str, good: str) -> None:
        """Go back to a checkpoint on all ranks, halve the attack's steps, and measure anew: one step is weaker now."""
        session = self.trainer.sess
        if self.world.is_chief:
            assert self.step_factor is not None
            factor = session.run(self.step_factor) / 2
            load_variables(session, good, but=(STEP_FACTOR, 'global_step', 'learning_rate', *OWN_OF_A_TRAINING))
            self.step_factor.load(factor, session)
            logger.warning('%s. Going back to the weights of %s; the attack\'s steps are %g times as long as at the '
                           'beginning from now on' % (said, good, factor))
        self.trainer.broadcast(None)
        self.restores, self.good_step = self.restores + 1, self.global_step
        self.spare()
        self.trainer.monitors.put_scalar(RESTORES, self.restores)
        self.distance = self.measured_distance()
        if self.distance is not None:
            self.trainer.monitors.put_scalar(RESTORED_DISTANCE, self.distance)
        if self.saver is not None:  # a checkpoint of the overfitted weights, within the epoch's last step
            self.saver.saved_step = None


def set_aside_after(step: int, directory: str) -> None:
    """Rename the checkpoints that are newer, to overfitted-STEP: --resume doesn't go on from them."""
    for path in saved_checkpoints(directory):
        if step_of(path) > step:
            for file in reversed(checkpoint_files(path)):  # the index first, which makes them a checkpoint
                os.rename(file, os.path.join(directory, os.path.basename(file).replace('model-', 'overfitted-', 1)))


def load_variables(session: tf.Session, path: str, but: Tuple[str, ...]) -> None:
    """Give all variables of the graph that a TF checkpoint holds, but for some names, their values there; averages that
    it has none of begin with its weights."""
    reader = tf.train.load_checkpoint(path)
    for variable in tf.global_variables():
        name = variable.op.name
        if name.startswith(AVERAGES) and not reader.has_tensor(name):
            name = name[len(AVERAGES):]
        if name not in but and reader.has_tensor(name):
            variable.load(reader.get_tensor(name), session)


def earlier_measurement(directory: str, action: Optional[str], begins_at: int) -> Earlier:
    """Return what the last record of stats.json says; with an action, the last one before the network overfitted, or
    where it was restored. A training where nothing was measured has its good step at `begins_at`.

    The distance is not known where the training begins with those weights: it is measured anew, since the attack's step
    may have another size now.
    """
    measured = [r for r in read_statistics(directory) if ONE_STEP in r and SEVERAL in r]
    good = measured
    if action is not None:  # epochs after one that overfitted may have had no leap, and are no better
        good = list(itertools.takewhile(lambda r: not r.get(FOUND) or RESTORES in r, measured))
    if not good:
        return Earlier(0.0) if measured else Earlier(None, begins_at)
    last = good[-1]
    distance = last.get(RESTORED_DISTANCE) if RESTORES in last else last[SEVERAL] - last[ONE_STEP]
    return Earlier(None if last['global_step'] == begins_at else distance, int(last['global_step']),
                   int(last.get(RESTORES, 0)))


def has_step_factor(path: str) -> bool:
    """Tell whether the attack's steps were halved in the training of a TF checkpoint, or might have been."""
    return any(name == STEP_FACTOR for name, _ in tf.train.list_variables(path))


def attack_step_factor() -> tf.Variable:
    """Return the variable, times which the attack's steps are, as it goes into checkpoints: 1, until it is halved."""
    with tf.device('/cpu:0'):
        return tf.get_variable(STEP_FACTOR, initializer=1.0, trainable=False)


def several_steps(epsilon: float, goal: str, **network: Any) -> Attacker:
    """Return the attack that one step is compared with: PGD of the same budget and goal."""
    return PGDAttacker(STEPS, epsilon, 1.0, goal=goal, **network)
