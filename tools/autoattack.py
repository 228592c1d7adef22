"""Measure a network by AutoAttack, standard: the published ensemble, by its authors' own library, on our network.

    python -m tools.autoattack CKPT --arch A -d N --data DIR --eps 4 [--subset S]

Prints robust accuracies: after each of the ensemble's attacks (APGD-CE, APGD-T, FAB-T, Square), of which each attacks
what the ones before it have left; the last is what leaderboards list. Beside it, of this project's APGD with the same
losses and targets. Images are those of DIR/val, prepared as `main.py --eval` does. --results FILE keeps the figures, as
JSON. With --journal FILE the same command goes on where one was killed. Needs PyTorch and pyautoattack
(requirements/extras.txt) beside TensorFlow.
"""
import argparse
import importlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from attacks.table import check_aim
from evaluation.outcomes import OUTCOME
from evaluation.outputs import check_outputs
from evaluation.preparation import default_preprocess
from evaluation.results import wilson_interval, write_json
from main import natural, positive_float
from nets import find_network
from runtime.command_line import Parser, end_on_interrupt, run_command
from runtime.errors import InputError, RunError
from runtime.files import check_writable
from runtime.fingerprint import code_sha256, digest, sha256_of_files, versions
from runtime.launcher import check_alone
from runtime.pixels import mistaken_attack
from runtime.printing import check_stdout, say
from third_party.imagenet import Dataset, load_dataset
from third_party.preparations import PREPARATIONS, Preparation
from third_party.subset import subset
from tools.network_flags import add_network_flags, check_network, load_network, network_facts

if TYPE_CHECKING:
    from inference import Classifier
    from third_party.batches import Batch

log = logging.getLogger(__name__)

LIBRARY = 'pyautoattack'
ENSEMBLE = ('apgd-ce', 'apgd-t', 'fab-t', 'square')  # the standard one, in its order
OURS = ('our APGD-CE', 'our APGD-CE and APGD-T')
COLUMNS = ('clean',) + ENSEMBLE + OURS  # of which outcomes are kept for each image
MOST_TARGETS = 9  # of APGD-T and FAB-T: the likeliest wrong classes
ROUNDING = 1e-3  # of a budget, in pixels


class Effort(NamedTuple):
    """How long each attack tries."""
    steps: int
    queries: int


PUBLISHED = Effort(steps=100, queries=5000)


