"""Keep the processes of a server running: one that does nothing else starts, replaces and ends them.

It has no threads, and ZeroMQ, which starts some, is used in the others alone: a process with threads must
not fork. Linux only: the others end with the first one, also when it is killed.
"""
import ctypes
import hashlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import stat
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from runtime.errors import InputError, RunError
from runtime.limits import refusal, refusal_in_words
from runtime.locks import InUse, take_lock
from third_party.transport import check_endpoint, socket_directory

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
SHORT_LIFE = 5.  # seconds; a process that dies sooner is started again with a pause, and not for ever
MAX_SHORT_LIVES = 5
# What a line begins with in the pipe that is also a child's stderr, where libraries write lines of their own: before
# what the system refused the child, and before a report
REFUSED, REPORT = b'\0refused ', b'\0report '
ADVICE = 'raise it, or give fewer --workers'
fork = multiprocessing.get_context('fork')
log = logging.getLogger(__name__)
Handler = Union[Callable[[int, Optional[FrameType]], Any], int, signal.Handlers, None]  # as `signal.signal` returns it


class Endpoint:
    """The right to serve at an endpoint, and its files: the socket, NAME.workers and NAME.lock.

    Binding an ipc:// endpoint silently takes it from a server that has it, so the lock decides. It goes with
    the process that holds it; files that a killed server left behind are no obstacle.
    """

    def __init__(self, name: str) -> None:
        check_endpoint(name)
        self.name = name
        transport, _, address = name.partition('://')
        self._is_file = transport == 'ipc' and not address.startswith('@')
        if self._is_file:
            base = os.path.abspath(address)
            self.name = 'ipc://' + base
        else:
            base = os.path.join(socket_directory(), 'at-' + hashlib.sha256(os.fsencode(name)).hexdigest()[:16])
        self._base = base
        self._lock = -1
        self.inner = 'ipc://' + base + '.workers'
        check_endpoint('ipc://' + base)

    def __enter__(self) -> 'Endpoint':
        if os.path.exists(self._base) and not stat.S_ISSOCK(os.stat(self._base).st_mode):
            raise InputError('%s exists and is no socket: give another --endpoint' % self._base)
        path = self._base + '.lock'
        while True:
            try:
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as e:
                raise InputError('cannot serve at %s: %s: %s' % (self.name, path, e.strerror))
            try:
                unlocked = take_lock(self._lock)
            except InUse:
                owner = os.read(self._lock, 20).decode().strip()
                os.close(self._lock)
                raise InputError('another server (process %s) serves at %s: stop it, or give this and its '
                                 'training another --endpoint' % (owner or 'unknown', self.name))
            except OSError as e:
                os.close(self._lock)
                raise InputError('cannot serve at %s: %s can\'t be locked: %s' % (self.name, path, e.strerror))
            if unlocked:
                log.warning('%s can\'t be locked (%s): take care that nobody else serves at %s meanwhile, or name a '
                            'place on a disk of this machine with --endpoint or TMPDIR', path, unlocked, self.name)
            try:
                if os.path.samestat(os.stat(path), os.fstat(self._lock)):
                    break
            except FileNotFoundError:
                pass
            os.close(self._lock)  # the server that held it removed it just now
        os.ftruncate(self._lock, 0)
        os.write(self._lock, b'%d\n' % os.getpid())
        return self

    def release(self) -> None:
        """Close the lock in a child: it is the first process's alone."""
        os.close(self._lock)

    def __exit__(self, *_: Any) -> None:
        paths = [self._base + '.workers', self._base + '.lock']
        for path in [self._base] + paths if self._is_file else paths:
            try:
                os.unlink(path)
            except OSError:
                pass
        os.close(self._lock)


class Child:
    """A process that the supervisor keeps running."""

    def __init__(self, name: str, last: bool, target: Callable[..., None], args: Sequence[Any]) -> None:
        self.name = name
        self.last = last  # its end is the end of all
        self.target = target
        self.args = args
        self.process: Optional[BaseProcess] = None
        self.started = 0.
        self.due = 0.
        self.short_lives = 0
        self.lived = False  # for longer than that, once


