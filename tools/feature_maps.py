"""Show what denoising blocks do to the noise that an attack makes in feature maps.

    python -m tools.feature_maps CKPT --arch A -d N --image F... [--attack-iter K] [--out DIR]

Attacks each image by targeted PGD, towards a random wrong label. For every denoising block it prints the noise ratio
before and after the block, mean |attacked - clean| over mean |clean|, both of all features of all images. DIR gets a
picture for each image: channels before and after blocks, of the clean and of the attacked image, in one scale.
"""
import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tabulate import tabulate

from evaluation.outputs import check_apart, files_of_checkpoint
from evaluation.preparation import default_preprocess, mistaken_preprocess
from evaluation.results import write_json
from runtime.command_line import Parser, end_on_interrupt, run_command
from runtime.errors import InputError
from runtime.files import WholeFile, check_folder, check_writable
from runtime.flag_values import natural, positive_float, positive_int
from runtime.printing import check_stdout, say
from third_party.folders import IMAGE_ENDINGS
from third_party.preparations import PREPARATIONS
from tools.feature_figure import Subject, picture_of, strongest_channels
from tools.network_flags import add_network_flags, check_network, load_network, network_facts, network_of

if TYPE_CHECKING:
    from inference import Classifier
    from tools.denoising_blocks import FeatureMaps

log = logging.getLogger(__name__)

SHOWN = 4  # blocks of a network that has many, spread over all


class Noise(NamedTuple):
    """Sums over feature maps: |attacked - clean|, and |clean|."""
    difference: float = 0.0
    clean: float = 0.0

    def plus(self, maps: np.ndarray) -> 'Noise':
        """Add those of (2, height, width, channels) maps: the clean image's and the attacked one's."""
        clean, attacked = maps.astype(np.float64)
        return Noise(self.difference + float(np.abs(attacked - clean).sum()), self.clean + float(np.abs(clean).sum()))

    @property
    def ratio(self) -> Optional[float]:
        """Return the noise ratio; None where it can't be known, of features that are all 0 or no numbers."""
        ratio = self.difference / self.clean if self.clean > 0 else np.nan
        return ratio if np.isfinite(ratio) else None


class Ratios(NamedTuple):
    """The noise ratios of a block."""
    block: str
    before: Optional[float]
    after: Optional[float]


def measure(maps: 'FeatureMaps', clean: np.ndarray, attacked: np.ndarray, kept: Sequence[str] = (),
            channels: int = 1) -> Tuple[List[Ratios], List[List[Tuple[str, int, np.ndarray]]]]:
    """Measure each block's noise ratios over images.

    Args:
        clean, attacked: (N, S, S, 3) in [0, 255], the same images. kept: blocks of which each image's strongest
            `channels` are wanted as well.
    Returns:
        each block's ratios; for each image a list of (block, channel, its maps (4, height, width): clean before and
        after the block, attacked before and after).
    """
    sums = [[Noise(), Noise()] for _ in maps.names]
    shown = []
    for pair in zip(clean, attacked):
        of_image: List[Tuple[str, int, np.ndarray]] = []
        for i, (name, both) in enumerate(zip(maps.names, maps.compute(np.stack(pair)))):
            sums[i] = [noise.plus(part) for noise, part in zip(sums[i], both)]
            if name in kept:
                before, after = both
                of_image += [(name, channel, np.stack([part[..., channel] for k in (0, 1) for part in
                                                       (before[k], after[k])]))
                             for channel in strongest_channels(before[0], channels)]
        shown.append(of_image)
    return [Ratios(name, *[noise.ratio for noise in both]) for name, both in zip(maps.names, sums)], shown


def chosen_blocks(names: Sequence[str], wanted: Optional[Sequence[str]]) -> List[str]:
    """Return the blocks to be drawn: those that are `wanted`, else at most SHOWN. Raises InputError for another
    name."""
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise InputError('--block %s: the network\'s denoising blocks are %s' % (unknown[0], ', '.join(names)))
    spread = sorted({int(i) for i in np.linspace(0, len(names) - 1, SHOWN)})
    return [name for name in names if name in wanted] if wanted else [names[i] for i in spread]


