"""What demo.py, cifar10.py and others run: commands that are printed first, and a data server."""
import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import Iterator, Optional, Sequence

from runtime.errors import InputError, RunError
from third_party.supervisor import PR_SET_PDEATHSIG

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def show(command: Sequence[str], ending: str = '', folder: str = ROOT) -> None:
    """Print a command as one would give it in the checkout's root, or in another folder after a `cd`."""
    if folder != ROOT:
        print('$ cd ' + shlex.quote(folder))
    words = [os.path.relpath(word, ROOT) if word.startswith(ROOT) and folder == ROOT else word for word in command]
    print('$ ' + ' '.join(map(shlex.quote, words)) + ending, flush=True)


def run(command: Sequence[str], log: str, folder: str = ROOT) -> str:
    """Run a command in a folder; returns its standard output.

    All its output is added to a log file. Raises InputError where the command fails, after showing the log's end.
    """
    show(command, folder=folder)
    start = time.time()
    try:
        written = open(log, 'a', errors='surrogateescape')
    except OSError as e:
        raise InputError('cannot write %s: %s' % (log, e.strerror))
    with written as f, subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=f,
            universal_newlines=True, errors='surrogateescape') as process:
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
        with open(log, errors='surrogateescape') as f:
            sys.stderr.write(f.read()[-3000:])
        raise InputError('the command above failed with status %d; its output is in %s' % (process.returncode, log))
    print('  %.0f s' % (time.time() - start), flush=True)
    return stdout


@contextlib.contextmanager
def data_server(data: str, flags: Sequence[str], log: str, folder: str = ROOT) -> Iterator[str]:
    """Run a data server while the context lasts; gives its end point. Trainings wait for it to be ready.

    The end point is a new one: at the default one batches of the same shape may be served to somebody else on this
    machine. A SIGTERM ends the context, and with it the server. Where the context fails with an InputError and the
    server has ended, the InputError that is raised says so.
    """
    with tempfile.TemporaryDirectory() as sockets:
        endpoint = 'ipc://' + os.path.join(sockets, 'batches')
        command = [sys.executable, os.path.join(ROOT, 'third_party', 'serve-data.py'), '--data', data,
                   '--endpoint', endpoint] + list(flags)
        show(command, ' &', folder)
        signal.signal(signal.SIGTERM, stop)
        with open(log, 'a') as f:
            server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                      preexec_fn=end_with_parent)
        try:
            yield endpoint
        except InputError:
            status = server.poll()
            if status is not None:
                raise InputError('the data server ended with status %d; its output is in %s' % (status, log))
            raise
        finally:
            server.terminate()
            server.wait()


def end_with_parent() -> None:
    """Have this process get a SIGTERM when the program that started it is gone, also by a SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def log_directory(flags: Sequence[str], ranks: int = 1, folder: str = ROOT) -> str:
    """Return the log directory of a training with these flags of main.py, run in a folder. Raises InputError for wrong
    flags."""
    from main import parse_options
    from training.log_directory import log_directory_of  # with TensorFlow: the tools tell of wrong flags without
    return os.path.join(folder, log_directory_of(parse_options(list(flags)), ranks))


def stop(number: int, frame: Optional[FrameType]) -> None:
    """Handle SIGTERM: raises RunError."""
    raise RunError('stopped by SIGTERM')
