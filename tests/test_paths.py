"""A path is bytes: whatever the locale and the name, it is written, printed and digested byte for byte."""
import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from lanes import once
from photos import write_split

SMALL = ['-d', '14', '--image-size', '32', '--batch', '4']
ODD = b'caf\xe9,  "x" \xc3\xa9.jpg'  # not UTF-8; a comma, quotes, two spaces, and a letter in UTF-8
LOCALES = {'utf8': {'LC_ALL': 'C.UTF-8'}, 'c': {'LC_ALL': 'C'},
           'ascii': {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}}


def run(root, arguments, where, locale):
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONUTF8', 'LANG')}
    command = [os.fsencode(a) for a in [sys.executable, os.path.join(root, 'main.py')] + list(arguments)]
    return subprocess.run(command, cwd=where, env=dict(environment, **LOCALES[locale]), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, weights_file):
    """A folder with an odd name: val/ with two odd images, and a checkpoint, also of TensorFlow."""
    made = os.fsencode(str(tmp_path_factory.mktemp('paths')))
    write_split(os.fsdecode(os.path.join(made, b'plain', b'val')), 11)  # OpenCV doesn't write to odd places
    top = os.path.join(made, b'\xff data')
    os.rename(os.path.join(made, b'plain'), top)
    for name, number in ((ODD, 0), (b'\xff\xfe.jpg', 10)):
        os.rename(os.path.join(top, b'val', b'c0', b'%03d.jpg' % number), os.path.join(top, b'val', b'c0', name))
    shutil.copy(weights_file(), os.fsdecode(os.path.join(top, b'w\xe9.npz')))
    return top


@pytest.mark.parametrize('locale', sorted(LOCALES))
def test_an_evaluation_and_a_report(root, folder, tmp_path, locale):
    done = run(root, SMALL + ['--eval', '--load', b'w\xe9.npz', '--data', b'../\xff data', '--attack-iter', '1',
                              '--per-image', str(tmp_path / 'rows'), '--results', str(tmp_path / 'results'),
                              '--save-adversarial', os.path.join(os.fsencode(str(tmp_path)), b'saved\xff')],
               folder, locale)
    assert done.returncode == 0, done.stderr
    for path in (os.path.join(os.fsencode(str(tmp_path)), b'rows'),
                 os.path.join(os.fsencode(str(tmp_path)), b'saved\xff', b'manifest.csv')):
        with open(path, 'rb') as f:
            rows = list(csv.DictReader(io.StringIO(f.read().decode('latin-1'))))
        assert [row['path'].encode('latin-1') for row in rows if row['label'] == '0'] == [
            b'../\xff data/val/c0/' + name for name in (ODD, b'\xff\xfe.jpg')]
    results = json.loads((tmp_path / 'results').read_text())
    assert os.fsencode(results['data']) == b'../\xff data' and os.fsencode(results['checkpoint']) == b'w\xe9.npz'
    assert results['data_sha256'] == DIGESTS.setdefault('data', results['data_sha256'])  # the same in every locale


DIGESTS = {}


@once
def test_a_carriage_return_in_a_name(python, weights_file, tmp_path):
    """It ends a line of a CSV where it isn't quoted."""
    write_split(tmp_path / 'data' / 'val', 10)
    image = next((tmp_path / 'data' / 'val' / 'c0').iterdir())
    image.rename(image.parent / 'a\r,b.jpg')
    done = python('main.py', '--eval', '--load', weights_file(), '--data', tmp_path / 'data', '--attack-iter', '0,1',
                  '--per-image', tmp_path / 'rows', '--save-adversarial', tmp_path / 'saved', *SMALL)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / 'rows', tmp_path / 'saved' / 'manifest.csv'):
        with open(str(path), newline='') as f:
            rows = list(csv.DictReader(f))
        assert len(rows) == 20 and [row['path'] for row in rows[:2]] == [
            str(tmp_path / 'data' / 'val' / 'c0' / 'a\r,b.jpg')] * 2
    done = python('main.py', '--eval-directory', tmp_path / 'saved', '--labels', tmp_path / 'saved' / 'manifest.csv',
                  '--load', weights_file(), '--prediction-file', tmp_path / 'p', *SMALL)
    assert done.returncode == 0 and '10 images, 1 attack steps' in done.stdout, done.stderr


