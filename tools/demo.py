#!/usr/bin/env python
"""The main job from end to end, in minutes, on a CPU.

It trains a standard and an adversarially trained network on tinted handwritten digits (demo_data.py), attacks both,
scores a folder, prints the table and draws it.

Every step is a command that is printed before it runs, and that works the same on ImageNet.
"""
import os
import shutil
import sys
import time
from typing import Dict, List, NamedTuple

from tabulate import tabulate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from runtime.command_line import run_command  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from tools import demo_data  # noqa: E402
from tools.commands import data_server, log_directory, run  # noqa: E402
from tools.mpi import mpirun, read_figures  # noqa: E402
from training.log_directory import newest_complete  # noqa: E402

RANKS = 2
BATCH = 32
DEPTH = 14
EPSILON = 8.0
STRENGTHS = (0, 10, 100)
SHAPE = ['--image-size', str(demo_data.SIZE)]
NETWORK = ['--arch', 'ResNet', '-d', str(DEPTH)]


class Recipe(NamedTuple):
    """How one of the networks is trained."""
    title: str
    method: List[str]  # flags of main.py
    max_epoch: int
    base_lr: float


# Trains four times on each batch, which it attacks meanwhile by steps of half the budget: about as robust after 4
# epochs as after 14 with attacks of two steps, in less time.
FREE = ['--method', 'free', '--replays', '4', '--attack-step-size', str(EPSILON / 2)]
RECIPES = [Recipe('standard', ['--attack-iter', '0'], 6, 0.1), Recipe('adversarial', FREE, 4, 0.3)]


def train(recipe: Recipe, data: str, endpoint: str, work: str) -> str:
    """Train one network; returns its checkpoint."""
    name = 'demo-' + recipe.title
    flags = ['--data', data, '--endpoint', endpoint, '--batch', str(BATCH), *SHAPE, *NETWORK, *recipe.method,
             '--attack-epsilon', str(EPSILON), '--max-epoch', str(recipe.max_epoch), '--base-lr', str(recipe.base_lr),
             '--training-eval', 'clean', '--logdir', name, '--overwrite']
    log = log_directory(flags, RANKS)
    run(mpirun(RANKS, ['main.py', *flags]), os.path.join(work, name + '.log'))
    checkpoint = newest_complete(log)
    if checkpoint is None:
        raise InputError('there is no complete checkpoint in %s' % os.path.relpath(log, ROOT))
    return checkpoint


def evaluate(checkpoint: str, data: str, log: str) -> Dict[int, Dict[str, float]]:
    """Attack a network with each number of steps of STRENGTHS; returns the figures of each (see read_figures)."""
    figures = {}
    for k in STRENGTHS:
        printed = read_figures(run(
            [sys.executable, 'main.py', '--eval', '--load', checkpoint, '--data', data, '--batch', '120'] + SHAPE +
            NETWORK + ['--attack-iter', str(k), '--attack-epsilon', str(EPSILON)], '%s-%d.log' % (log, k)))
        figures[k] = {title: rate for title, rate in printed.items() if rate is not None}
    return figures


def score(checkpoint: str, data: str, work: str) -> float:
    """Score the validation folder as a black box; returns the error of the predictions, a fraction.

    Its images are prepared as those of the training and the evaluations were.
    """
    predictions = os.path.join(work, 'predictions.txt')
    run([sys.executable, 'main.py', '--eval-directory', os.path.join(data, 'val'), '--preprocess', 'validation',
         '--load', checkpoint, '--prediction-file', predictions] + SHAPE + NETWORK, os.path.join(work, 'score.log'))
    with open(predictions) as f:
        rows = [line.rstrip('\n').rsplit(',', 1) for line in f]
    return sum(os.path.basename(os.path.dirname(path)) != label for path, label in rows) / len(rows)


def table(results: Dict[str, Dict[int, Dict[str, float]]]) -> str:
    """Lay out top-1 error / attack success in percent as a table in Markdown, in the style of the model zoo.

    results: for each training what `evaluate` returns.
    """
    rows = []
    for title, figures in results.items():
        rows.append([title] + ['%.1f' % (100 * figures[k]['Top1 Error']) +
                               (' / %.1f' % (100 * figures[k]['Attack Success Rate']) if k else '') for k in STRENGTHS])
    titles = ['training'] + ['%d-step PGD' % k if k else 'clean' for k in STRENGTHS]
    return tabulate(rows, titles, tablefmt='github', disable_numparse=True)


def main() -> int:
    work = os.path.join(ROOT, 'demo')
    data = os.path.join(work, 'digits')
    start = time.time()
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    counts = demo_data.write_digits(data)
    print('%d training and %d validation images in %s' % (counts + (os.path.relpath(data, ROOT),)), flush=True)

    with data_server(data, ['--batch', str(BATCH), '--workers', '1', '--min-crop-area', '0.5'] + SHAPE,
                     os.path.join(work, 'server.log')) as endpoint:
        checkpoints = {recipe.title: train(recipe, data, endpoint, work) for recipe in RECIPES}
    results = {title: evaluate(path, data, os.path.join(work, 'evaluation-%s' % title))
               for title, path in checkpoints.items()}
    scored = score(checkpoints['adversarial'], data, work)

    from tools.demo_figure import draw
    picture = os.path.join(work, 'demo.png')
    draw(results, checkpoints, data, picture, depth=DEPTH, epsilon=EPSILON)
    text = table(results)
    with open(os.path.join(work, 'table.md'), 'w') as f:
        f.write(text + '\n')
    print('\nTop-1 error / attack success, in percent, of %d validation images; epsilon %g of 255\n\n%s\n' % (
        counts[1], EPSILON, text))
    print('The tint alone, far inside the budget, tells the class of %.1f%% of the validation images.' % (
        100 * demo_data.tint_accuracy(*demo_data.read_split(os.path.join(data, 'val')))))
    print('Scored as a folder, the adversarially trained network\'s error is %.1f%%.' % (100 * scored))
    print('The picture is %s. %.0f s in all.' % (os.path.relpath(picture, ROOT), time.time() - start))
    strongest = max(STRENGTHS)
    standard, adversarial = [results[r.title][strongest]['Top1 Error'] for r in RECIPES]
    if not (standard > 0.9 and adversarial < standard / 2):
        raise InputError('this run does not show what it should: under %d steps the standard network errs on %.1f%%, '
                         'the adversarially trained one on %.1f%%' % (strongest, 100 * standard, 100 * adversarial))
    return 0


if __name__ == '__main__':
    run_command('demo.py', main)
