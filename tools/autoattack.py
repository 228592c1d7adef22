"""Measure a network by AutoAttack, standard: the published ensemble, by its authors' own library, on our network.

    python -m tools.autoattack CKPT --arch A -d N --data DIR --eps 4 [--subset S]

Prints robust accuracies: after each of the ensemble's attacks (APGD-CE, APGD-T, FAB-T, Square), of which each attacks
what the ones before it have left; the last is what leaderboards list. Beside it, of this project's APGD with the same
losses and targets. Images are those of DIR/val, prepared as `main.py --eval` does. --results FILE keeps the figures, as
JSON. With --journal FILE the same command goes on where one was killed. Needs PyTorch and pyautoattack
(requirements/extras.txt) beside TensorFlow.
"""
import argparse
import contextlib
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import numpy as np

from attacks.table import check_aim
from evaluation.outcomes import OUTCOME
from evaluation.outputs import check_outputs
from evaluation.preparation import default_preprocess, mistaken_preprocess
from evaluation.results import wilson_interval, write_json
from nets import find_network
from runtime.command_line import Parser, end_on_interrupt, run_command
from runtime.errors import InputError
from runtime.files import check_writable
from runtime.fingerprint import code_sha256, digest, sha256_of_files, versions
from runtime.flag_values import natural, positive_float
from runtime.launcher import check_alone
from runtime.pixels import mistaken_attack
from runtime.printing import check_stdout, say
from third_party.imagenet import Dataset, load_dataset
from third_party.preparations import PREPARATIONS, Preparation
from third_party.subset import subset
from tools import ensemble
from tools.ensemble import COLUMNS, OURS, PUBLISHED, STANDARD, Effort, Ensemble
from tools.network_flags import add_network_flags, check_network, load_network, network_facts

if TYPE_CHECKING:
    from inference import Classifier

log = logging.getLogger(__name__)

LIBRARY = 'pyautoattack'
SUSPICIOUS = 0.002  # as much accuracy as Square, which uses no gradient, may take from the others


def measure(classifier: 'Classifier', dataset: Dataset, preparation: Preparation, options: argparse.Namespace,
            facts: Dict[str, Any], effort: Effort = PUBLISHED) -> np.ndarray:
    """Attack all images by one attack after the other; return (N, columns) of OUTCOME.

    Goes on from options.journal, which is of these facts, and keeps there what became of each batch under each attack.
    """
    from evaluation.contents import read_contents
    from evaluation.journal import Journal
    from evaluation.rounds import parts_of
    from runtime.bars import tqdm
    from runtime.distributed import World
    from third_party.batches import validation_batches
    contents = read_contents(dataset, World(), options.batch, preparation.check)  # a broken image is named now
    outcomes = np.zeros((len(dataset), len(COLUMNS)), OUTCOME)
    with contextlib.ExitStack() as stack:
        journal: Optional[Journal] = None
        num_done = [0] * len(COLUMNS)
        if options.journal:
            journal = stack.enter_context(Journal(options.journal, facts, num_images=len(dataset),
                                                  paths=dataset.paths, contents=contents))
            for column, positions, found in journal.replay():
                outcomes[positions, column] = found[:, 0]
                num_done[column] += len(positions)
        attacks = Ensemble(classifier, options.eps, options.seed, effort)
        for column, name in enumerate(COLUMNS):
            before = outcomes['prediction'][:, 0 if name == OURS[0] else column - 1]
            parts = parts_of(len(dataset), options.batch, num_done[column])
            batches = validation_batches(dataset, parts, image_size=options.image_size, preparation=preparation)
            for part, batch in zip(tqdm(parts, desc=name, unit='batch', disable=None), batches):
                indices = np.array([dataset.index(i) for i in part], np.int64)
                found = attacks.attack(column, batch._replace(indices=indices), before[list(part)])
                outcomes[part, column] = found
                if journal:
                    journal.append(column, part, found[:, None])
    return outcomes


