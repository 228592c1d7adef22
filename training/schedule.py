"""What happens when in a training: the learning rate of a step, the evaluations after an epoch (Section 5 of the
paper)."""
import math
from typing import List, NamedTuple

# Section 5: 110 epochs; the rate, 0.1 for each 256 images of the total batch (1.6 for the paper's 4096), is divided by
# 10 at the 35th, 70th and 95th, and in the first 5 it rises to its peak
PUBLISHED_EPOCHS = 110
MILESTONES = (35, 70, 95)
WARM_UP_EPOCHS = 5
WARM_UP_START = 0.1
# steps: as above. cyclic: up to the peak at 2/5 of the epochs, and down to 0, like Wong et al. 2020, whose peak for
# CIFAR-10 is at half. cosine: warm-up, and half a cosine down to 0
SCHEDULES = ('steps', 'cyclic', 'cosine')
PEAK_EPOCH = PUBLISHED_EPOCHS * 2 // 5


def steps_in_epoch(images: int, total_batch: int) -> int:
    """Return how many steps are one pass over the training images: the nearest whole number, and at least 1.

    Exactly between two it is the even one, as numpy.round has it, which the published code uses.
    """
    return max(1, int(round(images / total_batch)))


class LearningRate(NamedTuple):
    """The schedule; for another number of epochs its milestones and warm-up scale with it.

    base_lr: per 256 images of the total batch, which is that of all ranks. kind: a name of SCHEDULES.
    """
    base_lr: float
    total_batch: int
    steps_per_epoch: int
    max_epoch: int = PUBLISHED_EPOCHS
    kind: str = 'steps'

    @property
    def peak(self) -> float:
        return self.base_lr * self.total_batch / 256

    def at(self, step: int) -> float:
        """Return the rate of the training's step 0, 1, ..."""
        progress = step * PUBLISHED_EPOCHS / (self.steps_per_epoch * self.max_epoch)  # in epochs of 110
        if self.kind == 'cyclic':
            return self.peak * max(0.0, min(progress / PEAK_EPOCH,
                                            (PUBLISHED_EPOCHS - progress) / (PUBLISHED_EPOCHS - PEAK_EPOCH)))
        warm_up = WARM_UP_EPOCHS if self.peak > WARM_UP_START else 0
        if progress < warm_up:
            return WARM_UP_START + (self.peak - WARM_UP_START) * progress / WARM_UP_EPOCHS
        if self.kind == 'cosine':
            part = min(1.0, (progress - warm_up) / (PUBLISHED_EPOCHS - warm_up))
            return self.peak * (1 + math.cos(math.pi * part)) / 2
        return self.peak * 0.1 ** sum(progress >= m for m in MILESTONES)


def attack_iters_after(epoch: int, max_epoch: int) -> List[int]:
    """List the attack strengths, in steps, to evaluate after an epoch (1, 2, ..., max_epoch); 0 is the clean
    evaluation."""
    iters = [0, 10]
    if epoch % 20 == 0:
        iters.append(50)
    if epoch % 10 == 0 or epoch > max_epoch - 5:
        iters.append(100)
    if epoch > max_epoch - 2:
        iters += [20, 30, 40, 50, 60, 70, 80, 90, 100]
    return sorted(set(iters))
