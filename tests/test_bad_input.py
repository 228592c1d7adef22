"""Wrong flags, files and data: one line that says what to do, exit status 2, on every rank, and no hang."""
import os
import re
import subprocess

import numpy as np
import pytest
from lanes import once
from photos import write_split

from tools.mpi import mpirun

SMALL = ['-d', '14', '--image-size', '32']


@pytest.fixture(scope='module')
def files(tmp_path_factory, weights_file):
    """Paths by name, good and bad."""
    folder = tmp_path_factory.mktemp('files')
    write_split(folder / 'data' / 'val', 12)
    write_split(folder / 'data' / 'train', 12)
    write_split(folder / 'corrupt' / 'val', 12)
    bad = folder / 'corrupt' / 'val' / 'c3' / '003.jpg'
    bad.write_bytes(bad.read_bytes()[:300])
    write_split(folder / 'two' / 'val', 12, classes=2)
    write_split(folder / 'one' / 'val', 3, classes=1)
    (folder / 'empty').mkdir()
    with open(str(folder / 'array.npz'), 'wb') as f:
        np.save(f, np.zeros(3))
    with open(weights_file(), 'rb') as f:
        (folder / 'truncated.npz').write_bytes(f.read()[:100000])
    np.savez(str(folder / 'other.npz'), x=np.zeros(3))
    paths = {name: str(folder / name) for name in os.listdir(str(folder))}
    paths.update(good=weights_file(), denoise=weights_file('ResNetDenoise'), missing=str(folder / 'missing'))
    return paths


CASES = [
    # flags; what the line says
    ('--eval --load {good}', '--data'),
    ('--eval --data {data}', '--load'),
    ('--eval --eval-directory {data} --load {good} --data {data}', 'not allowed with'),
    ('--eval --load {missing}.npz --data {data}', 'no checkpoint .*missing.npz'),
    ('--eval --load {missing} --data {data}', 'no checkpoint .*missing'),
    ('--eval --load {truncated.npz} --data {data}', r'truncated\.npz can\'t be read'),
    ('--eval --load {other.npz} --data {data}', r'other\.npz'),
    ('--eval --load {denoise} --data {data}', '--arch ResNetDenoise -d 14'),
    ('--eval --load {good} --data {two}', '10 classes, the data 2'),
    ('--eval --load {good} --data {missing}', 'missing'),
    ('--eval --load {good} --data {empty}', 'empty'),
    ('--eval --load {good} --data {data} --attack-iter -1', '--attack-iter'),
    ('--eval --load {good} --data {data} --attack-iter 10,x', '--attack-iter'),
    ('--eval --load {good} --data {data} --attack-iter 10,,20', '--attack-iter'),
    ('--eval --load {good} --data {data} --results {missing}/x.json', 'no folder .*missing'),
    ('--eval --load {good} --data {data} --results {empty}', 'it is a folder'),
    ('--eval --load {good} --data {data} --results /dev/null', 'not a file'),
    ('--eval-directory {data} --load {good} --prediction-file /dev/null', 'not a file'),
    ('--eval --load {good} --data {data} --results {good}', '--results and --load are the same file'),
    ('--eval --load {good} --data {data} --results x --journal ./x', '--journal and --results are the same file'),
    ('--eval --load {good} --data {data} --per-image {data}/val/c0/000.jpg', '--per-image lies among the images'),
    ('--eval --load {good} --data {data} --save-adversarial {data}/val/c0', '--save-adversarial lies among the images'),
    ('--eval --load {good} --data {data} --journal=', '--journal is empty'),
    ('--eval --load {good} --data {data} --journal /dev/zero', 'it is not a file'),
    ('--eval --load {good} --data {data} --labels x.csv', '--labels goes with --eval-directory'),
    ('--eval-directory {data} --load {good} --labels {missing}', 'cannot read .*missing'),
    ('--eval-directory {data} --load {good} --journal x', '--journal goes with --eval'),
    ('--eval --load {good} --data {data} --attack-epsilon 0', '--attack-epsilon'),
    ('--eval --load {good} --data {data} --attack-epsilon nan', '--attack-epsilon'),
    ('--eval --load {good} --data {data} --batch 0', '--batch'),
    ('--eval --load {good} --data {data} --image-size 2000000', '--image-size: 2000000 is more than 8192'),
    ('--eval --load {good} --data {data} --arch NoSuch', 'NoSuch.*ResNetDenoise'),
    ('--eval --load {good} --data {data} --depth 7', '7.*152'),
    ('--eval --load {good} --data {data} --no-such-flag', '--no-such-flag'),
    ('--eval --load {good} --data {data} --seed 99999999999999999999', '--seed'),
    ('--eval --load {good} --data {data} --attack-iter 99999999999', '--attack-iter'),
    ('--eval --load {good} --data {one}', 'single class'),
    ('--eval --load {array.npz} --data {data}', 'array.npz can'),
    ('--eval-directory {missing} --load {good}', 'missing'),
    ('--eval-directory {empty} --load {good}', 'empty'),
    ('--eval-directory {data} --load {good} --prediction-file {missing}/x.txt', 'missing'),
    ('--batch 32', '--data'),
    ('--data {data} --attack-iter 10,20', 'several values.*--eval'),
    ('--data {data} --results x.json', '--results goes with --eval'),
    ('--data {data} --max-epoch 3 --starting-epoch 4', '--starting-epoch'),
    ('--data {data} --logdir a/b', '--logdir.*a/b'),
    ('--data {data} --accumulate 2147483647', '--accumulate is at most'),
]


