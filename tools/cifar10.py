#!/usr/bin/env python
"""Standard and adversarial training of ResNet and ResNetDenoise on CIFAR-10's photos of 32x32, on a CPU.

    python tools/cifar10.py DATA [--out cifar10-results] [--val-images 1000] [--only ResNet-adversarial,...]
    python tools/cifar10.py DATA --networks ResNet-14,ResNetDenoise-14-mean,... [--epochs 6] [--base-lr 0.2]

DATA has train/<class>/ and val/<class>/. Every network is trained, attacked with 10, 20 and 100 steps on validation
images, and drawn, all in the folder --out. Each step is a command that is printed before it runs. The same command,
given again, goes on where it was interrupted. It takes an hour and a half on 2 cores, and keeps a checkpoint of each
epoch, of 64 MB and more.

--networks are any of the zoo's, each trained adversarially in the same way: the paper's comparison of operations. A
network's name with :2 is a second training of it, which tells how far trainings differ by chance. One that diverges
has the message of that in its row, and is not trained again; it may have another --base-lr, and --epochs.
"""
import argparse
import os
import sys
from typing import Any, Dict, List, NamedTuple

from tabulate import tabulate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from nets import ARCHITECTURES, Network, find_network, network_named  # noqa: E402
from runtime.command_line import Parser, run_command, some_of  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from runtime.files import WholeFile  # noqa: E402
from runtime.flag_values import positive_float, positive_int  # noqa: E402
from tools.cifar10_folders import BATCH, SHAPE, divergence, finished_checkpoint, served, work_in  # noqa: E402
from tools.commands import log_directory, run  # noqa: E402
from tools.report import read_results, write_report  # noqa: E402

MAIN = os.path.join(ROOT, 'main.py')
DEPTH = 14
ATTACK_ITER = 3  # of adversarial training
EPOCHS, STANDARD_EPOCHS = 6, 4
BASE_LR = 0.2  # for 256 images
EPSILON = 8
STEPS = (0, 10, 20, 100)


class Recipe(NamedTuple):
    """How a network is trained."""
    title: str        # an architecture, of DEPTH; or a network's name
    training: str     # 'standard' or 'adversarial'
    attack_iter: int  # steps of the training's attack
    max_epoch: int
    repetition: int = 1
    base_lr: float = BASE_LR

    @property
    def network(self) -> Network:
        """Find the network. Raises InputError where there is none."""
        return find_network(self.title, DEPTH) if self.title in ARCHITECTURES else network_named(self.title)

    @property
    def suffix(self) -> str:
        """Return the end of the log directory's name."""
        usual = self.max_epoch == (EPOCHS if self.attack_iter else STANDARD_EPOCHS)
        return ''.join([self.training, '' if usual else '-%d-epochs' % self.max_epoch,
                        '' if self.base_lr == BASE_LR else '-lr%s' % self.base_lr,
                        '' if self.repetition == 1 else '-%d' % self.repetition])

    @property
    def name(self) -> str:
        """Name the network's files."""
        return '%s-%s' % (self.title, self.suffix)


RECIPES = [Recipe('ResNet', 'adversarial', ATTACK_ITER, EPOCHS),
           Recipe('ResNetDenoise', 'adversarial', ATTACK_ITER, EPOCHS),
           Recipe('ResNet', 'standard', 0, STANDARD_EPOCHS), Recipe('ResNetDenoise', 'standard', 0, STANDARD_EPOCHS)]


def recipes_of(names: str, epochs: int, base_lr: float = BASE_LR) -> List[Recipe]:
    """Return the recipes of --networks. Raises InputError for unknown ones."""
    recipes = []
    for name in dict.fromkeys(names.split(',')):
        title, _, repetition = name.partition(':')
        if repetition and not (repetition.isdecimal() and int(repetition) > 1):
            raise InputError('--networks %s: they are the zoo\'s, with :2, :3, ... where one is trained again' % name)
        if not title:
            raise InputError('--networks %s: a name is empty' % names)
        if title in ARCHITECTURES:
            raise InputError('--networks %s: say of what depth, like %s-%d' % (title, title, DEPTH))
        try:
            network = network_named(title)
        except InputError as e:
            raise InputError('--networks %s: %s' % (name, e))
        recipes.append(Recipe(network.name, 'adversarial', ATTACK_ITER, epochs, int(repetition or 1), base_lr))
    return recipes


def attack_dtype() -> str:
    """Choose the dtype of the training's attack: bfloat16 where the hardware has units for it."""
    from runtime.compat import USES_BFLOAT16_UNITS  # with TensorFlow: wrong flags are told without

    from runtime.hardware import cost_of_dtype, cpu_flags, has_gpu
    cost = cost_of_dtype('bfloat16', False, gpu=has_gpu(), cpu_flags=cpu_flags(), kernels=USES_BFLOAT16_UNITS)
    return 'float32' if cost or has_gpu() else 'bfloat16'


