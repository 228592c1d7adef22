"""Small and odd set-ups of a training: three ranks, an empty class, micro-batches, another number of classes."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from jobs import FAKE, SMALL, Job, statistics
from lanes import once
from photos import write_split

from tools.mpi import read_figures

NAME = 'PGD-ResNet14-Batch4-%dGPUs-iter%d-epsilon16.0-step1.0'


@pytest.mark.parametrize('flags, said', [
    ('--resume --overwrite', 'not allowed with'), ('--reset-head', '--load'), ('--accumulate 0', '--accumulate'),
    ('--save-every-steps x', '--save-every-steps'), ('--resume --eval --load x --data y', 'training')])
def test_wrong_flags(flags, said):
    from main import parse_options
    from runtime.errors import InputError
    with pytest.raises(InputError, match=said):
        parse_options(['--fake'] + flags.split())


def test_a_head_for_other_classes(weights_of):
    from fitting import without_head
    from nets import Network
    from runtime.errors import InputError
    weights = weights_of(classes=10)
    kept = without_head(weights, 'x.npz', Network('ResNet', 14, 3))
    assert set(weights) - set(kept) == {'linear/W', 'linear/b'}
    with pytest.raises(InputError, match='ResNetDenoise'):
        without_head(weights, 'x.npz', Network('ResNetDenoise', 14, 3))


@pytest.mark.slow
def test_micro_batches_are_one_step(root, tmp_path, weights_file):
    """Two of constant images make the steps that one makes, also where the training was resumed: same weights."""
    from checkpoint import read_checkpoint
    weights = weights_file(classes=1000)
    flags = FAKE + ['--load', weights, '--max-epoch', '2', '--steps-per-epoch', '2']
    Job(root, tmp_path, None, *flags, '--base-lr', '0.2', '--logdir', 'one').end()
    text = Job(root, tmp_path, None, *flags, '--base-lr', '0.1', '--accumulate', '2', '--logdir', 'two').end()
    assert '1 ranks, total batch 8, 2 steps an epoch, peak learning rate 0.003125' in text
    # a training without an attack knows nothing of an attack's success
    assert re.search(r'step 2/2: .*, error \d\S+, success n/a; epoch ends', text)
    logs = [tmp_path / 'train_log' / (NAME % (1, 0) + suffix) for suffix in ('-one', '-two')]
    assert not any('attack-success-rate' in record for record in statistics(logs[1]))
    assert 'train-error-top1' in statistics(logs[1])[-1]
    shutil.copytree(str(logs[1]), str(tmp_path / 'cut'))
    for name in os.listdir(str(tmp_path / 'cut')):
        if name.startswith('model-4.'):
            os.unlink(str(tmp_path / 'cut' / name))
    resumed = Job(root, tmp_path, None, *flags, '--base-lr', '0.1', '--accumulate', '2', '--resume', 'cut')
    assert 'Start Epoch 2' in resumed.end() and 'Start Epoch 1' not in resumed.text
    assert 'that of these flags would be train_log/%s\n' % (NAME % (1, 0)) in resumed.text
    first = np.load(weights)
    one, two, again = [read_checkpoint(str(log / 'model-4')) for log in logs + [tmp_path / 'cut']]
    moved = {name: np.linalg.norm(one[name] - first[name]) for name in one}
    # BatchNorm's averages are updated by each micro-batch; and behind constant images some weights have no gradient
    compared = [name for name in one if not name.endswith('/EMA') and moved[name] > 1e-6]
    assert len(compared) > 15 and 'linear/W' in compared and 'conv0/W' in compared
    for name in compared:
        for other in (two, again):
            assert np.linalg.norm(other[name] - one[name]) < 0.02 * moved[name], name


@once
@pytest.mark.slow
def test_three_ranks_an_empty_class_and_a_partial_epoch(root, tmp_path, weights_file, python):
    """41 images in 3 batches of 4 a step, in float16; one of 10 classes is empty, the weights are of another 1000."""
    data = tmp_path / 'data'
    write_split(data / 'train', 41)
    write_split(data / 'val', 9, classes=9, seed=1)
    for photo in (data / 'train' / 'c7').iterdir():
        photo.unlink()
    endpoint = 'ipc://%s' % (tmp_path / 'socket')
    server = subprocess.Popen(
        [sys.executable, os.path.join(root, 'third_party', 'serve-data.py'), '--data', str(data), '--batch', '4',
         '--image-size', '32', '--workers', '1', '--endpoint', endpoint], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL)
    try:
        job = Job(root, tmp_path, 3, *SMALL, '--data', str(data), '--endpoint', endpoint, '--attack-iter', '1',
                  '--use-fp16xla', '--load', weights_file(classes=1000), '--reset-head', '--max-epoch', '2',
                  '--training-eval', 'clean')
        text = job.end()
    finally:
        server.terminate()
        server.wait(10)
    assert '10 classes, 37 training images, 3 ranks, total batch 12, 3 steps an epoch, ' \
        'peak learning rate 0.0046875' in text
    line = re.findall(r'epoch 2/2, step 3/3: (\S+) images/s, attack (\d+)%, waiting for data (\d+)%, loss (\S+), '
                      r'error (\S+), success (\S+); epoch ends in 0 seconds, training in ', text)
    assert line and 0 < int(line[-1][1]) <= 100
    log = tmp_path / 'train_log' / (NAME % (3, 1))
    last = statistics(log)[-1]
    assert last['global_step'] == 6
    for name in ('learning_rate', 'smoothed-loss', 'cost', 'train-error-top1', 'attack-success-rate', 'attack-share',
                 'input-wait', 'Throughput (samples/sec)', 'eval-clean/error-top1', 'eval-clean/error-top5'):
        assert np.isfinite(last[name]), name
    images, tags = adversarial_images(log)
    assert {'smoothed-loss', 'learning_rate', 'eval-clean/error-top1'} <= tags
    clean, attacked = images[..., :32, :].astype(int), images[..., 32:, :].astype(int)
    assert images.shape == (32, 64, 3) and 0 < np.abs(clean - attacked).max() <= 17

    assert text.count('evaluations prepare their images as --preprocess validation\n') == 1

    # the command at the end repeats the last evaluation, of the checkpoint and in float32
    assert 'Last evaluation, after epoch 2:' in text
    command = text.split('To repeat it: python main.py ')[1].split('\n')[0].split()
    again = python(os.path.join(root, 'main.py'), *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read_figures(again.stdout)['Top1 Error'] == pytest.approx(last['eval-clean/error-top1'], abs=1.01 / 9)

    # a training that was killed before its evaluation was through makes up for it
    records = statistics(log)
    for name in [name for name in records[-1] if name.startswith('eval-')]:
        del records[-1][name]
    (log / 'stats.json').write_text(json.dumps(records))
    text = Job(root, tmp_path, None, *SMALL, '--data', str(data), '--endpoint', endpoint, '--attack-iter', '1',
               '--max-epoch', '2', '--training-eval', 'clean', '--resume').end()
    made_up = statistics(log)[-1]
    assert 'Start Epoch' not in text and made_up['epoch_num'] == 2
    assert made_up['eval-clean/error-top1'] == pytest.approx(last['eval-clean/error-top1'], abs=1.01 / 9)


def adversarial_images(log):
    """The first of the images that TensorBoard shows, RGB, and the tags of all summaries."""
    from runtime.compat import tf
    images, tags = [], set()
    for path in glob.glob(str(log / 'events*')):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                tags.add(value.tag.replace('-summary', ''))
                if value.tag.startswith('clean-and-adversarial'):
                    encoded = np.frombuffer(value.image.encoded_image_string, np.uint8)
                    images.append(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return images[0][:, :, ::-1], tags
