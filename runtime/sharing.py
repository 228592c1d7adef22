"""What ranks have of a machine, and a word where it is less than they could: GPUs that they share, cores they are bound
to."""
import logging
import os
from typing import Dict, Optional

import numpy as np

log = logging.getLogger(__name__)

RANK_VARIABLES = (b'OMPI_COMM_WORLD_RANK=', b'PMI_RANK=', b'PMIX_RANK=')
DRIVERS_GPUS = '/proc/driver/nvidia/gpus'


def share_of(local_size: int, visible_gpus: int) -> np.ndarray:
    """Return one rank's row: ranks of its machine, GPUs for them, cores that it may use, and that its launcher may."""
    return np.array([[local_size, gpus_for_all(visible_gpus), len(os.sched_getaffinity(0)), cores_of_launcher()]],
                    np.int64)


def gpus_for_all(visible: int) -> int:
    """Return how many GPUs the ranks of this machine have; a launcher may show each of them its own alone."""
    try:
        return max(visible, len(os.listdir(DRIVERS_GPUS))) if visible == 1 else visible
    except OSError:
        return visible


def cores_of_launcher() -> int:
    """Return how many cores the program may use that started the ranks: a job's, which need not be all of the
    machine's."""
    pid: Optional[int] = os.getppid()
    while pid and _is_of_a_rank(pid):  # a shell, or a profiler, between mpirun and this process
        pid = _parent(pid)
    try:
        return len(os.sched_getaffinity(pid or 0))
    except OSError:
        return len(os.sched_getaffinity(0))


def warn_of_shares(table: np.ndarray) -> None:
    """Say, for all ranks at once, where they have less than they could. table: the rows of `share_of` of all ranks."""
    said: Dict[str, str] = {}
    for ranks, gpus, cores, all_cores in table.tolist():
        if 0 < gpus < ranks:
            said.setdefault('gpus', '%d ranks share %d GPU%s of a machine: start one rank a GPU' % (
                ranks, gpus, '' if gpus == 1 else 's'))
        if ranks > 1 and cores < all_cores:
            said.setdefault('cores', 'ranks are bound to %d of %d cores: start mpirun with --bind-to none'
                            % (cores, all_cores))
    for text in said.values():
        log.warning(text)


def _is_of_a_rank(pid: int) -> bool:
    try:
        with open('/proc/%d/environ' % pid, 'rb') as f:
            return any(variable.startswith(RANK_VARIABLES) for variable in f.read().split(b'\0'))
    except OSError:
        return False


def _parent(pid: int) -> Optional[int]:
    try:
        with open('/proc/%d/stat' % pid) as f:
            return int(f.read().rpartition(')')[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
