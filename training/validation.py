"""Evaluations between the epochs of a training: every rank attacks its share of the validation set."""
import functools
from typing import List, NamedTuple

import runtime.compat  # noqa: F401  before tensorpack

from tensorpack import Callback

from adv_model import AttackTower
from evaluation.attack import attack_batch, evaluate, with_progress
from evaluation.outcomes import Figures, Strength, Tally
from kernels.mode import native_mode
from nets import Network
from runtime.distributed import World
from third_party.imagenet import Dataset
from third_party.preparations import Preparation
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

    def strengths_after(self, epoch: int) -> List[Strength]:
        """Return the attacks after an epoch, 1, 2, ..., max_epoch."""
        iters = [0] if self.clean_only else attack_iters_after(epoch, self.max_epoch)
        return [Strength(k, self.epsilon, self.step_size) for k in iters]


class DistributedEvaluation(Callback):
    """Evaluates after every epoch, in float32 and from noise.

    catch_up: also before the first one, since the epoch that ended with its checkpoint was not evaluated any more.
    """

    _chief_only = False

    def __init__(self, validation: Validation, world: World, stopper: StopOnSignal, *, catch_up: bool):
        self.validation, self.world, self.stopper, self.catch_up = validation, world, stopper, catch_up

    def _setup_graph(self) -> None:
        mode = native_mode()
        self.tower = AttackTower(self.validation.network, self.validation.image_size, mode=mode, attack_mode=mode)

    def _before_train(self) -> None:
        if self.catch_up:
            self._trigger_epoch()

    def _trigger_epoch(self) -> None:
        dataset, strengths = self.validation.dataset, self.validation.strengths_after(self.epoch_num)
        tally = Tally(dataset.labels, len(strengths))
        attack = functools.partial(attack_batch, self.tower, self.trainer.sess, strengths=strengths)
        rounds = evaluate(attack, len(strengths), dataset, self.world, image_size=self.validation.image_size,
                          batch=self.validation.batch, preparation=self.validation.preparation)
        # When it is stopped, the checkpoint of this epoch is saved, and the training that goes on from it evaluates.
        if self.stopper.agreed():
            return
        for positions, _ in with_progress(rounds, tally, self.world, total=len(dataset),
                                          description='evaluation, epoch %d' % self.epoch_num):
            if positions.stop < len(dataset) and self.stopper.agreed():
                return
        for strength, figures in zip(strengths, tally.figures):
            self.report(strength, figures)

    def report(self, strength: Strength, figures: Figures) -> None:
        prefix = 'eval-clean' if strength.num_iter == 0 else 'eval-%dstep' % strength.num_iter
        put = self.trainer.monitors.put_scalar
        put(prefix + '/error-top1', figures.rate('wrong_top1'))
        put(prefix + '/error-top5', figures.rate('wrong_top5'))
        if strength.num_iter:
            put(prefix + '/attack-success-rate', figures.rate('successes'))
