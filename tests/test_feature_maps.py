"""Feature maps before and after denoising blocks, and the noise of an attack in them: tools.feature_maps."""
import json
import os

import cv2
import numpy as np
import pytest
from helpers import NumpyNetwork, images
from lanes import once
from photos import photographs

from runtime.errors import InputError
from tools import feature_maps
from tools.feature_figure import Subject, figure_of, picture_of, strongest_channels

SMALL = ['-d', '14', '--image-size', '32']
GROUPS = ['group%d_denoise' % g for g in range(4)]
NAMES = {'ResNetDenoise': GROUPS, 'ResNeXtDenoiseAll': ['group%d/block0/non_local' % g for g in range(4)]}


class Recording(NumpyNetwork):
    """Keeps the features before and after each denoising block."""

    def bottleneck(self, *arguments):
        self.features = super().bottleneck(*arguments)
        return self.features

    def conv_norm(self, x, name, stride=1):
        y = super().conv_norm(x, name, stride)
        if name.endswith(('_denoise/conv', 'non_local/conv')):
            self.maps.append((self.features, self.features + y))
        return y

    def maps_of(self, pixels):
        self.maps = []
        self.logits(pixels)
        return self.maps


@pytest.mark.parametrize('arch', sorted(NAMES))
def test_ratios_and_maps_against_numpy(arch, weights_of):
    from nets import find_network
    from tools.denoising_blocks import FeatureMaps
    clean = images(3, 32).astype(np.float32)
    attacked = np.clip(clean + np.random.RandomState(1).uniform(-16, 16, clean.shape), 0, 255).astype(np.float32)
    maps = FeatureMaps(find_network(arch, 14, 10), weights_of(arch), 32)
    assert maps.names == NAMES[arch] and maps.shapes[0] == (8, 8, 256) and maps.shapes[3] == (1, 1, 2048)
    ratios, shown = feature_maps.measure(maps, clean, attacked, NAMES[arch][1:2], 3)
    maps.close()
    network = Recording(arch, 14, weights_of(arch))
    expected = list(zip(network.maps_of(clean), network.maps_of(attacked)))
    for ratio, name, (of_clean, of_attacked) in zip(ratios, NAMES[arch], expected):
        assert ratio.block == name
        for value, a, b in zip(ratio[1:], of_clean, of_attacked):
            assert value == pytest.approx(np.abs(b - a).mean() / np.abs(a).mean(), rel=1e-4)
    of_clean, of_attacked = expected[1]
    for i, of_image in enumerate(shown):
        strength = of_clean[0][i].mean(axis=(0, 1))
        assert [row[:2] for row in of_image] == [(NAMES[arch][1], c) for c in np.argsort(-strength)[:3]]
        for _, channel, drawn in of_image:
            wanted = [part[i, :, :, channel] for part in of_clean + of_attacked]
            np.testing.assert_allclose(drawn, wanted, rtol=1e-3, atol=1e-3)


def test_ratios_that_cannot_be_known():
    zeros, ones = np.zeros((2, 2, 2, 3), np.float32), np.ones((2, 2, 2, 3), np.float32)
    assert feature_maps.Noise().plus(zeros).ratio is None and feature_maps.Noise().plus(ones * np.nan).ratio is None
    assert feature_maps.Noise().plus(ones).ratio == 0
    line = feature_maps.table([feature_maps.Ratios('b', None, 1.5)], [(2, 2, 3)]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip('|').split('|')] == ['b', '2x2x3', 'n/a', '1.5000', 'n/a']


# --- the picture -----------------------------------------------------------------------------------------------------

def test_the_maps_of_a_channel_have_one_scale():
    rng = np.random.RandomState(0)
    rows = [('block', 5, rng.uniform(-1, 3, (4, 6, 6))), ('other', 7, rng.uniform(10, 20, (4, 2, 2)))]
    image = images(1, 32)[0]
    figure = figure_of(Subject('clean', 'attacked', image, image.astype(np.float32)), rows)
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    maps = [d for d in drawn if d.get_array().ndim == 2]
    assert len(maps) == 8 and len(drawn) == 10
    np.testing.assert_array_equal(drawn[0].get_array(), image[:, :, ::-1])
    for k, (_, _, values) in enumerate(rows):
        for got, wanted in zip(maps[4 * k:], values):
            np.testing.assert_array_equal(got.get_array(), wanted)
            assert got.get_clim() == (values.min(), values.max())


