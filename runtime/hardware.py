"""What this machine computes with: GPUs, the CPU's units, and what a dtype costs where there are none for it."""
import logging
import os
from typing import Any, FrozenSet, Optional

from runtime.compat import USES_BFLOAT16_UNITS, tf

from runtime.cores import usable_cores

log = logging.getLogger(__name__)

BFLOAT16_FLAGS = frozenset(['avx512_bf16', 'amx_bf16'])  # as /proc/cpuinfo names them


def num_gpus() -> int:
    """Count the GPUs that TensorFlow can use, without initialising them: a session can still choose one."""
    return len(tf.config.experimental.list_physical_devices('GPU'))


def has_gpu() -> bool:
    return num_gpus() > 0


def session_config() -> Any:
    """Return the configuration that all sessions share: a GPU's memory is taken as it is needed.

    Where there is a quota of CPU time, there are as many threads as keep it busy: by itself TensorFlow counts cores.
    """
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if usable_cores() < len(os.sched_getaffinity(0)):
        config.intra_op_parallelism_threads = usable_cores()
        config.inter_op_parallelism_threads = max(2, usable_cores())
    return config


def cpu_flags() -> FrozenSet[str]:
    """Return what the machine's CPU can do, in the words of /proc/cpuinfo; nothing where there is no such file."""
    try:
        with open('/proc/cpuinfo') as f:
            return frozenset(next((line for line in f if line.startswith('flags')), '').split())
    except OSError:
        return frozenset()


def warn_of_cost(dtype: str, xla: bool, what: str = 'the attack') -> None:
    """Say where an attack, or `what` else there is, will not be the faster one in reduced precision."""
    cost = cost_of_dtype(dtype, xla, gpu=has_gpu(), cpu_flags=cpu_flags(), kernels=USES_BFLOAT16_UNITS, what=what)
    if cost:
        log.info(cost)


def cost_of_dtype(dtype: str, xla: bool, *, gpu: bool, cpu_flags: FrozenSet[str], kernels: bool,
                  what: str = 'the attack') -> Optional[str]:
    """Say what it costs that hardware or TensorFlow (`kernels`) can't use a dtype well; None where there is nothing to
    say."""
    if gpu or dtype == 'float32':
        return None
    if dtype == 'bfloat16' and not kernels:
        return 'TensorFlow 1 has no fast bfloat16 kernels: %s will be slower than in float32' % what
    if dtype == 'bfloat16' and not cpu_flags & BFLOAT16_FLAGS:
        return 'this CPU has no bfloat16 units (avx512_bf16 or amx_bf16): %s will be slower than in float32' % what
    if dtype == 'bfloat16' and xla:
        return 'XLA does not use a CPU\'s bfloat16 units: %s will be slower than without --xla' % what
    if dtype == 'float16':
        return 'TensorFlow has no fast float16 kernels for CPUs: %s will be many times slower than in float32' % what
    return None
