"""Free adversarial training's held batches: a step trains on the same ones several times, and attacks them meanwhile.

Of each held batch there is a perturbation. A replay's backward pass gives the gradients of weights and perturbation at
once; the perturbation moves by the sign of its own.
"""
from typing import TYPE_CHECKING, Any, List

from runtime.compat import tf  # before tensorpack

from tensorpack import Callback
from tensorpack.input_source import InputSource

from attacks.pgd import pixels
from training.input import TimedInput, show_wait

if TYPE_CHECKING:
    from training.trainer import Gradients


class FirstBatches(Callback):
    """Holds batches before the first step, so that there is something to show and to time. A training that only makes
    up for an evaluation needs none, and no data server."""

    _chief_only = False

    def __init__(self, held: 'HeldInput'):
        self.held, self.loaded = held, False

    def _before_epoch(self) -> None:
        if not self.loaded:
            self.held.load(self.trainer.sess)
            self.loaded = True


class HeldInput(InputSource):
    """Gives the batches that were last loaded from another input, as often as they are read.

    Args:
        inner: where they come from. micro_batches: how many are held. batch, image_size: of each.
    """

    def __init__(self, inner: TimedInput, micro_batches: int, batch: int, image_size: int):
        self.inner, self.micro_batches, self.batch, self.image_size = inner, micro_batches, batch, image_size

    def _setup(self, input_signature: Any) -> None:
        self.inner.setup(input_signature)

    def _get_callbacks(self) -> List[Any]:
        return self.inner.get_callbacks() + [FirstBatches(self)]

    def _get_input_tensors(self) -> List[tf.Tensor]:
        (images, labels), wait = self.inner.pull()
        with tf.device('/cpu:0'):
            # which of the held ones: the last one, with which a step is complete, where it isn't fed
            self.slot = tf.placeholder_with_default(self.micro_batches - 1, [], 'micro-batch')
            shape = [self.batch, self.image_size, self.image_size, 3]
            held = [local_variable('held-%s' % name, [self.micro_batches] + shape_of_one, dtype)
                    for name, shape_of_one, dtype in [('images', shape, tf.uint8), ('labels', shape[:1], tf.int32),
                                                      ('wait', [], tf.float32)]]
            self._load = tf.group(*[tf.scatter_update(variable, self.slot, value)
                                    for variable, value in zip(held, (images, labels, wait))])
            show_wait(tf.reduce_mean(held[2].read_value()))
            return [tf.gather(variable, self.slot) for variable in held[:2]]

    def load(self, session: tf.Session) -> None:
        """Take new batches in place of those that are held."""
        for slot in range(self.micro_batches):
            session.run(self._load, {self.slot: slot})

    def load_last(self, session: tf.Session) -> None:
        """Take a new batch in place of the last one, which is read where none is named."""
        session.run(self._load)


class Replays:
    """The perturbations of held batches. They are kept between replays, and from a batch to the one that takes its
    place, as published; a training, and one that is resumed, begins with none.

    Args:
        count: how often a step trains on its batches. held: the input. epsilon, step_size: in pixels; step_size may be
            a scalar tensor.
    """

    def __init__(self, count: int, held: HeldInput, *, epsilon: float, step_size: Any):
        self.count, self.held, self.epsilon, self.step_size = count, held, epsilon, step_size

    def perturbed(self, image: tf.Tensor) -> tf.Tensor:
        """Return the images, scaled to [-1, 1], with their perturbation, as valid pixels."""
        shape = [self.held.micro_batches, self.held.batch, self.held.image_size, self.held.image_size, 3]
        # trainable: the optimizer takes its gradient together with the weights'
        self.perturbation = local_variable('perturbation', shape, tf.float32, trainable=True)
        self._current = tf.gather(self.perturbation, self.held.slot)
        return tf.clip_by_value(image + self._current, -1.0, 1.0)

    def take(self, grads: 'Gradients') -> 'Gradients':
        """Return the gradients of the weights alone; when they are computed the perturbation was moved by its own."""
        of_weights = [(g, v) for g, v in grads if v is not self.perturbation]
        [slices] = [g for g, v in grads if v is self.perturbation]
        radius = pixels(self.epsilon)
        with tf.control_dependencies([g for g, _ in of_weights]):  # nothing reads the one of before any more
            moved = tf.clip_by_value(self._current + pixels(self.step_size) * tf.sign(slices.values[0]),
                                     -radius, radius)
            update = tf.scatter_update(self.perturbation, self.held.slot, moved)
        with tf.control_dependencies([update]):
            return [(tf.identity(g), v) for g, v in of_weights]


def local_variable(name: str, shape: List[int], dtype: tf.DType, trainable: bool = False) -> tf.Variable:
    """Return a variable of zeros, this rank's own: neither saved nor the same on all ranks."""
    return tf.Variable(tf.zeros(shape, dtype), trainable=trainable, name=name, use_resource=True,
                       collections=[tf.GraphKeys.LOCAL_VARIABLES])
