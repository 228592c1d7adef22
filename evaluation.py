"""White-box evaluation: attack every validation image with every strength, and say what became of each.

An image's target label and noise depend on the seed and on its position in the sorted validation set alone. Images are
attacked in the same batches whatever the number of ranks, and come back in the order of their positions, so what was
finished is always the beginning of the set: an evaluation can be continued where it ended.
"""
import importlib
import inspect
import itertools
import os
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np
from tqdm import tqdm

from adv_model import Attacker, PGDAttacker, is_wrong, most_likely, pixels, scale_pixels
from runtime.compat import tf
from runtime.distributed import World
from runtime.errors import InputError, RunError
from runtime.fingerprint import sha256_of_files
from nets import Network
from outcomes import OUTCOME, Strength, Tally
from kernels.mode import Mode
from third_party.batches import Batch, validation_batches
from third_party.imagenet import Dataset


ROUNDING = 1e-5  # of float32, in [-1, 1], where budgets are compared


def load_attacker(name: str) -> Type[Attacker]:
    """The class that `module:Class` names; the module may lie in the current folder.

    Raises InputError where there is none, or it isn't made like PGDAttacker.
    """
    module, _, attribute = name.partition(':')
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        attacker = getattr(importlib.import_module(module), attribute)
        inspect.signature(attacker).bind(10, 16.0, 1.0, num_classes=1000, seed=0, loss_scale=1.0, xla=False)
    except (Exception, SystemExit) as e:  # whatever somebody else's module does
        raise InputError('the attacker %s can\'t be used, module:Class with the parameters of adv_model.PGDAttacker is '
                         'expected (%s: %s)' % (name, type(e).__name__, e))
    finally:
        sys.path[:] = before
    if not (inspect.isclass(attacker) and issubclass(attacker, Attacker)):
        raise InputError('the attacker %s is no subclass of adv_model.Attacker' % name)
    return attacker


def attacker_sha256(attacker: type) -> str:
    """Return the SHA-256 of the file that an attacker's class is in, which need not be this project's."""
    return sha256_of_files([inspect.getfile(attacker)])


class Attacked(NamedTuple):
    """A batch after an attack: images float32 in [-1, 1], (N,) target labels, -1 for none, and what it took."""
    images: np.ndarray
    targets: np.ndarray
    seconds: float


