"""What happens around the steps of a training: its place in the schedule, checkpoints, guards, signals, and what people see.

A callback whose `_chief_only` is False runs on all ranks.
"""
import glob
import math
import os
import signal
import time
from typing import Any, List, Optional

import numpy as np

from runtime.compat import tf  # before tensorpack
from tensorpack import Callback, HyperParamSetter, ModelSaver, logger
from tensorpack.callbacks import JSONWriter, TFEventWriter
from tensorpack.train import StopTraining
from tensorpack.utils.utils import humanize_time_delta

from adv_model import unscale_pixels
from runtime.distributed import World
from runtime.errors import RunError
from resume import OFFSET, STEPS_PER_EPOCH, TOTAL_BATCH, Start, read_statistics, saved_checkpoints, step_of, write_json
from schedule import LearningRate

CHECKPOINTS_KEPT = 100
EXPLODED = 100  # a loss of so many times that of guessing is one that will not come down again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SECONDS_BETWEEN_CHECKS = 1.0  # of whether a rank got a signal
SECONDS_BETWEEN_LINES = 20.0
IMAGES_SHOWN = 4


class Place(Callback):
    """Begins the loop within an epoch where a checkpoint was saved there, and keeps in checkpoints what that takes."""

    _chief_only = False

    def __init__(self, start: Start, total_batch: int):
        self.start, self.total_batch = start, total_batch
        self.completed_epochs = start.epoch - 1  # tensorpack also returns from a training that ended early

    def _setup_graph(self):
        with tf.device('/cpu:0'):
            for name, value in [(STEPS_PER_EPOCH, self.start.steps_per_epoch), (OFFSET, self.start.offset),
                                (TOTAL_BATCH, self.total_batch)]:
                tf.get_variable(name, initializer=np.int64(value), trainable=False)

    def _before_train(self):
        self.trainer.loop.steps_per_epoch = self.start.steps_per_epoch - self.start.step_of_epoch

    def _trigger_epoch(self):
        self.trainer.loop.steps_per_epoch = self.start.steps_per_epoch
        self.completed_epochs = self.epoch_num


class ScheduledLearningRate(HyperParamSetter):
    """Sets the rate of every step. It depends on the step alone, so it is right in a continued training."""

    def __init__(self, schedule: LearningRate, offset: int):
        super().__init__('learning_rate')
        self.schedule, self.offset = schedule, offset

    def _get_value_to_set(self):
        return self.schedule.at(self.global_step - self.offset)

    def _before_epoch(self):
        self.param.set_value(self._get_value_to_set())

    def _trigger_step(self):
        self._set_param()

    def _trigger(self):
        pass  # the next epoch begins with its own


class Saver(ModelSaver):
    """tensorpack's, also within epochs; it never saves weights that are not finite, and what it can't save is an error."""

    def __init__(self, directory: str, every_steps: Optional[int], offset: int):
        super().__init__(max_to_keep=CHECKPOINTS_KEPT, checkpoint_dir=directory)
        self.every_steps, self.offset = every_steps, offset
        self.saved_step: Optional[int] = None

    def _setup_graph(self):
        super()._setup_graph()
        self.finite = tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in tf.global_variables()
                                     if v.dtype.base_dtype.is_floating])

    def _before_train(self):
        # those of the training before count among the ones to keep, and the one that it goes on from is saved
        earlier = saved_checkpoints(self.checkpoint_dir)
        self.saver.recover_last_checkpoints(earlier[::-1])
        if any(step_of(path) == self.global_step for path in earlier):
            self.saved_step = self.global_step
        for part in glob.glob(os.path.join(glob.escape(self.checkpoint_dir), 'model-*.tempstate*')):
            os.unlink(part)  # of a save that was cut off
        with errors_of_disk(self.checkpoint_dir):
            super()._before_train()

    def _trigger_step(self):
        if self.every_steps and (self.global_step - self.offset) % self.every_steps == 0:
            self.save()

    def _trigger(self):
        self.save()

    def save(self) -> None:
        if self.saved_step == self.global_step:
            return
        if not self.trainer.sess.run(self.finite):
            raise RunError('the weights are not finite after step %d, and were not saved: %s' % (
                self.global_step, self.advice()))
        try:
            with errors_of_disk(self.checkpoint_dir):
                path = self.saver.save(self.trainer.sess, self.path, global_step=self.global_step, write_meta_graph=False)
        except RunError:
            for part in glob.glob(glob.escape('%s-%d' % (self.path, self.global_step)) + '.*'):
                os.unlink(part)
            raise
        self.saved_step = self.global_step
        logger.info('Model saved to %s.' % path)

    def advice(self) -> str:
        saved = saved_checkpoints(self.checkpoint_dir)
        return 'the last checkpoint is %s' % saved[0] if saved else 'there is no checkpoint yet'


