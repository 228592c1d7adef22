"""What ranks have of a machine, and a word where it is less than they could: GPUs that they share, cores that none of
them may use."""
import ctypes
import hashlib
import logging
import os
import socket
from typing import Dict, FrozenSet, Optional, Set

import numpy as np

from runtime.launcher import RANK_VARIABLES, is_task_of_srun
from runtime.processes import environment_of, parent

log = logging.getLogger(__name__)

DRIVERS_GPUS = '/proc/driver/nvidia/gpus'
CUDA = 'libcuda.so.1'
MOST_CORES = 4096  # that a row of `share_of` has room for

# One rank's: which machine it is on and ranks there; which GPUs it sees, as a digest, 0 where that can't be known; how
# many these are; cores that its launcher may use, and in bits which ones itself may
SHARE = np.dtype([('machine', '<i8'), ('ranks', '<i8'), ('which_gpus', '<i8'), ('gpus', '<i8'), ('all_cores', '<i8'),
                  ('cores', 'u1', MOST_CORES // 8)])


def share_of(local_size: int, visible_gpus: int) -> np.ndarray:
    """Return one rank's row, (1, 1) of SHARE."""
    share = np.zeros((1, 1), SHARE)
    names = gpu_names()
    share['machine'], share['ranks'] = number_of(machine_name()), local_size
    share['which_gpus'] = number_of('\n'.join(sorted(names))) if names else 0
    share['gpus'] = visible_gpus if names else gpus_for_all(visible_gpus)
    share['all_cores'] = cores_of_launcher()
    bits = np.zeros(MOST_CORES, np.uint8)
    bits[[core for core in os.sched_getaffinity(0) if core < MOST_CORES]] = 1
    share['cores'] = np.packbits(bits)
    return share


def of_machines(shares: np.ndarray) -> np.ndarray:
    """Put together what the rows of all ranks, (N, 1) of SHARE, say of their machines.

    Returns a row for each: ranks, GPUs that at least one of them sees, cores that at least one of them may use, and
    cores that their launcher may.
    """
    shares, rows = shares[:, 0], []
    for machine in sorted(set(shares['machine'].tolist())):
        here = shares[shares['machine'] == machine]
        known = {which: gpus for which, gpus in zip(here['which_gpus'].tolist(), here['gpus'].tolist()) if which}
        cores = np.unpackbits(np.bitwise_or.reduce(here['cores'], axis=0)).sum()
        rows.append([here['ranks'].max(), sum(known.values()) or here['gpus'].max(), cores, here['all_cores'].max()])
    return np.array(rows, np.int64)


def warn_of_shares(table: np.ndarray) -> None:
    """Say, for all machines at once, where ranks have less than they could. table: the rows of `of_machines`."""
    said: Dict[str, str] = {}
    for ranks, gpus, cores, all_cores in table.tolist():
        if 0 < gpus < ranks:
            said.setdefault('gpus', '%d ranks share %d GPU%s of a machine: start one rank a GPU, and show each its own '
                            'or all of them' % (ranks, gpus, '' if gpus == 1 else 's'))
        if cores < all_cores:
            said.setdefault('cores', 'ranks are bound to %d of %d cores: start %s' % (
                cores, all_cores, 'srun with --cpu-bind=none' if is_task_of_srun() else 'mpirun with --bind-to none'))
    for text in said.values():
        log.warning(text)


def number_of(text: str) -> int:
    """Return a number, 1 to 2**62, by which ranks tell whether their texts are the same."""
    return int.from_bytes(hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()[:8], 'little') // 4 + 1


def machine_name() -> str:
    """Name this machine; containers on it, with other names of hosts, are the same one."""
    try:
        with open('/proc/sys/kernel/random/boot_id') as f:
            return f.read()
    except OSError:
        return socket.gethostname()


def gpu_names(library: str = CUDA) -> FrozenSet[str]:
    """Return the UUIDs of the GPUs, or parts of GPUs, that CUDA shows this process; nothing where it doesn't say.

    Two ranks that see one GPU each may see the same one: CUDA_VISIBLE_DEVICES is not always what hides the others.
    """
    names: Set[str] = set()
    try:
        cuda = ctypes.CDLL(library)
        uuid_of = getattr(cuda, 'cuDeviceGetUuid_v2', None) or cuda.cuDeviceGetUuid  # before 11.4 it is a whole GPU's
        count, device, uuid = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(16)
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
            return frozenset()
        for number in range(count.value):
            if cuda.cuDeviceGet(ctypes.byref(device), number) or uuid_of(uuid, device):
                return frozenset()
            names.add(uuid.raw.hex())
    except (OSError, AttributeError):
        return frozenset()
    return frozenset(names)


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
        pid = parent(pid)
    try:
        cores = len(os.sched_getaffinity(pid or 0))
    except OSError:
        cores = len(os.sched_getaffinity(0))
    of_step = os.environ.get('SLURM_CPUS_ON_NODE', '')  # slurm's own program may use all
    return min(cores, int(of_step)) if of_step.isdigit() and int(of_step) and is_task_of_srun() else cores


def _is_of_a_rank(pid: int) -> bool:
    return any(name in RANK_VARIABLES for name in environment_of(pid) or ())
