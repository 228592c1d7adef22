"""A mistake is told before TensorFlow is loaded, which takes seconds: here it can't be loaded at all."""
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from lanes import once
from photos import write_split

from evaluation.journal import FORMAT, check_usable, line_of
from main import parse_options
from runtime.errors import InputError
from runtime.locks import take_lock
from runtime.own_code import check_code
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
    np.savez(str(folder / 'ten.npz'), **{'linear/b': np.zeros(10)})
    (folder / 'elsewhere.csv').write_text('file,label\n000.jpg,1\n')
    (folder / 'eleven.csv').write_text('file,label\n%s,10\ndata/val/c1/x.jpg,1\n'
                                       % sorted((folder / 'data' / 'val').rglob('*.jpg'))[0].relative_to(folder))
    (folder / 'one.txt').write_text('cat\n')
    (folder / 'twice.txt').write_text('c0/000.jpg\nval/c0/000.jpg\n')
    (folder / 'full').mkdir()
    (folder / 'full' / '000000-iter1-epsilon16.png').write_bytes(b'x')
    (folder / 'other.journal').write_bytes(line_of(dict(format=FORMAT, facts=dict(seed=1, versions='any'))))
    (folder / 'broken.py').write_text('class Attacker:\n')
    (folder / 'attacks').mkdir()
    (folder / 'attacks' / '__init__.py').write_text('import tensorflow\n')
    (folder / 'attacks' / 'mine.py').write_text('import tensorflow\nclass Attacker(tensorflow.Any):\n    pass\n')
    for ranks in (1, 3):
        log = folder / 'train_log' / ('PGD-ResNet50-Batch32-%dGPUs-iter30-epsilon16.0-step1.0' % ranks)
        log.mkdir(parents=True)
        (log / 'model-7.index').write_bytes(b'x')
    (folder / 'stub').mkdir()
    (folder / 'stub' / 'tensorflow.py').write_text('raise ImportError("TensorFlow was loaded")\n')
    (folder / 'loading').mkdir()
    (folder / 'loading' / 'tensorflow.py').write_text('import time\ntime.sleep(60)\n')
    return folder