def table(ratios: Sequence[Ratios], shapes: Sequence[Tuple[int, ...]]) -> str:
    """Lay out noise ratios as a table in Markdown."""
    def text(value: Optional[float]) -> str:
        return 'n/a' if value is None else '%.4f' % value
    rows = [[r.block, '%dx%dx%d' % shape, text(r.before), text(r.after),
             text(r.after / r.before if r.before and r.after is not None else None)]
            for r, shape in zip(ratios, shapes)]
    return tabulate(rows, ['denoising block', 'map', 'noise before', 'noise after', 'after / before'],
                    tablefmt='github', disable_numparse=True, colalign=['left'] + ['right'] * 4)


# --- the command -----------------------------------------------------------------------------------------------------

def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line. Raises InputError for flags that are wrong or don't go together."""
    parser = Parser(prog='feature_maps.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='CKPT')
    parser.add_argument('--image', nargs='+', required=True, metavar='F', help='photos')
    parser.add_argument('--label', type=natural, action='append', metavar='N',
                        help='of the photos: one for all, or given for each; by default what the network says')
    parser.add_argument('--attack-iter', type=positive_int, default=10, metavar='K', help='steps (10)')
    parser.add_argument('--attack-epsilon', type=positive_float, default=16.0, metavar='E', help='in pixels (16)')
    parser.add_argument('--attack-step-size', type=positive_float, default=1.0,
                        help='in pixels; epsilon / K where that is more (1)')
    parser.add_argument('--seed', type=natural, default=0, help='of targets and noise (0)')
    parser.add_argument('--preprocess', choices=list(PREPARATIONS), help='as of main.py --eval')
    parser.add_argument('--block', action='append', metavar='NAME',
                        help='to be drawn, as the table names it; may be given several times (%d of all)' % SHOWN)
    parser.add_argument('--channels', type=positive_int, default=2, metavar='N',
                        help='of a block: those that the clean image has the largest features in (2)')
    parser.add_argument('--out', default='feature-maps', metavar='DIR',
                        help='where the pictures go; a name.png for the picture of one image (feature-maps)')
    parser.add_argument('--results', metavar='F.json', help='where the noise ratios go, as JSON')
    add_network_flags(parser)
    options = parser.parse_args(arguments)
    if '' in options.image + [options.out, options.results]:
        raise InputError('the name of a file is empty')
    options.label = options.label or []
    if len(options.label) not in (0, 1, len(options.image)):
        raise InputError('--label is given %d times for %d images: give it once, or for each'
                         % (len(options.label), len(options.image)))
    options.preprocess = options.preprocess or default_preprocess(options.arch, False)
    return options


def picture_paths(images: Sequence[str], out: str) -> List[str]:
    """Return where each image's picture goes; makes no folder yet. Raises InputError where it can't go there."""
    if out.lower().endswith('.png') and not os.path.isdir(out):
        if len(images) > 1:
            raise InputError('--out %s is one picture, and there are %d images: give a folder' % (out, len(images)))
        paths = [out]
    elif os.path.splitext(out)[1].lower() in IMAGE_ENDINGS + ('.svg', '.pdf') and not os.path.isdir(out):
        raise InputError('--out %s: pictures are PNG; give a name.png, or a folder' % out)
    else:
        stems = [os.path.splitext(os.path.basename(image))[0] for image in images]
        paths = [os.path.join(out, '%s.png' % (stem if stems.count(stem) == 1 else '%d-%s' % (i, stem)))
                 for i, stem in enumerate(stems)]
        check_folder(out, 'cannot write to --out %s: %s')
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise InputError('two images would have the picture %s: rename one' % twice[0])
    photos = {os.path.dirname(os.path.realpath(image)) for image in images}
    among = [path for path in paths if os.path.dirname(os.path.realpath(path)) in photos and os.path.exists(path)]
    if among:  # it may be a photo
        raise InputError('--out would replace %s, which lies among the images: give another place, or '
                         'remove it' % among[0])
    for path in paths:
        if os.path.isdir(out) or paths == [out]:
            check_writable(path)
    return paths


def read_images(options: argparse.Namespace) -> np.ndarray:
    """Return the images as the network sees them: (N, S, S, 3) uint8 BGR. Raises InputError for one that can't be
    read."""
    preparation = PREPARATIONS[options.preprocess]()
    images = []
    for path in options.image:
        image = preparation.decode(path)
        cut = preparation.cut(image, options.image_size)
        if image.shape == cut.shape and not np.array_equal(image, cut):
            log.warning('%s has the network\'s size already, and is enlarged and cut all the same; --preprocess resize '
                        'leaves it as it is', path)
        images.append(cut)
    return np.stack(images)


def attack(classifier: 'Classifier', images: np.ndarray, options: argparse.Namespace) -> Tuple[np.ndarray, ...]:
    """Return (N,) labels, predictions and targets of images, the attacked images, and what these are classified as.

    Raises InputError where the network can't be attacked so.
    """
    classes = classifier.network.num_classes
    if options.label and max(options.label) >= classes:
        raise InputError('--label %d: the network has %d classes, from 0' % (max(options.label), classes))
    if classes < 2:
        raise InputError('a network of one class has no wrong label to be attacked towards')
    zeros = np.zeros(len(images), np.int32)
    predictions = classifier.classify(images, zeros)[0]
    if (predictions < 0).any():
        raise InputError('%s: the network\'s logits are no numbers' % options.image[int(np.argmin(predictions))])
    labels = np.array(options.label * len(images) if len(options.label) == 1 else options.label or predictions)
    attacked, targets = classifier.pgd(images, labels.astype(np.int32), steps=options.attack_iter,
                                       epsilon=options.attack_epsilon, step_size=options.attack_step_size,
                                       seed=options.seed)
    if not np.isfinite(attacked).all():
        raise InputError('%s: the attack made pixels that are no numbers: the network\'s logits or their gradient '
                         'overflow' % options.image[int(np.argmin(np.isfinite(attacked).all(axis=(1, 2, 3))))])
    return labels, predictions, targets, attacked, classifier.classify(attacked, zeros)[0]


def run(options: argparse.Namespace) -> int:
    """Measure, draw and print."""
    check_stdout()
    paths = picture_paths(options.image, options.out)
    if options.results:
        check_apart([('--results', options.results)],
                     [('--image', path) for path in options.image] + [('--out', path) for path in paths]
                     + files_of_checkpoint('the checkpoint', options.checkpoint))
        check_writable(options.results)
    check_network(options, options.checkpoint)
    images = read_images(options)
    import checkpoint
    import fitting
    from tools.denoising_blocks import FeatureMaps, names_of_blocks
    chosen = chosen_blocks(names_of_blocks(network_of(options), options.image_size), options.block)
    classifier = load_network(options, options.checkpoint)
    network = classifier.network
    weights = checkpoint.read_checkpoint(options.checkpoint, options.weights)
    weights = fitting.fit_checkpoint(weights, network, options.checkpoint)
    maps = FeatureMaps(network, weights, options.image_size)
    for mistake in mistaken_preprocess(options.arch, options.preprocess, network.num_classes):
        log.warning('%s', mistake)
    labels, predictions, targets, attacked, after = attack(classifier, images, options)
    classifier.close()
    ratios, shown = measure(maps, images, attacked, chosen, options.channels)
    maps.close()
    of_images = [dict(image=image, label=int(labels[i]), prediction=int(predictions[i]), target=int(targets[i]),
                      attacked_prediction=int(after[i]), picture=path)
                 for i, (image, path) in enumerate(zip(options.image, paths))]
    try:
        say('\n'.join('%(picture)s: %(image)s, label %(label)d, target %(target)d; seen as %(prediction)d, attacked as '
                      '%(attacked_prediction)d' % row for row in of_images))
        say('\n%s' % table(ratios, maps.shapes))
        say('\n%d images, %d attack steps, epsilon %g; noise: mean |attacked - clean| over mean |clean|'
            % (len(images), options.attack_iter, options.attack_epsilon))
    finally:
        if options.results:
            write_json(options.results, dict(
                network_facts(options, options.checkpoint), blocks=[r._asdict() for r in ratios], images=of_images,
                attack_iter=options.attack_iter, epsilon=options.attack_epsilon, step_size=options.attack_step_size,
                seed=options.seed, preprocess=options.preprocess))
    if os.path.dirname(paths[0]):
        os.makedirs(os.path.dirname(paths[0]), exist_ok=True)
    for i, path in enumerate(paths):
        subject = Subject('seen as %d' % predictions[i], 'target %d, seen as %d' % (targets[i], after[i]),
                          images[i], attacked[i])
        with WholeFile(path, 'wb') as f:
            f.write(picture_of(subject, shown[i]))
    return 0


def main() -> int:
    options = parse_options(sys.argv[1:])
    end_on_interrupt('feature_maps.py')
    return run(options)


if __name__ == '__main__':
    run_command('feature_maps.py', main)
