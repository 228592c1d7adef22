"""Judge a network by several attackers' images of the same photos: each attacker's rate, and all-or-nothing.

    python -m tools.black_box PREDICTIONS... --labels MANIFEST [--results F.json]
    python -m tools.black_box DIR... --labels MANIFEST --load CKPT --arch A -d N [--results F.json]

PREDICTIONS: files of lines `path,label` as `main.py --eval-directory` writes them, one for each attacker. DIR: folders
of images, one for each attacker, which the network of --load classifies as `main.py --eval-directory` does. MANIFEST: a
CSV with the columns `file` and `label`, and perhaps `path`; tools/originals.py says how its rows find images.

All-or-nothing is the paper's criterion: a photo counts as right only if the network is right on every attacker's
version of it. Rates are accuracies, of the photos of which every attacker has a version.
"""
import argparse
import contextlib
import logging
import os
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tabulate import tabulate

from evaluation.outputs import Named, check_apart, files_of_checkpoint
from evaluation.preparation import mistaken_preprocess
from evaluation.results import wilson_interval, write_json
from runtime.command_line import Parser, end_on_interrupt, run_command
from runtime.errors import InputError
from runtime.files import check_folder, check_writable, kept_if_cut_off
from runtime.flag_values import positive_int
from runtime.printing import check_stdout, say
from third_party.batches import contents
from third_party.preparations import PREPARATIONS, Preparation
from tools.network_flags import add_network_flags, check_network, load_network, network_facts
from tools.originals import Attacker, Originals, find_originals, read_manifests
from tools.predictions import NO_LABEL, classify, images_of, names_for, read_predictions

log = logging.getLogger(__name__)

NAMED = 10  # at most, of files that can't be decoded
UNLIKELY = 1e-6  # that predictions of the same labels look like those of others


class Verdict(NamedTuple):
    """What became of the photos that count: those of which every attacker has a version."""
    photos: List[str]
    right: np.ndarray        # (attackers, photos) bool: the network is right on that attacker's version
    missing: List[List[str]]  # the photos that each attacker lacks


# --- the judgement ---------------------------------------------------------------------------------------------------

def check_complete(attackers: Sequence[Attacker], originals: Originals) -> None:
    """Raise InputError where an attacker lacks a photo of the manifest, or has images that it doesn't list."""
    problems = []
    for attacker, versions, unlisted in zip(attackers, originals.versions, originals.unlisted):
        missing = [name for name in originals.labels if name not in versions]
        if missing:
            problems.append('%s lacks %d of the %d photos of --labels, such as %s'
                            % (attacker.name, len(missing), len(originals.labels), missing[0]))
        if unlisted:
            problems.append('%s has %d images that --labels doesn\'t list, such as %s'
                            % (attacker.name, len(unlisted), unlisted[0]))
    if problems:
        raise InputError('%s; --allow-missing leaves out the photos that not every attacker has' % '; '.join(problems))


def judge(originals: Originals, predictions: Sequence[Sequence[int]]) -> Verdict:
    """Compare each attacker's predictions, in the order of its paths, with the labels.

    Raises InputError where no photo has a version of every attacker.
    """
    photos = [name for name in originals.labels if all(name in versions for versions in originals.versions)]
    if not photos:
        raise InputError('no photo of --labels has an image of every attacker: their names must agree (see --help)')
    labels = np.array([originals.labels[name] for name in photos])
    seen = np.array([[of_one[versions[name]] for name in photos]
                     for of_one, versions in zip(predictions, originals.versions)])
    missing = [[name for name in originals.labels if name not in versions] for versions in originals.versions]
    return Verdict(photos, seen == labels, missing)


def check_labels(attackers: Sequence[Attacker], predictions: Sequence[Sequence[int]], labels: Sequence[int],
                 classes: Optional[int]) -> None:
    """Raise InputError where labels are not of the network's `classes`, or, where nobody says how many these are, where
    an attacker's predictions are clearly of fewer classes than the other labels.

    Such are those that use most of the labels up to their largest one, and none of the many above it: a network of 10
    classes beside labels of 1000.
    """
    of_all = [('--labels', labels)] + [(a.name, p) for a, p in zip(attackers, predictions)]
    for name, values in of_all:
        if classes is not None and max(values) >= classes:
            raise InputError('%s has the label %d, and there are %d classes, from 0' % (name, max(values), classes))
    for attacker, values in zip(attackers, predictions) if classes is None else ():
        largest, used = max(values), len(set(values) - {NO_LABEL})
        for name, others in of_all:
            above = float(np.mean(np.array(others) > largest))
            if largest >= 1 and 2 * used >= largest + 1 and (1 - above) ** len(values) < UNLIKELY:
                raise InputError('%s has the labels 0 to %d alone, and %s labels up to %d: they are of different '
                                 'classes; if they are not, say how many there are by --classes'
                                 % (attacker.name, largest, name, max(others)))


