"""A mistake is told before TensorFlow is loaded, which takes seconds: here it can't be loaded at all."""
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from photos import write_split

from tools.mpi import mpirun


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Return a folder with data, a checkpoint as far as can be seen from outside, and a TensorFlow that ends."""
    folder = tmp_path_factory.mktemp('quick')
    write_split(folder / 'data' / 'val', 12)
    write_split(folder / 'data' / 'train', 12)
    write_split(folder / 'evalonly' / 'val', 12)
    write_split(folder / 'stray' / 'train', 12)
    write_split(folder / 'stray' / 'val', 12)
    (folder / 'stray' / 'val' / 'unknown').mkdir()
    (folder / 'stray' / 'val' / 'unknown' / 'x.jpg').write_bytes(b'x')
    (folder / 'empty').mkdir()
    np.savez(str(folder / 'good.npz'), x=np.zeros(1000))
    (folder / 'cut.npz').write_bytes((folder / 'good.npz').read_bytes()[:500])
    (folder / 'manifest.csv').write_text('name,class\n')
    (folder / 'one.txt').write_text('cat\n')
    (folder / 'stub').mkdir()
    (folder / 'stub' / 'tensorflow.py').write_text('raise ImportError("TensorFlow was loaded")\n')
    return folder


def run(root, files, command):
    environment = dict(os.environ, PYTHONPATH=str(files / 'stub'))
    begin = time.time()
    done = subprocess.run(command, cwd=str(files), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
    return done, time.time() - begin


CASES = [
    ('--eval --load nowhere.npz --data data', 'no checkpoint nowhere.npz'),
    ('--eval --load nowhere --data data', 'no checkpoint nowhere: give an .npz file'),
    ('--eval --load cut.npz --data data', 'checkpoint cut.npz can\'t be read'),
    ('--eval --load good.npz --data nowhere', 'there is no folder nowhere'),
    ('--eval --load good.npz --data good.npz', 'good.npz is not a folder'),
    ('--eval --load good.npz --data empty', 'empty has no class folders'),
    ('--eval --load good.npz --data stray', 'stray/val/unknown is not among '),
    ('--eval --load good.npz --data data --classes nowhere.txt', 'cannot read nowhere.txt'),
    ('--eval --load good.npz --data data --classes one.txt', 'a single class'),
    ('--eval --load good.npz --data data --arch Resnet', 'no architecture .Resnet. in the zoo; .*ResNetDenoise'),
    ('--eval --load good.npz --data data -d 34', 'no depth 34 in the zoo; choose one of 14, 50'),
    ('--eval --load good.npz --data data --results nowhere/x.json', 'cannot write nowhere/x.json: there is no folder'),
    ('--eval --load good.npz --data data --per-image empty', 'cannot write empty: it is a folder'),
    ('--eval --load good.npz --data data --journal nowhere/x', 'cannot use the journal nowhere/x: No such'),
    ('--eval --load good.npz --data data --journal empty', 'cannot use the journal empty: Is a directory'),
    ('--eval --load good.npz --data data --save-adversarial good.npz/x', 'cannot write good.npz/x: Not a directory'),
    ('--eval-directory nowhere --load good.npz', 'there is no folder nowhere'),
    ('--eval-directory empty --load good.npz', 'there is no image in empty'),
    ('--eval-directory data --load nowhere.npz', 'no checkpoint nowhere.npz'),
    ('--eval-directory data --load good.npz --labels nowhere.csv', 'cannot read nowhere.csv'),
    ('--eval-directory data --load good.npz --labels manifest.csv', 'manifest.csv is no manifest'),
    ('--eval-directory data --load good.npz --prediction-file nowhere/x', 'there is no folder .*nowhere'),
    ('--eval-directory data --load good.npz --arch NoSuch', 'no architecture .NoSuch.'),
    ('--data nowhere', 'there is no folder nowhere'),
    ('--data evalonly', 'there is no folder evalonly/train'),
    ('--data data --classes nowhere.txt', 'cannot read nowhere.txt'),
    ('--data data --load nowhere.npz', 'no checkpoint nowhere.npz'),
    ('--data data --resume nowhere', '--resume: there is no checkpoint in nowhere'),
    ('--fake --arch NoSuch', 'no architecture .NoSuch.'),
    ('--fake --load nowhere', 'no checkpoint nowhere'),
]


@pytest.mark.parametrize('flags, said', CASES)
def test_without_tensorflow(root, files, flags, said):
    done, seconds = run(root, files, [sys.executable, os.path.join(root, 'main.py')] + flags.split())
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and not done.stdout, done.stderr
    assert re.match('main.py: error: .*' + said, done.stderr), done.stderr
    assert seconds < 5, seconds  # a second, but for a machine that others use, too


@pytest.mark.parametrize('flags, said', [CASES[0], CASES[3], ('--data nowhere', 'there is no folder nowhere')])
def test_every_rank(root, files, flags, said):
    done, seconds = run(root, files, mpirun(3, [os.path.join(root, 'main.py')] + flags.split()))
    errors = re.findall('main.py: error: .*', done.stderr)
    assert done.returncode == 2 and len(set(errors)) == 1 and re.search(said, errors[0]), done.stderr
    assert 'TensorFlow' not in done.stderr and seconds < 10, seconds


def test_right_input_loads_tensorflow(root, files):
    """So that the test above tests something."""
    done, _ = run(root, files, [sys.executable, os.path.join(root, 'main.py'), '--eval', '--load', 'good.npz', '--data',
                                'data'])
    assert done.returncode == 1 and 'TensorFlow was loaded' in done.stderr
