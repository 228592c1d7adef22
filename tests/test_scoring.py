"""Black-box scoring: main.py --eval-directory on folders of all sorts of files."""
import os
import resource
import threading

from runtime.compat import USES_BFLOAT16_UNITS, tf

import cv2
import numpy as np
import pytest
from lanes import once
from photos import photographs
from PIL import Image

from evaluation.scoring import write_predictions
from runtime.errors import RunError
from third_party.images import resized_image
from third_party.preparations import PREPARATIONS
from tools.mpi import read_figures

SMALL = ['--arch', 'ResNet', '-d', '14', '--image-size', '32']


def write_odd_images(folder):
    """Images of many kinds, in sub-folders too; returns their relative paths, sorted."""
    photos = photographs(9)
    rgb = [Image.fromarray(p[:, :, ::-1]) for p in photos]
    (folder / 'b' / 'deep').mkdir(parents=True)
    (folder / 'a').mkdir()
    cv2.imwrite(str(folder / 'a' / 'plain.jpg'), photos[0])
    rgb[1].convert('L').save(str(folder / 'a' / 'grey.jpg'))
    rgb[2].convert('RGBA').save(str(folder / 'a' / 'transparent.png'))
    rgb[3].convert('CMYK').save(str(folder / 'b' / 'cmyk.jpg'))
    cv2.imwrite(str(folder / 'b' / 'sixteen bits.png'), photos[4].astype(np.uint16) * 257)
    rgb[5].convert('P').save(str(folder / 'b' / 'deep' / 'palette.png'))
    rgb[6].resize((300, 11)).save(str(folder / 'b' / 'deep' / 'long, thin.png'))
    rgb[7].resize((1, 1)).save(str(folder / 'one pixel.png'))
    rgb[8].save(str(folder / 'a.b.bmp'))
    return sorted(os.path.relpath(os.path.join(d, f), str(folder)) for d, _, fs in os.walk(str(folder)) for f in fs)


def score(python, folder, weights, out, *flags):
    return python('main.py', '--eval-directory', folder, '--load', weights, '--prediction-file', out,
                  '--batch', '4', *(SMALL + list(flags)))


def read(out):
    with open(str(out)) as f:
        return [line.rstrip('\n').rsplit(',', 1) for line in f]


@pytest.mark.parametrize('preprocess', ['resize', 'validation', 'torchvision'])
def test_every_kind_of_image_gets_its_label(python, tmp_path, weights_file, classifier, preprocess):
    folder = tmp_path / 'images'
    names = write_odd_images(folder)
    done = score(python, folder, weights_file(), tmp_path / 'out.txt', '--preprocess', preprocess)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / 'out.txt')
    assert [path for path, _ in rows] == [str(folder / name) for name in names]
    images = np.stack([PREPARATIONS[preprocess]().load(path, 32) for path, _ in rows])
    assert [int(label) for _, label in rows] == list(classifier().logits(images).argmax(axis=1))


@once
def test_unreadable_files_are_named_and_shift_nothing(python, tmp_path, weights_file):
    folder = tmp_path / 'images'
    write_odd_images(folder)
    good = score(python, folder, weights_file(), tmp_path / 'good.txt')
    assert good.returncode == 0
    (folder / 'a' / 'notes.txt').write_text('no image')
    (folder / 'b' / 'empty.jpg').write_text('')
    jpeg = (folder / 'a' / 'plain.jpg').read_bytes()
    (folder / 'b' / 'truncated.jpg').write_bytes(jpeg[:len(jpeg) // 2])
    done = score(python, folder, weights_file(), tmp_path / 'out.txt')
    assert done.returncode == 1
    for name in ('a/notes.txt', 'b/empty.jpg', 'b/truncated.jpg'):
        assert str(folder / name) in done.stderr
    assert '3 files were not scored' in done.stderr and 'Traceback' not in done.stderr
    assert read(tmp_path / 'out.txt') == read(tmp_path / 'good.txt')


@once
@pytest.mark.parametrize('make, said', [
    (lambda p: None, 'there is no image'),
    (lambda p: (p / 'only.txt').write_text('x'), '1 files were not scored'),
])
def test_nothing_to_score(python, tmp_path, weights_file, make, said):
    folder = tmp_path / 'images'
    folder.mkdir()
    make(folder)
    done = score(python, folder, weights_file(), tmp_path / 'out.txt')
    assert done.returncode in (1, 2) and said in done.stderr and 'Traceback' not in done.stderr


# --- what the system refuses for a while, or for good -----------------------------------------------------------------

class Refused:
    """Prepares images; when it has made so many, no file can be opened any more, for some seconds or for ever."""

    def __init__(self, images, seconds):
        self.left, self.seconds, self.lock = images, seconds, threading.Lock()
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def __call__(self, image, size):
        with self.lock:
            self.left -= 1
            if self.left == 0:
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, self.limits[1]))
                if self.seconds:
                    threading.Timer(self.seconds, self.end).start()
        return resized_image(image, size)

    def end(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)


