"""Ranks that share a machine's cores leave them to each other while they wait."""
import json
import os
import re
import subprocess

import pytest

from runtime.hardware import has_gpu
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
