"""What a graph computes of weights alone, computed once instead of in every run of a session.

While a network's weights are constant, so are those with BatchNorm folded in, in another dtype, or as frozen_conv takes
them. An attack's loop has them computed outside of it; a single forward pass would compute them again each time.
"""
from typing import Any, Dict, List, Sequence

from runtime.compat import tf

SOURCES = ('Const', 'VariableV2', 'VarHandleOp')


def constant_inputs(outputs: Sequence[tf.Tensor]) -> List[tf.Tensor]:
    """Return the tensors of variables alone from which the rest of a graph makes `outputs`, with what is fed to it."""
    constant: Dict[Any, bool] = {}
    found: Dict[str, tf.Tensor] = {}
    waiting, seen = [t.op for t in outputs], set()
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        for tensor in op.inputs:
            if not is_constant(tensor.op, constant):
                waiting.append(tensor.op)
            elif tensor.op.type not in SOURCES:
                found[tensor.name] = tensor
        waiting += list(op.control_inputs)
    return list(found.values())


def is_constant(op: Any, known: Dict[Any, bool]) -> bool:
    """Tell whether an operation's results follow from variables alone. known: what was told before."""
    waiting = [op]
    while waiting:
        last = waiting[-1]
        unknown = [t.op for t in last.inputs if t.op not in known]
        if last in known:
            waiting.pop()
        elif last.type in SOURCES:
            known[last] = True
        elif may_change(last):
            known[last] = False
        elif unknown:
            waiting += unknown
        else:
            known[last] = all(known[t.op] for t in last.inputs)
    return known[op]


def may_change(op: Any) -> bool:
    """Tell whether an operation may have other results with the same inputs: it is fed, random, or in a loop."""
    return (op._get_control_flow_context() is not None or op.type.startswith('Placeholder') or
            (op.op_def.is_stateful and op.type != 'ReadVariableOp'))
