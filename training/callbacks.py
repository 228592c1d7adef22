"""What steers a training: its place in the schedule, checkpoints, guards, signals.

A callback whose `_chief_only` is False runs on all ranks.
"""
import glob
import math
import os
import signal
import time
from typing import Any, Optional

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback, HyperParamSetter, ModelSaver, logger
from tensorpack.train import StopTraining

from checkpoint import DENOISING
from runtime.distributed import World
from runtime.errors import RunError
from training.best import ERROR, STEP, find_best, keep
from training.log_directory import OFFSET, STEPS_PER_EPOCH, TOTAL_BATCH, Start, saved_checkpoints, step_of
from training.schedule import LearningRate

CHECKPOINTS_KEPT = 100
EXPLODED = 100  # a loss of so many times that of guessing is one that will not come down again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SECONDS_BETWEEN_CHECKS = 1.0  # of whether a rank got a signal


class ScheduledPosition(Callback):
    """Begins the loop within an epoch where a checkpoint was saved there; checkpoints hold what that takes: the steps
    of an epoch, the schedule's offset and the total batch."""

    _chief_only = False

    def __init__(self, start: Start, total_batch: int):
        self.start, self.total_batch = start, total_batch
        self.completed_epochs = start.epoch - 1  # tensorpack also returns from a training that ended early

    def _setup_graph(self) -> None:
        with tf.device('/cpu:0'):
            for name, value in [(STEPS_PER_EPOCH, self.start.steps_per_epoch), (OFFSET, self.start.offset),
                                (TOTAL_BATCH, self.total_batch)]:
                tf.get_variable(name, initializer=np.int64(value), trainable=False)

    def _before_train(self) -> None:
        self.trainer.loop.steps_per_epoch = self.start.steps_per_epoch - self.start.step_of_epoch

    def _trigger_epoch(self) -> None:
        self.trainer.loop.steps_per_epoch = self.start.steps_per_epoch
        self.completed_epochs = self.epoch_num


class RecordedDenoising(Callback):
    """Has checkpoints hold what the denoising blocks are: networks with other ones can have the same variables."""

    _chief_only = False

    def __init__(self, record: Optional[np.ndarray]):
        self.record = record

    def _setup_graph(self) -> None:
        if self.record is not None:
            with tf.device('/cpu:0'):
                tf.get_variable(DENOISING, initializer=self.record, trainable=False)


class ScheduledLearningRate(HyperParamSetter):
    """Sets the rate of every step. It depends on the step alone, so it is right in a continued training."""

    def __init__(self, schedule: LearningRate, offset: int):
        super().__init__('learning_rate')
        self.schedule, self.offset = schedule, offset

    def _get_value_to_set(self) -> float:
        return self.schedule.at(self.global_step - self.offset)

    def _before_epoch(self) -> None:
        self.param.set_value(self._get_value_to_set())

    def _trigger_step(self) -> None:
        self._set_param()

    def _trigger(self) -> None:
        pass  # the next epoch begins with its own


class Saver(ModelSaver):
    """Saves checkpoints, also within epochs; it never saves weights that are not finite, and what it can't save is an
    error."""

    def __init__(self, directory: str, every_steps: Optional[int], offset: int, *, kept: int = CHECKPOINTS_KEPT):
        super().__init__(max_to_keep=kept, checkpoint_dir=directory)
        self.every_steps, self.offset = every_steps, offset
        self.saved_step: Optional[int] = None
        self.kept_step: Optional[int] = None  # of a checkpoint that is kept, however many come after it

    def _setup_graph(self) -> None:
        super()._setup_graph()
        self.finite = tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in tf.global_variables()
                                     if v.dtype.base_dtype.is_floating])

    def _before_train(self) -> None:
        self.count_saved()
        if any(step_of(path) == self.global_step for path in self.saver.last_checkpoints):
            self.saved_step = self.global_step  # the one that it goes on from
        for part in glob.glob(os.path.join(glob.escape(self.checkpoint_dir), 'model-*.tempstate*')):
            os.unlink(part)  # of a save that was cut off
        with errors_of_disk(self.checkpoint_dir):
            super()._before_train()

    def count_saved(self) -> None:
        """Count the checkpoints that there are, also those of the training before, among the ones to keep."""
        self.saver.recover_last_checkpoints(saved_checkpoints(self.checkpoint_dir)[::-1])

    def _trigger_step(self) -> None:
        # not after an epoch's last step: the epoch's checkpoint comes when the guard has looked at it
        last = self.local_step + 1 == self.trainer.steps_per_epoch
        if self.every_steps and (self.global_step - self.offset) % self.every_steps == 0 and not last:
            self.save()

    def _trigger(self) -> None:
        self.save()

    def save(self) -> None:
        if self.saved_step == self.global_step:
            return
        if not self.trainer.sess.run(self.finite):
            raise RunError('the weights are not finite after step %d, and were not saved: %s' % (
                self.global_step, self.advice()))
        oldest = self.saver.last_checkpoints[:1]
        if oldest and step_of(oldest[0]) == self.kept_step:
            self.saver.recover_last_checkpoints(self.saver.last_checkpoints[1:] + oldest)
        try:
            with errors_of_disk(self.checkpoint_dir):
                path = self.saver.save(self.trainer.sess, self.path, global_step=self.global_step,
                                       write_meta_graph=False)
        except RunError:
            for part in glob.glob(glob.escape('%s-%d' % (self.path, self.global_step)) + '.*'):
                os.unlink(part)
            raise
        self.saved_step = self.global_step
        logger.info('Model saved to %s.' % path)

    def advice(self) -> str:
        saved = saved_checkpoints(self.checkpoint_dir)
        return 'the last checkpoint is %s' % saved[0] if saved else 'there is no checkpoint yet'


