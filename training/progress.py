"""What people see of a training while it runs: lines of the log, TensorBoard, the last evaluation's table."""
import re
import time
from typing import Any, List

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback, logger
from tensorpack.callbacks import TFEventWriter
from tensorpack.utils.utils import humanize_time_delta

from runtime.pixels import unscale_pixels
from training.log_directory import Start
from training.records import read_statistics

SECONDS_BETWEEN_LINES = 20.0
IMAGES_SHOWN = 4


class Events(TFEventWriter):
    """Writes TensorBoard's events to a directory; tells it to forget what an earlier process wrote of the steps to
    come."""

    def __new__(cls, directory: str, global_step: int) -> 'Events':
        return super().__new__(cls, directory)

    def __init__(self, directory: str, global_step: int):
        super().__init__(directory)
        self.first_step = global_step + 1

    def _setup_graph(self) -> None:
        super()._setup_graph()
        self._write_graph_thread = None
        self._writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), self.first_step)

    def _after_train(self) -> None:
        # With an event after the last one, TensorFlow 1's writer never ends; and a short training may end before
        # tensorpack's thread has put the graph.
        try:
            if self._write_graph_thread is not None:
                self._write_graph_thread.join()
        finally:
            super()._after_train()


class Progress(Callback):
    """A line every few seconds and at the end of an epoch; how much of a step is the attack; a few adversarial
    images."""

    NAMES = ('smoothed-loss', 'train-error-top1', 'attack-success-rate')

    def __init__(self, start: Start, *, total_batch: int, max_epoch: int, micro_batches: int, attacked: bool,
                 targeted: bool = True):
        self.start, self.total_batch, self.max_epoch = start, total_batch, max_epoch
        self.micro_batches, self.attacked, self.targeted = micro_batches, attacked, attacked and targeted
        self.between_epochs = self.attack_seconds = 0.0
        self.epoch_ended = 0.0

    def _setup_graph(self) -> None:
        fetched = self.get_tensors_maybe_in_tower([name + ':0' for name in self.NAMES] + ['input-wait:0'])
        self._fetches = tf.train.SessionRunArgs(fetched)
        tower = self.trainer.towers.training()[0]
        clean, adversarial = tower.get_tensor('input'), tower.get_tensor('attack/adversarial:0')
        pair = tf.concat([tf.cast(clean, tf.float32), unscale_pixels(adversarial)], axis=2)[:IMAGES_SHOWN, :, :, ::-1]
        self._attack = [tf.clip_by_value(tf.round(pair), 0, 255), tower.get_tensor('input-wait:0'), adversarial.op]

    def _before_epoch(self) -> None:
        if self.epoch_ended:
            self.between_epochs = time.time() - self.epoch_ended
        self._time_attack()
        self.line_time = self.epoch_time = time.time()
        self.epoch_steps = 0
        self._clear()

    def _time_attack(self) -> None:
        """Time the attack alone, on the second of two batches more, since the first one also sets up."""
        for _ in range(2):
            begin = time.time()
            images, wait, _ = self.trainer.sess.run(self._attack)
            self.attack_seconds = (time.time() - begin - wait) * self.micro_batches * self.attacked
        self.trainer.monitors.put_image('clean-and-adversarial', images)

    def _clear(self) -> None:
        self.steps, self.sums = 0, np.zeros(len(self.NAMES) + 1)

    def _before_run(self, _: Any) -> tf.train.SessionRunArgs:
        return self._fetches

    def _after_run(self, _: Any, run_values: Any) -> None:
        self.sums += run_values.results
        self.steps += 1
        self.epoch_steps += 1

    def _trigger_step(self) -> None:
        if time.time() - self.line_time >= SECONDS_BETWEEN_LINES:
            self._line()

    def _after_epoch(self) -> None:
        self._line()
        self.epoch_ended = time.time()

    def _trigger_epoch(self) -> None:
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
        logger.info('epoch %d/%d, step %d/%d: %.1f images/s, attack %.0f%%, waiting for data %.0f%%, loss %.3f, '
                    'error %.3f, success %s; epoch ends in %s, training in %s' % (
                        self.epoch_num, self.max_epoch, done, total, self.total_batch / per_step,
                        100 * min(1, self.attack_seconds / per_step), 100 * means[-1] * self.micro_batches / per_step,
                        means[0], means[1], '%.3f' % means[2] if self.targeted else 'n/a', duration(epoch_left),
                        duration(epoch_left + later)))
        self.line_time = now
        self._clear()


def duration(seconds: float) -> str:
    return humanize_time_delta(round(seconds)) if seconds >= 1 else '0 seconds'


def evaluation_table(directory: str) -> List[str]:
    """Return the last evaluation in stats.json as lines of a table; none where there was no evaluation."""
    records = [r for r in read_statistics(directory) if 'eval-clean/error-top1' in r]
    if not records:
        return []
    last = records[-1]
    found = [re.match(r'eval-(ema-)?(clean|\d+step)/error-top1$', key) for key in last]
    averaged = any(match and match.group(1) for match in found)
    lines = ['Last evaluation, after epoch %d:' % last['epoch_num']]
    row = '%%-%ds %%11s %%11s %%15s' % (12 if averaged else 10)
    lines.append(row % ('attack', 'Top1 Error', 'Top5 Error', 'Attack Success'))
    for match in sorted(filter(None, found), key=lambda m: (bool(m.group(1)), int(re.sub(r'\D', '', m.group(2)) or 0))):
        prefix = match.group().split('/')[0]
        success = last.get(prefix + '/attack-success-rate')
        lines.append(row % (match.group(2) + ' ema' * bool(match.group(1)), '%.6f' % last[prefix + '/error-top1'],
                            '%.6f' % last[prefix + '/error-top5'], '-' if success is None else '%.6f' % success))
    return lines
