"""The flags that say how an evaluation attacks: how they go together, and what can be told before TensorFlow is
loaded."""
import argparse
import os
from typing import Dict, List, NamedTuple

from attacks.table import ATTACKERS, check_aim
from evaluation.plan import LIKELIEST, RANDOM
from evaluation.target_file import read_targets
from runtime.errors import InputError
from runtime.own_code import check_code
from third_party.imagenet import Dataset
from third_party.subset import subset

EXAMPLE = 'examples.translation_invariant:TranslationInvariantAttacker'
MOST_RESTARTS = 10000
# What they are where they aren't given; of training too, whose attack is the paper's
DEFAULTS: Dict[str, object] = dict(attacker=['pgd'], attack_loss='ce', attack_goal='targeted', targets=RANDOM,
                                   num_targets=1, restarts=1, subset=None)


class Evaluated(NamedTuple):
    """The images that are evaluated, and {index: target label} where --targets names a file."""
    dataset: Dataset
    targets: Dict[int, int]


def check_attack_flags(options: argparse.Namespace) -> None:
    """Raise InputError for flags of an attack that don't go together, or name nothing."""
    of_training = [] if options.eval_directory else ['attack_goal']
    for flag in DEFAULTS:
        if getattr(options, flag) is not None and not options.eval and flag not in of_training:
            raise InputError('--%s goes with --eval' % flag.replace('_', '-'))
    if (options.restarts or 1) > MOST_RESTARTS:
        raise InputError('--restarts is at most %d' % MOST_RESTARTS)
    if options.attack_goal == 'untargeted':
        for flag in ('targets', 'num_targets'):
            if getattr(options, flag) is not None:
                raise InputError('--%s goes with targeted attacks, and --attack-goal is untargeted'
                                 % flag.replace('_', '-'))
    if (options.num_targets or 1) > 1 and options.targets not in (None, RANDOM, LIKELIEST):
        raise InputError('--num-targets %d goes with --targets random or likeliest: a file has one target for each '
                         'image' % options.num_targets)
    for attacker in options.attacker or []:
        if not attacker:
            raise InputError('--attacker %s: there is no name between two commas' % ','.join(options.attacker))
        if ':' not in attacker and attacker not in ATTACKERS:
            raise InputError('the attacker %s can\'t be used: one of %s, or module:Class is expected, such as %s'
                             % (attacker, ', '.join(ATTACKERS), EXAMPLE))


def check_attackers(attackers: List[str]) -> None:
    """Raise InputError where a module:Class can't be there."""
    for attacker in attackers:
        if ':' in attacker:
            check_code('the attacker', attacker, 'module:Class', EXAMPLE)


def evaluated_images(options: argparse.Namespace, whole: Dataset) -> Evaluated:
    """Return what of a validation set is evaluated. Raises InputError where --subset or --targets doesn't fit it, or it
    has too few classes for the attack."""
    if any(options.attack_iter):
        if options.num_targets >= len(whole.class_names):
            raise InputError('--num-targets %d: an image has %d wrong classes' % (options.num_targets,
                                                                                len(whole.class_names) - 1))
        check_aim(options.attack_loss, options.attack_goal, len(whole.class_names), options.num_targets)
    for flag, value in (('subset', options.subset), ('targets', options.targets)):
        known = value is None or value in (RANDOM, LIKELIEST) or flag == 'subset' and value.isdecimal()
        if not known and not os.path.exists(value):
            raise InputError('--%s %s: there is no such file, and it is not %s' % (
                flag, value, 'a number of images' if flag == 'subset' else ' or '.join((RANDOM, LIKELIEST))))
    dataset = subset(whole, options.data, options.subset) if options.subset else whole
    from_file = options.targets not in (RANDOM, LIKELIEST)
    return Evaluated(dataset, read_targets(options.targets, whole, dataset, options.data) if from_file else {})
