"""The weights of frozen_conv, put in its order once instead of in every run of a session.

An attack's loop has that done outside of it; a single pass over a few images would spend a third of its time on it.
Weights of TensorFlow's own convolutions are left alone: fed, they would lose the shapes by which TensorFlow fuses these
with what follows.
"""
from typing import List, Sequence, Set

from runtime.compat import tf

OP = 'FrozenWeights'  # its results follow from variables alone


def prepared_weights(outputs: Sequence[tf.Tensor]) -> List[tf.Tensor]:
    """Return the tensors of frozen_weights that `outputs` depend on. Their values may be computed once, and fed as long
    as the weights stay the same."""
    found: List[tf.Tensor] = []
    seen: Set[tf.Operation] = set()
    waiting = [t.op for t in outputs]
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        if op.type == OP:
            found += op.outputs
        else:
            waiting += [t.op for t in op.inputs] + list(op.control_inputs)
    return found
