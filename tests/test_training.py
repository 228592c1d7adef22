"""Training as its users run it: a data server, mpirun, checkpoints that evaluate and load."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from runtime.compat import is_deterministic

import numpy as np
import pytest
from forked import run_main
from jobs import Job
from lanes import once
from photos import write_split

from tools.mpi import mpirun, read_figures

pytestmark = pytest.mark.slow

BATCH = 4
SMALL = ['-d', '14', '--image-size', '32']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """40 training and 9 validation photos in 10 and 9 classes."""
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'train', 40)
    write_split(folder / 'val', 9, classes=9, seed=1)
    return str(folder)


@pytest.fixture
def checkout(root, tmp_path):
    """A folder to train in: log directories go below the current one."""
    return tmp_path


@pytest.fixture
def server(root, data, tmp_path):
    """A data server with a socket of its own; gives the endpoint and the process."""
    endpoint = 'ipc://%s' % (tmp_path / 'socket')
    process = subprocess.Popen(
        [sys.executable, os.path.join(root, 'third_party', 'serve-data.py'), '--data', data, '--batch', str(BATCH),
         '--image-size', '32', '--workers', '1', '--endpoint', endpoint],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, universal_newlines=True)
    assert 'serving 40 images of 10 classes' in process.stdout.readline()
    yield endpoint, process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)


def train(root, where, ranks, *flags, status=0, timeout=400):
    arguments = ['--batch', str(BATCH)] + SMALL + list(flags)
    if ranks == 1:
        done = run_main(*arguments, cwd=where, timeout=timeout)
    else:
        command = mpirun(ranks, [os.path.join(root, 'main.py')] + arguments)
        done = subprocess.run(command, cwd=str(where), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=timeout)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def scalars(log):
    with open(os.path.join(str(log), 'stats.json')) as f:
        return json.load(f)


def test_adversarial_training_from_photos_to_a_checkpoint_that_evaluates(root, checkout, data, server, python):
    endpoint, process = server
    done = train(root, checkout, 2, '--endpoint', endpoint, '--data', data, '--attack-iter', '2',
                 '--max-epoch', '2', '--logdir', 'x')
    log = checkout / 'train_log' / 'PGD-ResNet14-Batch4-2GPUs-iter2-epsilon16.0-step1.0-x'
    assert '10 classes, 40 training images, 2 ranks, total batch 8, 5 steps an epoch' in done.stdout
    assert (log / 'model-5.index').exists() and (log / 'model-10.index').exists()
    # the last two epochs evaluate every strength, on all 9 images
    last = scalars(log)[-1]
    assert last['epoch_num'] == 2 and last['global_step'] == 10
    for prefix in ['eval-clean'] + ['eval-%dstep' % k for k in (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)]:
        error = last[prefix + '/error-top1'] * 9
        assert abs(error - round(error)) < 1e-5 and 0 <= error <= 9.00001

    # the checkpoint evaluates to what training reported
    for steps, prefix in [(0, 'eval-clean'), (20, 'eval-20step')]:
        evaluated = python(os.path.join(root, 'main.py'), '--eval', '--load', str(log / 'model-10'), '--data', data,
                           '--attack-iter', str(steps), *SMALL)
        assert evaluated.returncode == 0, evaluated.stderr
        assert abs(read_figures(evaluated.stdout)['Top1 Error'] - last[prefix + '/error-top1']) < 1.01 / 9

    # and the checkpoint can be trained on, here in the last of three epochs, with the schedule's rate for it
    flags = ['--no-zmq-ops', '--endpoint', endpoint, '--data', data, '--attack-iter', '0',
             '--load', str(log / 'model-10'), '--starting-epoch', '3', '--max-epoch', '3',
             '--training-eval', 'none', '--steps-per-epoch', '2', '--base-lr', '0.64']
    more = train(root, checkout, 1, *flags)
    log = checkout / 'train_log' / 'PGD-ResNet14-Batch4-1GPUs-iter0-epsilon16.0-step1.0'
    rate = scalars(log)[-1]['learning_rate']
    assert re.search('Epoch 3 .*finished', more.stdout) and abs(rate - 0.64 * 4 / 256 * 0.01) < 1e-9
    assert process.poll() is None

    # a second training neither mixes with it nor deletes it
    kept = [(path.name, path.stat().st_mtime) for path in sorted(log.glob('[!.]*'))]  # all but the lock
    again = train(root, checkout, 1, *flags, status=2)
    assert 'holds an earlier training: continue it with --resume' in again.stderr
    assert [(path.name, path.stat().st_mtime) for path in sorted(log.glob('[!.]*'))] == kept


@once
def test_stopped_while_an_epoch_is_evaluated(root, checkout, data, server):
    """Nothing is lost of the epoch, and the training that goes on makes up for the evaluation."""
    flags = SMALL + ['--batch', str(BATCH), '--endpoint', server[0], '--data', data, '--attack-iter', '0',
                     '--max-epoch', '2', '--resume']
    log = checkout / 'train_log' / 'PGD-ResNet14-Batch4-1GPUs-iter0-epsilon16.0-step1.0'
    for epoch in (1, 2):
        job = Job(root, checkout, None, *flags)
        job.wait_for('Epoch %d (global_step %d) finished' % (epoch, 10 * epoch))
        job.process.send_signal(signal.SIGTERM)
        assert 'goes on from train_log/%s/model-%d' % (log.name, 10 * epoch) in job.end()
        last = scalars(log)[-1]
        assert last['global_step'] == 10 * epoch and 'learning_rate' in last and 'eval-clean/error-top1' not in last
    Job(root, checkout, None, *flags).end()
    records = scalars(log)
    assert [r['global_step'] for r in records] == [10, 20] and [r['epoch_num'] for r in records] == [1, 2]
    for r in records:
        assert {'learning_rate', 'train-error-top1', 'eval-clean/error-top1', 'eval-100step/error-top1'} <= set(r)


def test_where_the_environment_asks_for_determinism(root, checkout, python, monkeypatch):
    """TensorFlow 2 refuses the clock then."""
    asked = {'TF_DETERMINISTIC_OPS': '1'}
    done = python(os.path.join(root, 'main.py'), '--fake', '--attack-iter', '1', '--steps-per-epoch', '1',
                  '--max-epoch', '1', '--batch', '2', *SMALL, cwd=checkout, env=asked)
    monkeypatch.setitem(os.environ, *asked.popitem())
    if is_deterministic():
        assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
        assert 'TF_DETERMINISTIC_OPS is set' in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_fake_data_needs_no_server(root, checkout):
    done = train(root, checkout, 1, '--fake', '--attack-iter', '1', '--steps-per-epoch', '2', '--max-epoch', '1')
    assert '1000 classes' in done.stdout
    name = 'PGD-ResNet14-Batch4-1GPUs-iter1-epsilon16.0-step1.0'
    assert (checkout / 'train_log' / name / 'model-2.index').exists()
    from inference import load_classifier
    classifier = load_classifier(str(checkout / 'train_log' / name / 'model-2'), 'ResNet', 14, image_size=32)
    assert classifier.logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 1000)


def test_steps_of_imagenet(root, checkout):
    """1,281,167 images in batches of 32 on one rank are 40,036 steps; stopped at once."""
    job = Job(root, checkout, None, '--fake', '--attack-iter', '0', *SMALL)
    try:
        job.wait_for(' steps an epoch')
    finally:
        job.kill()
    line, = [line for line in job.text.splitlines() if ' steps an epoch' in line]
    assert '1000 classes, 1281167 training images' in line and '40036 steps an epoch' in line


@pytest.mark.parametrize('flags', [
    ['--arch', 'ResNetDenoise'], ['--arch', 'ResNeXtDenoiseAll'], ['--use-fp16xla']])
def test_every_kind_of_network_and_attack_trains(root, checkout, flags):
    done = train(root, checkout, 1, '--fake', '--attack-iter', '2', '--steps-per-epoch', '2', '--max-epoch', '1',
                 *flags)
    costs = re.findall(r' cost: (\S+)', done.stdout)
    assert costs and all(np.isfinite(float(c)) for c in costs)


RECEIVERS = pytest.mark.parametrize('receiver', [pytest.param([], id='native'),
                                                 pytest.param(['--no-zmq-ops'], marks=once, id='python')])


@pytest.mark.parametrize('ranks, receiver', [pytest.param(2, [], id='native'),
                                             pytest.param(1, ['--no-zmq-ops'], marks=once, id='python')])
def test_without_a_server_it_says_which_to_start(root, checkout, data, ranks, receiver):
    for _ in range(3 - ranks):  # once, or again: what it leaves behind is no earlier training
        done = train(root, checkout, ranks, '--endpoint', 'ipc://%s' % (checkout / 'none'), '--data', data,
                     '--attack-iter', '0', '--max-epoch', '1', '--data-timeout', '3', *receiver, status=2, timeout=120)
        assert 'serve-data.py --data DIR --batch 4 --image-size 32' in done.stderr and 'Traceback' not in done.stderr
        assert 'File "' not in done.stdout + done.stderr


@once
def test_a_server_that_dies_ends_the_training(root, checkout, data, server):
    endpoint, process = server
    command = mpirun(2, [os.path.join(root, 'main.py'), '--batch', str(BATCH)] + SMALL + [
        '--endpoint', endpoint, '--data', data, '--attack-iter', '0', '--steps-per-epoch', '100000', '--max-epoch', '1',
        '--data-timeout', '5', '--training-eval', 'none'])
    trainer = subprocess.Popen(command, cwd=str(checkout), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True)
    next(line for line in trainer.stdout if 'Start Epoch 1' in line)
    process.kill()
    stdout, stderr = trainer.communicate(timeout=240)
    assert trainer.returncode == 2 and 'serve-data.py --data DIR --batch 4' in stderr and 'Traceback' not in stderr


@once
def test_corrupt_validation_images_are_named_before_the_first_step(root, checkout, data):
    """All of them, when there is no server and no log directory yet."""
    shutil.copytree(data, str(checkout / 'data'))
    bad = [checkout / 'data' / 'val' / ('c%d' % k) / ('%03d.jpg' % k) for k in (3, 7)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    done = train(root, checkout, 2, '--endpoint', 'ipc://%s' % (checkout / 'none'), '--data', str(checkout / 'data'),
                 '--attack-iter', '0', '--training-eval', 'clean', '--max-epoch', '2', status=2, timeout=120)
    assert '2 of the 9 images would stop the evaluation' in done.stderr and 'Traceback' not in done.stderr
    assert all('%s is not a readable image' % path in done.stderr for path in bad)
    assert not os.path.exists(str(checkout / 'train_log'))


@RECEIVERS
def test_wrong_numbers_of_classes_between_server_and_training(root, checkout, data, server, tmp_path, receiver):
    endpoint, _ = server
    (tmp_path / 'other').mkdir()
    shutil.copytree(os.path.join(data, 'val'), str(tmp_path / 'other' / 'train'))
    shutil.rmtree(str(tmp_path / 'other' / 'train' / 'c8'))
    done = train(root, checkout, 1, '--endpoint', endpoint, '--data', str(tmp_path / 'other'), '--attack-iter', '0',
                 '--training-eval', 'none', '--max-epoch', '1', '--steps-per-epoch', '50', '--data-timeout', '3',
                 *receiver, status=2, timeout=120)
    assert 'classes' in done.stderr and 'Traceback' not in done.stderr


@once
@pytest.mark.parametrize('kind, problem', [
    ('another batch', 'uint8 (2, 32, 32, 3)'), ('no tensors', 'tensors in a message of 50 bytes')])
def test_messages_of_another_kind(root, checkout, data, tmp_path, kind, problem):
    endpoint = 'ipc://%s' % (tmp_path / 'socket')
    if kind == 'another batch':
        command = [os.path.join(root, 'third_party', 'serve-data.py'), '--fake', '--batch', '2', '--image-size', '32',
                   '--endpoint', endpoint]
    else:
        command = ['-c', 'import sys, zmq\ns = zmq.Context().socket(zmq.PUSH)\ns.bind(sys.argv[1])\n'
                         'while True: s.send(bytes([0x92] * 50))', endpoint]
    server = subprocess.Popen([sys.executable] + command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        done = train(root, checkout, 1, '--endpoint', endpoint, '--data', data, '--attack-iter', '0',
                     '--max-epoch', '1', '--training-eval', 'none', '--data-timeout', '3', status=2, timeout=120)
    finally:
        server.terminate()
        server.wait(10)
    assert 'only messages that do not fit' in done.stderr and problem in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('ranks, receiver, steps', [
    pytest.param(2, [], 40, id='native'), pytest.param(None, ['--no-zmq-ops'], 60, marks=once, id='python')])
def test_the_server_is_killed_and_started_again(root, checkout, data, server, ranks, receiver, steps):
    """The training waits meanwhile, and makes all of its steps: more in an epoch than it has received ahead."""
    endpoint, process = server
    job = Job(root, checkout, ranks, '--batch', str(BATCH), *SMALL, '--endpoint', endpoint, '--data', data,
              '--attack-iter', '0', '--steps-per-epoch', str(steps), '--max-epoch', '2', '--training-eval', 'none',
              '--data-timeout', '100', *receiver)
    job.wait_for('Start Epoch 2')
    process.kill()
    process.wait()
    time.sleep(2)
    assert job.process.poll() is None
    again = subprocess.Popen([sys.executable] + process.args[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        job.end()
    finally:
        again.terminate()
        again.wait(10)
    name = 'PGD-ResNet14-Batch4-%dGPUs-iter0-epsilon16.0-step1.0' % (ranks or 1)
    assert (checkout / 'train_log' / name / ('model-%d.index' % (2 * steps))).exists()
