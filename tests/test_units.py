"""Values that can only be meant in another unit than pixels of 255 are warned of: they make any network look robust."""
import json
import logging
import re

import helpers
import numpy as np
import pytest
from evaluating import SMALL, alone, evaluate
from lanes import once
from photos import write_split

from inference import load_classifier
from runtime.pixels import mistaken_attack, mistaken_images


@pytest.mark.parametrize('epsilons, step_size, said', [
    ([16.0], 1.0, []), ([1.0], 1.0, []), ([4.0], 0.25, []), ([255.0], 1.0, []), ([0.0], 0.0, []),
    ([8 / 255], 1.0, ['epsilon 0.0313725 is below one pixel.* is 8 pixels']),
    ([8, 8 / 255, 0.06], 1.0, ['epsilon 0.0313725', 'epsilon 0.06']),
    ([2040.0], 1.0, ['epsilon 2040 is more than the whole range']),
    ([16.0], 2 / 255, ['step size 0.00784314 is a small part of a pixel.* is 2 pixels']),
    ([16.0, 40.0], 20.0, ['step size 20 is above the budget, epsilon 16']),
    ([8 / 255], 2 / 255, ['epsilon 0.03', 'step size 0.0078']),
])
def test_attacks(epsilons, step_size, said):
    found = mistaken_attack(epsilons, step_size)
    assert len(found) == len(said), found
    for text, pattern in zip(found, said):
        assert re.match(pattern, text) and '255' in text, text


@pytest.mark.parametrize('scale, dtype, said', [
    (255, np.float32, False), (1, np.float32, True), (1, np.float64, True), (1, np.float16, True),
    (1.03, np.float32, True), (2, np.float32, True), (2.06, np.float32, True), (3, np.float32, False),
    (0.2, np.float32, True), (0, np.float32, False), (255, np.uint8, False), (0, np.uint8, False)])
def test_images(scale, dtype, said):
    images = (helpers.images(3, 32) / 255 * scale).astype(dtype)
    images[0] = 0  # a black one proves nothing
    assert bool(mistaken_images(images)) == said


def test_the_python_api_says_so_once_and_goes_on(weights_file, caplog):
    clf = load_classifier(weights_file(), depth=14, image_size=32)
    images, labels = helpers.images(3, 32), np.arange(3)
    calls = [lambda x: clf.logits(x), lambda x: clf.loss_gradient(x, labels), lambda x: clf.pgd(x, labels, steps=1),
             lambda x: clf.classify(x, labels)]
    for call in calls:
        for good in (images, images.astype(np.float32), np.zeros_like(images, np.float32)):
            call(good)
    assert not caplog.records
    for scale in (255, 127.5, 250):  # of the batches of a data set the largest pixels are different ones
        for call in calls:
            call(images / scale)
    assert len(caplog.records) == 1 and 'images are in [0, 255]' in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    caplog.clear()
    for _ in range(2):
        clf.pgd(images, labels, steps=2, epsilon=8 / 255)
    assert len(caplog.records) == 1 and 'epsilon 0.0313725 is below one pixel' in caplog.text
    caplog.clear()
    clf.pgd(images, labels, steps=0, epsilon=4 / 255)
    assert not caplog.records
    clf.pgd(images, labels, steps=1, epsilon=4 / 255)  # another mistake
    assert len(caplog.records) == 1
    clf.close()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 10)
    return folder


@once
@pytest.mark.parametrize('flags, said', [
    (['--attack-iter', '0,2', '--attack-epsilon', '8,0.0314'], ['epsilon 0.0314 is below one pixel']),
    (['--attack-iter', '2', '--attack-step-size', '32'], ['step size 32 is above the budget, epsilon 16']),
    (['--attack-iter', '0', '--attack-epsilon', '0.0314'], []),
    (['--attack-iter', '2'], [])])
def test_an_evaluation_records_it(root, data, weights_file, tmp_path, flags, said):
    done = evaluate(root, alone, data, weights_file(), '--results', tmp_path / 'r.json', *flags)
    warnings = [line for line in done.stderr.splitlines() if 'main.py: warning: ' in line]
    recorded = json.loads((tmp_path / 'r.json').read_text())['warnings']
    assert [w.split('warning: ')[1] for w in warnings] == recorded and len(recorded) == len(said), done.stderr
    for text, begin in zip(recorded, said):
        assert text.startswith(begin)


@once
def test_a_training_says_so(python, root, tmp_path):
    done = python(root + '/main.py', '--fake', '--steps-per-epoch', '1', '--max-epoch', '1', '--batch', '2',
                  '--attack-iter', '1', '--attack-epsilon', '0.0314', '--training-eval', 'none', *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = 'epsilon 0.0314 is below one pixel'
    assert done.stderr.count('main.py: warning: ' + said) == 1
    log, = (tmp_path / 'train_log').glob('*/log.log')  # what remains of the training
    assert log.read_text().count(said) == 1
