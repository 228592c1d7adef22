#!/usr/bin/env python
"""Train ImageNet classifiers against a strong adversary, and measure how robust they are.

    python main.py --eval --load CKPT --data DIR --arch A -d N --attack-iter K          white-box evaluation
    python main.py --eval-directory DIR --load CKPT --arch A -d N                       black-box scoring
    mpirun -np 16 ... python main.py --data DIR --batch 32 --arch A -d N                training, beside a data server
"""
import argparse
import sys
from typing import Any

from errors import InputError, check_writable, run_command
from options import parse_options


def run_evaluation(options: argparse.Namespace) -> int:
    """--eval: the figures of every attack on stdout, and in --results."""
    import checkpoint
    import distributed
    import evaluation
    import results
    from adv_model import attack_settings, warn_of_cost
    from compat import tf
    from nets import find_network
    from resnet_model import native_mode
    from third_party.batches import shard, validation_batches
    from third_party.imagenet import load_dataset

    if options.results:
        check_writable(options.results)
    find_network(options.arch, options.depth)
    dataset = load_dataset(options.data, 'val', options.classes)
    network = find_network(options.arch, options.depth, len(dataset.class_names))
    weights = checkpoint.fit_checkpoint(checkpoint.read_checkpoint(options.load), network, options.load)
    strengths = [evaluation.Strength(k, epsilon, options.attack_step_size)
                 for epsilon in options.attack_epsilons for k in options.attack_iters]
    world = distributed.connect()
    if world.is_chief:
        warn_of_cost(options.attack_dtype, options.xla)
    with tf.Graph().as_default() as graph:
        tower = evaluation.AttackTower(network, options.image_size, mode=native_mode(), seed=options.seed,
                                       **attack_settings(options.attack_dtype, options.xla))
    positions = shard(len(dataset), world.rank, world.size)
    with tf.Session(graph=graph, config=world.session_config()) as session:
        checkpoint.assign_weights(session, weights)
        batches = validation_batches(dataset, positions, batch=options.batch, image_size=options.image_size)
        figures = evaluation.evaluate(tower, session, batches, strengths, world, total=len(positions))
    if world.is_chief:
        for strength in strengths:
            print_figures(strength, figures[strength])
        if options.results:
            results.write_results(options.results, dict(
                arch=options.arch, depth=options.depth, classes=network.num_classes, image_size=options.image_size,
                checkpoint=options.load, data=options.data, seed=options.seed, ranks=world.size, batch=options.batch,
                attack_dtype=options.attack_dtype, xla=options.xla, versions=results.versions(),
                checkpoint_sha256=results.checkpoint_sha256(checkpoint.checkpoint_files(options.load)),
            ), [results.attack_record(strength, figures[strength], world.size) for strength in strengths])
    return 0


def print_figures(strength: Any, figures: Any) -> None:
    """An evaluation.Strength and its Figures."""
    print('%d images, %d attack steps, epsilon %g, step size %g' % (
        figures.num_images, strength.num_iter, strength.epsilon, strength.step_used))
    for title, count in [('Top1 Error', 'wrong_top1'), ('Attack Success Rate', 'successes'),
                         ('Top5 Error', 'wrong_top5')]:
        print('%s: %.6f' % (title, figures.rate(count)))


def run_prediction(options: argparse.Namespace) -> int:
    """--eval-directory: a file of predictions; status 1 when some file was not scored."""
    import distributed
    from inference import load_classifier
    from prediction import write_predictions
    from third_party.imagenet import find_images

    if distributed.started_by_mpi():
        raise InputError('--eval-directory runs in one process, without mpirun')
    find_images(options.eval_directory)
    check_writable(options.prediction_file)
    classifier = load_classifier(options.load, options.arch, options.depth, image_size=options.image_size,
                                 batch=options.batch)
    failed = write_predictions(classifier, options.eval_directory, options.prediction_file)
    print('predictions are in %s' % options.prediction_file)
    if failed:
        print('main.py: error: %d files were not scored; they are named above' % failed, file=sys.stderr)
    return 1 if failed else 0


def run_training(options: argparse.Namespace) -> int:
    import training
    training.train(options)
    return 0


def main() -> int:
    options = parse_options(sys.argv[1:], __doc__)
    if options.eval:
        return run_evaluation(options)
    if options.eval_directory:
        return run_prediction(options)
    return run_training(options)


if __name__ == '__main__':
    run_command('main.py', main)