class Supervisor:
    """Starts processes, replaces those that die, and ends all of them with a signal or with itself."""

    def __init__(self, in_child: Callable[[], None]) -> None:
        """in_child: called in each new process."""
        self._in_child = in_child
        self._children: List[Child] = []
        self._signal = 0
        self._old_handlers: Dict[int, Handler] = {}
        self._unfinished = b''
        self._refused = ''  # what the system refused a child that is about to end, after the child's name

    def __enter__(self) -> 'Supervisor':
        self._wakeup, self._wakeup_write = os.pipe()
        self._reports, self.reports = os.pipe()
        os.set_blocking(self._wakeup_write, False)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup and `&` of a script ignore some
                self._old_handlers[number] = signal.signal(number, self._note)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: Any) -> None:
        processes = [c.process for c in self._children if c.process is not None]
        for process in processes:
            process.kill()
        deadline = time.monotonic() + 1
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        signal.set_wakeup_fd(-1)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        for fd in (self._wakeup, self._wakeup_write, self._reports, self.reports):
            os.close(fd)

    def add(self, name: str, target: Callable[..., None], *args: Any, last: bool = False) -> None:
        """Run target(*args) in a process from now on. last: when it ends, `run` returns."""
        self._children.append(Child(name, last, target, args))
        try:
            self._start(self._children[-1])
        except OSError as e:
            refused = refusal(e)
            raise InputError('cannot start %s: %s' % (name, '%s: %s' % (refused, ADVICE) if refused else e))

    def wait_for(self, connection: Connection) -> bool:
        """Wait until a connection has something to read; False when a signal or a death came first.

        Raises InputError where the system refused a child something.
        """
        waiting: List[Union[Connection, int]] = [connection, self._wakeup]
        waiting += [c.process.sentinel for c in self._children if c.process]
        if connection in multiprocessing.connection.wait(waiting):
            return True
        self._read_reports(None)
        if self._refused:
            raise InputError('cannot start %s: %s' % (self._refused, ADVICE))
        return False

    def run(self, report: Optional[Callable[[str], None]] = None) -> int:
        """Replace what dies until a signal, or until the last child ended; returns the exit status.

        report: gets each line that a child writes to the descriptor `reports` behind REPORT. Raises
        KeyboardInterrupt for SIGINT.
        """
        while not self._signal:
            sentinels = {c.process.sentinel: (c, c.process) for c in self._children if c.process}
            timeout = 0.5 if len(sentinels) < len(self._children) else None
            ready = multiprocessing.connection.wait(list(sentinels) + [self._wakeup, self._reports], timeout)
            self._read_reports(report)
            for sentinel in ready:
                if sentinel in sentinels and not self._signal:
                    child, process = sentinels[sentinel]
                    process.join(1)
                    if child.last and process.exitcode == 0:
                        return 0
                    self._read_reports(report)  # what it said last
                    self._bury(child, process)
            for child in self._children:
                if child.process is None and time.monotonic() >= child.due:
                    self._restart(child)
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        return 0

    def _note(self, number: int, _: Optional[FrameType]) -> None:
        self._signal = self._signal or number

    def _start(self, child: Child) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the child has its own handlers
        try:
            process = fork.Process(target=self._run_child, args=(child, os.getpid()), daemon=True)
            process.start()
            child.process = process
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        child.started = time.monotonic()

    def _restart(self, child: Child) -> None:
        """Start a child again; later, where the system refuses it now. Raises InputError where it goes on to do so."""
        try:
            self._start(child)
        except OSError as e:
            problem = 'cannot start %s again: %s' % (child.name, refusal(e) or e)
            if child.short_lives >= MAX_SHORT_LIVES:
                raise InputError(problem)
            child.short_lives += 1
            child.due = time.monotonic() + child.short_lives
            log.warning('%s', problem)

    def _run_child(self, child: Child, parent: int) -> None:
        signal.set_wakeup_fd(-1)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in STOP_SIGNALS:  # they may reach all processes; the first one ends the others
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if os.getppid() != parent:
            os._exit(1)
        others = [c.process.sentinel for c in self._children if c.process is not None and c is not child]
        for fd in [self._wakeup, self._wakeup_write, self._reports] + others:
            os.close(fd)
        if sys.stderr:  # where ZeroMQ, refused something, writes a line before it ends the process
            os.dup2(self.reports, sys.stderr.fileno())
        self._in_child()
        try:
            child.target(*child.args)
        except Exception as e:
            refused = str(e) if isinstance(e, RunError) else refusal(e)
            if refused is None:
                log.warning('%s: %s: %s', child.name, type(e).__name__, e)
            else:
                text = ' '.join(('%s: %s' % (child.name, refused)).split()).encode('utf-8', 'surrogateescape')
                os.write(self.reports, REFUSED + text[:2000] + b'\n')
            os._exit(1)

    def _bury(self, child: Child, process: BaseProcess) -> None:
        """Have a child that ended started again. Raises InputError where too many ended soon after their start, or
        where the system refused the first one something."""
        code, pid = process.exitcode, process.pid
        child.process = None
        now = time.monotonic()
        if now - child.started > SHORT_LIFE:
            child.short_lives, child.lived = 0, True
        refused, self._refused = self._refused, ''
        if refused and not child.lived:
            raise InputError('cannot start %s: %s' % (refused, ADVICE))
        how = 'was killed by signal %d' % -code if code and code < 0 else 'ended with status %s' % code
        how += ' (%s)' % refused if refused else ''
        if child.short_lives >= MAX_SHORT_LIVES:
            raise InputError('%s (process %s) %s, as did %d before it soon after their start: giving up'
                             % (child.name, pid, how, child.short_lives))
        child.due = now + 0.5 * child.short_lives
        child.short_lives += 1
        log.warning('%s (process %s) %s: starting another', child.name, pid, how)

    def _read_reports(self, report: Optional[Callable[[str], None]]) -> None:
        """Take what children have written to the pipe: reports, what they were refused, and other libraries' lines."""
        while multiprocessing.connection.wait([self._reports], 0):
            lines = (self._unfinished + os.read(self._reports, 65536)).split(b'\n')
            self._unfinished = lines.pop()
            for line in lines:
                text = line.decode('utf-8', 'surrogateescape')
                refused = refusal_in_words(text)
                if line.startswith(REFUSED):
                    self._refused = text[len(REFUSED):]
                elif refused:
                    self._refused = 'one of the processes: ' + refused
                elif report and line.startswith(REPORT):
                    report(text[len(REPORT):])
                elif sys.stderr:
                    os.write(sys.stderr.fileno(), line + b'\n')
