"""Black-box scoring, `main.py --eval-directory`: classify every image of a folder, in whatever shape it comes."""
import argparse
import logging
import os
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from evaluation.outcomes import OUTCOME, Figures, count
from evaluation.sanity import judge, sample
from evaluation.saved_images import MANIFEST, Listed, read_manifest
from inference import Classifier, load_classifier
from runtime.bars import tqdm
from runtime.cores import usable_cores
from runtime.errors import InputError, RunError
from runtime.files import WholeFile, check_writable
from runtime.launcher import check_alone
from third_party.batches import map_ahead
from third_party.imagenet import find_images
from third_party.images import PREPARATIONS, Preparation, decode, resized_image

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """How many files were not scored, and what a manifest says about the others: {its strength: Figures}."""
    num_failed: int
    figures: Dict[Tuple[float, ...], Figures]
    failure: Optional[Exception] = None  # where the file of predictions could not be written


def run_scoring(options: argparse.Namespace) -> int:
    """Write a file of predictions, with --labels print the figures too; return 1 when some file was not scored."""
    check_alone('--eval-directory')
    find_images(options.eval_directory)
    check_writable(options.prediction_file)
    listed = find_manifest(options.eval_directory, options.labels)
    classifier = load_classifier(options.load, options.arch, options.depth, image_size=options.image_size,
                                 batch=options.batch, dtype=options.dtype)
    scores = write_predictions(classifier, options.eval_directory, options.prediction_file, listed,
                               ignored=[options.labels] if options.labels else [],
                               prepare=PREPARATIONS[options.preprocess], doubt=bool(options.labels))
    if not scores.failure:
        print('predictions%s are in %s' % (' in %s' % options.dtype if options.dtype != 'float32' else '',
                                           options.prediction_file))
    if options.labels:
        print_scores(scores, len(listed))
    if scores.failure:
        raise scores.failure
    if scores.num_failed:
        log.error('%d files were not scored; they are named above', scores.num_failed)
    return 1 if scores.num_failed else 0


def print_scores(scores: Scores, num_listed: int) -> None:
    """Print the figures of the images that a manifest of `num_listed` lists."""
    for strength, figures in sorted(scores.figures.items()):
        print('%d images%s' % (figures.num_images,
                               ', %g attack steps, epsilon %g' % strength if len(strength) == 2 else ''))
        print(figures.lines())
        if 0 < figures.targeted < figures.num_images:
            log.warning('%d of these %d images have a target in --labels: the attack success rate is of them alone',
                        figures.targeted, figures.num_images)
    if not scores.figures:
        print('0 images')
        print(Figures().lines())
    scored = sum(figures.num_images for figures in scores.figures.values())
    if scored < num_listed:
        log.warning('%d of the %d images of --labels were not scored: the figures are of the others',
                    num_listed - scored, num_listed)


Image = Tuple[str, Optional[np.ndarray], str]  # path, what the network sees of it, what is wrong where that is None


def read_image(path: str, image_size: int, listed: Dict[str, Listed], prepare: Preparation) -> Image:
    """Read an image as the network is to see it: as `prepare` makes it.

    A listed image was made for a network, and is what it sees already; resizing it would undo what an attack did.
    """
    try:
        if '\n' in path or '\r' in path:
            raise InputError('%r has a line break in its name: rename it' % path)
        image = decode(path)
        if os.path.realpath(path) not in listed:
            return path, prepare(image, image_size), ''
        if image.shape[:2] != (image_size, image_size):
            raise InputError('%s has %dx%d pixels, and the manifest is for images that are ready for a network of %dx%d'
                             % (path, image.shape[1], image.shape[0], image_size, image_size))
        return path, image, ''
    except InputError as e:
        return path, None, str(e)


def find_manifest(directory: str, given: Optional[str]) -> Dict[str, Listed]:
    """Read the manifest that is given, or else the folder's own; empty without. Somebody else's manifest.csv is
    none."""
    own = os.path.join(directory, MANIFEST)
    if given:
        return read_manifest(given)
    try:
        return read_manifest(own)
    except InputError:
        return {}


def write_predictions(classifier: Classifier, directory: str, prediction_file: str,
                      listed: Optional[Dict[str, Listed]] = None, ignored: Sequence[str] = (), *,
                      prepare: Preparation = resized_image, doubt: bool = False) -> Scores:
    """Classify the images below `directory`; write a line `path,label` for each, in the order of `find_images`.

    A file that is not a readable image is named in a message and gets no line. The prediction file appears when it is
    complete. `listed`: what a manifest says of the images. `ignored`: paths of files that are no images. `prepare`:
    makes of an image that is not listed what the network sees. `doubt`: warn where the labels seem not to belong to the
    images. Raises InputError where there is no image at all.
    """
    # predictions of an earlier run, and a manifest, may lie in the folder
    others = {os.path.realpath(p) for p in (prediction_file, os.path.join(directory, MANIFEST), *ignored)}
    paths = [p for p in find_images(directory) if os.path.realpath(p) not in others]
    listed = listed or {}
    check_listed(listed, paths, classifier, directory)
    for suspicion in suspicions(paths, classifier, listed) if doubt else ():
        log.warning('%s', suspicion)
    scores = Scores(0, {})
    images = map_ahead(lambda p: read_image(p, classifier.image_size, listed, prepare), paths,
                       threads=min(16, usable_cores()), ahead=2 * classifier.batch)
    complete = False
    try:
        with WholeFile(prediction_file, keep=True) as out:
            with tqdm(total=len(paths), desc='scoring', unit='img', mininterval=1.0) as bar:
                for chunk in in_chunks(images, classifier.batch):
                    scores = plus_chunk(scores, classified(classifier, chunk, listed), listed, out)
                    bar.update(len(chunk))
            complete = True
    except (InputError, RunError) as e:
        if not complete:
            raise
        return scores._replace(failure=e)
    return scores


