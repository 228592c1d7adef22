"""The flags that say which network a tool loads or trains: in one place, with the names that main.py gives them."""
import argparse
import os
from typing import TYPE_CHECKING, Any, Dict

from checkpoint import WEIGHTS, check_files, checkpoint_files
from nets import DTYPES, FORMS, OPERATIONS, PLACES, Network, is_own, network_named, network_of
from runtime.errors import InputError
from runtime.fingerprint import sha256_of_files
from runtime.flag_values import image_size, positive_int

if TYPE_CHECKING:
    from inference import Classifier


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Add what makes a network of a checkpoint, but for the checkpoint itself."""
    network = parser.add_argument_group('network')
    network.add_argument('--arch', default='ResNet', metavar='A', help='as of main.py (ResNet)')
    network.add_argument('-d', '--depth', type=int, help='layers of the zoo\'s networks (50)')
    network.add_argument('--denoise', metavar='OPERATION', help='of the denoising blocks: %s' % ', '.join(OPERATIONS))
    network.add_argument('--denoise-where', metavar='PLACE', help='of the blocks: %s' % ' or '.join(PLACES))
    network.add_argument('--denoise-block', metavar='FORM', help='of the blocks: %s' % ', '.join(FORMS))
    network.add_argument('--image-size', type=image_size, default=224, metavar='S', help='height and width (224)')
    network.add_argument('--weights', choices=WEIGHTS, default='raw',
                         help='ema: their averages, of a training with --ema')
    network.add_argument('--batch', type=positive_int, default=32, help='images that are computed at once (32)')
    network.add_argument('--dtype', choices=DTYPES, default='float32', help='what it is computed in (float32)')


def check_network(options: argparse.Namespace, path: str) -> None:
    """Raise InputError where there is no such network or no checkpoint at `path`; TensorFlow is not loaded."""
    if not path:
        raise InputError('the checkpoint\'s name is empty')
    network_of(options)
    check_files(path)


def zoo_network(name: str) -> Network:
    """Return the network of the zoo that --network names, as Network.name has it. Raises InputError."""
    if is_own(name):
        raise InputError('--network %s: it is one of the zoo\'s, such as ResNet-50' % name)
    return network_named(name)


def load_network(options: argparse.Namespace, path: str) -> 'Classifier':
    """Load the network that the flags name. Raises InputError as inference.load_classifier does."""
    from inference import load_classifier
    return load_classifier(path, options.arch, options.depth, image_size=options.image_size, batch=options.batch,
                           dtype=options.dtype, denoise=options.denoise, denoise_where=options.denoise_where,
                           denoise_block=options.denoise_block, weights=options.weights)


def network_facts(options: argparse.Namespace, path: str) -> Dict[str, Any]:
    """Return what the figures of such a network depend on, for a file of results."""
    network = network_of(options)
    return dict(arch=network.arch, depth=network.depth, denoise=network.denoise, denoise_where=network.denoise_where,
                denoise_block=network.denoise_block, image_size=options.image_size, dtype=options.dtype,
                weights=options.weights, checkpoint=os.path.basename(path),
                checkpoint_sha256=sha256_of_files(checkpoint_files(path)))
