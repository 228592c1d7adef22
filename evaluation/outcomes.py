"""What became of each image under each attack, and the figures that follow from it."""
from typing import List, NamedTuple, Sequence

import numpy as np

from runtime.pixels import effective_step_size

# Of one image and one strength. Predictions are labels, -1 where the logits were not numbers; the target is -1 where
# there was no attack. `saved_...` are of the image as it was saved, where it was.
OUTCOME = np.dtype([('target', '<i4'), ('prediction', '<i4'), ('top5_correct', '?'),
                    ('saved_prediction', '<i4'), ('saved_top5_correct', '?'), ('seconds', '<f4')])
OUTCOME_FIELDS = tuple(OUTCOME.names or ())


class Strength(NamedTuple):
    """An attack: steps (0 is no attack), and budget and step size in pixels."""
    num_iter: int
    epsilon: float = 16.0
    step_size: float = 1.0

    @property
    def step_used(self) -> float:
        """Return the attack's alpha, in pixels; 0 without an attack."""
        return effective_step_size(self.num_iter, self.epsilon, self.step_size) if self.num_iter else 0.0

    @property
    def epsilon_text(self) -> str:
        """Write epsilon with all of its digits, and none for nothing: 16, 5.5."""
        text = repr(float(self.epsilon))
        return text[:-2] if text.endswith('.0') else text


class Figures(NamedTuple):
    """Counts over images; `rate` makes fractions of them. `seconds` are those that the job took for them."""
    num_images: int = 0
    wrong_top1: int = 0
    wrong_top5: int = 0
    successes: int = 0
    saved_wrong_top1: int = 0
    saved_wrong_top5: int = 0
    saved_successes: int = 0
    seconds: float = 0.0

    def rate(self, count: str) -> float:
        """Return a count as a fraction of the images; nan for none."""
        return getattr(self, count) / self.num_images if self.num_images else float('nan')

    def lines(self) -> str:
        """Return the three lines that end an evaluation's output."""
        return '\n'.join('%s: %.6f' % (title, self.rate(count)) for title, count in [
            ('Top1 Error', 'wrong_top1'), ('Attack Success Rate', 'successes'), ('Top5 Error', 'wrong_top5')])

    def plus(self, more: 'Figures') -> 'Figures':
        counts = [int(a + b) for a, b in zip(self[:-1], more[:-1])]
        return Figures(*counts)._replace(seconds=self.seconds + more.seconds)


def count(labels: Sequence[int], outcomes: np.ndarray) -> Figures:
    """Count the figures of (N,) labels and outcomes."""
    figures = [len(labels)]
    for prefix in '', 'saved_':
        prediction = outcomes[prefix + 'prediction']
        success = (prediction == outcomes['target']) & (prediction >= 0)
        figures += [(prediction != labels).sum(), (~outcomes[prefix + 'top5_correct']).sum(), success.sum()]
    return Figures(*map(int, figures))._replace(seconds=float(outcomes['seconds'].sum(dtype=np.float64)))


class Tally:
    """Adds up: `figures` has one element for each strength."""

    def __init__(self, labels: Sequence[int], num_strengths: int):
        """Begin with nothing. labels: those of the whole validation set, by position."""
        self._labels = labels
        self.figures: List[Figures] = [Figures()] * num_strengths

    def add(self, positions: range, outcomes: np.ndarray) -> None:
        """Count images. outcomes: (len(positions), number of strengths) of OUTCOME."""
        labels = self._labels[positions.start:positions.stop]
        self.figures = [old.plus(count(labels, column)) for old, column in zip(self.figures, outcomes.T)]
