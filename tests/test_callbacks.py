"""Callbacks of a training, by themselves."""
import glob
import threading
import time

from runtime.compat import tf

import pytest
from tensorpack import InputSource
from tensorpack.train import Trainer

from training.input import TimedInput
from training.progress import Events


class SlowGraph(Events):
    """As of a large network on a busy machine."""

    def _write_graph(self):
        time.sleep(1)
        super()._write_graph()


@pytest.mark.parametrize('begins', [True, False])
def test_a_training_ends_while_its_graph_is_still_being_written(tmp_path, begins):
    with tf.Graph().as_default():
        tf.constant(1., name='in_the_graph')
        events = SlowGraph(str(tmp_path), 0)
        events.setup_graph(Trainer())
        if begins:
            events.before_train()
        errors = []

        def end():
            try:
                events.after_train()
            except Exception as e:
                errors.append(e)

        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(30)
    assert not thread.is_alive() and not errors and events._writer.event_writer._closed
    [path] = glob.glob(str(tmp_path / 'events*'))
    with open(path, 'rb') as f:
        assert (b'in_the_graph' in f.read()) == begins


class AtOnce(InputSource):
    """A batch that is there at once, with labels that are checked."""

    def _get_input_tensors(self):
        images, labels = tf.random_uniform([500, 500]), tf.random_uniform([32], maxval=9, dtype=tf.int32)
        with tf.control_dependencies([tf.Assert(tf.reduce_max(labels) < 10, [labels])]):
            return [images, tf.identity(labels)]


class TimedAtOnce(TimedInput, AtOnce):
    pass


def test_what_a_step_computes_is_no_waiting_for_its_batch():
    """Even on a single core, where what uses the batch may run before anything else."""
    with tf.Graph().as_default():
        (images, _), wait = TimedAtOnce().pull()
        work = images
        for _ in range(50):
            work = tf.matmul(work, images) / 500
        one = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf.Session(config=one) as session:
            shares = []
            for _ in range(5):
                begin = time.time()
                waited, _ = session.run([wait, work.op])
                shares.append(waited / (time.time() - begin))
    assert max(shares[1:]) < 0.5, shares
