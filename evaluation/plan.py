"""What an evaluation does, as its flags say it: which attacks it reports, and in which stages it runs them.

Every attack may begin several times: `restarts` times from other noise, towards each of `num_targets` labels. Stage 0
attacks all images from the first start. Every later stage is one more start of attacks that share their steps, and of
the images alone of which it can still change what is reported.
"""
import argparse
import itertools
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from evaluation.outcomes import Strength

RANDOM, LIKELIEST = 'random', 'likeliest'  # --targets; anything else is a file
WORST_CASE = 'worst_case'  # the attacker of a record over several


class Attack(NamedTuple):
    """An attack that is reported. The attacker is named as --attacker does it. targets: RANDOM, LIKELIEST or 'file';
    None of an untargeted one. shares_steps: a longer attack passes it on its way. finds_step_size: the attacker chooses
    its step size itself."""
    attacker: str
    strength: Strength
    loss: str = 'ce'
    goal: str = 'targeted'
    targets: Optional[str] = RANDOM
    num_targets: Optional[int] = 1
    restarts: int = 1
    shares_steps: bool = True
    finds_step_size: bool = False

    @property
    def step_used(self) -> Optional[float]:
        """Return the step size, in pixels; None where the attacker finds it itself, and of several attackers."""
        known = not (self.finds_step_size or self.attacker == WORST_CASE) or not self.strength.num_iter
        return self.strength.step_used if known else None

    @property
    def num_starts(self) -> int:
        return self.restarts * (self.num_targets or 1)


def how_attacked(attack: Mapping[str, Any]) -> str:
    """Say where an attack is not the paper's, leaving out its attacker: ', loss dlr'. attack: the fields of Attack."""
    words = dict(loss='loss %s', goal='%s', targets='targets: %s', num_targets='%d targets', restarts='%d restarts')
    usual = Attack('pgd', Strength(0))._asdict()
    return ''.join(', ' + text % attack[name] for name, text in words.items()
                   if attack.get(name) not in (None, usual[name]))


class Start(NamedTuple):
    """One of the times that an attack begins: which of its restarts, and towards which of its targets."""
    restart: int = 0
    target: int = 0


FIRST = Start()


class Stage(NamedTuple):
    """A pass over images: from this start, the attacks in these columns of all that are run."""
    start: Start
    columns: Tuple[int, ...]


def strengths_of(options: argparse.Namespace) -> List[Strength]:
    """Return the strengths that the flags ask for, in the order in which they are reported."""
    return [Strength(k, epsilon, options.attack_step_size)
            for epsilon in options.attack_epsilon for k in options.attack_iter]


def attacks_of(options: argparse.Namespace) -> List[Attack]:
    """Return the attacks that the flags ask for: every strength of every attacker."""
    targeted = options.attack_goal == 'targeted'
    targets = options.targets if options.targets in (RANDOM, LIKELIEST) else 'file'
    return [Attack(attacker, strength, options.attack_loss, options.attack_goal, targets if targeted else None,
                   options.num_targets if targeted else None, options.restarts)
            for attacker in options.attacker for strength in strengths_of(options)]


def attackers_in(attacks: Sequence[Attack]) -> List[str]:
    """Return the attackers' names, each once, in their order."""
    return list(dict.fromkeys(attack.attacker for attack in attacks))


def same_trajectory(strengths: Sequence[Strength]) -> List[List[Strength]]:
    """Group the strengths that differ in nothing but how far they go, by ascending steps."""
    def trajectory(s: Strength) -> Tuple[float, float]:
        return (s.epsilon, s.step_used) if s.num_iter else (0.0, 0.0)

    ordered = sorted(set(strengths), key=lambda s: (trajectory(s), s.num_iter))
    return [list(group) for _, group in itertools.groupby(ordered, trajectory)]


def trajectories(attacks: Sequence[Attack]) -> List[Tuple[int, ...]]:
    """Group the positions of attacks, but for those without a step, of the same attacker and trajectory, by ascending
    steps."""
    groups: List[Tuple[int, ...]] = []
    for attacker in attackers_in(attacks):
        column = {attack.strength: i for i, attack in enumerate(attacks) if attack.attacker == attacker}
        together = [tuple(column[s] for s in group) for group in same_trajectory(list(column)) if group[0].num_iter]
        shares = all(attack.shares_steps for attack in attacks if attack.attacker == attacker)
        groups += together if shares else [(i,) for group in together for i in group]
    return groups


def stages_of(attacks: Sequence[Attack]) -> List[Stage]:
    """Return the stages of an evaluation, one restart after the other."""
    starts = [Start(r, t) for r in range(attacks[0].restarts) for t in range(attacks[0].num_targets or 1)]
    groups = trajectories(attacks)
    return [Stage(starts[0], tuple(range(len(attacks))))] + [
        Stage(start, group) for start in starts[1:] for group in groups]


def worst_cases(attacks: Sequence[Attack]) -> List[Tuple[Attack, List[int]]]:
    """Return the records over several attackers, each with the positions of its attacks: all those of an epsilon that
    have at most so many steps. None for a single attacker."""
    if len(attackers_in(attacks)) == 1:
        return []
    strengths = dict.fromkeys(attack.strength for attack in attacks if attack.strength.num_iter)
    return [(attacks[0]._replace(attacker=WORST_CASE, strength=strength),
             [i for i, a in enumerate(attacks) if a.strength.epsilon == strength.epsilon and
              a.strength.num_iter <= strength.num_iter]) for strength in strengths]