def run(root, files, command, tensorflow='stub'):
    environment = dict(os.environ, PYTHONPATH=str(files / tensorflow))
    begin = processor_seconds()
    done = subprocess.run(command, cwd=str(files), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
    return done, processor_seconds() - begin


def processor_seconds():
    """Return what the processes took that ran here and ended, on a machine that others may use, too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    ('--eval --load good.npz --data data --save-adversarial full', 'full is not empty: choose another folder'),
    ('--eval --load good.npz --data data --journal other.journal', 'another evaluation: .*seed is 1 there and 0 here'),
    ('--eval --load good.npz --data data --journal one.txt', 'one.txt is no journal'),
    ('--eval --load good.npz --data data --attacker nowhere:Attacker', 'there is no module nowhere in the current'),
    ('--eval --load good.npz --data data --attacker attacks.nowhere:Attacker', 'there is no module attacks.nowhere'),
    ('--eval --load good.npz --data data --attacker attacks.mine:Mine', 'there is no Mine in .*attacks/mine.py'),
    ('--eval --load good.npz --data data --attacker broken:Attacker', r'module can.t be read .*\(broken.py, line'),
    ('--eval --load good.npz --data data --attacker attacks.mine', 'module:Class is expected'),
    ('--eval --load good.npz --data data --attacker pgd,apgd --subset twice.txt',
     'twice.txt, line 2: .* is there twice'),
    ('--eval-directory nowhere --load good.npz', 'there is no folder nowhere'),
    ('--eval-directory empty --load good.npz', 'there is no image in empty'),
    ('--eval-directory data --load nowhere.npz', 'no checkpoint nowhere.npz'),
    ('--eval-directory data --load good.npz --labels nowhere.csv', 'cannot read nowhere.csv'),
    ('--eval-directory data --load good.npz --labels manifest.csv', 'manifest.csv is no manifest'),
    ('--eval-directory data --load good.npz --labels elsewhere.csv', 'lists 1 images, and none of those in data'),
    ('--eval-directory data --load ten.npz --labels eleven.csv',
     'gives .*/data/val/.*jpg the label 10, and the network.s classes are 0 to 9: its labels begin at 1, so take 1'),
    ('--eval-directory data --load good.npz --prediction-file nowhere/x', 'there is no folder .*nowhere'),
    ('--eval-directory data --load good.npz --arch NoSuch', 'no architecture .NoSuch.'),
    ('--data nowhere', 'there is no folder nowhere'),
    ('--data evalonly', 'there is no folder evalonly/train'),
    ('--data data --classes nowhere.txt', 'cannot read nowhere.txt'),
    ('--data data --load nowhere.npz', 'no checkpoint nowhere.npz'),
    ('--data data --resume nowhere', '--resume: there is no checkpoint in nowhere'),
    ('--data data --resume empty', '--resume: there is no checkpoint in empty'),
    ('--fake', 'train_log/PGD-ResNet50-Batch32-1GPUs-.* holds an earlier training'),
    ('--fake --overwrite --load train_log/PGD-ResNet50-Batch32-1GPUs-iter30-epsilon16.0-step1.0/model-7',
     '--overwrite would delete '),
    ('--fake --arch NoSuch', 'no architecture .NoSuch.'),
    ('--fake --load nowhere', 'no checkpoint nowhere'),
    ('--fake --method free --replays 4 --attack-iter 2', '--method free attacks by one step in each of its --replays'),
    ('--fake --method fast --attack-iter 7', '--method fast attacks by one step, not by --attack-iter 7'),
    ('--fake --beta 6', '--beta goes with --method trades, not with --method pgd'),
    ('--fake --ema 1', '--ema: .1. is not a number between 0 and 1'),
    ('--data data --training-eval none --keep-best eval-clean/error-top1', '--keep-best needs evaluations between'),
    ('--data data --keep-best eval-ema-clean/error-top1', 'doesn.t evaluate that; it does eval-10step/error-top1'),
]


@once
@pytest.mark.parametrize('flags, said', CASES)
def test_without_tensorflow(root, files, flags, said):
    done, seconds = run(root, files, [sys.executable, os.path.join(root, 'main.py')] + flags.split())
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and not done.stdout, done.stderr
    assert re.match('main.py: error: .*' + said, done.stderr), done.stderr
    assert seconds < 5, seconds  # a second on most machines


@pytest.mark.parametrize('flags, said', [CASES[0], CASES[3], CASES[-4],
                                         ('--data nowhere', 'there is no folder nowhere')])
def test_every_rank(root, files, flags, said):
    done, seconds = run(root, files, mpirun(3, [os.path.join(root, 'main.py')] + flags.split()))
    errors = re.findall('main.py: error: .*', done.stderr)
    assert done.returncode == 2 and len(set(errors)) == 1 and re.search(said, errors[0]), done.stderr
    assert 'TensorFlow' not in done.stderr and seconds < 10, seconds


def test_what_the_chief_alone_sees_ends_all(root, files):
    done, seconds = run(root, files, mpirun(3, [os.path.join(root, 'main.py'), '--fake']), tensorflow='loading')
    errors = re.findall('main.py: error: .*', done.stderr)
    assert done.returncode == 2 and len(errors) == 1 and re.search('-3GPUs-.* holds an earlier', errors[0]), done.stderr
    assert seconds < 10, seconds


@pytest.mark.parametrize('flags, path, said', [
    ('--eval --load good.npz --data data --journal used.journal', 'used.journal', 'used.journal is in use by another'),
    ('--fake --logdir used', 'train_log/PGD-ResNet50-Batch32-1GPUs-iter30-epsilon16.0-step1.0-used/.lock',
     'in use by another training, process 7 on there: ')])
def test_what_another_job_has_in_use(root, files, flags, path, said):
    place = files / path
    place.parent.mkdir(exist_ok=True)
    with open(str(place), 'w+') as f:
        take_lock(f.fileno())
        f.write('process 7 on there\n')
        f.flush()
        test_without_tensorflow(root, files, flags, said)


@pytest.mark.parametrize('source', ['class Mine(tensorflow.Any):\n    pass', 'Mine = Yours = 1',
                                    'from attacks.mine import Attacker as Mine', 'from attacks.mine import *',
                                    'globals()["Mi" + "ne"] = 1'])
def test_attackers_that_may_be_there_are_not_refused(files, monkeypatch, source):
    monkeypatch.chdir(str(files))
    (files / 'attacks' / 'other.py').write_text('import tensorflow\n%s\n' % source)
    check_code('the attacker', 'attacks.other:Mine', 'module:Class', 'm:C')


def test_what_a_journal_was_begun_with_is_continued(files, tmp_path):
    path = str(tmp_path / 'j')
    assert not check_usable(path) and not os.path.exists(path)
    whole = line_of(dict(format=FORMAT, facts=dict(seed=1, versions='any'), images=[]))
    for content, begun in ((b'', False), (whole[:5], False), (whole[:-5], False), (whole, True), (whole + b'x', True)):
        with open(path, 'wb') as f:
            f.write(content)
        assert check_usable(path, lambda: dict(seed=1)) == begun


@pytest.mark.parametrize('flags, said', [
    ('--eval --load x --data y --logdir a --fake --prediction-file p', '--fake, --logdir, --prediction-file have '),
    ('--eval --load x --data y --max-epoch 110', '--max-epoch has no effect on --eval'),  # its default
    ('--eval --load x --data y --seed 0 --attack-iter 0,3 --xla --classes c', None),
    ('--eval-directory d --load x --seed 1 --attack-eps 2', '--attack-epsilon, --seed have no effect on --eval-direct'),
    ('--eval-directory d --load x --prediction-file p --batch 3', None),
    ('--data d --seed 0', '--seed has no effect on a training'), ('--data d --resume --logdir a --no-zmq-ops', None)])
def test_flags_of_another_job_are_named(caplog, flags, said):
    parse_options(flags.split())
    assert [record.getMessage().startswith(said) for record in caplog.records] == ([True] if said else [])


@pytest.mark.parametrize('flags, said', [
    ('--seed abc', "--seed: 'abc' is not a whole number from 0 to 2"), ('--batch 1.5', "'1.5' is not a whole "),
    ('--attack-iter 1,x', "'x' is not a whole number .*; several have commas between them"),
    ('--attack-epsilon x', "'x' is not a positive number"), ('--base-lr -1', "'-1' is not a positive number")])
def test_numbers_that_are_none(flags, said):
    with pytest.raises(InputError, match=said):
        parse_options(['--fake'] + flags.split())


def test_right_input_loads_tensorflow(root, files):
    """So that the test above tests something."""
    done, _ = run(root, files, [sys.executable, os.path.join(root, 'main.py'), '--eval', '--load', 'good.npz', '--data',
                                'data'])
    assert done.returncode == 1 and 'TensorFlow was loaded' in done.stderr
