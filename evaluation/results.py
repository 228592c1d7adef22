"""What an evaluation leaves behind: a file with one record for each attack and all that it depends on, and tables with
a row for each image."""
import contextlib
import csv
import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from evaluation.course import Column
from evaluation.outcomes import count, effect
from evaluation.plan import WORST_CASE, attackers_in
from evaluation.saved_images import file_name
from runtime.errors import InputError, RunError
from runtime.files import WholeFile
from third_party.imagenet import Dataset

RATES = [('top1_error', 'wrong_top1'), ('top5_error', 'wrong_top5'), ('attack_success_rate', 'successes')]
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


def attack_record(column: Column, labels: np.ndarray, *, saved: bool = False) -> Dict[str, Any]:
    """Make one attack's record. Rates are fractions, None where they can't be known; those with `first_` are of the
    first start alone.

    `seconds` are those of its whole trajectory, of which strengths with the same step size share the beginning.
    `starts` counts those of all images. `saved`: also the figures of the images as they were saved.
    """
    attack, figures, first = column.attack, count(labels, column.worst), count(labels, column.first)
    strength, seconds = attack.strength, figures.seconds
    record: Dict[str, Any] = dict(attack_iter=strength.num_iter, epsilon=strength.epsilon,
                                  step_size=attack.step_used, num_images=figures.num_images)
    for prefix in ['', 'saved_'] if saved else ['']:
        for name, counted in RATES:
            rate, total = figures.rate(prefix + counted), figures.total(prefix + counted)
            record[prefix + name] = rate
            record[prefix + name + '_interval'] = None if rate is None else list(
                wilson_interval(getattr(figures, prefix + counted), total))
    record['seconds'] = round(seconds, 3)
    record['image_steps_per_second'] = round(column.image_steps / seconds, 3) if seconds else None
    record.update(attacker=attack.attacker, loss=attack.loss, goal=attack.goal, targets=attack.targets,
                  num_targets=attack.num_targets, restarts=attack.restarts, starts=int(column.starts.sum()))
    record.update(('first_' + name, first.rate(counted)) for name, counted in RATES)
    return record


def write_results(path: str, facts: Dict[str, Any], attacks: List[Dict[str, Any]]) -> None:
    """Write `facts`, and the records under `attacks`, as write_json does."""
    write_json(path, dict(facts, attacks=attacks))


def write_json(path: str, content: Dict[str, Any]) -> None:
    """Write figures as JSON. The file is there as a whole or not at all. No NaN is written: it is no JSON."""
    with WholeFile(path, keep=True) as f:
        json.dump(content, f, indent=1, sort_keys=True, allow_nan=False)
        f.write('\n')


PER_IMAGE_COLUMNS = ('index', 'path', 'label', 'attack_iter', 'epsilon', 'target', 'prediction', 'top5_correct',
                     'success')
# Of several attackers or starts
MORE_COLUMNS: Tuple[str, ...] = ('attacker', 'first_prediction', 'first_success', 'starts')


class ImageTable:
    """Rows of PER_IMAGE_COLUMNS, where needed also MORE_COLUMNS, for every image and attack; in a manifest, of the
    images as saved, and their files."""

    def __init__(self, file: Any, dataset: Dataset, *, manifest: bool = False):
        self._dataset, self._manifest = dataset, manifest
        self._writer = csv.writer(file, lineterminator='\n')
        self._quoting = csv.writer(file, lineterminator='\n', quoting=csv.QUOTE_ALL)

    def _write_row(self, row: Sequence[Any]) -> None:
        # a carriage return ends a line for who reads this, but Python's writer would not quote it
        writer = self._quoting if any('\r' in str(value) for value in row) else self._writer
        writer.writerow(row)

    def write(self, columns: Sequence[Column]) -> None:
        """Write all rows."""
        several = len(attackers_in([c.attack for c in columns])) > 1
        if self._manifest:
            columns = [c for c in columns if c.attack.attacker != WORST_CASE]
            more = MORE_COLUMNS[:several]
        else:
            more = MORE_COLUMNS if several or columns[0].attack.num_starts > 1 else ()
        self._write_row((('file',) if self._manifest else ()) + PER_IMAGE_COLUMNS + more)
        for position, label in enumerate(self._dataset.labels):
            for column in columns:
                index, attack = self._dataset.index(position), column.attack
                row = [index, self._dataset.paths[position], label, attack.strength.num_iter,
                       attack.strength.epsilon_text] + self._outcome(column, position, label, more)
                name = file_name(index, attack.strength, attack.attacker if several else '')
                self._write_row(([name] if self._manifest else []) + row)

    def _outcome(self, column: Column, position: int, label: int, more: Sequence[str]) -> List[Any]:
        prefix = 'saved_' if self._manifest else ''
        worst, first = column.worst[position], column.first[position]
        prediction, target = int(worst[prefix + 'prediction']), int(worst['target'])
        # empty where there is none: no target without a targeted attack, no prediction of logits that are no numbers
        row = ['' if target < 0 else target, '' if prediction < 0 else prediction,
               int(worst[prefix + 'top5_correct']), '' if target < 0 else int(prediction == target)]
        succeeded = int(effect(np.array(label), first) == 2)
        further = [column.attack.attacker, '' if first['prediction'] < 0 else int(first['prediction']),
                   '' if first['target'] < 0 else succeeded, int(column.starts[position])]
        return row + further[:len(more)]


class ImageTables:
    """The tables that were asked for: of the attacks, and the manifest of the saved images."""

    def __init__(self, per_image: Optional[str], manifest: Optional[str], dataset: Dataset):
        self._wanted = [(per_image, False), (manifest, True)]
        self._dataset = dataset

    def open(self) -> None:
        """Begin the files."""
        self._files: List[WholeFile] = []
        with contextlib.ExitStack() as files:
            self._tables = []
            for path, manifest in self._wanted:
                if path:
                    file = WholeFile(path, keep=True)
                    self._tables.append(ImageTable(files.enter_context(file), self._dataset, manifest=manifest))
                    self._files.append(file)
            files.pop_all()

    def write(self, columns: Sequence[Column]) -> None:
        for table in self._tables:
            table.write(columns)

    def close(self, error: Any = (None, None, None)) -> List[Exception]:
        """End every file, whatever becomes of the others; returns what went wrong."""
        failures: List[Exception] = []
        for file in self._files:
            try:
                file.__exit__(*error)
            except (InputError, RunError) as e:
                failures.append(e)
        return failures
