"""Trainings as processes of their own: started, watched, killed, resumed; and those of a tiny network."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
from forked import run_python, start_main

from tools.mpi import mpirun

SMALL = ['-d', '14', '--image-size', '32', '--batch', '4']
FAKE = SMALL + ['--fake', '--attack-iter', '0']


class Job:
    """A run of `main.py FLAGS` that has begun; `text` is its output so far.

    where: the folder in which it runs. ranks: how many mpirun starts; None: one process, without mpirun.
    env: environment variables besides those of this process. launcher: options of mpirun.
    """

    def __init__(self, root, where, ranks, *flags, env=None, launcher=()):
        self._output = tempfile.TemporaryFile()
        arguments = [os.path.join(root, 'main.py')] + list(flags)
        if ranks is None and not env:
            path = '/proc/%d/fd/%d' % (os.getpid(), self._output.fileno())
            self.process = start_main(*flags, outputs=[path, path], cwd=where)
            return
        command = [sys.executable] + arguments if ranks is None else mpirun(ranks, arguments)
        command[1:1] = launcher
        self.process = subprocess.Popen(command, cwd=str(where), stdin=subprocess.DEVNULL, stdout=self._output,
                                        stderr=subprocess.STDOUT, env=dict(os.environ, **(env or {})))

    @property
    def text(self):
        output = os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0)
        return output.decode(errors='replace').replace('\r\n', '\n').replace('\r', '\n')

    def wait_for(self, words, timeout=300):
        """Wait until the output has these words. Raises AssertionError, and ends the job, where it won't."""
        end = time.time() + timeout
        while words not in self.text:
            ended = self.process.poll() is not None
            if time.time() > end or ended and words not in self.text:
                self.kill()
                raise AssertionError('no %r in: %s' % (words, self.text[-3000:]))
            time.sleep(0.05)

    def ranks(self):
        """List the processes of the ranks, by their numbers."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            number = child.environ().get('OMPI_COMM_WORLD_RANK')
            if number is not None and number not in found:
                found[number] = child
        return [found[number] for number in sorted(found, key=int)]

    def end(self, status=0, timeout=400):
        """Wait for the end, and check the exit status (None: any); returns the output."""
        try:
            self.process.wait(timeout)
        finally:
            self.kill()
        assert status is None or self.process.returncode == status, self.text[-5000:]
        return self.text

    def kill(self):
        if self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for child in below:
                if child.is_running():
                    child.send_signal(signal.SIGKILL)
            self.process.wait()


def statistics(log):
    with open(os.path.join(str(log), 'stats.json')) as f:
        return json.load(f)


def tiny_trainings(folder, *scenarios, ranks=1, status=0):
    """Run methods_worker.py's trainings, one after another, in a folder; returns a CompletedProcess with the output."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'methods_worker.py')
    arguments = [script, str(folder)] + [json.dumps(s) for s in scenarios]
    if ranks == 1:
        done = run_python(*arguments, cwd=str(folder))
    else:
        root = os.path.dirname(os.path.dirname(script))
        done = subprocess.run(mpirun(ranks, arguments), cwd=str(folder), stdin=subprocess.DEVNULL,
                              env=dict(os.environ, PYTHONPATH=os.pathsep.join([root, os.path.dirname(script)])),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-5000:]
    return done
