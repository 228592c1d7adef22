"""Before a long evaluation: do checkpoint, images and labels look as if they belonged together?

A sample of the validation images is classified clean, as they are and with their channels swapped. What looks wrong is
a warning, not an error: a bad network may be what somebody wants to measure.
"""
from typing import Callable, List, Sequence

import numpy as np

from runtime.distributed import World
from third_party.batches import validation_batches
from third_party.imagenet import Dataset
from third_party.preparations import Preparation

# Images, spread over the whole set: the first ones of ImageNet's are all of one class. A robust network, which loses
# some 12 points with its channels exchanged, is found out by 256 of them, and by 64 seldom.
SAMPLE = 256
FEW = 20  # with fewer images an error of 95% says little
HIGH_ERROR = 0.95
SIGNIFICANT = 3.3  # standard deviations: one false alarm in two thousand


def suspicions(predict: Callable[[np.ndarray], np.ndarray], dataset: Dataset, world: World, *, image_size: int,
               batch: int, preparation: Preparation) -> List[str]:
    """Say what looks wrong, one sentence each; nothing where all looks well. All ranks must call it.

    predict: the network, (N, S, S, 3) uint8 BGR images -> (N,) labels.
    """
    positions = sample(range(len(dataset)))
    mine = positions[world.rank::world.size]
    parts = [mine[i:i + batch] for i in range(0, len(mine), batch)]
    rows = [np.zeros((0, 3), np.int64)]
    ready: List[bool] = []
    changed: List[bool] = []

    def cut_and_look(image: np.ndarray, size: int) -> np.ndarray:
        cut = preparation.cut(image, size)
        ready.append(image.shape == cut.shape)
        changed.append(image.shape == cut.shape and not np.array_equal(image, cut))
        return cut

    looking = preparation._replace(cut=cut_and_look)

    def classify_mine() -> None:
        for b in validation_batches(dataset, parts, image_size=image_size, preparation=looking):
            seen = [predict(pixels) for pixels in (b.images, b.images[..., ::-1])]
            rows.append(np.stack([b.labels] + seen, axis=1).astype(np.int64))

    world.patiently(classify_mine)  # another rank may read, or compute, far longer
    found = judge(*world.gather(np.concatenate(rows)).T)
    if world.sum(sum(ready)) == len(positions) and world.sum(sum(changed)):
        found.append('the images have the network\'s size already, %dx%d, and are enlarged and cut all the same, which '
                     'blurs them: they are prepared as photos are for validation. --preprocess resize leaves them as '
                     'they are, as is usual for published sets of corrupted or attacked images'
                     % (image_size, image_size))
    return found


def sample(positions: Sequence) -> List:
    """Choose at most SAMPLE, spread over all."""
    return [positions[i] for i in np.unique(np.linspace(0, len(positions) - 1, SAMPLE).astype(int))]


def judge(labels: np.ndarray, predictions: np.ndarray, swapped: np.ndarray) -> List[str]:
    """Compare (N,) labels with predictions of the images and of those with swapped channels; say what looks wrong."""
    found = []
    right = predictions == labels

    def error(correct: np.ndarray) -> str:
        return '%.0f%% of %d images' % (100 * (1 - correct.mean()), len(labels))

    if more_often(swapped == labels, right, labels):
        found.append('RGB and BGR are likely swapped: the clean error is %s, and %s with red and blue exchanged. '
                     'The network is given BGR images: was its checkpoint trained on RGB, or are the files swapped?'
                     % (error(right), error(swapped == labels)))
    for shift in (1, -1):
        shifted = predictions == labels + shift
        if more_often(shifted, right, labels):
            found.append('labels are likely shifted: the clean error is %s, and %s if each label were %+d. Compare the '
                         'order of the classes (--classes, synsets.txt) with the one of the training'
                         % (error(right), error(shifted), shift))
    if not found and len(labels) >= FEW and 1 - right.mean() > HIGH_ERROR:
        found.append('the clean error is %s. Look at: the checkpoint (was it trained?), the class order (--classes, '
                     'synsets.txt, the folders\' names), --image-size, and whether the images are BGR photos'
                     % error(right))
    return found


def more_often(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> bool:
    """Tell whether `a` is true clearly more often than `b`: McNemar's test on where they differ.

    In several classes, since a network that always says the same may by chance have the more frequent one.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return (only_a > only_b and (only_a - only_b) ** 2 > SIGNIFICANT ** 2 * (only_a + only_b) and
            len(np.unique(labels[a & ~b])) > 2)
