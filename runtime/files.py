"""Files that are there as a whole or not at all, whatever happens while they are written."""
import contextlib
import errno
import os
import shutil
import tempfile
from typing import Any, List, Optional, Union

from runtime.errors import InputError, RunError

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # the machine's failure, not wrong input
BUFFER = 1 << 16


class WholeFile:
    """A file that appears, on the disk, when its `with` block ends well, and leaves what was there otherwise.

    Until then it has a name with a dot in front, which nothing here takes for an image or a result. Where it can't
    replace what is there (a mount point, another user's file in a sticky folder) that is written over. Raises
    InputError, or RunError, when it can't be written.

    Args:
        keep: its content is worth hours. What can't be written to its place is kept in another one, which the error
            names.
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
            elif isinstance(error, OSError):
                raise error
        except OSError as e:
            raise cannot_write(self._path, e, self._content.kept() if self._keep and kind is None else None)
        finally:
            self._content.discard()


class Content:
    """What is written of a file, in a temporary one beside it. With `keep` it moves to the folder for temporary files
    where that takes no more."""

    def __init__(self, path: str, *, keep: bool):
        self._path, self._keep, self._moved, self._whole = path, keep, False, False
        self._pending: List[bytes] = []
        self._size, self._written = 0, 0  # bytes: pending, and in the file
        self._temporary = part_of(path)
        try:
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError:
            if not keep and not writable_in_place(path):
                raise
            self._elsewhere()

    def _elsewhere(self) -> None:
        """Begin a file in the folder for temporary ones."""
        self._fd, self._temporary = tempfile.mkstemp(prefix=os.path.basename(self._path) + '.')
        self._moved = True
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(self._fd, 0o666 & ~mask)  # as any file; it may come to its place yet

    def _move(self) -> None:
        """Go on in the folder for temporary files."""
        before, old, written = self._fd, self._temporary, self._written
        self._elsewhere()
        self._written = 0
        try:
            while self._written < written:
                self._append(os.pread(before, min(BUFFER, written - self._written), self._written))
        finally:
            os.close(before)
            remove(old)

    def write(self, data: Union[str, bytes]) -> None:
        """Append data, a text in UTF-8."""
        self._pending.append(data.encode('utf-8', 'surrogateescape') if isinstance(data, str) else data)
        self._size += len(data)
        if self._size >= BUFFER:
            self._rescued(self._flush)

    def finish(self) -> None:
        """Put all of it on the disk."""
        def sync() -> None:
            self._flush()
            self._whole = True
            os.fsync(self._fd)
        self._rescued(sync)

    def _rescued(self, work: Any) -> None:
        """Do some work on the file, or once more in another place."""
        try:
            work()
        except OSError:
            if not self._keep or self._moved:
                raise
            self._move()
            work()

    def _flush(self) -> None:
        data = b''.join(self._pending)
        self._append(data)
        self._pending, self._size = [], 0

    def _append(self, data: bytes) -> None:
        end = self._written + len(data)
        done = self._written
        while done < end:  # a part that is written before an error is written again
            done += os.pwrite(self._fd, data[done - end:], done)
        self._written = end

    def put(self, path: str) -> None:
        """Replace the file at `path` by this one, or write over it where it can't be replaced."""
        source = self._temporary
        existed = os.path.exists(path)
        try:
            if self._moved:  # a file of another disk can't replace one
                source = part_of(path)
                overwrite(self._temporary, source)
            os.replace(source, path)
        except OSError as e:
            if e.errno in FULL_OR_BROKEN:
                raise
            try:
                overwrite(self._temporary, path)
            except OSError:
                if not existed:
                    remove(path)
                raise
        finally:
            if source != self._temporary:
                remove(source)
        sync_folder(path)

    def kept(self) -> Optional[str]:
        """Give the content, which could not be put in its place, a lasting name; returns that, None without."""
        if not self._whole:
            return None
        beside = '%s.%d' % (self._path, os.getpid())
        for place in (os.rename, overwrite) if not os.path.lexists(beside) else ():
            try:
                place(self._temporary, beside)
                return beside
            except OSError:
                remove(beside)
        try:
            if not self._moved:
                self._move()  # also where the folder is gone
        except OSError:
            return None
        kept, self._temporary = self._temporary, ''
        return kept

    def discard(self) -> None:
        """Remove the temporary file, where it is still there."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        remove(self._temporary)


def part_of(path: str) -> str:
    """Return this process's name for a file that is not whole yet, beside the one that it becomes."""
    folder, name = os.path.split(path)
    return os.path.join(folder, '.%s.%d.part' % (name, os.getpid()))


def remove(path: str) -> None:
    """Remove a file, where it is there and that may be done."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def overwrite(source: str, path: str) -> None:
    """Write the content of a file over that of another one, which stays the same file."""
    with open(source, 'rb') as read, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), 'wb') as written:
        shutil.copyfileobj(read, written)
        written.truncate()
        written.flush()
        os.fsync(written.fileno())


def writable_in_place(path: str) -> bool:
    """Tell whether there is a file that can be written over."""
    try:
        os.close(os.open(path, os.O_WRONLY))
        return True
    except OSError:
        return False


def check_writable(path: str) -> None:
    """Raise InputError where no file can be written: better known before the work than after it.

    It is tried: a file is made in the folder, and where the one that is there can't be written over, it is replaced by
    its like.
    """
    path, named = os.path.realpath(path), path
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise InputError('cannot write %s: it is a folder' % named)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError('cannot write %s: it is not a file, and would be replaced by one' % named)
    if not os.path.isdir(folder):
        raise InputError('cannot write %s: there is no folder %s' % (named, folder))
    if writable_in_place(path):
        return
    part = part_of(path)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
    except OSError as e:
        raise InputError('cannot write %s: you may not write to %s (%s); give another place'
                         % (named, folder, e.strerror))
    try:
        if os.path.exists(path) and os.access(path, os.R_OK):
            shutil.copy2(path, part)
            os.replace(part, path)
    except OSError as e:
        raise InputError('cannot write %s: it can neither be written over nor replaced (%s); give another place'
                         % (named, e.strerror))
    finally:
        remove(part)


def check_folder(path: str, message: str) -> None:
    """Raise InputError where a folder can be neither made nor written to. message: of a path and the reason."""
    there = os.path.realpath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(message % (path, os.strerror(errno.EACCES if os.path.isdir(there) else errno.ENOTDIR)))


def cannot_write(path: str, error: OSError, kept: Optional[str] = None) -> Exception:
    """Return an InputError, or a RunError where the machine failed a job that was started well. kept: where the content
    is instead."""
    kind = RunError if error.errno in FULL_OR_BROKEN else InputError
    return kind('cannot write %s: %s%s' % (path, error.strerror, '; its content is in %s' % kept if kept else ''))


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
