"""How a program of this project starts, speaks and ends: flags, one way out for messages, interrupts, exit statuses.

All rooms speak through `logging.getLogger(__name__)`, and here alone is said where that goes: one line on stderr,
`PROGRAM: warning: TEXT`. Used as a library, the project leaves logging as it finds it. A training's own log, on stdout
and in its log directory, is tensorpack's.
"""
import argparse
import functools
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, Callable, Iterable, List, NoReturn

from runtime.content import discard_temporary
from runtime.errors import InputError, LaunchError, RunError
from runtime.launcher import find_launch, is_one_of_several, is_task_of_srun
from runtime.limits import refusal

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What stands before a message of a level, unless the record has a `word` of its own
WORDS = {logging.INFO: 'note', logging.WARNING: 'warning', logging.ERROR: 'error', logging.CRITICAL: 'failed'}
# log.warning(..., extra=THIS_RANK): what this rank alone has seen, so that it, too, says so
THIS_RANK = {'this_rank': True}


class Parser(argparse.ArgumentParser):
    """Wrong flags are an InputError like any other wrong input: one line."""

    def error(self, message: str) -> NoReturn:
        raise LaunchError('%s (see --help)' % message)


def some_of(text: str, known: Iterable[str], *, flag: str, what: str) -> List[str]:
    """Return the names in `text`, with commas between them, each once. Raises InputError for one that isn't known.

    flag, what: for the message: --methods, of which each is a 'method'.
    """
    names = list(dict.fromkeys(text.split(',')))
    for name in names:
        if name not in known:
            raise InputError('%s %s: there is no such %s; choose of %s' % (flag, name or repr(text), what,
                                                                           ', '.join(known)))
    return names


@functools.lru_cache(maxsize=None)
def is_ours(logger: str) -> bool:
    """Tell whether a logger's name is that of a module of this project."""
    room = logger.split('.')[0]
    return room == '__main__' or any(os.path.exists(os.path.join(ROOT, name)) for name in (room, room + '.py'))


class Messages(logging.Handler):
    """Writes each message as one line on stderr.

    chief_speaks: the program runs as several ranks, and what all of them would say alike, the chief alone says. Of
    other libraries' messages only warnings and errors are shown, with the library's name.
    """

    def __init__(self, program: str, *, chief_speaks: bool = False):
        super().__init__()
        self.program, self.chief_speaks = program, chief_speaks

    def filter(self, record: logging.LogRecord) -> bool:
        if not is_ours(record.name):
            return record.levelno >= logging.WARNING
        alike = self.chief_speaks and record.levelno < logging.ERROR and not hasattr(record, 'this_rank')
        return not alike or rank() == '0'

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if is_ours(record.name):
                word = getattr(record, 'word', WORDS.get(record.levelno, 'note'))
            else:  # its error need not be the program's
                word = 'warning: ' + record.name
            whose = this_rank() if hasattr(record, 'this_rank') else ''
            text = '%s: %s: %s%s\n' % (self.program, word, whose, in_a_line(record.getMessage()))
            if record.exc_info:
                text += logging.Formatter().formatException(record.exc_info) + '\n'
            # In one piece, whatever the buffering: lines of several ranks may come to one terminal.
            if 'tqdm' in sys.modules:  # where a program shows a bar, the line goes above it
                from runtime.bars import tqdm
                tqdm.write(text, file=sys.stderr, end='')
            else:
                sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:
            self.handleError(record)

    def say(self, level: int, text: str) -> None:
        """Write a message, whatever else the process did to logging meanwhile."""
        self.handle(logging.LogRecord('__main__', level, __file__, 0, '%s', (text,), None))


def in_a_line(text: str) -> str:
    """Return a text without its line breaks; all else stays, as in paths two spaces are not one."""
    return re.sub(r'\s*[\r\n]\s*', ' ', text.strip('\r\n'))


def treat_paths_as_bytes() -> None:
    """Make this process write paths byte for byte, whatever the locale says of their encoding.

    Python decodes names by the locale's encoding. As UTF-8, in which what isn't any is kept as surrogates, every name
    comes out as it was, in files, messages and digests. Under another locale a program starts itself again in Python's
    UTF-8 mode.
    """
    utf8 = sys.getfilesystemencoding().lower().replace('-', '') == 'utf8'
    spec = getattr(sys.modules.get('__main__'), '__spec__', None)
    ours = is_ours(spec.name) if spec else os.path.isfile(sys.argv[0])  # or a profiler's, say, which runs it
    if not utf8 and os.environ.get('PYTHONUTF8') != '1' and ours:
        os.environ['PYTHONUTF8'] = '1'
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # -u, -W, ...
        program = ['-m', spec.name] if spec else [sys.argv[0]]
        os.execv(sys.executable, [sys.executable] + flags + program + sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding='utf-8', errors='surrogateescape')