class errors_of_disk:
    """A disk that is full, or gone, within is a RunError."""

    def __init__(self, directory: str):
        self.directory = directory

    def __enter__(self):
        return self

    def __exit__(self, kind, e, trace):
        if isinstance(e, (OSError, tf.errors.OpError)):
            # TensorFlow puts lines about the node before and after the error's own
            lines = str(e).split('\n\t [[')[0].strip().split('\n')
            raise RunError('cannot write to %s: %s' % (self.directory, lines[-1]))


class Statistics(JSONWriter):
    """tensorpack's, which goes on in the file of a training that is resumed, and fails where it can't be written."""

    def _before_train(self):
        self._fname = os.path.join(logger.get_logger_dir(), self.FILENAME)
        self._stats = read_statistics(logger.get_logger_dir())
        if self._stat_now and self._stats and self._stats[-1].get('global_step') == self.global_step:
            # the evaluation of an epoch whose other figures an earlier process wrote
            self._stat_now = dict(self._stats.pop(), **self._stat_now)
        self._trigger()

    def _write_stat(self):
        write_json(self._fname, self._stats)


class Events(TFEventWriter):
    """tensorpack's, which tells TensorBoard to forget what an earlier process wrote of the steps to come."""

    def __new__(cls, global_step):
        return super().__new__(cls)

    def __init__(self, global_step: int):
        super().__init__()
        self.first_step = global_step + 1

    def _setup_graph(self):
        super()._setup_graph()
        self._write_graph_thread = None
        self._writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), self.first_step)

    def _after_train(self):
        # With an event after the last one, TensorFlow 1's writer never ends; and a short training may end before tensorpack's
        # thread has put the graph.
        try:
            if self._write_graph_thread is not None:
                self._write_graph_thread.join()
        finally:
            super()._after_train()