def doubts(classifier: 'Classifier', dataset: Dataset, preparation: Preparation,
           options: argparse.Namespace) -> List[str]:
    """Say what looks wrong of the network, the images and the labels together, as main.py --eval does."""
    from evaluation.sanity import suspicions
    from runtime.distributed import World
    return mistaken_preprocess(options.arch, options.preprocess, classifier.network.num_classes) + suspicions(
        lambda images: classifier.classify(images, np.zeros(len(images), np.int32))[0], dataset, World(),
        image_size=options.image_size, batch=options.batch, preparation=preparation)


def masked(outcomes: np.ndarray, labels: Sequence[int]) -> List[str]:
    """Say where Square, without gradients, found what the attacks with gradients did not: a sign that these are
    masked."""
    left = (outcomes['prediction'] == np.asarray(labels)[:, None]).mean(axis=0)
    fab, square = left[COLUMNS.index('fab-t')], left[COLUMNS.index('square')]
    if fab - square <= SUSPICIOUS:
        return []
    return ['Square, which uses no gradient, takes %.1f points of the accuracy that the attacks with gradients left: '
            'the network\'s gradients are likely masked, and stronger attacks exist' % (100 * (fab - square))]


def library_versions() -> Dict[str, str]:
    """Return the versions of what attacks, {name: version}. Raises InputError where it is not installed."""
    found = {}
    for name, module in ((LIBRARY, LIBRARY), ('PyTorch', 'torch')):
        try:
            found[name] = importlib.import_module(module).__version__
        except ImportError:
            raise InputError('this needs %s, which is not in this environment (%s): pip install --no-deps -r '
                             'requirements/extras.txt, in lane tf2 of Python 3.11 or later' % (name, sys.executable))
    return found


def early_facts(options: argparse.Namespace, dataset: Dataset) -> Dict[str, Any]:
    """Return what the outcomes depend on and TensorFlow needn't be loaded for, but for the images' files."""
    return dict(
        network_facts(options, options.load), job='AutoAttack', eps=options.eps, seed=options.seed, batch=options.batch,
        preprocess=options.preprocess, code_sha256=code_sha256(),
        tool_sha256=sha256_of_files([os.path.abspath(__file__), os.path.abspath(ensemble.__file__)]),
        paths_and_labels_sha256=digest(dataset.listing(options.data)).hex(),
        indices_sha256=digest([dataset.index(i) for i in range(len(dataset))]).hex())


def facts_of(options: argparse.Namespace, dataset: Dataset, effort: Effort) -> Dict[str, Any]:
    """Return all that the outcomes depend on, but for the images' files: a journal of others is refused."""
    return dict(early_facts(options, dataset), libraries=library_versions(), versions=versions(), effort=list(effort),
                network_sha256=sha256_of_files(find_network(options.arch, options.depth).files()))


def figures_text(outcomes: np.ndarray, labels: Sequence[int], epsilon: float, libraries: Dict[str, str]) -> str:
    """Return the lines that the tool prints: accuracies as fractions."""
    accuracy = (outcomes['prediction'] == np.asarray(labels)[:, None]).mean(axis=0)
    seconds = outcomes['seconds'].sum(axis=0, dtype=np.float64)
    lines = ['%d images, epsilon %g, %s' % (len(labels), epsilon, ', '.join('%s %s' % pair
                                                                         for pair in libraries.items()))]
    for name, of_column, took in zip(COLUMNS, accuracy, seconds):
        text = 'clean' if name == 'clean' else name if name in OURS else 'AutoAttack, after ' + name
        lines.append('%-32s %.6f%s' % (text, of_column, '' if name == 'clean' else '  %8.1f s' % took))
    return '\n'.join(lines + ['Clean accuracy: %.6f' % accuracy[0],
                              'AutoAttack robust accuracy: %.6f' % accuracy[len(STANDARD)]])


