"""How this project's pictures of curves look."""
import io
from typing import Any, Tuple


def plain_axes() -> Tuple[Any, Any]:
    """Return a figure of matplotlib's, which needs no screen, and its axes, with a faint grid."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5))
    make_plain(axes)
    return figure, axes


def make_plain(axes: Any) -> None:
    """Give axes a faint grid, and no frame above and on the right."""
    axes.grid(alpha=0.3)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def png_of(figure: Any, **how: Any) -> bytes:
    """Return a figure as the bytes of a PNG, and let go of it. how: arguments of matplotlib's savefig."""
    import matplotlib.pyplot as plt
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format='png', **how)
    plt.close(figure)
    return picture.getvalue()
