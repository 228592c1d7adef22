"""The data server: processes that make batches of augmented training images, and one that hands them out.

    this process: starts the others, replaces those that die, removes the sockets (see supervisor.py)
      |-- worker 0..N-1: a batch of the shuffled images, as a message        --> NAME.workers
      `-- distributor: NAME.workers --> NAME, where every rank takes the next message
"""
import logging
import os
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Callable, Dict, List, NamedTuple, Set, Tuple, Union

import cv2
import numpy as np
import zmq
from zmq_ops.wire import new_message

from runtime.errors import InputError, NoMemory
from runtime.limits import check_open_files, refusal
from third_party.imagenet import Dataset
from third_party.images import MIN_CROP_AREA, load_training_image
from third_party.supervisor import REPORT, Endpoint, Supervisor, fork
from third_party.transport import batch_specs, socket_directory

# A process's own and ZeroMQ's, at most, and a rank or an image: without one more, ZeroMQ ends the process, or goes on
# without a connection
OPEN_FILES = 20
log = logging.getLogger(__name__)


class Settings(NamedTuple):
    """What a server serves, and how."""
    endpoint: str
    batch: int
    image_size: int
    workers: int
    seed: int           # of the order and the augmentation, 0 .. 2**32 - 1
    min_crop_area: float = MIN_CROP_AREA  # of a training image, as a fraction of its area
    hwm: int = 8        # batches that wait for each rank, at most


def serve(dataset: Dataset, settings: Settings) -> int:
    """Serve random batches of the dataset until a signal; returns the exit status.

    SIGTERM and SIGHUP end it with status 0, Ctrl-C raises KeyboardInterrupt, within 2 seconds. Raises
    InputError where the endpoint cannot be had, or not one image can be read.
    """
    with Endpoint(settings.endpoint) as endpoint, Supervisor(endpoint.release) as supervisor:
        readiness, child_end = fork.Pipe(duplex=False)
        supervisor.add('the distributor', distribute, endpoint.inner, endpoint.name,
                       min(settings.workers, len(dataset)), settings.hwm, child_end)
        _await_ready(supervisor, readiness)
        workers = _add_workers(supervisor, endpoint.inner, dataset, settings)
        print('serving %d images of %d classes in batches of %d, size %d, at %s with %d workers'
              % (len(dataset), len(dataset.class_names), settings.batch, settings.image_size, endpoint.name,
                 workers), flush=True)
        return supervisor.run(UnreadableImages(dataset).report)


def serve_constant(classes: int, settings: Settings) -> int:
    """Serve one batch of noise and random labels below `classes` again and again; like `serve` otherwise."""
    with Endpoint(settings.endpoint) as endpoint, Supervisor(endpoint.release) as supervisor:
        readiness, child_end = fork.Pipe(duplex=False)
        supervisor.add('the distributor', distribute_constant, endpoint.name, classes, settings, child_end)
        _await_ready(supervisor, readiness)
        print('serving one constant batch of %d with labels of %d classes, size %d, at %s' % (
            settings.batch, classes, settings.image_size, endpoint.name), flush=True)
        return supervisor.run()


def benchmark(dataset: Dataset, settings: Settings, seconds: float) -> int:
    """Print how many images per second the workers decode, augment and serialise; return the exit status."""
    address = 'ipc://%s/benchmark-%d' % (socket_directory(), os.getpid())
    with Endpoint(address) as endpoint, Supervisor(endpoint.release) as supervisor:
        workers = min(settings.workers, len(dataset))
        supervisor.add('the measurement', measure, endpoint.inner, settings.batch, workers, seconds,
                       last=True)
        _add_workers(supervisor, endpoint.inner, dataset, settings)
        return supervisor.run(UnreadableImages(dataset).report)


def _add_workers(supervisor: Supervisor, inner: str, dataset: Dataset, settings: Settings) -> int:
    workers = min(settings.workers, len(dataset))
    table, order = ImageTable(dataset), EndlessShuffle(len(dataset), settings.seed)
    for i in range(workers):
        supervisor.add('worker %d' % i, work, inner, table, order, settings, supervisor.reports)
    return workers


def _await_ready(supervisor: Supervisor, readiness: Connection) -> None:
    """Wait until the distributor has its sockets. Raises InputError with its reason if it cannot."""
    if supervisor.wait_for(readiness):
        problem = os.fsdecode(readiness.recv_bytes())
        if problem:
            raise InputError(problem)


# ---- what the processes do


def work(inner: str, table: 'ImageTable', order: 'EndlessShuffle', settings: Settings, reports: int) -> None:
    """Make batches for ever. Unreadable images are reported, and the next ones take their places."""
    check_open_files(OPEN_FILES)
    cv2.setNumThreads(0)  # there is a worker for each core
    socket = zmq.Context().socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, 1)
    socket.connect(inner)
    while True:
        message, (images, labels) = new_message(batch_specs(settings.batch, settings.image_size))
        todo = order.take(settings.batch)
        filled = 0
        while filled < settings.batch:
            position, i = todo[filled]
            rng = np.random.RandomState([settings.seed, position & 0xffffffff, position >> 32])
            try:
                load_training_image(table.path(i), rng, settings.image_size, out=images[filled],
                                    min_area=settings.min_crop_area)
            except (InputError, NoMemory) as e:
                _report_unreadable(reports, i, str(e))
                todo[filled] = order.take(1)[0]
                continue
            labels[filled] = table.labels[i]
            filled += 1
        socket.send(message, copy=False)


