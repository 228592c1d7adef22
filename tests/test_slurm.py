"""slurm/train.sh and eval.sh under a real slurm of two nodes: the job is told to stop, queued again, and ends. And
what srun starts."""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest
import slurm_cluster
from jobs import statistics
from lanes import once
from photos import write_split

from tools.mpi import read_figures

pytestmark = [once, pytest.mark.slow]


@pytest.fixture(scope='module')
def cluster():
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)
    folder = tempfile.mkdtemp(prefix='slurm')  # sockets below it have short paths
    running = slurm_cluster.Cluster(folder)
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(root, tmp_path):
    """Links to what the jobs need, in a folder that they may write to."""
    for name in os.listdir(root):
        if name.endswith('.py') or name in ('third_party', 'slurm'):
            (tmp_path / name).symlink_to(os.path.join(root, name))
    return tmp_path


def wait_until(condition, timeout, explain):
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, explain()
        time.sleep(1)


def test_slurm_tells_before_the_time_is_up(cluster, root, tmp_path):
    """What train.sh asks slurm for, as slurm reads it, in a job that does nothing else."""
    with open(os.path.join(root, 'slurm', 'train.sh')) as f:
        asked = [line for line in f if line.startswith('#SBATCH')]
    (tmp_path / 'job.sh').write_text('#!/bin/bash\n%strap "echo told; kill %%1; exit" USR1\nsleep 600 &\nwait\n'
                                     % ''.join(asked))
    job = cluster.run('sbatch', '--parsable', '-N1', '--time=3', 'job.sh', cwd=str(tmp_path)).strip()
    log = tmp_path / ('slurm-%s.log' % job)
    # it asks for the last 3 minutes, which begin at once, and slurm looks twice a minute
    wait_until(lambda: log.exists() and 'told' in log.read_text(), 180,
               lambda: '%s %s' % (cluster.state(job), cluster.logs()))


