"""The content of a file until it is whole: in a temporary file, and where a disk is full in another place."""
import contextlib
import errno
import hashlib
import os
import sys
import tempfile
from typing import Any, Iterator, List, Optional, Set, Union

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # the machine's failure, not wrong input
BUFFER = 1 << 16
TEMPORARY: Set[str] = set()  # files of this process that are to be removed, or to get another name


class Content:
    """Holds what is written of a file until it is whole, in a temporary one beside it.

    With `keep`, where a disk is full it moves on to another folder, and at last into memory. There it begins where no
    file can be made beside `path`, but the one at `path` can be written over.
    """

    def __init__(self, path: str, *, keep: bool):
        self._path, self._keep, self._moved, self._whole = path, keep, False, False
        self._pending: List[bytes] = []
        self._size, self._written = 0, 0  # bytes: pending, and in the file
        self._memory = bytearray()
        self.failure: Optional[OSError] = None  # what `write` raised
        self._folders = other_folders()
        self._temporary = part_of(path)
        self._fd: Optional[int] = None
        TEMPORARY.add(self._temporary)
        try:
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError:
            if not keep and not writable_in_place(path):
                TEMPORARY.discard(self._temporary)
                raise
            self._elsewhere()

    def _elsewhere(self) -> None:
        """Begin a file in the next of the other folders, or in memory behind the last one."""
        self._fd, self._temporary, self._moved, self._written = None, '', True, 0
        for folder in self._folders:
            with contextlib.suppress(OSError):
                name = shortened(os.path.basename(self._path))
                self._fd, self._temporary = tempfile.mkstemp(prefix=name + '.', dir=folder)
                TEMPORARY.add(self._temporary)
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(self._fd, 0o666 & ~mask)  # as any file; it may come to its place yet
                return

    def _move(self) -> None:
        """Go on in another folder, or in memory."""
        before, old, written = self._fd, self._temporary, self._written
        assert before is not None
        try:
            while True:
                self._elsewhere()
                try:
                    for begin in range(0, written, BUFFER):
                        self._append(os.pread(before, min(BUFFER, written - begin), begin))
                    return
                except OSError:
                    if self._fd is None:  # it is the old one that can't be read
                        raise
                    self.discard()  # that disk is full as well
        finally:
            os.close(before)
            remove(old)

    def write(self, data: Union[str, bytes]) -> None:
        """Append data, a text in UTF-8."""
        self._pending.append(data.encode('utf-8', 'surrogateescape') if isinstance(data, str) else data)
        self._size += len(data)
        if self._size >= BUFFER:
            try:
                self._rescued(self._flush)
            except OSError as e:
                self.failure = e
                raise

    def finish(self) -> None:
        """Put all of it on the disk."""
        def sync() -> None:
            self._flush()
            self._whole = True
            if self._fd is not None:
                os.fsync(self._fd)
        self._rescued(sync)

    def _rescued(self, work: Any) -> None:
        """Do some work on the file, or once more in other places."""
        while True:
            try:
                work()
                return
            except OSError:
                if not self._keep or self._fd is None:
                    raise
                self._move()

    def _flush(self) -> None:
        self._append(b''.join(self._pending))
        self._pending, self._size = [], 0

    def _append(self, data: bytes) -> None:
        end = self._written + len(data)
        done = self._written
        if self._fd is None:
            self._memory += data
            done = end
        while done < end:  # a part that is written before an error is written again
            done += os.pwrite(self._fd, data[done - end:], done)  # type: ignore[arg-type]
        self._written = end

    def parts(self) -> Iterator[bytes]:
        """Yield all of it."""
        for begin in range(0, self._written, BUFFER):
            size = min(BUFFER, self._written - begin)
            yield bytes(self._memory[begin:begin + size]) if self._fd is None else os.pread(self._fd, size, begin)

    def put(self, path: str) -> None:
        """Replace the file at `path` by this one, or write over it where it can't be replaced."""
        source = self._temporary
        existed = os.path.exists(path)
        try:
            if self._moved:  # a file of another disk can't replace one
                source = part_of(path)
                self._copy(source)
            os.replace(source, path)
        except OSError as e:
            if e.errno in FULL_OR_BROKEN:
                raise
            try:
                self._copy(path)
            except OSError:
                if not existed:
                    remove(path)
                raise
        finally:
            if source != self._temporary:
                remove(source)

    def _copy(self, path: str, *, sync: bool = True) -> None:
        """Write the content over that of another file, which stays the same file."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), 'wb') as written:
            for part in self.parts():
                written.write(part)
            written.truncate()
            written.flush()
            if sync:
                os.fsync(written.fileno())

    def kept(self) -> str:
        """Give the content, which could not be put in its place, a lasting one; returns where it is, '' for nowhere."""
        if not self._whole:
            return ''
        beside = os.path.join(os.path.dirname(self._path), shortened(os.path.basename(self._path)))
        names = ['%s.%d%s' % (beside, os.getpid(), more) for more in [''] + ['.%d' % i for i in range(1, 10)]]
        for folder in [''] + list(other_folders()):
            if self._moved and self._temporary and folder:  # it lasts where it is
                kept, self._temporary = self._temporary, ''
                TEMPORARY.discard(kept)
                return 'in ' + kept
            for name in names if not folder else [os.path.join(folder, os.path.basename(n)) for n in names]:
                if not os.path.lexists(name) and self._keep_as(name):
                    return 'in ' + name
        return 'on stdout' if self._print() else ''

    def kept_so_far(self) -> str:
        """Do as `kept` with what there is of a content that will not become whole."""
        with contextlib.suppress(OSError):
            self.finish()
        return self.kept()

    def _keep_as(self, name: str) -> bool:
        for place in (lambda: os.rename(self._temporary, name), lambda: self._copy(name, sync=False)):
            try:
                place()
                return True
            except OSError:
                remove(name)
        return False

    def _print(self) -> bool:
        try:
            sys.stdout.flush()
            for part in self.parts():
                sys.stdout.buffer.write(part)
            sys.stdout.flush()
            return True
        except (OSError, ValueError, AttributeError):  # closed, or none
            return False

    def discard(self) -> None:
        """Remove the temporary file, where it is still there."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        remove(self._temporary)
        TEMPORARY.difference_update({self._temporary, part_of(self._path)})


