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
from typing import Dict, Iterator, Mapping, NamedTuple, Optional

from runtime.errors import LaunchError
from runtime.processes import ancestors, environment_of, has_terminal, in_first_pid_namespace

# slurm gives a number from here on to what it starts by itself: the script of sbatch, the shell of salloc
FIRST_SPECIAL_STEP = 0xfffffff0
# Who tells a process its number and how many there are, by which variables: Open MPI, MVAPICH2, Horovod, what speaks
# PMI-1 or 2 (MPICH, Intel MPI, srun), HPE's PALS, Flux, IBM's jsrun
LAUNCHERS = (('mpirun', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
             ('mpirun', 'MV2_COMM_WORLD_RANK', 'MV2_COMM_WORLD_SIZE'), ('horovodrun', 'HOROVOD_RANK', 'HOROVOD_SIZE'),
             ('mpiexec', 'PMI_RANK', 'PMI_SIZE'), ('mpiexec', 'PALS_RANKID', 'PALS_SIZE'),
             ('flux', 'FLUX_TASK_RANK', 'FLUX_JOB_SIZE'), ('jsrun', 'JSM_NAMESPACE_RANK', 'JSM_NAMESPACE_SIZE'))
PMIX_RANK = 'PMIX_RANK'  # of any launcher that speaks PMIx; how many there are stands in no variable
RANK_VARIABLES = tuple(rank for _, rank, _ in LAUNCHERS) + (PMIX_RANK,)


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
    the script of sbatch has the job's number of tasks in its environment, too, and is one process. So is what somebody
    starts by hand in a shell that is a task.
    """
    left_over = left_over_variables()
    told = {name: value for name, value in os.environ.items() if name not in left_over}
    in_step = _in_step(told)
    for launcher, rank_name, size_name in LAUNCHERS:
        size = _number(told, size_name)
        if size is not None:
            return Launch('srun' if launcher == 'mpiexec' and in_step else launcher,
                          _number(told, rank_name) or 0, size)
    ranks = {name: _number(told, name) for name in RANK_VARIABLES}
    if in_step:
        sizes = [_number(told, name) for name in ('SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS', 'SLURM_NPROCS')]
        return Launch('srun', _number(told, 'SLURM_PROCID') or ranks[PMIX_RANK] or 0,
                      next((size for size in sizes if size), None))
    for launcher, rank_name, _ in LAUNCHERS + (('a PMIx launcher', PMIX_RANK, ''),):
        rank = ranks[rank_name]
        if rank is not None:
            return Launch(launcher, rank, None)
    return None


def left_over_variables() -> Dict[str, str]:
    """Return what a step of slurm told a shell of it, in which this process was started by hand: nothing of it is true
    of this process. Empty for a task of the step, and without one.

    Such a shell is that of `srun --pty bash`, or of a tmux that was started in a step and has outlived it.
    """
    if not _in_step(os.environ) or _is_of_task():
        return {}
    shells = environment_of(_number(os.environ, 'SLURM_TASK_PID') or 0) or {}
    found = {name: value for name, value in os.environ.items() if name.startswith('SLURM_')}
    for prefix in sorted({name.split('_')[0] + '_' for name in RANK_VARIABLES}):
        own, of_shell = [{name: value for name, value in variables.items() if name.startswith(prefix)}
                         for variables in (os.environ, shells)]
        if own == of_shell:  # and no mpirun that was started in the shell has said otherwise
            found.update(own)
    return found


def _is_of_task() -> bool:
    """Tell whether slurm's variables are of this process: it is a task of the step, or was started by a task's
    script."""
    task, above = _number(os.environ, 'SLURM_TASK_PID'), ancestors()
    if task is None or task == above[0]:
        return True
    if task in above:
        # A shell that somebody types in gives each command a group of processes of its own; that of a script doesn't.
        return not has_terminal() or os.getpgid(task) == os.getpgrp()
    if in_first_pid_namespace():
        return False
    # in a container the task may have another number, and is a shell only where it is there under this one
    return (environment_of(task) or {}).get('SLURM_TASK_PID') != str(task)


def is_task_of_srun() -> bool:
    """Tell whether srun has started this process."""
    started = find_launch()
    return started is not None and started.launcher == 'srun'


def is_one_of_several() -> bool:
    """Tell whether a launcher says that this process is one of several."""
    started = find_launch()
    return started is not None and started.is_one_of_several


def check_alone(job: str) -> None:
    """Raise InputError where several processes would do a job that is one's."""
    if is_one_of_several():
        raise LaunchError('%s runs in one process: start it without mpirun, under slurm with `srun -n1`; several of '
                          'them are a job array, `sbatch --array`' % job)


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


def disagreement(started: Launch, size: int) -> LaunchError:
    """Return the error about a job whose processes MPI doesn't connect, with the command that does."""
    several = 'one of several' if started.size is None else 'one of %d' % started.size if started.size > 1 else 'alone'
    command = 'mpirun -np %s --bind-to none python %s' % (started.size or 'N', ' '.join(map(shlex.quote, sys.argv)))
    if started.launcher == 'srun':
        how = 'Use mpirun inside of sbatch, as slurm/eval.sh and slurm/train.sh do'
    else:
        how = 'Use the mpirun of the MPI that Horovod was built with'
    return LaunchError('for %s this process is %s, for MPI one of %d: each would do the whole job, or wait for others. '
                       '%s: %s' % (started.launcher, several, size, how, command))


@contextlib.contextmanager
def one_task_is_one_process() -> Iterator[None]:
    """Let MPI start as in any single process where srun has started just this one without MPI's support.

    By SLURM_STEP_ID Open MPI takes it for one of several that srun should connect, and ends it. Neither does it see
    what is of a shell that this process was started in.
    """
    started, hidden = find_launch(), left_over_variables()
    alone = started is not None and started.launcher == 'srun' and not started.is_one_of_several
    if alone and PMIX_RANK not in os.environ and 'SLURM_STEP_ID' in os.environ:
        hidden['SLURM_STEP_ID'] = os.environ['SLURM_STEP_ID']
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _number(variables: Mapping[str, str], name: str) -> Optional[int]:
    text = variables.get(name, '')
    return int(text) if re.match(r'[0-9]{1,9}$', text) else None


def _in_step(variables: Mapping[str, str]) -> bool:
    text = variables.get('SLURM_STEP_ID') or variables.get('SLURM_STEPID') or ''
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
