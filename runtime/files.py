"""Files that are there as a whole or not at all, whatever happens while they are written."""
import contextlib
import errno
import logging
import os
import tempfile
from typing import Any, Iterator, Optional

from runtime.content import FULL_OR_BROKEN, Content, remove, writable_in_place
from runtime.errors import InputError, RunError

log = logging.getLogger(__name__)


class WholeFile:
    """A file that appears, on the disk, when its `with` block ends well, and leaves what was there otherwise.

    Until then it has a name with a dot in front, which nothing here takes for an image or a result. Where it can't
    replace what is there (a mount point, another user's file in a sticky folder) that is written over. Raises
    InputError, or RunError, when it can't be written.

    Args:
        keep: its content is worth hours. What can't be written to its place is kept in another one, which the error
            names, or printed where none takes it.
    """

    def __init__(self, path: str, mode: str = 'w', *, keep: bool = False):
        self._path, self._keep = os.path.realpath(path), keep  # a link stays one
        self._content: Optional[Content] = None

    def __enter__(self) -> Any:
        try:
            self._content = Content(self._path, keep=self._keep)
        except OSError as e:
            raise cannot_write(self._path, e)
        return self._content

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        assert self._content
        try:
            if kind is None:
                self._content.finish()
                self._content.put(self._path)
                sync_folder(self._path)
            elif self._content.failure:  # other errors are not this file's, whatever was done in the block
                raise self._content.failure
        except OSError as e:
            raise cannot_write(self._path, e, self._content.kept() if self._keep and kind is None else '')
        finally:
            self._content.discard()


@contextlib.contextmanager
def kept_if_cut_off(path: str, what: str) -> Iterator[Content]:
    """Give a WholeFile whose content is worth hours, also where the block ends early: then a RunError, or a message
    beside another error, names the file with what there is so far. what: names the content, as 'the predictions'."""
    with WholeFile(path, keep=True) as f:
        try:
            yield f
        except Exception as e:
            kept = '%s so far are %s' % (what, f.kept_so_far() or 'lost')
            if isinstance(e, RunError):
                raise RunError('%s; %s' % (e, kept))
            log.error('%s', kept)
            raise


def check_writable(path: str) -> None:
    """Raise InputError where no file can be written: better known before the work than after it.

    It is tried, and what is there stays as it is: it is opened for writing; else a file is made beside it, and removed
    again, and problem_of_replacing asked.
    """
    path, named = os.path.realpath(path), path
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise InputError('cannot write %s: it is a folder' % named)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError('cannot write %s: it is not a file, and would be replaced by one' % named)
    if not os.path.isdir(folder):
        raise InputError('cannot write %s: there is no folder %s' % (named, folder))
    check_not_printed_to(path, named)
    if writable_in_place(path):
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # its name may be too long
        fd, beside = tempfile.mkstemp(prefix='.part.', dir=folder)
        os.close(fd)
    except OSError as e:
        raise InputError('cannot write %s: %s takes no new file (%s); give another place' % (named, folder, e.strerror))
    remove(beside)
    problem = problem_of_replacing(path) if os.path.exists(path) else None
    if problem:
        raise InputError('cannot write %s: it can neither be written over nor replaced (%s); give another place'
                         % (named, problem))


def check_not_printed_to(path: str, named: str) -> None:
    """Raise InputError where this process's stdout or stderr goes to a file: it would take away what was printed."""
    for fd, stream in ((1, 'stdout'), (2, 'stderr')):
        try:
            same = os.path.samestat(os.stat(path), os.fstat(fd))
        except OSError:  # no such file, or a closed stream
            continue
        if same:
            raise InputError('cannot write %s: it is the file that %s goes to; give another name' % (named, stream))


def problem_of_replacing(path: str) -> Optional[str]:
    """Say why the file at `path` can't be removed from its folder, which takes new ones; None where it can. Nothing is
    changed."""
    try:
        with open('/proc/self/mountinfo', 'rb') as f:
            mount_points = [line.split(b' ')[4] for line in f]
    except OSError:
        mount_points = []
    if os.fsencode(path).replace(b'\\', b'\\134').replace(b' ', b'\\040') in mount_points:
        return os.strerror(errno.EBUSY)
    try:
        empty_folder = tempfile.mkdtemp(prefix='.part.', dir=os.path.dirname(path))
    except OSError:  # it takes files alone
        return None
    try:
        os.rename(path, empty_folder)  # never done: a file can't replace a folder, but that is said last
    except OSError as e:
        return None if e.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY) else e.strerror
    finally:
        os.rmdir(empty_folder)
    return None


def check_folder(path: str, message: str) -> None:
    """Raise InputError where a folder can be neither made nor written to. message: of a path and the reason."""
    there = os.path.realpath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(message % (path, os.strerror(errno.EACCES if os.path.isdir(there) else errno.ENOTDIR)))


def cannot_write(path: str, error: OSError, kept: str = '') -> Exception:
    """Return an InputError, or a RunError where the machine failed a job that was started well. kept: where the content
    is instead."""
    kind = RunError if error.errno in FULL_OR_BROKEN else InputError
    return kind('cannot write %s: %s%s' % (path, error.strerror, '; its content is ' + kept if kept else ''))


def sync_folder(path: str) -> None:
    """Put the name of the file at `path` on the disk: after a power failure a new file may else be gone.

    Some file systems (CIFS, FUSE, shared folders) refuse that of a folder, or to open it. The file is there all the
    same, and was synchronised itself.
    """
    try:
        fd = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno in FULL_OR_BROKEN:
            raise
    finally:
        os.close(fd)


def require_file(path: str) -> None:
    """Raise InputError where there is something at `path` that is no file: reading a named pipe would wait for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError('cannot read %s: it is %s' % (path, 'a folder' if os.path.isdir(path) else 'not a file'))