MANY, AT_ONCE = 48, 16


@pytest.fixture
def many(tmp_path):
    """A folder of images: a batch, and twice, and more, as many as are read at the same time by threads."""
    (tmp_path / 'many').mkdir()
    for i in range(MANY):
        cv2.imwrite(str(tmp_path / 'many' / ('%02d.png' % i)), np.full((32, 32, 3), 5 * i, np.uint8))
    return tmp_path / 'many'


def score_while_refused(classifier, folder, out, seconds):
    prepare = Refused(classifier().batch + AT_ONCE, seconds)
    preparation = PREPARATIONS['resize']()._replace(cut=prepare)
    try:
        write_predictions(classifier(), str(folder), str(out), preparation=preparation, pauses=[0.1] * 20)
    finally:
        prepare.end()


def test_files_that_cannot_be_opened_for_a_while_are_tried_again(classifier, many, tmp_path):
    score_while_refused(classifier, many, tmp_path / 'p.txt', 0.5)
    assert len(read(tmp_path / 'p.txt')) == MANY and sorted(os.listdir(str(tmp_path))) == ['many', 'p.txt']


def test_predictions_so_far_are_kept_where_files_cannot_be_opened(classifier, many, tmp_path):
    with pytest.raises(RunError, match='Too many open files: the limit is 3 .*; the predictions so far are in') as info:
        score_while_refused(classifier, many, tmp_path / 'p.txt', None)
    kept = str(info.value).rsplit(' ', 1)[1]
    assert sorted(os.listdir(str(tmp_path))) == sorted(['many', os.path.basename(kept)])
    done = read(kept)
    assert [path for path, _ in done] == ['%s/%02d.png' % (many, i) for i in range(len(done))]
    assert len(done) in range(classifier().batch, MANY)


# --- figures that can't be known -------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def ready(tmp_path_factory):
    """A folder of 12 images of the network's size."""
    folder = tmp_path_factory.mktemp('ready')
    for i, photo in enumerate(photographs(12, seed=5)):
        cv2.imwrite(str(folder / ('%02d.png' % i)), cv2.resize(photo, (32, 32)))
    return folder


