"""Runs the stages of an evaluation on all ranks: the chief knows what is next, all attack their share of it."""
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from runtime.compat import tf

import numpy as np

from adv_model import AttackTower
from evaluation.attack import Aims, Saver, attack_batch
from evaluation.course import Course, Work
from evaluation.outcomes import OUTCOME
from evaluation.plan import Attack, Start, attackers_in, stages_of
from evaluation.rounds import in_rounds, parts_of
from runtime.bars import tqdm
from runtime.distributed import World
from third_party.batches import Batch, validation_batches
from third_party.imagenet import Dataset
from third_party.preparations import Preparation


class Arms(NamedTuple):
    """Holds what attacks a batch: a tower, and what saves images, for each attacker by name, and the session of all."""
    towers: Dict[str, AttackTower]
    session: tf.Session
    savers: Mapping[str, Saver]
    aims: Aims

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the labels, (N,), that the network gives to a batch, -1 where its logits are no numbers."""
        tower = next(iter(self.towers.values()))
        return self.session.run(tower.prediction, {tower.image: images})

    def attack(self, attacks: List[Attack], start: Start, batch: Batch, before: Optional[np.ndarray]) -> np.ndarray:
        """Return what becomes of a batch, (N, number of attacks) of OUTCOME. before: as of attack_batch."""
        outcomes = np.zeros((len(batch.labels), len(attacks)), OUTCOME)
        for attacker in attackers_in(attacks):
            mine = [i for i, attack in enumerate(attacks) if attack.attacker == attacker]
            outcomes[:, mine] = attack_batch(
                self.towers[attacker], self.session, batch, [attacks[i].strength for i in mine],
                self.savers.get(attacker), start=start, aims=self.aims,
                before=None if before is None else before[:, mine])
        return outcomes


def run_stages(arms: Arms, course: Optional[Course], attacks: List[Attack], dataset: Dataset, world: World, *,
               image_size: int, batch: int, preparation: Preparation) -> Iterator[Tuple[int, List[int], np.ndarray]]:
    """Attack all that the chief's course says, in full batches of every rank.

    Yields, on all ranks alike, the stage, the next positions, and what became of these images, which the chief is to
    add to its course. All ranks must iterate to the end.
    """
    stages = stages_of(attacks)
    while True:
        told = world.from_chief(course.next() if course else None)
        if told is None:
            return
        work = Work(*told)
        stage = stages[work.stage]
        of_stage = [attacks[i] for i in stage.columns]
        rounds = rounds_of(arms, work, of_stage, stage.start, dataset, world, image_size=image_size, batch=batch,
                           preparation=preparation)
        name = 'evaluation' if work.stage == 0 else '%s, restart %d, target %d' % (
            of_stage[0].attacker, stage.start.restart + 1, stage.start.target + 1)
        with tqdm(total=len(work.positions), initial=work.done, desc=name, unit='img',
                  disable=not world.is_chief, mininterval=1.0, leave=work.stage == 0) as bar:
            for positions, outcomes in rounds:
                yield work.stage, positions, outcomes
                if course:
                    shown = course.figures_so_far()
                    bar.set_postfix_str('error %s, success %s' % (shown.text('wrong_top1', 4),
                                                                  shown.text('successes', 4)), refresh=False)
                bar.update(len(positions))


def rounds_of(arms: Arms, work: Work, attacks: List[Attack], start: Start, dataset: Dataset, world: World, *,
              image_size: int, batch: int, preparation: Preparation) -> Iterator[Tuple[List[int], np.ndarray]]:
    """Attack what is left of a stage, of these attacks; yield positions and outcomes, as run_stages."""
    parts = parts_of(len(work.positions), batch, work.done)
    mine = parts[world.rank::world.size]
    batches = validation_batches(dataset, [[work.positions[i] for i in part] for part in mine], image_size=image_size,
                                 preparation=preparation)

    def attack(part: range, images: Batch) -> np.ndarray:
        before = np.array(work.effects[part.start:part.stop], np.int8) if work.stage else None
        return arms.attack(attacks, start, images, before)

    for part, outcomes in in_rounds(parts, map(attack, mine, batches), world, len(attacks)):
        yield work.positions[part.start:part.stop], outcomes
