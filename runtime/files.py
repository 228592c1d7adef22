"""Files that are there as a whole or not at all, whatever happens while they are written."""
import errno
import os
from typing import Any

from runtime.errors import InputError, RunError


class WholeFile:
    """A file that appears, on the disk, when its `with` block ends well, and leaves what was there otherwise.

    Until then it has a name with a dot in front, which nothing here takes for an image or a result. Raises InputError
    when it can't be written.
    """

    def __init__(self, path: str, mode: str = 'w'):
        self._path, self._mode = os.path.realpath(path), mode  # a link stays one
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, '.%s.%d.part' % (name, os.getpid()))

    def __enter__(self) -> Any:
        text = 'b' not in self._mode
        try:
            self._file = open(self._temporary, self._mode, newline='' if text else None,
                              encoding='utf-8' if text else None, errors='surrogateescape' if text else None)
        except OSError as e:
            raise cannot_write(self._path, e)
        return self._file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                os.replace(self._temporary, self._path)
                sync_folder(self._path)
        except OSError as e:
            raise cannot_write(self._path, e)
        finally:
            if os.path.exists(self._temporary):
                os.unlink(self._temporary)
        if isinstance(error, OSError):
            raise cannot_write(self._path, error)


def check_writable(path: str) -> None:
    """Raise InputError where no file can be written: better known before the work than after it."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise InputError('cannot write %s: it is a folder' % path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError('cannot write %s: it is not a file, and would be replaced by one' % path)
    if not os.path.isdir(folder):
        raise InputError('cannot write %s: there is no folder %s' % (path, folder))
    if not os.access(folder, os.W_OK):
        raise InputError('cannot write %s: you may not write to %s' % (path, folder))


def check_folder(path: str, message: str) -> None:
    """Raise InputError where a folder can be neither made nor written to. message: of a path and the reason."""
    there = os.path.realpath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(message % (path, os.strerror(errno.EACCES if os.path.isdir(there) else errno.ENOTDIR)))


def cannot_write(path: str, error: OSError) -> Exception:
    """Return an InputError, or a RunError where the machine failed a job that was started well."""
    kind = RunError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else InputError
    return kind('cannot write %s: %s' % (path, error.strerror))


def sync_folder(path: str) -> None:
    """Put the name of the file at `path` on the disk: after a power failure a new file may else be gone."""
    fd = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
