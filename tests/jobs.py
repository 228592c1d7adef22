"""Trainings as processes of their own: started, watched, killed, resumed."""
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

from tools.mpi import mpirun

SMALL = ['-d', '14', '--image-size', '32', '--batch', '4']
FAKE = SMALL + ['--fake', '--attack-iter', '0']


class Job:
    """A run of `main.py FLAGS` that has begun; `text` is its output so far.

    where: the folder in which it runs. ranks: how many mpirun starts; None: one process, without mpirun.
    env: environment variables besides those of this process. launcher: options of mpirun.
    """

    def __init__(self, root, where, ranks, *flags, env=None, launcher=()):
        arguments = [os.path.join(root, 'main.py')] + list(flags)
        command = [sys.executable] + arguments if ranks is None else mpirun(ranks, arguments)
        if launcher:
            command[1:1] = launcher
        self.process = subprocess.Popen(command, cwd=str(where), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, universal_newlines=True,
                                        env=dict(os.environ, **(env or {})))
        self.text = ''
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.text += line

    def wait_for(self, words, timeout=120):
        end = time.time() + timeout
        while words not in self.text:
            assert self.process.poll() is None or words in self.text, self.text[-3000:]
            assert time.time() < end, 'no %r in: %s' % (words, self.text[-3000:])
            time.sleep(0.05)

    def ranks(self):
        """List the processes of the ranks, by their numbers."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            number = child.environ().get('OMPI_COMM_WORLD_RANK')
            if number is not None and number not in found:
                found[number] = child
        return [found[number] for number in sorted(found, key=int)]

    def end(self, status=0, timeout=240):
        """Wait for the end, and check the exit status (None: any); returns the output."""
        try:
            self.process.wait(timeout)
        finally:
            self.kill()
        self._reader.join(20)
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
