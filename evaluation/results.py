"""What an evaluation leaves behind: a file with one record for each strength of the attack and all that it depends on,
and tables with a row for each image."""
import contextlib
import csv
import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from evaluation.outcomes import Figures, Strength
from evaluation.saved_images import file_name
from runtime.errors import InputError, RunError
from runtime.files import WholeFile
from third_party.imagenet import Dataset

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def wilson_interval(count: int, total: int) -> Tuple[float, float]:
    """Return the 95% interval (Wilson 1927) of a rate of which `count` of `total` independent draws were seen."""
    if not total:
        return 0.0, 1.0
    rate, z2 = count / total, Z_95 ** 2
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 * ((rate * (1 - rate) + z2 / (4 * total)) / total) ** 0.5 / (1 + z2 / total)
    # at the ends exactly, without the last bits' rounding
    return centre - half if count else 0.0, centre + half if count < total else 1.0


def attack_record(strength: Strength, figures: Figures, *, saved: bool = False) -> Dict[str, Any]:
    """Make one strength's record. Rates are fractions, None where they can't be known.

    `seconds` are those of its whole trajectory, of which strengths with the same step size share the beginning.
    `saved`: also the figures of the images as they were saved.
    """
    seconds = figures.seconds
    record: Dict[str, Any] = dict(attack_iter=strength.num_iter, epsilon=strength.epsilon,
                                  step_size=strength.step_used, num_images=figures.num_images)
    for prefix in ['', 'saved_'] if saved else ['']:
        for name, count in [('top1_error', 'wrong_top1'), ('top5_error', 'wrong_top5'),
                            ('attack_success_rate', 'successes')]:
            rate, total = figures.rate(prefix + count), figures.total(prefix + count)
            record[prefix + name] = rate
            record[prefix + name + '_interval'] = None if rate is None else list(
                wilson_interval(getattr(figures, prefix + count), total))
    record['seconds'] = round(seconds, 3)
    image_steps = figures.num_images * strength.num_iter
    record['image_steps_per_second'] = round(image_steps / seconds, 3) if seconds else None
    return record


def write_results(path: str, facts: Dict[str, Any], attacks: List[Dict[str, Any]]) -> None:
    """Write JSON: `facts`, and the records under `attacks`. The file is there as a whole or not at all.
    No NaN is written: it is no JSON."""
    with WholeFile(path, keep=True) as f:
        json.dump(dict(facts, attacks=attacks), f, indent=1, sort_keys=True, allow_nan=False)
        f.write('\n')


PER_IMAGE_COLUMNS = ('index', 'path', 'label', 'attack_iter', 'epsilon', 'target', 'prediction', 'top5_correct',
                     'success')


class ImageTable:
    """Rows of PER_IMAGE_COLUMNS for every image and strength; in a manifest, of the images as saved, and their
    files."""

    def __init__(self, file: Any, dataset: Dataset, strengths: Sequence[Strength], *, manifest: bool = False):
        self._dataset, self._strengths, self._manifest = dataset, strengths, manifest
        self._rows = csv.writer(file, lineterminator='\n')
        self._rows.writerow((('file',) if manifest else ()) + PER_IMAGE_COLUMNS)

    def write(self, positions: range, outcomes: np.ndarray) -> None:
        """Write the rows of some images. outcomes: (len(positions), number of strengths) of OUTCOME."""
        prefix = 'saved_' if self._manifest else ''
        for position, of_image in zip(positions, outcomes):
            label = self._dataset.labels[position]
            for strength, outcome in zip(self._strengths, of_image):
                prediction, target = int(outcome[prefix + 'prediction']), int(outcome['target'])
                # empty where there is none: no target without an attack, no prediction of logits that are no numbers
                row = [position, self._dataset.paths[position], label, strength.num_iter, strength.epsilon_text,
                       '' if target < 0 else target, '' if prediction < 0 else prediction,
                       int(outcome[prefix + 'top5_correct']), '' if target < 0 else int(prediction == target)]
                self._rows.writerow(([file_name(position, strength)] if self._manifest else []) + row)


class ImageTables:
    """The tables that were asked for: of the attacks, and the manifest of the saved images."""

    def __init__(self, per_image: Optional[str], manifest: Optional[str], dataset: Dataset,
                 strengths: Sequence[Strength]):
        self._wanted = [(per_image, False), (manifest, True)]
        self._dataset, self._strengths = dataset, strengths

    def open(self) -> None:
        """Begin the files."""
        self._files: List[WholeFile] = []
        with contextlib.ExitStack() as files:
            self._tables = []
            for path, manifest in self._wanted:
                if path:
                    file = WholeFile(path, keep=True)
                    self._tables.append(ImageTable(files.enter_context(file), self._dataset, self._strengths,
                                                   manifest=manifest))
                    self._files.append(file)
            files.pop_all()

    def write(self, positions: range, outcomes: np.ndarray) -> None:
        for table in self._tables:
            table.write(positions, outcomes)

    def close(self, error: Any = (None, None, None)) -> List[Exception]:
        """End every file, whatever becomes of the others; returns what went wrong."""
        failures: List[Exception] = []
        for file in self._files:
            try:
                file.__exit__(*error)
            except (InputError, RunError) as e:
                failures.append(e)
        return failures
