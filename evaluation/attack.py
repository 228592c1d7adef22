"""Attack a batch of images with every strength, and say what became of each.

An image's target labels and noise depend on the seed and on its position in the sorted validation set alone.
"""
import time
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

from runtime.compat import tf

import numpy as np

from adv_model import Attacker, AttackTower
from evaluation.attackers import errors_of_attacker
from evaluation.outcomes import OUTCOME, Strength, effect
from evaluation.plan import FIRST, LIKELIEST, RANDOM, Start, same_trajectory
from runtime.errors import InputError, RunError
from runtime.pixels import PIXEL
from third_party.batches import Batch

SEEDS = 2 ** 31  # that --seed can have
ROUNDING = 1e-5  # of float32, in [-1, 1], where budgets are compared


class Attacked(NamedTuple):
    """A batch after an attack: images float32 in [-1, 1], (N,) target labels, -1 for none, and what it took."""
    images: np.ndarray
    targets: np.ndarray
    seconds: float


class Aims(NamedTuple):
    """What images are attacked towards, as --targets names it, from which seed: those drawn at random, the most likely
    wrong labels, or {index: label} of a file."""
    kind: str = RANDOM
    seed: int = 0
    listed: Mapping[int, int] = {}


AT_RANDOM = Aims()

Feed = Dict[tf.Tensor, Any]


def attacks(tower: AttackTower, session: tf.Session, batch: Batch, clean: np.ndarray, strengths: Sequence[Strength],
            start: Start = FIRST, aims: Aims = AT_RANDOM) -> Iterator[Tuple[Strength, Attacked]]:
    """Attack a batch with every strength, in any order. clean: its images, in [-1, 1]."""
    feed = {tower.image: batch.images, tower.label: batch.labels, tower.index: batch.indices}
    for group in same_trajectory(strengths):
        if group[0].num_iter == 0:  # every budget has the same clean images
            for strength in group:
                yield strength, Attacked(clean, np.full(len(clean), -1, np.int32), 0.0)
        elif tower.shares_steps:
            yield from along_trajectory(tower, session, feed, group, start, aims)
        else:
            for strength in group:
                begin = time.perf_counter()
                images, targets = whole_attack(tower, session, {**feed, **settings(tower, strength)}, start, aims)
                yield strength, Attacked(images, targets, time.perf_counter() - begin)


def whole_attack(tower: AttackTower, session: tf.Session, feed: Feed, start: Start,
                 aims: Aims) -> Tuple[np.ndarray, np.ndarray]:
    """Attack a batch by an attack that can't be taken in parts; return images, in [-1, 1], and targets."""
    noise = noise_of(tower, start, aims)
    with errors_of_attacker(type(tower.attacker), RunError):
        if not tower.takes_targets:
            return session.run(tower.attacked, {**feed, **noise})
        targets = chosen_targets(tower, session, feed, start, aims)
        return session.run(tower.result, {**feed, **noise, tower.towards: targets}), targets


def along_trajectory(tower: AttackTower, session: tf.Session, feed: Feed, group: Sequence[Strength], start: Start,
                     aims: Aims) -> Iterator[Tuple[Strength, Attacked]]:
    """Attack a batch once, with the longest of a group, and read the others off on the way."""
    feed = {**feed, **settings(tower, group[0])}
    begin, paused, done = time.perf_counter(), 0.0, 0
    attacker = type(tower.attacker)
    with errors_of_attacker(attacker, RunError):
        targets = chosen_targets(tower, session, feed, start, aims)
        current, state = session.run([tower.start, tower.initial_state], {**feed, **noise_of(tower, start, aims)})
    for strength in group:
        feed.update({tower.current: current, tower.towards: targets, tower.steps: strength.num_iter - done})
        feed.update(zip(tower.state, state))
        with errors_of_attacker(attacker, RunError):
            (current, state), done = session.run([tower.advanced, tower.next_state], feed), strength.num_iter
        now = time.perf_counter()
        yield strength, Attacked(current, targets, now - begin - paused)
        paused += time.perf_counter() - now  # what others did with these images


def settings(tower: AttackTower, strength: Strength) -> Feed:
    return {tower.num_iter: strength.num_iter, tower.epsilon: strength.epsilon, tower.step_size: strength.step_size}