class KeepBest(Callback):
    """Keeps the checkpoint after which a figure was lowest. The chief's alone; a later callback than those that
    evaluate."""

    def __init__(self, directory: str, metric: str):
        self.directory, self.metric = directory, metric

    def _before_train(self) -> None:
        with errors_of_disk(self.directory):
            self.best = find_best(self.directory, self.metric)
        self._trigger_epoch()  # where the evaluation of the epoch before was made up for

    def _trigger_epoch(self) -> None:
        history = self.trainer.monitors.get_history(self.metric)
        if not history or history[-1][0] != self.global_step:
            return
        value, step = history[-1][1], self.global_step
        if self.best is None or value < self.best[0]:
            with errors_of_disk(self.directory):
                if keep(self.directory, step):
                    self.best = value, step
        if self.best is not None:
            self.trainer.monitors.put_scalar(ERROR, self.best[0])
            self.trainer.monitors.put_scalar(STEP, self.best[1])


class errors_of_disk:
    """A disk that is full, or gone, within is a RunError."""

    def __init__(self, directory: str):
        self.directory = directory

    def __enter__(self) -> 'errors_of_disk':
        return self

    def __exit__(self, kind: Any, e: Optional[BaseException], trace: Any) -> None:
        if isinstance(e, (OSError, tf.errors.OpError)):
            # TensorFlow puts lines about the node before and after the error's own
            lines = str(e).split('\n\t [[')[0].strip().split('\n')
            raise RunError('cannot write to %s: %s' % (self.directory, lines[-1]))


class LossGuard(Callback):
    """Ends the training when a rank's loss is not a number, or so large that it will not come down again.

    scale: how many times a cross-entropy the method's loss may be.
    """

    _chief_only = False

    def __init__(self, classes: int, rank: int, directory: Optional[str], scale: float = 1.0):
        self.limit = EXPLODED * scale * math.log(classes)
        self.rank, self.directory = rank, directory

    def _setup_graph(self) -> None:
        self._fetches = tf.train.SessionRunArgs(self.get_tensors_maybe_in_tower(['smoothed-loss:0', 'cost:0']))

    def _before_run(self, _: Any) -> tf.train.SessionRunArgs:
        return self._fetches

    def _after_run(self, _: Any, run_values: Any) -> None:
        loss, cost = run_values.results
        if math.isfinite(cost) and loss < self.limit:
            return
        if self.rank:
            time.sleep(3)  # mostly all ranks see it: one of them should say so
        saved = saved_checkpoints(self.directory) if self.directory else []
        raise RunError('the loss is %.4g at step %d, in epoch %d: %s; lower --base-lr' % (
            loss if math.isfinite(cost) else cost, self.global_step, self.epoch_num,
            'the last checkpoint is %s' % saved[0] if saved else 'there is no checkpoint yet'))


class StopOnSignal(Callback):
    """Ends all ranks at the same step, the chief with a checkpoint, after SIGTERM or SIGUSR1 at any of them."""

    _chief_only = False

    def __init__(self, world: World):
        self.world = world
        self.saver: Optional[Saver] = None  # the chief's
        self.received = 0
        self.stopped = self.due = False
        self.next_check = self.last_check = self.steps_seen = 0
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        self.received = number
        # not print: this may have interrupted one
        os.write(2, b'signal %d: this training will end with a checkpoint after the step\n' % number)

    def _before_train(self) -> None:
        self.last_time = time.time()

    def _trigger_step(self) -> None:
        self.steps_seen += 1
        if self.local_step + 1 < self.trainer.steps_per_epoch:
            self._check()

    def _before_epoch(self) -> None:
        """Stop, after the last step of an epoch, only when its statistics are written."""
        if self.due:
            self.stop()
        self._check()

    def _after_train(self) -> None:
        self.stopped = self.stopped or self.due  # in the evaluation of the last epoch

    def _check(self) -> None:
        if self.steps_seen == self.last_check or self.steps_seen < self.next_check:
            return
        now = time.time()
        # the chief's clock, to the last bit, so that all ranks meet again at the same step
        of_ranks = self.world.gather(np.array([[self.received, now - self.last_time]], np.float64))
        received, seconds = of_ranks[:, 0].any(), of_ranks[0, 1]
        per_step = max(seconds / (self.steps_seen - self.last_check), 1e-6)
        self.last_time, self.last_check = now, self.steps_seen
        self.next_check = self.steps_seen + max(1, int(SECONDS_BETWEEN_CHECKS / per_step))
        if received:
            self.stop()

    def agreed(self) -> bool:
        """Tell whether any rank got a signal, after which the training ends with the epoch. All ranks must call it."""
        self.due = bool(self.world.sum([self.received])[0])
        return self.due

    def ignore(self) -> None:
        """Ignore the signals from here on: the process ends by itself. Python's own end would bring back the deadly
        default."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def stop(self) -> None:
        self.ignore()
        if self.saver:
            self.saver.save()
        self.stopped = True
        raise StopTraining('a signal came')
