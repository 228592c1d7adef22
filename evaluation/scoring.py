"""Black-box scoring, `main.py --eval-directory`: classify every image of a folder, in whatever shape it comes."""
import argparse
import logging
import os
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from evaluation.outcomes import OUTCOME, Figures, count
from evaluation.preparation import mistaken_preprocess
from evaluation.sanity import judge, sample
from evaluation.saved_images import MANIFEST, Listed, check_labels, check_listed
from inference import Classifier, load_classifier
from runtime.bars import tqdm
from runtime.cores import usable_cores
from runtime.errors import InputError, NoMemory, RunError
from runtime.files import kept_if_cut_off
from runtime.limits import PAUSES, retried
from runtime.printing import check_stdout, say
from third_party.batches import map_ahead
from third_party.imagenet import find_images
from third_party.images import decode
from third_party.preparations import PREPARATIONS, Preparation

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """Counts: files without a prediction in the file, and what became of the images that a manifest lists, {strength:
    Figures}. An image whose logits are no numbers is among both, in the figures as wrong."""
    num_failed: int
    figures: Dict[Tuple[Any, ...], Figures]
    failure: Optional[Exception] = None  # where the file of predictions could not be written


def run_scoring(options: argparse.Namespace, paths: Sequence[str], listed: Dict[str, Listed]) -> int:
    """Write a file of predictions, with --labels print the figures too; return 1 when some file was not scored.

    paths: the files below --eval-directory, as `find_images` lists them. listed: what a manifest says of them.
    """
    check_stdout()
    classifier = load_classifier(options.load, options.arch, options.depth, image_size=options.image_size,
                                 batch=options.batch, dtype=options.dtype, denoise=options.denoise,
                                 denoise_where=options.denoise_where, denoise_block=options.denoise_block,
                                 weights=options.weights)
    for mistake in mistaken_preprocess(options.arch, options.preprocess, classifier.network.num_classes,
                                       eval_directory=True):
        log.warning('%s', mistake)
    scores = write_predictions(classifier, options.eval_directory, options.prediction_file, listed,
                               ignored=[options.labels] if options.labels else [],
                               preparation=PREPARATIONS[options.preprocess](), doubt=bool(options.labels), paths=paths)
    failures = [scores.failure] if scores.failure else []
    how = ' in %s' % options.dtype if options.dtype != 'float32' else ''
    lines = [] if failures else ['predictions%s are in %s' % (how, options.prediction_file)]
    lines += figures_lines(scores, len(listed)) if options.labels else []
    try:
        for line in lines:
            say(line)
    except RunError as e:
        failures.append(e)
    for failure in failures[:-1]:
        log.error('%s', failure)
    if failures:
        raise failures[-1]
    if scores.num_failed:
        log.error('%d files were not scored; they are named above', scores.num_failed)
    return 1 if scores.num_failed else 0


def figures_lines(scores: Scores, num_listed: int) -> List[str]:
    """Return the lines with the figures of the images that a manifest of `num_listed` lists."""
    lines: List[str] = []
    for strength, figures in sorted(scores.figures.items()):
        lines += ['%d images%s' % (figures.num_images,
                                   (', %g attack steps, epsilon %g' + ', %s' * (len(strength) - 2)) % strength
                                   if len(strength) >= 2 else ''),
                  figures.lines()]
        if 0 < figures.targeted < figures.num_images:
            log.warning('%d of these %d images have a target in --labels: the attack success rate is of them alone',
                        figures.targeted, figures.num_images)
    if not scores.figures:
        lines += ['0 images', Figures().lines()]
    scored = sum(figures.num_images for figures in scores.figures.values())
    if scored < num_listed:
        log.warning('%d of the %d images of --labels were not scored: the figures are of the others',
                    num_listed - scored, num_listed)
    return lines


Image = Tuple[str, Optional[np.ndarray], str]  # path, what the network sees of it, what is wrong where that is None


def read_image(path: str, image_size: int, listed: Dict[str, Listed], preparation: Preparation,
               pauses: Sequence[float] = PAUSES) -> Image:
    """Read an image as the network is to see it: a listed one as it is, any other as `preparation` makes it.

    A listed image was made for a network, and is what it sees already; resizing it would undo what an attack did.
    Raises RunError where the system refuses to open files, and still does after all `pauses`. One image for which
    there is no memory even then is too large, and the others are not.
    """
    try:
        if '\n' in path or '\r' in path:
            raise InputError('%s has a line break in its name: rename it' % repr(os.fsencode(path))[1:])
        if os.path.realpath(path) not in listed:
            return path, retried(lambda: preparation.load(path, image_size), pauses), ''
        image = retried(lambda: decode(path), pauses)
        if image.shape[:2] != (image_size, image_size):
            raise InputError('%s has %dx%d pixels, and the manifest is for images that are ready for a network of %dx%d'
                             % (path, image.shape[1], image.shape[0], image_size, image_size))
        return path, image, ''
    except (InputError, NoMemory) as e:
        return path, None, str(e)


def write_predictions(classifier: Classifier, directory: str, prediction_file: str,
                      listed: Optional[Dict[str, Listed]] = None, ignored: Sequence[str] = (), *,
                      preparation: Preparation, doubt: bool = False, pauses: Sequence[float] = PAUSES,
                      paths: Optional[Sequence[str]] = None) -> Scores:
    """Classify the images below `directory`; write a line `path,label` for each, in the order of `find_images`.

    A file that is not a readable image is named in a message and gets no line. The prediction file appears when it is
    complete. `listed`: what a manifest says of the images. `ignored`: paths of files that are no images.
    `preparation`: makes of an image that is not listed what the network sees. `doubt`: warn where the labels seem not
    to belong to the images. `pauses`: see read_image. `paths`: the files below the folder, where they were listed
    already. Raises InputError where there is no image at all, and RunError, which names a file of the predictions so
    far, where it can't go on.
    """
    # predictions of an earlier run, and a manifest, may lie in the folder
    others = {os.path.realpath(p) for p in (prediction_file, os.path.join(directory, MANIFEST), *ignored)}
    paths = [p for p in (find_images(directory) if paths is None else paths) if os.path.realpath(p) not in others]
    listed = listed or {}
    check_listed(listed, paths, directory)
    check_labels(listed, classifier.network.num_classes)
    for suspicion in suspicions(paths, classifier, listed, preparation) if doubt else ():
        log.warning('%s', suspicion)
    scores = Scores(0, {})
    images = map_ahead(lambda p: read_image(p, classifier.image_size, listed, preparation, pauses), paths,
                       threads=min(16, usable_cores()), ahead=2 * classifier.batch)
    complete = False
    try:
        with kept_if_cut_off(prediction_file, 'the predictions') as out:
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


def suspicions(paths: Sequence[str], classifier: Classifier, listed: Dict[str, Listed],
               preparation: Preparation) -> List[str]:
    """Say what looks wrong of a sample of the listed images that are clean, as sanity.suspicions does of a data set."""
    rows = [(path, listed[os.path.realpath(path)]) for path in paths if os.path.realpath(path) in listed]
    rows = [(path, row) for path, row in rows if row.clean]
    if not rows:
        return []
    seen = []
    images = map_ahead(
        lambda r: (read_image(r[0], classifier.image_size, listed, preparation)[1], r[1].label), sample(rows),
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
