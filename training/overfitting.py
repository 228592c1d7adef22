"""The guard against catastrophic overfitting, which ends trainings with one-step attacks: within an epoch or a few a
network becomes robust to one step and to nothing else (Wong, Rice and Kolter 2020).

After each epoch the network is attacked by one step and by several, on a few batches that it doesn't train on. What the
guard knows is in the checkpoints: a training that goes on from one, for whatever reason, knows what was known there.
"""
import math
import os
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback

from adv_model import Attacker, attacked_images, is_wrong, scale_pixels
from checkpoint import AVERAGES, as_numbers, checkpoint_files
from kernels.mode import native_mode
from nets import Network
from runtime.distributed import World
from runtime.errors import RunError
from training.callbacks import Saver, errors_of_disk
from training.log_directory import ATTACK, OWN_OF_A_TRAINING, damage, saved_checkpoints, step_of, warn
from training.methods import GUARD_STEPS

# In checkpoints: times which the attack's steps are; the smallest distance; the step of the last good checkpoint
STEP_FACTOR = 'training/attack_step_factor'
DISTANCE, GOOD_STEP = 'training/overfitting/distance', 'training/overfitting/good_step'
# What stays as it is when a checkpoint is gone back to
NOT_RESTORED = (STEP_FACTOR, DISTANCE, GOOD_STEP, 'global_step', 'learning_rate', *OWN_OF_A_TRAINING)
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
    """What a checkpoint, from which a training goes on, says of the attack."""
    former_factor: float = 1.0  # times which its steps were
    same_attack: bool = True  # it is the attack of the training that goes on

    @property
    def factor(self) -> float:
        """Return how long the attack's steps are now, 1 as the flags say."""
        return self.former_factor if self.same_attack else 1.0

    @property
    def text(self) -> str:
        """Say how long the attack's steps are where the guard has halved them; '' where it hasn't."""
        if self.former_factor == 1.0:
            return ''
        if self.same_attack:
            return ('the attack\'s steps are %g times as long as at the beginning, since the network overfitted'
                    % self.former_factor)
        return ('the attack\'s steps were %g times as long as at the beginning, since the network overfitted; the '
                'attack is another one now, and has the steps that the flags say' % self.former_factor)


def remembered(path: str, attack: str) -> Remembered:
    """Read what a TF checkpoint says of the attack. attack: the name of the training's."""
    reader = tf.train.load_checkpoint(path)
    factor = float(reader.get_tensor(STEP_FACTOR)) if reader.has_tensor(STEP_FACTOR) else 1.0
    same = not reader.has_tensor(ATTACK) or np.array_equal(reader.get_tensor(ATTACK), as_numbers(attack))
    return Remembered(factor, bool(same))


class Errors(NamedTuple):
    """A network's errors on training images, in [0, 1], under an attack of one step and under one of several."""
    one_step: float
    several_steps: float

    @property
    def distance(self) -> float:
        return self.several_steps - self.one_step


class Memory:
    """What is known of a network's overfitting.

    Args:
        distance: the smallest one between its errors so far. good_step: the last step after which it had not
            overfitted. step_factor: times which the attack's steps are.
    """

    def __init__(self, step_factor: float = 1.0, distance: float = NOT_MEASURED, good_step: int = 0):
        self.step_factor, self.distance, self.good_step = step_factor, distance, good_step

    def begin_with(self, errors: Errors) -> None:
        """Take these errors' distance for the smallest one, of another attack than before; not where it shows that the
        network has overfitted already."""
        if errors.distance <= self.distance + LEAP:
            self.distance = errors.distance

    def is_overfitted(self, errors: Errors, step: int) -> bool:
        """Tell whether the network has overfitted after a step, and remember where it has not."""
        if errors.distance > self.distance + LEAP:
            return True
        self.distance, self.good_step = min(self.distance, errors.distance), step
        return False


