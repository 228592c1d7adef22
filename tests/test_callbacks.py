"""Callbacks of a training, by themselves."""
import glob
import threading
import time

from runtime.compat import tf

import pytest
from tensorpack import logger
from tensorpack.train import Trainer

from training.progress import Events


class SlowGraph(Events):
    """As of a large network on a busy machine."""

    def _write_graph(self):
        time.sleep(1)
        super()._write_graph()


@pytest.mark.parametrize('begins', [True, False])
def test_a_training_ends_while_its_graph_is_still_being_written(tmp_path, monkeypatch, begins):
    monkeypatch.setattr(logger, 'get_logger_dir', lambda: str(tmp_path))
    with tf.Graph().as_default():
        tf.constant(1., name='in_the_graph')
        events = SlowGraph(0)
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
