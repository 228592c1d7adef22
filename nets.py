"""The zoo: a name and a depth make a network. A new network is a line in one of the two tables.

    network = find_network('ResNetDenoise', 152)
    logits = network.logits(images, Mode())

TensorFlow is loaded when a network is built: the command line knows the names at once.
"""
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Tuple

from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime.compat import tf

    from kernels.mode import Mode

# name -> what its backbone is called with (Section 6); a denoising block is named by its operation, a function of
# denoising.py. Denoising after each of the four groups is the paper's default; the network of the winning entry to CAAD
# 2018 (6.2) is a ResNeXt 32x8d with denoising after every residual block
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    'ResNet': {},
    'ResNetDenoise': dict(after_group='non_local_softmax'),
    'ResNeXtDenoiseAll': dict(groups=32, width_per_group=8, after_block='non_local_dot_product'),
}

# number of layers -> bottlenecks in each of the four groups. 14 is for demonstrations and tests on a laptop.
DEPTHS: Dict[int, List[int]] = {
    14: [1, 1, 1, 1],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}

# torchvision's ResNets, by their names there -> what the backbone is called with. Their names say the depth
TORCHVISION: Dict[str, Dict[str, Any]] = {
    'resnet18': dict(num_blocks=[2, 2, 2, 2], block='basic'),
    'resnet34': dict(num_blocks=[3, 4, 6, 3], block='basic'),
    'resnet50': dict(num_blocks=[3, 4, 6, 3]),
    'resnet101': dict(num_blocks=[3, 4, 23, 3]),
    'resnet152': dict(num_blocks=[3, 8, 36, 3]),
    'wide_resnet50_2': dict(num_blocks=[3, 4, 6, 3], width_per_group=128),
    'wide_resnet101_2': dict(num_blocks=[3, 4, 23, 3], width_per_group=128),
    'resnext50_32x4d': dict(num_blocks=[3, 4, 6, 3], groups=32, width_per_group=4),
    'resnext101_32x8d': dict(num_blocks=[3, 4, 23, 3], groups=32, width_per_group=8),
    'resnext101_64x4d': dict(num_blocks=[3, 4, 23, 3], groups=64, width_per_group=4),
}


class Network(NamedTuple):
    """A member of the zoo with a number of classes. Holds no weights: those are variables of a graph."""
    arch: str
    depth: int
    num_classes: int = 1000

    def logits(self, image: 'tf.Tensor', mode: 'Mode') -> 'tf.Tensor':
        """Compute logits: (N, H, W, 3) float32 images, BGR in [-1, 1] -> (N, num_classes) float32. H, W must be
        known."""
        from runtime.compat import tf

        import denoising
        from resnet_model import backbone
        options: Dict[str, Any] = {
            name: denoising.denoising_block(getattr(denoising, value)) if isinstance(value, str) else value
            for name, value in ARCHITECTURES[self.arch].items()}
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            return backbone(image, DEPTHS[self.depth], self.num_classes, mode, **options)

    def variable_shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Return every variable that a checkpoint of this network holds, {name: shape}."""
        from runtime.compat import tf

        from kernels.mode import Mode
        with tf.Graph().as_default():
            self.logits(tf.zeros([1, 32, 32, 3]), Mode())
            return {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()}


def find_network(arch: str, depth: int, num_classes: int = 1000) -> Network:
    """Return the zoo's network of this name and depth; raise InputError where there is none."""
    if arch not in ARCHITECTURES:
        raise InputError('no architecture %r in the zoo; choose one of %s' % (arch, ', '.join(ARCHITECTURES)))
    if depth not in DEPTHS:
        raise InputError('no depth %r in the zoo; choose one of %s' % (depth, ', '.join(map(str, DEPTHS))))
    return Network(arch, depth, num_classes)
