"""The attacks by name: a new attacker, or a new loss, is a line in one of the tables. TensorFlow isn't loaded.

    load_code('the attacker', address_of('apgd'))
    check_aim('dlr', 'targeted', num_classes=10)
"""
from typing import Dict, NamedTuple

from runtime.errors import InputError

# name -> module:Class of a subclass of adv_model.Attacker
ATTACKERS: Dict[str, str] = {
    'pgd': 'adv_model:PGDAttacker',
    'momentum': 'attacks.momentum:MomentumAttacker',
    'apgd': 'attacks.apgd:APGDAttacker',
}

# What an attack wants: that an image is taken for its target label, or for any but its own
GOALS = ('targeted', 'untargeted')


class Loss(NamedTuple):
    """What there is to know about a loss before its function is called."""
    function: str  # of losses.py
    untargeted: int  # the fewest classes that it is defined for, with either goal
    targeted: int
    needs_label: bool = False  # also of a targeted attack, whose target is enough for the others


LOSSES: Dict[str, Loss] = {
    'ce': Loss('cross_entropy', untargeted=2, targeted=2),
    'margin': Loss('margin', untargeted=2, targeted=2),
    'dlr': Loss('difference_of_logits_ratio', untargeted=3, targeted=4, needs_label=True),
}


def address_of(attacker: str) -> str:
    """Return the module:Class of an attacker's name; one's own is a module:Class already.

    Raises InputError for a name that is not in the table.
    """
    if ':' in attacker:
        return attacker
    if attacker not in ATTACKERS:
        raise InputError('no attacker %r; choose one of %s, or module:Class of one\'s own'
                         % (attacker, ', '.join(ATTACKERS)))
    return ATTACKERS[attacker]


def fewest_classes(loss: str, goal: str) -> int:
    """Return how many classes a network must have for a loss of LOSSES and a goal of GOALS."""
    return getattr(LOSSES[loss], goal)


def check_aim(loss: str, goal: str, num_classes: int, num_targets: int = 1) -> None:
    """Raise InputError where there are no such loss and goal, or a network has too few classes for them."""
    for what, name, known in (('loss', loss, LOSSES), ('goal', goal, GOALS)):
        if name not in known:
            raise InputError('no %s %r of an attack; choose one of %s' % (what, name, ', '.join(known)))
    fewest = fewest_classes(loss, goal)
    if num_classes < fewest:
        raise InputError('the loss %s of %s attack needs %d classes, and the network has %d: choose another loss'
                         % (loss, 'an untargeted' if goal == 'untargeted' else 'a targeted', fewest, num_classes))
    if num_targets != 1 and not (goal == 'targeted' and 1 <= num_targets < num_classes):
        raise InputError('%d targets: a targeted attack on %d classes has from 1 to %d, an untargeted one none'
                         % (num_targets, num_classes, num_classes - 1))
