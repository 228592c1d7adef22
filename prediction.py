"""Black-box scoring: classify every image of a folder, in whatever shape it comes."""
import logging
import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from runtime.errors import InputError
from runtime.files import WholeFile
from inference import Classifier
from outcomes import OUTCOME, Figures, count
from saved_images import MANIFEST, Listed, read_manifest
from third_party.batches import map_ahead
from third_party.imagenet import find_images
from third_party.images import decode, validation_image


log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """How many files were not scored, and what a manifest says about the others: {its strength: Figures}."""
    num_failed: int
    figures: Dict[Tuple[float, ...], Figures]


def read_image(path: str, image_size: int, listed: Dict[str, Listed]) -> Tuple[str, Optional[np.ndarray], str]:
    """(path, what the network sees of it or None, what is wrong with it).

    A listed image was made for a network, and is what it sees already; resizing it would undo what an attack did.
    """
    try:
        if '\n' in path or '\r' in path:
            raise InputError('%r has a line break in its name: rename it' % path)
        image = decode(path)
        if os.path.realpath(path) not in listed:
            return path, validation_image(image, image_size), ''
        if image.shape[:2] != (image_size, image_size):
            raise InputError('%s has %dx%d pixels, and the manifest is for images that are ready for a network of %dx%d'
                             % ((path,) + image.shape[1::-1] + (image_size, image_size)))
        return path, image, ''
    except InputError as e:
        return path, None, str(e)


def find_manifest(directory: str, given: Optional[str]) -> Dict[str, Listed]:
    """The manifest that is given, or else the folder's own; empty without. Somebody else's manifest.csv is none."""
    own = os.path.join(directory, MANIFEST)
    if given:
        return read_manifest(given)
    try:
        return read_manifest(own)
    except InputError:
        return {}


def write_predictions(classifier: Classifier, directory: str, prediction_file: str,
                      listed: Optional[Dict[str, Listed]] = None, ignored: Sequence[str] = ()) -> Scores:
    """Classify the images below `directory`; write a line `path,label` for each, in the order of `find_images`.

    A file that is not a readable image is named on stderr and gets no line. The prediction file appears when it is
    complete. `listed`: what a manifest says of the images. `ignored`: paths of files that are no images.
    Raises InputError where there is no image at all or the file can't be written.
    """
    # predictions of an earlier run, and a manifest, may lie in the folder
    others = {os.path.realpath(p) for p in (prediction_file, os.path.join(directory, MANIFEST), *ignored)}
    paths = [p for p in find_images(directory) if os.path.realpath(p) not in others]
    listed = listed or {}
    classes = classifier.network.num_classes
    if any(row.label not in range(classes) for row in listed.values()):
        raise InputError('the manifest has labels that the network, of %d classes, does not have' % classes)
    if listed and not any(os.path.realpath(path) in listed for path in paths):
        raise InputError('the manifest lists %d images, and none of those in %s: its files are named relative to itself'
                         % (len(listed), directory))
    outcomes: Dict[Tuple[float, ...], Figures] = {}
    failed = 0
    with WholeFile(prediction_file) as out, tqdm(total=len(paths), desc='scoring', unit='img', mininterval=1.0) as bar:
        images = map_ahead(lambda p: read_image(p, classifier.image_size, listed), paths,
                           threads=min(16, os.cpu_count() or 1), ahead=2 * classifier.batch)
        for chunk in in_chunks(images, classifier.batch):
            for _, image, problem in chunk:
                if image is None:
                    failed += 1
                    log.warning('%s', problem, extra={'word': 'not scored'})
            readable = [(path, image) for path, image, _ in chunk if image is not None]
            if readable:
                logits = classifier.logits(np.stack([image for _, image in readable]))
                for (path, _), of_image in zip(readable, logits):
                    out.write('%s,%d\n' % (path, of_image.argmax()))
                    row = listed.get(os.path.realpath(path))
                    if row:
                        before = outcomes.get(row.strength, Figures())
                        outcomes[row.strength] = before.plus(count(*as_outcome(row, of_image)))
            bar.update(len(chunk))
    return Scores(failed, outcomes)


def as_outcome(row: Listed, logits: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The label and the OUTCOME, (1,) each, of an image with these logits, (classes,)."""
    outcome = np.zeros(1, OUTCOME)
    outcome['target'] = row.target
    finite = np.isfinite(logits).all()
    outcome['prediction'] = logits.argmax() if finite else -1
    outcome['top5_correct'] = finite and np.sum(logits > logits[row.label]) < 5  # as in_top_k counts
    return np.array([row.label]), outcome


def in_chunks(items: Iterator, size: int) -> Iterator[List]:
    chunk: List = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
