"""What happens when in a training: the learning rate of a step, the evaluations after an epoch (Section 5 of the
paper)."""
from typing import List, NamedTuple

# Section 5: 110 epochs; the rate, 0.1 for each 256 images of the total batch (1.6 for the paper's 4096), is divided by
# 10 at the 35th, 70th and 95th, and in the first 5 it rises to its peak
PUBLISHED_EPOCHS = 110
MILESTONES = (35, 70, 95)
WARM_UP_EPOCHS = 5
WARM_UP_START = 0.1


def steps_in_epoch(images: int, total_batch: int) -> int:
    """Return how many steps are one pass over the training images: the nearest whole number, and at least 1.

    Exactly between two it is the even one, as numpy.round has it, which the published code uses.
    """
    return max(1, int(round(images / total_batch)))


class LearningRate(NamedTuple):
    """The schedule; for another number of epochs its milestones and warm-up scale with it.

    base_lr: per 256 images of the total batch, which is that of all ranks.
    """
    base_lr: float
    total_batch: int
    steps_per_epoch: int
    max_epoch: int = PUBLISHED_EPOCHS

    @property
    def peak(self) -> float:
        return self.base_lr * self.total_batch / 256

    def at(self, step: int) -> float:
        """Return the rate of the training's step 0, 1, ..."""
        progress = step * PUBLISHED_EPOCHS / (self.steps_per_epoch * self.max_epoch)  # in epochs of 110
        if progress < WARM_UP_EPOCHS and self.peak > WARM_UP_START:
            return WARM_UP_START + (self.peak - WARM_UP_START) * progress / WARM_UP_EPOCHS
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
