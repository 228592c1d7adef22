"""What the program that started this process says of it: how many it started, and which of them this one is.

Without TensorFlow, so that a job that was started wrongly ends at once.
"""
import contextlib
import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import Iterator, NamedTuple, Optional

from runtime.errors import InputError

# slurm gives a number from here on to what it starts by itself: the script of sbatch, the shell of salloc
FIRST_SPECIAL_STEP = 0xfffffff0


class Launch(NamedTuple):
    """One of the processes that a launcher has started."""
    launcher: str
    rank: int
    size: Optional[int]  # None: it doesn't say

    @property
    def is_one_of_several(self) -> bool:
        return self.rank > 0 or (self.size or 1) > 1


def find_launch() -> Optional[Launch]:
    """Return what the environment says; None for a process that no launcher has started.

    Inside of a slurm job mpirun's word counts, whose helpers srun starts; slurm's own counts in a step of srun alone:
    the script of sbatch has the job's number of tasks in its environment, too, and is one process.
    """
    for launcher, prefix in (('mpirun', 'OMPI_COMM_WORLD'), ('horovodrun', 'HOROVOD'), ('mpiexec', 'PMI')):
        size = _number(prefix + '_SIZE')
        if size is not None:
            return Launch('srun' if launcher == 'mpiexec' and _in_step() else launcher,
                          _number(prefix + '_RANK') or 0, size)
    rank = _number('PMIX_RANK')
    if _in_step():
        sizes = [_number(name) for name in ('SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS', 'SLURM_NPROCS')]
        return Launch('srun', _number('SLURM_PROCID') or rank or 0, next((size for size in sizes if size), None))
    return None if rank is None else Launch('a PMIx launcher', rank, None)


def is_one_of_several() -> bool:
    """Tell whether a launcher says that this process is one of several."""
    started = find_launch()
    return started is not None and started.is_one_of_several


def check_alone(job: str) -> None:
    """Raise InputError where several processes would do a job that is one's."""
    if is_one_of_several():
        raise InputError('%s runs in one process, without mpirun or several tasks of srun' % job)


def check_launch() -> None:
    """Raise InputError, before anything is loaded, where MPI can't connect the processes that srun has started.

    Open MPI would end the process with a page of text.
    """
    started = find_launch()
    if started is None or started.launcher != 'srun' or not started.is_one_of_several:
        return
    if any(name.startswith('PMIX_') for name in os.environ):
        return
    if not any(name.startswith('PMI_') for name in os.environ) or _open_mpi_lacks_pmi():
        raise disagreement(started, 1)


def check_size(size: int) -> None:
    """Raise InputError where Horovod counts another number of processes, `size`, than the launcher has started."""
    started = find_launch()
    if started is None:
        return
    if started.size not in (None, size) or (size == 1 and started.rank > 0):
        raise disagreement(started, size)


def disagreement(started: Launch, size: int) -> InputError:
    """Return the error about a job whose processes MPI doesn't connect, with the command that does."""
    several = 'one of several' if started.size is None else 'one of %d' % started.size if started.size > 1 else 'alone'
    command = 'mpirun -np %s --bind-to none python %s' % (started.size or 'N', ' '.join(map(shlex.quote, sys.argv)))
    if started.launcher == 'srun':
        how = 'Use mpirun inside of sbatch, as slurm/eval.sh and slurm/train.sh do'
    else:
        how = 'Use the mpirun of the MPI that Horovod was built with'
    return InputError('for %s this process is %s, for MPI one of %d: each would do the whole job, or wait for others. '
                      '%s: %s' % (started.launcher, several, size, how, command))


@contextlib.contextmanager
def one_task_is_one_process() -> Iterator[None]:
    """Let MPI start as in any single process where srun has started just this one without MPI's support.

    By SLURM_STEP_ID Open MPI takes it for one of several that srun should connect, and ends it.
    """
    started = find_launch()
    alone = started is not None and started.launcher == 'srun' and not started.is_one_of_several
    hidden = os.environ.pop('SLURM_STEP_ID', None) if alone and 'PMIX_RANK' not in os.environ else None
    try:
        yield
    finally:
        if hidden is not None:
            os.environ['SLURM_STEP_ID'] = hidden


def _number(name: str) -> Optional[int]:
    text = os.environ.get(name, '')
    return int(text) if re.match(r'[0-9]{1,9}$', text) else None


def _in_step() -> bool:
    text = os.environ.get('SLURM_STEP_ID') or os.environ.get('SLURM_STEPID') or ''
    return text.isdigit() and int(text) < FIRST_SPECIAL_STEP


def _open_mpi_lacks_pmi() -> bool:
    """Tell whether Horovod's MPI is an Open MPI that srun's PMI-1 and PMI-2 can't connect; False where that can't be
    known."""
    ompi_info, horovod = shutil.which('ompi_info'), importlib.util.find_spec('horovod')
    if not ompi_info or horovod is None or not horovod.submodule_search_locations:
        return False
    try:
        if not any(b'ompi_mpi_comm_world' in _content(path) for folder in horovod.submodule_search_locations
                   for path in glob.glob(os.path.join(glob.escape(folder), 'tensorflow', 'mpi_lib*.so'))):
            return False
        listed = subprocess.run([ompi_info, '--parsable'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, timeout=20).stdout.decode('utf-8', 'replace')
    except (OSError, subprocess.SubprocessError):
        return False
    return 'mca:pmix:' in listed and not re.search(r'^mca:pmix:(s1|s2|cray):', listed, re.MULTILINE)


def _content(path: str) -> bytes:
    with open(path, 'rb') as f:
        return f.read()
