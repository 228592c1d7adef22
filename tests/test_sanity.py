"""Wrong set-ups are noticed before a long run: red and blue exchanged, shifted labels, a network that knows nothing."""
import json
import os

import cv2
import numpy as np
import pytest
from evaluating import SMALL, alone, evaluate
from lanes import once
from photos import photographs, write_split

from evaluation.sanity import judge, suspicions
from runtime.distributed import World
from third_party.imagenet import load_dataset
from third_party.preparations import PREPARATIONS

LABELS = np.arange(64) % 10
RIGHT = LABELS.copy()
WRONG = (LABELS + 5) % 10
HALF = np.where(np.arange(64) < 32, RIGHT, WRONG)


@pytest.mark.parametrize('predictions, swapped, said', [
    (RIGHT, WRONG, None),
    (HALF, WRONG, None),
    (WRONG, HALF, 'RGB and BGR are likely swapped.*100% of 64 images, and 50%'),
    (HALF, RIGHT, 'RGB and BGR are likely swapped.*50% of 64 images, and 0%'),
    (LABELS + 1, WRONG, r'labels are likely shifted.*100% of 64 images, and 0% .* if each label were \+1'),
    (LABELS - 1, WRONG, r'labels are likely shifted.* if each label were -1'),
    (WRONG, WRONG, 'the clean error is 100% of 64 images. Look at'),
    (np.full(64, -1), np.full(64, -1), 'the clean error is 100%'),
    (np.zeros(64, int), np.zeros(64, int), None),  # 89% error: bad, and no sign of a wrong set-up
])
def test_judgement(predictions, swapped, said):
    import re
    found = judge(LABELS, predictions, swapped)
    assert len(found) == (said is not None), found
    if said:
        assert re.search(said, found[0]), found


def test_others_wait_patiently_for_a_slow_sample(tmp_path):
    """Horovod would take a rank that reads, or computes, for minutes for a deadlock: all of it is known to be long."""
    class Watched(World):
        working = False

        def patiently(self, work):
            self.working = True
            work()
            self.working = False

    class Slow:
        """A preparation that reads only while the others know of it."""
        def cut(self, image, size):
            assert world.working
            return image[:size, :size]

    def predict(images):
        assert world.working
        return np.zeros(len(images), np.int64)

    world = Watched()
    write_split(tmp_path / 'val', 12)
    preparation = PREPARATIONS['resize']()._replace(cut=Slow().cut)
    assert suspicions(predict, load_dataset(str(tmp_path), 'val'), world, image_size=32, batch=5,
                      preparation=preparation) == []


def test_few_images_prove_nothing():
    assert judge(LABELS[:8], WRONG[:8], WRONG[:8]) == []


@pytest.fixture(scope='module')
def own_classes(tmp_path_factory, classifier):
    """A writer of data sets whose labels are what the network says: write(shift of the labels, swap the channels)."""
    photos = [cv2.resize(p, (32, 32)) for p in photographs(60, seed=3)]
    names = ['%03d.png' % i for i in range(60)]
    folder = tmp_path_factory.mktemp('photos')
    for name, photo in zip(names, photos):
        cv2.imwrite(str(folder / name), photo)
    from third_party.images import decode
    seen = np.stack([decode(str(folder / name)) for name in names])
    predictions = classifier().logits(seen).argmax(axis=1)
    assert len(set(predictions)) > 3

    def write(shift=0, swap=False):
        data = tmp_path_factory.mktemp('data')
        os.makedirs(str(data / 'val'))
        for name, photo in zip(names, photos):
            cv2.imwrite(str(data / 'val' / name), photo[:, :, ::-1] if swap else photo)
        (data / 'val.txt').write_text(''.join('%s %d\n' % (n, (p + shift) % 10) for n, p in zip(names, predictions)))
        (data / 'synsets.txt').write_text(''.join('c%d\n' % i for i in range(10)))
        return data
    return write


@once
@pytest.mark.parametrize('wrong, said', [
    (dict(), None), (dict(shift=1), 'labels are likely shifted'), (dict(swap=True), 'RGB and BGR are likely swapped')])
