#!/usr/bin/env python
"""Standard and adversarial training of ResNet and ResNetDenoise on CIFAR-10's photos of 32x32, on a CPU.

    python tools/cifar10.py DATA [--out cifar10-results] [--val-images 1000] [--only ResNet-adversarial,...]

DATA has train/<class>/ and val/<class>/. Every network is trained, attacked with 10, 20 and 100 steps on validation
images, and drawn, all in the folder --out. Each step is a command that is printed before it runs. The same command, given
again, goes on where it was interrupted.
"""
import argparse
import json
import os
import shutil
import sys
from typing import Any, Dict, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from compat import USES_BFLOAT16_UNITS, has_gpu  # noqa: E402
from distributed import cpu_flags  # noqa: E402
from errors import InputError, Parser, run_command  # noqa: E402
from precision import cost_of_dtype  # noqa: E402
from tools.commands import data_server, run  # noqa: E402
from tools.report import read_results, write_report  # noqa: E402

MAIN = os.path.join(ROOT, 'main.py')
DEPTH = 14
BATCH = 128
EPSILON = 8
STEPS = (0, 10, 20, 100)
SHAPE = ['--image-size', '32']


class Recipe(NamedTuple):
    """How a network is trained; its attack is of `attack_iter` steps."""
    arch: str
    training: str
    attack_iter: int
    max_epoch: int

    @property
    def name(self) -> str:
        return '%s-%s' % (self.arch, self.training)


RECIPES = [Recipe('ResNet', 'adversarial', 3, 6), Recipe('ResNetDenoise', 'adversarial', 3, 6),
           Recipe('ResNet', 'standard', 0, 4), Recipe('ResNetDenoise', 'standard', 0, 4)]


def attack_dtype() -> str:
    """Of the attack of training: bfloat16 where the hardware has units for it."""
    cost = cost_of_dtype('bfloat16', False, gpu=has_gpu(), cpu_flags=cpu_flags(), kernels=USES_BFLOAT16_UNITS)
    return 'float32' if cost or has_gpu() else 'bfloat16'


def train(recipe: Recipe, data: str, endpoint: str, out: str) -> str:
    """Train a network, or go on; returns its checkpoint. Raises InputError where it was stopped before its end."""
    run([sys.executable, MAIN, '--data', data, '--endpoint', endpoint, '--arch', recipe.arch, '-d', str(DEPTH),
         '--batch', str(BATCH), '--attack-iter', str(recipe.attack_iter), '--attack-epsilon', str(EPSILON),
         '--attack-dtype', attack_dtype() if recipe.attack_iter else 'float32', '--max-epoch', str(recipe.max_epoch),
         '--base-lr', '0.2', '--training-eval', 'clean', '--logdir', recipe.training, '--resume'] + SHAPE,
        os.path.join(out, recipe.name + '-training.log'), out)
    log = os.path.join(out, 'train_log', 'PGD-%s%d-Batch%d-1GPUs-iter%d-epsilon%.1f-step1.0-%s' % (
        recipe.arch, DEPTH, BATCH, recipe.attack_iter, EPSILON, recipe.training))
    try:
        with open(os.path.join(log, 'stats.json')) as f:
            epochs = json.load(f)[-1]['epoch_num']
    except FileNotFoundError:
        epochs = 0
    if epochs < recipe.max_epoch:
        raise InputError('the training was stopped after %d of %d epochs: give the same command again, and it goes on'
                         % (epochs, recipe.max_epoch))
    with open(os.path.join(log, 'checkpoint')) as f:
        newest = f.readline().split('"')[1]
    return os.path.join(log, os.path.basename(newest))


def evaluate(recipe: Recipe, checkpoint: str, data: str, out: str) -> None:
    results = os.path.join(out, recipe.name)
    run([sys.executable, MAIN, '--eval', '--load', checkpoint, '--data', data, '--arch', recipe.arch, '-d', str(DEPTH),
         '--batch', '200', '--attack-iter', ','.join(map(str, STEPS)), '--attack-epsilon', str(EPSILON),
         '--journal', results + '.journal', '--results', results + '.json'] + SHAPE, results + '-evaluation.log', out)


