"""How many processes a job has, by its launcher and by Horovod: where they differ, it doesn't start."""
import os
import pty
import re
import subprocess
import sys

import pytest
from forked import run_main
from lanes import once
from photos import write_split

from runtime.launcher import find_launch
from runtime.processes import in_first_pid_namespace
from tools.mpi import read_figures

LAUNCHERS = ('OMPI_', 'MV2_', 'PMI_', 'PMIX_', 'PALS_', 'FLUX_', 'JSM_', 'SLURM_', 'HOROVOD_')
# What slurm gives to the script of `sbatch -n 8`, which is one process
BATCH = dict(SLURM_JOB_ID='7', SLURM_NTASKS='8', SLURM_NPROCS='8', SLURM_PROCID='0', SLURM_NODEID='0')
STEP = dict(BATCH, SLURM_STEP_ID='0', SLURM_STEP_NUM_TASKS='8', SLURM_PROCID='3')
ONE_TASK = dict(STEP, SLURM_NTASKS='1', SLURM_NPROCS='1', SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0')


def environment(**variables):
    """Return this process's environment, with these variables and no other one of a launcher."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return dict(clean, **variables)


@pytest.mark.parametrize('variables, rank, size', [
    (dict(OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_SIZE='4'), 3, 4),
    (dict(PMI_RANK='1', PMI_SIZE='2'), 1, 2),
    (STEP, 3, 8),
    (dict(STEP, PMIX_RANK='3'), 3, 8),
    (ONE_TASK, 0, 1),
    (dict(ONE_TASK, PMIX_RANK='0'), 0, 1),
    (dict(ONE_TASK, PMI_RANK='0', PMI_SIZE='1'), 0, 1),
    (dict(STEP, OMPI_COMM_WORLD_RANK='1', OMPI_COMM_WORLD_SIZE='16'), 1, 16),  # mpirun's helpers are srun's tasks
    (dict(PMIX_RANK='0'), 0, None),
    (dict(SLURM_STEP_ID='0', SLURM_NTASKS='8', SLURM_PROCID='1'), 1, 8),
    (dict(MV2_COMM_WORLD_RANK='1', MV2_COMM_WORLD_SIZE='4'), 1, 4),
    (dict(PALS_RANKID='5', PMI_RANK='5', PMI_SIZE='12'), 5, 12),
    (dict(PALS_RANKID='5', PALS_SIZE='12'), 5, 12),
    (dict(PALS_RANKID='5'), 5, None),
    (dict(FLUX_TASK_RANK='2', FLUX_JOB_SIZE='3'), 2, 3),
    (dict(JSM_NAMESPACE_RANK='2', JSM_NAMESPACE_SIZE='3'), 2, 3),
    (dict(PMI_RANK='2'), 2, None),
    (dict(STEP, PMI_RANK='3'), 3, 8),
    (dict(STEP, SLURM_TASK_PID=str(os.getpid())), 3, 8),
])
def test_what_launchers_say(monkeypatch, variables, rank, size):
    monkeypatch.setattr(os, 'environ', environment(**variables))
    started = find_launch()
    assert (started.rank, started.size) == (rank, size)


@pytest.mark.parametrize('variables', [
    {}, BATCH, dict(BATCH, SLURM_STEP_ID='4294967291'), dict(BATCH, SLURM_STEP_ID='4294967290'),
    dict(BATCH, SLURM_STEP_ID='4294967294'), dict(OMPI_COMM_WORLD_SIZE='', PMI_SIZE='many')])
def test_what_no_launcher_has_started(monkeypatch, variables):
    """A batch script and an interactive shell of slurm, of which the number of tasks says nothing."""
    monkeypatch.setattr(os, 'environ', environment(**variables))
    assert find_launch() is None


SEEN = 'from runtime.launcher import find_launch, left_over_variables; print(find_launch(), len(left_over_variables()))'


def seen_by(root, command, terminal=False, **variables):
    """Return what a process says, as whose task `command` counts: a list, in which PYTHON is one that tells.

    terminal: the task has one, as `srun --pty` gives it.
    """
    python = "%s -c '%s'" % (sys.executable, SEEN)
    task = ['sh', '-c', 'export SLURM_TASK_PID=$$; exec "$@"', 'sh'] + [word.replace('PYTHON', python)
                                                                       for word in command]
    given = dict(environment(**variables), PYTHONPATH=root)
    if not terminal:
        return subprocess.run(task, env=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              universal_newlines=True, timeout=60).stdout
    pid, end = pty.fork()
    if pid == 0:
        os.execvpe(task[0], task, given)
    text = b''
    try:
        while True:
            text += os.read(end, 4096)
    except OSError:  # how a terminal ends
        os.waitpid(pid, 0)
        os.close(end)
    return text.decode()


TASK = dict(STEP, SLURM_PROCID='0')
INTERACTIVE = ['bash', '--norc', '--noprofile', '-i', '-c', 'PYTHON; exit']  # -i: job control, as when typed
OUTLIVED = ['sh', '-c', '(setsid sh -c "sleep 1; $1" &)', 'sh', 'PYTHON']


@pytest.mark.parametrize('command, terminal', [
    (['sh', '-c', 'PYTHON; true'], False), (['sh', '-c', 'PYTHON; true'], True),
    (['bash', '--norc', '-i', '-c', 'PYTHON; true'], False), (['sh', '-c', 'exec PYTHON'], True)],
    ids=['script', 'script at a terminal', 'no terminal', 'itself'])
def test_tasks_of_a_step(root, command, terminal):
    assert "Launch(launcher='srun', rank=0, size=8) 0" in seen_by(root, command, terminal, **TASK)


@pytest.mark.parametrize('more', [{}, dict(PMI_RANK='0', PMI_SIZE='8'), dict(PMIX_RANK='0')])
def test_what_is_typed_in_a_shell_of_a_step_is_one_process(root, more):
    assert re.search(r'None [1-9]', seen_by(root, INTERACTIVE, True, **dict(TASK, **more)))


def test_a_shell_that_has_outlived_its_step(root):
    """As that of a tmux; where processes have other numbers than slurm's, nobody can tell."""
    said = seen_by(root, OUTLIVED, **TASK)
    assert re.search(r'None [1-9]' if in_first_pid_namespace() else 'size=8', said), said


def test_mpirun_in_a_shell_of_a_step(root):
    command = INTERACTIVE[:-1] + ['OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 PYTHON; exit']
    assert "Launch(launcher='mpirun', rank=1, size=2)" in seen_by(root, command, True, **TASK)


@pytest.fixture(scope='module')
def evaluation(tmp_path_factory, weights_file):
    """Return what evaluates 12 photos with these variables of a launcher, in a process of its own."""
    folder = tmp_path_factory.mktemp('launched')
    write_split(folder / 'data' / 'val', 12)

    def run(*more, job='--eval', **variables):
        flags = {'--eval': ['--eval', '--data', str(folder / 'data'), '--attack-iter', '0'],
                 '--eval-directory': ['--eval-directory', str(folder / 'data'), '--prediction-file',
                                      str(folder / 'predictions.txt')],
                 'training': ['--fake', '--attack-iter', '0', '--steps-per-epoch', '1', '--max-epoch', '1']}[job]
        weights = weights_file(classes=1000 if job == 'training' else 10)
        return run_main('-d', '14', '--image-size', '32', '--load', weights, *flags, *more,
                        env=environment(**variables), cwd=folder, timeout=120)
    return run


def refused(done, *words):
    errors = re.findall('main.py: error: .*', done.stderr)
    assert done.returncode == 2 and len(errors) == 1 and 'Traceback' not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0], errors[0]
    assert not done.stdout


