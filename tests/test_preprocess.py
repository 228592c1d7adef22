"""How images become what a network sees: whole, or as for validation; and that a job says which."""
import csv
import itertools
import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from evaluating import SMALL, alone, evaluate, ranks, read_table
from lanes import once
from photos import photographs, write_split

from evaluation.preparation import default_preprocess, mistaken_preprocess
from main import parse_options
from nets import TORCHVISION
from third_party.images import decode, resized_image, validation_image
from third_party.pillow import torchvision_image
from third_party.preparations import PREPARATIONS


def noise(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def write_png(folder, count, size=None, seed=0):
    """Write `count` photos as PNG, of `size` pixels or of sizes of their own; returns what is in the files."""
    os.makedirs(str(folder), exist_ok=True)
    photos = [cv2.resize(p, (size, size)) if size else p for p in photographs(count, seed)]
    for i, photo in enumerate(photos):
        cv2.imwrite(os.path.join(str(folder), '%03d.png' % i), photo)
    return photos


def labels_of(path):
    with open(str(path)) as f:
        return [int(line.rsplit(',', 1)[1]) for line in f]


def score(python, folder, weights, tmp_path, *flags):
    done = python('main.py', '--eval-directory', folder, '--load', weights, '--prediction-file', tmp_path / 'p.txt',
                  *(SMALL + list(flags)))
    assert done.returncode == 0, done.stderr
    return labels_of(tmp_path / 'p.txt')


EVALUATION = ['--eval', '--load', 'w.npz', '--data', 'd']


@pytest.mark.parametrize('arch', ['ResNet', 'ResNetDenoise', 'examples.efficientnet_lite0:network',
                                  *sorted(TORCHVISION)])
def test_each_network_has_its_own_preparation_in_an_evaluation(arch):
    own = 'torchvision' if arch in TORCHVISION else 'validation'
    assert parse_options(EVALUATION + ['--arch', arch]).preprocess == own
    assert parse_options(['--data', 'd', '--arch', arch]).preprocess == own  # of those between epochs
    assert parse_options(['--eval-directory', 'd', '--load', 'w.npz', '--arch', arch]).preprocess == 'resize'
    for name in PREPARATIONS:
        assert parse_options(EVALUATION + ['--arch', arch, '--preprocess', name]).preprocess == name


@pytest.mark.parametrize('arch', ['ResNet', 'resnet50'])
@pytest.mark.parametrize('preprocess', ['resize', 'validation', 'torchvision'])
def test_another_preparation_than_the_networks_own_is_said(arch, preprocess):
    own = default_preprocess(arch, False)
    said = mistaken_preprocess(arch, preprocess, 1000)
    assert len(said) == (preprocess != own) and all('--preprocess ' + own in text for text in said)
    # a folder's own default is that of the published command
    assert bool(mistaken_preprocess(arch, preprocess, 1000, eval_directory=True)) == (preprocess not in (own, 'resize'))
    assert mistaken_preprocess('somebody:network', preprocess, 1000) == []
    assert mistaken_preprocess(arch, preprocess, 10) == (said if arch == 'resnet50' else [])


@pytest.mark.parametrize('height, width', [(299, 299), (100, 150), (1, 1), (1, 5000), (70000, 2), (224, 223)])
def test_the_whole_image_whatever_its_shape(height, width):
    image = noise(height, width)
    expected = cv2.resize(image, (224, 224), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(resized_image(image), expected) and expected.shape == (224, 224, 3)


@pytest.mark.parametrize('size', [32, 224, 299])
def test_an_image_of_the_right_size_stays_as_it_is(size):
    assert np.array_equal(resized_image(noise(size, size), size), noise(size, size))


CUTS = {'resize': resized_image, 'validation': validation_image, 'torchvision': torchvision_image}
# the files are of kinds that all decoders decode to the same pixels
RESIZE, VALIDATION, TORCHVISIONS = [(['--preprocess', name], CUTS[name]) for name in
                                    ('resize', 'validation', 'torchvision')]


@pytest.mark.parametrize('flags, prepare', [([], resized_image), RESIZE, VALIDATION, TORCHVISIONS])
def test_a_folder_is_resized_unless_asked_otherwise(python, tmp_path, weights_file, classifier, flags, prepare):
    photos = write_png(tmp_path / 'images', 40)
    seen = {p: classifier().logits(np.stack([p(photo, 32) for photo in photos])).argmax(axis=1)
            for p in CUTS.values()}
    assert all((seen[a] != seen[b]).any() for a, b in itertools.combinations(seen, 2))
    assert score(python, tmp_path / 'images', weights_file(), tmp_path, *flags) == seen[prepare].tolist()


@pytest.mark.parametrize('flags, prepare', [([], validation_image), RESIZE, VALIDATION, TORCHVISIONS])
def test_an_evaluation_is_as_for_validation_unless_asked_otherwise(root, tmp_path, weights_file, classifier, flags,
                                                                   prepare):
    write_split(tmp_path / 'val', 30)
    evaluate(root, alone, tmp_path, weights_file(), '--attack-iter', 0, '--per-image', tmp_path / 'i.csv',
             '--results', tmp_path / 'r.json', *flags)
    rows = read_table(tmp_path / 'i.csv')
    seen = classifier().logits(np.stack([prepare(decode(row['path']), 32) for row in rows])).argmax(axis=1)
    assert [int(row['prediction']) for row in rows] == seen.tolist()
    assert json.loads((tmp_path / 'r.json').read_text())['preprocess'] == (flags or ['', 'validation'])[1]


@once
def test_attacked_images_without_their_manifest_are_what_was_saved(root, python, tmp_path, weights_file):
    """They have the network's size, and get the labels that the network gave to just these pixels."""
    write_split(tmp_path / 'data' / 'val', 40)
    evaluate(root, alone, tmp_path / 'data', weights_file(), '--attack-iter', 10, '--save-adversarial', tmp_path / 's')
    predictions = [int(row['prediction']) for row in read_table(tmp_path / 's' / 'manifest.csv')]
    with_manifest = score(python, tmp_path / 's', weights_file(), tmp_path, '--preprocess', 'validation')
    shutil.move(str(tmp_path / 's' / 'manifest.csv'), str(tmp_path / 'manifest.csv'))
    assert score(python, tmp_path / 's', weights_file(), tmp_path) == predictions == with_manifest


@once
@pytest.mark.parametrize('size, launcher, flags, warned', [
    (32, alone, [], True), (32, ranks(2), ['--preprocess', 'torchvision'], True),
    (32, alone, ['--preprocess', 'resize'], False),
    (48, alone, [], False), (None, alone, [], False)])
def test_a_set_of_the_networks_size_is_said_to_be_blurred(root, tmp_path, weights_file, size, launcher, flags, warned):
    for c in range(3):
        write_png(tmp_path / 'val' / ('c%d' % c), 4, size, seed=c)
    np.savez(str(tmp_path / 'w.npz'), **_three_classes(weights_file))
    done = evaluate(root, launcher, tmp_path, tmp_path / 'w.npz', '--attack-iter', 0, *flags)
    lines = [line for line in done.stderr.splitlines() if 'size already' in line]
    assert len(lines) == warned, done.stderr
    assert not warned or re.search('warning: .* 32x32.*blurs.*--preprocess resize', lines[0])


def _three_classes(weights_file):
    with np.load(weights_file(classes=3)) as weights:
        return dict(weights)


@once
def test_one_image_of_another_size_is_no_set_of_that_size(root, tmp_path, weights_file):
    for c in range(3):
        write_png(tmp_path / 'val' / ('c%d' % c), 4, 32, seed=c)
    cv2.imwrite(str(tmp_path / 'val' / 'c2' / 'x.png'), noise(32, 33))
    done = evaluate(root, alone, tmp_path, weights_file(classes=3), '--attack-iter', 0)
    assert 'size already' not in done.stderr


@once
def test_a_journal_of_another_preparation_is_refused(python, root, tmp_path, weights_file):
    write_split(tmp_path / 'val', 12)
    journal = ['--attack-iter', 0, '--journal', tmp_path / 'j']
    evaluate(root, alone, tmp_path, weights_file(), *journal)
    done = python('main.py', '--eval', '--load', weights_file(), '--data', tmp_path, '--preprocess', 'resize',
                  *(SMALL + journal))
    assert done.returncode == 2
    assert 'preprocess is "validation" there and "resize" here' in done.stderr


@pytest.mark.parametrize('flags, said', [
    (['--eval', '--preprocess', 'crop'], "--preprocess: invalid choice: 'crop'"),
    (['--eval-directory', 'x', '--preprocess', ''], '--preprocess: invalid choice'),
    (['--data', 'x', '--preprocess', 'resize'], '--preprocess goes with --eval and --eval-directory'),
])
def test_bad_input(python, flags, said):
    done = python('main.py', *(SMALL + flags))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1


@once
@pytest.mark.parametrize('preprocess', ['resize', 'torchvision'])
def test_a_report_says_how_and_shows_what_the_network_saw(root, python, tmp_path, weights_file, preprocess):
    """The difference between a clean image and its attacked version lies within the budget."""
    write_split(tmp_path / 'data' / 'val', 10)
    evaluate(root, alone, tmp_path / 'data', weights_file(), '--attack-iter', 3, '--attack-epsilon', 4,
             '--preprocess', preprocess, '--results', tmp_path / 'r.json', '--save-adversarial', tmp_path / 's')
    done = python('-m', 'tools.report', tmp_path / 'r.json', '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert '<dt>preprocess</dt><dd>%s</dd>' % preprocess in page
    from tools.report import examples
    with open(str(tmp_path / 's' / 'manifest.csv'), newline='') as f:
        rows = {row['label']: row for row in csv.DictReader(f)}
    shown = list(examples(json.loads((tmp_path / 'r.json').read_text()), str(tmp_path / 'r.json')))
    assert shown
    for example in shown:
        row = rows[re.match(r'label (\d+)', example.title).group(1)]
        assert np.array_equal(_picture(example.clean), CUTS[preprocess](decode(row['path']), 32))


def _picture(address):
    import base64
    return cv2.imdecode(np.frombuffer(base64.b64decode(address.split(',', 1)[1]), np.uint8), cv2.IMREAD_COLOR)
