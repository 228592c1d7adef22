"""Attack a network in every way of a table, and show what finds most errors for the steps that it takes.

    python -m tools.compare_attacks CKPT --arch A -d N --data DIR --eps 8 --out compared [--subset S]

Each way is a command `main.py --eval`, which is printed before it runs. --out gets its results; attacks.md, a table of
top-1 errors with 95% intervals; and attacks.png, a picture of errors against gradient steps spent on an image, that is
steps times starts. The same command, given again, goes on where it was interrupted. --only takes some of the ways.
"""
import argparse
import csv
import logging
import os
import signal
import sys
from typing import Any, Dict, List, NamedTuple, Set

from tabulate import tabulate

from evaluation.attack_flags import evaluated_images
from evaluation.preflight import check_places
from evaluation.results import wilson_interval
from main import parse_options
from nets import network_of
from runtime.command_line import Parser, run_command, some_of
from runtime.errors import InputError
from runtime.files import WholeFile, check_folder, check_writable
from runtime.flag_values import natural, positive_float, positive_int, several
from runtime.launcher import check_alone
from runtime.pixels import mistaken_attack
from runtime.printing import check_stdout, say
from third_party.imagenet import load_dataset
from third_party.preparations import PREPARATIONS
from tools.commands import ROOT, run, stop
from tools.network_flags import add_network_flags, check_network
from tools.pictures import plain_axes, png_of
from tools.report import read_results

log = logging.getLogger(__name__)

MOST_TARGETS = 9  # as of AutoAttack's targeted attacks
UNTARGETED = ('--attack-goal', 'untargeted')


class Way(NamedTuple):
    """A way to attack: its title, and the flags of main.py that make it of the paper's attack."""
    title: str
    flags: List[str]


WAYS: Dict[str, Way] = {
    'paper': Way('PGD, targeted, cross-entropy (the paper\'s)', []),
    'ce': Way('PGD, cross-entropy', [*UNTARGETED]),
    'margin': Way('PGD, margin', [*UNTARGETED, '--attack-loss', 'margin']),
    'dlr': Way('PGD, DLR', [*UNTARGETED, '--attack-loss', 'dlr']),
    'momentum': Way('momentum, cross-entropy', [*UNTARGETED, '--attacker', 'momentum']),
    'apgd-ce': Way('APGD, cross-entropy', [*UNTARGETED, '--attacker', 'apgd']),
    'apgd-dlr': Way('APGD, DLR', [*UNTARGETED, '--attacker', 'apgd', '--attack-loss', 'dlr']),
    'restarts': Way('PGD, margin, 10 restarts', [*UNTARGETED, '--attack-loss', 'margin', '--restarts', '10']),
    'apgd-t': Way('APGD, targeted, DLR, likeliest classes', ['--attacker', 'apgd', '--attack-loss', 'dlr',
                                                            '--targets', 'likeliest']),
}


class Point(NamedTuple):
    """What one strength of a way found: a record of main.py's, and the gradient steps that it took for an image."""
    steps: int
    gradient_steps: float
    record: Dict[str, Any]


def points_of(results: Dict[str, Any]) -> List[Point]:
    """Return what a way's results say, by ascending steps. Images that need no further start have fewer."""
    records = sorted(results['attacks'], key=lambda r: r['attack_iter'])
    return [Point(r['attack_iter'], r['attack_iter'] * r['starts'] / max(r['num_images'], 1), r) for r in records]


def wrong_images(per_image: str, steps: int) -> Set[str]:
    """Return the indices of the images that the attack of so many steps made wrong, of a table of main.py's."""
    with open(per_image, newline='', encoding='utf-8', errors='surrogateescape') as f:
        return {row['index'] for row in csv.DictReader(f)
                if row['prediction'] != row['label'] and int(row['attack_iter']) == steps}


def evaluation(name: str, options: argparse.Namespace, num_classes: int) -> List[str]:
    """Return the flags of main.py that attack in one way: to OUT/NAME.json and OUT/NAME.csv."""
    path = os.path.join(options.out, name)
    flags = WAYS[name].flags + (['--num-targets', str(min(MOST_TARGETS, num_classes - 1))]
                                if '--targets' in WAYS[name].flags else [])
    optional = {'--classes': options.classes, '--subset': options.subset, '--preprocess': options.preprocess}
    given = [word for pair in optional.items() if pair[1] is not None for word in pair]
    return ['--eval', '--load', options.load, '--data', options.data, *network_of(options).flags,
            '--image-size', str(options.image_size), '--batch', str(options.batch), '--weights', options.weights,
            '--dtype', options.dtype, '--attack-dtype', options.dtype, '--seed', str(options.seed),
            '--attack-epsilon', str(options.eps), '--attack-step-size', str(options.step_size),
            '--attack-iter', ','.join(map(str, options.steps)), '--journal', path + '.journal',
            '--per-image', path + '.csv', '--results', path + '.json'] + given + flags


