"""Attack images with every strength, and say what became of each.

An image's target labels and noise depend on the seed and on its position in the sorted validation set alone. Images are
attacked in the same batches whatever the number of ranks, and come back in the order of their positions, so what was
finished is always the beginning of a stage (plan.py): an evaluation can be continued where it ended.
"""
import contextlib
import inspect
import os
import re
import sys
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

from runtime.compat import tf

import numpy as np

from adv_model import Attacker, AttackTower, PGDAttacker
from attacks.table import address_of
from evaluation.outcomes import OUTCOME, Strength, Tally, effect
from evaluation.plan import FIRST, LIKELIEST, RANDOM, Start, same_trajectory
from runtime import compat
from runtime.bars import tqdm
from runtime.distributed import World
from runtime.errors import InputError, RunError
from runtime.fingerprint import sha256_of_files
from runtime.own_code import files_of, load_code, place_of
from runtime.pixels import PIXEL
from third_party.batches import Batch, validation_batches
from third_party.imagenet import Dataset
from third_party.preparations import Preparation

SEEDS = 2 ** 31  # that --seed can have
ROUNDING = 1e-5  # of float32, in [-1, 1], where budgets are compared


def load_attacker(name: str) -> Type[Attacker]:
    """Return the class of an attacker of the table, or that `module:Class` names; the module may lie in the current
    folder.

    Raises InputError where there is none, or it isn't made like PGDAttacker.
    """
    sys.modules.setdefault('compat', compat)  # attackers of before there were packages import `tf` from there
    attacker = load_code('the attacker', address_of(name))
    try:
        inspect.signature(attacker).bind(10, 16.0, 1.0, num_classes=1000, seed=0, loss_scale=1.0, xla=False)
    except (TypeError, ValueError) as e:
        raise InputError('the attacker %s can\'t be used, a class with the parameters of adv_model.PGDAttacker is '
                         'expected (%s: %s)' % (name, type(e).__name__, e))
    if not (inspect.isclass(attacker) and issubclass(attacker, Attacker)):
        raise InputError('the attacker %s is no subclass of adv_model.Attacker' % name)
    return attacker


def attacker_sha256(attacker: type) -> str:
    """Return the SHA-256 of the files that an attacker's class is in and uses, which need not be this project's."""
    files = files_of('%s:%s' % (attacker.__module__, attacker.__name__))
    return sha256_of_files(sorted({*map(os.path.realpath, files), os.path.realpath(inspect.getfile(attacker))}))


@contextlib.contextmanager
def errors_of_attacker(attacker: Type[Attacker], kind: Type[Exception]) -> Iterator[None]:
    """Make one line, an error of this `kind`, of what goes wrong in somebody's own attacker: it names the last line of
    its file that was run."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as e:  # whatever somebody else's class does
        if attacker is PGDAttacker:
            raise
        where = place_of(e, inspect.getfile(attacker))
        text = str(e).strip()
        of_op = re.search(r'^Node: .*\n(.+)', text, re.MULTILINE)  # TensorFlow 2 puts a page before what an op says
        raise kind('the attacker %s fails (%s: %s%s)' % (attacker.__name__, type(e).__name__,
                                                         of_op.group(1) if of_op else text.split('\n')[0], where))


def check_attack(tower: AttackTower) -> None:
    """Raise InputError where an attack does not return attacked images and target labels, as far as a graph tells."""
    if tower.takes_targets:
        result = tower.advanced if tower.shares_steps else tower.result
        returned = [(tower.start, tower.target), (result, tower.target)]
    else:
        returned = [tower.attacked]
    name = type(tower.attacker).__name__
    for pair in returned:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(tf.is_tensor, pair)):
            raise InputError('the attacker %s does not return two tensors, attacked images and target labels' % name)
        for what, tensor, like, fits in (('images', pair[0], tower.clean, pair[0].dtype.is_floating),
                                         ('target labels', pair[1], tower.label, pair[1].dtype.is_integer)):
            if not fits or not tensor.shape.is_compatible_with(like.shape):
                raise InputError('the attacker %s returns %s of %s %s, not of %s %s' % (
                    name, what, tensor.dtype.name, tensor.shape, like.dtype.name, like.shape))


# --- a batch ---------------------------------------------------------------------------------------------------------

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


# --- the whole set ---------------------------------------------------------------------------------------------------

def parts_of(total: int, batch: int, begin: int = 0) -> List[range]:
    """Deal the positions from `begin` to `total` into batches.

    They are the batches of the whole set: with another number of ranks, or continued, they hold the same images.
    """
    starts = [begin] + list(range(begin - begin % batch + batch, total, batch))
    return [range(i, min(i + batch - i % batch, total)) for i in starts if i < total]


def in_rounds(parts: Sequence[range], shares: Iterable[np.ndarray], world: World,
              num_strengths: int) -> Iterator[Tuple[range, np.ndarray]]:
    """Put together what ranks computed, one part of every rank at a time.

    shares: the outcomes of this rank's parts, parts[world.rank::world.size]. Yields the same on all ranks: the next
    positions, and (N, num_strengths) of OUTCOME.
    """
    remaining = iter(shares)
    for first in range(0, len(parts), world.size):
        # An attack may take an hour, on some ranks more than on others; in the last round some have nothing to do.
        share = world.patiently(lambda: next(remaining, None))
        outcomes = world.gather(np.zeros((0, num_strengths), OUTCOME) if share is None else share)
        outcomes['seconds'] /= world.size  # ranks work at the same time
        yield range(parts[first].start, parts[min(first + world.size, len(parts)) - 1].stop), outcomes


def evaluate(attack: Callable[[Batch], np.ndarray], num_strengths: int, dataset: Dataset, world: World, *,
             image_size: int, batch: int, preparation: Preparation,
             begin: int = 0) -> Iterator[Tuple[range, np.ndarray]]:
    """Attack the images from position `begin` on, each rank its batches. All ranks must iterate to the end, or to the
    same round.

    attack: returns (N, num_strengths) of OUTCOME for a batch, as attack_batch does. Yields, on every rank, the next
    positions and what became of their images on all ranks: one batch of every rank at a time, so that nothing grows
    with the size of the set.
    """
    parts = parts_of(len(dataset), batch, begin)
    batches = validation_batches(dataset, parts[world.rank::world.size], image_size=image_size,
                                 preparation=preparation)
    return in_rounds(parts, map(attack, batches), world, num_strengths)


def with_progress(rounds: Iterator[Tuple[range, np.ndarray]], tally: Tally, world: World, *, total: int, begin: int = 0,
                  description: str = 'evaluation') -> Iterator[Tuple[range, np.ndarray]]:
    """Pass the rounds on, counted by `tally`, under a bar with the figures of the last strength."""
    with tqdm(total=total, initial=begin, desc=description, unit='img', disable=not world.is_chief,
              mininterval=1.0) as bar:
        for positions, outcomes in rounds:
            tally.add(positions, outcomes)
            shown = tally.figures[-1]
            bar.set_postfix_str('error %s, success %s' % (shown.text('wrong_top1', 4), shown.text('successes', 4)),
                                refresh=False)
            bar.update(len(positions))
            yield positions, outcomes
