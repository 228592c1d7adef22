"""Black-box scoring: classify every image of a folder, in whatever shape it comes."""
import os
import sys
from typing import Iterator, List, Optional, Tuple

import numpy as np
from tqdm import tqdm

from errors import InputError
from inference import Classifier
from third_party.batches import map_ahead
from third_party.imagenet import find_images
from third_party.images import decode, validation_image


def read_image(path: str, image_size: int) -> Tuple[str, Optional[np.ndarray], str]:
    """(path, image as for validation or None, what is wrong with it)."""
    try:
        if '\n' in path or '\r' in path:
            raise InputError('%r has a line break in its name: rename it' % path)
        return path, validation_image(decode(path), image_size), ''
    except InputError as e:
        return path, None, str(e)


def write_predictions(classifier: Classifier, directory: str, prediction_file: str) -> int:
    """Classify the images below `directory`; write a line `path,label` for each, in the order of `find_images`.

    A file that is not a readable image is named on stderr and gets no line. The prediction file appears when it is
    complete. Returns the number of files that were not scored.
    Raises InputError where there is no image at all or the file can't be written.
    """
    # predictions of an earlier run may lie in the folder
    paths = [p for p in find_images(directory) if os.path.realpath(p) != os.path.realpath(prediction_file)]
    prediction_file = os.path.realpath(prediction_file)  # a link stays one
    partial = prediction_file + '.part'
    failed = 0
    try:
        with open(partial, 'w', encoding='utf-8', errors='surrogateescape') as out, \
                tqdm(total=len(paths), desc='scoring', unit='img', mininterval=1.0) as bar:
            images = map_ahead(lambda p: read_image(p, classifier.image_size), paths,
                               threads=min(16, os.cpu_count() or 1), ahead=2 * classifier.batch)
            for chunk in in_chunks(images, classifier.batch):
                for _, image, problem in chunk:
                    if image is None:
                        failed += 1
                        bar.write('main.py: not scored: %s' % problem, file=sys.stderr)
                readable = [(path, image) for path, image, _ in chunk if image is not None]
                if readable:
                    labels = classifier.logits(np.stack([image for _, image in readable])).argmax(axis=1)
                    out.writelines('%s,%d\n' % (path, label) for (path, _), label in zip(readable, labels))
                bar.update(len(chunk))
        os.replace(partial, prediction_file)
    except OSError as e:
        raise InputError('cannot write %s: %s' % (prediction_file, e.strerror))
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    return failed


def in_chunks(items: Iterator, size: int) -> Iterator[List]:
    chunk: List = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
