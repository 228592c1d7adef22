"""Runs of main.py, each in a process of its own that is forked from one which has loaded TensorFlow.

Loading it takes seconds, which each of a hundred runs would pay again. Everything that main.py does is its process's
own: files, output, sessions, exit status. In the process that forks, TensorFlow is loaded and nothing of it runs.
"""
import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['evaluation.run', 'evaluation.scoring', 'training.run'])


def start_main(*arguments, outputs=(os.devnull, os.devnull), cwd=ROOT):
    """Start `python main.py ARGUMENTS`; returns its multiprocessing.Process.

    outputs: the files that its stdout and stderr go to.
    """
    command = [os.path.join(ROOT, 'main.py')] + [str(a) for a in arguments]
    process = _context.Process(target=_run, args=(command, str(cwd), outputs))
    before = os.environ.get('PYTHONPATH', '')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [ROOT, before]))  # where the one that forks finds them
    try:
        process.start()
    finally:
        os.environ['PYTHONPATH'] = before
    return process


def run_main(*arguments, timeout=300, cwd=ROOT):
    """Run `python main.py ARGUMENTS`; returns a CompletedProcess with its output, as subprocess.run does.

    Raises AssertionError with the output and the stacks of its threads where it still runs after `timeout` seconds.
    """
    command = ['main.py'] + [str(a) for a in arguments]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        process = start_main(*arguments, outputs=outputs, cwd=cwd)
        process.join(timeout)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGUSR2)  # faulthandler says where its threads are
            process.join(2)
            process.kill()
            process.join()
            raise AssertionError('%s still ran after %d s.\n%s%s' % (
                ' '.join(command), timeout, *[_read(path)[-20000:] for path in outputs]))
        return subprocess.CompletedProcess(command, process.exitcode, *[_read(path) for path in outputs])


def _read(path):
    with open(path) as f:
        return f.read()


def _run(command, cwd, outputs):
    os.chdir(cwd)
    for fd, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
    faulthandler.register(signal.SIGUSR2)
    sys.argv = command
    sys.path.insert(0, ROOT)
    runpy.run_path(command[0], run_name='__main__')
