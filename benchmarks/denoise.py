#!/usr/bin/env python
"""How long a step of the attack takes, and how much memory, with each denoising operation after each of the four
groups, beside the network without them, measured in turns in one run.

    python benchmarks/denoise.py [--operations mean,median] [--where block] [--table denoise.md]

Prints one JSON line for each network; `ratio` is of rates, to the one without denoising.
"""
import argparse
import os
import statistics
import sys
from typing import Any, Dict, List

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

from pgd import UNIT  # noqa: E402
from turns import Configuration, Worker, report, take_turns  # noqa: E402

from nets import DEPTHS, OPERATIONS, PLACES, find_network  # noqa: E402
from runtime.command_line import Parser, run_command, some_of  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from runtime.files import check_writable  # noqa: E402

SYSTEM = 'this project'


def networks_of(args: argparse.Namespace) -> List[str]:
    """Name the networks that are measured, first the one without denoising. Raises InputError for unknown ones."""
    denoising = [find_network('ResNetDenoise', args.depth, denoise=operation, denoise_where=args.where)
                 for operation in some_of(args.operations, OPERATIONS, flag='--operations', what='operation')]
    return [find_network('ResNet', args.depth).name] + [network.name for network in denoising]


def table(records: List[Dict[str, Any]], answers: List[List[Dict[str, float]]], batch: int) -> str:
    """Lay out times and memory as a table in Markdown; times of a step are the medians', and their ratios those in the
    same turn."""
    from tabulate import tabulate
    rows, first = [], [answer['rate'] for answer in answers[0]]
    for record, of_network in zip(records, answers):
        times = statistics.median(base / answer['rate'] for base, answer in zip(first, of_network))
        rows.append([record['network'], '%.3f s' % (batch / record[UNIT]), '%.2f' % times,
                     '%.2f GB' % (record['peak_memory_bytes'] / 1e9),
                     '%.2f' % (record['peak_memory_bytes'] / records[0]['peak_memory_bytes'])])
    titles = ['network', 'a step', 'times', 'peak memory', 'times']
    return tabulate(rows, titles, tablefmt='github', disable_numparse=True)


def main() -> int:
    parser = Parser(prog='denoise.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--operations', default=','.join(OPERATIONS), metavar='NAME[,NAME...]',
                        help='by default all: ' + ', '.join(OPERATIONS))
    parser.add_argument('--where', choices=PLACES, default=PLACES[0], help='(group)')
    parser.add_argument('--depth', type=int, default=50, help=', '.join(map(str, DEPTHS)) + ' (50)')
    parser.add_argument('--batch', type=int, default=8, help='(8)')
    parser.add_argument('--image-size', type=int, default=224, help='(224)')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='by default one a core')
    parser.add_argument('--dtype', default='float32', help='float32 or bfloat16 (float32)')
    parser.add_argument('--steps', type=int, default=4, help='of each turn\'s attack (4)')
    parser.add_argument('--repeats', type=int, default=5, help='turns (5)')
    parser.add_argument('--table', metavar='FILE', help='write the table there, too')
    args = parser.parse_args()
    if min(args.batch, args.image_size, args.threads, args.steps, args.repeats) < 1:
        raise InputError('--batch, --image-size, --threads, --steps and --repeats must be positive')
    if args.dtype not in ('float32', 'bfloat16'):
        raise InputError('--dtype is float32 or bfloat16, not %s' % args.dtype)
    if args.table:
        check_writable(args.table)
    networks = networks_of(args)
    workers = [Worker(sys.executable, 'pgd.py', Configuration(
        system=SYSTEM, dtype=args.dtype, job='pgd', network=network, batch=args.batch, image_size=args.image_size,
        threads=args.threads, steps=args.steps)) for network in networks]
    answers = take_turns([worker.turn for worker in workers], args.repeats)
    for worker in workers:
        worker.close()
    text = table(report(workers, answers, UNIT, dict.fromkeys(networks, 0.0), SYSTEM), answers, args.batch)
    print(text, file=sys.stderr)
    if args.table:
        with open(args.table, 'w') as f:
            f.write(text + '\n')
    return 0


if __name__ == '__main__':
    run_command('denoise.py', main)
