"""Runs of main.py, and of other code, each in a process of its own that is forked from one which has loaded TensorFlow.

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


class Forked:
    """A run of `python COMMAND` that has begun, with what tests use of subprocess.Popen.

    command: [path of a script, argument, ...] or ['-c', code]. outputs: the files that its stdout and stderr go to.
    env: its environment, of variables that count when they are used: those for Python's start and for TensorFlow's
    loading come too late here.
    """

    def __init__(self, command, outputs=(os.devnull, os.devnull), cwd=ROOT, env=None):
        self.args = [str(a) for a in command]
        self._process = _context.Process(target=_run, args=(self.args, str(cwd), outputs, env))
        before = os.environ.get('PYTHONPATH', '')
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [ROOT, before]))  # where the one that forks finds them
        try:
            self._process.start()
        finally:
            os.environ['PYTHONPATH'] = before
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        """Return the exit status. Raises TimeoutExpired where there is none within so many seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self):
        """Have it write where its threads are to its stderr, and end it."""
        self.send_signal(signal.SIGUSR2)  # of faulthandler
        self._process.join(2)
        self.kill()
        self.wait()


def start_main(*arguments, **options):
    """Start `python main.py ARGUMENTS`; returns it as Forked, which has the options."""
    return Forked([os.path.join(ROOT, 'main.py')] + list(arguments), **options)


def run_main(*arguments, **options):
    """Run `python main.py ARGUMENTS` to its end, as `run_python` does."""
    return run_python(os.path.join(ROOT, 'main.py'), *arguments, **options)


def run_python(*command, timeout=300, **options):
    """Run `python COMMAND`; returns a CompletedProcess with its output, as subprocess.run does.

    options: of Forked. Raises AssertionError with the output and the stacks of its threads where it still runs after
    `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        process = Forked(command, outputs=outputs, **options)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.end()
            raise AssertionError('%s still ran after %d s.\n%s%s' % (
                ' '.join(process.args), timeout, *[_read(path)[-20000:] for path in outputs]))
        return subprocess.CompletedProcess(process.args, process.returncode, *[_read(path) for path in outputs])


def _read(path):
    with open(path) as f:
        return f.read()


def _run(command, cwd, outputs, env):
    os.chdir(cwd)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    for fd, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)  # both may be the same
    faulthandler.register(signal.SIGUSR2)
    if command[0] == '-c':
        sys.argv = command[:1] + command[2:]
        exec(command[1], {'__name__': '__main__'})
    else:
        sys.argv = command
        sys.path.insert(0, ROOT)
        runpy.run_path(command[0], run_name='__main__')