def noise_of(tower: AttackTower, start: Start, aims: Aims) -> Feed:
    """Return what makes the noise of a restart: seeds beyond all that --seed can give, so that no two evaluations have
    the same."""
    return {tower.seed: aims.seed + start.restart * SEEDS} if start.restart else {}


def chosen_targets(tower: AttackTower, session: tf.Session, feed: Feed, start: Start, aims: Aims) -> np.ndarray:
    """Return the labels, (N,) int32, that a start attacks a batch towards; -1 for an untargeted attack."""
    if aims.kind == RANDOM:
        return session.run(tower.targets, feed)[:, start.target] if start.target else session.run(tower.target, feed)
    labels = feed[tower.label]
    if aims.kind == LIKELIEST:
        logits = session.run(tower.logits, {tower.image: feed[tower.image]}).astype(np.float64)
        logits[np.arange(len(labels)), labels] = -np.inf  # the last one, which no target is
        return np.argsort(-logits, axis=1, kind='stable')[:, start.target].astype(np.int32)
    return np.array([aims.listed[int(i)] for i in feed[tower.index]], np.int32)


# What keeps a batch's images after an attack: given the batch, the strength, the images in [-1, 1] and which of these
# are to be kept, (N,) bool, returns all as they would be kept, uint8.
Saver = Callable[[Batch, Strength, np.ndarray, np.ndarray], np.ndarray]


def attack_batch(tower: AttackTower, session: tf.Session, batch: Batch, strengths: Sequence[Strength],
                 save: Optional[Saver] = None, *, start: Start = FIRST, aims: Aims = AT_RANDOM,
                 before: Optional[np.ndarray] = None) -> np.ndarray:
    """Return (N, number of strengths) of OUTCOME. The seconds of a batch are divided among its images.

    before: what earlier starts did to the images, (N, number of strengths), as `effect` says it; an image is saved
    where this start does more. Raises RunError where an attacker leaves its budget, InputError where it makes pixels
    that are no numbers: a record would claim what was not so.
    """
    outcomes = np.zeros((len(batch.labels), len(strengths)), OUTCOME)
    clean = session.run(tower.clean, {tower.image: batch.images})
    classification = [tower.prediction, tower.in_top5]
    for strength, attacked in attacks(tower, session, batch, clean, strengths, start, aims):
        if attacked.images.shape != clean.shape or attacked.targets.shape != batch.labels.shape:
            raise RunError('the attacker %s makes of %d images %s images and %s target labels' % (
                type(tower.attacker).__name__, len(clean), attacked.images.shape, attacked.targets.shape))
        check_budget(attacked.images, clean, strength, type(tower.attacker))
        i = strengths.index(strength)
        column = outcomes[:, i]
        begin = time.perf_counter()
        column['prediction'], column['top5_correct'] = session.run(
            classification, {tower.current: attacked.images, tower.label: batch.labels})
        # those of the attack; without one, of the classification
        seconds = attacked.seconds if strength.num_iter else time.perf_counter() - begin
        column['target'], column['seconds'] = attacked.targets, seconds / len(batch.labels)
        if save is not None:
            more = np.ones(len(clean), bool) if before is None else effect(batch.labels, column) > before[:, i]
            kept = save(batch, strength, attacked.images, more)
            column['saved_prediction'], column['saved_top5_correct'] = session.run(
                classification, {tower.image: kept, tower.label: batch.labels})
    return outcomes


def check_budget(images: np.ndarray, clean: np.ndarray, strength: Strength, attacker: Type[Attacker]) -> None:
    """Check attacked images, in [-1, 1]. Raises InputError where they are not numbers, which another dtype or network
    mends, and RunError where they are not within the budget."""
    if not np.isfinite(images).all():
        raise InputError('the attack with %g steps and epsilon %g made pixels that are no numbers: the network\'s '
                         'logits or their gradient overflow (more easily in float16), or the attacker\'s, %s, do'
                         % (strength.num_iter, strength.epsilon, attacker.__name__))
    radius = strength.epsilon * PIXEL if strength.num_iter else 0.0
    change = np.abs(images - clean).max()
    if not (change <= radius + ROUNDING and np.abs(images).max() <= 1 + ROUNDING):
        raise RunError('the attacker %s changed pixels by up to %.3f of 255, or left [0, 255]; its budget was %g'
                       % (attacker.__name__, change / PIXEL, strength.epsilon))
