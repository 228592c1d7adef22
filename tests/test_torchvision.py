"""torchvision's networks in the zoo: beside NumPy here, beside torchvision itself in test_from_pytorch.py."""
from runtime.compat import TF2, tf

import numpy as np
import pytest
from helpers import NumpyNetwork, convolution, images, max_pool, random_weights, relu
from test_networks import NCHW, assert_close_logits, compute

import fitting
from kernels.frozen_layers import fast_stem
from kernels.mode import Mode
from nets import TORCHVISION, Network, find_network
from resnet_model import stem
from runtime.errors import InputError

MEAN, STD = np.array([0.4, 0.5, 0.45]), np.array([0.2, 0.3, 0.25])
SMALL = ['resnet18', 'resnet50', 'resnext50_32x4d']


class NumpyTorchvision(NumpyNetwork):
    """The forward pass as torchvision has it: RGB, standardised, and half a kernel of padding on each side."""

    def logits(self, pixels):
        x = (np.asarray(pixels, np.float64)[..., ::-1] / 255 - self.weights['input/mean']) / self.weights['input/std']
        x = max_pool(relu(self.conv_norm(x, 'conv0', 2)), symmetric=True)
        for group, blocks in enumerate(TORCHVISION[self.arch]['num_blocks']):
            for block in range(blocks):
                x = self.block(x, 'group%d/block%d/' % (group, block), 2 if group > 0 and block == 0 else 1)
        return x.mean(axis=(1, 2)) @ self.weights['linear/W'] + self.weights['linear/b']

    def block(self, x, name, stride):
        if name + 'conv3/W' in self.weights:
            return self.bottleneck(x, name, stride)
        y = self.conv_norm(relu(self.conv_norm(x, name + 'conv1', stride)), name + 'conv2')
        if name + 'convshortcut/W' in self.weights:
            x = self.conv_norm(x, name + 'convshortcut', stride)
        return relu(x + y)

    def convolution(self, x, w, stride):
        return convolution(x, w, stride, symmetric=True)


@pytest.fixture(scope='module')
def weights_of_torchvision():
    def make(arch):
        weights = random_weights(Network(arch, None, 10).variable_shapes(), seed=3)
        for name in weights:
            if 'conv2/bn/gamma' in name and arch == 'resnet18':
                weights[name] *= 0.4
        return dict(weights, **{'input/mean': MEAN.astype(np.float32), 'input/std': STD.astype(np.float32)})
    return make


@pytest.mark.parametrize('arch', SMALL)
def test_logits_equal_numpy(arch, weights_of_torchvision):
    """Also with odd sizes on the way: 40, 20, 10, 5, 3 and 2 pixels."""
    weights, pixels = weights_of_torchvision(arch), images(3, 40)
    assert_close_logits(compute(Network(arch, None, 10), weights, pixels, Mode()),
                        NumpyTorchvision(arch, None, weights).logits(pixels), tolerance=1e-3)


@pytest.mark.parametrize('arch', ['resnet18', pytest.param('resnext50_32x4d', marks=[
    pytest.mark.slow, pytest.mark.skipif(not TF2, reason='TensorFlow 1 takes a quarter of an hour to compile it')])])
def test_nchw_equals_numpy(arch, weights_of_torchvision):
    weights, pixels = weights_of_torchvision(arch), images(3, 40)
    assert_close_logits(compute(Network(arch, None, 10), weights, pixels, NCHW),
                        NumpyTorchvision(arch, None, weights).logits(pixels), tolerance=1e-3)


def test_training_uses_batch_statistics(weights_of_torchvision):
    weights, pixels = weights_of_torchvision('resnet18'), images(6, 32)
    expected = NumpyTorchvision('resnet18', None, weights, training=True).logits(pixels)
    computed, after = compute(Network('resnet18', None, 10), weights, pixels, Mode(training=True))
    assert_close_logits(computed, expected, tolerance=1e-3)
    assert (after['input/std'] == weights['input/std']).all()


# --- which network a checkpoint is of --------------------------------------------------------------------------------

