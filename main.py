#!/usr/bin/env python
"""Train ImageNet classifiers against a strong adversary, and measure how robust they are.

    python main.py --eval --load CKPT --data DIR --arch A -d N --attack-iter K          white-box evaluation
    python main.py --eval-directory DIR --load CKPT --arch A -d N                       black-box scoring
    mpirun -np 16 ... python main.py --data DIR --batch 32 --arch A -d N                training, beside a data server
"""
import argparse
import logging
import sys
from typing import Any

from runtime.errors import InputError
from runtime.files import check_writable
from runtime.command_line import end_on_interrupt, run_command
from options import parse_options

log = logging.getLogger(__name__)


def run_evaluation(options: argparse.Namespace) -> int:
    """--eval: the figures of every attack on stdout, and what --results, --per-image and --save-adversarial name."""
    import checkpoint
    from runtime import distributed
    import evaluation
    import results
    import saved_images
    from adv_model import PGDAttacker
    from runtime.agreement import check_agreement
    from runtime.compat import ask_for_determinism, tf
    from runtime.hardware import has_gpu
    from cpu_conv import isa
    from journal import Journal
    from nets import find_network
    from outcomes import Strength, Tally
    from kernels.mode import attack_settings
    from runtime.hardware import warn_of_cost
    from kernels.mode import native_mode
    from setup_check import suspicions
    from third_party.imagenet import load_dataset

    # What the flags name, and whether it fits
    find_network(options.arch, options.depth)
    dataset = load_dataset(options.data, 'val', options.classes)
    network = find_network(options.arch, options.depth, len(dataset.class_names))
    weights = checkpoint.fit_checkpoint(checkpoint.read_checkpoint(options.load), network, options.load)
    attacker = evaluation.load_attacker(options.attacker) if options.attacker else PGDAttacker
    strengths = [Strength(k, epsilon, options.attack_step_size)
                 for epsilon in options.attack_epsilons for k in options.attack_iters]
    saving = options.save_adversarial

    # Where it goes on: the chief has the journal, and all ranks begin at the same image
    world = distributed.connect()
    check_agreement(world, vars(options), checkpoint=checkpoint.checkpoint_files(options.load),
                    data=dataset.listing(options.data), more_code=evaluation.attacker_sha256(attacker))
    journal, begin, token, facts = None, 0, 0, {}
    if world.is_chief:
        warn_of_cost(options.attack_dtype, options.xla)
        for path in filter(None, [options.results, options.per_image]):
            check_writable(path)
        if options.results or options.journal:  # it reads the whole data set
            facts = results.evaluation_facts(options, network, dataset, attacker, strengths)
        if options.journal:
            journal = Journal(options.journal, facts, num_images=len(dataset), num_strengths=len(strengths))
            begin = journal.num_done
        if saving:
            token = saved_images.prepare_directory(saving, strengths, done=begin,
                                                   continued=journal is not None and journal.existed)
    begin, token = world.from_chief([begin, token])
    if saving:
        saved_images.check_directory(saving, token)

    ask_for_determinism()
    with tf.Graph().as_default() as graph:
        tower = evaluation.AttackTower(network, options.image_size, mode=native_mode(), seed=options.seed,
                                       attacker=attacker, **attack_settings(options.attack_dtype, options.xla))
    with tf.Session(graph=graph, config=world.session_config()) as session, \
            results.ImageTables(options.per_image, saving, dataset, strengths, world) as tables:
        checkpoint.assign_weights(session, weights)
        if begin == 0:
            for suspicion in suspicions(tower, session, dataset, world, image_size=options.image_size,
                                        batch=options.batch):
                log.warning(suspicion)
        tally = Tally(dataset.labels, len(strengths))
        for positions, outcomes in journal.replay() if journal else ():
            tally.add(positions, outcomes)
            tables.write(positions, outcomes)
        rounds = evaluation.evaluate(
            tower, session, dataset, strengths, world, image_size=options.image_size, batch=options.batch, begin=begin,
            keep=saved_images.ImageWriter(saving) if saving else None)
        for positions, outcomes in evaluation.with_progress(rounds, tally, world, total=len(dataset), begin=begin):
            if journal:
                journal.append(positions, outcomes)
            tables.write(positions, outcomes)

    if world.is_chief:
        for strength, figures in zip(strengths, tally.figures):
            print_figures(strength, figures, saved=bool(saving))
        if options.results:
            results.write_results(
                options.results, dict(facts, checkpoint=options.load, data=options.data, ranks=world.size,
                                      batch=options.batch, instruction_set='gpu' if has_gpu() else isa(),
                                      saved_adversarial=saving),
                [results.attack_record(*of_strength, saved=bool(saving))
                 for of_strength in zip(strengths, tally.figures)])
    return 0


def print_figures(strength: Any, figures: Any, *, saved: bool = False) -> None:
    """An outcomes.Strength and its Figures."""
    print('%d images, %d attack steps, epsilon %g, step size %g' % (
        figures.num_images, strength.num_iter, strength.epsilon, strength.step_used))
    if saved:
        print('as saved: top-1 error %.6f, attack success rate %.6f, top-5 error %.6f' % tuple(
            figures.rate('saved_' + count) for count in ('wrong_top1', 'successes', 'wrong_top5')))
    print_rates(figures)


def print_rates(figures: Any) -> None:
    for title, count in [('Top1 Error', 'wrong_top1'), ('Attack Success Rate', 'successes'),
                         ('Top5 Error', 'wrong_top5')]:
        print('%s: %.6f' % (title, figures.rate(count)))


def run_prediction(options: argparse.Namespace) -> int:
    """--eval-directory: a file of predictions, with --labels the figures too; status 1 when some file was not scored."""
    from runtime import distributed
    from inference import load_classifier
    from prediction import find_manifest, write_predictions
    from third_party.imagenet import find_images

    if distributed.started_by_mpi():
        raise InputError('--eval-directory runs in one process, without mpirun')
    find_images(options.eval_directory)
    check_writable(options.prediction_file)
    listed = find_manifest(options.eval_directory, options.labels)
    classifier = load_classifier(options.load, options.arch, options.depth, image_size=options.image_size,
                                 batch=options.batch)
    scores = write_predictions(classifier, options.eval_directory, options.prediction_file, listed,
                               ignored=filter(None, [options.labels]))
    print('predictions are in %s' % options.prediction_file)
    if options.labels:
        print_scores(scores, len(listed))
    if scores.num_failed:
        log.error('%d files were not scored; they are named above', scores.num_failed)
    return 1 if scores.num_failed else 0


def print_scores(scores: Any, num_listed: int) -> None:
    """A prediction.Scores of the images that a manifest of `num_listed` lists."""
    for strength, figures in sorted(scores.figures.items()):
        print('%d images%s' % (figures.num_images,
                               ', %g attack steps, epsilon %g' % strength if len(strength) == 2 else ''))
        print_rates(figures)
    scored = sum(figures.num_images for figures in scores.figures.values())
    if scored < num_listed:
        log.warning('%d of the %d images of --labels were not scored: the figures are of the others',
                    num_listed - scored, num_listed)


def run_training(options: argparse.Namespace) -> int:
    import training
    training.train(options)
    return 0


def main() -> int:
    options = parse_options(sys.argv[1:], __doc__)
    end_on_interrupt('main.py')
    if options.eval:
        return run_evaluation(options)
    if options.eval_directory:
        return run_prediction(options)
    return run_training(options)


if __name__ == '__main__':
    run_command('main.py', main)
