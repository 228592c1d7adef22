"""The guard against catastrophic overfitting, which ends trainings with one-step attacks: within an epoch or a few a
network becomes robust to one step and to nothing else (Wong, Rice and Kolter 2020).

After each epoch the network is attacked by one step and by several, on a few batches that it doesn't train on. What the
guard knows is in the checkpoints: a training that goes on from one, for whatever reason, knows what was known there.
"""
import math
import os
import time
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback, logger

from adv_model import Attacker, attacked_images, is_wrong, scale_pixels
from checkpoint import AVERAGES, as_numbers, checkpoint_files
from kernels.mode import native_mode
from nets import Network
from runtime.distributed import World
from runtime.errors import RunError
from training.callbacks import Saver
from training.log_directory import ATTACK, OWN_OF_A_TRAINING, damage, saved_checkpoints, step_of, warn
from training.methods import GUARD_STEPS

# In checkpoints: times which the attack's steps are; the smallest distance; the step of the last good checkpoint
STEP_FACTOR = 'training/attack_step_factor'
DISTANCE, GOOD_STEP = 'training/overfitting/distance', 'training/overfitting/good_step'
LEAP = 0.3  # by how much the errors' distance may be above its smallest: where epochs are short, it grows over several
IMAGES = 256  # that are attacked, on all ranks together; the errors' standard deviation is 3 points or less
LEAST_FACTOR = 1 / 8  # where an eighth of the step overfits as well, less is hardly an attack
NOT_MEASURED = 2.0  # more than any distance
ONE_STEP, SEVERAL, FOUND = ['overfitting/' + name for name in ('error-1step', 'error-%dstep' % GUARD_STEPS, 'found')]


def attack_step_factor(attack: str) -> tf.Variable:
    """Return the variable, times which the attack's steps are: 1, until they are halved. Checkpoints hold it, and which
    attack it is of, in words."""
    with tf.device('/cpu:0'):
        tf.get_variable(ATTACK, initializer=as_numbers(attack), trainable=False)
        return tf.get_variable(STEP_FACTOR, initializer=np.float32(1), trainable=False)


class Remembered(NamedTuple):
    """What a checkpoint says of the attack that a training goes on with."""
    factor: float = 1.0  # times which its steps are
    same_attack: bool = True


def remembered(path: str, attack: str) -> Remembered:
    """Read a TF checkpoint, and log how long the attack's steps are where the guard has halved them."""
    reader = tf.train.load_checkpoint(path)
    factor = float(reader.get_tensor(STEP_FACTOR)) if reader.has_tensor(STEP_FACTOR) else 1.0
    same = not reader.has_tensor(ATTACK) or np.array_equal(reader.get_tensor(ATTACK), as_numbers(attack))
    if factor != 1.0 and same:
        logger.info('the attack\'s steps are %g times as long as at the beginning, since the network overfitted'
                    % factor)
    elif factor != 1.0:
        logger.info('the attack\'s steps were %g times as long as at the beginning, since the network overfitted; the '
                    'attack is another one now, and has the steps that the flags say' % factor)
    return Remembered(factor if same else 1.0, same)


