"""The networks of the zoo: a name and a depth of zoo.py's tables make one.

    network = find_network('ResNetDenoise', 152)
    logits = network.logits(images, Mode())
"""
from typing import Any, Dict, NamedTuple, Tuple

from runtime.compat import tf

import denoising
from kernels.mode import Mode
from resnet_model import backbone
from zoo import ARCHITECTURES, DEPTHS, check_network


class Network(NamedTuple):
    """A member of the zoo with a number of classes. Holds no weights: those are variables of a graph."""
    arch: str
    depth: int
    num_classes: int = 1000

    def logits(self, image: tf.Tensor, mode: Mode) -> tf.Tensor:
        """Compute logits: (N, H, W, 3) float32 images, BGR in [-1, 1] -> (N, num_classes) float32. H, W must be
        known."""
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            return backbone(image, DEPTHS[self.depth], self.num_classes, mode, **backbone_options(self.arch))

    def variable_shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Return every variable that a checkpoint of this network holds, {name: shape}."""
        with tf.Graph().as_default():
            self.logits(tf.zeros([1, 32, 32, 3]), Mode())
            return {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()}


def backbone_options(arch: str) -> Dict[str, Any]:
    """Return what the backbone is called with, made of the table's line: a name becomes the block of that operation."""
    return {option: denoising.denoising_block(getattr(denoising, value)) if isinstance(value, str) else value
            for option, value in ARCHITECTURES[arch].items()}


def find_network(arch: str, depth: int, num_classes: int = 1000) -> Network:
    """Return the zoo's network of this name and depth; raise InputError where there is none."""
    check_network(arch, depth)
    return Network(arch, depth, num_classes)
