"""tensorpack's HorovodTrainer, with this rank's share of threads, and with gradients accumulated over micro-batches."""
from typing import Any, Callable, List, Optional, Tuple

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack.input_source import InputSource
from tensorpack.tfutils.sesscreate import NewSessionCreator
from tensorpack.train import HorovodTrainer

from runtime.distributed import World
from training.averages import Averages
from training.replays import Replays

Gradients = List[Tuple[tf.Tensor, tf.Variable]]


class SessionCreator(NewSessionCreator):
    """Creates sessions with this rank's threads and GPU, in place of those that HorovodTrainer has just set."""

    def __init__(self, world: World):
        super().__init__()
        self.world = world

    def create_session(self) -> tf.Session:
        threads = self.world.session_config()
        self.config.intra_op_parallelism_threads = threads.intra_op_parallelism_threads
        self.config.inter_op_parallelism_threads = threads.inter_op_parallelism_threads
        self.config.gpu_options.visible_device_list = threads.gpu_options.visible_device_list
        return super().create_session()


class AccumulatingTrainer(HorovodTrainer):
    """Makes a step of `micro_batches` batches on every rank: gradients are averaged, exchanged and applied once.

    Counts of steps, the schedule and summaries are in these steps. BatchNorm normalizes each micro-batch by itself, and
    its moving averages are updated by each. tensorpack's AccumGradOptimizer would exchange gradients for every
    micro-batch, sums instead of averages, and counts micro-batches as steps.

    replays: makes so many updates of a step, each of all of its micro-batches. averages: follow each update.
    """

    def __init__(self, micro_batches: int, *, replays: Optional[Replays] = None, averages: Optional[Averages] = None):
        super().__init__()
        self.micro_batches, self.replays, self.averages = micro_batches, replays, averages

    def _setup_graph(self, input: InputSource, get_cost_fn: Callable, get_opt_fn: Callable) -> List[Any]:
        inner_allreduce = super().allreduce
        self._add: Optional[tf.Operation] = None

        def after_backward(grads: Gradients) -> Gradients:
            """Hold updates back, which are in place: one during the backward pass would change what the rest of it
            reads."""
            reduced = inner_allreduce(grads)
            with tf.control_dependencies([g for g, _ in grads]):
                return [(tf.identity(g), v) for g, v in reduced]

        def accumulated(grads: Gradients) -> Gradients:
            """Average the last micro-batch's gradients and those before it, over ranks too; then start anew."""
            kept = [tf.Variable(tf.zeros(v.shape, v.dtype.base_dtype), trainable=False, name='accumulated',
                                collections=[tf.GraphKeys.LOCAL_VARIABLES], use_resource=True) for _, v in grads]
            updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
            self._add = tf.group(*[k.assign_add(g) for k, (g, _) in zip(kept, grads)] + updates)
            means = [((k.read_value() + g) / self.micro_batches, v) for k, (g, v) in zip(kept, grads)]
            with tf.control_dependencies([mean for mean, _ in means]):
                reset = tf.group(*[k.assign(tf.zeros_like(k)) for k in kept])
            with tf.control_dependencies([reset]):
                means = [(tf.identity(mean), v) for mean, v in means]
            return inner_allreduce(means)

        exchanged = after_backward if self.micro_batches == 1 else accumulated
        replays = self.replays
        self.allreduce = exchanged if replays is None else lambda grads: exchanged(replays.take(grads))
        callbacks = super()._setup_graph(input, get_cost_fn, get_opt_fn)
        # without what goes with a whole step, such as its count
        self._update = tf.group(self.train_op, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        return callbacks

    def run_step(self) -> None:
        if self.replays is not None:
            self.replays.held.load(self.sess)
            for _ in range(self.replays.count - 1):
                self._run_micro_batches()
                self.sess.run(self._update)
                self._follow()
        self._run_micro_batches()
        super().run_step()
        self._follow()

    def _run_micro_batches(self) -> None:
        """Add up the gradients of all of a step's micro-batches but the last."""
        for number in range(self.micro_batches - 1):
            self.sess.run(self._add, {self.replays.held.slot: number} if self.replays is not None else None)

    def _follow(self) -> None:
        if self.averages is not None:
            self.averages.follow(self.sess)

    def draw(self) -> List[np.ndarray]:
        """Return a batch of the training stream, uint8 images and int32 labels, which is not trained on then."""
        if self.replays is not None:
            self.replays.held.load_last(self.sess)
        tower = self.towers.training()[0]
        return self.sess.run([tower.get_tensor('input'), tower.get_tensor('label')])