@pytest.mark.parametrize('locale', sorted(LOCALES))
def test_scoring(root, folder, tmp_path, locale):
    out = os.path.join(os.fsencode(str(tmp_path)), b'p\xe9  .txt')
    broken = os.path.join(os.fsencode(str(tmp_path)), b'images')
    shutil.copytree(os.path.join(folder, b'val', b'c0'), broken)
    with open(os.path.join(broken, b'bad \xe9  .jpg'), 'wb') as f:
        f.write(b'no image')
    done = run(root, SMALL + ['--eval-directory', broken, '--load', os.path.join(folder, b'w\xe9.npz'),
                              '--prediction-file', out], tmp_path, locale)
    assert done.returncode == 1, done.stderr
    with open(out, 'rb') as f:
        assert [line.rsplit(b',', 1)[0] for line in f.read().splitlines()] == [
            os.path.join(broken, name) for name in (ODD, b'\xff\xfe.jpg')]
    assert done.stdout == b'predictions are in ' + out + b'\n'
    assert b'main.py: not scored: ' + broken + b'/bad \xe9  .jpg' in done.stderr


@pytest.mark.parametrize('locale', sorted(LOCALES))
@pytest.mark.parametrize('flags', [['--eval', '--load', b'\xff  ".npz', '--data', b'.'],
                                   ['--eval', '--load', b'model-\xff  1', '--data', b'.'],
                                   ['--eval', '--load', b'w\xe9.npz', '--data', b'no\xff  "']])
def test_errors(root, folder, locale, flags):
    done = run(root, SMALL + flags, folder, locale)
    assert done.returncode == 2 and done.stderr.count(b'\n') == 1 and not done.stdout
    assert done.stderr.startswith(b'main.py: error: ') and (flags[2] in done.stderr or flags[4] in done.stderr)


@once
def test_a_label_file_with_odd_names(root, folder, tmp_path):
    """In val.txt names are bytes, too."""
    data = os.path.join(os.fsencode(str(tmp_path)), b'flat')
    shutil.copytree(os.path.join(folder, b'val', b'c0'), os.path.join(data, b'val'))
    with open(os.path.join(data, b'val.txt'), 'wb') as f:
        f.write(ODD + b' 3\n\xff\xfe.jpg 1\n')
    with open(os.path.join(data, b'synsets.txt'), 'w') as f:
        f.write(''.join('c%d\n' % i for i in range(10)))
    done = run(root, SMALL + ['--eval', '--load', os.path.join(folder, b'w\xe9.npz'), '--data', data,
                              '--attack-iter', '0', '--per-image', str(tmp_path / 'rows')], tmp_path, 'ascii')
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / 'rows').read_bytes().splitlines()
    assert rows[1].split(b',')[0] == b'0' and b'.jpg",3,0,' in rows[1] and b'\xff\xfe.jpg,1,0,' in rows[2]


@once
@pytest.mark.slow
def test_a_training_in_an_odd_place(root, tmp_path):
    """It goes on from its checkpoint, which is read elsewhere, too."""
    write_split(tmp_path / 'images', 10)
    where = os.path.join(os.fsencode(str(tmp_path)), b'\xff  here')
    os.mkdir(where)
    flags = SMALL + ['--fake', '--attack-iter', '0', '--steps-per-epoch', '2', '--max-epoch', '1']
    done = run(root, flags, where, 'utf8')
    assert done.returncode == 0 and b'Traceback' not in done.stderr + done.stdout, done.stderr
    again = run(root, flags[:-1] + ['2', '--resume'], where, 'utf8')
    assert again.returncode == 0 and b'next is step 1 of 2 in epoch 2' in again.stdout + again.stderr
    log, = os.listdir(os.path.join(where, b'train_log'))
    checkpoint = os.path.join(where, b'train_log', log, b'model-4')
    scored = run(root, SMALL + ['--eval-directory', 'images', '--load', checkpoint], tmp_path, 'utf8')
    assert scored.returncode == 0, scored.stderr