def distribute(inner: str, outer: str, workers: int, hwm: int, readiness: Connection) -> None:
    """Pass messages on from the workers to the ranks."""
    check_open_files(OPEN_FILES + workers)
    context = zmq.Context()
    source = context.socket(zmq.PULL)
    source.set(zmq.RCVHWM, 1)
    _bind(source, inner, readiness)
    _pass_on(lambda: source.recv(copy=False), context, outer, hwm, readiness)


def distribute_constant(outer: str, classes: int, settings: Settings, readiness: Connection) -> None:
    """Send the same message for ever."""
    check_open_files(OPEN_FILES)
    rng = np.random.RandomState(settings.seed)
    message, (images, labels) = new_message(batch_specs(settings.batch, settings.image_size))
    images[...] = rng.randint(0, 256, images.shape, dtype=np.uint8)
    labels[...] = rng.randint(0, classes, labels.shape)
    _pass_on(lambda: message, zmq.Context(), outer, settings.hwm, readiness)


def measure(inner: str, batch: int, workers: int, seconds: float) -> None:
    """Count the workers' messages for some seconds, from when all had the time to start."""
    check_open_files(OPEN_FILES + workers)
    source = zmq.Context().socket(zmq.PULL)
    source.set(zmq.RCVHWM, 1)
    source.bind(inner)
    for _ in range(2 * workers):
        source.recv(copy=False)
    start, elapsed, count = time.monotonic(), 0., 0
    while elapsed < seconds:
        source.recv(copy=False)
        count += batch
        elapsed = time.monotonic() - start
    print('%.1f images/s with decode, augmentation and serialisation: %d workers, %.1f images/s each, '
          'in %.1f s' % (count / elapsed, workers, count / elapsed / workers, elapsed), flush=True)


def _pass_on(receive: Callable[[], Union[zmq.Frame, memoryview]], context: zmq.Context, outer: str, hwm: int,
             readiness: Connection) -> None:
    sink = context.socket(zmq.PUSH)
    sink.set(zmq.SNDHWM, hwm)
    _bind(sink, outer, readiness)
    readiness.send_bytes(b'')
    while True:
        sink.send(receive(), copy=False)


def _bind(socket: zmq.Socket, endpoint: str, readiness: Connection) -> None:
    os.umask(0o077)  # nobody else may connect
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as e:
        if refusal(e):
            raise
        readiness.send_bytes(os.fsencode('cannot serve at %s: %s' % (endpoint, e)))
        os._exit(1)


def _report_unreadable(reports: int, i: int, problem: str) -> None:
    """Write a line to the supervisor, short enough to arrive in one piece."""
    os.write(reports, REPORT + b'%d %s\n' % (i, problem.replace('\n', ' ').encode('utf-8', 'surrogateescape')[:2000]))


# ---- what they share


class ImageTable:
    """Paths and labels in a few objects: a list of a million strings would be copied by every worker."""

    def __init__(self, dataset: Dataset) -> None:
        names = [os.fsencode(path) for path in dataset.paths]
        self._ends = np.cumsum([len(name) for name in names])
        self._names = b''.join(names)
        self.labels = np.array(dataset.labels, np.int32)

    def path(self, i: int) -> str:
        """Return the path of image i."""
        start = self._ends[i - 1] if i else 0
        return os.fsdecode(self._names[start:self._ends[i]])


class EndlessShuffle:
    """The images in an order that is shuffled anew each epoch, dealt out to any number of processes.

    Position p of the endless order is image p % count of the permutation of epoch p // count. The next
    position is how far a file is read that has no name and no content: all processes share it, and the kernel
    moves it in one step. So there is no lock, which a process that is killed could keep, and which some file
    systems don't have.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._file = tempfile.TemporaryFile()
        self._permutations: Dict[int, np.ndarray] = {}

    def take(self, number: int) -> List[Tuple[int, int]]:
        """Take the next positions; returns each with the index of its image."""
        start = os.lseek(self._file.fileno(), number, os.SEEK_CUR) - number
        return [(position, self._image(position)) for position in range(start, start + number)]

    def _image(self, position: int) -> int:
        epoch, i = divmod(position, self._count)
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = np.random.RandomState([self._seed, epoch]).permutation(self._count)
        return int(self._permutations[epoch][i])


class UnreadableImages:
    """Names each unreadable image once, with a count."""

    def __init__(self, dataset: Dataset) -> None:
        self._size = len(dataset)
        self._seen: Set[int] = set()

    def report(self, line: str) -> None:
        """Warn of an image, unless it was named before. Raises InputError when nothing is left to serve.

        line: the image's index, a space, and the problem.
        """
        i, _, problem = line.partition(' ')
        if int(i) in self._seen:
            return
        self._seen.add(int(i))
        log.warning('skipping %s (%d of %d images so far)', problem, len(self._seen), self._size)
        if len(self._seen) == self._size:
            raise InputError('not one of the %d images can be read' % self._size)


def message_size(batch: int, image_size: int) -> int:
    """Return the number of bytes of a batch's tensors."""
    return batch * (image_size * image_size * 3 + 4)