def plus_chunk(scores: Scores, results: Iterable[Tuple[str, Optional[int], bool, str]], listed: Dict[str, Listed],
               out: Any) -> Scores:
    """Write the lines of some images, and count them."""
    failed, figures = scores.num_failed, dict(scores.figures)
    for path, prediction, in_top5, problem in results:
        if problem:
            failed += 1
            log.warning('%s', problem, extra={'word': 'not scored'})
        else:
            out.write('%s,%s\n' % (path, prediction))
        row = listed.get(os.path.realpath(path))
        if row and prediction is not None:  # logits that are no numbers are wrong, as in an evaluation
            outcome = as_outcome(row, prediction, in_top5)
            figures[row.strength] = figures.get(row.strength, Figures()).plus(count([row.label], outcome))
    return Scores(failed, figures)


def check_listed(listed: Dict[str, Listed], paths: Sequence[str], classifier: Classifier, directory: str) -> None:
    """Raise InputError where a manifest is of other classes or other images."""
    classes = classifier.network.num_classes
    if any(row.label not in range(classes) or row.target not in range(-1, classes) for row in listed.values()):
        raise InputError('the manifest has labels or targets that the network, of %d classes, does not have' % classes)
    if listed and not any(os.path.realpath(path) in listed for path in paths):
        raise InputError('the manifest lists %d images, and none of those in %s: its files are named relative to itself'
                         % (len(listed), directory))


def suspicions(paths: Sequence[str], classifier: Classifier, listed: Dict[str, Listed]) -> List[str]:
    """Say what looks wrong of a sample of the listed images that are clean, as sanity.suspicions does of a data set."""
    rows = [(path, listed[os.path.realpath(path)]) for path in paths if os.path.realpath(path) in listed]
    rows = [(path, row) for path, row in rows if row.clean]
    if not rows:
        return []
    seen = []
    images = map_ahead(
        lambda r: (read_image(r[0], classifier.image_size, listed, resized_image)[1], r[1].label), sample(rows),
        threads=min(16, usable_cores()), ahead=2 * classifier.batch)
    readable = (item for item in images if item[0] is not None)  # the others are named when it is their turn
    for chunk in in_chunks(readable, classifier.batch):
        pixels, labels = np.stack([image for image, _ in chunk]), np.array([label for _, label in chunk])
        seen.append([labels] + [classifier.classify(p, labels)[0] for p in (pixels, pixels[..., ::-1])])
    if not seen:
        return []
    found = judge(*np.concatenate(seen, axis=1))
    unsure = not any(row.strength for _, row in rows)  # attacked images have such an error, too
    return [text + ('; attacked images have a column attack_iter in --labels' if unsure else '') for text in found]


def classified(classifier: Classifier, chunk: Sequence[Image],
               listed: Dict[str, Listed]) -> Iterator[Tuple[str, Optional[int], bool, str]]:
    """Yield (path, prediction, whether a listed image's label is in the top 5, what is wrong) of images, in their
    order. The prediction is None where there is no image, -1 where the logits are no numbers."""
    readable = [(path, image) for path, image, _ in chunk if image is not None]
    results: Iterator[Tuple[int, bool]] = iter(())
    if readable:
        rows = [listed.get(os.path.realpath(path)) for path, _ in readable]
        labels = np.array([row.label if row else 0 for row in rows])
        results = zip(*classifier.classify(np.stack([image for _, image in readable]), labels))
    for path, image, problem in chunk:
        if image is None:
            yield path, None, False, problem
            continue
        prediction, in_top5 = next(results)
        if prediction < 0:
            problem = '%s: the network\'s logits are no numbers' % path
        yield path, prediction, in_top5, problem


def as_outcome(row: Listed, prediction: int, in_top5: bool) -> np.ndarray:
    """Make the OUTCOME, (1,), of a listed image."""
    outcome = np.zeros(1, OUTCOME)
    outcome['target'], outcome['prediction'], outcome['top5_correct'] = row.target, prediction, in_top5
    return outcome


def in_chunks(items: Iterator, size: int) -> Iterator[List]:
    chunk: List = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