@pytest.mark.skipif(not USES_BFLOAT16_UNITS, reason='TensorFlow 1 takes minutes for it')
def test_labels_in_bfloat16(python, ready, weights_file, classifier, tmp_path):
    """As in float32 but where two are about as likely; stdout says what they are in."""
    done = score(python, ready, weights_file(), tmp_path / 'p.txt', '--dtype', 'bfloat16')
    assert done.returncode == 0, done.stderr
    assert 'predictions in bfloat16 are in %s' % (tmp_path / 'p.txt') in done.stdout
    rows = read(tmp_path / 'p.txt')
    logits = classifier().logits(np.stack([cv2.imread(path) for path, _ in rows]))
    ordered = np.sort(logits, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 0.1 * logits.std()
    same = logits.argmax(axis=1) == [int(label) for _, label in rows]
    assert clear.sum() >= len(rows) / 2 and same[clear].all()


def scored(python, folder, weights, tmp_path, header, row):
    """Score `folder` by a manifest with a line row(i) for each image; returns the CompletedProcess."""
    manifest = folder / 'labels.csv'
    manifest.write_text(header + '\n' + ''.join('%02d.png,%s\n' % (i, row(i)) for i in range(12)))
    return python('main.py', '--eval-directory', folder, '--labels', manifest, '--load', weights,
                  '--prediction-file', tmp_path / 'p.txt', *SMALL)


@once
@pytest.mark.parametrize('header, row', [
    ('file,label', lambda i: '3'), ('file,label,target', lambda i: '3,'), ('file,label,target', lambda i: '3,-1'),
    ('file,label,target,attack_iter,epsilon', lambda i: '3,,0,16')])
def test_success_without_targets_is_unknown(python, ready, weights_file, tmp_path, header, row):
    done = scored(python, ready, weights_file(), tmp_path, header, row)
    assert done.returncode == 0, done.stderr
    assert '\nAttack Success Rate: n/a\n' in done.stdout
    figures = read_figures(done.stdout)
    assert figures['Attack Success Rate'] is None and 0 <= figures['Top1 Error'] <= 1


@once
def test_success_is_of_the_images_with_a_target(python, ready, weights_file, tmp_path):
    """Five have one, and it is what the network says, as their labels are not: 1, not 5/12."""
    first = scored(python, ready, weights_file(), tmp_path, 'file,label', lambda i: '3')
    assert first.returncode == 0
    said = [int(label) for _, label in read(tmp_path / 'p.txt')]
    done = scored(python, ready, weights_file(), tmp_path, 'file,label,target',
                  lambda i: '%d,%s' % ((said[i] + 1) % 10, said[i] if i < 5 else ''))
    assert read_figures(done.stdout) == {'Top1 Error': 1, 'Attack Success Rate': 1,
                                         'Top5 Error': read_figures(done.stdout)['Top5 Error']}
    assert '5 of these 12 images have a target' in done.stderr


def test_targets_of_other_classes_are_refused(python, ready, weights_file, tmp_path):
    done = scored(python, ready, weights_file(), tmp_path, 'file,label,target', lambda i: '3,10')
    assert done.returncode == 2 and 'the target 10, and the network\'s classes are 0 to 9' in done.stderr


def test_figures_of_no_image_are_unknown(python, ready, weights_file, tmp_path):
    folder = tmp_path / 'small'
    folder.mkdir()
    for i in range(12):
        cv2.imwrite(str(folder / ('%02d.png' % i)), np.zeros((16, 16, 3), np.uint8))
    done = scored(python, folder, weights_file(), tmp_path, 'file,label', lambda i: '3')
    assert done.returncode == 1 and set(read_figures(done.stdout).values()) == {None}


@pytest.mark.parametrize('scale', [3e38, -3e38])
def test_logits_that_overflow_are_no_labels(python, ready, weights_of, tmp_path, scale):
    """The weights are numbers, and some logits infinite or, as a difference of two infinities, not a number."""
    weights = weights_of('ResNet')
    weights['linear/W'] = np.sign(weights['linear/W']) * np.float32(scale)
    np.savez(str(tmp_path / 'huge.npz'), **weights)
    done = scored(python, ready, tmp_path / 'huge.npz', tmp_path, 'file,label', lambda i: '3')
    assert done.returncode == 1 and done.stderr.count('logits are no numbers') == 12
    assert (tmp_path / 'p.txt').read_text() == ''
    # wrong, as in an evaluation
    assert read_figures(done.stdout) == {'Top1 Error': 1, 'Attack Success Rate': None, 'Top5 Error': 1}


def test_an_infinite_logit_is_no_label(session):
    """Nor is the largest of the others: which one it would be can't be said."""
    from adv_model import is_wrong, most_likely
    logits = np.array([[1, np.inf, 0], [1, -np.inf, 0], [np.nan, 1, 0], [0, 1, 2]], np.float32)
    predictions, wrong = session.run([most_likely(logits.copy()), is_wrong(tf.constant(logits), [1, 0, 1, 2], 1)])
    assert list(predictions) == [-1, -1, -1, 2] and list(wrong) == [True, True, True, False]
