"""TensorFlow, as both lanes see it: the only module that knows that 1.15 and 2.18 differ.

Import `tf` from here before anything else of tensorpack's; it is TensorFlow's v1 interface in graph mode.
"""
import logging
import os
import warnings
from typing import Any, Callable

# Set before TensorFlow loads: its notes about missing CUDA libraries would bury the one line that matters.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # tf.layers needs Keras 2, which is the package tf-keras
warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)
logging.getLogger('tensorflow').setLevel(logging.ERROR)

import tensorflow  # noqa: E402

tensorflow.compat.v1.disable_v2_behavior()
tensorflow.compat.v1.logging.set_verbosity(tensorflow.compat.v1.logging.ERROR)

from tensorpack.compat import tfv1 as tf  # noqa: E402

TF2 = int(tensorflow.__version__.split(".")[0]) >= 2
if TF2:
    tensorflow.global_variables = tf.global_variables  # tensorpack's HorovodTrainer calls it there


def xla_compile(function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)`, one tensor, computed by one XLA kernel."""
    return tf.xla.experimental.compile(function, inputs)[0]


def ask_for_determinism() -> None:
    """Of GPU kernels, before the first session: cuDNN's fastest gradients, and its choice of a kernel by time, vary."""
    for name, value in [('TF_CUDNN_DETERMINISTIC', '1'), ('TF_DETERMINISTIC_OPS', '1'), ('TF_CUDNN_USE_AUTOTUNE', '0')]:
        os.environ.setdefault(name, value)


def num_gpus() -> int:
    """How many GPUs TensorFlow can use. Doesn't initialise them, so that a session can still choose one."""
    return len(tensorflow.config.experimental.list_physical_devices('GPU'))


def has_gpu() -> bool:
    return num_gpus() > 0


def session_config() -> Any:
    """A ConfigProto for all sessions: a GPU's memory is taken as it is needed."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    return config
