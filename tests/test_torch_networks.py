"""The networks in PyTorch compute what they do here: against NumPy in float64, torchvision and the published code."""
import os

import numpy as np
import pytest
from helpers import ARCHITECTURES, NumpyNetwork, expected_shapes, images, random_weights
from lanes import once
from torch_world import needs_torch, run_worker

pytestmark = [needs_torch, once]

SIZES = 32, 45  # SAME is another padding where a size is odd
WORKER = 'torch_networks_worker.py'


def write_inputs(folder, sizes=SIZES):
    """Write photos of these sizes to inputs.npz, and a direction and cotangents to take the gradient along."""
    rng = np.random.RandomState(5)
    inputs = {}
    for size in sizes:
        inputs['images-%d' % size] = images(2, 48, size)[:, :size, :size]
        inputs['direction-%d' % size] = rng.standard_normal((2, size, size, 3))
        inputs['cotangents-%d' % size] = rng.standard_normal((2, 10))
    np.savez(os.path.join(str(folder), 'inputs.npz'), **inputs)
    return inputs


def write_weights(folder, networks):
    weights = {}
    for arch, depth in networks:
        values = weights[arch, depth] = random_weights(expected_shapes(arch, depth, 10), depth)
        for name in values:
            if depth > 50 and name.endswith('non_local/conv/bn/variance/EMA'):
                values[name] *= 100  # cubic in the features: the sum of so many blocks has no end otherwise
        np.savez(os.path.join(str(folder), '%s-%d-10.npz' % (arch, depth)), **weights[arch, depth])
    return weights


def compare_with_numpy(computed, weights, inputs, sizes=SIZES):
    """Compare logits, and gradients by what moving the images along a direction changes."""
    for (arch, depth), values in weights.items():
        net = NumpyNetwork(arch, depth, values)
        for size in sizes:
            logits, slope = computed['%s-%d-%d' % (arch, depth, size)]
            pixels = inputs['images-%d' % size].astype(np.float64)
            expected = net.logits(pixels)
            assert np.abs(logits - expected).max() < 1e-4 * expected.std(), (arch, depth, size)
            step = 1e-6 * inputs['direction-%d' % size]
            change = net.logits(pixels + step) - net.logits(pixels - step)
            assert slope == pytest.approx(np.sum(change * inputs['cotangents-%d' % size]) / 2e-6, rel=1e-3), \
                (arch, depth, size)


@pytest.fixture(scope='module')
def computed(tmp_path_factory):
    """Return (what the worker computed for small networks, their weights, the inputs)."""
    folder = tmp_path_factory.mktemp('torch')
    weights = write_weights(folder, [(arch, 14) for arch in ARCHITECTURES])
    inputs = write_inputs(folder)
    return run_worker(WORKER, folder, 'zoo', 'ways_to_compute', 'refusals', 'some_of_torchvision',
                      'shapes_of_torchvision'), weights, inputs


def test_zoo(computed):
    results, weights, inputs = computed
    compare_with_numpy(results['zoo'], weights, inputs)


def assert_same(results):
    for arch, sizes in results.items():
        for logits, gradient in sizes:
            assert logits < 1e-4 and gradient < 1e-3, arch


def test_torchvision(computed):
    assert_same(computed[0]['some_of_torchvision'])
    same_shapes = computed[0]['shapes_of_torchvision']
    assert len(same_shapes) == 10 and all(same_shapes.values()), same_shapes


def test_ways_to_compute(computed):
    for arch, errors in computed[0]['ways_to_compute'].items():
        assert 0 < errors['bfloat16'] < 0.1, arch
        for way in 'compiled', 'one', 'channels_last':
            assert errors[way] < 1e-4, (arch, way)
        assert errors['channels_last_gradient'] < 1e-3, arch


@pytest.mark.parametrize('case, said', [
    ('good', []),
    ('missing', ['changed.npz', 'ResNet with depth 14', '1 missing: conv0/W', 'fits no network']),
    ('extra', ['1 extra: conv9/W']),
    ('shape', ['linear/W is (2048, 11), not (2048, 10)']),
    ('nan', ['not a number', 'conv0/bn/beta']),
    ('variance', ['variances below 0', 'conv0/bn/variance/EMA']),
    ('other depth', ['missing: group0/block1/conv1/W', 'It fits --arch ResNet -d 14']),
    ('other architecture', ['group0_denoise/conv/W', 'It fits --arch ResNet -d 14']),
    ('torchvision', ['resnet50 and 10 classes: 182 missing: group0/block1', 'It fits --arch ResNet -d 14']),
    ('no name', ["no architecture 'ResNet50'", 'ResNetDenoise', 'resnet50']),
    ('no depth', ['no depth 34', '152']),
    ('depth of torchvision', ['leave out -d']),
    ('no file', ['no checkpoint nowhere.npz']),
    ('TensorFlow', ['model-17', '.npz'])])
def test_what_does_not_fit_is_named(computed, case, said):
    text = computed[0]['refusals'][case]
    assert bool(text) == bool(said) and '\n' not in text
    for words in said:
        assert words in text


@pytest.mark.slow
def test_deep_networks(tmp_path):
    """The published ones, and one of 50 layers."""
    weights = write_weights(tmp_path, [('ResNet', 152), ('ResNetDenoise', 152), ('ResNeXtDenoiseAll', 101),
                                       ('ResNeXtDenoiseAll', 50)])
    inputs = write_inputs(tmp_path, SIZES[:1])
    compare_with_numpy(run_worker(WORKER, tmp_path, 'zoo')['zoo'], weights, inputs, SIZES[:1])


@pytest.mark.slow
def test_more_of_torchvision_and_inductor(tmp_path):
    results = run_worker(WORKER, tmp_path, 'more_of_torchvision', 'inductor')
    assert len(results['more_of_torchvision']) == 4
    assert_same(results['more_of_torchvision'])
    assert results['inductor']['logits'] < 1e-4 and results['inductor']['gradient'] < 1e-3


@pytest.mark.slow
def test_published_code(tmp_path, reference_dir):
    """In float32 the published gradient itself is 1.4e-3 of its norm from float64's where denoising is cubic in the
    features: there the reference's own tolerance holds."""
    results = run_worker(WORKER, tmp_path, 'published')['published']
    print(results)
    for name, (logits, gradient) in results.items():
        assert logits < 1e-4 and gradient < (5e-3 if name.startswith('ResNeXt') else 1e-3), name