def warn_of_labels(attackers: Sequence[Attacker], originals: Originals, predictions: Sequence[Sequence[int]]) -> None:
    """Warn of images without a label, and where the manifest's labels seem to be shifted by one."""
    for attacker, of_one, versions in zip(attackers, predictions, originals.versions):
        without = [path for path, label in zip(attacker.paths, of_one) if label == NO_LABEL]
        if without:
            log.warning('%s has no label for %d images, such as %s: they count as wrong',
                        attacker.name, len(without), without[0])
        labels = np.array([originals.labels[name] for name in versions])
        seen = np.array([of_one[position] for position in versions.values()])
        for shift in (1, -1):
            right, shifted = seen == labels, seen == labels + shift
            if shifted.sum() > right.sum():
                from evaluation.sanity import more_often  # with TensorFlow, which files of predictions don't need
                if more_often(shifted, right, labels):
                    log.warning('the labels of --labels are likely shifted: %s is right on %.0f%% of the images, and '
                                'on %.0f%% if each label were %+d', attacker.name, 100 * right.mean(),
                                100 * shifted.mean(), shift)


# --- what is said ----------------------------------------------------------------------------------------------------

def record(attackers: Sequence[Attacker], verdict: Verdict) -> Dict[str, Any]:
    """Return the figures for a file of results. Rates are accuracies, fractions of num_images."""
    total = len(verdict.photos)
    right = [int(of_one.sum()) for of_one in verdict.right]
    all_right = int(verdict.right.all(axis=0).sum())
    return dict(
        attackers=[attacker.name for attacker in attackers], num_images=total, rates_are='accuracy',
        right=right, rates=[count / total for count in right],
        rate_intervals=[list(wilson_interval(count, total)) for count in right],
        all_right=all_right, all_or_nothing=all_right / total,
        all_or_nothing_interval=list(wilson_interval(all_right, total)),
        missing={attacker.name: names for attacker, names in zip(attackers, verdict.missing) if names})


