"""The demonstration's picture: error and attack success of both networks, and images that they were attacked with."""
import os
from typing import TYPE_CHECKING, Dict

import numpy as np

from inference import load_classifier
from tools.demo_data import SIZE, read_split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXAMPLES = 8
COLOURS = {'standard': '#c44e52', 'adversarial': '#4c72b0'}


def draw(results: Dict[str, Dict[int, Dict[str, float]]], checkpoints: Dict[str, str], data: str, path: str, *,
         depth: int, epsilon: float) -> None:
    """Write the picture as a PNG.

    Its examples are the first validation image of each of EXAMPLES classes, attacked with 100 steps.

    results: for each training the figures of each number of attack steps. checkpoints: for each training.
    data: the folder of the digits. depth: of the networks. epsilon: the attack's budget, in pixels of 255.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    images, labels = read_split(os.path.join(data, 'val'))
    chosen = [int(np.flatnonzero(labels == c)[0]) for c in range(EXAMPLES)]
    images, labels = images[chosen], labels[chosen]
    figure = plt.figure(figsize=(12, 4.2))
    columns = figure.add_gridspec(1, 2, width_ratios=[1, 1.7], wspace=0.22)
    draw_bars(figure.add_subplot(columns[0]), results)

    rows = [('clean', images, None)]
    for title, checkpoint in checkpoints.items():
        classifier = load_classifier(checkpoint, 'ResNet', depth, image_size=SIZE)
        attacked, targets = classifier.pgd(images, labels, steps=100, epsilon=epsilon)
        rows.append(('attacked,\n' + title, attacked, classifier.logits(attacked).argmax(axis=1)))
        classifier.close()
    grid = columns[1].subgridspec(len(rows), EXAMPLES, wspace=0.08, hspace=0.35)
    for r, (title, batch, predictions) in enumerate(rows):
        for c in range(EXAMPLES):
            axes = figure.add_subplot(grid[r, c])
            axes.imshow(np.rint(batch[c][:, :, ::-1]).astype(np.uint8))  # BGR to RGB
            axes.set_xticks([])
            axes.set_yticks([])
            if c == 0:
                axes.set_ylabel(title, fontsize=9)
            if predictions is None:
                axes.set_title('a %d' % labels[c], fontsize=10)
            else:
                axes.set_title('seen as %d' % predictions[c], fontsize=9,
                               color='#2a7f3f' if predictions[c] == labels[c] else '#c00000')
    figure.savefig(path, dpi=110, bbox_inches='tight')
    plt.close(figure)


def draw_bars(axes: 'Axes', results: Dict[str, Dict[int, Dict[str, float]]]) -> None:
    """Draw a bar for the top-1 error of each training under each attack."""
    strengths = sorted(next(iter(results.values())))
    width = 0.8 / len(results)
    for i, (title, figures) in enumerate(results.items()):
        x = np.arange(len(strengths)) + (i - (len(results) - 1) / 2) * width
        errors = [100 * figures[k]['Top1 Error'] for k in strengths]
        axes.bar(x, errors, width, label=title + ' training', color=COLOURS[title])
        for position, error in zip(x, errors):
            axes.text(position, error + 1.5, '%.0f' % error, ha='center', fontsize=9)
    axes.set_xticks(range(len(strengths)))
    axes.set_xticklabels(['%d-step PGD' % k if k else 'clean' for k in strengths])
    axes.set_ylabel('top-1 error, %')
    axes.set_ylim(0, 125)
    axes.legend(loc='upper left', fontsize=9, frameon=False, ncol=2)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