def start_messages(program: str, *, chief_speaks: bool = False) -> Messages:
    """Send all messages of this process to stderr, in the name of a program; return what does so."""
    root, messages = logging.getLogger(), Messages(program, chief_speaks=chief_speaks)
    root.handlers[:] = [messages]  # some libraries put one of their own there when they are imported
    root.setLevel(logging.INFO)
    return messages


def end_on_interrupt(program: str) -> None:
    """End this process within two seconds of a Ctrl-C, and at once by SIGTERM, without files that are not whole. For
    programs that don't fork: it starts a thread.

    Python's own way comes first; but a main thread inside of TensorFlow, which may attack a batch for an hour, doesn't
    see a signal until it is through. The C-level handler, which writes to the pipe, does.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def end_now(number: int, frame: Any) -> None:
        discard_temporary()
        os._exit(128 + number)

    def watch() -> None:
        while True:
            number, = os.read(reader, 1)
            if number == signal.SIGTERM and signal.getsignal(number) is end_now:  # a training has its own handler
                end_now(number, None)
            if number == signal.SIGINT:
                time.sleep(1.5)
                discard_temporary()
                print('\n%s: interrupted' % program, file=sys.stderr, flush=True)
                os._exit(130)

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end_now)  # which mpirun sends its ranks on a Ctrl-C
    threading.Thread(target=watch, daemon=True).start()


def rank() -> str:
    """Return this process's number among those that a launcher started, as the launcher says it; '0' without one."""
    started = find_launch()
    return str(started.rank) if started else '0'


def this_rank() -> str:
    """Name this process, one of several, for the front of a message; '' when there is only one."""
    return 'rank %s on %s: ' % (rank(), socket.gethostname()) if is_one_of_several() else ''


def run_command(program: str, command: Callable[[], int], *, chief_speaks: bool = False) -> NoReturn:
    """Run `command` and end the process with the status it returns; never returns. chief_speaks: see Messages.

    An InputError, and threads or memory that the system refuses, become one line on stderr and status 2, a RunError
    one line and status 1, an interrupt status 130. The process ends without running exit handlers: under MPI,
    Horovod's would wait for ranks that may be stuck in a collective, while a rank that is simply gone makes mpirun end
    the others.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    treat_paths_as_bytes()
    messages = start_messages(program, chief_speaks=chief_speaks)
    try:
        status = command()
    except InputError as e:
        # Where all ranks find the same wrong, the first one's line is enough: it ends, and mpirun ends the others, on a
        # busy machine seconds later. srun ends none of them, unless slurm is set to, and all would say it.
        silent = chief_speaks and rank() != '0' and isinstance(e, LaunchError) and is_task_of_srun()
        if chief_speaks and rank() != '0':
            time.sleep(5)
        if not silent:
            messages.say(logging.ERROR, str(e))
        status = 2
    except RunError as e:
        messages.say(logging.CRITICAL, this_rank() + str(e))
        status = 1
    except KeyboardInterrupt:
        print('%s: interrupted' % program, file=sys.stderr)
        status = 130
    except Exception as e:  # what the system refuses, a bug, or a machine's failure
        # an OSError may come hours later and says where: that is no wrong input
        refused = None if isinstance(e, OSError) else refusal(e)
        if refused:
            detail = str(e).split('\n')[0]
            messages.say(logging.ERROR, this_rank() + refused + (' (%s)' % detail if detail else ''))
        else:
            traceback.print_exc()
            messages.say(logging.CRITICAL, '%s%s: %s' % (this_rank(), type(e).__name__, str(e).split('\n')[0]))
        status = 2 if refused else 1
    try:
        if sys.stdout:  # closed, it is None
            sys.stdout.flush()
    except (OSError, ValueError) as e:
        messages.say(logging.CRITICAL, 'cannot write to stdout: %s' % (getattr(e, 'strerror', None) or e))
        status = status or 1
    if status:
        sys.stderr.flush()
        os._exit(status)
    sys.exit(0)