class AttackTower:
    """Placeholders and tensors of one tower: the start of an attack, some steps from any point of it, and the verdict.

    The attack of a batch can be read off on its way: one of 100 steps of size 1 passes the result of 50 of them.
    Build it in the graph that has, or will get, the network's variables.

    Args:
        attacker: a class with PGDAttacker's parameters, which are given as scalar tensors. One that is not
            `memoryless` is run from its beginning for every strength.
    """

    def __init__(self, network: Network, image_size: int, *, mode: Mode, attack_mode: Mode, seed: int = 0,
                 xla: bool = False, loss_scale: float = 1.0, attacker: Type[Attacker] = PGDAttacker):
        with tf.name_scope('evaluation'):
            self.image = tf.placeholder(tf.uint8, [None, image_size, image_size, 3], 'image')
            self.label = tf.placeholder(tf.int32, [None], 'label')
            self.index = tf.placeholder(tf.int64, [None], 'index')
            self.num_iter = tf.placeholder(tf.int32, [], 'num-iter')  # of the whole attack
            self.steps = tf.placeholder(tf.int32, [], 'steps')  # of those, how many now
            self.epsilon = tf.placeholder(tf.float32, [], 'epsilon')
            self.step_size = tf.placeholder(tf.float32, [], 'step-size')
            made = attacker(self.num_iter, self.epsilon, self.step_size, num_classes=network.num_classes, seed=seed,
                            xla=xla, loss_scale=loss_scale)
            # said by the class itself: what a subclass adds, such as momentum, is a memory
            self.memoryless = vars(attacker).get('memoryless', False)
            self.clean = scale_pixels(self.image)
            self.current = tf.placeholder(tf.float32, self.clean.shape, 'current')

            def attacked_logits(x):
                return network.logits(x, attack_mode)

            if self.memoryless:
                self.target = made.targets(self.label, self.index)
                self.start = made.start(self.clean, self.index)
                self.aim = tf.placeholder(tf.int32, [None], 'aim')
                self.advanced = made.iterate(self.current, self.clean, self.aim, attacked_logits, num_iter=self.steps)
            else:
                self.attacked = made.attack(self.clean, self.label, attacked_logits, self.index)
            logits = network.logits(self.current, mode)
            self.verdict = most_likely(logits), tf.logical_not(is_wrong(logits, self.label, 5))

    def attack(self, session: tf.Session, batch: Batch, clean: np.ndarray,
               strengths: Sequence[Strength]) -> Iterator[Tuple[Strength, Attacked]]:
        """Attack a batch with every strength, in any order. clean: its images, in [-1, 1]."""
        feed = {self.image: batch.images, self.label: batch.labels, self.index: batch.indices}
        for group in same_trajectory(strengths):
            if group[0].num_iter == 0:  # every budget has the same clean images
                for strength in group:
                    yield strength, Attacked(clean, np.full(len(clean), -1, np.int32), 0.0)
            elif self.memoryless:
                yield from self._along_trajectory(session, feed, group)
            else:
                for strength in group:
                    feed.update(self._settings(strength))
                    begin = time.perf_counter()
                    images, targets = session.run(self.attacked, feed)
                    yield strength, Attacked(images, targets, time.perf_counter() - begin)

    def _along_trajectory(self, session: tf.Session, feed: Dict[Any, Any],
                          group: Sequence[Strength]) -> Iterator[Tuple[Strength, Attacked]]:
        feed = {**feed, **self._settings(group[0])}
        begin, paused, done = time.perf_counter(), 0.0, 0
        current, targets = session.run([self.start, self.target], feed)
        for strength in group:
            feed.update({self.current: current, self.aim: targets, self.steps: strength.num_iter - done})
            current, done = session.run(self.advanced, feed), strength.num_iter
            now = time.perf_counter()
            yield strength, Attacked(current, targets, now - begin - paused)
            paused += time.perf_counter() - now  # what others did with these images

    def _settings(self, strength: Strength) -> Dict[Any, Any]:
        return {self.num_iter: strength.num_iter, self.epsilon: strength.epsilon, self.step_size: strength.step_size}

    def classify(self, session: tf.Session, images: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(N,) predictions of images in [-1, 1], -1 where logits are not numbers; whether the label is in the top 5."""
        return session.run(self.verdict, {self.current: images, self.label: labels})


def same_trajectory(strengths: Sequence[Strength]) -> List[List[Strength]]:
    """Groups of strengths that differ in nothing but how far they go, by ascending steps."""
    def trajectory(s: Strength) -> Tuple[float, float]:
        return (s.epsilon, s.step_used) if s.num_iter else (0.0, 0.0)

    ordered = sorted(set(strengths), key=lambda s: (trajectory(s), s.num_iter))
    return [list(group) for _, group in itertools.groupby(ordered, trajectory)]


# What to do with a batch's images after an attack: given the batch, the strength and the images in [-1, 1], returns what
# was kept of them, in [-1, 1] too.
Keep = Callable[[Batch, Strength, np.ndarray], np.ndarray]


def attack_batch(tower: AttackTower, session: tf.Session, batch: Batch, strengths: Sequence[Strength],
                 keep: Optional[Keep] = None) -> np.ndarray:
    """(N, number of strengths) of OUTCOME. The seconds of a batch are divided among its images.

    Raises RunError where an attacker leaves its budget, or makes pixels that are no numbers: a record would claim what was
    not so.
    """
    outcomes = np.zeros((len(batch.labels), len(strengths)), OUTCOME)
    clean = session.run(tower.clean, {tower.image: batch.images})
    for strength, attacked in tower.attack(session, batch, clean, strengths):
        if not np.isfinite(attacked.images).all():
            raise RunError('the attack with %g steps and epsilon %g made pixels that are no numbers: the network\'s logits or '
                           'their gradient overflow (more easily in float16), or the attacker\'s do'
                           % (strength.num_iter, strength.epsilon))
        radius = pixels(strength.epsilon) if strength.num_iter else 0.0
        change = np.abs(attacked.images - clean).max()
        if not (change <= radius + ROUNDING and np.abs(attacked.images).max() <= 1 + ROUNDING):
            raise RunError('the attacker changed pixels by up to %.3f of 255, or left [0, 255]; its budget was %g'
                           % (change * 255 / 2, strength.epsilon))
        column = outcomes[:, strengths.index(strength)]
        begin = time.perf_counter()
        column['prediction'], column['top5_correct'] = tower.classify(session, attacked.images, batch.labels)
        # those of the attack; without one, of the classification
        seconds = attacked.seconds if strength.num_iter else time.perf_counter() - begin
        column['target'], column['seconds'] = attacked.targets, seconds / len(batch.labels)
        if keep is not None:
            kept = keep(batch, strength, attacked.images)
            column['saved_prediction'], column['saved_top5_correct'] = tower.classify(session, kept, batch.labels)
    return outcomes


def evaluate(tower: AttackTower, session: tf.Session, dataset: Dataset, strengths: Sequence[Strength], world: World, *,
             image_size: int, batch: int, begin: int = 0, keep: Optional[Keep] = None) -> Iterator[Tuple[range, np.ndarray]]:
    """Attack the images from position `begin` on, each rank its batches. All ranks must iterate to the end, or to the same round.

    Yields, on every rank, the next positions and what became of their images on all ranks, (N, number of strengths) of
    OUTCOME: one batch of every rank at a time, so that nothing grows with the size of the set.
    """
    # The batches are those of the whole set: with another number of ranks, or continued, they hold the same images.
    parts = [range(i, min(i + batch - i % batch, len(dataset)))
             for i in [begin] + list(range(begin - begin % batch + batch, len(dataset), batch)) if i < len(dataset)]
    mine = parts[world.rank::world.size]
    batches = validation_batches(dataset, mine, image_size=image_size)
    for first in range(0, len(parts), world.size):
        share = next(batches, None)  # in the last round some ranks have none
        outcomes = world.gather(np.zeros((0, len(strengths)), OUTCOME) if share is None
                                else attack_batch(tower, session, share, strengths, keep))
        outcomes['seconds'] /= world.size  # ranks work at the same time
        yield range(parts[first].start, parts[min(first + world.size, len(parts)) - 1].stop), outcomes


def with_progress(rounds: Iterator[Tuple[range, np.ndarray]], tally: Tally, world: World, *, total: int, begin: int = 0,
                  description: str = 'evaluation') -> Iterator[Tuple[range, np.ndarray]]:
    """The same rounds, counted by `tally`, under a bar with the figures of the last strength."""
    with tqdm(total=total, initial=begin, desc=description, unit='img', disable=not world.is_chief,
              mininterval=1.0) as bar:
        for positions, outcomes in rounds:
            tally.add(positions, outcomes)
            shown = tally.figures[-1]
            bar.set_postfix_str('error %.4f, success %.4f' % (shown.rate('wrong_top1'), shown.rate('successes')),
                                refresh=False)
            bar.update(len(positions))
            yield positions, outcomes
