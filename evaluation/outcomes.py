"""What became of each image under each attack, and the figures that follow from it."""
from typing import List, NamedTuple, Optional, Sequence, Union

import numpy as np

from runtime.pixels import effective_step_size

Labels = Union[Sequence[int], np.ndarray]

# Of one image and one strength. Predictions are labels, -1 where the logits were not numbers; the target is -1 without
# an attack, and of an untargeted one. `saved_...` are of the image as it was saved, where it was.
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
        """Write epsilon exactly, whole numbers without a point: 16, 5.5."""
        text = repr(float(self.epsilon))
        return text[:-2] if text.endswith('.0') else text


class Figures(NamedTuple):
    """Counts over images; `rate` makes fractions of them. `targeted` are those with a target, of which alone an attack
    can have succeeded. `seconds` are those that the job took for them."""
    num_images: int = 0
    wrong_top1: int = 0
    wrong_top5: int = 0
    successes: int = 0
    saved_wrong_top1: int = 0
    saved_wrong_top5: int = 0
    saved_successes: int = 0
    targeted: int = 0
    seconds: float = 0.0

    def total(self, count: str) -> int:
        """Return of how many images a count is a part."""
        return self.targeted if count.endswith('successes') else self.num_images

    def rate(self, count: str) -> Optional[float]:
        """Return a count as a fraction of the images that it is of; None, unknown, where there is none of those."""
        total = self.total(count)
        return getattr(self, count) / total if total else None

    def text(self, count: str, digits: int = 6) -> str:
        """Write a rate; n/a where it can't be known, which is not 0: that would be a perfect defence."""
        rate = self.rate(count)
        return 'n/a' if rate is None else '%.*f' % (digits, rate)

    def lines(self, *, clean: bool = False) -> str:
        """Return the three lines that end an evaluation's output. clean: of one without an attack, whose success is 0
        in the published code's output."""
        texts = [(title, '%.6f' % 0 if clean and count == 'successes' else self.text(count)) for title, count in [
            ('Top1 Error', 'wrong_top1'), ('Attack Success Rate', 'successes'), ('Top5 Error', 'wrong_top5')]]
        return '\n'.join('%s: %s' % line for line in texts)

    def plus(self, more: 'Figures') -> 'Figures':
        counts = [int(a + b) for a, b in zip(self[:-1], more[:-1])]
        return Figures(*counts)._replace(seconds=self.seconds + more.seconds)


def effect(labels: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Return what attacks did to images: 0 nothing, 1 an error, 2 the error that was their target.

    labels: (N,), or of any shape that those of the outcomes, and of the result, can be compared with.
    """
    prediction = outcomes['prediction']
    success = (prediction == outcomes['target']) & (prediction >= 0)
    return np.where(success, 2, prediction != labels).astype(np.int8)


def is_decided(labels: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Tell of each image, (N,), whether no other start of an attack can do more to it: its target was hit, or it has
    none and is an error."""
    return effect(labels, outcomes) >= np.where(outcomes['target'] >= 0, 2, 1)


def worst_of(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Put two outcomes of the same images into one, (N,): those of the second where it did more, else of the first.

    The label is in the top 5 where it was in both; seconds add up. Without a target of its own the second is measured
    by the first one's.
    """
    worst = np.where(effect(labels, second) > effect(labels, first), second, first)
    worst['target'] = np.where(worst['target'] < 0, first['target'], worst['target'])
    worst['top5_correct'] = first['top5_correct'] & second['top5_correct']
    worst['seconds'] = first['seconds'] + second['seconds']
    return worst


def count(labels: Labels, outcomes: np.ndarray) -> Figures:
    """Count the figures of (N,) labels and outcomes."""
    figures = [len(labels)]
    for prefix in '', 'saved_':
        prediction = outcomes[prefix + 'prediction']
        success = (prediction == outcomes['target']) & (prediction >= 0)
        figures += [(prediction != labels).sum(), (~outcomes[prefix + 'top5_correct']).sum(), success.sum()]
    figures.append((outcomes['target'] >= 0).sum())
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
