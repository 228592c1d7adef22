"""AutoAttack's standard ensemble, of its authors' library, and this project's APGD beside it, one attack at a time.

    ensemble = Ensemble(classifier, epsilon=8.0, seed=0)
    outcomes = ensemble.attack(COLUMNS.index('apgd-ce'), batch, clean_predictions)

Each attack is a column of outcomes. It attacks what the ones before it have left.
"""
import functools
import logging
import re
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Set

import numpy as np

from evaluation.outcomes import OUTCOME
from runtime.errors import InputError, RunError

if TYPE_CHECKING:
    from inference import Classifier
    from third_party.batches import Batch

STANDARD = ('apgd-ce', 'apgd-t', 'fab-t', 'square')  # in its order
OURS = ('our APGD-CE', 'our APGD-CE and APGD-T')
COLUMNS = ('clean',) + STANDARD + OURS
MOST_TARGETS = 9  # of APGD-T and FAB-T: the likeliest wrong classes
ROUNDING = 1e-3  # of a budget, in pixels

# Returns attacked images, (n, S, S, 3), of those of a batch at n positions
Attack = Callable[[np.ndarray], np.ndarray]


class Effort(NamedTuple):
    """How long each attack tries."""
    steps: int
    queries: int


PUBLISHED = Effort(steps=100, queries=5000)


class OnceOnly(logging.Filter):
    """Lets a message through once, whatever its numbers: the library has the same ones for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = re.sub(r'[0-9]+', '0', record.getMessage())
        new = text not in self._seen
        self._seen.add(text)
        return new


class Ensemble:
    """Holds the attacks on a network. epsilon: their budget, in pixels. seed: of all that is random."""

    def __init__(self, classifier: 'Classifier', epsilon: float, seed: int, effort: Effort = PUBLISHED):
        self._classifier, self._epsilon, self._seed, self._effort = classifier, epsilon, seed, effort
        self._most_targets = min(MOST_TARGETS, classifier.network.num_classes - 1)
        self._library = self._set_up_library()

    def _set_up_library(self) -> Any:
        import torch
        from pyautoattack import AutoAttack

        from interop.as_torch import TorchClassifier
        logger = logging.getLogger('auto-attack')
        if not any(isinstance(f, OnceOnly) for f in logger.filters):
            logger.addFilter(OnceOnly())
        logger.setLevel(logging.WARNING)
        torch.set_num_threads(1)  # the network is TensorFlow's; what PyTorch has left, Square's boxes, is small
        library = AutoAttack(TorchClassifier(self._classifier), norm='Linf', eps=self._epsilon / 255, seed=self._seed,
                             version='standard')
        library.apgd.n_iter = library.apgd_targeted.n_iter = library.fab.n_iter = self._effort.steps
        library.square.n_queries = self._effort.queries
        library.apgd_targeted.n_target_classes = library.fab.n_target_classes = self._most_targets
        return library

    def attack(self, column: int, batch: 'Batch', before: np.ndarray) -> np.ndarray:
        """Return what became of a batch, (N,) of OUTCOME: predictions, those `before` of images that are wrong already.

        before: (N,) predictions that the attacks before this one left; of no matter for 'clean'. Raises InputError
        where an attack makes pixels that are no numbers, RunError where it leaves its budget.
        """
        outcomes = np.zeros(len(batch.labels), OUTCOME)
        outcomes['target'] = -1
        begin = time.perf_counter()
        if COLUMNS[column] == 'clean':
            outcomes['prediction'], outcomes['top5_correct'] = self._classifier.classify(batch.images, batch.labels)
        else:
            outcomes['prediction'] = before
            for attack in self._attacks(COLUMNS[column], batch):
                self._fool(COLUMNS[column], batch, outcomes['prediction'], attack)
        outcomes['seconds'] = (time.perf_counter() - begin) / len(batch.labels)
        return outcomes

    def _fool(self, name: str, batch: 'Batch', predictions: np.ndarray, attack: Attack) -> None:
        """Attack the images that are right, and put in what they are classified as then."""
        left = np.flatnonzero(predictions == batch.labels)
        if not len(left):
            return
        overflow = '%s made pixels that are no numbers: the network\'s logits or their gradient overflow' % name
        try:
            attacked = attack(left)
        except ValueError as e:
            text = str(e).split('\n')[0]
            if isinstance(e, InputError) or not re.search(r'\b(nan|inf|finite)\b', text):
                raise
            raise InputError('%s (%s)' % (overflow, text))  # the classifier takes numbers alone
        if not np.isfinite(attacked).all():
            raise InputError(overflow)
        changed = np.abs(attacked - batch.images[left]).max()
        if not changed <= self._epsilon + ROUNDING:
            raise RunError('%s changed pixels by up to %.3f of 255; its budget was %g' % (name, changed, self._epsilon))
        predictions[left] = self._classifier.classify(attacked.clip(0, 255), batch.labels[left])[0]

    def _attacks(self, name: str, batch: 'Batch') -> List[Attack]:
        """Return the attacks of a batch that a column is of, one after the other."""
        if name in STANDARD:
            return [lambda at: self._run_library(name, batch.images[at], batch.labels[at])]
        how: Dict[str, Any] = dict(attacker='apgd', steps=self._effort.steps, epsilon=self._epsilon)
        if name == OURS[0]:
            return [lambda at: self._classifier.attack(
                batch.images[at], batch.labels[at], loss='ce', goal='untargeted', seed=self._seed,
                indices=batch.indices[at], **how)[0]]
        logits = self._classifier.logits(batch.images)
        logits[np.arange(len(batch.labels)), batch.labels] = -np.inf
        likeliest = np.argsort(-logits, axis=1, kind='stable')[:, :self._most_targets]

        def towards(rank: int, at: np.ndarray) -> np.ndarray:
            return self._classifier.attack(
                batch.images[at], batch.labels[at], likeliest[at, rank], loss='dlr', goal='targeted',
                seed=(self._seed + 1 + rank) % 2 ** 31, indices=batch.indices[at], **how)[0]
        return [functools.partial(towards, rank) for rank in range(likeliest.shape[1])]

    def _run_library(self, name: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Attack (N, S, S, 3) BGR images in [0, 255] by an attack of the library."""
        import torch

        from interop.as_torch import as_pixels
        self._library.attacks_to_run = [name]
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, ::-1], np.float32)
        attacked, _ = self._library.run_standard_evaluation(
            torch.from_numpy(pixels) / 255, torch.from_numpy(labels.astype(np.int64)), batch_size=len(images))
        return as_pixels(attacked, self._classifier.image_size)