def train(recipe: Recipe, data: str, endpoint: str, out: str) -> str:
    """Train a network, or go on; returns its checkpoint. Raises InputError where it was stopped before its end."""
    flags = ['--data', data, '--endpoint', endpoint, *recipe.network.flags, '--batch', str(BATCH),
             '--attack-iter', str(recipe.attack_iter), '--attack-epsilon', str(EPSILON),
             '--attack-dtype', attack_dtype() if recipe.attack_iter else 'float32',
             '--max-epoch', str(recipe.max_epoch), '--base-lr', str(recipe.base_lr), '--training-eval', 'clean',
             '--logdir', recipe.suffix, *SHAPE]
    run([sys.executable, MAIN, *flags, '--resume'], training_log(recipe, out), out)
    return finished_checkpoint(log_directory(flags, folder=out), recipe.max_epoch)


def training_log(recipe: Recipe, out: str) -> str:
    return os.path.join(out, recipe.name + '-training.log')


def make_results(recipe: Recipe, photos: str, out: str) -> None:
    """Train and evaluate a network: out/NAME.json, or out/NAME.diverged where the training did. Raises InputError where
    something else ended it."""
    try:
        with served(photos, out) as endpoint:
            checkpoint = train(recipe, photos, endpoint, out)
    except InputError:
        said = divergence(training_log(recipe, out))
        if not said:
            raise
        with WholeFile(os.path.join(out, recipe.name + '.diverged')) as f:
            f.write(said + '\n')
        return
    evaluate(recipe, checkpoint, photos, out)


def evaluate(recipe: Recipe, checkpoint: str, data: str, out: str) -> None:
    """Attack a network with each number of STEPS, and write out/NAME.json."""
    results = os.path.join(out, recipe.name)
    run([sys.executable, MAIN, '--eval', '--load', checkpoint, '--data', data, *recipe.network.flags, '--batch', '200',
         '--attack-iter', ','.join(map(str, STEPS)), '--attack-epsilon', str(EPSILON),
         '--journal', results + '.journal', '--results', results + '.json'] + SHAPE, results + '-evaluation.log', out)


def table(results: Dict[Recipe, Any], intervals: bool = False) -> str:
    """Lay out top-1 error / attack success in percent as a table in Markdown, in the style of the model zoo.

    results: what `read_results` returns for each network, or what it said when it diverged. intervals: also the 95%
    intervals of the errors.
    """
    def cell(r: Dict[str, Any]) -> str:
        error = '%.1f' % (100 * r['top1_error'])
        error += ' (%.1f to %.1f)' % tuple(100 * end for end in r['top1_error_interval']) if intervals else ''
        return error + (' / %.1f' % (100 * r['attack_success_rate']) if r['attack_iter'] else '')
    rows = []
    for recipe, found in results.items():
        cells = ['diverged: ' + found] if isinstance(found, str) else [cell(r) for r in found['attacks']]
        rows.append([recipe.network.name, recipe.suffix] + cells)
    titles = ['network', 'training'] + ['%d-step' % k if k else 'clean' for k in STEPS]
    return tabulate(rows, titles, tablefmt='github', disable_numparse=True)


def main() -> int:
    parser = Parser(prog='cifar10.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    parser.add_argument('--out', default=os.path.join(ROOT, 'cifar10-results'), metavar='DIR',
                        help='for all that it makes (cifar10-results)')
    parser.add_argument('--val-images', type=int, default=1000, help='how many are attacked (1000)')
    names = [r.name for r in RECIPES]
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--only', default=','.join(names), metavar='NAME[,NAME...]', help='some of ' + ', '.join(names))
    which.add_argument('--networks', metavar='NAME[,NAME...]',
                       help='other ones, like ResNet-14, ResNet-14:2, ResNetPlacebo-14, ResNetDenoise-14-mean, '
                            'ResNetDenoise-14-softmax-plain-block-no-residual')
    parser.add_argument('--epochs', type=positive_int, default=EPOCHS, help='of --networks (%d)' % EPOCHS)
    parser.add_argument('--base-lr', type=positive_float, default=BASE_LR, metavar='R',
                        help='of --networks, for 256 images (%s)' % BASE_LR)
    options = parser.parse_args()
    if options.networks is None and (options.epochs, options.base_lr) != (EPOCHS, BASE_LR):
        raise InputError('--epochs and --base-lr go with --networks')
    recipes = RECIPES if options.networks is None else recipes_of(options.networks, options.epochs, options.base_lr)
    chosen = [recipe.name for recipe in recipes]
    if options.networks is None:
        chosen = some_of(options.only, chosen, flag='--only', what='network')
    out, photos, locked = work_in(options.data, options.out, options.val_images, 'cifar10.py')
    results: Dict[Recipe, Any] = {}
    for recipe in recipes:
        path, diverged = [os.path.join(out, recipe.name + end) for end in ('.json', '.diverged')]
        if recipe.name in chosen and not os.path.exists(path) and not os.path.exists(diverged):
            make_results(recipe, photos, out)
        if os.path.exists(path):
            results[recipe] = read_results(path)
        elif os.path.exists(diverged):
            with open(diverged) as f:
                results[recipe] = f.read().strip()
    done = [os.path.join(out, r.name + '.json') for r, found in results.items() if not isinstance(found, str)]
    if done:
        write_report(done, out)
    locked.close()
    print('\nTop-1 error / attack success in percent of %d validation photos; epsilon %d of 255\n\n%s\n' % (
        options.val_images, EPSILON, table(results, intervals=options.networks is not None)))
    return 0


if __name__ == '__main__':
    run_command('cifar10.py', main)