def test_an_evaluation_warns_and_goes_on(root, own_classes, weights_file, wrong, said):
    done = evaluate(root, alone, own_classes(**wrong), weights_file(), '--attack-iter', 0, '--preprocess', 'resize')
    warnings = [line for line in done.stderr.splitlines() if 'main.py: warning' in line]
    assert len(warnings) == (said is not None), done.stderr
    assert said is None or said in warnings[0]
    assert 'Top1 Error: ' in done.stdout


@once
def test_a_continued_evaluation_records_the_same(root, own_classes, weights_file, tmp_path):
    data = own_classes(shift=1)
    recorded = []
    for name in ('whole', 'continued'):
        done = evaluate(root, alone, data, weights_file(), '--attack-iter', 0, '--preprocess', 'resize', '--batch', 20,
                        '--journal', tmp_path / 'j', '--results', tmp_path / name)
        recorded.append(json.loads((tmp_path / name).read_text())['warnings'])
        lines = (tmp_path / 'j').read_bytes().splitlines(True)
        (tmp_path / 'j').write_bytes(b''.join(lines[:2]))
    assert '20/60' in done.stderr and done.stderr.count('labels are likely shifted') == 1
    assert recorded[0] == recorded[1] and 'labels are likely shifted' in recorded[0][0]


def test_a_constant_network_is_no_swap():
    """It always says 4; half of the images are of class 3, and the channels make it say 3."""
    labels = np.array([3] * 200 + [1] * 20 + [2] * 20)
    assert not any('swapped' in s or 'shifted' in s for s in judge(labels, np.full(240, 4), np.full(240, 3)))


def test_a_robust_network_with_its_channels_exchanged():
    """The swap wins 12 points of the images, and loses 3 of others: found nearly always, and never without it."""
    rng = np.random.RandomState(0)
    found = {False: 0, True: 0}
    for _ in range(200):
        labels = rng.randint(0, 1000, 256)
        chance = rng.uniform(size=256)
        right = np.where(chance < 0.5, labels, (labels + 7) % 1000)
        better = np.where((chance > 0.03) & (chance < 0.65), labels, (labels + 7) % 1000)
        for exchanged in found:
            pair = (right, better) if exchanged else (better, right)
            found[exchanged] += any('swapped' in s for s in judge(labels, *pair))
    assert found[True] > 150 and found[False] == 0


@once
@pytest.mark.parametrize('wrong, columns, said', [
    (dict(), {}, None),
    (dict(shift=1), {}, 'labels are likely shifted'),
    (dict(swap=True), {}, 'RGB and BGR are likely swapped'),
    (dict(shift=5), dict(attack_iter=0, epsilon=16, target=''), 'the clean error is 100%'),
    (dict(shift=1), dict(attack_iter=10, epsilon=16), None),  # of attacked images nothing can be said
    (dict(shift=1), dict(target=11), None)])
def test_scoring_warns_of_clean_images(python, own_classes, weights_file, tmp_path, wrong, columns, said):
    data = own_classes(**wrong)
    manifest = data / 'val' / 'labels.csv'
    with open(str(manifest), 'w') as f:
        f.write(','.join(['file', 'label'] + list(columns)) + '\n')
        for name, label in (line.split() for line in (data / 'val.txt').read_text().splitlines()):
            target = dict(target=(int(label) + 3) % 10) if columns.get('target') else {}
            f.write(','.join([name, label] + [str(v) for v in dict(columns, **target).values()]) + '\n')
    done = python('main.py', '--eval-directory', data / 'val', '--labels', manifest, '--load', weights_file(),
                  '--prediction-file', tmp_path / 'p.txt', *SMALL)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if 'main.py: warning' in line]
    assert len(warnings) == (said is not None), done.stderr
    assert said is None or said in warnings[0] and ('column attack_iter' in warnings[0]) == (not columns)
    assert len((tmp_path / 'p.txt').read_text().splitlines()) == 60 and 'Top1 Error: ' in done.stdout
