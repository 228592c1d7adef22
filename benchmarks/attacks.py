#!/usr/bin/env python
"""How fast a step of each attack is, beside PyTorch's libraries, measured in turns in one run.

    python benchmarks/attacks.py --peer torch --torch-python TORCH_ENVIRONMENT/bin/python --table attacks.md

Prints one JSON line for each system; `ratio` is to the paper's PGD by this project.
    pgd LOSS GOAL, apgd LOSS GOAL    this project; those of --attacks, and the paper's PGD
    torchattacks PGD, APGD           torchattacks' as installed, untargeted, by cross-entropy; float32
    pyautoattack APGD                AutoAttack's own, likewise; where that is installed
"""
import argparse
import functools
import os
import subprocess
import sys
from typing import Callable, List

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

from pgd import UNIT, add_flags, check_flags, rate_of_attack  # noqa: E402
from turns import (  # noqa: E402
    Configuration,
    Worker,
    draw,
    markdown_table,
    report,
    serve_turns,
    take_turns,
    worker_configuration,
)

from attacks.table import GOALS, LOSSES, address_of  # noqa: E402
from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from runtime.own_code import load_code  # noqa: E402

PAPERS = 'pgd ce targeted'
PEERS = ['torchattacks PGD', 'torchattacks APGD', 'pyautoattack APGD']
DEFAULT = 'pgd ce untargeted,pgd margin untargeted,pgd dlr untargeted,apgd ce untargeted,apgd dlr targeted'


def attack_rate(c: Configuration) -> Callable[[], float]:
    """Return what measures an attack of this project, in image-steps a second."""
    attacker, loss, goal = c.system.split()
    made = load_code('the attacker', address_of(attacker))
    return rate_of_attack(c, functools.partial(made, loss=loss, goal=goal), by_index=True)


def check_attacks(attacks: List[str]) -> None:
    """Raise InputError where a text is not an attacker, a loss and a goal."""
    for text in attacks:
        words = text.split()
        if len(words) != 3 or words[1] not in LOSSES or words[2] not in GOALS:
            raise InputError('--attacks are an attacker, a loss (%s) and a goal (%s) each, like \'%s\', not \'%s\''
                             % (', '.join(LOSSES), ', '.join(GOALS), PAPERS, text))
        address_of(words[0])


def main() -> int:
    c = worker_configuration()
    if c is not None:
        serve_turns(functools.partial(attack_rate, c))
        return 0
    parser = Parser(prog='attacks.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument('--steps', type=int, default=20, help='of each turn\'s attack (20)')
    parser.add_argument('--attacks', default=DEFAULT, metavar='\'A L G\'[,...]',
                        help='attackers, losses and goals (%s)' % DEFAULT)
    args = parser.parse_args()
    check_flags(args)
    attacks = list(dict.fromkeys([PAPERS] + args.attacks.split(',')))
    check_attacks(attacks)
    networks, workers = args.network.split(','), []

    def start(python: str, script: str, system: str, network: str, dtype: str) -> None:
        workers.append(Worker(python, script, Configuration(
            system=system, dtype=dtype, job='attacks', network=network, batch=args.batch, image_size=args.image_size,
            threads=args.threads, steps=args.steps)))
    for network in networks:
        for dtype in args.dtypes.split(','):
            for system in attacks:
                start(sys.executable, 'attacks.py', system, network, dtype)
        for system in PEERS if args.peer else []:
            if not system.startswith('pyautoattack') or has_library(args.torch_python):
                start(args.torch_python, 'torch_peer.py', system, network, 'float32')
    answers = take_turns([worker.turn for worker in workers], args.repeats)
    for worker in workers:
        worker.close()
    records = report(workers, answers, UNIT, dict.fromkeys(networks, 0.0), PAPERS)
    if args.table:
        with open(args.table, 'w') as f:
            f.write(markdown_table(records, UNIT) + '\n')
    if args.plot:
        draw(records, UNIT, args.plot, '%dx%d, batch %d, %d threads'
             % (args.image_size, args.image_size, args.batch, args.threads))
    return 0


def has_library(python: str) -> bool:
    """Tell whether a Python has pyautoattack."""
    return subprocess.run([python, '-c', 'import pyautoattack'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0


if __name__ == '__main__':
    run_command('attacks.py', main)
