#!/usr/bin/env python
"""Robust error against the minutes that a training takes, for each method of training, on CIFAR-10's photos.

    python tools/cifar10_methods.py DATA [--out methods-results] [--methods pgd-7,fast,...] [--minutes 10,20,40]

DATA has train/<class>/ and val/<class>/. Each method trains a network once for each of the --minutes; a few steps tell
how many batches these are. Every training ends with a rate of 0 (--schedule cyclic) and keeps averaged weights (--ema).
Its weights, and the averages, are attacked by untargeted PGD of 20 steps with the margin loss, budget 8 of 255. --out
gets the results, methods.md, a table, and methods.png. The same command, given again, goes on where it was interrupted.
"""
import argparse
import os
import sys
from typing import Any, Dict, List, NamedTuple, Tuple, Union

from tabulate import tabulate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from nets import network_named  # noqa: E402
from runtime.command_line import Parser, run_command, some_of  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from runtime.files import WholeFile, check_writable  # noqa: E402
from runtime.flag_values import positive_float, positive_int, several  # noqa: E402
from runtime.launcher import check_alone  # noqa: E402
from runtime.printing import check_stdout, say  # noqa: E402
from third_party.imagenet import count_images  # noqa: E402
from tools.cifar10_folders import BATCH, SHAPE, divergence, finished_checkpoint, served, work_in  # noqa: E402
from tools.commands import log_directory, run  # noqa: E402
from tools.network_flags import zoo_network  # noqa: E402
from tools.pictures import plain_axes, png_of  # noqa: E402
from tools.report import read_results  # noqa: E402

RATE = 'Throughput (samples/sec)'  # in stats.json
EPSILON = 8
UNTARGETED = ['--attack-goal', 'untargeted']

# name -> flags of main.py. The steps of PGD and TRADES are 1.5 to 1.75 epsilons together, so that from most noises they
# can cross the ball; without these flags they would be one epsilon together, as the shortest are that main.py takes
METHODS: Dict[str, List[str]] = {
    'pgd-3': ['--attack-iter', '3', '--attack-step-size', '4', *UNTARGETED],
    'pgd-7': ['--attack-iter', '7', '--attack-step-size', '2', *UNTARGETED],
    'fast': ['--method', 'fast'],
    'n-fgsm': ['--method', 'fast', '--noise', '2'],
    'free-4': ['--method', 'free', '--replays', '4'],
    'free-8': ['--method', 'free', '--replays', '8'],
    'trades': ['--method', 'trades', '--attack-iter', '3', '--attack-step-size', '4'],
}


class Run(NamedTuple):
    """A training."""
    network: str
    method: str
    base_lr: float
    epochs: int
    steps_per_epoch: int

    @property
    def batches(self) -> int:
        """Count the batches that it trains on. (`free` trains several times on each.)"""
        return self.epochs * self.steps_per_epoch

    @property
    def suffix(self) -> str:
        return 'lr%s-%d-batches' % (self.base_lr, self.batches)

    @property
    def name(self) -> str:
        """Name its files, by all that makes it another one."""
        return '%s-%s-%s' % (self.network, self.method, self.suffix)

    @property
    def flags(self) -> List[str]:
        """Return the flags of main.py that train."""
        return [*network_named(self.network).flags, '--batch', str(BATCH), '--attack-epsilon', str(EPSILON),
                '--max-epoch', str(self.epochs), '--steps-per-epoch', str(self.steps_per_epoch),
                '--base-lr', str(self.base_lr), '--schedule', 'cyclic',
                '--ema', '0.99', '--training-eval', 'clean', '--logdir', self.suffix] + SHAPE + METHODS[self.method]


class Measured(NamedTuple):
    """What came of a training: minutes that it took, and the records of its attacks, by --weights."""
    minutes: float
    records: Dict[str, Dict[str, Any]]


def train(flags: List[str], photos: str, log: str, out: str, *, how: str = '--resume') -> None:
    """Train, or go on; with --overwrite, from nothing."""
    with served(photos, out) as endpoint:
        run([sys.executable, os.path.join(ROOT, 'main.py'), '--data', photos, '--endpoint', endpoint] + flags
            + [how], log, out)