class Guard(Callback):
    """Measures after every epoch, before its checkpoint, and does something when the network overfits.

    Args:
        network: its variables are those of the graph. image_size, batch: of the training.
        one_step: makes the attack of one step, several: the one that it is compared with.
        action: None: says so. 'stop': ends the training by a RunError. 'restore': goes back to the last good
            checkpoint, with all that it holds but the place in the schedule, and halves the attack's steps; where
            they are an eighth, it ends the training.
        step_factor: the variable. same_attack: whether what a checkpoint says is of this attack. directory: of the
            checkpoints, the chief's. saver, monitors: the chief's.
        stopped: tells whether to leave off, on all ranks at once; what is not measured is no verdict.
    """

    _chief_only = False

    def __init__(self, network: Network, image_size: int, batch: int, world: World, *,
                 one_step: Callable[[], Attacker], several: Callable[[], Attacker], step_factor: tf.Variable,
                 same_attack: bool = True, action: Optional[str] = None, directory: Optional[str] = None,
                 saver: Optional[Saver] = None, monitors: Sequence[Any] = (),
                 stopped: Callable[[], bool] = lambda: False):
        self.network, self.image_size, self.world = network, image_size, world
        self.one_step, self.several, self.action = one_step, several, action
        self.step_factor, self.anew = step_factor, not same_attack
        self.directory, self.saver, self.monitors, self.stopped = directory, saver, monitors, stopped
        self.batches: List[List[np.ndarray]] = []
        self.warned = False
        self.num_batches = math.ceil(IMAGES / (batch * world.size))

    def _setup_graph(self) -> None:
        with tf.device('/cpu:0'):
            values = [(DISTANCE, np.float32(NOT_MEASURED)), (GOOD_STEP, np.int64(0))]
            self.memory = [self.step_factor] + [tf.get_variable(name, initializer=value, trainable=False)
                                                for name, value in values]
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
        self.factor, self.distance, self.good_step = self.trainer.sess.run(self.memory)
        if self.distance == NOT_MEASURED:  # no guard was there before
            self.good_step = self.global_step
        self.spare()

    def remember(self) -> None:
        """Copy what this object knows to its variables, which the next checkpoints save."""
        for variable, value in zip(self.memory, (self.factor, self.distance, self.good_step)):
            variable.load(value, self.trainer.sess)
        self.spare()

    def spare(self) -> None:
        """Ask the saver to keep the last good checkpoint, however many an epoch makes."""
        if self.saver is not None and self.action:
            self.saver.spared = int(self.good_step)

    def _before_epoch(self) -> None:
        if not self.batches:  # a training that only makes up for an evaluation needs no data
            self.batches = [self.trainer.draw() for _ in range(self.num_batches)]
        if self.anew or self.distance == NOT_MEASURED:  # of the weights that it begins with
            before = self.distance
            self.measure_distance()
            if before + LEAP < self.distance < NOT_MEASURED:  # by whatever attack, it has overfitted already
                self.distance = before
            self.anew = False
            self.remember()

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

    def measure_distance(self) -> None:
        """Measure how far apart the two errors are now, unless the training ends."""
        errors = self.measure()
        self.distance = NOT_MEASURED if errors is None else errors[1] - errors[0]

    def _trigger_epoch(self) -> None:
        errors = self.measure()
        if errors is None or self.distance == NOT_MEASURED:  # a signal came
            return
        one, several = errors
        put = self.trainer.monitors.put_scalar
        put(ONE_STEP, one)
        put(SEVERAL, several)
        found = several - one > self.distance + LEAP
        put(FOUND, float(found))
        if not found:
            self.distance, self.good_step, self.warned = min(self.distance, several - one), self.global_step, False
            self.remember()
            return
        said = ('catastrophic overfitting in epoch %d: the error on training images is %.3f under one step and %.3f '
                'under %d steps; they were %.3f apart before'
                % (self.epoch_num, one, several, GUARD_STEPS, self.distance))
        if self.action is None:
            if self.world.is_chief and not self.warned:
                warn('%s. After step %d it had not overfitted. A smaller --attack-step-size, more --noise or '
                     '--replays, or --method pgd avoid it; --on-overfitting stop or restore acts on it'
                     % (said, self.good_step))
            self.warned = True
            return
        good = self.world.from_chief(self.world.patiently(
            lambda: self.last_good() if self.world.is_chief else None))
        if self.action == 'restore' and self.factor <= LEAST_FACTOR:  # another step would be longer
            self.end('%s, with %g of the attack\'s step' % (said, self.factor), good, 'more steps, by --method pgd')
        if self.action == 'stop' or good is None:
            self.end(said, good, 'a lower --attack-step-size, or with more steps, by --method pgd')
        self.restore(said, good)

    def last_good(self) -> Optional[str]:
        """Return the newest complete checkpoint of before the epoch, as the chief; None where there is none."""
        return next((path for path in saved_checkpoints(self.directory or '')
                     if step_of(path) <= self.good_step and damage(path) is None), None)

    def end(self, said: str, good: Optional[str], advice: str) -> None:
        for monitor in self.monitors:
            monitor.trigger_epoch()  # what was measured is in stats.json all the same
        if self.world.is_chief:
            set_aside_after(step_of(good) if good else self.good_step, self.directory or '')
        else:
            time.sleep(3)  # all ranks see it: one of them should say so
        if good is None:
            raise RunError('%s; there is no checkpoint from before that to go back to. Begin with %s' % (said, advice))
        raise RunError('%s; the last checkpoint before that is %s. Go on from it with %s, and with --resume %s'
                       % (said, good, advice, os.path.dirname(good)))

    def restore(self, said: str, good: str) -> None:
        """Go back to a checkpoint on all ranks, halve the attack's steps, and measure anew: one step is weaker now."""
        self.factor, self.good_step = self.factor / 2, self.global_step
        if self.world.is_chief:
            load_variables(self.trainer.sess, good,
                           but=(STEP_FACTOR, DISTANCE, GOOD_STEP, 'global_step', 'learning_rate', *OWN_OF_A_TRAINING))
            warn('%s. Going back to the weights of %s; the attack\'s steps are %g times as long as at the beginning '
                 'from now on' % (said, good, self.factor))
        self.trainer.broadcast(None)
        self.remember()  # before it measures, with steps of half the length
        self.measure_distance()
        self.remember()


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