def one_line(stderr, said):
    # another rank's progress bar may stand in front, on the same line of the terminal
    lines = re.findall('main.py: error: .*', stderr)
    assert len(set(lines)) == 1, stderr
    assert re.search(said, lines[0]), lines[0]
    assert 'Traceback' not in stderr
    return lines


@pytest.mark.parametrize('flags, said', CASES)
def test_one_line_and_status_2(python, files, tmp_path, flags, said):
    flags = re.sub(r'\{(.*?)\}', lambda m: files[m.group(1)], flags).split()
    done = python('main.py', *(SMALL + flags), timeout=120)
    assert done.returncode == 2, (done.returncode, done.stderr)
    one_line(done.stderr, said)
    assert done.stderr.count('\n') == 1, done.stderr
    assert done.stdout == ''


def test_corrupt_validation_image_stops_the_evaluation(python, files):
    done = python('main.py', '--eval', '--load', files['good'], '--data', files['corrupt'],
                  '--attack-iter', '0', *SMALL)
    assert done.returncode == 2
    one_line(done.stderr, r'c3.003\.jpg is not a readable image')
    assert 'Top1 Error' not in done.stdout


@once
@pytest.mark.slow
@pytest.mark.parametrize('flags, said', [
    ('--eval --load {missing} --data {data}', 'no checkpoint'),
    ('--eval --load {good} --data {empty}', 'empty'),
    ('--eval --load {denoise} --data {data}', '--arch ResNetDenoise'),
    ('--eval --load {good} --data {data} --arch NoSuch', 'NoSuch'),
    ('--eval --load {good} --data {corrupt} --attack-iter 1 --batch 1', 'not a readable image'),
    ('--data {missing}', 'missing'),
])
def test_every_rank_ends(root, files, tmp_path, flags, said):
    flags = re.sub(r'\{(.*?)\}', lambda m: files[m.group(1)], flags).split()
    done = subprocess.run(mpirun(3, ['main.py'] + SMALL + flags), cwd=root, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert done.returncode == 2, (done.returncode, done.stderr)
    one_line(done.stderr, said)
    assert 'Top1 Error' not in done.stdout


def test_file_in_place_of_the_log_directory(python, root, tmp_path):
    (tmp_path / 'train_log').write_text('')
    done = python(root + '/main.py', '--fake', '--steps-per-epoch', '1', '--max-epoch', '1', *SMALL, cwd=tmp_path)
    assert done.returncode == 2
    one_line(done.stderr, 'cannot write the log directory train_log')
