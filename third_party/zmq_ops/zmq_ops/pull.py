"""The receiving end, as an op of the graph."""
import functools
import importlib.util
import itertools
from types import ModuleType
from typing import TYPE_CHECKING, List, Optional, Sequence

if TYPE_CHECKING:
    import tensorflow as tf

_names = itertools.count()


@functools.lru_cache()
def _library() -> ModuleType:
    import tensorflow as tf  # only here: a process that sends needs none of it
    spec = importlib.util.find_spec('zmq_ops._ops')
    if spec is None:
        raise ImportError('the compiled op of zmq_ops is missing: install the package with pip, or run the set-up '
                          'again')
    return tf.load_op_library(spec.origin)


class ZMQPullSocket:
    """A ZeroMQ PULL socket, which opens when its first pull is run; each pull that is run takes the next message.

    A socket belongs to the session that runs its pulls, and lives as long as the session object. Pulls of one socket
    wait for each other. Messages of 2 GiB and more are dropped, and their sender is disconnected.
    """

    def __init__(self, end_point: str, types: Sequence['tf.DType'], hwm: int = 100, bind: bool = True, *,
                 shapes: Optional[Sequence[Sequence[Optional[int]]]] = None, timeout: float = 0.,
                 skip_malformed: bool = False, advice: str = '') -> None:
        """
        end_point: for example ipc://PATH or tcp://HOST:PORT. types: TensorFlow dtypes of a message's tensors.
        hwm: messages that are received ahead, at most. bind: whether to bind the end point or connect to it.
        shapes: one for each tensor, with None where any will do; another one is malformed. timeout: seconds that
        a pull waits for a good message; 0: for ever. skip_malformed: report malformed messages on stderr, the
        1st, 2nd, 4th, 8th ..., and wait for the next, instead of failing. advice: added to the message of a time-out.
        """
        self._attributes = dict(types=list(types), shapes=list(shapes or []), end_point=end_point, hwm=hwm, bind=bind,
                                timeout=timeout, skip_malformed=skip_malformed, advice=advice,
                                shared_name='zmq_pull_socket_%d' % next(_names))
        self._pull = _library().zmq_pull_tensors

    def pull(self) -> List['tf.Tensor']:
        """Add an op to the graph that receives a message; returns its tensors, of the given types.

        When run it raises InvalidArgumentError, naming the end point and what is wrong, for a malformed message (the
        next run takes the next one), DeadlineExceededError after `timeout`, FailedPreconditionError where the end point
        cannot be had, and CancelledError when the session is closed meanwhile.
        """
        return self._pull(**self._attributes)
