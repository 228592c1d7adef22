"""The pictures of feature_maps.py: a channel before and after a denoising block, clean and attacked, in one scale."""
import io
from typing import TYPE_CHECKING, List, NamedTuple, Sequence, Tuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ('clean, before', 'clean, after', 'attacked, before', 'attacked, after')
INCHES = 1.7  # of a map's sides


class Subject(NamedTuple):
    """An image and its attacked version, (S, S, 3) BGR in [0, 255], and a title for each."""
    title: str
    attacked_title: str
    image: np.ndarray
    attacked: np.ndarray


def strongest_channels(features: np.ndarray, count: int) -> List[int]:
    """Return the channels of (height, width, channels) features with the largest means of absolute values, the largest
    first."""
    return [int(c) for c in np.argsort(-np.abs(features).mean(axis=(0, 1)), kind='stable')[:count]]


def figure_of(subject: Subject, rows: Sequence[Tuple[str, int, np.ndarray]]) -> 'Figure':
    """Draw an image with a row of maps for each channel.

    rows: (block, channel, (4, height, width) maps as in COLUMNS). All maps of a row have one scale, from the smallest
    to the largest of their features.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(INCHES * 4.8, INCHES * (1 + len(rows)) * 1.08))
    grid = figure.add_gridspec(1 + len(rows), 5, width_ratios=[1, 1, 1, 1, 0.06], wspace=0.06, hspace=0.18)
    for column, title, image in ((0, subject.title, subject.image), (2, subject.attacked_title, subject.attacked)):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(np.clip(np.rint(image[:, :, ::-1]), 0, 255).astype(np.uint8))  # BGR to RGB
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    for r, (block, channel, maps) in enumerate(rows, 1):
        finite = maps[np.isfinite(maps)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        for column, values in enumerate(maps):
            axes = figure.add_subplot(grid[r, column])
            drawn = axes.imshow(values, vmin=low, vmax=high, cmap='viridis', interpolation='nearest')
            axes.set_xticks([])
            axes.set_yticks([])
            if r == 1:
                axes.set_title(COLUMNS[column], fontsize=8)
            if column == 0:
                axes.set_ylabel('%s\nchannel %d' % (block, channel), fontsize=7)
        bar = figure.add_subplot(grid[r, 4])
        figure.colorbar(drawn, cax=bar)
        bar.tick_params(labelsize=6)
    return figure


def picture_of(subject: Subject, rows: Sequence[Tuple[str, int, np.ndarray]]) -> bytes:
    """Return the bytes of figure_of's PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    figure = figure_of(subject, rows)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(picture, dpi=120, format='png', bbox_inches='tight')
    return picture.getvalue()