def epochs_of(log: str) -> Dict[int, Dict[str, float]]:
    """Return the records of a training's epochs that say how fast it was, by their numbers."""
    from training.records import read_statistics
    return {record['epoch_num']: record for record in read_statistics(log) if RATE in record}


def seconds_and_steps(log: str) -> Tuple[float, int]:
    """Return the seconds that a training's epochs took, without what is between them, and its steps.

    An epoch of which the seconds were not written, as its process was killed, took as long as the others. Raises
    InputError where there is no epoch.
    """
    from training.records import read_statistics
    records = read_statistics(log)
    before, known, seconds = 0, 0, 0.0
    for record in records:
        steps, before = record['global_step'] - before, record['global_step']
        if RATE in record:
            known, seconds = known + steps, seconds + steps * BATCH / record[RATE]
    if not known:
        raise InputError('%s doesn\'t say how long its training took: remove it, and give the same command again' % log)
    return seconds * before / known, before


def batches_per_second(what: Run, num_steps: int, photos: str, out: str) -> float:
    """Train like `what`, for two epochs of so many steps, and return how many batches a second of the second one took.

    It hardly learns, so that it can't diverge.
    """
    flags = what._replace(epochs=2, steps_per_epoch=num_steps, base_lr=1e-6).flags
    flags[flags.index('--logdir') + 1] = 'probe-%d' % num_steps
    log = log_directory(['--data', photos] + flags, folder=out)
    if 2 not in epochs_of(log):
        # one that was interrupted would tell the speed of a part of its epoch
        train(flags, photos, os.path.join(out, '%s-%s-probe.log' % (what.network, what.method)), out, how='--overwrite')
    epochs = epochs_of(log)
    if 2 not in epochs:
        raise InputError('the training that tells the speed of %s was stopped: give the same command again'
                         % what.method)
    return epochs[2][RATE] / BATCH


def lasting(what: Run, batches: float, images: int) -> Run:
    """Return the training on so many batches, or one at least, in epochs of about one pass over the images."""
    epochs = max(1, round(batches * BATCH / images))
    return what._replace(epochs=epochs, steps_per_epoch=max(1, round(batches / epochs)))


def measure(what: Run, photos: str, out: str) -> Union[str, Measured]:
    """Train and attack: OUT/NAME-raw.json and OUT/NAME-ema.json. Return what the training said where it diverged, which
    OUT/NAME.diverged keeps."""
    path = os.path.join(out, what.name)
    if os.path.exists(path + '.diverged'):
        with open(path + '.diverged') as f:
            return f.read().strip()
    log = log_directory(['--data', photos] + what.flags, folder=out)
    results = {weights: '%s-%s.json' % (path, weights) for weights in ('raw', 'ema')}
    if not all(map(os.path.exists, results.values())):
        try:
            train(what.flags, photos, path + '-training.log', out)
        except InputError:
            said = divergence(path + '-training.log')
            if not said:
                raise
            with WholeFile(path + '.diverged') as f:
                f.write(said + '\n')
            return said
        checkpoint = finished_checkpoint(log, what.epochs)
        for weights, file in results.items():
            run([sys.executable, os.path.join(ROOT, 'main.py'), '--eval', '--load', checkpoint, '--weights', weights,
                 '--data', photos, *network_named(what.network).flags, '--batch', '200', '--attack-iter', '0,20',
                 '--attack-epsilon', str(EPSILON), '--attack-step-size', '2', '--attack-loss', 'margin', *UNTARGETED,
                 '--results', file] + SHAPE, path + '-evaluation.log', out)
    records = {}
    for weights, file in results.items():
        clean, attacked = sorted(read_results(file)['attacks'], key=lambda r: r['attack_iter'])
        records[weights] = dict(attacked, clean=clean['top1_error'])
    return Measured(seconds_and_steps(log)[0] / 60, records)


