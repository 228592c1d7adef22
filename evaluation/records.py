"""All that is kept of an evaluation, behind one object: journal, tables, saved images, results. The chief's, or
nobody's."""
import argparse
import logging
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Type

import numpy as np

from adv_model import Attacker
from checkpoint import Weights
from evaluation.attack import Aims
from evaluation.attackers import attacker_sha256
from evaluation.course import Course
from evaluation.facts import early_facts
from evaluation.journal import Journal
from evaluation.plan import Attack
from evaluation.results import ImageTables, attack_record, write_results
from evaluation.saved_images import MANIFEST, file_name, prepare_directory
from kernels.convolution import instruction_set
from nets import Network
from runtime.distributed import World
from runtime.errors import InputError, RunError
from runtime.files import check_writable
from runtime.fingerprint import versions
from third_party.imagenet import Dataset

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """Holds what an evaluation is of. attackers: by the names that the attacks have for them."""
    network: Network
    weights: Weights
    dataset: Dataset
    attackers: Dict[str, Type[Attacker]]
    attacks: List[Attack]
    aims: Aims

    def name_in_files(self, attacker: str) -> str:
        """Name an attacker in the names of files; a single one is not named."""
        return attacker if len(self.attackers) > 1 else ''


def evaluation_facts(options: argparse.Namespace, inputs: Inputs) -> Dict[str, Any]:
    """Return all that the outcomes depend on, but for rounding and what the image files hold: two evaluations with the
    same facts, of the same files, are the same one."""
    attackers = inputs.attackers.values()
    return dict(
        early_facts(options, inputs.dataset, inputs.aims.listed),
        attacker=','.join('%s:%s' % (a.__module__, a.__name__) for a in attackers),
        attacker_sha256=','.join(map(attacker_sha256, attackers)), versions=versions())


class Records:
    """What ranks that are not the chief know and keep: nothing."""
    course: Optional[Course] = None  # how far the evaluation is
    token = 0  # by which all ranks know the folder of saved images

    def __enter__(self) -> 'Records':
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def add(self, stage: int, positions: Sequence[int], outcomes: np.ndarray) -> None:
        """Keep what became of the next images of a stage, (len(positions), number of its attacks) of OUTCOME."""

    def fail(self, failure: Exception) -> None:
        """Keep an error of the job's other outputs: write_results raises it when it is through."""

    def write_results(self, ranks: int, warnings: Sequence[str]) -> None:
        """Write the records of all attacks, when every image is done; warnings: what was said of the job.

        Raises InputError or RunError where one of the files could not be written, after all others were.
        """


class ChiefsRecords(Records):
    """The course of the evaluation, and what the flags ask for. Raises InputError, before any work, where something
    can't be written or continued."""

    def __init__(self, options: argparse.Namespace, inputs: Inputs, contents: Sequence[str]):
        self._options, self._inputs, self._contents = options, inputs, contents
        self.course: Course = Course(inputs.dataset.labels, inputs.attacks)
        self._journal: Optional[Journal] = None
        self._failures: List[Exception] = []
        for path in filter(None, [options.results, options.per_image]):
            check_writable(path)
        self._facts = evaluation_facts(options, inputs) if options.results or options.journal else {}
        if options.journal:
            self._journal = Journal(options.journal, self._facts, num_images=len(inputs.dataset),
                                    paths=inputs.dataset.paths, contents=contents)
            self._replay(self._journal)
        if options.save_adversarial:
            names = (file_name(inputs.dataset.index(i), attack.strength, inputs.name_in_files(attack.attacker))
                     for i in range(self.course.num_done) for attack in inputs.attacks)
            self.token = prepare_directory(options.save_adversarial, names,
                                           continued=self._journal is not None and self._journal.existed)
            check_writable(os.path.join(options.save_adversarial, MANIFEST))

    def _replay(self, journal: Journal) -> None:
        for stage, positions, outcomes in journal.replay():
            try:
                self.course.add(stage, positions, outcomes)
            except InputError as e:
                raise InputError('the journal %s is damaged: %s' % (self._options.journal, e))

    def __enter__(self) -> 'ChiefsRecords':
        saved = self._options.save_adversarial
        self._tables = ImageTables(self._options.per_image, saved and os.path.join(saved, MANIFEST),
                                   self._inputs.dataset)
        self._tables.open()
        return self

    def __exit__(self, *error: Any) -> None:
        if not error[0]:
            self._tables.write(self.course.columns())
        # what went wrong waits until the figures, which took hours, are printed and written
        self._failures += self._tables.close(error)
        if error[0] and self._failures:
            raise self._failures[0]

    def add(self, stage: int, positions: Sequence[int], outcomes: np.ndarray) -> None:
        if self._journal:
            self._journal.append(stage, positions, outcomes)
        self.course.add(stage, positions, outcomes)

    def fail(self, failure: Exception) -> None:
        self._failures.append(failure)

    def write_results(self, ranks: int, warnings: Sequence[str]) -> None:
        options, dataset = self._options, self._inputs.dataset
        if options.results:
            facts = dict(self._facts, data_sha256=dataset.digest(options.data, self._contents),
                         checkpoint=options.load, data=options.data, ranks=ranks, batch=options.batch,
                         instruction_set=instruction_set(), saved_adversarial=options.save_adversarial,
                         warnings=list(warnings))
            attacks = [attack_record(column, np.array(dataset.labels), saved=bool(options.save_adversarial))
                       for column in self.course.columns()]
            try:
                write_results(options.results, facts, attacks)
            except (InputError, RunError) as e:
                self._failures.append(e)
        for failure in self._failures[:-1]:
            log.error('%s', failure)
        if self._failures:
            raise self._failures[-1]


def open_records(options: argparse.Namespace, inputs: Inputs, contents: Sequence[str], world: World) -> Records:
    """Return what this rank keeps. contents: as of read_contents. Raises InputError at the chief."""
    return ChiefsRecords(options, inputs, contents) if world.is_chief else Records()
