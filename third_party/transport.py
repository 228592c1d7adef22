"""How batches travel from the data server to training: their bytes, their socket, the receiver.

The bytes of a message are those of tensorpack's zmq_ops: see zmq_ops/zmq_ops/wire.py.

Server and training meet at a ZeroMQ endpoint that the server binds (PUSH) and every rank connects to (PULL),
so either side can be started first, and be started again.
"""
import logging
import os
import re
import shlex
import socket as network
import stat
import tempfile
import threading
import time
from typing import Iterator, List, Optional, Sequence, Set

import numpy as np
import zmq
from zmq_ops.wire import MAX_MESSAGE, Spec, load_arrays

from runtime.command_line import THIS_RANK
from runtime.errors import InputError

SOCKET_PATH_LIMIT = 107  # of Linux, in bytes
DEFAULT_HWM = 8

logger = logging.getLogger(__name__)


def batch_specs(batch: int, image_size: int) -> List[Spec]:
    """Return what a training message holds: images uint8 (batch, size, size, 3) BGR, and labels int32 (batch,)."""
    return [(np.dtype('u1'), (batch, image_size, image_size, 3)), (np.dtype('<i4'), (batch,))]


def server_command(batch: int, image_size: int, endpoint: str) -> str:
    """Return the command that starts the server of such batches at an endpoint.

    It names the endpoint also where that is the default here: it would be another one in a shell with another TMPDIR,
    or of another user.
    """
    command = '--data DIR --batch %d' % batch
    if image_size != 224:
        command += ' --image-size %d' % image_size
    transport, _, address = endpoint.partition('://')
    if transport == 'ipc' and not address.startswith('@'):
        address = os.path.abspath(address)
    where = '--endpoint ' + shlex.quote('%s://%s' % (transport, address))
    words = (where, command) if endpoint == _default_endpoint(batch, image_size) else (command, where)
    return ' '.join(('third_party/serve-data.py',) + words)


def server_to_start(batch: int, image_size: int, endpoint: str) -> str:
    """Say what to do when no such batches come from an endpoint."""
    remote = re.match(r'tcp://(?!localhost:|127\.|0\.0\.0\.0:|\*:|\[?::1?\]?:)(.+):\d+$', endpoint)
    host = remote.group(1) if remote else network.gethostname()
    return 'start %s on %s' % (server_command(batch, image_size, endpoint), host)


def other_classes(endpoint: str, classes: int, labels: Optional[np.ndarray] = None) -> str:
    """Say that a server sends labels that a training of `classes` classes does not have."""
    which = '' if labels is None else ' from %d to %d' % (labels.min(), labels.max())
    return ('the server at %s sends labels%s, but this training has %d classes: give both the same --data and '
            '--classes' % (endpoint, which or ' outside the classes', classes))


def socket_directory() -> str:
    """Return a directory for sockets that only this user can enter; creates it where there is none.

    It is in the temporary directory rather than XDG_RUNTIME_DIR, which login sessions have and batch jobs
    have not, so that a server started over ssh and a training under slurm would miss each other. Raises
    InputError where somebody else made it.
    """
    path = _socket_directory_path()
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as e:
        raise InputError('cannot create the directory for sockets %s: %s; name another place with '
                         '--endpoint or TMPDIR' % (path, e.strerror))
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise InputError('%s is not a directory that only you can enter: remove it, or name another place '
                         'with --endpoint or TMPDIR' % path)
    return path


def default_endpoint(batch: int, image_size: int) -> str:
    """Return where server and training of such batches meet on this machine.

    Raises InputError as `socket_directory` does, and where the path would be too long.
    """
    socket_directory()
    endpoint = _default_endpoint(batch, image_size)
    check_endpoint(endpoint)
    return endpoint


def _socket_directory_path() -> str:
    return os.path.join(tempfile.gettempdir(), 'adversarial-training-%d' % os.geteuid())


def _default_endpoint(batch: int, image_size: int) -> str:
    return 'ipc://%s/batch%d-size%d' % (_socket_directory_path(), batch, image_size)