def test_features_that_are_no_numbers_are_drawn():
    image = images(1, 32)[0]
    rows = [('block $', 5, np.full((4, 6, 6), np.nan)), ('other', 7, np.zeros((4, 2, 2)))]
    picture = cv2.imdecode(np.frombuffer(picture_of(Subject('a', 'b', image, image), rows), np.uint8), 1)
    assert picture.shape[0] > 300


def test_the_strongest_channels():
    features = np.zeros((2, 2, 5))
    features[..., 1], features[0, 0, 3], features[..., 4] = -3, 20, 3
    assert strongest_channels(features, 3) == [3, 1, 4] and len(strongest_channels(features, 9)) == 5


# --- the command -----------------------------------------------------------------------------------------------------

@pytest.fixture
def two_photos(tmp_path):
    paths = [str(tmp_path / name) for name in ('one, caf\udce9.png', 'two.jpg')]
    for path, photo in zip(paths, photographs(2)):
        with open(path, 'wb') as f:
            f.write(cv2.imencode(os.path.splitext(path)[1], photo)[1].tobytes())
    return paths


@once
@pytest.mark.slow
def test_the_command(two_photos, tmp_path, weights_file, classifier, capfd):
    out = tmp_path / 'new' / 'maps'
    options = feature_maps.parse_options(
        [weights_file('ResNetDenoise'), '--arch', 'ResNetDenoise', '--image'] + two_photos + SMALL +
        ['--attack-iter', '4', '--attack-epsilon', '8', '--seed', '3', '--out', str(out), '--results',
         str(tmp_path / 'r.json'), '--block', GROUPS[2], '--channels', '1'])
    assert feature_maps.run(options) == 0
    printed = capfd.readouterr().out
    results = json.loads((tmp_path / 'r.json').read_text())
    assert sorted(os.listdir(str(out))) == ['one, caf\udce9.png', 'two.png']
    clf, clean = classifier('ResNetDenoise'), feature_maps.read_images(options)
    labels = clf.logits(clean).argmax(axis=1)
    attacked, targets = clf.pgd(clean, labels, steps=4, epsilon=8., seed=3)
    assert [(row['label'], row['prediction'], row['target'], row['attacked_prediction']) for row in results['images']] \
        == list(zip(labels, labels, targets, clf.logits(attacked).argmax(axis=1)))
    for row, photo in zip(results['images'], two_photos):
        assert row['image'] == photo and cv2.imdecode(np.fromfile(row['picture'], np.uint8), 1) is not None
    network = Recording('ResNetDenoise', 14, dict(np.load(weights_file('ResNetDenoise'))))
    lines = printed.split('|\n| ')[1:]
    assert len(lines) == 4
    for line, of_block, of_clean, of_attacked in zip(lines, results['blocks'],
                                                     network.maps_of(clean), network.maps_of(attacked)):
        expected = [np.abs(b - a).mean() / np.abs(a).mean() for a, b in zip(of_clean, of_attacked)]
        # another sign of a gradient that is nearly zero moves a pixel
        assert [of_block['before'], of_block['after']] == pytest.approx(expected, rel=0.02)
        cells = [cell.strip() for cell in line.split('|')]
        assert [cells[0]] + cells[2:4] == [of_block['block']] + ['%.4f' % of_block[k] for k in ('before', 'after')]
    assert [of_block['block'] for of_block in results['blocks']] == GROUPS


def test_labels_that_are_given(weights_file, classifier):
    clean = images(2, 32)
    options = feature_maps.parse_options(['x.npz', '--image', 'a', 'b', '--label', '3', '--attack-iter', '1'])
    labels, predictions, targets, attacked, _ = feature_maps.attack(classifier('ResNetDenoise'), clean, options)
    assert list(labels) == [3, 3] and 3 not in targets and attacked.shape == clean.shape
    assert list(predictions) == list(classifier('ResNetDenoise').logits(clean).argmax(axis=1))
    options.label = [3, 10]
    with pytest.raises(InputError, match='--label 10: the network has 10 classes'):
        feature_maps.attack(classifier('ResNetDenoise'), clean, options)


def test_an_attack_that_overflows(two_photos, weights_of, tmp_path):
    """The pixels are no numbers, and so is what would be measured."""
    from inference import load_classifier
    weights = weights_of('ResNetDenoise')
    weights['linear/W'] = weights['linear/W'] / np.abs(weights['linear/W']).max() * np.float32(3e38)
    np.savez(str(tmp_path / 'w.npz'), **weights)
    clf = load_classifier(str(tmp_path / 'w.npz'), arch='ResNetDenoise', depth=14, image_size=32, batch=2)
    options = feature_maps.parse_options(['w.npz', '--arch', 'ResNetDenoise', '--image'] + two_photos + SMALL)
    with pytest.raises(InputError, match='one, caf.*no numbers'):
        feature_maps.attack(clf, feature_maps.read_images(options), options)
    clf.close()


