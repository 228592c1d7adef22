"""TensorFlow, as both lanes see it: the only module that asks which version it is.

Import `tf` from here before anything else of tensorpack's; it is TensorFlow's v1 interface in graph mode.
"""
import logging
import os
import warnings
from typing import Any, Callable, Sequence

# Set before TensorFlow loads: its notes about missing CUDA libraries would bury the one line that matters.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # tf.layers needs Keras 2, which is the package tf-keras
warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)
logging.getLogger('tensorflow').setLevel(logging.ERROR)

import tensorflow  # noqa: E402

tensorflow.compat.v1.disable_v2_behavior()
tensorflow.compat.v1.logging.set_verbosity(tensorflow.compat.v1.logging.ERROR)

from tensorflow.python.ops import control_flow_util, gen_nn_ops  # noqa: E402
from tensorpack.compat import tfv1 as tf  # noqa: E402
from tensorpack.tfutils import tower  # noqa: E402

TF2 = int(tensorflow.__version__.split(".")[0]) >= 2
USES_BFLOAT16_UNITS = TF2  # of CPUs; without oneDNN the kernels convert number by number
FAST_CONVOLUTION_GRADIENTS = TF2  # on CPUs; those of TensorFlow 1 take 2 to 5 times as long as the convolution
if TF2:
    tensorflow.global_variables = tf.global_variables  # tensorpack's HorovodTrainer calls it there


def xla_compile(function: Callable, *inputs: Any) -> Any:
    """Compute `function(*inputs)`, a tensor or a list of several, by one XLA kernel."""
    outputs = tf.xla.experimental.compile(function, inputs)
    return outputs if len(outputs) > 1 else outputs[0]


def in_xla() -> bool:
    """Tell whether what is added to the graph now is for `xla_compile`."""
    context = tf.get_default_graph()._get_control_flow_context()
    return context is not None and control_flow_util.GetContainingXLAContext(context) is not None


def in_control_flow() -> bool:
    """Tell whether what is added to the graph now is for a loop or for `xla_compile`, where variables can't be made."""
    return tf.get_default_graph()._get_control_flow_context() is not None


def in_a_tower(build: Callable[[], Any], training: bool) -> Any:
    """Return `build()`, whose tensorpack layers find a tower that trains, or one that doesn't.

    A training's attack is in its tower, and there nothing trains; where variables are listed there is no tower at all.
    """
    before = tower.get_current_tower_context()
    if before is not None and before.is_training == training:
        return build()
    try:
        tower._CurrentTowerContext = tower.TowerContext('', is_training=training)  # not entered: its name is of no use
        return build()
    finally:
        tower._CurrentTowerContext = before


def depends_on(tensors: Sequence[Any], source: Any, *, but_for: Any) -> bool:
    """Tell whether the graph leads from `source` to one of the tensors, other than by way of the tensor `but_for`."""
    seen, waiting = {tf.convert_to_tensor(but_for).op}, [t.op for t in tensors]
    while waiting:
        op = waiting.pop()
        if op is source.op:
            return True
        if op not in seen:
            seen.add(op)
            waiting += [t.op for t in op.inputs] + list(op.control_inputs)
    return False


def ask_for_determinism() -> None:
    """Have GPUs compute the same each time, before the first session: cuDNN's fastest gradients vary, and its choice of
    one. In TensorFlow 2 TF_DETERMINISTIC_OPS does more: it refuses the gradient of BatchNorm in test mode, which
    attacks on networks of one's own may need."""
    settings = {'TF_CUDNN_DETERMINISTIC': '1', 'TF_CUDNN_USE_AUTOTUNE': '0'}
    if not TF2:
        settings['TF_DETERMINISTIC_OPS'] = '1'
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def is_deterministic() -> bool:
    """Tell whether TF_DETERMINISTIC_OPS has TensorFlow 2 refuse what is not the same each time."""
    return TF2 and os.environ.get('TF_DETERMINISTIC_OPS', '').lower() in ('1', 'true')


def seed_where_deterministic(seed: int) -> None:
    """Seed what is random in the default graph where TensorFlow refuses it otherwise. Elsewhere what has no seed of its
    own is another one in each process."""
    if is_deterministic():
        tf.set_random_seed(seed)


def max_pool_gradient(x: Any, pooled: Any, upstream: Any, padding: str) -> Any:
    """Return the gradient of 3x3/2 max-pooling of NHWC features, padding SAME or VALID, with respect to `x`.

    TensorFlow 2 has a fast kernel for it, which it takes when it sees the pooling before its gradient in the graph; in
    a `while_loop`, which is a circle, that is a matter of chance. So here both are in a function of their own, which
    has an order. Pooling again costs little beside the slow kernel.
    """
    if not TF2:
        return gradient_of_pooling(x, pooled, upstream, padding)

    def pool_again(features: Any, gradient: Any) -> Any:
        return gradient_of_pooling(features, tf.nn.max_pool(features, [1, 3, 3, 1], [1, 2, 2, 1], padding), gradient,
                                   padding)
    in_order = tensorflow.function(pool_again, autograph=False, experimental_attributes={'_noinline': True})
    gradient = in_order(x, upstream)
    gradient.set_shape(x.shape)
    return gradient


def gradient_of_pooling(x: Any, pooled: Any, upstream: Any, padding: str) -> Any:
    return gen_nn_ops.max_pool_grad(x, pooled, upstream, [1, 3, 3, 1], [1, 2, 2, 1], padding)