class Guard(Callback):
    """Measures after every epoch, before its checkpoint, and does something when the network overfits.

    Args:
        network: its variables are those of the graph. image_size, batch: of the training.
        one_step: makes the attack of one step, several_steps: the one that it is compared with.
        action: None: says so. 'stop': ends the training by a RunError. 'restore': goes back to the last good
            checkpoint, with all that it holds but the place in the schedule, and halves the attack's steps; where
            they are an eighth, it ends the training.
        advice: what may avoid overfitting, the surest last. warn: says something to the user, as the chief.
        step_factor: the variable. same_attack: whether what a checkpoint says is of this attack. directory: of the
            checkpoints, the chief's. saver, monitors: the chief's.
        stopped: tells whether to leave off, on all ranks at once; what is not measured is no verdict.
    """

    _chief_only = False

    def __init__(self, network: Network, image_size: int, batch: int, world: World, *,
                 one_step: Callable[[], Attacker], several_steps: Callable[[], Attacker], step_factor: tf.Variable,
                 advice: Sequence[str], same_attack: bool = True, action: Optional[str] = None,
                 directory: Optional[str] = None, saver: Optional[Saver] = None, monitors: Sequence[Any] = (),
                 stopped: Callable[[], bool] = lambda: False, warn: Callable[[str], None] = warn):
        self.network, self.image_size, self.world = network, image_size, world
        self.one_step, self.several_steps, self.action, self.advice = one_step, several_steps, action, advice
        self.step_factor, self.attack_changed = step_factor, not same_attack
        self.directory, self.saver, self.monitors, self.stopped, self.warn = directory, saver, monitors, stopped, warn
        self.batches: List[List[np.ndarray]] = []
        self.warned = False
        self.num_batches = math.ceil(IMAGES / (batch * world.size))

    def _setup_graph(self) -> None:
        with tf.device('/cpu:0'):
            values = [(DISTANCE, np.float32(NOT_MEASURED)), (GOOD_STEP, np.int64(0))]
            self.variables = [self.step_factor] + [tf.get_variable(name, initializer=value, trainable=False)
                                                   for name, value in values]
        mode = native_mode()
        with tf.name_scope('overfitting'):
            self.image = tf.placeholder(tf.uint8, [None, self.image_size, self.image_size, 3], 'image')
            self.label = tf.placeholder(tf.int32, [None], 'label')
            image = scale_pixels(self.image)
            self.wrong = []
            for attacker in self.one_step(), self.several_steps():
                attacked, _ = attacked_images(self.network, attacker, image, self.label, mode)
                wrong = is_wrong(self.network.logits(attacked, mode), self.label, 1)
                self.wrong.append(tf.reduce_sum(tf.cast(wrong, tf.float32)))

    def _before_train(self) -> None:
        self.memory = Memory(*self.trainer.sess.run(self.variables))
        if self.memory.distance == NOT_MEASURED:  # no guard was there before
            self.memory.good_step = self.global_step
        self.keep_good()

    def remember(self) -> None:
        """Copy what this object knows to its variables, which the next checkpoints save."""
        known = self.memory
        for variable, value in zip(self.variables, (known.step_factor, known.distance, known.good_step)):
            variable.load(value, self.trainer.sess)
        self.keep_good()

    def keep_good(self) -> None:
        """Ask the saver to keep the last good checkpoint, however many an epoch makes."""
        if self.saver is not None and self.action:
            self.saver.kept_step = int(self.memory.good_step)

    def _before_epoch(self) -> None:
        if self.stopped():  # the training ends before the epoch's first step
            return
        if not self.batches:  # a training that only makes up for an evaluation needs no data
            self.batches = [self.trainer.draw() for _ in range(self.num_batches)]
        if self.attack_changed or self.memory.distance == NOT_MEASURED:
            self.measure_anew()

    def measure_anew(self) -> None:
        """Measure and remember how far apart the errors are at first under this attack, unless the training ends."""
        errors = self.measure()
        if errors is not None:
            self.memory.begin_with(errors)
            self.attack_changed = False
            self.remember()

    def measure(self) -> Optional[Errors]:
        """Return the errors on all ranks' images; None when the training ends."""
        counts = np.zeros(3)
        for images, labels in self.batches:
            if self.stopped():
                return None
            wrong = self.trainer.sess.run(self.wrong, {self.image: images, self.label: labels})
            counts += [*wrong, len(labels)]
        one, several, total = self.world.sum(counts)
        return Errors(one / total, several / total)

    def _trigger_epoch(self) -> None:
        errors = self.measure()
        if errors is None or self.memory.distance == NOT_MEASURED:  # a signal came
            return
        found = self.memory.is_overfitted(errors, self.global_step)
        put = self.trainer.monitors.put_scalar
        put(ONE_STEP, errors.one_step)
        put(SEVERAL, errors.several_steps)
        put(FOUND, float(found))
        if found:
            self.act(errors)
        else:
            self.warned = False
            self.remember()

    def act(self, errors: Errors) -> None:
        """Warn, go back or end the training, where the network has overfitted. Raises RunError, on all ranks."""
        said = ('catastrophic overfitting in epoch %d: the error on training images is %.3f under one step and %.3f '
                'under %d steps; they were %.3f apart before'
                % (self.epoch_num, *errors, GUARD_STEPS, self.memory.distance))
        if self.action is None:
            if self.world.is_chief and not self.warned:
                self.warn('%s. After step %d it had not overfitted. What may avoid it: %s; --on-overfitting stop or '
                          'restore acts on it' % (said, self.memory.good_step, ', or '.join(self.advice)))
            self.warned = True
            return
        good = self.world.from_chief(self.world.patiently(
            lambda: self.last_good() if self.world.is_chief else None))
        if self.action == 'restore' and self.memory.step_factor <= LEAST_FACTOR:  # another step would be longer
            self.end('%s, with %g of the attack\'s step' % (said, self.memory.step_factor), good, self.advice[-1:])
        if self.action == 'stop' or good is None:
            self.end(said, good, self.advice)
        self.restore(said, good)

    def last_good(self) -> Optional[str]:
        """Return the newest complete checkpoint of before the epoch, as the chief; None where there is none."""
        return next((path for path in saved_checkpoints(self.directory or '')
                     if step_of(path) <= self.memory.good_step and damage(path) is None), None)

    def end(self, said: str, good: Optional[str], advice: Sequence[str]) -> None:
        """End the training by a RunError, on all ranks, that says how to go on; the epoch's checkpoints get another
        name."""
        for monitor in self.monitors:
            monitor.trigger_epoch()  # what was measured is in stats.json all the same
        if self.world.is_chief:
            self.set_aside_after(step_of(good) if good else self.memory.good_step)
        else:
            time.sleep(3)  # all ranks see it: one of them should say so
        if good is None:
            raise RunError('%s; there is no checkpoint from before that to go back to. Begin with %s'
                           % (said, ', or '.join(advice)))
        raise RunError('%s; the last checkpoint before that is %s. Go on from it with --resume %s, and with %s'
                       % (said, good, os.path.dirname(good), ', or '.join(advice)))

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints that are newer, to overfitted-STEP, as the chief: --resume doesn't go on from them."""
        directory = self.directory or ''
        with errors_of_disk(directory):
            for path in saved_checkpoints(directory):
                if step_of(path) > step:
                    for file in reversed(checkpoint_files(path)):  # the index first, which makes them a checkpoint
                        other = os.path.basename(file).replace('model-', 'overfitted-', 1)
                        os.rename(file, os.path.join(directory, other))

    def restore(self, said: str, good: str) -> None:
        """Go back to a checkpoint on all ranks, halve the attack's steps, and measure anew: one step is weaker now."""
        self.memory = Memory(self.memory.step_factor / 2, good_step=self.global_step)
        values = self.world.patiently(lambda: read_variables(good, but=NOT_RESTORED) if self.world.is_chief else {})
        if self.world.is_chief:
            load_variables(self.trainer.sess, values)
            self.set_aside_after(step_of(good))
            if self.saver is not None:
                self.saver.count_saved()
            self.warn('%s. Going back to the weights of %s; the attack\'s steps are %g times as long as at the '
                      'beginning from now on' % (said, good, self.memory.step_factor))
        self.trainer.broadcast(None)
        self.remember()  # before it measures, with steps of half the length
        self.measure_anew()


def read_variables(path: str, but: Sequence[str]) -> Dict[str, np.ndarray]:
    """Read the variables of a TF checkpoint, {name: value}, but for some."""
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name not in but}


def load_variables(session: tf.Session, values: Dict[str, np.ndarray]) -> None:
    """Give all variables of the graph that are in `values` the value there; averages of which there are none begin with
    the variables' values."""
    for variable in tf.global_variables():
        name = variable.op.name
        if name.startswith(AVERAGES) and name not in values:
            name = name[len(AVERAGES):]
        if name in values:
            variable.load(values[name], session)
