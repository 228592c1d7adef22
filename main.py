#!/usr/bin/env python
"""Train ImageNet classifiers against a strong adversary, and measure how robust they are.

    python main.py --eval --load CKPT --data DIR --arch A -d N --attack-iter K          white-box evaluation
    python main.py --eval-directory DIR --load CKPT --arch A -d N                       black-box scoring
    mpirun -np 16 ... python main.py --data DIR --batch 32 --arch A -d N                training, beside a data server
"""
import argparse
import math
import os
import sys
from typing import Any, Callable, List

from errors import InputError, Parser, run_command


LARGEST = 2 ** 31 - 1


def positive_int(text: str) -> int:
    value = int(text)
    if not 1 <= value <= LARGEST:
        raise argparse.ArgumentTypeError('%s is not a positive number below 2**31' % text)
    return value


def natural(text: str) -> int:
    value = int(text)
    if not 0 <= value <= LARGEST:
        raise argparse.ArgumentTypeError('%s is not from 0 to 2**31 - 1' % text)
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError('%s is not a positive number' % text)
    return value


def several(of_one: Callable[[str], Any]) -> Callable[[str], List[Any]]:
    """Values with commas between them, without repetitions."""
    def parse(text: str) -> List[Any]:
        try:
            return list(dict.fromkeys(of_one(part) for part in text.split(',')))
        except ValueError:
            raise argparse.ArgumentTypeError('%r is no number, or several with commas between them' % text)
    return parse


def check_writable(path: str) -> None:
    """Raises InputError where no file can be written: better known before the work than after it."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise InputError('cannot write %s: it is a folder' % path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError('cannot write %s: it is not a file, and would be replaced by one' % path)
    if not os.path.isdir(folder):
        raise InputError('cannot write %s: there is no folder %s' % (path, folder))
    if not os.access(folder, os.W_OK):
        raise InputError('cannot write %s: you may not write to %s' % (path, folder))


def parse_options(arguments: List[str]) -> argparse.Namespace:
    """The command line as a plain object. Raises InputError for flags that are wrong or don't go together."""
    parser = Parser(prog='main.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-d', '--depth', type=int, default=50, help='layers: 50, 101 or 152; 14 for small images (50)')
    parser.add_argument('--arch', default='ResNet', help='ResNet, ResNetDenoise or ResNeXtDenoiseAll (ResNet)')
    parser.add_argument('--load', metavar='CKPT', help='an .npz file or a TF checkpoint: to evaluate, or to start from')
    parser.add_argument('--batch', type=positive_int, default=32, help='images per GPU or process (32)')
    parser.add_argument('--use-fp16xla', action='store_true',
                        help='the attack in float16, compiled by XLA: faster on GPUs, a little less robust')
    data = parser.add_argument_group('data')
    data.add_argument('--data', metavar='DIR', help='folder with train/ and val/')
    data.add_argument('--classes', metavar='FILE', help='class names, one a line, in label order')
    data.add_argument('--image-size', type=positive_int, default=224, metavar='S', help='height and width (224)')
    data.add_argument('--fake', action='store_true', help='train on constant data, without a data server')
    data.add_argument('--no-zmq-ops', action='store_true', help='receive training data in Python instead of by the native op')
    data.add_argument('--endpoint', help='of the data server; by default the one of this batch and image size')
    attack = parser.add_argument_group('attack')
    attack.add_argument('--attack-iter', type=several(natural), default=[30], metavar='K[,K...]', dest='attack_iters',
                        help='steps; 0 is no attack; an evaluation takes several (30)')
    attack.add_argument('--attack-epsilon', type=several(positive_float), default=[16.0], metavar='E[,E...]',
                        dest='attack_epsilons', help='budget in pixels, of 255; an evaluation takes several (16)')
    attack.add_argument('--attack-step-size', type=positive_float, default=1.0,
                        help='in pixels; epsilon / K where that is more (1)')
    attack.add_argument('--seed', type=natural, default=0, help='of an evaluation\'s targets and noise (0)')
    job = parser.add_argument_group('evaluation and scoring')
    job.add_argument('--eval', action='store_true', help='evaluate --load on the validation images of --data')
    job.add_argument('--results', metavar='FILE', help='where the figures of --eval go, as JSON')
    job.add_argument('--eval-directory', metavar='DIR', help='classify all images below a folder with --load')
    job.add_argument('--prediction-file', default='predictions.txt', metavar='FILE',
                     help='where the lines `path,label` go (predictions.txt)')
    training = parser.add_argument_group('training')
    training.add_argument('--logdir', help='a suffix for the log directory\'s name below train_log/')
    training.add_argument('--overwrite', action='store_true', help='delete a log directory that is there already')
    training.add_argument('--starting-epoch', type=positive_int, default=1)
    training.add_argument('--max-epoch', type=positive_int, default=110,
                          help='number of epochs; the schedule scales with it (110)')
    training.add_argument('--steps-per-epoch', type=positive_int, help='by default one pass over the training images')
    training.add_argument('--base-lr', type=positive_float, default=0.1, help='learning rate per 256 images (0.1)')
    training.add_argument('--training-eval', choices=['all', 'clean', 'none'], default='all',
                          help='evaluations between epochs: those of the paper, clean ones, or none (all)')
    training.add_argument('--data-timeout', type=positive_float, default=300, metavar='SECONDS',
                          help='how long to wait for the data server (300)')
    options = parser.parse_args(arguments)
    check_options(options)
    options.attack_iter, options.attack_epsilon = options.attack_iters[0], options.attack_epsilons[0]
    return options


def check_options(options: argparse.Namespace) -> None:
    if options.eval and options.eval_directory:
        raise InputError('--eval and --eval-directory are two jobs: give one of them')
    if (options.eval or options.eval_directory) and not options.load:
        raise InputError('nothing to evaluate: give the checkpoint with --load')
    if options.eval and not options.data:
        raise InputError('--eval needs --data, a folder with val/')
    if not (options.eval or options.eval_directory or options.data or options.fake):
        raise InputError('training needs --data, a folder with train/ and val/ (or --fake)')
    if not options.eval and len(options.attack_iters) * len(options.attack_epsilons) > 1:
        raise InputError('several values of --attack-iter or --attack-epsilon go with --eval alone')
    if options.results and not options.eval:
        raise InputError('--results goes with --eval')
    if options.starting_epoch > options.max_epoch:
        raise InputError('--starting-epoch %d comes after --max-epoch %d' % (options.starting_epoch, options.max_epoch))


def run_evaluation(options: argparse.Namespace) -> int:
    """--eval: the figures of every attack on stdout, and in --results."""
    import checkpoint
    import distributed
    import evaluation
    import results
    from adv_model import attack_settings
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
    with tf.Graph().as_default() as graph:
        tower = evaluation.AttackTower(network, options.image_size, mode=native_mode(), seed=options.seed,
                                       **attack_settings(options.use_fp16xla))
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
                attack_dtype='float16' if options.use_fp16xla else 'float32', versions=results.versions(),
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
    options = parse_options(sys.argv[1:])
    if options.eval:
        return run_evaluation(options)
    if options.eval_directory:
        return run_prediction(options)
    return run_training(options)


if __name__ == '__main__':
    run_command('main.py', main)
