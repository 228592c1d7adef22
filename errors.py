"""What the user gave is wrong: one exception for it, and the one place that turns it into an exit status."""
import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Callable


class InputError(ValueError):
    """Wrong flags, files or data. Its text is one line that says what is wrong and what to do about it."""


class RunError(RuntimeError):
    """A run that began well cannot go on: its loss is not a number, its disk is full. Its text is one line."""


class Parser(argparse.ArgumentParser):
    """Wrong flags are an InputError like any other wrong input: one line."""

    def error(self, message):
        raise InputError('%s (see --help)' % message)


def check_writable(path: str) -> None:
    """Raises InputError where no file can be written: better known before the work than after it."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise InputError('cannot write %s: it is a folder' % path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError('cannot write %s: it is not a file, and would be replaced by one' % path)
    if not os.path.isdir(folder):
        raise InputError('cannot write %s: there is no folder %s' % (path, folder))
    if not os.access(folder, os.W_OK):
        raise InputError('cannot write %s: you may not write to %s' % (path, folder))


def end_on_interrupt(program: str) -> None:
    """Ctrl-C ends this process within two seconds. For programs that don't fork: it starts a thread.

    Python's own way comes first; but a main thread inside of TensorFlow, which may attack a batch for an hour, doesn't
    see a signal until it is through. The C-level handler, which writes to the pipe, does.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while signal.SIGINT not in os.read(reader, 1):
            pass
        time.sleep(1.5)
        print('\n%s: interrupted' % program, file=sys.stderr, flush=True)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def this_rank() -> str:
    """Which of several processes this is, for the front of a message; nothing when there is only one."""
    rank = os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ.get('PMI_RANK')
    size = os.environ.get('OMPI_COMM_WORLD_SIZE') or os.environ.get('PMI_SIZE')
    return 'rank %s on %s: ' % (rank, socket.gethostname()) if rank and size not in (None, '1') else ''


def run_command(program: str, command: Callable[[], int]) -> None:
    """Run `command` and end the process with the status it returns; never returns.

    An InputError becomes one line on stderr and status 2, a RunError one line and status 1, an interrupt status
    130. The process ends without running exit handlers: under MPI, Horovod's would wait for ranks that may be
    stuck in a collective, while a rank that is simply gone makes mpirun end the others.
    """
    try:
        status = command()
    except InputError as e:
        # Where all ranks find the same wrong, the first one's line is enough: it ends, and mpirun ends the others.
        if os.environ.get('OMPI_COMM_WORLD_RANK', '0') != '0':
            time.sleep(1)
        # In one piece, whatever the buffering: lines of several ranks meet on one terminal.
        sys.stderr.write('%s: error: %s\n' % (program, ' '.join(str(e).split())))
        status = 2
    except RunError as e:
        print('%s: failed: %s%s' % (program, this_rank(), ' '.join(str(e).split())), file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print('%s: interrupted' % program, file=sys.stderr)
        status = 130
    except Exception as e:  # a bug, or a machine's failure
        traceback.print_exc()
        print('%s: failed: %s%s: %s' % (program, this_rank(), type(e).__name__, str(e).split('\n')[0]), file=sys.stderr)
        status = 1
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(0)
