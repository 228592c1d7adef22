"""Where the batches of a training come from: the data server, by the native op or in Python, or nowhere (--fake)."""
import argparse
import contextlib
import logging
from typing import Iterator, List, Optional, Tuple

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import DataFlow, QueueInput
from tensorpack.dataflow import DataFlowTerminated
from tensorpack.input_source import DummyConstantInput, InputSource, TensorInput
from tensorpack.tfutils.summary import add_moving_summary
from zmq_ops import ZMQPullSocket

from runtime.errors import InputError
from third_party.transport import (
    DEFAULT_HWM,
    Receiver,
    batch_specs,
    check_endpoint,
    default_endpoint,
    other_classes,
    server_to_start,
)

SCOPE = 'data_server'
WAIT = 'input-wait'  # a tensor: the seconds that a step waited for its batch


def show_wait(seconds: tf.Tensor) -> None:
    """Add WAIT and its summary to the graph."""
    with tf.device('/cpu:0'), tf.name_scope(None):
        add_moving_summary(tf.identity(seconds, name=WAIT))


class TimedInput(InputSource):
    """A source of batches that shows how long they are waited for. It goes before another class of sources."""

    def pull(self) -> Tuple[List[tf.Tensor], tf.Tensor]:
        """Return the tensors of a batch, and of the seconds that it takes to get them."""
        with tf.device('/cpu:0'):
            begin = tf.timestamp()
            with tf.control_dependencies([begin]):
                tensors = super()._get_input_tensors()
            with tf.control_dependencies(tensors):
                end = tf.timestamp()
            # Whatever uses the batch comes after `end`, or on a single core the attack might be counted as waiting.
            with tf.control_dependencies([end]):
                return [tf.identity(t) for t in tensors], tf.cast(end - begin, tf.float32)

    def _get_input_tensors(self) -> List[tf.Tensor]:
        tensors, wait = self.pull()
        show_wait(wait)
        return tensors


def training_input(options: argparse.Namespace, num_classes: int) -> TimedInput:
    """Return the input of a training with these options. Raises InputError where the native op can't be loaded."""
    if options.fake:
        return FakeInput([[options.batch, options.image_size, options.image_size, 3], [options.batch]])
    endpoint = options.endpoint or default_endpoint(options.batch, options.image_size)
    make = python_input if options.no_zmq_ops else NativeInput
    try:
        return make(endpoint, options.batch, options.image_size, classes=num_classes, timeout=options.data_timeout)
    except (ImportError, tf.errors.NotFoundError) as e:  # not compiled, or for another TensorFlow or libzmq
        raise InputError('the native op can\'t be loaded (%s): run "make setup", or give --no-zmq-ops'
                         % str(e).split('\n')[0])


class FakeInput(TimedInput, DummyConstantInput):
    """Constant images and labels."""


class PythonInput(TimedInput, QueueInput):
    """A queue of batches that a thread fills in Python."""


class NativeInput(TimedInput, TensorInput):
    """Images uint8 (B,S,S,3) and labels int32 (B,), each step's by one run of the op: no Python, one copy."""

    def __init__(self, endpoint: str, batch: int, image_size: int, *, classes: int, timeout: float) -> None:
        """Take the parameters of `transport.Receiver`, which does the same."""
        check_endpoint(endpoint)
        self.endpoint, self.classes = endpoint, classes
        self._shapes = [shape for _, shape in batch_specs(batch, image_size)]
        self._socket = ZMQPullSocket(endpoint, [tf.uint8, tf.int32], hwm=DEFAULT_HWM, bind=False, shapes=self._shapes,
                                     timeout=timeout, skip_malformed=True,
                                     advice=server_to_start(batch, image_size, endpoint))
        super().__init__(self._pull)

    def _pull(self) -> List[tf.Tensor]:
        with tf.name_scope(SCOPE), tf.device('/cpu:0'):
            images, labels = self._socket.pull()
            for tensor, shape in zip((images, labels), self._shapes):
                tensor.set_shape(shape)
            known = tf.logical_and(tf.reduce_min(labels) >= 0, tf.reduce_max(labels) < self.classes)
            with tf.control_dependencies([tf.Assert(known, [labels])]):
                return [images, tf.identity(labels)]


def python_input(endpoint: str, batch: int, image_size: int, *, classes: int, timeout: float) -> TimedInput:
    return PythonInput(ReceivedData(Receiver(endpoint, batch, image_size, classes=classes, timeout=timeout)))


class ReceivedData(DataFlow):
    """The batches of the data server. When there is an error, it is kept, and the training ends early."""

    def __init__(self, receiver: Receiver):
        self.receiver = receiver
        self.error: Optional[Exception] = None

    def __iter__(self) -> Iterator[List[np.ndarray]]:
        try:
            for arrays in self.receiver:
                yield arrays
        except GeneratorExit:
            raise
        except Exception as e:  # whatever it is: tensorpack would end the training as if it were complete
            self.error = e
            raise DataFlowTerminated()


def without_graph_of_error(record: logging.LogRecord) -> bool:
    """Keep the first of TensorFlow's many lines about its graph, with which tensorpack logs the end of the queue."""
    if str(record.msg).startswith('Training was stopped by exception'):
        record.msg = record.msg.splitlines()[0]
        record.args = ()
    if str(record.msg).startswith('Training failed at global_step='):
        # it has an argument too many, about which logging would print tracebacks; the program's last line says it all
        return False
    return True


@contextlib.contextmanager
def errors_of_input(data: InputSource) -> Iterator[None]:
    """Turn what goes wrong with this input, during a training within, into the InputError that says what to do."""
    logging.getLogger('tensorpack').addFilter(without_graph_of_error)
    try:
        yield
    except tf.errors.OpError as e:
        if isinstance(data, NativeInput) and e.op is not None and SCOPE in e.op.name:
            if e.op.type == 'Assert':
                raise InputError(other_classes(data.endpoint, data.classes))
            # TensorFlow puts lines about the node around the op's own
            lines = [line for line in e.message.splitlines() if data.endpoint in line]
            if lines:
                raise InputError(lines[0])
        raise
    if isinstance(data, QueueInput) and data.ds.error:
        raise data.ds.error
