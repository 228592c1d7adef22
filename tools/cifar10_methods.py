#!/usr/bin/env python
"""Robust error against the minutes that a training takes, for each method of training, on CIFAR-10's photos.

    python tools/cifar10_methods.py DATA [--out methods-results] [--methods pgd-7,fast,...] [--minutes 10,20,40]

DATA has train/<class>/ and val/<class>/. Each method trains a network once for each of the --minutes; 40 steps tell how
many epochs these are. Every training ends with a rate of 0 (--schedule cyclic) and keeps averaged weights (--ema). Its
weights, and the averages, are attacked by untargeted PGD of 20 steps with the margin loss, budget 8 of 255. --out gets
the results, methods.md, a table, and methods.png. The same command, given again, goes on where it was interrupted.
"""
import argparse
import os
import sys
from typing import Any, Dict, List, NamedTuple

from tabulate import tabulate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from main import parse_options, positive_float, positive_int, several  # noqa: E402
from nets import network_named  # noqa: E402
from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from runtime.printing import say  # noqa: E402
from tools.cifar10_folders import work_in  # noqa: E402
from tools.commands import data_server, run  # noqa: E402
from tools.pictures import plain_axes, save_picture  # noqa: E402
from tools.report import read_results  # noqa: E402

BATCH = 128
PROBE_STEPS = 40
EPSILON = 8
SHAPE = ['--image-size', '32']
UNTARGETED = ['--attack-goal', 'untargeted']

# name -> flags of main.py
METHODS: Dict[str, List[str]] = {
    'pgd-3': ['--attack-iter', '3', *UNTARGETED],
    'pgd-7': ['--attack-iter', '7', '--attack-step-size', '2', *UNTARGETED],
    'fast': ['--method', 'fast'],
    'n-fgsm': ['--method', 'fast', '--noise', '2'],
    'free-4': ['--method', 'free', '--replays', '4'],
    'free-8': ['--method', 'free', '--replays', '8'],
    'trades': ['--method', 'trades', '--attack-iter', '3'],
}


class Run(NamedTuple):
    """A training: a method, the minutes that are wished for, and the epochs that they are."""
    network: str
    method: str
    minutes: float
    epochs: int

    @property
    def name(self) -> str:
        return '%s-%s-%g-minutes' % (self.network, self.method, self.minutes)


class Measured(NamedTuple):
    """What came of a training: minutes that it took, and the records of its attacks, by --weights."""
    minutes: float
    records: Dict[str, Dict[str, Any]]


def training_flags(what: Run, suffix: str, base_lr: float) -> List[str]:
    """Return the flags of main.py that train."""
    return [*network_named(what.network).flags, '--batch', str(BATCH), '--attack-epsilon', str(EPSILON),
            '--max-epoch', str(what.epochs), '--base-lr', '%g' % base_lr, '--schedule', 'cyclic', '--ema', '0.99',
            '--training-eval', 'clean', '--logdir', suffix] + SHAPE + METHODS[what.method]


def train(flags: List[str], photos: str, log: str, out: str) -> str:
    """Train, or go on; return the log directory."""
    from training.log_directory import log_directory_of  # with TensorFlow: wrong flags are told without
    server = ['--batch', str(BATCH), '--workers', '1', '--min-crop-area', '0.5'] + SHAPE
    with data_server(photos, server, os.path.join(out, 'server.log'), out) as endpoint:
        command = ['--data', photos, '--endpoint', endpoint] + flags
        run([sys.executable, os.path.join(ROOT, 'main.py')] + command + ['--resume'], log, out)
    return os.path.join(out, log_directory_of(parse_options(command), 1))


def images_per_second(network: str, method: str, photos: str, out: str, base_lr: float) -> float:
    """Return how many images a second of training takes, of a short one."""
    from training.records import read_statistics
    flags = training_flags(Run(network, method, 0, 1), 'probe', base_lr) + ['--steps-per-epoch', str(PROBE_STEPS)]
    log = train(flags, photos, os.path.join(out, '%s-%s-probe.log' % (network, method)), out)
    return read_statistics(log)[-1]['Throughput (samples/sec)']