def link_photos(data: str, out: str, val_images: int) -> str:
    """Makes out/photos, all training photos of `data` and some of its validation photos, evenly of all classes."""
    if not all(os.path.isdir(os.path.join(data, split)) for split in ('train', 'val')):
        raise InputError('%s has no train/<class>/ and val/<class>/' % data)
    classes = sorted(entry.name for entry in os.scandir(os.path.join(data, 'val'))
                     if entry.is_dir() and not entry.name.startswith('.'))
    if not 0 < len(classes) <= val_images:
        raise InputError('%s has %d classes: --val-images must be as many or more' % (data, len(classes)))
    photos, wanted = os.path.join(out, 'photos'), 'DATA %s --val-images %d' % (data, val_images)
    note = os.path.join(out, 'photos.txt')
    if os.path.exists(note):
        with open(note) as f:
            made_of = f.read().strip()
        if made_of != wanted:
            raise InputError('%s is of %s: give another --out' % (out, made_of))
    shutil.rmtree(photos, ignore_errors=True)  # nothing but links
    try:
        os.makedirs(os.path.join(photos, 'val'))
        os.symlink(os.path.join(data, 'train'), os.path.join(photos, 'train'))
        for name in classes:
            os.mkdir(os.path.join(photos, 'val', name))
            names = sorted(n for n in os.listdir(os.path.join(data, 'val', name)) if not n.startswith('.'))
            for photo in names[:val_images // len(classes)]:
                os.symlink(os.path.join(data, 'val', name, photo), os.path.join(photos, 'val', name, photo))
        with open(note, 'w') as f:
            f.write(wanted + '\n')
    except OSError as e:
        raise InputError('cannot write to %s: %s' % (out, e.strerror))
    return photos


def table(results: Dict[Recipe, Dict[str, Any]]) -> str:
    """Error / attack success in percent, in the style of the model zoo."""
    lines = ['| network | training | ' + ' | '.join('%d-step' % k if k else 'clean' for k in STEPS) + ' |',
             '|---|---|' + '---|' * len(STEPS)]
    for recipe, of_network in results.items():
        lines.append('| %s-%d | %s | %s |' % (recipe.arch, DEPTH, recipe.training, ' | '.join(
            '%.1f' % (100 * r['top1_error']) + (' / %.1f' % (100 * r['attack_success_rate']) if r['attack_iter'] else '')
            for r in of_network['attacks'])))
    return '\n'.join(lines)


def main() -> int:
    parser = Parser(prog='cifar10.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    parser.add_argument('--out', default=os.path.join(ROOT, 'cifar10-results'), metavar='DIR',
                        help='for all that it makes (cifar10-results)')
    parser.add_argument('--val-images', type=int, default=1000, help='how many are attacked (1000)')
    names = [r.name for r in RECIPES]
    parser.add_argument('--only', default=','.join(names), metavar='NAME[,NAME...]', help='some of ' + ', '.join(names))
    options = parser.parse_args()
    chosen = options.only.split(',')
    for name in chosen:
        if name not in names:
            raise InputError('--only %s: there is no such network; choose of %s' % (name, ', '.join(names)))
    data, out = os.path.abspath(options.data), os.path.abspath(options.out)
    if data == out:
        raise InputError('--out %s is the folder of the data: give another one' % options.out)
    photos = link_photos(data, out, options.val_images)
    flags = ['--batch', str(BATCH), '--workers', '1', '--min-crop-area', '0.5'] + SHAPE
    results = {r: os.path.join(out, r.name + '.json') for r in RECIPES}
    for recipe, path in results.items():
        if recipe.name in chosen and not os.path.exists(path):
            with data_server(photos, flags, os.path.join(out, 'server.log'), out) as endpoint:
                checkpoint = train(recipe, photos, endpoint, out)
            evaluate(recipe, checkpoint, photos, out)
    done = [path for path in results.values() if os.path.exists(path)]
    write_report(done, out)
    print('\nTop-1 error / attack success in percent; epsilon %d of 255\n\n%s\n' % (
        EPSILON, table({r: read_results(path) for r, path in results.items() if path in done})))
    return 0


if __name__ == '__main__':
    run_command('cifar10.py', main)
