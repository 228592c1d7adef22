"""A network of one's own: its function builds it, and what comes of that is checked."""
from typing import TYPE_CHECKING

from runtime.compat import in_a_tower, in_control_flow, tf

from kernels.mode import Mode, constant_during_attack
from runtime.errors import InputError
from runtime.own_code import load_code, place_of

if TYPE_CHECKING:
    from nets import Network


class OtherClasses(InputError):
    """The function of a network of one's own made logits of another number of classes than it was given."""


def logits_of_own(network: 'Network', image: tf.Tensor, mode: Mode) -> tf.Tensor:
    """Compute the logits of a network of one's own by its function of images, number of classes and mode."""
    function = load_code('--arch', network.arch)
    if not callable(function):
        raise InputError('--arch %s is no function, but %r' % (network.arch, type(function).__name__))

    def build(x: tf.Tensor, how: Mode) -> tf.Tensor:
        try:
            logits = in_a_tower(lambda: function(x, network.num_classes, how), how.training)
        except InputError:
            raise
        except (Exception, SystemExit) as e:  # whatever somebody else's function does
            code = getattr(function, '__code__', None)
            raise InputError('--arch %s failed to build the network: %s: %s%s'
                             % (network.arch, type(e).__name__, str(e).split('\n')[0],
                                place_of(e, code.co_filename) if code else ''))
        if not tf.is_tensor(logits):
            raise InputError('--arch %s returned %s, not a tensor of logits, (N, %d)'
                             % (network.arch, type(logits).__name__, network.num_classes))
        shape = logits.shape.as_list() if logits.shape.rank is not None else []
        if len(shape) != 2 or shape[1] != network.num_classes:
            error = OtherClasses if len(shape) == 2 else InputError
            raise error('--arch %s returned a tensor of shape %s, not logits, (N, %d)'
                        % (network.arch, shape, network.num_classes))
        return tf.cast(logits, tf.float32)

    if in_control_flow():  # as in an attack's loop: variables can be used there but not made
        with constant_during_attack():
            build(tf.zeros([1] + image.shape[1:].as_list()), mode)
    return build(image, mode)