def check_endpoint(endpoint: str) -> None:
    """Raise InputError for what cannot be an endpoint."""
    transport, _, address = endpoint.partition('://')
    port = re.match(r'.+:(\d{1,5})$', address)
    if transport == 'tcp':
        # libzmq would take larger ports modulo 65536
        valid = port is not None and 0 < int(port.group(1)) < 65536
    else:
        valid = transport == 'ipc' and address != ''
    if not valid:
        raise InputError('\'%s\' is no endpoint: expected ipc://PATH or tcp://HOST:PORT' % endpoint)
    # The server keeps two more files beside the socket, NAME.workers the longest.
    limit = SOCKET_PATH_LIMIT - len('.workers')
    if transport == 'ipc' and len(os.fsencode(address)) > limit:
        raise InputError('the socket path %s is longer than %d bytes: give a shorter --endpoint or TMPDIR'
                         % (address, limit))


class Receiver:
    """An iterator over the batches of a data server: lists of images uint8 (B,S,S,3) BGR and labels int32 (B,).

    The arrays are read-only views of the received message. It connects at once and needs no server yet; a
    server that was started again goes on being received. A message that is not such a batch is reported,
    once for each kind, and skipped. One thread may iterate while another one closes it.
    """

    def __init__(self, endpoint: str, batch: int, image_size: int, *, classes: Optional[int] = None,
                 timeout: float = 300., hwm: int = DEFAULT_HWM) -> None:
        """
        classes: labels must be below it. timeout: seconds that `next` waits for a good batch.
        hwm: batches that are received ahead, at most.
        """
        check_endpoint(endpoint)
        self._endpoint = endpoint
        self._specs = batch_specs(batch, image_size)
        self._classes = classes
        self._timeout = timeout
        self._advice = server_to_start(batch, image_size, endpoint)
        self._reported: Set[str] = set()
        self._last_problem = ''
        self._closed = False
        self._lock = threading.Lock()  # sockets must not be used by two threads at a time
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, hwm)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as e:
            self.close()
            raise InputError('cannot connect to %s: %s' % (endpoint, e))

    def __iter__(self) -> Iterator[List[np.ndarray]]:
        return self

    def __next__(self) -> List[np.ndarray]:
        """Wait for the next batch. Raises InputError after `timeout` seconds without, StopIteration once closed."""
        deadline = time.monotonic() + self._timeout
        self._last_problem = ''
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise InputError(self._timeout_message())
            frames = self._receive(min(left, 0.2))
            if frames is None:
                continue
            try:
                return self._check(frames)
            except InputError:
                raise
            except ValueError as e:
                self._report(str(e))

    def close(self) -> None:
        """End the iteration, within a fraction of a second, and free the socket. May be called again."""
        self._closed = True
        with self._lock:
            self._context.destroy(linger=0)

    def _receive(self, seconds: float) -> Optional[List[zmq.Frame]]:
        if self._closed:
            raise StopIteration
        with self._lock:
            if self._closed:
                raise StopIteration
            if not self._socket.poll(int(seconds * 1000) + 1):
                return None
            return self._socket.recv_multipart(copy=False)

    def _check(self, frames: List[zmq.Frame]) -> List[np.ndarray]:
        if len(frames) != 1:
            raise ValueError('a message of %d parts, instead of one' % len(frames))
        arrays = load_arrays(frames[0].buffer)
        received = [(a.dtype, a.shape) for a in arrays]
        if received != self._specs:
            raise ValueError('tensors of %s, instead of %s: %s'
                             % (_describe(received), _describe(self._specs), self._advice))
        labels = arrays[1]
        if self._classes is not None and (labels.min() < 0 or labels.max() >= self._classes):
            # not one bad message: every label of this server may mean another class
            raise InputError(other_classes(self._endpoint, self._classes, labels))
        return arrays

    def _report(self, problem: str) -> None:
        self._last_problem = problem
        kind = re.sub(r'\d+', 'N', problem)
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning('skipped a message from %s: %s', self._endpoint, problem, extra=THIS_RANK)

    def _timeout_message(self) -> str:
        message = 'no data from %s in %g seconds' % (self._endpoint, self._timeout)
        if self._last_problem:
            return message + ', only messages that do not fit; the last was ' + self._last_problem
        return message + ': ' + self._advice


def _describe(specs: Sequence[Spec]) -> str:
    return ' and '.join('%s %s' % spec for spec in specs) or 'nothing'
