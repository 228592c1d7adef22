"""Networks of PyTorch in TensorFlow: the same logits and gradients as PyTorch's own, of the same files."""
import os
import tarfile

from runtime.compat import TF2

import numpy as np
import pytest
from torch_world import needs_torch, run_torch, run_worker

from inference import load_classifier
from third_party.imagenet import find_images
from third_party.images import decode, validation_image

LITE0 = 'examples.efficientnet_lite0:network'
SIZES = {'resnet18': 64, 'resnet50': 95, 'wide_resnet50_2': 64, 'resnext50_32x4d': 64}  # of images
PHOTOS = 25  # of the 202


@pytest.fixture(scope='module')
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('networks')
    assert run_worker('in_tensorflow_worker.py', folder, 'networks')['networks'] == SIZES
    return folder


@needs_torch
@pytest.mark.parametrize('arch, data_format', [(arch, 'NHWC') for arch in sorted(SIZES)] + [
    ('resnet18', 'NCHW'), pytest.param('resnext50_32x4d', 'NCHW', marks=[
        pytest.mark.slow, pytest.mark.skipif(not TF2, reason='TensorFlow 1 compiles it for a quarter of an hour')])])
def test_torchvisions_networks(computed, arch, data_format):
    expected = np.load(str(computed / (arch + '-computed.npz')))
    clf = load_classifier(str(computed / (arch + '.npz')), arch, image_size=SIZES[arch], data_format=data_format)
    logits, gradients = clf.logits(expected['images']), clf.loss_gradient(expected['images'], expected['labels'])
    clf.close()
    assert np.abs(logits - expected['logits']).max() < 1e-4 * expected['logits'].std()
    assert np.linalg.norm(gradients - expected['gradients']) < 1e-3 * np.linalg.norm(expected['gradients'])


@pytest.fixture(scope='module')
def lite0(tmp_path_factory):
    """Return the file of the trained network, made by the example's command."""
    path = tmp_path_factory.mktemp('lite0') / 'efficientnet-lite0.npz'
    done = run_torch('examples/efficientnet_lite0.py', '--out', path)
    assert done.returncode == 0 and LITE0 in done.stdout, done.stderr
    return str(path)


@pytest.fixture(scope='module')
def photos(reference_dir, tmp_path_factory):
    """Return the first photos, as for validation, and what PyTorch computes of them."""
    archive = os.path.join(os.path.dirname(reference_dir), 'data', 'imagenet-200-photos.tar')
    if not os.path.exists(archive):
        pytest.skip('there is no data/imagenet-200-photos.tar beside REFERENCE_DIR')
    folder = str(tmp_path_factory.mktemp('photos'))
    with tarfile.open(archive) as photos:
        photos.extractall(folder)
    paths = sorted(find_images(folder))
    expected = np.load(os.path.join(reference_dir, 'efficientnet-lite0-photos.npz'))
    assert [os.path.basename(path) for path in paths] == list(expected['name'])
    images = np.stack([validation_image(decode(path), 224) for path in paths[:PHOTOS]])
    return images, {name: expected[name][:PHOTOS] for name in expected.files}


@needs_torch
@pytest.mark.slow
def test_a_trained_network(lite0, photos):
    """The attack's path is chaotic, and of other roundings ends in other images: only that it works is compared."""
    images, expected = photos
    clf = load_classifier(lite0, LITE0)
    logits = clf.logits(images)
    assert np.abs(logits - expected['logits']).max() < 1e-4 * expected['logits'].std()
    adversarial, _ = clf.pgd(images, expected['label'], expected['target'], steps=10, epsilon=1.0, step_size=0.25,
                             start_from_noise=False)
    prediction = clf.logits(adversarial).argmax(1)
    assert (prediction == expected['target']).mean() > 0.3 > (logits.argmax(1) != expected['label']).mean()
