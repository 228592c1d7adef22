"""Ranks that share a machine's cores leave them to each other while they wait."""
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from lanes import once

from runtime.cores import threads_of_rank
from runtime.hardware import has_gpu
from runtime.sharing import SHARE, gpu_names, of_machines, warn_of_shares
from tools.mpi import mpirun

# Open MPI says through MPI's tool interface what it goes by, wherever that was set.
SHOW = '''
import ctypes, os
from runtime import distributed
world = distributed.connect()
mpi = ctypes.CDLL('libmpi.so.40')
index, handle, count, yields = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_bool()
for status in (mpi.MPI_T_init_thread(0, ctypes.byref(count)),
               mpi.MPI_T_cvar_get_index(b'mpi_yield_when_idle', ctypes.byref(index)),
               mpi.MPI_T_cvar_handle_alloc(index, None, ctypes.byref(handle), ctypes.byref(count)),
               mpi.MPI_T_cvar_read(handle, ctypes.byref(yields))):
    assert status == 0
print('rank %d: yields %s, cycle %s ms' % (world.rank, yields.value, os.environ['HOROVOD_CYCLE_TIME']))
'''


@pytest.mark.slow
@pytest.mark.skipif(has_gpu() or len(os.sched_getaffinity(0)) < 2, reason='needs CPUs alone, and a core for each rank')
@pytest.mark.parametrize('options, cycle, said', [
    ([], {}, 'yields True, cycle 10 ms'),
    (['--mca', 'mpi_yield_when_idle', '0'], {'HOROVOD_CYCLE_TIME': '2'}, 'yields False, cycle 2 ms'),
], ids=['by itself', 'asked for'])
def test_how_ranks_wait_for_each_other(root, options, cycle, said):
    command = mpirun(2, ['-c', SHOW])
    command[1:1] = options
    inherited = {name: value for name, value in os.environ.items()
                 if name not in ('HOROVOD_CYCLE_TIME', 'OMPI_MCA_mpi_yield_when_idle')}
    done = subprocess.run(command, cwd=root, env=dict(inherited, PYTHONPATH=root, **cycle), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # mpirun may put what two ranks print at once into one line
    found = re.findall(r'rank \d: yields \w+, cycle \d+ ms', done.stdout)
    assert sorted(found) == ['rank 0: ' + said, 'rank 1: ' + said]


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 3])
def test_what_ranks_tell_each_other(root, tmp_path, count):
    """The chief's values, whole numbers of any size among them; rows of which a rank may have none; sums."""
    done = subprocess.run(mpirun(count, [os.path.join(root, 'tests', 'ranks.py'), str(tmp_path)]), cwd=root,
                          env=dict(os.environ, PYTHONPATH=root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert done.returncode == 0, done.stderr
    chief = {'number': 2 ** 60 + 1, 'text': 'é\udcff', 'list': [1.5, None, True]}
    rows = [[rank, rank] for rank in range(count) for _ in range(rank)]
    assert len(list(tmp_path.iterdir())) == count
    for rank in range(count):
        assert json.loads((tmp_path / str(rank)).read_text()) == [chief, None, rows, [count, sum(range(count))]]


@once
@pytest.mark.skipif(has_gpu() or len(os.sched_getaffinity(0)) < 2, reason='needs CPUs alone, and more than one core')
def test_ranks_that_leave_cores_unused_say_so_once(root):
    """Whatever binds them, and also a single one; ranks that are bound to all cores leave none."""
    program = 'from runtime.command_line import run_command\nfrom runtime.distributed import connect\n' \
        'run_command("prog.py", lambda: 0 * connect().size, chief_speaks=True)'
    cores = sorted(os.sched_getaffinity(0))
    for count, bound, times in ((2, cores[:1], 1), (2, cores, 0), (1, cores[:1], 1)):
        command = mpirun(count, ['-c', program])
        place = command.index(sys.executable)
        command[place:place] = ['taskset', '-c', ','.join(map(str, bound))]
        done = subprocess.run(command, cwd=root, env=dict(os.environ, PYTHONPATH=root), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
        assert done.returncode == 0, done.stderr
        words = 'prog.py: warning: ranks are bound to 1 of %d cores: start mpirun with --bind-to none' % len(cores)
        assert done.stderr.count(words) == times == done.stderr.count('prog.py: '), done.stderr


def share(machine, ranks, gpus, cores, all_cores, which=0):
    row = np.zeros((1, 1), SHARE)
    row['machine'], row['ranks'], row['which_gpus'], row['gpus'] = machine, ranks, which, gpus
    row['all_cores'] = all_cores
    bits = np.zeros(row['cores'].shape[-1] * 8, np.uint8)
    bits[list(cores)] = 1
    row['cores'] = np.packbits(bits)
    return row


@pytest.mark.parametrize('shares, machines', [
    # each rank is shown one GPU: its own, the same one, or nobody knows which
    ([share(7, 2, 1, range(8), 8, which=w) for w in (3, 4)], [[2, 2, 8, 8]]),
    ([share(7, 2, 1, range(8), 8, which=3)] * 2, [[2, 1, 8, 8]]),
    ([share(7, 2, 8, range(8), 8)] * 2, [[2, 8, 8, 8]]),
    # several cores each, which are all of them, or not
    ([share(7, 2, 0, cores, 8) for cores in (range(4), range(4, 8))], [[2, 0, 8, 8]]),
    ([share(7, 2, 0, range(4), 8)] * 2, [[2, 0, 4, 8]]),
    ([share(7, 1, 0, range(2), 2), share(9, 1, 4, [300], 300, which=1)], [[1, 0, 2, 2], [1, 4, 1, 300]])])
def test_what_ranks_have_together(shares, machines):
    assert of_machines(np.concatenate(shares)).tolist() == machines


DRIVER = r'''
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = strlen(getenv("GPUS")); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, getenv("GPUS")[device], 16); return 0; }
'''


@pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')
def test_which_gpus_a_rank_sees(tmp_path, monkeypatch):
    """Of a driver that is made here, and of none."""
    (tmp_path / 'driver.c').write_text(DRIVER)
    library = str(tmp_path / 'driver.so')
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, str(tmp_path / 'driver.c')], check=True)
    monkeypatch.setenv('GPUS', 'ab')
    assert gpu_names(library) == {'61' * 16, '62' * 16}
    monkeypatch.setenv('GPUS', '')
    assert gpu_names(library) == gpu_names(str(tmp_path / 'nothing.so')) == set()


@pytest.mark.parametrize('rows, said', [
    ([[2, 1, 8, 8]] * 2, ['2 ranks share 1 GPU of']), ([[8, 4, 64, 64]] * 8, ['8 ranks share 4 GPUs of']),
    ([[8, 8, 64, 64]] * 8, []), ([[2, 0, 64, 64]] * 2, []), ([[8, 8, 1, 64]] * 8, ['1 of 64 cores']),
    ([[1, 1, 8, 8]] + [[2, 1, 1, 8]] * 2, ['2 ranks share 1 GPU of', '1 of 8 cores']),
    ([[1, 1, 4, 8]] * 2, ['4 of 8 cores'])])
def test_what_is_said_of_shares(caplog, rows, said):
    with caplog.at_level(logging.WARNING):
        warn_of_shares(np.array(rows))
    assert len(caplog.records) == len(said)
    for record, words in zip(caplog.records, said):
        assert words in record.getMessage()


@pytest.mark.parametrize('bound, quota, ranks, threads', [
    (16, None, 2, 8), (16, 6, 2, 3), (16, 2, 4, 1), (1, None, 2, 1), (8, None, 2, 8),
    (2, 4, 8, 1), (2, 8, 2, 2), (4, 4, 4, 1)])  # bound to no more cores than the quota is, which is one for all
def test_threads_of_a_rank_of_sixteen_cores(bound, quota, ranks, threads):
    assert threads_of_rank(bound, 16, quota, ranks) == threads


@pytest.mark.parametrize('quota, ranks, threads', [(None, 1, 0), (3, 1, 3), (1, 1, 1), (6, 2, 3), (2, 4, 1)])
def test_threads_follow_the_quota(monkeypatch, quota, ranks, threads):
    from runtime import distributed, hardware
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(16)))
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    monkeypatch.setattr(hardware, 'usable_cores', lambda: quota or 16)
    monkeypatch.setattr(distributed, 'quota_cores', lambda: quota)
    world = distributed.World()
    world.size = world.local_size = ranks
    config = world.session_config()
    assert config.intra_op_parallelism_threads == threads
    assert config.inter_op_parallelism_threads == (max(2, threads) if threads else 0)