def library_attacks(classifier: 'Classifier', epsilon: float, seed: int,
                    effort: Effort) -> Dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Return the attacks of the ensemble, {name: function}, that take (N, S, S, 3) BGR images in [0, 255] and labels,
    and return attacked images."""
    import torch
    from pyautoattack import AutoAttack

    from interop.as_torch import TorchClassifier, as_pixels
    if logging.getLogger('auto-attack').level != logging.ERROR:
        logging.getLogger('auto-attack').setLevel(logging.WARNING)
    torch.set_num_threads(1)  # the network is TensorFlow's; what PyTorch has left to do, Square's boxes, is small
    library = AutoAttack(TorchClassifier(classifier), norm='Linf', eps=epsilon / 255, seed=seed, version='standard')
    library.apgd.n_iter = library.apgd_targeted.n_iter = library.fab.n_iter = effort.steps
    library.square.n_queries = effort.queries
    targets = min(MOST_TARGETS, classifier.network.num_classes - 1)
    library.apgd_targeted.n_target_classes = library.fab.n_target_classes = targets

    def attack(name: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        library.attacks_to_run = [name]
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, ::-1], np.float32)
        attacked, _ = library.run_standard_evaluation(torch.from_numpy(pixels) / 255,
                                                      torch.from_numpy(labels.astype(np.int64)), batch_size=len(images))
        logging.getLogger('auto-attack').setLevel(logging.ERROR)  # the next batches would be warned of alike
        return as_pixels(attacked, classifier.image_size)

    return {name: lambda images, labels, name=name: attack(name, images, labels)  # type: ignore[misc]
            for name in ENSEMBLE}


def our_attacks(classifier: 'Classifier', batch: 'Batch', epsilon: float, seed: int,
                effort: Effort) -> Iterator[List[Callable[[np.ndarray], np.ndarray]]]:
    """Yield the attacks of each of OURS, one after the other: functions that return the attacked images of a batch at
    the positions that they are given."""
    how: Dict[str, Any] = dict(attacker='apgd', steps=effort.steps, epsilon=epsilon)
    images, labels, indices = batch

    def untargeted(at: np.ndarray) -> np.ndarray:
        return classifier.attack(images[at], labels[at], loss='ce', goal='untargeted', seed=seed, indices=indices[at],
                                 **how)[0]

    def towards(rank: int, at: np.ndarray) -> np.ndarray:
        return classifier.attack(images[at], labels[at], likeliest[at, rank], loss='dlr', goal='targeted',
                                 seed=(seed + 1 + rank) % 2 ** 31, indices=indices[at], **how)[0]

    logits = classifier.logits(images)
    logits[np.arange(len(labels)), labels] = -np.inf
    likeliest = np.argsort(-logits, axis=1, kind='stable')[:, :min(MOST_TARGETS, logits.shape[1] - 1)]
    yield [untargeted]
    yield [lambda at, rank=rank: towards(rank, at) for rank in range(likeliest.shape[1])]  # type: ignore[misc]


def attack_batch(classifier: 'Classifier', batch: 'Batch', epsilon: float, seed: int,
                 effort: Effort = PUBLISHED) -> np.ndarray:
    """Return what became of a batch, (N, columns) of OUTCOME: a column's prediction is wrong from the first attack on
    that made it so.

    Raises InputError where an attack makes pixels that are no numbers, RunError where it leaves its budget.
    """
    outcomes = np.zeros((len(batch.labels), len(COLUMNS)), OUTCOME)
    outcomes['target'] = -1
    clean, outcomes['top5_correct'][:, 0] = classifier.classify(batch.images, batch.labels)

    def fool(name: str, predictions: np.ndarray, attack: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        left = np.flatnonzero(predictions == batch.labels)
        if not len(left):
            return predictions
        attacked = attack(left)
        if not np.isfinite(attacked).all():
            raise InputError('%s made pixels that are no numbers: the network\'s logits or their gradient overflow'
                             % name)
        changed = np.abs(attacked - batch.images[left]).max()
        if not changed <= epsilon + ROUNDING:
            raise RunError('%s changed pixels by up to %.3f of 255; its budget was %g' % (name, changed, epsilon))
        after = predictions.copy()
        after[left] = classifier.classify(attacked.clip(0, 255), batch.labels[left])[0]
        return after

    predictions, library = clean, library_attacks(classifier, epsilon, seed, effort)
    stages: List[Tuple[str, List[Callable[[np.ndarray], np.ndarray]]]] = [
        (name, [lambda at, attack=library[name]: attack(batch.images[at], batch.labels[at])])  # type: ignore[misc]
        for name in ENSEMBLE]
    stages += zip(OURS, our_attacks(classifier, batch, epsilon, seed, effort))
    outcomes['prediction'][:, 0] = clean
    for column, (name, attacks) in enumerate(stages, 1):
        begin = time.perf_counter()
        for attack in attacks:
            predictions = fool(name, clean if name == OURS[0] else predictions, attack)
        outcomes['prediction'][:, column] = predictions
        outcomes['seconds'][:, column] = (time.perf_counter() - begin) / len(batch.labels)
    return outcomes


def measure(classifier: 'Classifier', dataset: Dataset, preparation: Preparation, options: argparse.Namespace,
            facts: Dict[str, Any], effort: Effort = PUBLISHED) -> np.ndarray:
    """Attack all images; return (N, columns) of OUTCOME. Goes on from options.journal, which is of these facts, and
    keeps each batch there."""
    from evaluation.attack import parts_of
    from evaluation.contents import read_contents
    from evaluation.journal import Journal
    from runtime.bars import tqdm
    from runtime.distributed import World
    from third_party.batches import validation_batches
    journal: Optional[Journal] = None
    contents = read_contents(dataset, World(), options.batch, preparation.check)  # a broken image is named now
    if options.journal:
        journal = Journal(options.journal, facts, num_images=len(dataset),
                          paths=dataset.paths, contents=contents)
    try:
        done = [outcomes for _, _, outcomes in journal.replay()] if journal else []
        parts = parts_of(len(dataset), options.batch, sum(map(len, done)))
        batches = validation_batches(dataset, parts, image_size=options.image_size, preparation=preparation)
        for part, batch in zip(tqdm(parts, unit='batch', disable=None), batches):
            indices = np.array([dataset.index(i) for i in part], np.int64)
            outcomes = attack_batch(classifier, batch._replace(indices=indices), options.eps, options.seed, effort)
            done.append(outcomes)
            if journal:
                journal.append(0, part, outcomes)
    finally:
        if journal:
            journal.close()
    return np.concatenate(done)


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


def facts_of(options: argparse.Namespace, dataset: Dataset, effort: Effort) -> Dict[str, Any]:
    """Return all that the outcomes depend on, but for the images' files: a journal of others is refused."""
    return dict(
        network_facts(options, options.load), job='AutoAttack', libraries=library_versions(), eps=options.eps,
        seed=options.seed, effort=list(effort), preprocess=options.preprocess, code_sha256=code_sha256(),
        tool_sha256=sha256_of_files([os.path.abspath(__file__)]), versions=versions(),
        paths_and_labels_sha256=digest(dataset.listing(options.data)).hex(),
        indices_sha256=digest([dataset.index(i) for i in range(len(dataset))]).hex(),
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
                              'AutoAttack robust accuracy: %.6f' % accuracy[len(ENSEMBLE)]])


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
        check_usable(options.journal)
    return dataset


def main() -> int:
    options = command_line().parse_args(sys.argv[1:])
    end_on_interrupt('autoattack.py')
    check_stdout()
    dataset = inputs(options)
    libraries = library_versions()
    classifier = load_network(options, options.load)
    if classifier.network.num_classes != len(dataset.class_names):
        raise InputError('%s is of %d classes, and the data in %s has %d'
                         % (options.load, classifier.network.num_classes, options.data, len(dataset.class_names)))
    facts = facts_of(options, dataset, PUBLISHED)
    outcomes = measure(classifier, dataset, PREPARATIONS[options.preprocess](), options, facts)
    try:
        say(figures_text(outcomes, dataset.labels, options.eps, libraries))
    finally:
        if options.results:
            write_json(options.results, dict(facts, **results_of(outcomes, dataset.labels)))
    return 0


if __name__ == '__main__':
    run_command('autoattack.py', main)
