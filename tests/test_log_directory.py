"""One training at a time in a log directory: the second says who the first is, and touches nothing."""
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from jobs import FAKE, Job, statistics
from lanes import once

NAME = 'PGD-ResNet14-Batch4-1GPUs-iter0-epsilon16.0-step1.0'
ENDLESS = FAKE + ['--steps-per-epoch', '10000', '--save-every-steps', '2', '--max-epoch', '2']
SHORT = FAKE + ['--steps-per-epoch', '2', '--max-epoch', '1']

# Says of every flock what the environment says; so it is on some Lustre and NFS mounts
NO_FLOCK = '''
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
'''
LOCK_WITHOUT_LOCKS = '''
import errno, os, sys
from runtime.command_line import run_command
from training.log_directory import lock

def command():
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO):
        os.environ['FLOCK_ERRNO'] = str(number)
        try:
            lock(sys.argv[1])
        except OSError as e:
            print('raised', e.errno == errno.EIO)
    return 0

run_command('prog.py', command)
'''


@once
def test_the_second_training_ends_and_says_who_the_first_is(root, python, tmp_path):
    log = tmp_path / 'train_log' / NAME
    first = Job(root, tmp_path, None, *ENDLESS)
    try:
        first.wait_for('Start Epoch 1')
        first.wait_for('model-2.')
        (log / 'kept').write_text('')
        first.process.send_signal(signal.SIGSTOP)  # it would take the cores; the directory is still its own
        who = 'in use by another training, process %d on %s: ' % (first.process.pid, socket.gethostname())
        for flags in (['--base-lr', '0.2'], ['--overwrite'], ['--resume'], ['--resume', str(log)],
                      ['--resume', os.path.join('train_log', '.', NAME)]):
            second = python(os.path.join(root, 'main.py'), *SHORT, *flags, cwd=tmp_path, timeout=60)
            errors = re.findall('main.py: error: .*', second.stderr)
            assert second.returncode == 2 and len(errors) == 1 and who in errors[0], second.stderr
            assert 'Start Epoch' not in second.stdout + second.stderr and (log / 'kept').exists()
        assert first.process.poll() is None and 'main.py: ' not in first.text, first.text
    finally:
        first.process.send_signal(signal.SIGKILL)  # so its lock file stays
        first.end(status=None)
    assert (log / '.lock').exists()
    deleted = python(os.path.join(root, 'main.py'), *SHORT, '--overwrite', cwd=tmp_path)
    assert deleted.returncode == 0 and not (log / 'kept').exists(), deleted.stderr
    assert [r['global_step'] for r in statistics(log)] == [2]


@once
@pytest.mark.slow
def test_two_that_start_at_once(root, tmp_path):
    """Whoever is first, one of them trains to its end and the other one ends."""
    for flags in ([], ['--resume']):
        jobs = [Job(root, tmp_path, None, *SHORT, '--base-lr', rate, *flags, '--logdir', 'x%d' % len(flags))
                for rate in ('0.1', '0.2')]
        texts = [job.end(status=None) for job in jobs]
        assert sorted(job.process.returncode for job in jobs) == [0, 2], texts
        refused = texts[[job.process.returncode for job in jobs].index(2)]
        assert len(re.findall(r'main.py: error: .* in use by another training, process \d+ on \S+: ', refused)) == 1


@pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')
def test_where_there_are_no_locks(root, tmp_path):
    library = str(tmp_path / 'noflock.so')
    (tmp_path / 'noflock.c').write_text(NO_FLOCK)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, str(tmp_path / 'noflock.c')], check=True)
    done = subprocess.run([sys.executable, '-c', LOCK_WITHOUT_LOCKS, str(tmp_path)], cwd=root,
                          env=dict(os.environ, LD_PRELOAD=library, PYTHONPATH=root), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert done.returncode == 0 and done.stdout == 'raised True\n', done.stderr
    warnings = re.findall('prog.py: warning: the file system of .* has no locks .*no other training', done.stderr)
    assert len(warnings) == 3, done.stderr