def table(figures: Dict[str, Any]) -> str:
    """Lay out a record as a table in Markdown, in percent."""
    lines = list(zip(figures['attackers'], figures['right'], figures['rates'], figures['rate_intervals']))
    lines.append(('all or nothing', figures['all_right'], figures['all_or_nothing'],
                  figures['all_or_nothing_interval']))
    rows = [[name, right, '%.1f' % (100 * rate), '%.1f to %.1f' % tuple(100 * x for x in interval),
             '%.1f' % (100 - 100 * rate)] for name, right, rate, interval in lines]
    return tabulate(rows, ['attacker', 'right', 'accuracy, %', '95% interval', 'error, %'], tablefmt='github',
                    disable_numparse=True, colalign=['left'] + ['right'] * 4)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line. Raises InputError for flags that are wrong or don't go together."""
    parser = Parser(prog='black_box.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('inputs', nargs='+', metavar='PREDICTIONS|DIR')
    parser.add_argument('--labels', action='append', required=True, metavar='MANIFEST',
                        help='of the photos; or of each attacker\'s images, given several times')
    parser.add_argument('--allow-missing', action='store_true',
                        help='count the photos that every attacker has, where some lack others')
    parser.add_argument('--classes', type=positive_int, metavar='N', help='labels are below N, or refused')
    parser.add_argument('--results', metavar='F.json', help='where the figures go, as JSON')
    parser.add_argument('--load', metavar='CKPT', help='what classifies the images of folders')
    parser.add_argument('--keep', metavar='DIR', help='where the predictions for folders go, ATTACKER.txt')
    parser.add_argument('--preprocess', choices=list(PREPARATIONS), default='resize', help='as of main.py (resize)')
    add_network_flags(parser)
    options = parser.parse_intermixed_args(arguments)
    if '' in options.inputs + options.labels + [options.results, options.keep]:
        raise InputError('the name of a file is empty')
    folders = [path for path in options.inputs if os.path.isdir(path)]
    if folders and not options.load:
        raise InputError('%s is a folder: give the network that classifies its images with --load, --arch and -d'
                         % folders[0])
    if options.load is not None and not folders:
        raise InputError('--load classifies the images of folders, and none is given')
    if options.keep and not folders:
        raise InputError('--keep is for the predictions of folders, and none is given')
    real = [os.path.realpath(path) for path in options.inputs]
    twice = [path for i, path in enumerate(options.inputs) if real[i] in real[:i]]
    if twice:
        raise InputError('%s is given twice' % twice[0])
    if options.results:
        check_apart([('--results', options.results)], what_is_read(options))
        check_writable(options.results)
    return options


def what_is_read(options: argparse.Namespace) -> List[Named]:
    """List the files that are read, but for folders' images, for check_apart."""
    return [(path, path) for path in options.inputs] + [('--labels', path) for path in options.labels] + \
        files_of_checkpoint('--load', options.load)


def collect(options: argparse.Namespace) -> Tuple[List[Attacker], List[Sequence[int]], Originals, int]:
    """Read predictions and score folders: attackers, each one's labels, the originals, and how many images could not be
    scored. What can be told before a network is loaded is told then. Raises InputError as the flags say."""
    rows = read_manifests(options.labels)
    ignored = [path for path in options.inputs + options.labels + [options.results or ''] if not os.path.isdir(path)]
    given = [None if os.path.isdir(path) else read_predictions(path) for path in options.inputs]
    attackers = [Attacker(name, of_one[0] if of_one else images_of(path, ignored))
                 for name, path, of_one in zip(names_for(options.inputs), options.inputs, given)]

    def originals_of() -> Originals:
        originals = find_originals(attackers, rows)
        if not options.allow_missing:
            check_complete(attackers, originals)
        return originals

    originals = originals_of()
    predictions: List[Sequence[int]] = [of_one[1] if of_one else () for of_one in given]
    folders = [i for i, of_one in enumerate(given) if not of_one]
    if not folders:
        return attackers, predictions, originals, 0
    kept = {i: os.path.join(options.keep, attackers[i].name.replace('/', '_') + '.txt')
            for i in folders if options.keep}
    check_kept(options, list(kept.values()))
    check_network(options, options.load)
    if not options.allow_missing:
        check_readable([attackers[i] for i in folders], [originals.versions[i] for i in folders],
                       PREPARATIONS[options.preprocess]())
    classifier = load_network(options, options.load)
    classes = classifier.network.num_classes
    options.classes = min(classes, options.classes or classes)
    check_labels([], [], list(originals.labels.values()), options.classes)
    for mistake in mistaken_preprocess(options.arch, options.preprocess, classes, eval_directory=True):
        log.warning('%s', mistake)
    failed = 0
    listed = {image: row.listed for image, row in rows.items()}
    for i in folders:
        paths = attackers[i].paths
        keeping = kept_if_cut_off(kept[i], 'the predictions') if i in kept else contextlib.nullcontext()
        with keeping as out:
            read, predictions[i] = classify(classifier, paths, listed, PREPARATIONS[options.preprocess](), out)
        failed += len(paths) - len(read)
        attackers[i] = attackers[i]._replace(paths=read)
        if not read:
            raise InputError('no image of %s could be read' % attackers[i].name)
    return attackers, predictions, originals_of() if failed else originals, failed


def check_readable(attackers: Sequence[Attacker], versions: Sequence[Dict[str, int]], preparation: Preparation) -> None:
    """Raise InputError, before any is scored, where versions of photos are files that can't be decoded.

    Those of another size than the manifest says are found when they are scored.
    """
    problems = []
    for attacker, of_one in zip(attackers, versions):
        paths = [attacker.paths[position] for position in of_one.values()]
        problems += [content.problem for content in contents(paths, preparation.check) if content.problem]
    if problems:
        more = ' and %d others' % (len(problems) - NAMED) if len(problems) > NAMED else ''
        raise InputError('%s%s; --allow-missing leaves out their photos' % ('; '.join(problems[:NAMED]), more))


def check_kept(options: argparse.Namespace, paths: Sequence[str]) -> None:
    """Make the folder of --keep. Raises InputError where files of predictions can't be written to it, or would take the
    place of what is read."""
    if not options.keep:
        return
    results = [('--results', options.results)] if options.results else []
    check_apart(results + [('--keep\'s %s' % path, path) for path in paths], what_is_read(options),
                 [(path, path) for path in options.inputs if os.path.isdir(path)])
    check_folder(options.keep, 'cannot write to --keep %s: %s')
    os.makedirs(options.keep, exist_ok=True)
    for path in paths:
        check_writable(path)


def run(options: argparse.Namespace) -> int:
    """Print the table and write the file of results; return 1 where an image of a folder could not be read."""
    check_stdout()
    attackers, predictions, originals, failed = collect(options)
    check_labels(attackers, predictions, list(originals.labels.values()), options.classes)
    verdict = judge(originals, predictions)
    warn_of_labels(attackers, originals, predictions)
    for attacker, missing, unlisted in zip(attackers, verdict.missing, originals.unlisted):
        if missing or unlisted:
            log.warning('%s lacks %d of the %d photos of --labels, and has %d images that it doesn\'t list',
                        attacker.name, len(missing), len(originals.labels), len(unlisted))
    figures = record(attackers, verdict)
    try:
        say('%s\n%d photos; all or nothing: right on every attacker\'s version' % (table(figures), len(verdict.photos)))
    finally:
        if options.results:
            facts = dict(network_facts(options, options.load), preprocess=options.preprocess) if options.load else {}
            write_json(options.results, dict(figures, labels=options.labels, inputs=options.inputs, **facts))
    return 1 if failed else 0


def main() -> int:
    options = parse_options(sys.argv[1:])
    end_on_interrupt('black_box.py')
    return run(options)


if __name__ == '__main__':
    run_command('black_box.py', main)
