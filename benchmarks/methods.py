#!/usr/bin/env python
"""How much a training step costs by each method, in steps of the attack, measured in turns in one run.

    python benchmarks/methods.py [--network ResNet-50] [--methods pgd-3,pgd-7,fast] [--table methods.md]

Runs trainings by main.py on constant data, one after another, forwards and backwards through the list. Prints a JSON
line for each method: `images_per_second`, where an image that is replayed counts once, and `image_steps`, how many
image-steps (a forward pass and a gradient of the image, in the attack) an image takes the time of. What an image-step
takes is a quarter of what 7 steps of PGD take more than 3.
"""
import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
from typing import Any, Dict, List

from tabulate import tabulate

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

from scaling import UPDATE, free, pgd, trades  # noqa: E402
from turns import take_turns  # noqa: E402

from nets import network_named  # noqa: E402
from runtime.command_line import Parser, run_command, some_of  # noqa: E402
from runtime.errors import RunError  # noqa: E402
from runtime.files import WholeFile, check_writable  # noqa: E402
from runtime.flag_values import positive_int  # noqa: E402
from tools.cifar10_methods import METHODS, RATE  # noqa: E402
from tools.commands import log_directory, run  # noqa: E402
from tools.network_flags import zoo_network  # noqa: E402

STANDARD = 'standard'
FEW, MANY = 'pgd-3', 'pgd-7'
COSTS = {STANDARD: pgd(0), FEW: pgd(3), MANY: pgd(7), 'fast': pgd(1), 'n-fgsm': pgd(1), 'free-4': free(4),
         'free-8': free(8), 'trades': trades(3)}


def rate_of(method: str, args: argparse.Namespace) -> float:
    """Train for two epochs, and return the images a second of the second one."""
    flags = ['--fake', *network_named(args.network).flags, '--batch', str(args.batch), '--image-size',
             str(args.image_size), '--steps-per-epoch', str(args.steps), '--max-epoch', '2', '--training-eval', 'none',
             *(METHODS[method] + ['--on-overfitting', 'ignore'] if method in METHODS else ['--attack-iter', '0'])]
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, os.path.join(sys.path[0], 'main.py')] + flags, os.path.join(folder, 'log'), folder)
        from training.records import read_statistics
        return read_statistics(log_directory(flags, folder=folder))[-1][RATE]


def image_steps(rates: Dict[str, List[float]], method: str) -> List[float]:
    """Return, turn by turn, the time of a method's image in image-steps. rates: images a second of each turn.

    Raises RunError where 7 steps of PGD were no slower than 3.
    """
    if any(many >= few for few, many in zip(rates[FEW], rates[MANY])):
        raise RunError('%s was no slower than %s: measure more --steps, on an idle machine' % (MANY, FEW))
    return [4 / rate / (1 / many - 1 / few) for rate, few, many in zip(rates[method], rates[FEW], rates[MANY])]


def report(rates: Dict[str, List[float]], args: argparse.Namespace) -> str:
    """Print a JSON line for each method; return a table in Markdown."""
    def text(values: List[float], form: str) -> str:
        return (form + ' (' + form + ' to ' + form + ')') % (statistics.median(values), min(values), max(values))
    rows: List[List[Any]] = []
    for method, of_turns in rates.items():
        steps, counted = image_steps(rates, method), COSTS[method].image_steps(UPDATE)
        print(json.dumps(dict(
            method=method, network=args.network, batch=args.batch, image_size=args.image_size,
            images_per_second=statistics.median(of_turns), lowest=min(of_turns), highest=max(of_turns),
            image_steps=round(statistics.median(steps), 3), counted=counted, repeats=len(of_turns))), flush=True)
        rows.append([method, text(of_turns, '%.2f'), text(steps, '%.1f'), '%.1f' % counted])
    return tabulate(rows, ['method', 'images/s', 'image-steps an image', 'counted'], tablefmt='github',
                    disable_numparse=True)


def main() -> int:
    parser = Parser(prog='methods.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='ResNet-50', metavar='NAME', help='of the zoo (ResNet-50)')
    parser.add_argument('--methods', default=','.join(COSTS), metavar='NAME[,NAME...]',
                        help='some of %s; %s and %s always are' % (', '.join(COSTS), FEW, MANY))
    parser.add_argument('--batch', type=positive_int, default=8, help='(8)')
    parser.add_argument('--image-size', type=positive_int, default=224, help='(224)')
    parser.add_argument('--steps', type=positive_int, default=4, metavar='K', help='of each training\'s epochs (4)')
    parser.add_argument('--repeats', type=positive_int, default=3, help='turns (3)')
    parser.add_argument('--table', metavar='FILE', help='write the table there, too')
    args = parser.parse_args()
    wanted = some_of(args.methods, COSTS, flag='--methods', what='method')
    zoo_network(args.network)
    if args.table:
        check_writable(args.table)
    methods = [method for method in COSTS if method in wanted + [FEW, MANY]]
    rates = take_turns([functools.partial(rate_of, method, args) for method in methods], args.repeats)
    text = report(dict(zip(methods, rates)), args)
    print(text, file=sys.stderr)
    if args.table:
        with WholeFile(args.table) as f:
            f.write(text + '\n')
    return 0


if __name__ == '__main__':
    run_command('methods.py', main)
