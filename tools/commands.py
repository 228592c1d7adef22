"""What demo.py and cifar10.py run: commands that are printed first, and a data server."""
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import Iterator, Sequence

from runtime.errors import InputError, RunError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def show(command: Sequence[str], ending: str = '', folder: str = ROOT) -> None:
    """Prints a command as it is given in the checkout's root, or after a change to another folder."""
    if folder != ROOT:
        print('$ cd ' + shlex.quote(folder))
    words = [os.path.relpath(word, ROOT) if word.startswith(ROOT) and folder == ROOT else word for word in command]
    print('$ ' + ' '.join(map(shlex.quote, words)) + ending, flush=True)


def run(command: Sequence[str], log: str, folder: str = ROOT) -> str:
    """Run a command in a folder, all its output to the end of a log file; its standard output is returned.

    Raises InputError where it fails, after the log's end was shown.
    """
    show(command, folder=folder)
    start = time.time()
    with open(log, 'a') as f, subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=f,
            universal_newlines=True) as process:
        try:
            stdout = process.communicate()[0]
        except BaseException:  # this program is to end, and the command with it: a training saves what it has
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        f.write(stdout)
    if process.returncode:
        with open(log) as f:
            sys.stderr.write(f.read()[-3000:])
        raise InputError('the command above failed with status %d; its output is in %s' % (process.returncode, log))
    print('  %.0f s' % (time.time() - start), flush=True)
    return stdout


@contextlib.contextmanager
def data_server(data: str, flags: Sequence[str], log: str, folder: str = ROOT) -> Iterator[str]:
    """A data server while the context lasts; trainings wait for it to be ready. Gives its end point.

    Raises InputError where the server ended before. The socket is its own: batches of the same shape may be served to
    somebody else on this machine. A SIGTERM ends the context, and with it the server.
    """
    with tempfile.TemporaryDirectory() as sockets:
        endpoint = 'ipc://' + os.path.join(sockets, 'batches')
        command = [sys.executable, os.path.join(ROOT, 'third_party', 'serve-data.py'), '--data', data,
                   '--endpoint', endpoint] + list(flags)
        show(command, ' &', folder)
        signal.signal(signal.SIGTERM, stop)
        with open(log, 'a') as f:
            server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT)
        try:
            yield endpoint
        except InputError:
            if server.poll() is not None:
                raise InputError('the data server ended with status %d; its output is in %s' % (server.poll(), log))
            raise
        finally:
            server.terminate()
            server.wait()


def stop(*_) -> None:
    raise RunError('stopped by SIGTERM')
