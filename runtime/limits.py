"""What the system refuses (open files, processes, threads, memory), in words that name the limit."""
import errno
import os
import resource
import threading
import time
from typing import Callable, List, NoReturn, Optional, Sequence, TypeVar

from runtime.cores import usable_cores
from runtime.errors import InputError, NoMemory, RunError

T = TypeVar('T')
MEMORY_OF_TENSORFLOW = 2 << 30  # bytes of address space, with its threads' stacks, for the smallest network
PAUSES = (0.1, 1.0, 5.0, 20.0)  # seconds: what another job holds may be free again soon
REFUSALS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def refusal(error: BaseException) -> Optional[str]:
    """Say in one line what the system refused and which limit there is; None for an error of another kind."""
    number = getattr(error, 'errno', None)
    if isinstance(error, MemoryError) or isinstance(error, ImportError) and 'failed to map segment' in str(error):
        number = errno.ENOMEM  # the latter of a library that finds no room
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        number = errno.EAGAIN
    return refusal_of(number) if number in REFUSALS else None


def raise_named(error: Exception) -> NoReturn:
    """Raise an InputError that names what the system refused, or the error itself where it is of another kind."""
    text = refusal(error)
    raise error if text is None else InputError(text)


def retried(work: Callable[[], T], pauses: Sequence[float] = PAUSES) -> T:
    """Return `work()`, tried again after pauses where it is a RunError, or there is no memory. Raises RunError where it
    stays one."""
    for pause in pauses:
        try:
            return work()
        except (RunError, MemoryError):
            time.sleep(pause)
    try:
        return work()
    except MemoryError as e:
        raise NoMemory(refusal(e))


def mistaken_memory() -> List[str]:
    """Say where this process may not have the memory that TensorFlow takes to begin: it dies of that in its own way,
    with a stack of its functions."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or soft >= MEMORY_OF_TENSORFLOW:
        return []
    return ['TensorFlow needs more memory than it may have here: %s; it ends with the names of functions where it gets '
            'none' % _limit('%s KiB of memory in a process', resource.RLIMIT_AS, 'v', 1024)[0]]


def check_threads() -> None:
    """Raise InputError where this process can't start the threads that TensorFlow and the reading of images need:
    TensorFlow would abort."""
    number = 8 + 2 * usable_cores()
    go_on = threading.Event()
    threads: List[threading.Thread] = []
    try:
        for _ in range(number):
            thread = threading.Thread(target=go_on.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError as e:
        raise_named(e)
    finally:
        go_on.set()
        for thread in threads:
            thread.join()


def check_open_files(number: int) -> None:
    """Raise the system's OSError where this process may not open so many more files, of which some libraries die."""
    opened: List[int] = []
    try:
        for _ in range(number):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for fd in opened:
            os.close(fd)


def refusal_in_words(line: str) -> Optional[str]:
    """Return `refusal` of the error that a library's line begins with, such as `Too many open files (...)`."""
    return next((refusal_of(number) for number in REFUSALS if line.startswith(os.strerror(number))), None)


def refusal_of(number: int) -> str:
    """Return the words for one of the REFUSALS."""
    limits: List[str] = []
    if number == errno.EMFILE:
        limits = _limit('%s open files in a process', resource.RLIMIT_NOFILE, 'n')
    elif number == errno.ENFILE:
        limits = ['%s open files on this machine (fs.file-max)' % _number_in('/proc/sys/fs/file-max')]
    elif number == errno.EAGAIN:
        limits = _limit('%s processes and threads of yours', resource.RLIMIT_NPROC, 'u') + _pids_of_cgroups()
    if number in (errno.ENOMEM, errno.EAGAIN):  # a thread wants memory for its stack
        limits += _limit('%s KiB of memory in a process', resource.RLIMIT_AS, 'v', 1024)
        limits += _limit('%s KiB of data in a process', resource.RLIMIT_DATA, 'd', 1024)
    if not limits:
        limits = ['what this machine, container or job has']
    return '%s: the limit is %s' % (os.strerror(number), ', or '.join(limits))


def _limit(text: str, which: int, flag: str, unit: int = 1) -> List[str]:
    soft, hard = resource.getrlimit(which)
    if soft == resource.RLIM_INFINITY:
        return []
    more = '' if soft == hard else ', can be raised to %s' % (
        'any number' if hard == resource.RLIM_INFINITY else hard // unit)
    return [text % (soft // unit) + ' (ulimit -%s%s)' % (flag, more)]


def _pids_of_cgroups() -> List[str]:
    """Name the least number of processes that a cgroup of this process, or one above it, may have."""
    found: List[int] = []
    try:
        with open('/proc/self/cgroup') as f:
            lines = [line.rstrip('\n').split(':', 2) for line in f]
    except OSError:  # which open files may be the limit for
        return []
    for number, controllers, path in lines:
        if number == '0' or 'pids' in controllers.split(','):
            while True:
                for mount in ('', 'unified', 'pids'):
                    text = _number_in('/sys/fs/cgroup/%s/%s/pids.max' % (mount, path.strip('/')))
                    found += [int(text)] if text.isdigit() else []
                if path in ('', '/'):
                    break
                path = os.path.dirname(path)
    return ['%d in this container or job (pids.max)' % min(found)] if found else []


def _number_in(path: str) -> str:
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError:
        return 'an unknown number of'
