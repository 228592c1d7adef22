"""All that is kept of an evaluation, behind one object: journal, tables, saved images, results. The chief's, or
nobody's."""
import argparse
import logging
import os
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np

from adv_model import Attacker
from checkpoint import Weights, checkpoint_files
from evaluation.attack import attacker_sha256
from evaluation.journal import Journal
from evaluation.outcomes import Figures, Strength
from evaluation.results import ImageTables, attack_record, write_results
from evaluation.saved_images import MANIFEST, prepare_directory
from kernels.convolution import instruction_set
from nets import Network
from runtime.agreement import digest
from runtime.distributed import World
from runtime.errors import InputError, RunError
from runtime.files import check_writable
from runtime.fingerprint import code_sha256, sha256_of_files, versions
from third_party.imagenet import Dataset

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """Holds what an evaluation is of."""
    network: Network
    weights: Weights
    dataset: Dataset
    attacker: Type[Attacker]
    strengths: List[Strength]


def evaluation_facts(options: argparse.Namespace, inputs: Inputs) -> Dict[str, Any]:
    """Return all that the outcomes depend on, but for rounding and what the image files hold: two evaluations with the
    same facts, of the same files, are the same one."""
    network, attacker = inputs.network, inputs.attacker
    return dict(
        arch=network.arch, depth=network.depth, classes=network.num_classes, image_size=options.image_size,
        checkpoint_sha256=sha256_of_files(checkpoint_files(options.load)),
        paths_and_labels_sha256=digest(inputs.dataset.listing(options.data)).hex(),
        num_images=len(inputs.dataset), seed=options.seed, attack_dtype=options.attack_dtype, xla=options.xla,
        attacker='%s:%s' % (attacker.__module__, attacker.__name__), attacker_sha256=attacker_sha256(attacker),
        strengths=[list(s) for s in inputs.strengths], saves_images=bool(options.save_adversarial),
        preprocess=options.preprocess, dtype=options.dtype,
        code_sha256=code_sha256(), versions=versions())


class Records:
    """What ranks that are not the chief keep: nothing."""
    num_done = 0  # images, from the first of the set on, whose outcomes an earlier run has kept
    token = 0  # by which all ranks know the folder of saved images

    def __enter__(self) -> 'Records':
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def replay(self) -> Iterator[Tuple[range, np.ndarray]]:
        """Yield what an earlier run has kept: positions, and their outcomes as `evaluate` gives them."""
        return iter(())

    def add(self, positions: range, outcomes: np.ndarray) -> None:
        """Keep the outcomes of the next images, (N, number of strengths) of OUTCOME."""

    def write_results(self, figures: Sequence[Figures], ranks: int, warnings: Sequence[str]) -> None:
        """Write the records of all strengths, when every image is done; warnings: what was said of the job.

        Raises InputError or RunError where one of the files could not be written, after all others were.
        """


class ChiefsRecords(Records):
    """What the flags ask for. Raises InputError, before any work, where something can't be written or continued."""

    def __init__(self, options: argparse.Namespace, inputs: Inputs, contents: Sequence[str]):
        self._options, self._inputs, self._contents = options, inputs, contents
        self._journal: Optional[Journal] = None
        self._failures: List[Exception] = []
        for path in filter(None, [options.results, options.per_image]):
            check_writable(path)
        self._facts = evaluation_facts(options, inputs) if options.results or options.journal else {}
        if options.journal:
            self._journal = Journal(options.journal, self._facts, num_images=len(inputs.dataset),
                                    num_strengths=len(inputs.strengths), paths=inputs.dataset.paths, contents=contents)
            self.num_done = self._journal.num_done
        if options.save_adversarial:
            self.token = prepare_directory(options.save_adversarial, inputs.strengths, done=self.num_done,
                                           continued=self._journal is not None and self._journal.existed)
            check_writable(os.path.join(options.save_adversarial, MANIFEST))

    def __enter__(self) -> 'ChiefsRecords':
        saved = self._options.save_adversarial
        self._tables = ImageTables(self._options.per_image, saved and os.path.join(saved, MANIFEST),
                                   self._inputs.dataset, self._inputs.strengths)
        self._tables.open()
        return self

    def __exit__(self, *error: Any) -> None:
        # what went wrong waits until the figures, which took hours, are printed and written
        self._failures += self._tables.close(error)
        if error[0] and self._failures:
            raise self._failures[0]

    def replay(self) -> Iterator[Tuple[range, np.ndarray]]:
        for positions, outcomes in self._journal.replay() if self._journal else ():
            self._tables.write(positions, outcomes)
            yield positions, outcomes

    def add(self, positions: range, outcomes: np.ndarray) -> None:
        if self._journal:
            self._journal.append(positions, outcomes)
        self._tables.write(positions, outcomes)

    def write_results(self, figures: Sequence[Figures], ranks: int, warnings: Sequence[str]) -> None:
        options = self._options
        if options.results:
            facts = dict(self._facts, data_sha256=self._inputs.dataset.digest(options.data, self._contents),
                         checkpoint=options.load, data=options.data, ranks=ranks, batch=options.batch,
                         instruction_set=instruction_set(), saved_adversarial=options.save_adversarial,
                         warnings=list(warnings))
            attacks = [attack_record(strength, of_strength, saved=bool(options.save_adversarial))
                       for strength, of_strength in zip(self._inputs.strengths, figures)]
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