def test_a_training_that_is_told_to_stop_is_queued_again_and_ends(cluster, checkout):
    data = checkout / 'data'
    write_split(data / 'train', 40)
    write_split(data / 'val', 9, classes=9, seed=1)
    environment = dict(PYTHON_ENVIRONMENT=sys.prefix, GPUS_PER_NODE='1', SERVER_OPTIONS='--workers 1',
                       OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1',
                       MPI_OPTIONS='--mca btl_tcp_if_include lo', SCRATCH='/dev/null')  # the site's own
    small = ['--data', 'data', '--batch', '4', '--image-size', '32', '-d', '14', '--attack-iter', '0']
    steps, epochs = 60, 2

    def submit(script, *flags):
        return cluster.run('sbatch', '--parsable', '-N2', *flags[0], os.path.join('slurm', script), *small, *flags[1:],
                           cwd=str(checkout), env=environment).strip()

    job = submit('train.sh', ['--time=30'], '--overwrite', '--steps-per-epoch', str(steps), '--max-epoch', str(epochs),
                 '--training-eval', 'clean')

    def log_of_job():
        try:
            with open(str(checkout / ('slurm-%s.log' % job))) as f:
                return f.read()
        except FileNotFoundError:
            return ''

    def explain(job=job):
        text = '%s %s' % (cluster.state(job), cluster.logs())
        of_the_job = glob.glob(str(checkout / ('slurm-%s' % job) / '*' / '*.log'))
        for path in glob.glob(str(checkout / 'slurm-*.log')) + of_the_job:
            with open(path, errors='replace') as f:
                text += '\n== %s\n%s' % (path, f.read()[-3000:])
        return text

    def restarted():
        state, restarts = cluster.state(job)
        assert state in ('PENDING', 'RUNNING', 'COMPLETING', 'REQUEUED') or restarts, explain()
        return restarts == 1

    wait_until(lambda: 'Start Epoch 1 ...' in log_of_job(), 240, explain)
    # What slurm sends some minutes before the time limit, as the script asks it to; here at the training's start.
    cluster.run('scancel', '--batch', '--signal=USR1', job)
    wait_until(restarted, 240, explain)

    asked = [0.]

    def ended():
        """slurm starts a job again two minutes after the last of its processes ended: asked to, after 10 seconds.

        Not at once: a node refuses what slurm signed before, or in the same second as, the order to end the job's
        processes.
        """
        state = cluster.state(job)[0]
        if state == 'PENDING' and time.time() > asked[0] + 20:
            asked[0] = time.time()
            cluster.run('scontrol', 'update', 'JobId=' + job, 'StartTime=now+10', check=False)
        return state not in ('PENDING', 'RUNNING', 'COMPLETING', 'REQUEUED')

    wait_until(ended, 400, explain)
    assert cluster.state(job)[0] == 'COMPLETED', explain()
    text = log_of_job()
    for words in ('stopped by a signal', 'queued again', 'resuming from'):
        assert words in text, explain()
    assert text.count('Start Epoch 1 ...') in (1, 2) and '2 ranks, total batch 8' in text
    logs = checkout / ('slurm-' + job)
    for restart in ('0', '1'):
        names = {os.path.relpath(path, str(logs / restart))
                 for path in glob.glob(str(logs / restart / '*' / 'rank.*' / 'stdout'))}
        assert {name.split(os.sep)[1] for name in names} == {'rank.0', 'rank.1'}
        served = [open(path).read() for path in glob.glob(str(logs / restart / 'server-*.log'))]
        assert len(served) == 2 and all('serving 40 images' in words for words in served)
    log = checkout / 'train_log' / 'PGD-ResNet14-Batch4-2GPUs-iter0-epsilon16.0-step1.0'
    records = statistics(log)
    assert records[-1]['global_step'] == steps * epochs and (log / ('model-%d.index' % (steps * epochs))).exists()
    every = [r['global_step'] for r in records]
    assert every == sorted(set(every)) and [r['epoch_num'] for r in records if 'eval-clean/error-top1' in r] == [1, 2]

    job = submit('eval.sh', ['--time=10'], '--load', str(log / ('model-%d' % (steps * epochs))))
    wait_until(lambda: cluster.state(job)[0] not in ('PENDING', 'RUNNING', 'COMPLETING'), 240, lambda: explain(job))
    figures = read_figures(log_of_job())
    assert figures['Top1 Error'] == pytest.approx(records[-1]['eval-clean/error-top1'], abs=1.01 / 9), explain(job)


def test_what_srun_starts_is_one_process_or_refused(cluster, root, tmp_path, weights_file):
    """srun connects no Open MPI ranks without PMIx: several tasks would each be a whole evaluation."""
    write_split(tmp_path / 'data' / 'val', 12)
    command = [sys.executable, os.path.join(root, 'main.py'), '--eval', '--load', weights_file(), '-d', '14', '--data',
               'data', '--image-size', '32', '--attack-iter', '0', '--results', 'results.json']

    def start(*launcher):
        return subprocess.run(list(launcher) + command, cwd=str(tmp_path), env=cluster.environment, timeout=200,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)

    for mpi in ('none', 'pmi2'):
        done = start('srun', '--mpi=' + mpi, '-n2')
        errors = re.findall('main.py: error: .*', done.stderr)
        assert done.returncode == 2 and 1 <= len(errors) <= 2 and not done.stdout, done.stderr + cluster.logs()
        for error in errors:
            assert 'for srun this process is one of 2, for MPI one of 1' in error and 'mpirun -np 2 ' in error
    assert not (tmp_path / 'results.json').exists()
    for launcher in (['srun', '--mpi=none', '-n1'], ['srun', '--mpi=pmix', '-n1'],
                     ['salloc', '-n2', '-N1']):  # salloc's command is no task of srun
        done = start(*launcher)
        assert done.returncode == 0 and len(read_figures(done.stdout)) == 3, done.stderr + cluster.logs()
        (tmp_path / 'results.json').unlink()