def results_of(outcomes: np.ndarray, labels: Sequence[int]) -> Dict[str, Any]:
    """Return the figures for a file of results: of each attack in its order, accuracy as a fraction, with its 95%
    interval, and seconds."""
    right = (outcomes['prediction'] == np.asarray(labels)[:, None]).sum(axis=0)
    seconds = outcomes['seconds'].sum(axis=0, dtype=np.float64)
    return dict(num_images=len(labels), attacks=[
        dict(attack=name, accuracy=int(count) / len(labels), accuracy_interval=wilson_interval(count, len(labels)),
             seconds=round(float(took), 3)) for name, count, took in zip(COLUMNS, right, seconds)])


def command_line() -> Parser:
    parser = Parser(prog='autoattack.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('load', metavar='CKPT', help='an .npz file or a TF checkpoint')
    parser.add_argument('--data', required=True, metavar='DIR', help='folder with val/')
    parser.add_argument('--classes', metavar='FILE', help='class names, one a line, in label order')
    parser.add_argument('--preprocess', choices=list(PREPARATIONS), help='as of main.py --eval')
    parser.add_argument('--subset', metavar='S', help='S images, spread evenly, or those of a FILE, one a line')
    parser.add_argument('--eps', type=positive_float, required=True, metavar='E', help='budget in pixels, of 255')
    parser.add_argument('--seed', type=natural, default=0, help='of all that is random (0)')
    parser.add_argument('--results', metavar='FILE', help='where the figures go, as JSON')
    parser.add_argument('--journal', metavar='FILE', help='keeps what is finished; the same command continues from it')
    add_network_flags(parser)
    return parser


def inputs(options: argparse.Namespace) -> Dataset:
    """Check the flags and return the images, before TensorFlow is loaded. Raises InputError for what is wrong."""
    check_alone('tools.autoattack')
    for flag in ('data', 'classes', 'subset', 'results', 'journal'):
        if getattr(options, flag) == '':  # most likely a shell variable that is not set
            raise InputError('--%s is empty' % flag)
    for mistake in mistaken_attack([options.eps], 0.0):
        log.warning('%s', mistake)
    check_network(options, options.load)
    check_outputs(options)
    if options.results:
        check_writable(options.results)
    options.preprocess = options.preprocess or default_preprocess(options.arch, False)
    dataset = load_dataset(options.data, 'val', options.classes)
    check_aim('dlr', 'targeted', len(dataset.class_names))
    if options.subset and not options.subset.isdecimal() and not os.path.exists(options.subset):
        raise InputError('--subset %s: there is no such file' % options.subset)
    if options.subset:
        dataset = subset(dataset, options.data, options.subset)
    if options.journal:
        from evaluation.journal import check_usable
        check_usable(options.journal, lambda: early_facts(options, dataset))
    return dataset


def run(options: argparse.Namespace, effort: Effort = PUBLISHED) -> int:
    """Attack, print the figures and write the file of results."""
    check_stdout()
    dataset = inputs(options)
    libraries = library_versions()
    classifier = load_network(options, options.load)
    if classifier.network.num_classes != len(dataset.class_names):
        raise InputError('%s is of %d classes, and the data in %s has %d'
                         % (options.load, classifier.network.num_classes, options.data, len(dataset.class_names)))
    facts, preparation = facts_of(options, dataset, effort), PREPARATIONS[options.preprocess]()
    warnings = mistaken_attack([options.eps], 0.0)  # `inputs` said it

    def warn(found: List[str]) -> None:
        warnings.extend(found)
        for warning in found:
            log.warning('%s', warning)

    warn(doubts(classifier, dataset, preparation, options))
    outcomes = measure(classifier, dataset, preparation, options, facts, effort)
    warn(masked(outcomes, dataset.labels))
    try:
        say(figures_text(outcomes, dataset.labels, options.eps, libraries))
    finally:
        if options.results:
            write_json(options.results, dict(facts, **results_of(outcomes, dataset.labels), warnings=warnings,
                                             data=options.data, subset=options.subset))
    return 0


def main() -> int:
    options = command_line().parse_args(sys.argv[1:])
    end_on_interrupt('autoattack.py')
    return run(options)


if __name__ == '__main__':
    run_command('autoattack.py', main)