def markdown(points: Dict[str, List[Point]], wrong: int, total: int) -> str:
    """Lay out the longest attacks of each way as a table: errors in percent.

    wrong: how many of the images any of them made wrong.
    """
    def percent(rate: float, interval: Any) -> str:
        return '%.1f (%.1f to %.1f)' % tuple(100 * x for x in (rate, *interval))
    rows = []
    for name, of_way in points.items():
        steps, gradient_steps, record = of_way[-1]
        success = record['attack_success_rate']
        rows.append([WAYS[name].title, steps, '%.0f' % gradient_steps,
                     percent(record['top1_error'], record['top1_error_interval']),
                     'n/a' if success is None else '%.1f' % (100 * success)])
    rows.append(['worst case of these', '', '%.0f' % sum(p[-1].gradient_steps for p in points.values()),
                 percent(wrong / total, wilson_interval(wrong, total)), 'n/a'])
    return tabulate(rows, ['attack', 'steps', 'gradient steps an image', 'top-1 error, %', 'success, %'],
                    tablefmt='github', disable_numparse=True)


def draw(points: Dict[str, List[Point]]) -> bytes:
    """Draw errors against gradient steps; return the bytes of a PNG."""
    figure, axes = plain_axes()
    for name, of_way in points.items():
        axes.plot([p.gradient_steps for p in of_way], [100 * p.record['top1_error'] for p in of_way],
                  marker='o', markersize=4, label=WAYS[name].title)
    axes.set_xscale('log')
    axes.set_xlabel('gradient steps spent on an image')
    axes.set_ylabel('top-1 error, %')
    axes.legend(fontsize=8, frameon=False)
    return png_of(figure)


def command_line() -> Parser:
    parser = Parser(prog='compare_attacks.py', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('load', metavar='CKPT', help='an .npz file or a TF checkpoint')
    parser.add_argument('--data', required=True, metavar='DIR', help='folder with val/')
    parser.add_argument('--out', required=True, metavar='DIR', help='for all that it makes')
    parser.add_argument('--eps', type=positive_float, required=True, metavar='E', help='budget in pixels, of 255')
    parser.add_argument('--steps', type=several(positive_int), default=[5, 10, 20, 50, 100],
                        metavar='K[,K...]', help='of the attacks (5,10,20,50,100)')
    parser.add_argument('--step-size', type=positive_float, default=1.0, help='as of main.py (1)')
    parser.add_argument('--only', default=','.join(WAYS), metavar='WAY[,WAY...]', help='some of %s' % ', '.join(WAYS))
    parser.add_argument('--classes', metavar='FILE', help='class names, one a line, in label order')
    parser.add_argument('--preprocess', choices=list(PREPARATIONS), help='as of main.py --eval')
    parser.add_argument('--subset', metavar='S', help='as of main.py')
    parser.add_argument('--seed', type=natural, default=0, help='of all that is random (0)')
    add_network_flags(parser)
    return parser


def evaluations(options: argparse.Namespace) -> Dict[str, List[str]]:
    """Check the flags, before the first attack; return those of main.py, by way. Raises InputError for wrong ones."""
    check_alone('tools.compare_attacks')
    for flag in ('data', 'out', 'classes', 'subset'):
        if getattr(options, flag) == '':  # most likely a shell variable that is not set
            raise InputError('--%s is empty' % flag)
    chosen = some_of(options.only, WAYS, flag='--only', what='way')
    check_network(options, options.load)
    dataset = load_dataset(options.data, 'val', options.classes)
    commands = {name: evaluation(name, options, len(dataset.class_names)) for name in chosen}
    check_folder(options.out, 'cannot write to %s: %s')
    for command in commands.values():
        of_way = parse_options(command)
        evaluated = evaluated_images(of_way, dataset)
        if os.path.isdir(options.out):  # what an earlier run left there may be of something else
            check_places(of_way, evaluated)
    return commands


def main() -> int:
    options = command_line().parse_args(sys.argv[1:])
    check_stdout()
    signal.signal(signal.SIGTERM, stop)  # ends the command that runs, too
    commands = evaluations(options)
    os.makedirs(options.out, exist_ok=True)
    table, picture = [os.path.join(options.out, 'attacks' + end) for end in ('.md', '.png')]
    for path in (table, picture):
        check_writable(path)
    points: Dict[str, List[Point]] = {}
    wrong: Set[str] = set()
    warned: Set[str] = set()  # each warning is said once, these before the first attack
    for warning in mistaken_attack([options.eps], options.step_size):
        log.warning('%s', warning)
        warned.add(warning)
    text = ''
    for name, command in commands.items():
        path = os.path.join(options.out, name)
        run([sys.executable, os.path.join(ROOT, 'main.py')] + command, path + '.log', os.getcwd())
        results = read_results(path + '.json')
        for warning in results.get('warnings', []):
            if warning not in warned:
                log.warning('%s', warning)
                warned.add(warning)
        points[name] = points_of(results)
        wrong |= wrong_images(path + '.csv', max(options.steps))
        text = markdown(points, len(wrong), results['attacks'][0]['num_images'])
        with WholeFile(table) as f:
            f.write(text + '\n')
    with WholeFile(picture) as f:
        f.write(draw(points))
    say(text)
    return 0


if __name__ == '__main__':
    run_command('compare_attacks.py', main)
