"""The zoo: a name, for some families a depth too, makes a network. A new network is a line in one of the tables.

    network = find_network('ResNetDenoise', 152)
    logits = network.logits(images, Mode())

TensorFlow is loaded when a network is built: the command line knows the names at once.
"""
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from runtime.errors import InputError
from runtime.own_code import check_code, files_of, load_code

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
DEFAULT_DEPTH = 50

# torchvision's networks under its names, which hold the depth; the backbone pads and standardises as they do
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

# What images are classified in; an attack may compute in float16 too
DTYPES = ('float32', 'bfloat16')
# Of the two tables' networks: the variables whose shapes depend on the number of classes
LAST_LAYER = ('linear/W', 'linear/b')
UNLIKELY_NUMBER = 1009  # of classes, channels or anything else: found in a shape, it is there as the number of classes


class Network(NamedTuple):
    """A network with a number of classes. Holds no weights: those are variables of a graph."""
    arch: str  # a name of the tables, or module:function of a network of one's own
    depth: Optional[int] = None  # of ARCHITECTURES alone
    num_classes: int = 1000
    image_size: int = 32  # of a network of one's own, where its variables depend on that

    @property
    def name(self) -> str:
        """Return what the network is called in messages and names of folders, like ResNet-50."""
        return self.arch if self.depth is None else '%s-%d' % (self.arch, self.depth)

    @property
    def flags(self) -> List[str]:
        """Return the words of main.py's command line that mean this network."""
        return ['--arch', self.arch] + ([] if self.depth is None else ['-d', str(self.depth)])

    def logits(self, image: 'tf.Tensor', mode: 'Mode') -> 'tf.Tensor':
        """Compute logits: (N, H, W, 3) float32 images, BGR in [-1, 1] -> (N, num_classes) float32. H, W must be
        known. Raises InputError where the function of a network of one's own doesn't do that."""
        from runtime.compat import tf
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            if is_own(self.arch):
                return logits_of_own(self, image, mode)
            from resnet_model import backbone
            if self.arch in TORCHVISION:
                return backbone(image, num_classes=self.num_classes, mode=mode, torchvision=True,
                                **TORCHVISION[self.arch])
            assert self.depth is not None
            import denoising
            options: Dict[str, Any] = {
                name: denoising.denoising_block(getattr(denoising, value)) if isinstance(value, str) else value
                for name, value in ARCHITECTURES[self.arch].items()}
            return backbone(image, DEPTHS[self.depth], self.num_classes, mode, **options)

    def variable_shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Return every variable that a checkpoint of this network holds, {name: shape}."""
        from runtime.compat import tf

        from kernels.mode import Mode
        with tf.Graph().as_default():
            self.logits(tf.zeros([1, self.image_size, self.image_size, 3]), Mode())
            return {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()}

    def files(self) -> List[str]:
        """List the files of a network of one's own, which need not be this project's; nothing else has any."""
        return files_of(self.arch) if is_own(self.arch) else []

    def class_axes(self) -> Dict[str, int]:
        """Return the variables whose shapes depend on the number of classes, those of the last layer: {name: the axis
        that has as many elements}."""
        if not is_own(self.arch):
            return dict(zip(LAST_LAYER, (1, 0)))
        try:
            shapes = self._replace(num_classes=UNLIKELY_NUMBER).variable_shapes()
        except InputError as e:
            if str(UNLIKELY_NUMBER) not in str(e):
                raise
            raise InputError('--arch %s doesn\'t build a network of as many classes as its function is given, '
                             'num_classes: it must follow that' % self.arch)
        return {name: shape.index(UNLIKELY_NUMBER) for name, shape in shapes.items() if UNLIKELY_NUMBER in shape}


def find_network(arch: str, depth: Optional[int] = None, num_classes: int = 1000) -> Network:
    """Return the network of this name. `depth`: of ARCHITECTURES alone, by default 50.

    Raises InputError where there is none. A network of one's own, module:function, is not imported yet.
    """
    if not isinstance(arch, str):
        raise InputError('no architecture %r: it is a name' % (arch,))
    if arch in TORCHVISION or is_own(arch):
        if is_own(arch):
            check_code('--arch', arch, 'module:function', 'examples.efficientnet_lite0:network')
        if depth is not None:
            raise InputError('%s is a network of one depth: leave out -d %s' % (arch, depth))
        return Network(arch, None, num_classes)
    if arch not in ARCHITECTURES:
        raise InputError('no architecture %r in the zoo; choose one of %s, or module:function of one\'s own'
                         % (arch, ', '.join([*ARCHITECTURES, *TORCHVISION])))
    depth = DEFAULT_DEPTH if depth is None else depth
    if depth not in DEPTHS:
        raise InputError('no depth %r in the zoo; choose one of %s' % (depth, ', '.join(map(str, DEPTHS))))
    return Network(arch, depth, num_classes)


def network_named(name: str) -> Network:
    """Return the network that is called so, as Network.name has it: ResNet-50, resnet50. Raises InputError."""
    arch, _, depth = name.rpartition('-')
    return find_network(arch, int(depth)) if arch and depth.isdecimal() else find_network(name)


def all_networks(num_classes: int) -> Iterator[Tuple[Network, int]]:
    """Yield every network of the tables, and how many residual blocks it has."""
    for arch in ARCHITECTURES:
        for depth, num_blocks in DEPTHS.items():
            yield Network(arch, depth, num_classes), sum(num_blocks)
    for arch, options in TORCHVISION.items():
        yield Network(arch, None, num_classes), sum(options['num_blocks'])


# --- networks of one's own -------------------------------------------------------------------------------------------

def is_own(arch: str) -> bool:
    """Tell whether a name means a network of one's own: module:function."""
    return ':' in arch


def logits_of_own(network: Network, image: 'tf.Tensor', mode: 'Mode') -> 'tf.Tensor':
    """Compute the logits of a network of one's own by its function of images, number of classes and mode."""
    from runtime.compat import in_control_flow, tf

    from kernels.mode import Mode, constant_during_attack
    function = load_code('--arch', network.arch)

    def build(x: tf.Tensor, how: Mode) -> tf.Tensor:
        try:
            logits = function(x, network.num_classes, how)
            shape = logits.shape.as_list()
        except InputError:
            raise
        except (Exception, SystemExit) as e:  # whatever somebody else's function does
            raise InputError('--arch %s failed to build the network: %s: %s'
                             % (network.arch, type(e).__name__, str(e).split('\n')[0]))
        if len(shape) != 2 or shape[1] != network.num_classes:
            raise InputError('--arch %s returned a tensor of shape %s, not logits, (N, %d)'
                             % (network.arch, shape, network.num_classes))
        return tf.cast(logits, tf.float32)

    if in_control_flow():  # as in an attack's loop: variables can be used there but not made
        with constant_during_attack():
            build(tf.zeros([1] + image.shape[1:].as_list()), mode)
    return build(image, mode)
