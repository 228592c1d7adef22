"""The white-box evaluation, `main.py --eval`, from its flags to its figures."""
import argparse
import contextlib
import functools
import logging
from typing import Iterator, Sequence, Tuple

from runtime.compat import ask_for_determinism, tf

import checkpoint
from adv_model import AttackTower, PGDAttacker
from evaluation.attack import (
    attack_batch,
    attacker_sha256,
    check_attack,
    errors_of_attacker,
    evaluate,
    load_attacker,
    with_progress,
)
from evaluation.contents import read_contents
from evaluation.facts import strengths_of
from evaluation.outcomes import Figures, Strength, Tally
from evaluation.preparation import mistaken_preprocess
from evaluation.records import Inputs, open_records
from evaluation.sanity import suspicions
from evaluation.saved_images import ImageWriter, check_directory
from kernels.mode import attack_settings, native_mode
from nets import find_network
from runtime.agreement import check_agreement
from runtime.command_line import rank
from runtime.distributed import World, connect
from runtime.errors import InputError, RunError
from runtime.fingerprint import sha256_of_files
from runtime.hardware import warn_of_cost
from runtime.pixels import mistaken_attack
from runtime.printing import check_stdout, say
from third_party.imagenet import Dataset
from third_party.preparations import PREPARATIONS

log = logging.getLogger(__name__)


def run_evaluation(options: argparse.Namespace, dataset: Dataset) -> int:
    """Print the figures of every attack, keep what --results, --per-image, --journal and --save-adversarial ask for.

    dataset: the validation images of --data.
    """
    if rank() == '0':
        check_stdout()
    inputs = find_inputs(options, dataset)
    world = connect()
    check_agreement(world, vars(options), checkpoint=checkpoint.checkpoint_files(options.load),
                    data=inputs.dataset.listing(options.data),
                    more_code=attacker_sha256(inputs.attacker) + sha256_of_files(inputs.network.files()))
    warn_of_cost(options.attack_dtype, options.xla)
    warn_of_cost(options.dtype, False, what='classification')
    if options.dtype != 'float32':
        log.info('the figures are of the network in %s (--dtype), which rounds more than float32', options.dtype)
    warnings = mistaken_attack(options.attack_epsilon, options.attack_step_size) if any(options.attack_iter) else []
    warnings += mistaken_preprocess(options.arch, options.preprocess, inputs.network.num_classes)
    for warning in warnings:
        log.warning('%s', warning)
    preparation = PREPARATIONS[options.preprocess]()
    contents = read_contents(inputs.dataset, world, options.batch, preparation.check)
    records = world.patiently(lambda: open_records(options, inputs, contents, world))
    begin, token = world.from_chief([records.num_done, records.token])  # all ranks begin at the same image
    if options.save_adversarial:
        check_directory(options.save_adversarial, token)

    tally = Tally(inputs.dataset.labels, len(inputs.strengths))
    with attacked_network(options, inputs, world) as (tower, session), records:
        # also where a journal is continued: its results are those of the whole set, with all that is to be said of it
        for suspicion in suspicions(tower, session, inputs.dataset, world, image_size=options.image_size,
                                    batch=options.batch, preparation=preparation):
            log.warning('%s', suspicion)
            warnings.append(suspicion)
        for positions, outcomes in records.replay():
            tally.add(positions, outcomes)
        attack = functools.partial(attack_batch, tower, session, strengths=inputs.strengths,
                                   save=ImageWriter(options.save_adversarial) if options.save_adversarial else None)
        rounds = evaluate(attack, len(inputs.strengths), inputs.dataset, world, image_size=options.image_size,
                          batch=options.batch, begin=begin, preparation=preparation)
        for positions, outcomes in with_progress(rounds, tally, world, total=len(inputs.dataset), begin=begin):
            records.add(positions, outcomes)

    if world.is_chief:
        try:
            say(figures_text(inputs.strengths, tally.figures, saved=bool(options.save_adversarial)))
        except RunError as e:
            records.fail(e)
    records.write_results(tally.figures, ranks=world.size, warnings=warnings)
    return 0


def find_inputs(options: argparse.Namespace, dataset: Dataset) -> Inputs:
    """Find what the flags name. Raises InputError where something is missing or does not fit."""
    network = find_network(options.arch, options.depth)._replace(image_size=options.image_size)
    network = network._replace(num_classes=len(dataset.class_names))
    weights = checkpoint.read_checkpoint(options.load, options.weights)
    weights = checkpoint.fit_checkpoint(weights, network, options.load)
    attacker = load_attacker(options.attacker) if options.attacker else PGDAttacker
    return Inputs(network, weights, dataset, attacker, strengths_of(options))


@contextlib.contextmanager
def attacked_network(options: argparse.Namespace, inputs: Inputs,
                     world: World) -> Iterator[Tuple[AttackTower, tf.Session]]:
    """Build the tower, and a session in which its network has its weights."""
    ask_for_determinism()
    with tf.Graph().as_default() as graph:
        mode = native_mode()._replace(dtype=tf.as_dtype(options.dtype))
        with errors_of_attacker(inputs.attacker, InputError):
            tower = AttackTower(inputs.network, options.image_size, mode=mode, seed=options.seed,
                                attacker=inputs.attacker, **attack_settings(options.attack_dtype, options.xla))
        check_attack(tower)
    with tf.Session(graph=graph, config=world.session_config()) as session:
        checkpoint.assign_weights(session, inputs.weights)
        yield tower, session


def figures_text(strengths: Sequence[Strength], figures: Sequence[Figures], *, saved: bool) -> str:
    """Return the lines with the figures of each strength; saved: also with those of the images as they were saved."""
    lines = []
    for strength, of_strength in zip(strengths, figures):
        lines.append('%d images, %d attack steps, epsilon %g, step size %g' % (
            of_strength.num_images, strength.num_iter, strength.epsilon, strength.step_used))
        if saved:
            lines.append('as saved: top-1 error %s, attack success rate %s, top-5 error %s' % tuple(
                of_strength.text('saved_' + count) for count in ('wrong_top1', 'successes', 'wrong_top5')))
        lines.append(of_strength.lines(clean=strength.num_iter == 0))
    return '\n'.join(lines)