@once
@pytest.mark.parametrize('job', ['--eval', 'training'])
def test_srun_without_mpi_is_refused(evaluation, job):
    refused(evaluation(job=job, **TASK), 'for srun this process is one of 8, for MPI one of 1', 'sbatch',
            'mpirun -np 8 --bind-to none python ', '--attack-iter 0')


@once
@pytest.mark.parametrize('job', ['--eval', '--eval-directory'])
def test_of_sruns_tasks_the_first_says_it(evaluation, job):
    done = evaluation(job=job, **STEP)
    assert done.returncode == 2 and done.stdout == done.stderr == ''


@once
@pytest.mark.parametrize('flags', [['--no-such-flag'], ['--results', '']])
def test_of_sruns_tasks_the_first_says_what_is_wrong_with_the_flags(evaluation, flags):
    done = evaluation(*flags, **STEP)
    assert done.returncode == 2 and done.stdout == done.stderr == ''
    refused(evaluation(*flags, **TASK), flags[0])


@pytest.mark.parametrize('job, variables', [
    ('--eval', dict(PMI_SIZE='2', PMI_RANK='0')),
    pytest.param('--eval', dict(PMIX_RANK='1'), marks=pytest.mark.slow),
    pytest.param('training', dict(PMI_SIZE='2', PMI_RANK='1'), marks=pytest.mark.slow)],
    ids=['rank 0', 'unknown size', 'training'])
