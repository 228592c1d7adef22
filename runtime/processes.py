"""What Linux tells of this process and of those that started it."""
import os
from typing import Dict, List, Optional

FIRST_PID_NAMESPACE = 'pid:[4026531836]'  # the number that Linux gives the one that it starts with


def parent(pid: int) -> Optional[int]:
    """Return the process that a process is a child of; None where that can't be known."""
    try:
        with open('/proc/%d/stat' % pid) as f:
            return int(f.read().rpartition(')')[2].split()[1]) or None
    except (OSError, ValueError, IndexError):
        return None


def ancestors() -> List[int]:
    """List this process, the one that started it, and so on."""
    found: List[int] = []
    pid: Optional[int] = os.getpid()
    while pid and pid not in found:
        found.append(pid)
        pid = parent(pid)
    return found


def environment_of(pid: int) -> Optional[Dict[str, str]]:
    """Return the environment that a process was started with; None where that can't be read."""
    try:
        with open('/proc/%d/environ' % pid, 'rb') as f:
            variables = os.fsdecode(f.read()).split('\0')
    except OSError:
        return None
    return dict(variable.split('=', 1) for variable in variables if '=' in variable)


def has_terminal() -> bool:
    """Tell whether this process was started at a terminal, wherever its output goes."""
    try:
        with open('/proc/self/stat') as f:
            return f.read().rpartition(')')[2].split()[4] != '0'
    except (OSError, IndexError):
        return False


def in_first_pid_namespace() -> bool:
    """Tell whether processes have the numbers here that they have outside of all containers."""
    try:
        return os.readlink('/proc/self/ns/pid') == FIRST_PID_NAMESPACE
    except OSError:
        return False
