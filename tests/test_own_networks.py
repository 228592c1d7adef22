"""Networks of one's own, --arch module:function, and the example of one."""
import json
import os
import sys

from runtime.compat import tf

import numpy as np
import pytest
from helpers import images
from photos import write_split

import checkpoint
import fitting
from inference import load_classifier
from kernels.mode import Mode
from nets import Network, find_network
from runtime.errors import InputError
from runtime.hardware import session_config

LITE0 = 'examples.efficientnet_lite0:network'

# Plain TensorFlow, without a word about an attack's loop; what it needs of the mode is the layout alone
TINY = '''
from runtime.compat import tf
from tensorpack import models
import numpy as np

def network(image, num_classes, mode):
    w = tf.get_variable('filters', [3, 3, 3, 8], initializer=tf.random_normal_initializer(stddev=0.3))
    x = tf.nn.relu(tf.nn.conv2d(image, w, strides=[1, 2, 2, 1], padding='SAME'))
    x = tf.reduce_mean(x, [1, 2])
    return tf.matmul(x, tf.get_variable('classes', [8, num_classes])) + tf.get_variable('bias', [num_classes])

def wrong_shape(image, num_classes, mode):
    return image

def of_a_size(image, num_classes, mode):
    pixels = tf.reshape(image, [-1, 3 * int(image.shape[1]) * int(image.shape[2])])
    return tf.matmul(pixels, tf.get_variable('w', [pixels.shape[1], num_classes]))

def ten_classes(image, num_classes, mode):
    return of_a_size(image, 10, mode)

def rounded(image, num_classes, mode):
    return network(tf.round(image), num_classes, mode)

def packed(image, num_classes, mode):
    x = models.Conv2D('conv', image, 8, 3, strides=2, activation=models.BNReLU)
    return models.FullyConnected('linear', models.GlobalAvgPooling('pool', x), num_classes)

def of_pixels(image, num_classes, mode):
    return tf.layers.conv2d(image, num_classes, 3, name='c')

def leaves(image, num_classes, mode):
    raise SystemExit(0)

def broken(image, num_classes, mode):
    raise KeyError('no such layer')

def none(image, num_classes, mode):
    pass

def array(image, num_classes, mode):
    return np.zeros([3, num_classes])

number = 3
'''


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Return the name of a network whose module lies in a folder of its own, on the path."""
    folder = tmp_path_factory.mktemp('modules')
    (folder / 'tiny_networks.py').write_text(TINY)
    sys.path.append(str(folder))
    yield 'tiny_networks:network'
    sys.path.remove(str(folder))


@pytest.fixture(scope='module')
def tiny_file(tiny, tmp_path_factory):
    rng = np.random.RandomState(0)
    path = str(tmp_path_factory.mktemp('weights') / 'tiny.npz')
    np.savez(path, filters=rng.standard_normal((3, 3, 3, 8)).astype(np.float32) * 0.5, bias=np.zeros(10, np.float32),
             classes=rng.standard_normal((8, 10)).astype(np.float32))
    return path


def refusal(call, *arguments, **options):
    with pytest.raises(InputError) as e:
        call(*arguments, **options)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_logits_gradient_and_attack(tiny, tiny_file):
    """The number of classes is read off the checkpoint; the loop of an attack makes no variables."""
    clf = load_classifier(tiny_file, arch=tiny, image_size=32)
    assert clf.network.num_classes == 10
    pixels, labels = images(3, 32), np.array([0, 1, 2])
    gradient = clf.loss_gradient(pixels, labels)
    adversarial, targets = clf.pgd(pixels, labels, steps=5, epsilon=8.)
    assert np.abs(gradient).min() >= 0 < np.abs(gradient).max()
    assert (clf.logits(adversarial)[range(3), targets] > clf.logits(pixels)[range(3), targets]).all()


def test_what_does_not_fit(tiny, tiny_file, weights_file):
    network = find_network(tiny)
    weights = checkpoint.read_checkpoint(tiny_file)
    text = refusal(fitting.fit_checkpoint, weights, network._replace(num_classes=6), tiny_file)
    assert 'classes is (8, 10), not (8, 6)' in text and text.endswith('The checkpoint has 10 classes, the data 6')
    del weights['filters']
    text = refusal(fitting.fit_checkpoint, weights, network._replace(num_classes=10), 'x.npz')
    assert '1 missing: filters' in text
    text = refusal(load_classifier, weights_file('ResNet', 14), arch=tiny, image_size=32)
    assert 'would tell the number of classes' in text
    assert set(fitting.without_head(checkpoint.read_checkpoint(tiny_file), tiny_file, network)) == {'filters'}


@pytest.mark.parametrize('name, words', [
    ('tiny_networks:wrong_shape', ['32, 3], not logits, (N, 1000)']),
    ('tiny_networks:broken', ['no such layer', 'tiny_networks.py, line ']),
    ('tiny_networks:leaves', ['failed to build the network: SystemExit']),
    ('tiny_networks:none', ['returned NoneType, not a tensor of logits, (N, 1000)']),
    ('tiny_networks:array', ['returned ndarray, not a tensor']), ('tiny_networks:number', ['is no function', 'int']),
    ('tiny_networks:nothing', ['there is no nothing']), ('no_such_module:network', ['no module no_such_module']),
    ('tiny_networks:', ['module:function is expected'])])
def test_functions_that_are_no_networks(tiny, tiny_file, name, words):
    def build():
        with tf.Graph().as_default():
            find_network(name).logits(tf.placeholder(tf.float32, [None, 32, 32, 3]), Mode())
    text = refusal(build)
    assert name in text and all(word in text for word in words), text


def test_a_network_of_one_image_size(tiny, tmp_path):
    """Its variables depend on it."""
    path = str(tmp_path / 'w.npz')
    np.savez(path, w=np.random.RandomState(0).standard_normal((48 * 48 * 3, 5)).astype(np.float32))
    name = 'tiny_networks:of_a_size'
    clf = load_classifier(path, arch=name, image_size=48)
    assert clf.logits(images(2, 48)).shape == (2, 5)
    clf.close()
    assert 'w is (6912, 5), not (3072, 5)' in refusal(load_classifier, path, arch=name, image_size=32)


def test_functions_that_are_no_use(tiny, tiny_file, tmp_path):
    assert 'num_classes: it must follow that' in refusal(load_classifier, tiny_file, arch='tiny_networks:ten_classes')
    assert '1000], not logits' in refusal(load_classifier, tiny_file, arch='tiny_networks:of_pixels')
    text = refusal(load_classifier, tiny_file, arch='tiny_networks:rounded', image_size=32)
    assert 'no gradient reaches the image' in text


def test_layers_of_tensorpack(tiny, root, python, tmp_path):
    """They ask a tower whether they train: what such a network learned can be resumed, evaluated and attacked."""
    def train(epochs):
        return python(os.path.join(root, 'main.py'), '--arch', 'tiny_networks:packed', '--fake', '--image-size', 32,
                      '--batch', 4, '--attack-iter', 1, '--steps-per-epoch', 2, '--max-epoch', epochs, '--logdir', 'x',
                      '--resume', env={'PYTHONPATH': sys.path[-1]}, cwd=tmp_path, timeout=120)
    for epochs in 1, 2:
        done = train(epochs)
        assert done.returncode == 0, done.stderr
        assert 'To repeat it' not in done.stdout and 'Using moving_mean' not in done.stdout
    path, = tmp_path.glob('train_log/*/model-4.index')
    weights = checkpoint.read_checkpoint(str(path))
    assert np.abs(weights['conv/bn/mean/EMA']).max() > 0
    clf = load_classifier(str(path), arch='tiny_networks:packed', image_size=32)
    pixels = images(3, 32)
    np.testing.assert_allclose(clf.logits(pixels)[:1], clf.logits(pixels[:1]), rtol=1e-5, atol=1e-5)
    assert np.isfinite(clf.pgd(pixels, np.array([0, 1, 2]), steps=2, epsilon=8.)[0]).all()
    clf.close()


def test_all_files_of_a_network_are_in_the_facts(tmp_path, monkeypatch):
    """Its module's, and those of what it imports from the same place; a folder need not be a package."""
    sources = {'whole/__init__.py': 'from .model import network', 'whole/model.py': 'import numpy, whole.parts.layers\n'
               'from . import other\ndef network(): pass', 'whole/parts/layers.py': '', 'whole/other.py': '',
               'whole/unused.py': '', 'alone.py': 'import beside\ndef network(): pass', 'beside.py': ''}
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def files(name):
        return {os.path.relpath(path, str(tmp_path)) for path in find_network(name).files()}
    assert files('whole:network') == {'whole/__init__.py', 'whole/model.py', 'whole/parts/layers.py', 'whole/other.py'}
    assert files('alone:network') == {'alone.py', 'beside.py'}
    (tmp_path / 'whole' / '__init__.py').unlink()
    assert files('whole.model:network') == {'whole/model.py', 'whole/parts/layers.py', 'whole/other.py'}


