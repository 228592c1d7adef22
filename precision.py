"""What the attack computes in, and what that costs where the hardware has no units for it."""
import sys
from typing import Any, Dict, FrozenSet, Optional

from compat import USES_BFLOAT16_UNITS, has_gpu, tf
from distributed import cpu_flags
from resnet_model import native_mode

FLOAT16_LOSS_SCALE = 128.0
BFLOAT16_FLAGS = frozenset(['avx512_bf16', 'amx_bf16'])  # as /proc/cpuinfo names them


def attack_settings(dtype: str = 'float32', xla: bool = False) -> Dict[str, Any]:
    """How the attacker computes, as keyword arguments: `attack_mode`, `xla`, `loss_scale`.

    The image, its steps and the loss stay in float32 whatever `dtype` says; it is what features and weights are in.
    """
    return dict(attack_mode=native_mode()._replace(dtype=tf.as_dtype(dtype)), xla=xla,
                loss_scale=FLOAT16_LOSS_SCALE if dtype == 'float16' else 1.0)


def warn_of_cost(dtype: str, xla: bool) -> None:
    """One line on stderr where an attack in reduced precision will not be the faster one."""
    cost = cost_of_dtype(dtype, xla, gpu=has_gpu(), cpu_flags=cpu_flags(), kernels=USES_BFLOAT16_UNITS)
    if cost:
        print('main.py: note: ' + cost, file=sys.stderr, flush=True)


def cost_of_dtype(dtype: str, xla: bool, *, gpu: bool, cpu_flags: FrozenSet[str], kernels: bool) -> Optional[str]:
    """What it costs that hardware or TensorFlow (`kernels`) can't use a dtype well; None where there is nothing to say.
    """
    if gpu or dtype == 'float32':
        return None
    if dtype == 'bfloat16' and not kernels:
        return 'TensorFlow 1 has no fast bfloat16 kernels: the attack will be slower than in float32'
    if dtype == 'bfloat16' and not cpu_flags & BFLOAT16_FLAGS:
        return 'this CPU has no bfloat16 units (avx512_bf16 or amx_bf16): the attack will be slower than in float32'
    if dtype == 'bfloat16' and xla:
        return 'XLA does not use a CPU\'s bfloat16 units: the attack will be slower than without --xla'
    if dtype == 'float16':
        return 'TensorFlow has no fast float16 kernels for CPUs: the attack will be many times slower than in float32'
    return None
