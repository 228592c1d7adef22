"""How this project's pictures of curves look."""
from typing import Any, Tuple


def plain_axes() -> Tuple[Any, Any]:
    """Return a figure of matplotlib's, which needs no screen, and its axes, with a faint grid."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.grid(alpha=0.3)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    return figure, axes


def save_picture(figure: Any, path: str) -> None:
    """Write a figure as PNG, and let go of it. Raises OSError."""
    import matplotlib.pyplot as plt
    figure.tight_layout()
    figure.savefig(path, dpi=120, format='png')
    plt.close(figure)