def test_a_horovod_of_single_processes_is_refused(evaluation, job, variables):
    refused(evaluation(job=job, **variables), 'for MPI one of 1', 'mpirun -np %s ' % variables.get('PMI_SIZE', 'N'))


@pytest.mark.parametrize('variables', [TASK, dict(PMI_SIZE='2', PMI_RANK='1'), dict(PMIX_RANK='1'),
                                       dict(PALS_RANKID='1'), dict(MV2_COMM_WORLD_SIZE='2')])
def test_scoring_is_one_process(evaluation, variables):
    refused(evaluation(job='--eval-directory', **variables), '--eval-directory runs in one process', 'srun -n1',
            'sbatch --array')


@pytest.mark.parametrize('variables', [dict(ONE_TASK, PMIX_RANK='0')] + [
    pytest.param(variables, marks=[once, pytest.mark.slow]) for variables in (
        BATCH, ONE_TASK, dict(PMIX_RANK='0'), dict(PMI_SIZE='1', PMI_RANK='0'))],
    ids=['one task of PMIx', 'batch script', 'one task', 'PMIx alone', 'PMI'])
def test_one_task_is_one_process(evaluation, variables):
    done = evaluation(**variables)
    assert done.returncode == 0 and len(read_figures(done.stdout)) == 3, done.stderr


@once
@pytest.mark.slow
def test_one_task_scores(evaluation):
    done = evaluation(job='--eval-directory', **dict(ONE_TASK, PMIX_RANK='0'))
    assert done.returncode == 0, done.stderr


@once
@pytest.mark.slow
@pytest.mark.parametrize('variables', [BATCH, ONE_TASK], ids=['batch script', 'one task'])
def test_one_task_trains(evaluation, variables):
    done = evaluation('--overwrite', job='training', **variables)
    assert done.returncode == 0 and '1 ranks' in done.stdout + done.stderr, done.stderr


@pytest.fixture
def batch_job(root, tmp_path):
    """batch_job(argument, ..., **variables) -> what the batch job says. Programs of slurm and MPI say what they are
    given."""
    (tmp_path / 'bin').mkdir()
    for name in ('srun', 'mpirun'):
        (tmp_path / 'bin' / name).write_text('#!/bin/sh\necho "%s: $SOCKETS"\necho "$@"\n' % name)
        (tmp_path / 'bin' / name).chmod(0o755)

    def run(*arguments, **variables):
        variables = environment(SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID='77', PYTHON_ENVIRONMENT=str(tmp_path),
                                SCRATCH=str(tmp_path / 'shared'), **variables)
        done = subprocess.run(['bash', os.path.join(root, 'slurm', 'train.sh'), *arguments], env=variables, timeout=60,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == 0
        return done.stdout
    return run


@once
def test_sockets_are_on_the_nodes_own_disk(batch_job, tmp_path):
    """Whatever the site calls its shared file system."""
    for folder in ('/tmp', str(tmp_path / 'own')):
        said = batch_job(**({} if folder == '/tmp' else {'TRAINING_SOCKET_FOLDER': folder}))
        for name in ('srun', 'mpirun'):
            assert '%s: %s/adversarial-training-%d-77\n' % (name, folder, os.getuid()) in said


@once
@pytest.mark.parametrize('given, passed', [
    ('--overwrite', '--resume'),
    # it names a directory, which another one would take back
    ('--resume train_log/Fast', '--resume train_log/Fast'), ('--resume=a', '--resume=a')])
def test_a_job_that_is_queued_again_resumes(batch_job, given, passed):
    said = batch_job('--fake', *given.split(), SLURM_RESTART_COUNT='1')
    assert re.search(r' main --fake ?(.*)$', said, re.MULTILINE).group(1) == passed
