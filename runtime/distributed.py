"""Which of a job's processes this is, and what ranks tell each other. One process alone needs neither MPI nor
Horovod."""
import json
import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Callable, Optional, TypeVar

from runtime.compat import tf

import numpy as np

from runtime.cores import quota_cores, threads_of_rank
from runtime.errors import InputError
from runtime.hardware import has_gpu, num_gpus, session_config
from runtime.launcher import check_launch, check_size, find_launch, one_task_is_one_process
from runtime.sharing import of_machines, share_of, warn_of_shares

SECONDS_BETWEEN_MEETINGS = 2.0
T = TypeVar('T')


class World:
    """All processes ("ranks") of a job. This one: a single process."""
    rank = 0
    size = 1
    local_rank = 0  # among those of this machine
    local_size = 1

    @property
    def is_chief(self) -> bool:
        """Tell whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    def sum(self, values: Any) -> np.ndarray:
        """Add up every rank's numbers, float64 of the same shape. All ranks must call it, in the same order."""
        return np.asarray(values, np.float64)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Put every rank's rows, (n, k) of any dtype, one after the other; n may differ. All ranks must call it."""
        return rows

    def from_chief(self, values: Any) -> Any:
        """Return the chief's `values`, which must have a form in JSON, on every rank; those of the others are ignored.

        All ranks must call it. Tuples come back as lists.
        """
        text = np.frombuffer(json.dumps(values if self.is_chief else None).encode(), np.uint8)
        return json.loads(self.gather(text[:len(text) if self.is_chief else 0, None]).tobytes().decode())

    def patiently(self, work: Callable[[], T]) -> T:
        """Return `work()`, which takes as long as it takes, on this rank or on another one: nobody waits in silence.

        All ranks must call it. The work may not meet other ranks, as it has a thread of its own where there are some.
        """
        return work()

    def session_config(self) -> Any:
        """Return the configuration of this rank's sessions: its GPU, and its share of the machine's cores.

        With a single inter-op thread, Horovod's and the input queue's operations can wait for each other for ever.
        """
        config = session_config()
        if num_gpus():  # a launcher may show each rank its own GPU only, as number 0
            config.gpu_options.visible_device_list = str(self.local_rank % num_gpus())
        if self.size > 1:
            config.intra_op_parallelism_threads = threads_of_rank(
                len(os.sched_getaffinity(0)), os.cpu_count() or 1, quota_cores(), self.local_size)
            config.inter_op_parallelism_threads = max(2, config.intra_op_parallelism_threads)
        return config


class HorovodWorld(World):
    """The ranks that a launcher such as mpirun started. Raises InputError where Horovod counts others than it."""

    def __init__(self) -> None:
        try:
            import horovod.tensorflow as hvd
        except (ImportError, OSError, tf.errors.OpError) as e:  # not installed, no MPI, built for another TensorFlow
            raise InputError('several processes, and training, need Horovod, which can\'t be loaded (%s): '
                             'run "make setup"' % e)
        if not has_gpu():
            # Horovod's ranks ask each other once in a cycle, of 1 ms by itself, what is ready, and wait for it in a
            # loop: on a CPU that takes the time that their networks need (benchmarks/README.md).
            os.environ.setdefault('HOROVOD_CYCLE_TIME', '10')
            # Open MPI's ranks wait for each other in such a loop, too. This lets others have the core meanwhile.
            os.environ.setdefault('OMPI_MCA_mpi_yield_when_idle', '1')
        check_launch()
        with one_task_is_one_process():
            hvd.init()
        check_size(hvd.size())
        self.hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self._session: Optional[tf.Session] = None
        if find_launch():
            warn_of_shares(of_machines(self.gather(share_of(self.local_size, num_gpus()))))

    def sum(self, values: Any) -> np.ndarray:
        values = np.asarray(values, np.float64)
        if self.size == 1:
            return values
        return self._run('sum', values.ravel()).reshape(values.shape)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return rows
        as_bytes = np.ascontiguousarray(rows).view(np.uint8)
        return np.ascontiguousarray(self._run('gather', as_bytes)).view(rows.dtype)

    def patiently(self, work: Callable[[], T]) -> T:
        # A rank that waits for one that reads a data set for minutes is a deadlock to Horovod: it warns of it after 60
        # seconds, and can be set to end the job. So all of them meet every few seconds, with or without a result.
        if self.size == 1:
            return work()
        pool = ThreadPoolExecutor(1)
        try:
            future = pool.submit(work)
            while True:
                wait([future], timeout=SECONDS_BETWEEN_MEETINGS)
                ready = future.done()
                if ready:
                    future.result()  # an error ends this rank, and so the job
                if self.sum(float(ready)) == self.size:
                    return future.result()
        finally:
            pool.shutdown(wait=False)  # where a rank is gone, nobody waits for an hour's work before it is said

    def _run(self, operation: str, values: np.ndarray) -> np.ndarray:
        if self._session is None:
            # a graph of its own: ranks also meet between the steps of a training, whose graph is finished
            with tf.Graph().as_default() as graph, tf.device('/cpu:0'):
                numbers, rows = tf.placeholder(tf.float64, [None]), tf.placeholder(tf.uint8, [None, None])
                self._operations = {
                    'sum': (numbers, self.hvd.allreduce(numbers, op=self.hvd.Sum, name='sum_over_ranks')),
                    'gather': (rows, self.hvd.allgather(rows, name='gather_from_ranks'))}
            self._session = tf.Session(graph=graph, config=self.session_config())
        given, result = self._operations[operation]
        return self._session.run(result, {given: values})


def connect() -> World:
    """Return the ranks of this job; wait until all of them are there."""
    started = find_launch()
    if started is None or started.size == 1:
        if started:  # Open MPI binds one rank to one core, too
            warn_of_shares(of_machines(share_of(1, num_gpus())))
        return World()
    try:
        return HorovodWorld()
    except InputError:
        if started.is_one_of_several:
            raise
        return World()  # a launcher that doesn't say how many there are, and no Horovod that could know of others
