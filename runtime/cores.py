"""How many of the machine's cores this process may keep busy. No TensorFlow here: the data side asks, too."""
import os
import sys
from typing import Iterator, List, Optional, Tuple

CGROUPS = '/sys/fs/cgroup'
OWN_CGROUPS = '/proc/self/cgroup'


def usable_cores(root: str = CGROUPS, own: str = OWN_CGROUPS) -> int:
    """Count the cores that this process may use: those it is bound to, or fewer where a cgroup has a CPU quota.

    A container's or a batch job's quota (`docker --cpus 2`) doesn't show in the machine's cores, nor in the mask of
    those a process may run on; with more threads than it allows, all of them stand still for a part of each period.
    root: where the cgroup file system is. own: the file that says which cgroups this process is in.
    """
    return min(len(os.sched_getaffinity(0)), quota_cores(root, own) or sys.maxsize)


def quota_cores(root: str = CGROUPS, own: str = OWN_CGROUPS) -> Optional[int]:
    """Return how many cores a CPU quota keeps busy, at least 1; None without one. It is one for all processes of a
    cgroup, as the ranks of a machine are."""
    quota = cpu_quota(root, own)
    return None if quota is None else max(1, -(-quota[0] // quota[1]))  # 1.5 cores keep two threads busy


def threads_of_rank(bound: int, machine: int, quota: Optional[int], ranks: int) -> int:
    """Return how many threads one of the `ranks` of a machine may keep busy: at most the cores that it is bound to, and
    its share of the machine's, or of those that a quota allows to all of them."""
    return max(1, min(bound, min(machine, quota or machine) // ranks))


def cpu_quota(root: str = CGROUPS, own: str = OWN_CGROUPS) -> Optional[Tuple[int, int]]:
    """Return the tightest CPU quota of this process's cgroups and their parents, as microseconds in a period; None
    without one."""
    quotas = [quota for folder in _cpu_cgroups(root, own) for quota in (_quota_v2(folder), _quota_v1(folder)) if quota]
    return min(quotas, key=lambda quota: quota[0] / quota[1], default=None)


def _cpu_cgroups(root: str, own: str) -> Iterator[str]:
    """List the folders of the cgroups that may limit this process's CPU time.

    Inside a container the file system often begins at the container's own cgroup, while /proc has the path outside of
    it: folders that are not there are passed over, and the way up ends with the file system's root.
    """
    for line in _read(own).splitlines():
        number, _, rest = line.partition(':')
        controllers, _, path = rest.partition(':')
        if controllers == '' and number == '0':   # v2; beside v1's mostly mounted as `unified`
            mounts = [root, os.path.join(root, 'unified')]
        elif 'cpu' in controllers.split(','):     # v1; `cpu` is often a link to `cpu,cpuacct`
            mounts = [os.path.join(root, controllers), os.path.join(root, 'cpu')]
        else:
            continue
        parts = [part for part in path.split('/') if part not in ('', '.', '..')]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                yield os.path.join(mount, *parts[:depth])


def _quota_v2(folder: str) -> Optional[Tuple[int, int]]:
    return _as_quota(_read(os.path.join(folder, 'cpu.max')).split())


def _quota_v1(folder: str) -> Optional[Tuple[int, int]]:
    return _as_quota([_read(os.path.join(folder, 'cpu.cfs_%s_us' % name)).strip() for name in ('quota', 'period')])


def _as_quota(words: List[str]) -> Optional[Tuple[int, int]]:
    """Return quota and period; None for none, which is `max` in v2 and -1 in v1, and for what can't be read."""
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        return None
    return int(words[0]), int(words[1])


def _read(path: str) -> str:
    try:
        with open(path) as f:
            return f.read()
    except (OSError, ValueError):
        return ''
