"""tensorpack's HorovodTrainer, with this rank's share of threads, and with gradients accumulated over micro-batches."""
from typing import Any, Callable, List, Optional, Tuple

from runtime.compat import tf  # before tensorpack

from tensorpack.input_source import InputSource
from tensorpack.tfutils.sesscreate import NewSessionCreator
from tensorpack.train import HorovodTrainer

from runtime.distributed import World

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
    """

    def __init__(self, micro_batches: int):
        super().__init__()
        self.micro_batches = micro_batches

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

        self.allreduce = after_backward if self.micro_batches == 1 else accumulated
        return super()._setup_graph(input, get_cost_fn, get_opt_fn)

    def run_step(self) -> None:
        for _ in range(self.micro_batches - 1):
            self.sess.run(self._add)
        super().run_step()
