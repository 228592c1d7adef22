"""How far an evaluation is: of every image and attack what its first start did, and the worst of all starts so far.

What a stage attacks follows from the outcomes of those before it alone. So an evaluation that is continued goes on with
the same images, and a journal that was kept of it can be checked.
"""
from typing import List, NamedTuple, Optional, Sequence

import numpy as np

from evaluation.outcomes import OUTCOME, Figures, count, effect, is_decided, worst_of
from evaluation.plan import Attack, stages_of, trajectories, worst_cases
from runtime.errors import InputError


class Work(NamedTuple):
    """What is next: a stage, the positions of all of its images, and how many of these are done. effects: what earlier
    starts did to each, (images, columns of the stage); nothing in the first stage. A form in JSON."""
    stage: int
    positions: List[int]
    done: int
    effects: List[List[int]]


class Column(NamedTuple):
    """What became of every image under an attack that is reported: (N,) of OUTCOME for the first start, and for the
    worst of all; how many starts were run, (N,); and how many steps of an image these took."""
    attack: Attack
    first: np.ndarray
    worst: np.ndarray
    starts: np.ndarray
    image_steps: int


class Course:
    """Keeps the outcomes of an evaluation, and says what is to be done next.

    Args:
        labels: of all images that are evaluated, by position. attacks: those that are run.
    """

    def __init__(self, labels: Sequence[int], attacks: Sequence[Attack]):
        self.attacks, self.stages = attacks, stages_of(attacks)
        self.labels = np.array(labels, np.int32)
        self._first, self._worst = [np.zeros((len(labels), len(attacks)), OUTCOME) for _ in range(2)]
        self._starts = np.zeros((len(labels), len(attacks)), np.int32)
        self._stage, self._done, self._positions = 0, 0, np.arange(len(labels))

    @property
    def num_done(self) -> int:
        """Return how many images, from the first on, have had their first start."""
        return self._done if self._stage == 0 else len(self.labels)

    def next(self) -> Optional[Work]:
        """Return what is to be done; None when all is done."""
        self._go_on()
        if self._done == len(self._positions):
            return None
        effects: List[List[int]] = []
        if self._stage:
            columns = self._worst[self._positions][:, list(self.stages[self._stage].columns)]
            effects = effect(self.labels[self._positions][:, None], columns).tolist()
        return Work(self._stage, self._positions.tolist(), self._done, effects)

    def _go_on(self) -> None:
        """Begin the next stage that has something to do, where this one is through."""
        while self._done == len(self._positions) and self._stage + 1 < len(self.stages):
            self._stage, self._done = self._stage + 1, 0
            self._positions = self._left(self.stages[self._stage].columns)

    def _left(self, columns: Sequence[int]) -> np.ndarray:
        """Return the positions of images of which one of these attacks can still change what is reported."""
        decided = is_decided(self.labels[:, None], self._worst[:, list(columns)])
        return np.flatnonzero(~decided.all(axis=1))

    def add(self, stage: int, positions: Sequence[int], outcomes: np.ndarray) -> None:
        """Keep what became of the next images, (len(positions), columns of the stage) of OUTCOME. Raises InputError
        where others are next."""
        self._go_on()
        rows = np.array(positions, np.int64)
        expected = self._positions[self._done:self._done + len(rows)]
        if stage != self._stage or not len(rows) or not np.array_equal(rows, expected):
            raise InputError('stage %d with the images %s, ... is not what follows from the outcomes before it'
                             % (stage, ', '.join(map(str, rows[:3]))))
        for column, outcome in zip(self.stages[stage].columns, outcomes.T):
            if stage == 0:
                self._first[rows, column] = self._worst[rows, column] = outcome
                self._starts[rows, column] = 1
                continue
            # an image may be here for another strength alone: figures of one don't depend on which others there are
            left = ~is_decided(self.labels[rows], self._worst[rows, column])
            at = rows[left]
            self._worst[at, column] = worst_of(self.labels[at], self._worst[at, column], outcome[left])
            self._starts[at, column] += 1
        self._done += len(rows)

    def columns(self) -> List[Column]:
        """Return what became of every image, for each attack and then for the worst cases over several attackers."""
        found = [Column(attack, self._first[:, i], self._worst[:, i], self._starts[:, i],
                        int(self._starts[:, i].sum()) * attack.strength.num_iter)
                 for i, attack in enumerate(self.attacks)]
        return found + [self._worst_case(attack, parts) for attack, parts in worst_cases(self.attacks)]

    def _worst_case(self, attack: Attack, parts: Sequence[int]) -> Column:
        # without a step last, as it has no target
        ordered = sorted(parts, key=lambda i: self.attacks[i].strength.num_iter == 0)
        first, worst = self._first[:, ordered[0]].copy(), self._worst[:, ordered[0]].copy()
        for i in ordered[1:]:
            first = worst_of(self.labels, first, self._first[:, i])
            worst = worst_of(self.labels, worst, self._worst[:, i])
        # of those that share their steps the longest one took the time of all
        longest = [max(run, key=lambda i: self.attacks[i].strength.num_iter)
                   for run in ([i for i in group if i in parts] for group in trajectories(self.attacks)) if run]
        for outcomes, kept in ((first, self._first), (worst, self._worst)):
            outcomes['seconds'] = kept[:, longest]['seconds'].sum(axis=1)
        starts = self._starts[:, longest]
        steps = sum(int(starts[:, n].sum()) * self.attacks[i].strength.num_iter for n, i in enumerate(longest))
        return Column(attack, first, worst, starts.sum(axis=1), steps)

    def figures_so_far(self) -> Figures:
        """Return the figures of the last of `columns`, over the images that have had their first start."""
        done = slice(0, self.num_done)
        last = worst_cases(self.attacks)
        worst = self._worst_case(*last[-1]).worst if last else self._worst[:, -1]
        return count(self.labels[done], worst[done])
