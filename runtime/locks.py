"""Locks on files, which go with the process that has them, however it ends: a file that stays behind is no obstacle."""
import errno
import fcntl
import os
from typing import Optional

RIVAL = (errno.EWOULDBLOCK, errno.EACCES)  # another process has it; CIFS says EACCES
# What flock answers on a file system without locks (some of Lustre and NFS)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)


class InUse(Exception):
    """Another process has the lock."""


def take_lock(descriptor: int) -> Optional[str]:
    """Lock an open file until its descriptor is closed; return None, or why its file system has no locks.

    There nobody else would be noticed, which the caller has to say. Raises InUse where another process has the lock,
    and OSError where the file can't be locked for another reason.
    """
    return _flock(descriptor, fcntl.LOCK_EX)


def is_locked(path: str) -> bool:
    """Tell whether another process has the lock of a file, as far as that can be seen; takes none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS wants to write to what it locks
    except OSError:
        return False
    try:
        _flock(descriptor, fcntl.LOCK_SH)  # for a moment, in which others may ask the same
        return False
    except InUse:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> Optional[str]:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in RIVAL:
            raise InUse
        if e.errno in NO_LOCKS:
            return e.strerror
        raise
    return None
