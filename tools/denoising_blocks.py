"""The feature maps before and after a network's denoising blocks, found in its graph by the blocks' names."""
import re
from typing import Dict, List, NamedTuple, Sequence, Tuple

from runtime.compat import tf

import numpy as np

import checkpoint
from adv_model import scale_pixels
from kernels.mode import Mode
from nets import Network
from runtime.errors import InputError
from runtime.hardware import session_config

# What backbone calls them: after a group, or after a residual block
NAME = re.compile(r'(group\d+_denoise|group\d+/block\d+/non_local)/')


class Block(NamedTuple):
    """A denoising block: its name in the graph and in checkpoints, and its tensors, (N, height, width, channels)."""
    name: str
    before: tf.Tensor  # perhaps with its ReLU, the first thing that the block does, still to come
    after: tf.Tensor


def find_blocks(graph: tf.Graph) -> List[Block]:
    """Return the denoising blocks of the network in a graph, NHWC, in their order in the network."""
    inside: Dict[str, List[tf.Operation]] = {}
    for op in graph.get_operations():
        match = NAME.match(op.name)
        if match:
            inside.setdefault(match.group(1), []).append(op)
    return [block_of(name, ops) for name, ops in inside.items()]


def block_of(name: str, ops: Sequence[tf.Operation]) -> Block:
    """Return the block of some operations: the feature map that they take from others, and the one that they give."""
    names = {op.name for op in ops}
    taken = {t.name: t for op in ops for t in op.inputs if is_map(t) and t.op.name not in names}
    given = {t.name: t for op in ops for t in op.outputs
             if is_map(t) and any(user.name not in names for user in t.consumers())}
    if len(taken) != 1 or len(given) != 1:
        raise ValueError('%s is no block of one feature map: it takes %s and gives %s'
                         % (name, ', '.join(taken) or 'none', ', '.join(given) or 'none'))
    return Block(name, *taken.values(), *given.values())


def is_map(t: tf.Tensor) -> bool:
    """Tell whether a tensor is a batch's feature map, of any number of images; weights know all of their sizes."""
    return t.shape.ndims == 4 and t.shape.as_list()[0] is None and t.dtype.is_floating


def build(network: Network, image_size: int) -> Tuple[tf.Graph, tf.Tensor, List[Block]]:
    """Build a network plainly, in float32 and NHWC: its graph, the placeholder of images, (N, S, S, 3) BGR in [0, 255],
    and its denoising blocks. Raises InputError where it has none."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [None, image_size, image_size, 3])
        network.logits(scale_pixels(image), Mode(plain=True))
    blocks = find_blocks(graph)
    if not blocks:
        raise InputError('%s has no denoising block, before and after which there are feature maps: give another '
                         'network, such as one of --arch ResNetDenoise' % network.name)
    return graph, image, blocks


def names_of_blocks(network: Network, image_size: int) -> List[str]:
    """Return the names of a network's denoising blocks. Raises InputError where it has none."""
    return [block.name for block in build(network, image_size)[2]]


class FeatureMaps:
    """Computes feature maps of a trained network with denoising blocks."""

    def __init__(self, network: Network, weights: checkpoint.Weights, image_size: int):
        """Give a network its weights. Raises InputError where it has no denoising block."""
        graph, self._image, blocks = build(network, image_size)
        self.names = [block.name for block in blocks]
        # (height, width, channels) of each block
        self.shapes: List[Tuple[int, ...]] = [tuple(block.before.shape.as_list()[1:]) for block in blocks]
        self._tensors = [(block.before, block.after) for block in blocks]
        self._session = tf.Session(graph=graph, config=session_config())
        checkpoint.assign_weights(self._session, weights)
        graph.finalize()

    def compute(self, images: np.ndarray) -> List[Tuple[np.ndarray, np.ndarray]]:
        """Return each block's maps before (after their ReLU) and after it: (N, height, width, channels) float32.

        images: (N, S, S, 3) BGR in [0, 255].
        """
        values = self._session.run(self._tensors, {self._image: images})
        return [(np.maximum(before, 0), after) for before, after in values]

    def close(self) -> None:
        """Free the session."""
        self._session.close()
