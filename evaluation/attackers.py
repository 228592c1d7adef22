"""Attackers as --attacker names them: the classes, what they must return, and what goes wrong in somebody's own."""
import contextlib
import inspect
import os
import re
import sys
from typing import Iterator, Type

from runtime.compat import tf

from adv_model import Attacker, AttackTower, PGDAttacker
from attacks.table import address_of
from runtime import compat
from runtime.errors import InputError, RunError
from runtime.fingerprint import sha256_of_files
from runtime.own_code import files_of, load_code, place_of


def load_attacker(name: str) -> Type[Attacker]:
    """Return the class of an attacker of the table, or that `module:Class` names; the module may lie in the current
    folder.

    Raises InputError where there is none, or it isn't made like PGDAttacker.
    """
    sys.modules.setdefault('compat', compat)  # attackers of before there were packages import `tf` from there
    attacker = load_code('the attacker', address_of(name))
    try:
        inspect.signature(attacker).bind(10, 16.0, 1.0, num_classes=1000, seed=0, loss_scale=1.0, xla=False)
    except (TypeError, ValueError) as e:
        raise InputError('the attacker %s can\'t be used, a class with the parameters of adv_model.PGDAttacker is '
                         'expected (%s: %s)' % (name, type(e).__name__, e))
    if not (inspect.isclass(attacker) and issubclass(attacker, Attacker)):
        raise InputError('the attacker %s is no subclass of adv_model.Attacker' % name)
    return attacker


def attacker_sha256(attacker: type) -> str:
    """Return the SHA-256 of the files that an attacker's class is in and uses, which need not be this project's."""
    files = files_of('%s:%s' % (attacker.__module__, attacker.__name__))
    return sha256_of_files(sorted({*map(os.path.realpath, files), os.path.realpath(inspect.getfile(attacker))}))


@contextlib.contextmanager
def errors_of_attacker(attacker: Type[Attacker], kind: Type[Exception]) -> Iterator[None]:
    """Make one line, an error of this `kind`, of what goes wrong in somebody's own attacker: it names the last line of
    its file that was run."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as e:  # whatever somebody else's class does
        if attacker is PGDAttacker:
            raise
        where = place_of(e, inspect.getfile(attacker))
        text = str(e).strip()
        of_op = re.search(r'^Node: .*\n(.+)', text, re.MULTILINE)  # TensorFlow 2 puts a page before what an op says
        raise kind('the attacker %s fails (%s: %s%s)' % (attacker.__name__, type(e).__name__,
                                                         of_op.group(1) if of_op else text.split('\n')[0], where))


def check_attack(tower: AttackTower) -> None:
    """Raise InputError where an attack does not return attacked images and target labels, as far as a graph tells."""
    if tower.takes_targets:
        result = tower.advanced if tower.shares_steps else tower.result
        returned = [(tower.start, tower.target), (result, tower.target)]
    else:
        returned = [tower.attacked]
    name = type(tower.attacker).__name__
    for pair in returned:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(tf.is_tensor, pair)):
            raise InputError('the attacker %s does not return two tensors, attacked images and target labels' % name)
        for what, tensor, like, fits in (('images', pair[0], tower.clean, pair[0].dtype.is_floating),
                                         ('target labels', pair[1], tower.label, pair[1].dtype.is_integer)):
            if not fits or not tensor.shape.is_compatible_with(like.shape):
                raise InputError('the attacker %s returns %s of %s %s, not of %s %s' % (
                    name, what, tensor.dtype.name, tensor.shape, like.dtype.name, like.shape))
