"""Moving averages of a network's variables: they follow every update, are saved, and can be evaluated in its place."""
import contextlib
from typing import Iterable, Iterator

from runtime.compat import tf  # before tensorpack

from tensorpack import Callback

from checkpoint import AVERAGES


class Averages(Callback):
    """Keeps average <- decay average + (1 - decay) value for all of a network's variables, BatchNorm's statistics too.

    The averages are variables that checkpoints hold as training/ema/NAME. Ranks that have the same values have the same
    averages. Set it up before what saves checkpoints.

    Args:
        decay: in (0, 1). names: of the variables. begin: with the values there are; else with those of a checkpoint.
    """

    _chief_only = False

    def __init__(self, decay: float, names: Iterable[str], *, begin: bool):
        self.decay, self.names, self.begin = decay, set(names), begin

    def _setup_graph(self) -> None:
        self.variables = [v for v in tf.global_variables() if v.op.name in self.names]
        self.averages = [tf.get_variable(AVERAGES + v.op.name, v.shape, v.dtype.base_dtype, trainable=False,
                                         initializer=tf.zeros_initializer()) for v in self.variables]
        pairs = list(zip(self.averages, self.variables))
        self._begin = tf.group(*[tf.assign(average, v) for average, v in pairs])
        self._follow = tf.group(*[tf.assign_sub(average, (1 - self.decay) * (average - v)) for average, v in pairs])
        self._use = tf.group(*[tf.assign(v, average) for average, v in pairs])
        self._values = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in self.variables]
        self._restore = tf.group(*[tf.assign(v, value) for v, value in zip(self.variables, self._values)])

    def _before_train(self) -> None:
        if self.begin:
            self.trainer.sess.run(self._begin)

    def follow(self, session: tf.Session) -> None:
        """Move the averages on, after an update of the variables."""
        session.run(self._follow)

    @contextlib.contextmanager
    def in_place(self, session: tf.Session) -> Iterator[None]:
        """Give the network the averages for its variables; the values come back at the end, however that comes."""
        values = session.run(self.variables)
        session.run(self._use)
        try:
            yield
        finally:
            session.run(self._restore, dict(zip(self._values, values)))


def has_averages(path: str) -> bool:
    """Tell whether a TF checkpoint holds averages."""
    return any(name.startswith(AVERAGES) for name, _ in tf.train.list_variables(path))
