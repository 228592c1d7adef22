"""The white-box evaluation, `main.py --eval`, from its flags to its figures."""
import argparse
import contextlib
import functools
import logging
from typing import Iterator, Sequence, Tuple

from runtime.compat import ask_for_determinism, tf

import checkpoint
from adv_model import AttackTower, PGDAttacker
from evaluation.attack import attack_batch, attacker_sha256, evaluate, load_attacker, with_progress
from evaluation.contents import read_contents
from evaluation.outcomes import Figures, Strength, Tally
from evaluation.records import Inputs, open_records
from evaluation.sanity import suspicions
from evaluation.saved_images import ImageWriter, check_directory
from kernels.mode import attack_settings, native_mode
from nets import find_network
from runtime.agreement import check_agreement
from runtime.distributed import World, connect
from runtime.hardware import warn_of_cost
from runtime.pixels import mistaken_attack
from third_party.imagenet import load_dataset
from third_party.images import PREPARATIONS

log = logging.getLogger(__name__)


def run_evaluation(options: argparse.Namespace) -> int:
    """Print the figures of every attack, keep what --results, --per-image, --journal and --save-adversarial ask for."""
    inputs = find_inputs(options)
    world = connect()
    check_agreement(world, vars(options), checkpoint=checkpoint.checkpoint_files(options.load),
                    data=inputs.dataset.listing(options.data), more_code=attacker_sha256(inputs.attacker))
    warn_of_cost(options.attack_dtype, options.xla)
    warn_of_cost(options.dtype, False, what='classification')
    if options.dtype != 'float32':
        log.info('the figures are of the network in %s (--dtype), which rounds more than float32', options.dtype)
    warnings = mistaken_attack(options.attack_epsilon, options.attack_step_size) if any(options.attack_iter) else []
    for warning in warnings:
        log.warning('%s', warning)
    contents = read_contents(inputs.dataset, world, options.batch)
    records = world.patiently(lambda: open_records(options, inputs, contents, world))
    begin, token = world.from_chief([records.num_done, records.token])  # all ranks begin at the same image
    if options.save_adversarial:
        check_directory(options.save_adversarial, token)

    tally, prepare = Tally(inputs.dataset.labels, len(inputs.strengths)), PREPARATIONS[options.preprocess]
    with attacked_network(options, inputs, world) as (tower, session), records:
        if begin == 0:
            for suspicion in suspicions(tower, session, inputs.dataset, world, image_size=options.image_size,
                                         batch=options.batch, prepare=prepare):
                log.warning('%s', suspicion)
                warnings.append(suspicion)
        for positions, outcomes in records.replay():
            tally.add(positions, outcomes)
        attack = functools.partial(attack_batch, tower, session, strengths=inputs.strengths,
                                   save=ImageWriter(options.save_adversarial) if options.save_adversarial else None)
        rounds = evaluate(attack, len(inputs.strengths), inputs.dataset, world, image_size=options.image_size,
                          batch=options.batch, begin=begin, prepare=prepare)
        for positions, outcomes in with_progress(rounds, tally, world, total=len(inputs.dataset), begin=begin):
            records.add(positions, outcomes)

    if world.is_chief:
        print_figures(inputs.strengths, tally.figures, saved=bool(options.save_adversarial))
    records.write_results(tally.figures, ranks=world.size, warnings=warnings)
    return 0


def find_inputs(options: argparse.Namespace) -> Inputs:
    """Find what the flags name. Raises InputError where something is missing or does not fit."""
    network = find_network(options.arch, options.depth)
    dataset = load_dataset(options.data, 'val', options.classes)
    network = network._replace(num_classes=len(dataset.class_names))
    weights = checkpoint.fit_checkpoint(checkpoint.read_checkpoint(options.load), network, options.load)
    attacker = load_attacker(options.attacker) if options.attacker else PGDAttacker
    strengths = [Strength(k, epsilon, options.attack_step_size)
                 for epsilon in options.attack_epsilon for k in options.attack_iter]
    return Inputs(network, weights, dataset, attacker, strengths)


@contextlib.contextmanager
def attacked_network(options: argparse.Namespace, inputs: Inputs,
                     world: World) -> Iterator[Tuple[AttackTower, tf.Session]]:
    """Build the tower, and a session in which its network has its weights."""
    ask_for_determinism()
    with tf.Graph().as_default() as graph:
        mode = native_mode()._replace(dtype=tf.as_dtype(options.dtype))
        tower = AttackTower(inputs.network, options.image_size, mode=mode, seed=options.seed,
                            attacker=inputs.attacker, **attack_settings(options.attack_dtype, options.xla))
    with tf.Session(graph=graph, config=world.session_config()) as session:
        checkpoint.assign_weights(session, inputs.weights)
        yield tower, session


def print_figures(strengths: Sequence[Strength], figures: Sequence[Figures], *, saved: bool) -> None:
    """Print the figures of each strength; saved: also those of the images as they were saved."""
    for strength, of_strength in zip(strengths, figures):
        print('%d images, %d attack steps, epsilon %g, step size %g' % (
            of_strength.num_images, strength.num_iter, strength.epsilon, strength.step_used))
        if saved:
            print('as saved: top-1 error %s, attack success rate %s, top-5 error %s' % tuple(
                of_strength.text('saved_' + count) for count in ('wrong_top1', 'successes', 'wrong_top5')))
        print(of_strength.lines(clean=strength.num_iter == 0))
