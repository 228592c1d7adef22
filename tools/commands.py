"""What demo.py and cifar10.py run: commands that are printed first, and a data server."""
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Iterator, Sequence

from errors import InputError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def show(command: Sequence[str], ending: str = '', folder: str = ROOT) -> None:
    """Prints a command, with paths of the checkout relative to the folder in which it runs."""
    print('$ ' + ' '.join(shlex.quote(os.path.relpath(c, folder) if c.startswith(ROOT) else c) for c in command) + ending,
          flush=True)


def run(command: Sequence[str], log: str, folder: str = ROOT) -> str:
    """Run a command in a folder, all its output into a log file; its standard output is returned.

    Raises InputError where it fails, after the log's end was shown.
    """
    show(command, folder=folder)
    start = time.time()
    with open(log, 'w') as f:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=f,
                              universal_newlines=True)
        f.write(done.stdout)
    if done.returncode:
        with open(log) as f:
            sys.stderr.write(f.read()[-3000:])
        raise InputError('the command above failed with status %d; its output is in %s' % (done.returncode, log))
    print('  %.0f s' % (time.time() - start), flush=True)
    return done.stdout


@contextlib.contextmanager
def data_server(data: str, flags: Sequence[str], log: str, folder: str = ROOT) -> Iterator[str]:
    """A data server while the context lasts; trainings wait for it to be ready. Gives its end point.

    The socket is its own: batches of the same shape may be served to somebody else on this machine.
    """
    with tempfile.TemporaryDirectory() as sockets:
        endpoint = 'ipc://' + os.path.join(sockets, 'batches')
        command = [sys.executable, os.path.join(ROOT, 'third_party', 'serve-data.py'), '--data', data,
                   '--endpoint', endpoint] + list(flags)
        show(command, ' &', folder)
        with open(log, 'w') as f:
            server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT)
        try:
            yield endpoint
        finally:
            server.terminate()
            server.wait()
