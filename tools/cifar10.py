#!/usr/bin/env python
"""Standard and adversarial training of ResNet and ResNetDenoise on CIFAR-10's photos of 32x32, on a CPU.

    python tools/cifar10.py DATA [--out cifar10] [--val-images 1000] [--only ResNet-adversarial,...]

DATA has train/<class>/ and val/<class>/. Every network is trained, attacked with 10, 20 and 100 steps on validation
images, and drawn, all in the folder --out. Each step is a command that is printed before it runs. The same command, given
again, goes on where it was interrupted.
"""
import argparse
import json
import os
import sys
from typing import Any, Dict, List, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from errors import InputError, Parser, run_command  # noqa: E402
from tools.commands import data_server, run  # noqa: E402
from tools.report import write_report  # noqa: E402

MAIN = os.path.join(ROOT, 'main.py')
DEPTH = 14
BATCH = 128
EPSILON = 8
STEPS = (0, 10, 20, 100)
SHAPE = ['--image-size', '32']


class Recipe(NamedTuple):
    """How a network is trained. The attack of training is of `attack_iter` steps, in bfloat16 where that is faster."""
    arch: str
    training: str
    attack_iter: int
    max_epoch: int

    @property
    def name(self) -> str:
        return '%s-%s' % (self.arch, self.training)


RECIPES = [Recipe('ResNet', 'adversarial', 3, 6), Recipe('ResNetDenoise', 'adversarial', 3, 6),
           Recipe('ResNet', 'standard', 0, 4), Recipe('ResNetDenoise', 'standard', 0, 4)]


def training_flags(recipe: Recipe) -> List[str]:
    return ['--arch', recipe.arch, '-d', str(DEPTH), '--batch', str(BATCH), '--attack-iter', str(recipe.attack_iter),
            '--attack-epsilon', str(EPSILON), '--attack-dtype', 'bfloat16' if recipe.attack_iter else 'float32',
            '--max-epoch', str(recipe.max_epoch), '--base-lr', '0.2', '--training-eval', 'clean',
            '--logdir', recipe.training, '--resume'] + SHAPE


def train(recipe: Recipe, data: str, endpoint: str, out: str) -> str:
    """Train a network, or go on; returns its checkpoint."""
    run([sys.executable, MAIN, '--data', data, '--endpoint', endpoint] + training_flags(recipe),
        os.path.join(out, recipe.name + '-training.log'), out)
    log = os.path.join(out, 'train_log', 'PGD-%s%d-Batch%d-1GPUs-iter%d-epsilon%.1f-step1.0-%s' % (
        recipe.arch, DEPTH, BATCH, recipe.attack_iter, EPSILON, recipe.training))
    with open(os.path.join(log, 'checkpoint')) as f:
        newest = f.readline().split('"')[1]
    return os.path.join(log, os.path.basename(newest))


def evaluate(recipe: Recipe, checkpoint: str, data: str, out: str) -> None:
    results = os.path.join(out, recipe.name)
    run([sys.executable, MAIN, '--eval', '--load', checkpoint, '--data', data, '--arch', recipe.arch, '-d', str(DEPTH),
         '--batch', '200', '--attack-iter', ','.join(map(str, STEPS)), '--attack-epsilon', str(EPSILON),
         '--journal', results + '.journal', '--results', results + '.json'] + SHAPE, results + '-evaluation.log', out)


def link_photos(data: str, folder: str, val_images: int) -> None:
    """A data set of all training photos and of as many validation photos, the same number of each class."""
    if not all(os.path.isdir(os.path.join(data, split)) for split in ('train', 'val')):
        raise InputError('%s has no train/<class>/ and val/<class>/' % data)
    classes = sorted(entry.name for entry in os.scandir(os.path.join(data, 'val')) if entry.is_dir())
    if not classes:
        raise InputError('there are no classes in %s' % os.path.join(data, 'val'))
    os.makedirs(os.path.join(folder, 'val'), exist_ok=True)
    if not os.path.exists(os.path.join(folder, 'train')):
        os.symlink(os.path.join(data, 'train'), os.path.join(folder, 'train'))
    for name in classes:
        photos = sorted(os.listdir(os.path.join(data, 'val', name)))[:val_images // len(classes)]
        os.makedirs(os.path.join(folder, 'val', name), exist_ok=True)
        for photo in photos:
            link = os.path.join(folder, 'val', name, photo)
            if not os.path.exists(link):
                os.symlink(os.path.join(data, 'val', name, photo), link)


def table(results: Dict[str, Dict[str, Any]]) -> str:
    """Error / attack success in percent, in the style of the model zoo."""
    lines = ['| network | training | ' + ' | '.join('%d-step' % k if k else 'clean' for k in STEPS) + ' |',
             '|---|---|' + '---|' * len(STEPS)]
    for recipe in RECIPES:
        if recipe.name in results:
            records = {r['attack_iter']: r for r in results[recipe.name]['attacks']}
            lines.append('| %s-%d | %s | %s |' % (recipe.arch, DEPTH, recipe.training, ' | '.join(
                '%.1f' % (100 * records[k]['top1_error']) +
                (' / %.1f' % (100 * records[k]['attack_success_rate']) if k else '') for k in STEPS)))
    return '\n'.join(lines)


def main() -> int:
    parser = Parser(prog='cifar10.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    parser.add_argument('--out', default=os.path.join(ROOT, 'cifar10'), metavar='DIR', help='for all that it makes (cifar10)')
    parser.add_argument('--val-images', type=int, default=1000, help='how many are attacked (1000)')
    names = ','.join(r.name for r in RECIPES)
    parser.add_argument('--only', default=names, metavar='NAME[,NAME...]', help='some of %s' % names)
    options = parser.parse_args()
    chosen = options.only.split(',')
    for name in chosen:
        if name not in names.split(','):
            raise InputError('--only %s: there is no such network; choose of %s' % (name, names))
    if options.val_images < 10:
        raise InputError('--val-images must be 10 or more')
    data, out = os.path.abspath(options.data), os.path.abspath(options.out)
    photos = os.path.join(out, 'photos')
    link_photos(data, photos, options.val_images)
    flags = ['--batch', str(BATCH), '--workers', '1', '--min-crop-area', '0.5'] + SHAPE
    for recipe in RECIPES:
        if recipe.name in chosen and not os.path.exists(os.path.join(out, recipe.name + '.json')):
            with data_server(photos, flags, os.path.join(out, 'server.log'), out) as endpoint:
                checkpoint = train(recipe, photos, endpoint, out)
            evaluate(recipe, checkpoint, photos, out)
    done = [r.name for r in RECIPES if os.path.exists(os.path.join(out, r.name + '.json'))]
    results = {}
    for name in done:
        with open(os.path.join(out, name + '.json')) as f:
            results[name] = json.load(f)
    write_report([os.path.join(out, name + '.json') for name in done], out)
    print('\nTop-1 error / attack success in percent; epsilon %d of 255\n\n%s\n' % (EPSILON, table(results)))
    return 0


if __name__ == '__main__':
    run_command('cifar10.py', main)