def other_folders() -> Iterator[str]:
    """Yield the folders that may take a file when its own doesn't: for temporary ones, this one, home, memory's."""
    for find in (tempfile.gettempdir, lambda: '/var/tmp', lambda: '/tmp', os.getcwd, lambda: os.path.expanduser('~'),
                 lambda: '/dev/shm'):
        with contextlib.suppress(OSError):
            yield find()


def discard_temporary() -> None:
    """Remove this process's temporary files: it is about to end at once, whatever it does."""
    for path in list(TEMPORARY):
        remove(path)


def part_of(path: str) -> str:
    """Return this process's name for a file that is not whole yet, beside the one that it becomes."""
    folder, name = os.path.split(path)
    return os.path.join(folder, '.%s.%d.part' % (shortened(name), os.getpid()))


def shortened(name: str) -> str:
    """Return a file's name, or where that is long its beginning and a digest of it, so that more fits behind: a name
    has at most 255 bytes."""
    data = os.fsencode(name)
    if len(data) <= 200:
        return name
    beginning = data[:180].decode('utf-8', 'ignore')  # no part of a character, which some file systems refuse
    return beginning + '.' + hashlib.sha256(data).hexdigest()[:12]


def remove(path: str) -> None:
    """Remove a file, where it is there and that may be done."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def writable_in_place(path: str) -> bool:
    """Tell whether there is a file that can be written over."""
    try:
        os.close(os.open(path, os.O_WRONLY))
        return True
    except OSError:
        return False
