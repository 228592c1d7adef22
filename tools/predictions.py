"""What `tools.black_box` judges: an attacker's predictions in a file, or a network's of the images in a folder."""
import logging
import os
import re
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

from evaluation.saved_images import MANIFEST, Listed
from runtime.errors import InputError
from runtime.files import require_file
from third_party.imagenet import find_images
from third_party.preparations import Preparation

if TYPE_CHECKING:
    from inference import Classifier

log = logging.getLogger(__name__)

NO_LABEL = -1  # of an image whose logits were no numbers: it counts as wrong
LABEL = re.compile(r'-?[0-9]{1,9}')


def read_predictions(path: str) -> Tuple[List[str], List[int]]:
    """Read lines `path,label`: the paths, in whatever bytes, and the labels.

    Raises InputError, naming the line, for anything else.
    """
    require_file(path)
    paths: List[str] = []
    labels: List[int] = []
    first: Dict[str, int] = {}
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='\n') as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                image, comma, label = line.rpartition(',')
                where = '%s, line %d' % (path, number)
                if not comma or not image or '\0' in image:
                    raise InputError('%s: it is no line `path,label` as main.py --eval-directory writes them' % where)
                if not LABEL.fullmatch(label.strip()) or int(label) < NO_LABEL:
                    raise InputError('%s: the label of %s is %r, and must be a whole number, 0 or more (%d where the '
                                     'network gave none)' % (where, image, label.strip(), NO_LABEL))
                if first.setdefault(image, number) != number:
                    raise InputError('%s: %s is in line %d, too' % (where, image, first[image]))
                paths.append(image)
                labels.append(int(label))
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    if not paths:
        raise InputError('%s has no predictions' % path)
    return paths, labels


def images_of(directory: str, ignored: Sequence[str]) -> List[str]:
    """List the images below a folder, without its manifest and the `ignored` files. Raises InputError without any."""
    others = {os.path.realpath(path) for path in (os.path.join(directory, MANIFEST), *ignored)}
    paths = [path for path in find_images(directory) if os.path.realpath(path) not in others]
    if not paths:
        raise InputError('there is no image in %s' % directory)
    return paths


def names_for(inputs: Sequence[str]) -> List[str]:
    """Name attackers by their files or folders; by the whole paths where two would have one name."""
    names = [os.path.basename(os.path.normpath(path)) for path in inputs]
    names = [name if os.path.isdir(path) else os.path.splitext(name)[0] for name, path in zip(names, inputs)]
    return names if len(set(names)) == len(names) else [os.path.normpath(path) for path in inputs]


def classify(classifier: 'Classifier', paths: Sequence[str], listed: Dict[str, Listed], preparation: Preparation,
             out: Any = None) -> Tuple[List[str], List[int]]:
    """Return the images that can be read, and their labels: NO_LABEL where logits are no numbers.

    Images are read as `main.py --eval-directory` reads them; those that can't be are named by warnings. out: gets a
    line `path,label` for each, which read_predictions reads.
    """
    from evaluation.scoring import classified, in_chunks, read_image
    from runtime.bars import tqdm
    from runtime.cores import usable_cores
    from third_party.batches import map_ahead
    images = map_ahead(lambda path: read_image(path, classifier.image_size, listed, preparation), paths,
                       threads=min(16, usable_cores()), ahead=2 * classifier.batch)
    read: List[str] = []
    labels: List[int] = []
    with tqdm(total=len(paths), desc='scoring', unit='img', mininterval=1.0) as bar:
        for chunk in in_chunks(images, classifier.batch):
            for path, prediction, _, problem in classified(classifier, chunk, listed):
                if prediction is None:
                    log.warning('%s', problem, extra={'word': 'not scored'})
                else:
                    read.append(path)
                    labels.append(prediction)
                    if out:
                        out.write('%s,%d\n' % (path, prediction))
            bar.update(len(chunk))
    return read, labels
