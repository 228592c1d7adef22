"""What ends a training: ranks that die or differ, a loss that is not a number, a full disk. Always soon, with words."""
import os
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from jobs import FAKE, Job
from lanes import once
from photos import write_split

from tools.mpi import mpirun

pytestmark = pytest.mark.slow

NAME = 'PGD-ResNet14-Batch4-%dGPUs-iter0-epsilon16.0-step1.0'
ENDLESS = FAKE + ['--steps-per-epoch', '10000', '--max-epoch', '2', '--save-every-steps', '2']


@once
def test_a_rank_that_is_killed_ends_the_job(root, tmp_path):
    job = Job(root, tmp_path, 3, *ENDLESS)
    job.wait_for('model-2.')
    begin = time.time()
    ranks = job.ranks()
    assert len(ranks) == 3
    ranks[2].kill()
    text = job.end(status=None, timeout=30)
    assert job.process.returncode not in (0, None) and time.time() - begin < 30
    assert 'process rank 2' in text and 'signal 9 (Killed)' in text
    # mpirun may be gone before the kernel has taken the last of them apart
    assert psutil.wait_procs(ranks, timeout=max(0, begin + 30 - time.time()))[1] == []


@once
def test_sigterm_at_mpirun(root, tmp_path):
    """With this option it hands it on after so many seconds, and gives its ranks as many again to save a checkpoint."""
    from training.log_directory import newest_complete, saved_checkpoints
    log = str(tmp_path / 'train_log' / (NAME % 2))
    job = Job(root, tmp_path, 2, *(ENDLESS[:-1] + ['1000000']), launcher=['--mca', 'odls_base_sigkill_timeout', '12'])
    job.wait_for('Start Epoch 1')
    time.sleep(2)
    assert saved_checkpoints(log) == []
    job.process.send_signal(signal.SIGTERM)
    text = job.end(status=1, timeout=60)
    assert 'this training will end with a checkpoint' in text
    assert saved_checkpoints(log) == [newest_complete(log)]


def refused(folder, first, second):
    """The output of two ranks, each a list [main.py, flags ...], which must not start."""
    command = mpirun(1, first) + [':'] + mpirun(1, second)[-3 - len(second):]
    done = subprocess.run(command, cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, timeout=120)
    assert done.returncode == 2 and 'Traceback' not in done.stdout, done.stdout[-3000:]
    assert not os.path.exists(str(folder / 'train_log'))
    return done.stdout


@once
def test_ranks_with_other_flags_or_code_are_refused(root, tmp_path):
    from runtime.fingerprint import code_files
    other = tmp_path / 'other'
    for path in code_files(root) + [os.path.join(root, 'third_party', 'ilsvrc2012_synsets.txt')]:
        target = other / os.path.relpath(path, root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, str(target))
    with open(str(other / 'nets.py'), 'a') as f:
        f.write('# changed\n')
    main, flags = os.path.join(root, 'main.py'), ENDLESS + ['--attack-iter', '1', '--attack-step-size', '1']
    said = refused(tmp_path, [main] + flags, [main] + flags[:-1] + ['2'])
    assert 'started alike: --attack-step-size of rank 1 is not that of rank 0. Start' in said
    assert 'code of rank 1 is not that of rank 0' in refused(tmp_path, [main] + flags, [str(other / 'main.py')] + flags)


@once
def test_ranks_with_another_checkpoint_or_other_data_are_refused(root, tmp_path, weights_file):
    """Under other names they may be, as on another machine's disk."""
    main = os.path.join(root, 'main.py')
    for name, photos in ('one', 12), ('two', 13):
        write_split(tmp_path / name / 'train', 10)
        write_split(tmp_path / name / 'val', photos)

    def flags(data, seed):
        return [main, '--data', str(tmp_path / data), '--load', weights_file(seed=seed), '--image-size', '32',
                '-d', '14', '--batch', '4', '--attack-iter', '0', '--data-timeout', '1']
    said = refused(tmp_path, flags('one', 0), flags('one', 1))
    assert 'checkpoint of rank 1 is not that of rank 0' in said and 'data of rank' not in said
    said = refused(tmp_path, flags('one', 0), flags('two', 0))
    assert 'data of rank 1 is not that of rank 0' in said and 'checkpoint of rank' not in said


def test_a_loss_that_is_not_a_number(root, tmp_path):
    job = Job(root, tmp_path, 2, *FAKE, '--steps-per-epoch', '10', '--max-epoch', '2', '--base-lr', '1e32',
              '--save-every-steps', '1')
    text = job.end(status=1)
    lines = [line for line in text.splitlines() if 'main.py: failed: ' in line]
    assert len(lines) == 1 and 'rank 0 on ' in lines[0] and 'lower --base-lr' in lines[0], text[-3000:]
    # nothing was saved that a training could not go on from
    from training.log_directory import damage, saved_checkpoints
    assert all(damage(path) is None for path in saved_checkpoints(str(tmp_path / 'train_log' / (NAME % 2))))


@once
def test_a_full_disk(root, tmp_path):
    """A checkpoint takes 80 MB here; there is space for one, and the second fails whole."""
    disk = tmp_path / 'train_log'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=120m', 'tmpfs', str(disk)], stderr=subprocess.PIPE)
    if mounted.returncode:
        pytest.skip('a small disk can be mounted by root alone')
    try:
        text = Job(root, tmp_path, None, *ENDLESS).end(status=1)
        from training.log_directory import newest_complete, saved_checkpoints
        log = str(disk / (NAME % 1))
        assert 'main.py: failed: cannot write to train_log' in text and 'No space left' in text, text[-3000:]
        assert saved_checkpoints(log) == [log + '/model-2'] == [newest_complete(log)]
        assert not [name for name in os.listdir(log) if 'model-4' in name]
    finally:
        subprocess.run(['umount', '-l', str(disk)], check=True)


@once
def test_killed_at_random_times_no_checkpoint_is_lost(root, tmp_path):
    """A few of the rounds of tests/stress_resume.py."""
    from stress_resume import rounds
    rounds(root, tmp_path, 3, random.Random(0))
