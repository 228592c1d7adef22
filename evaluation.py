"""White-box evaluation: attack every validation image, count errors and successes.

An image's target label and noise depend on the seed and on its position in the sorted validation set alone, so the
figures don't depend on the batch size or the number of ranks.
"""
import itertools
import time
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from adv_model import PGDAttacker, effective_step_size, is_target, is_wrong, scale_pixels
from compat import tf
from distributed import World
from nets import Network
from resnet_model import Mode
from third_party.batches import Batch


class Strength(NamedTuple):
    """An attack: steps (0 is no attack), and budget and step size in pixels."""
    num_iter: int
    epsilon: float = 16.0
    step_size: float = 1.0

    @property
    def step_used(self) -> float:
        return effective_step_size(self.num_iter, self.epsilon, self.step_size) if self.num_iter else 0.0


class Outcome(NamedTuple):
    """Of an attack on a batch: three times (N,) booleans, and what it took from its start on."""
    wrong_top1: np.ndarray
    wrong_top5: np.ndarray
    success: np.ndarray
    seconds: float


class Figures(NamedTuple):
    """Counts over images; add and divide them for rates. `seconds` are those of all ranks, one after the other."""
    num_images: int = 0
    wrong_top1: int = 0
    wrong_top5: int = 0
    successes: int = 0
    seconds: float = 0.0

    def rate(self, count: str) -> float:
        """A count as a fraction of the images; nan for none."""
        return getattr(self, count) / self.num_images if self.num_images else float('nan')

    def plus(self, outcome: Outcome) -> 'Figures':
        return Figures(self.num_images + len(outcome.wrong_top1), self.wrong_top1 + int(outcome.wrong_top1.sum()),
                       self.wrong_top5 + int(outcome.wrong_top5.sum()), self.successes + int(outcome.success.sum()),
                       self.seconds + outcome.seconds)


class AttackTower:
    """Placeholders and tensors of one tower: the start of an attack, and some steps from any point of it.

    The attack of a batch can be read off on its way: one of 100 steps of size 1 passes the result of 50 of them.
    Build it in the graph that has, or will get, the network's variables.
    """

    def __init__(self, network: Network, image_size: int, *, mode: Mode, attack_mode: Mode, seed: int = 0,
                 xla: bool = False, loss_scale: float = 1.0):
        with tf.name_scope('evaluation'):
            self.image = tf.placeholder(tf.uint8, [None, image_size, image_size, 3], 'image')
            self.label = tf.placeholder(tf.int32, [None], 'label')
            self.index = tf.placeholder(tf.int64, [None], 'index')
            self.num_iter = tf.placeholder(tf.int32, [], 'num-iter')  # of the whole attack
            self.steps = tf.placeholder(tf.int32, [], 'steps')  # of those, how many now
            self.epsilon = tf.placeholder(tf.float32, [], 'epsilon')
            self.step_size = tf.placeholder(tf.float32, [], 'step-size')
            attacker = PGDAttacker(self.num_iter, self.epsilon, self.step_size, num_classes=network.num_classes,
                                   seed=seed, xla=xla, loss_scale=loss_scale)
            self.clean = scale_pixels(self.image)
            self.target = attacker.targets(self.label, self.index)
            self.start = attacker.start(self.clean, self.index)
            self.current = tf.placeholder(tf.float32, self.clean.shape, 'current')
            self.aim = tf.placeholder(tf.int32, [None], 'aim')
            self.advanced = attacker.iterate(self.current, self.clean, self.aim,
                                             lambda x: network.logits(x, attack_mode), num_iter=self.steps)
            self.advanced.set_shape(self.clean.shape)
            logits = network.logits(self.advanced, mode)
            self.outcome = (is_wrong(logits, self.label, 1), is_wrong(logits, self.label, 5),
                            is_target(logits, self.aim))

    def run(self, session: tf.Session, batch: Batch, strengths: Sequence[Strength]) -> Dict[Strength, Outcome]:
        """Attack a batch with every strength."""
        feed = {self.image: batch.images, self.label: batch.labels, self.index: batch.indices}
        outcomes = {}
        for group in same_trajectory(strengths):
            first, begin = group[0], time.perf_counter()
            feed.update({self.num_iter: max(1, first.num_iter), self.epsilon: first.epsilon,
                         self.step_size: first.step_size})
            if first.num_iter == 0:
                current, aim = session.run(self.clean, feed), np.full(len(batch.labels), -1, np.int32)
            else:
                current, aim = session.run([self.start, self.target], feed)
            done = 0
            for strength in group:
                feed.update({self.current: current, self.aim: aim, self.steps: strength.num_iter - done})
                current, outcome = session.run([self.advanced, self.outcome], feed)
                outcomes[strength] = Outcome(*outcome, seconds=time.perf_counter() - begin)
                done = strength.num_iter
        return outcomes


def same_trajectory(strengths: Sequence[Strength]) -> List[List[Strength]]:
    """Groups of strengths that differ in nothing but how far they go, by ascending steps."""
    def trajectory(s: Strength) -> Tuple[float, float]:
        return s.epsilon, s.step_used

    ordered = sorted(set(strengths), key=lambda s: (trajectory(s), s.num_iter))
    return [list(group) for _, group in itertools.groupby(ordered, trajectory)]


def evaluate(tower: AttackTower, session: tf.Session, batches: Iterator[Batch], strengths: Sequence[Strength],
             world: World, *, total: int, description: str = 'evaluation') -> Dict[Strength, Figures]:
    """Figures over the batches of all ranks, for every strength. All ranks must call it.

    Args:
        batches: this rank's share of the images. total: how many images those are.
    """
    figures = {s: Figures() for s in strengths}
    with tqdm(total=total, desc=description, unit='img', disable=not world.is_chief, mininterval=1.0) as bar:
        for batch in batches:
            for strength, outcome in tower.run(session, batch, strengths).items():
                figures[strength] = figures[strength].plus(outcome)
            shown = figures[strengths[-1]]
            bar.set_postfix_str('error %.4f, success %.4f' % (shown.rate('wrong_top1'), shown.rate('successes')),
                                refresh=False)
            bar.update(len(batch.labels))
    summed = world.sum([figures[s] for s in strengths])
    return {s: Figures(*[int(round(n)) for n in row[:-1]], seconds=row[-1]) for s, row in zip(strengths, summed)}
