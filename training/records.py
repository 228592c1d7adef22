"""What a training leaves in its log directory's stats.json: a record of each epoch."""
import json
import os
from typing import Any, Dict, List

import runtime.compat  # noqa: F401  before tensorpack

from tensorpack.callbacks import JSONWriter

from runtime.files import WholeFile


class Statistics(JSONWriter):
    """Writes a directory's stats.json; goes on in that of a training that is resumed, and fails where it can't be
    written."""

    _stat_now: Dict[str, Any]

    def __new__(cls, directory: str) -> 'Statistics':
        return object.__new__(cls)

    def __init__(self, directory: str):
        self.directory = directory

    def _before_train(self) -> None:
        self._fname = os.path.join(self.directory, self.FILENAME)
        self._stats = read_statistics(self.directory)
        if self._stat_now and self._stats and self._stats[-1].get('global_step') == self.global_step:
            # the evaluation of an epoch whose other figures an earlier process wrote
            self._stat_now = dict(self._stats.pop(), **self._stat_now)
        self._trigger()

    def _write_stat(self) -> None:
        write_json(self._fname, self._stats)


def read_statistics(directory: str) -> List[Dict[str, Any]]:
    """Return the records of stats.json; none where it is missing or was damaged."""
    try:
        with open(os.path.join(directory, 'stats.json')) as f:
            return json.load(f)
    except (OSError, ValueError):
        return []


def write_json(path: str, value: Any) -> None:
    """Write a file of JSON, as a whole or not at all. Raises RunError on a full disk, else InputError."""
    with WholeFile(path) as f:
        json.dump(value, f)


def forget_after(directory: str, global_step: int) -> None:
    """Drop records of steps that are going to be made again."""
    records = read_statistics(directory)
    kept = [r for r in records if r.get('global_step', 0) <= global_step]
    if len(kept) < len(records):
        write_json(os.path.join(directory, 'stats.json'), kept)


def evaluated_epochs(directory: str) -> List[int]:
    """List the epochs whose evaluation is in stats.json: a training may be stopped before it is there."""
    return [r['epoch_num'] for r in read_statistics(directory) if 'eval-clean/error-top1' in r and 'epoch_num' in r]