def test_blocks_that_are_drawn():
    names = ['b%d' % i for i in range(9)]
    assert feature_maps.chosen_blocks(names, None) == ['b0', 'b2', 'b5', 'b8']
    assert feature_maps.chosen_blocks(GROUPS, None) == GROUPS
    assert feature_maps.chosen_blocks(names, ['b7', 'b1']) == ['b1', 'b7']


@pytest.mark.parametrize('arguments, said', [
    (['--label', '1', '--label', '2', '--label', '3'], '--label is given 3 times for 2 images'),
    (['--attack-iter', '0'], 'is not a whole number from 1'), (['--attack-epsilon', '0'], 'is not a positive number'),
    (['--label', '-1'], 'is not a whole number from 0'), (['--out', ''], 'empty'),
    (['--out', 'maps.png'], 'is one picture, and there are 2 images'),
    (['--out', '.'], 'would replace ./one, caf\udce9.png'), (['--out', 'two.jpg'], 'pictures are PNG'),
    (['--out', 'other.npz'], 'cannot write to --out other.npz'),
    (['--out', 'd.PNG', '--image', 'two.jpg', '--results', 'd.PNG'], '--results and --out are the same file'),
    (['--results', 'two.jpg'], '--results and --image are the same file'),
    (['--results', 'other.npz'], '--results would replace'),
    (['--image', 'a/0.png', 'b/0.png', '1-0.jpg'], 'two images would have the picture feature-maps/1-0.png'),
    (['--results', 'no/r.json'], 'there is no folder'), (['--load', 'x'], 'unrecognized arguments'),
    (['--arch', 'ResNetDenoised'], 'no architecture'), (['-d', '15'], 'no depth 15'),
    (['--arch', 'ResNet'], 'ResNet-14 has no denoising block'),
    (['--arch', 'resnet18'], 'leave out -d 14'),
    (['--block', 'group9_denoise'], '--block group9_denoise: the network\'s denoising blocks are group0_denoise, '),
    (['--arch', 'ResNeXtDenoiseAll'], 'does not fit'),
])
def test_bad_input(two_photos, tmp_path, monkeypatch, weights_file, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'other.npz').write_text('what somebody made')
    before = sorted(os.listdir('.'))
    with pytest.raises(InputError) as info:
        feature_maps.run(feature_maps.parse_options(
            [weights_file('ResNetDenoise'), '--arch', 'ResNetDenoise', '--image'] + two_photos + SMALL + arguments))
    assert said in str(info.value) and '\n' not in str(info.value)
    assert sorted(os.listdir('.')) == before


@pytest.mark.parametrize('checkpoint, image, said', [
    ('none.npz', 'two.jpg', 'no checkpoint none.npz'), ('', 'two.jpg', 'the checkpoint\'s name is empty'),
    ('x.npz', 'two.jpg', 'x.npz'), ('', '', 'empty'), (None, 'none.png', 'none.png'), (None, 'x.npz', 'x.npz')])
def test_files_that_are_none(two_photos, tmp_path, monkeypatch, weights_file, checkpoint, image, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.npz').write_text('text')
    with pytest.raises(InputError, match=said):
        feature_maps.run(feature_maps.parse_options(
            [weights_file('ResNetDenoise') if checkpoint is None else checkpoint, '--arch', 'ResNetDenoise',
             '--image', image] + SMALL))
    assert sorted(os.listdir('.')) == sorted([os.path.basename(path) for path in two_photos] + ['x.npz'])


def test_an_image_of_the_networks_size(tmp_path, caplog):
    cv2.imwrite(str(tmp_path / 'a.png'), images(1, 32)[0])
    arguments = ['x.npz', '--arch', 'ResNetDenoise', '--image', str(tmp_path / 'a.png')] + SMALL
    feature_maps.read_images(feature_maps.parse_options(arguments))
    assert 'a.png has the network\'s size already' in caplog.text
    ready = feature_maps.read_images(feature_maps.parse_options(arguments + ['--preprocess', 'resize']))
    np.testing.assert_array_equal(ready, images(1, 32))
