"""The zoo: a name, for some families a depth too, makes a network. A new network is a line in one of the tables.

    network = find_network('ResNetDenoise', 152)
    logits = network.logits(images, Mode())

TensorFlow is loaded when a network is built: the command line knows the names at once.
"""
import argparse
import functools
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from runtime.errors import InputError
from runtime.own_code import check_code, files_of

if TYPE_CHECKING:
    from runtime.compat import tf

    from kernels.mode import Mode

# name -> what its backbone is called with (Section 6), and `denoise` and `where` of its denoising blocks. Denoising
# after each of the four groups is the paper's default; the network of the winning entry to CAAD 2018 (6.2) is a ResNeXt
# 32x8d with denoising after every residual block. The placebo has no denoising, but a bottleneck more in each group.
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    'ResNet': {},
    'ResNetDenoise': dict(denoise='softmax', where='group'),
    'ResNeXtDenoiseAll': dict(groups=32, width_per_group=8, denoise='dot-product-plain', where='block'),
    'ResNetPlacebo': dict(more_blocks=1),
}

# What denoising blocks can be made of: operations, which are functions of denoising.py; places, after each group or
# each residual block; forms, of which the others leave out the block's 1x1 convolution or its sum (Section 6.1)
OPERATIONS = ('softmax', 'softmax-plain', 'dot-product', 'dot-product-plain', 'bilateral-softmax',
              'bilateral-dot-product', 'mean', 'median', 'none')
EMBEDDED = ('softmax', 'dot-product', 'bilateral-softmax', 'bilateral-dot-product')  # these have variables
PLACES = ('group', 'block')
FORMS = ('full', 'no-1x1', 'no-residual')

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
UNLIKELY_NUMBER = 1009  # no layer has so many channels: in a shape it can be the number of classes alone


class Denoising(NamedTuple):
    """What denoising blocks are."""
    operation: str  # of OPERATIONS
    where: str  # of PLACES
    form: str  # of FORMS


class Network(NamedTuple):
    """A network with a number of classes. Holds no weights: those are variables of a graph."""
    arch: str  # a name of the tables, or module:function of a network of one's own
    depth: Optional[int] = None  # of ARCHITECTURES alone
    num_classes: int = 1000
    image_size: int = 32  # of a network of one's own, where its variables depend on that
    # Of the denoising blocks; None: as the architecture has them. find_network leaves None what is that anyway
    denoise: Optional[str] = None  # of OPERATIONS
    denoise_where: Optional[str] = None  # of PLACES
    denoise_block: Optional[str] = None  # of FORMS

    @property
    def variant(self) -> str:
        """Return the end of the name, '' or like -mean: what is not as usual about the denoising blocks."""
        return ''.join('-' + word for word in (self.denoise, self.denoise_where, self.denoise_block) if word)

    @property
    def name(self) -> str:
        """Return what the network is called in messages and names of folders, like ResNet-50 or
        ResNetDenoise-50-mean."""
        return self.arch if self.depth is None else '%s-%d%s' % (self.arch, self.depth, self.variant)

    @property
    def flags(self) -> List[str]:
        """Return the words of main.py's command line that mean this network."""
        words = ['--arch', self.arch] + ([] if self.depth is None else ['-d', str(self.depth)])
        for flag, value in [('--denoise', self.denoise), ('--denoise-where', self.denoise_where),
                            ('--denoise-block', self.denoise_block)]:
            words += [flag, value] if value else []
        return words

    @property
    def denoising(self) -> Optional[Denoising]:
        """Tell what the denoising blocks are; None where there are none."""
        own = ARCHITECTURES.get(self.arch, {})
        if 'denoise' not in own:
            return None
        return Denoising(self.denoise or own['denoise'], self.denoise_where or own['where'],
                         self.denoise_block or FORMS[0])

    def with_denoising(self, operation: str, where: str, form: str) -> 'Network':
        """Return this network with other denoising blocks. Raises InputError where its architecture has none, or an
        argument is not of OPERATIONS, PLACES or FORMS."""
        return find_network(self.arch, self.depth, self.num_classes, denoise=operation, denoise_where=where,
                            denoise_block=form)._replace(image_size=self.image_size)

    @property
    def num_blocks(self) -> List[int]:
        """Return the residual blocks in each of the four groups, of a network of the tables."""
        if self.depth is None:
            return TORCHVISION[self.arch]['num_blocks']
        return [n + ARCHITECTURES[self.arch].get('more_blocks', 0) for n in DEPTHS[self.depth]]

    def logits(self, image: 'tf.Tensor', mode: 'Mode') -> 'tf.Tensor':
        """Compute logits: (N, H, W, 3) float32 images, BGR in [-1, 1] -> (N, num_classes) float32. H, W must be
        known. Raises InputError where the function of a network of one's own doesn't do that."""
        from runtime.compat import tf
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            if is_own(self.arch):
                from kernels.own_network import logits_of_own
                return logits_of_own(self, image, mode)
            from resnet_model import backbone
            if self.arch in TORCHVISION:
                return backbone(image, num_classes=self.num_classes, mode=mode, torchvision=True,
                                **TORCHVISION[self.arch])
            options = {name: value for name, value in ARCHITECTURES[self.arch].items()
                       if name in ('groups', 'width_per_group')}
            if self.denoising:
                import denoising as blocks
                block = blocks.denoising_block(blocks.OPERATIONS[self.denoising.operation], self.denoising.form)
                options['after_' + self.denoising.where] = block
            return backbone(image, self.num_blocks, self.num_classes, mode, **options)

    def variable_shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Return every variable that a checkpoint of this network holds, {name: shape}.

        To list them takes seconds, and is done once of a network of the zoo, whatever its image_size.
        """
        return dict(list_variables(self) if is_own(self.arch) else variables_of_zoo(self._replace(image_size=32)))

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
            from kernels.own_network import OtherClasses
            if not isinstance(e, OtherClasses):
                self.variable_shapes()  # says the same with the number of classes that was asked for
            raise InputError('--arch %s doesn\'t build a network of as many classes as its function is given, '
                             'num_classes: it must follow that' % self.arch)
        return {name: shape.index(UNLIKELY_NUMBER) for name, shape in shapes.items() if UNLIKELY_NUMBER in shape}


def list_variables(network: Network) -> Dict[str, Tuple[int, ...]]:
    """Build a network, and return its variables, {name: shape}."""
    from runtime.compat import seed_where_deterministic, tf

    from kernels.mode import Mode
    made: Dict[str, 'tf.Tensor'] = {}

    def stand_in(getter: Callable, name: str, shape: List[int], dtype: 'tf.DType', **options: Any) -> 'tf.Tensor':
        """Make a placeholder: most of the time of a variable goes into its initial value."""
        if name not in made:
            made[name] = tf.placeholder(dtype, shape)
        return made[name]

    own = is_own(network.arch)  # what such a network does with its variables is not known
    with tf.Graph().as_default(), tf.variable_scope('', custom_getter=None if own else stand_in):
        seed_where_deterministic(0)
        network.logits(tf.zeros([1, network.image_size, network.image_size, 3]), Mode())
        variables = {v.op.name: v for v in tf.global_variables()} if own else made
        return {name: tuple(v.shape.as_list()) for name, v in variables.items()}


variables_of_zoo = functools.lru_cache(maxsize=64)(list_variables)


def is_own(arch: str) -> bool:
    """Tell whether a name means a network of one's own: module:function."""
    return ':' in arch


