"""Evaluations between the epochs of a training: every rank attacks its share of the validation set."""
import functools
from typing import List, NamedTuple, Optional

import runtime.compat  # noqa: F401  before tensorpack

from tensorpack import Callback

from adv_model import AttackTower
from evaluation.attack import attack_batch
from evaluation.outcomes import Figures, Strength, Tally
from evaluation.rounds import in_rounds, parts_of
from kernels.mode import native_mode
from nets import Network
from runtime.bars import tqdm
from runtime.distributed import World
from third_party.batches import validation_batches
from third_party.imagenet import Dataset
from third_party.preparations import Preparation
from training.averages import Averages
from training.callbacks import StopOnSignal
from training.schedule import attack_iters_after


class Validation(NamedTuple):
    """What is evaluated between epochs, and by which attacks."""
    network: Network
    dataset: Dataset
    image_size: int
    batch: int
    max_epoch: int
    epsilon: float
    step_size: float
    clean_only: bool
    preparation: Preparation
    goal: str = 'targeted'  # of attacks

    def strengths_after(self, epoch: int) -> List[Strength]:
        """Return the attacks after an epoch, 1, 2, ..., max_epoch."""
        iters = [0] if self.clean_only else attack_iters_after(epoch, self.max_epoch)
        return [Strength(k, self.epsilon, self.step_size) for k in iters]


class DistributedEvaluation(Callback):
    """Evaluates after every epoch, in float32 and from noise.

    catch_up: also before the first one, since the epoch that ended with its checkpoint was not evaluated any more.
    averages: are evaluated beside the weights.
    """

    _chief_only = False

    def __init__(self, validation: Validation, world: World, stopper: StopOnSignal, *, catch_up: bool,
                 averages: Optional[Averages] = None):
        self.validation, self.world, self.stopper, self.catch_up = validation, world, stopper, catch_up
        self.averages = averages

    def _setup_graph(self) -> None:
        mode = native_mode()
        self.tower = AttackTower(self.validation.network, self.validation.image_size, mode=mode, attack_mode=mode,
                                 goal=self.validation.goal)

    def _before_train(self) -> None:
        if self.catch_up:
            self._trigger_epoch()

    def _trigger_epoch(self) -> None:
        strengths = self.validation.strengths_after(self.epoch_num)
        evaluated = [('eval-', self.evaluate(strengths, 'evaluation, epoch %d' % self.epoch_num))]
        if self.averages is not None and evaluated[0][1] is not None:
            with self.averages.in_place(self.trainer.sess):
                evaluated.append(('eval-ema-', self.evaluate(strengths, 'averages, epoch %d' % self.epoch_num)))
        # all or nothing: what isn't there is evaluated by the training that goes on
        if evaluated[-1][1] is None:
            return
        for prefix, figures in evaluated:
            for strength, of_strength in zip(strengths, figures or ()):
                self.report(prefix + ('%dstep' % strength.num_iter if strength.num_iter else 'clean'), of_strength)

    def evaluate(self, strengths: List[Strength], description: str) -> Optional[List[Figures]]:
        """Return the figures of each strength; None when a signal came."""
        validation, world = self.validation, self.world
        dataset, image_size = validation.dataset, validation.image_size
        # When it is stopped, the checkpoint of this epoch is saved, and the training that goes on from it evaluates.
        if self.stopper.agreed():
            return None
        parts = parts_of(len(dataset), validation.batch)
        batches = validation_batches(dataset, parts[world.rank::world.size], image_size=image_size,
                                     preparation=validation.preparation)
        attack = functools.partial(attack_batch, self.tower, self.trainer.sess, strengths=strengths)
        tally = Tally(dataset.labels, len(strengths))
        with tqdm(total=len(dataset), desc=description, unit='img', disable=not world.is_chief,
                  mininterval=1.0) as bar:
            for positions, outcomes in in_rounds(parts, map(attack, batches), world, len(strengths)):
                tally.add(positions, outcomes)
                shown = tally.figures[-1]  # of the last strength
                bar.set_postfix_str('error %s, success %s' % (shown.text('wrong_top1', 4), shown.text('successes', 4)),
                                    refresh=False)
                bar.update(len(positions))
                if positions.stop < len(dataset) and self.stopper.agreed():
                    return None
        return tally.figures

    def report(self, prefix: str, figures: Figures) -> None:
        put = self.trainer.monitors.put_scalar
        put(prefix + '/error-top1', figures.rate('wrong_top1'))
        put(prefix + '/error-top5', figures.rate('wrong_top5'))
        if figures.targeted:
            put(prefix + '/attack-success-rate', figures.rate('successes'))