def minutes_of(log: str) -> float:
    """Return the minutes that a training's epochs took, without what is between them."""
    from training.records import read_statistics
    records = [r for r in read_statistics(log) if 'Throughput (samples/sec)' in r]
    steps = [r['global_step'] for r in records]
    return sum((step - before) * BATCH / r['Throughput (samples/sec)']
               for r, step, before in zip(records, steps, [0] + steps)) / 60


def measure(what: Run, photos: str, out: str, base_lr: float) -> Measured:
    """Train and attack: OUT/NAME-raw.json and OUT/NAME-ema.json."""
    from training.log_directory import newest_complete
    path = os.path.join(out, what.name)
    log = train(training_flags(what, '%g-minutes' % what.minutes, base_lr), photos,
                path + '-training.log', out)
    checkpoint = newest_complete(log)
    if checkpoint is None:
        raise InputError('there is no complete checkpoint in %s' % log)
    records = {}
    for weights in ('raw', 'ema'):
        results = '%s-%s.json' % (path, weights)
        if not os.path.exists(results):
            run([sys.executable, os.path.join(ROOT, 'main.py'), '--eval', '--load', checkpoint, '--weights', weights,
                 '--data', photos, *network_named(what.network).flags, '--batch', '200', '--attack-iter', '0,20',
                 '--attack-epsilon', str(EPSILON), '--attack-step-size', '2', '--attack-loss', 'margin', *UNTARGETED,
                 '--results', results] + SHAPE, path + '-evaluation.log', out)
        clean, attacked = sorted(read_results(results)['attacks'], key=lambda r: r['attack_iter'])
        records[weights] = dict(attacked, clean=clean['top1_error'])
    return Measured(minutes_of(log), records)


def table(measured: Dict[Run, Measured]) -> str:
    """Lay out errors in percent as a table in Markdown, with 95% intervals."""
    def cells(record: Dict[str, Any]) -> List[str]:
        low, high = record['top1_error_interval']
        return ['%.1f' % (100 * record['clean']),
                '%.1f (%.1f to %.1f)' % (100 * record['top1_error'], 100 * low, 100 * high)]
    rows = [[r.method, r.epochs, '%.1f' % m.minutes] + cells(m.records['raw']) + cells(m.records['ema'])
            for r, m in measured.items()]
    return tabulate(rows, ['method', 'epochs', 'minutes', 'clean', 'PGD-20, margin', 'clean, averaged weights',
                           'PGD-20, averaged weights'], tablefmt='github', disable_numparse=True)


def draw(measured: Dict[Run, Measured], path: str) -> None:
    """Draw robust errors against minutes of training, to a PNG: of the weights, and dashed of their averages."""
    figure, axes = plain_axes()
    for i, method in enumerate(dict.fromkeys(r.method for r in measured)):
        of_method = sorted((m for r, m in measured.items() if r.method == method), key=lambda m: m.minutes)
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
    axes.legend(fontsize=7, frameon=False, ncol=2)
    save_picture(figure, path)


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
    parser.add_argument('--val-images', type=positive_int, default=1000, help='how many are attacked (1000)')
    return parser


def main() -> int:
    options = command_line().parse_args(sys.argv[1:])
    methods = list(dict.fromkeys(options.methods.split(',')))
    for method in methods:
        if method not in METHODS:
            raise InputError('--methods %s: there is no such method; choose of %s' % (method, ', '.join(METHODS)))
    network_named(options.network)
    out, photos, locked = work_in(options.data, options.out, options.val_images, 'cifar10_methods.py')
    images = sum(len(files) for _, _, files in os.walk(os.path.join(photos, 'train'), followlinks=True))
    measured: Dict[Run, Measured] = {}
    for method in methods:
        rate = images_per_second(options.network, method, photos, out, options.base_lr)
        for minutes in options.minutes:
            what = Run(options.network, method, minutes, max(1, round(minutes * 60 * rate / images)))
            measured[what] = measure(what, photos, out, options.base_lr)
    text = table(measured)
    try:
        with open(os.path.join(out, 'methods.md'), 'w') as f:
            f.write(text + '\n')
        draw(measured, os.path.join(out, 'methods.png'))
    except OSError as e:
        raise InputError('cannot write to %s: %s' % (out, e.strerror))
    locked.close()
    say(text)
    return 0


if __name__ == '__main__':
    run_command('cifar10_methods.py', main)