def table(measured: Dict[Run, Union[str, Measured]]) -> str:
    """Lay out errors in percent as a table in Markdown, with 95% intervals."""
    def cells(record: Dict[str, Any]) -> List[str]:
        low, high = record['top1_error_interval']
        return ['%.1f' % (100 * record['clean']),
                '%.1f (%.1f to %.1f)' % (100 * record['top1_error'], 100 * low, 100 * high)]
    rows = [[r.method, r.batches] + (['', 'diverged: ' + m] if isinstance(m, str) else
                                    ['%.1f' % m.minutes] + cells(m.records['raw']) + cells(m.records['ema']))
            for r, m in measured.items()]
    return tabulate(rows, ['method', 'batches', 'minutes', 'clean', 'PGD-20, margin', 'clean, averaged weights',
                           'PGD-20, averaged weights'], tablefmt='github', disable_numparse=True)


def draw(measured: Dict[Run, Union[str, Measured]]) -> bytes:
    """Draw robust errors against minutes of training, of the weights, and dashed of their averages; return the bytes
    of a PNG."""
    figure, axes = plain_axes()
    for i, method in enumerate(dict.fromkeys(r.method for r in measured)):
        of_method = sorted((m for r, m in measured.items() if r.method == method and isinstance(m, Measured)),
                           key=lambda m: m.minutes)
        for weights, style in (('raw', '-'), ('ema', '--')):
            rates = [m.records[weights]['top1_error'] for m in of_method]
            ends = [m.records[weights]['top1_error_interval'] for m in of_method]
            errors = [[100 * (rate - low) for rate, (low, _) in zip(rates, ends)],
                      [100 * (high - rate) for rate, (_, high) in zip(rates, ends)]]
            axes.errorbar([m.minutes for m in of_method], [100 * rate for rate in rates], errors, color='C%d' % i,
                          linestyle=style, marker='o', markersize=4, capsize=3,
                          label=method + (', averaged' if weights == 'ema' else ''))
    axes.set_xlabel('minutes of training')
    axes.set_ylabel('top-1 error under PGD-20, margin loss, %')
    axes.legend(fontsize=7, frameon=False, ncol=2, handlelength=4, markerscale=0)
    return png_of(figure)


def command_line() -> Parser:
    parser = Parser(prog='cifar10_methods.py', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    parser.add_argument('--out', default=os.path.join(ROOT, 'methods-results'), metavar='DIR',
                        help='for all that it makes (methods-results)')
    parser.add_argument('--methods', default=','.join(METHODS), metavar='NAME[,NAME...]',
                        help='some of %s' % ', '.join(METHODS))
    parser.add_argument('--minutes', type=several(positive_float), default=[10.0, 20.0, 40.0], metavar='T[,T...]',
                        help='of training (10,20,40)')
    parser.add_argument('--network', default='ResNet-14', metavar='NAME', help='of the zoo (ResNet-14)')
    parser.add_argument('--base-lr', type=positive_float, default=0.4, help='at its peak, for 256 images (0.4)')
    parser.add_argument('--probe-steps', type=positive_int, default=40, metavar='K',
                        help='that tell how fast a method is, after as many to warm up (40)')
    parser.add_argument('--val-images', type=positive_int, default=1000, help='how many are attacked (1000)')
    return parser


def main() -> int:
    options = command_line().parse_args(sys.argv[1:])
    check_alone('cifar10_methods.py')
    check_stdout()
    methods = some_of(options.methods, METHODS, flag='--methods', what='method')
    zoo_network(options.network)
    out, photos, locked = work_in(options.data, options.out, options.val_images, 'cifar10_methods.py')
    made, picture = [os.path.join(out, 'methods' + end) for end in ('.md', '.png')]
    for path in (made, picture):
        check_writable(path)
    images = count_images(photos, 'train')
    measured: Dict[Run, Union[str, Measured]] = {}
    for method in methods:
        any_length = Run(options.network, method, options.base_lr, 1, 1)
        rate = batches_per_second(any_length, options.probe_steps, photos, out)
        for minutes in options.minutes:
            what = lasting(any_length, minutes * 60 * rate, images)
            measured[what] = measure(what, photos, out)
            with WholeFile(made) as f:
                f.write(table(measured) + '\n')
    with WholeFile(picture) as f:
        f.write(draw(measured))
    locked.close()
    say(table(measured))
    return 0


if __name__ == '__main__':
    run_command('cifar10_methods.py', main)
