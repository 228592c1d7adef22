"""How a network is computed: layout, dtype, training or not, by which kernels. Which network it is stands in
nets.py."""
from typing import Any, ContextManager, Dict, List, NamedTuple, Optional

from runtime.compat import in_xla, tf

from runtime.hardware import has_gpu

FLOAT16_LOSS_SCALE = 128.0  # of the loss whose gradient an attack in float16 takes: small gradients would vanish there


class Mode(NamedTuple):
    """How to compute a network.

    Outside of training weights are constants: gradients reach the image, and on CPUs (frozen_layers.py) nothing else.
    """
    training: bool = False  # BatchNorm uses (and tracks) the statistics of the batch; otherwise the tracked ones
    data_format: str = 'NHWC'  # or 'NCHW', the GPU's layout
    dtype: tf.DType = tf.float32  # of activations and of conv and linear weights; variables are float32
    plain: bool = False  # layer by layer by TensorFlow's kernels alone, which the fast ways are compared with

    @property
    def folds_batch_norm(self) -> bool:
        """Tell whether BatchNorm is computed as a part of the convolution before it.

        In float16 it stays apart, because folded weights may leave that dtype's range; bfloat16 has float32's.
        """
        return not (self.training or self.plain or self.dtype == tf.float16)


def native_mode(data_format: Optional[str] = None) -> Mode:
    """Return the mode of float32 inference in a layout; by default the device's own: NCHW on a GPU, NHWC on a CPU.

    Raises ValueError for another layout.
    """
    if data_format not in (None, 'NHWC', 'NCHW'):
        raise ValueError('data_format is NHWC or NCHW, not %r' % (data_format,))
    return Mode(data_format=data_format or ('NCHW' if has_gpu() else 'NHWC'))


def attack_settings(dtype: str = 'float32', xla: bool = False) -> Dict[str, Any]:
    """Return how an attacker computes, as keyword arguments: `attack_mode`, `xla`, `loss_scale`.

    The image, its steps and the loss stay in float32 whatever `dtype` says; it is what features and weights are in.
    """
    return dict(attack_mode=native_mode()._replace(dtype=tf.as_dtype(dtype)), xla=xla,
                loss_scale=FLOAT16_LOSS_SCALE if dtype == 'float16' else 1.0)


def computes_on_cpu() -> bool:
    """Tell whether operations of the graph that is being built run on the CPU one by one, where ops of this project's
    own can be among them, and not on a GPU or compiled by XLA."""
    return not (in_xla() or has_gpu())


def constant_during_attack() -> ContextManager:
    """Return a scope for what depends on weights alone, which are constant while a batch is attacked.

    It puts the operations outside of the attack's `while_loop` (and of an XLA cluster), where they run once per attack
    instead of once per step. Variables are created here too: inside of a loop they could not be initialised.
    """
    return tf.control_dependencies(None)


# --- sizes of feature maps, in either layout -------------------------------------------------------------------------

def num_channels(x: tf.Tensor, mode: Mode) -> int:
    return int(x.shape[3 if mode.data_format == 'NHWC' else 1])


def num_positions(x: tf.Tensor, mode: Mode) -> int:
    height, width = x.shape[1:3] if mode.data_format == 'NHWC' else x.shape[2:4]
    return int(height) * int(width)


def spatial(values: List[int], mode: Mode) -> List[int]:
    """Return [height, width] with 1 for batch and channels, in the mode's layout."""
    return [1] + values + [1] if mode.data_format == 'NHWC' else [1, 1] + values


def pad_positions(x: tf.Tensor, width: int, mode: Mode, value: float = 0.0) -> tf.Tensor:
    """Put `width` positions of this value on all four sides of a feature map."""
    return tf.pad(x, [[0 if n == 1 else width] * 2 for n in spatial([0, 0], mode)], constant_values=value)


def positions_axes(mode: Mode) -> List[int]:
    """Return the axes of height and width."""
    return [1, 2] if mode.data_format == 'NHWC' else [2, 3]