def find_network(arch: str, depth: Optional[int] = None, num_classes: int = 1000, *, denoise: Optional[str] = None,
                 denoise_where: Optional[str] = None, denoise_block: Optional[str] = None) -> Network:
    """Return the network of this name. `depth`: of ARCHITECTURES alone, by default 50. The others: of OPERATIONS,
    PLACES and FORMS, for those of ARCHITECTURES that have denoising blocks; by default as these have them.

    Raises InputError where there is none. A network of one's own, module:function, is not imported yet.
    """
    if not isinstance(arch, str):
        raise InputError('no architecture %r: it is a name' % (arch,))
    check_denoising(arch, [('--denoise', denoise, OPERATIONS), ('--denoise-where', denoise_where, PLACES),
                           ('--denoise-block', denoise_block, FORMS)])
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
    own = Network(arch, depth, num_classes)
    given = own._replace(denoise=denoise, denoise_where=denoise_where, denoise_block=denoise_block)
    if own.denoising is None or given.denoising is None:
        return own
    # one network has one name, also where somebody says what it is anyway
    words = [word if word != usual else None for word, usual in zip(given.denoising, own.denoising)]
    return own._replace(denoise=words[0], denoise_where=words[1], denoise_block=words[2])


def network_of(options: argparse.Namespace) -> Network:
    """Return the network that main.py's options name. Raises InputError as find_network does."""
    return find_network(options.arch, options.depth, denoise=options.denoise, denoise_where=options.denoise_where,
                        denoise_block=options.denoise_block)


def check_denoising(arch: str, given: Sequence[Tuple[str, Optional[str], Sequence[str]]]) -> None:
    """Raise InputError where a flag has another value than one of its choices, or there are no denoising blocks."""
    for flag, value, choices in given:
        if value is None:
            continue
        if value not in choices:
            raise InputError('%s is one of %s, not %r' % (flag, ', '.join(choices), value))
        if 'denoise' not in ARCHITECTURES.get(arch, {}) and (arch in ARCHITECTURES or arch in TORCHVISION or
                                                             is_own(arch)):
            raise InputError('%s %s: %s has no denoising blocks; %s have' % (
                flag, value, arch, ' and '.join(name for name, own in ARCHITECTURES.items() if 'denoise' in own)))


def network_named(name: str) -> Network:
    """Return the network that is called so, as Network.name has it: ResNet-50, ResNetDenoise-50-mean, resnet50.
    Raises InputError."""
    match = re.match(r'(?P<arch>.+?)-(?P<depth>\d+)' + ''.join('(?:-(?P<%s>%s))?' % (group, '|'.join(words)) for
                     group, words in [('denoise', OPERATIONS), ('denoise_where', PLACES), ('denoise_block', FORMS)])
                     + '$', name)
    if match is None:
        arch, _, end = name.partition('-')
        if arch in ARCHITECTURES and re.match(r'\d+-', end):
            raise InputError('no network %r: after the depth come an operation (%s), a place (%s) and a form (%s), '
                             'where they are not as usual, in this order'
                             % (name, *map(', '.join, (OPERATIONS, PLACES, FORMS))))
        return find_network(name)
    return find_network(match.group('arch'), int(match.group('depth')), denoise=match.group('denoise'),
                        denoise_where=match.group('denoise_where'), denoise_block=match.group('denoise_block'))


def all_networks(num_classes: int) -> Iterator[Tuple[Network, int]]:
    """Yield every network of the tables, and how many residual blocks it has."""
    for arch in ARCHITECTURES:
        for depth in DEPTHS:
            network = Network(arch, depth, num_classes)
            yield network, sum(network.num_blocks)
    for arch in TORCHVISION:
        network = Network(arch, None, num_classes)
        yield network, sum(network.num_blocks)