def test_a_depth_is_refused():
    assert 'leave out -d 50' in refusal(find_network, LITE0, 50)


def test_evaluation(tiny, tiny_file, python, tmp_path):
    """The results name the network."""
    write_split(tmp_path / 'data' / 'val', 12)
    run = python('main.py', '--eval', '--arch', tiny, '--load', tiny_file, '--data', tmp_path / 'data',
                 '--image-size', 32, '--attack-iter', '0,2', '--results', tmp_path / 'r.json',
                 env={'PYTHONPATH': sys.path[-1]})
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / 'r.json').read_text())
    assert results['arch'] == tiny and results['depth'] is None and results['classes'] == 10


# --- the example -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def lite0_weights():
    """Return random weights of the example, for 10 classes."""
    rng = np.random.RandomState(1)
    weights = {}
    for name, shape in Network(LITE0, None, 10).variable_shapes().items():
        if name.endswith('/W'):
            weights[name] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            weights[name] = rng.uniform(0.5, 1.5, shape) if name.endswith(('gamma', 'variance/EMA')) else \
                rng.uniform(-0.2, 0.2, shape)
    return {name: value.astype(np.float32) for name, value in weights.items()}


@pytest.mark.parametrize('mode', [Mode(plain=True), Mode(dtype=tf.float16)])
def test_modes_of_the_example(lite0_weights, mode):
    """BatchNorm folded into the weights or not, and few digits."""
    logits = []
    for how in Mode(), mode:
        with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
            x = tf.constant(images(2, 64) / np.float32(127.5) - 1)
            y = Network(LITE0, None, 10).logits(x, how)
            checkpoint.assign_weights(session, lite0_weights)
            logits.append(session.run(y))
    tolerance = 1e-4 if mode.dtype == tf.float32 else 0.1  # TensorFlow 1 adds in float16 too, over up to 1152 products
    assert np.abs(logits[0] - logits[1]).max() < tolerance * logits[0].std()


def test_the_example_is_trained(lite0_weights):
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        y = Network(LITE0, None, 10).logits(tf.constant(images(4, 64) / np.float32(127.5) - 1), Mode(training=True))
        gradients = tf.gradients(tf.reduce_sum(y[:, 0]), tf.trainable_variables())
        checkpoint.assign_weights(session, lite0_weights)
        assert all(np.isfinite(g).all() for g in session.run(gradients))
        assert len(tf.get_collection(tf.GraphKeys.UPDATE_OPS)) > 90