@once
@pytest.mark.slow
@pytest.mark.parametrize('slow_rank', [0, 1])
@pytest.mark.parametrize('fails', [False, True])
def test_nobody_waits_in_silence(root, slow_rank, fails):
    """Work of one rank takes longer than Horovod lets the others wait, where it was set to end the job then.

    Where the first one is slow, its work is the only batch of an evaluation.
    """
    program = """
import time
import numpy as np
from runtime.command_line import run_command
from evaluation.rounds import in_rounds
from evaluation.outcomes import OUTCOME
from runtime.distributed import connect
from runtime.errors import InputError

def command():
    world = connect()
    def work():
        if world.rank == %d:
            time.sleep(15)
            if %r:
                raise InputError('the photo is broken')
        return world.rank
    if %d:
        print('rank %%d has %%d' %% (world.rank, world.patiently(work)), flush=True)
    else:
        mine = (np.full((1, 1), work(), OUTCOME) for _ in range(1 - world.rank))
        for positions, outcomes in in_rounds([range(1)], mine, world, 1):
            print('rank %%d has %%d' %% (world.rank, world.rank + outcomes['target'].sum()), flush=True)
    return 0

run_command('prog.py', command)
""" % (slow_rank, fails, slow_rank)
    environment = dict(os.environ, PYTHONPATH=root, HOROVOD_STALL_CHECK_TIME_SECONDS='5',
                       HOROVOD_STALL_SHUTDOWN_TIME_SECONDS='8')
    done = subprocess.run(mpirun(2, ['-c', program]), cwd=root, env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert 'tall' not in done.stderr  # Stall, stalled
    if fails:
        assert done.returncode == 2 and done.stderr.count('prog.py: error: the photo is broken') == 1, done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert sorted(re.findall(r'rank \d has \d', done.stdout)) == ['rank 0 has 0', 'rank 1 has 1']