class LossGuard(Callback):
    """Ends the training when a rank's loss is not a number, or so large that it will not come down again."""

    _chief_only = False

    def __init__(self, classes: int, rank: int, directory: Optional[str]):
        self.limit = EXPLODED * math.log(classes)
        self.rank, self.directory = rank, directory

    def _setup_graph(self):
        self._fetches = tf.train.SessionRunArgs(self.get_tensors_maybe_in_tower(['smoothed-loss:0', 'cost:0']))

    def _before_run(self, _):
        return self._fetches

    def _after_run(self, _, run_values):
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
    """After SIGTERM or SIGUSR1 at any rank all of them end at the same step, the chief with a checkpoint."""

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

    def _before_train(self):
        self.last_time = time.time()

    def _trigger_step(self):
        self.steps_seen += 1
        if self.local_step + 1 < self.trainer.steps_per_epoch:
            self._check()

    def _before_epoch(self):
        """After the last step of an epoch its statistics are written first."""
        if self.due:
            self.stop()
        self._check()

    def _after_train(self):
        self.stopped = self.stopped or self.due  # in the evaluation of the last epoch

    def _check(self) -> None:
        if self.steps_seen == self.last_check or self.steps_seen < self.next_check:
            return
        now = time.time()
        # the chief's clock, to the last bit, so that all ranks meet again at the same step
        received, seconds = self.world.sum([self.received, now - self.last_time if self.world.is_chief else 0.0])
        per_step = max(seconds / (self.steps_seen - self.last_check), 1e-6)
        self.last_time, self.last_check = now, self.steps_seen
        self.next_check = self.steps_seen + max(1, int(SECONDS_BETWEEN_CHECKS / per_step))
        if received:
            self.stop()

    def agreed(self) -> bool:
        """Whether any rank got a signal, after which the training ends with the epoch. All ranks must call it."""
        self.due = bool(self.world.sum([self.received])[0])
        return self.due

    def ignore(self) -> None:
        """From here on the process ends by itself. Python's own end would bring back the deadly default."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def stop(self) -> None:
        self.ignore()
        if self.saver:
            self.saver.save()
        self.stopped = True
        raise StopTraining('a signal came')


class Progress(Callback):
    """A line every few seconds and at the end of an epoch; how much of a step is the attack; a few adversarial images."""

    NAMES = ('smoothed-loss', 'train-error-top1', 'attack-success-rate')

    def __init__(self, start: Start, *, total_batch: int, max_epoch: int, micro_batches: int, attacked: bool):
        self.start, self.total_batch, self.max_epoch = start, total_batch, max_epoch
        self.micro_batches, self.attacked = micro_batches, attacked
        self.between_epochs = self.attack_seconds = 0.0
        self.epoch_ended: Optional[float] = None

    def _setup_graph(self):
        fetched = self.get_tensors_maybe_in_tower([name + ':0' for name in self.NAMES] + ['input-wait:0'])
        self._fetches = tf.train.SessionRunArgs(fetched)
        tower = self.trainer.towers.training()[0]
        clean, adversarial = tower.get_tensor('input'), tower.get_tensor('attack/adversarial:0')
        pair = tf.concat([tf.cast(clean, tf.float32), unscale_pixels(adversarial)], axis=2)[:IMAGES_SHOWN, :, :, ::-1]
        self._attack = [tf.clip_by_value(tf.round(pair), 0, 255), tower.get_tensor('input-wait:0'), adversarial.op]

    def _before_epoch(self):
        if self.epoch_ended:
            self.between_epochs = time.time() - self.epoch_ended
        self._time_attack()
        self.line_time = self.epoch_time = time.time()
        self.epoch_steps = 0
        self._clear()

    def _time_attack(self) -> None:
        """The attack alone, on a batch more: of two, as the first one also sets up."""
        for _ in range(2):
            begin = time.time()
            images, wait, _ = self.trainer.sess.run(self._attack)
            self.attack_seconds = (time.time() - begin - wait) * self.micro_batches * self.attacked
        self.trainer.monitors.put_image('clean-and-adversarial', images)

    def _clear(self):
        self.steps, self.sums = 0, np.zeros(len(self.NAMES) + 1)

    def _before_run(self, _):
        return self._fetches

    def _after_run(self, _, run_values):
        self.sums += run_values.results
        self.steps += 1
        self.epoch_steps += 1

    def _trigger_step(self):
        if time.time() - self.line_time >= SECONDS_BETWEEN_LINES:
            self._line()

    def _after_epoch(self):
        self._line()
        self.epoch_ended = time.time()

    def _trigger_epoch(self):
        per_step = (self.epoch_ended - self.epoch_time) / max(1, self.epoch_steps)
        self.trainer.monitors.put_scalar('attack-share', min(1.0, self.attack_seconds / per_step))

    def _line(self) -> None:
        if not self.steps:
            return
        now = time.time()
        elapsed, means = now - self.line_time, self.sums / self.steps
        per_step = elapsed / self.steps
        epoch_left = (self.trainer.steps_per_epoch - self.local_step - 1) * per_step
        total = self.start.steps_per_epoch
        later = (self.max_epoch - self.epoch_num) * (total * per_step + self.between_epochs) + self.between_epochs
        done = (self.global_step - self.start.offset - 1) % total + 1
        logger.info('epoch %d/%d, step %d/%d: %.1f images/s, attack %.0f%%, waiting for data %.0f%%, loss %.3f, error %.3f, '
                    'success %.3f; epoch ends in %s, training in %s' % (
                        self.epoch_num, self.max_epoch, done, total, self.total_batch / per_step,
                        100 * min(1, self.attack_seconds / per_step), 100 * means[-1] * self.micro_batches / per_step,
                        means[0], means[1], means[2], duration(epoch_left), duration(epoch_left + later)))
        self.line_time = now
        self._clear()


def duration(seconds: float) -> str:
    return humanize_time_delta(round(seconds)) if seconds >= 1 else '0 seconds'


def evaluation_table(directory: str) -> List[str]:
    """The last evaluation in stats.json, as lines of a table; none where there was no evaluation."""
    records = [r for r in read_statistics(directory) if 'eval-clean/error-top1' in r]
    if not records:
        return []
    last = records[-1]
    lines = ['Last evaluation, after epoch %d:' % last['epoch_num'],
             '%-10s %11s %11s %15s' % ('attack', 'Top1 Error', 'Top5 Error', 'Attack Success')]
    strengths = [key.split('/')[0] for key in last if key.startswith('eval-') and key.endswith('/error-top1')]
    for prefix in sorted(strengths, key=lambda p: 0 if p == 'eval-clean' else int(p[len('eval-'):-len('step')])):
        success = last.get(prefix + '/attack-success-rate')
        lines.append('%-10s %11.6f %11.6f %15s' % (prefix[len('eval-'):], last[prefix + '/error-top1'],
                                                   last[prefix + '/error-top5'],
                                                   '-' if success is None else '%.6f' % success))
    return lines