def refusal(call, *arguments):
    with pytest.raises(InputError) as e:
        call(*arguments)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_names_and_depths():
    assert find_network('resnet50') == Network('resnet50', None, 1000)
    assert find_network('ResNet') == Network('ResNet', 50, 1000)
    assert 'leave out -d 50' in refusal(find_network, 'resnet50', 50)
    assert [Network('ResNet', 50).name, Network('resnet50').name] == ['ResNet-50', 'resnet50']
    assert Network('resnet50').flags == ['--arch', 'resnet50']


def test_the_two_kinds_of_50_layers_are_told_apart(weights_of_torchvision):
    """They have the same layers: only what they do to the image, and how they pad, differs."""
    weights = weights_of_torchvision('resnet50')
    text = refusal(fitting.fit_checkpoint, weights, Network('ResNet', 50, 10), 'some.npz')
    assert '2 extra: input/mean, input/std' in text and 'It fits --arch resnet50' in text
    zoo = {name: value for name, value in weights.items() if not name.startswith('input/')}
    text = refusal(fitting.fit_checkpoint, zoo, Network('resnet50', None, 10), 'some.npz')
    assert '2 missing: input/mean, input/std' in text and 'It fits --arch ResNet -d 50' in text


def test_a_background_class_is_recognised(weights_of_torchvision):
    weights = weights_of_torchvision('resnet18')
    assert 'background class' in refusal(fitting.fit_checkpoint, weights, Network('resnet18', None, 9), 'some.npz')
    text = refusal(fitting.fit_checkpoint, weights, Network('resnet18', None, 12), 'some.npz')
    assert text.endswith('The checkpoint has 10 classes, the data 12')


def test_no_deviation_is_refused(weights_of_torchvision):
    weights = dict(weights_of_torchvision('resnet18'), **{'input/std': np.array([0.2, 0, 0.2], np.float32)})
    assert 'input/std' in refusal(fitting.fit_checkpoint, weights, Network('resnet18', None, 10), 'some.npz')


# --- the stem --------------------------------------------------------------------------------------------------------

def gradient_of_stem(image, w, upstream):
    """Compute the stem's gradient as PyTorch defines it, by NumPy: of equal features pooling takes the first.

    image: (H, W, 3). w: (7, 7, 3, C). upstream: (pooled H, pooled W, C).
    """
    size = image.shape[0]
    half = (size - 1) // 2 + 1
    padded = np.pad(image, [(3, 3), (3, 3), (0, 0)])
    features = np.full((half + 2, half + 2, w.shape[3]), -np.inf)
    for i in range(half):
        for j in range(half):
            features[i + 1, j + 1] = np.tensordot(padded[2 * i:2 * i + 7, 2 * j:2 * j + 7], w, 3)
    gradient = np.zeros_like(padded)
    for i, j, c in np.ndindex(*upstream.shape):
        first = np.argmax(features[2 * i:2 * i + 3, 2 * j:2 * j + 3, c])
        y, x = 2 * (2 * i + first // 3 - 1), 2 * (2 * j + first % 3 - 1)
        gradient[y:y + 7, x:x + 7] += upstream[i, j, c] * w[..., c]
    return gradient[3:-3, 3:-3]


@pytest.mark.parametrize('size, plain', [(16, False), (18, False), (16, True), (13, True)])
def test_of_equal_features_pooling_takes_pytorchs(session, size, plain):
    """Overexposed photos have flat areas, where all features are equal. Whole numbers have no roundings."""
    rng = np.random.RandomState(size)
    image = rng.randint(0, 2, (size, size, 3)).astype(np.float32)
    image[:9, 3:] = 1
    w = rng.randint(-1, 2, (7, 7, 3, 64)).astype(np.float32)
    x = tf.constant(image[None])
    if plain:
        pooled = stem(x, Mode(plain=True), symmetric=True).tensor
        session.run(tf.global_variables_initializer())
        session.run([tf.assign(v, w) for v in tf.global_variables() if v.op.name == 'conv0/W'])
    else:
        pooled = fast_stem(x, tf.constant(w), tf.zeros([64]), symmetric=True)
    upstream = rng.randint(-3, 4, pooled.shape.as_list()[1:]).astype(np.float32)
    found = session.run(tf.gradients(pooled, x, tf.constant(upstream[None]))[0])[0]
    np.testing.assert_allclose(found, gradient_of_stem(image, w, upstream), rtol=1e-4, atol=1e-2)
