"""How batches travel from the data server to training: their bytes, their socket, the receiver.

A message, all numbers little endian:
    int32 number of tensors, and for each tensor
    int32 TensorFlow dtype, int32 rank, int32 for each dimension, int64 number of bytes, the bytes (C order).
This is what tensorpack's zmq_ops sends and receives. Nothing in it is ever executed or unpickled.

Server and training meet at a ZeroMQ endpoint that the server binds (PUSH) and every rank connects to (PULL),
so either side can be started first, and be started again.
"""
import logging
import os
import re
import socket as network
import stat
import struct
import tempfile
import threading
import time
from typing import Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import zmq

from errors import InputError

# The numbers of tensorflow/core/framework/types.proto. Strings and TensorFlow's own types don't travel.
DTYPES = {
    1: np.dtype('<f4'), 2: np.dtype('<f8'), 3: np.dtype('<i4'), 4: np.dtype('u1'), 5: np.dtype('<i2'),
    6: np.dtype('i1'), 8: np.dtype('<c8'), 9: np.dtype('<i8'), 10: np.dtype('?'), 17: np.dtype('<u2'),
    18: np.dtype('<c16'), 19: np.dtype('<f2'), 22: np.dtype('<u4'), 23: np.dtype('<u8')}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
MAX_RANK = 32  # numpy's limit
MAX_MESSAGE = 2 ** 31 - 1
SOCKET_PATH_LIMIT = 107  # of Linux, in bytes
DEFAULT_HWM = 8

Spec = Tuple[np.dtype, Tuple[int, ...]]

logger = logging.getLogger(__name__)


def new_message(specs: Sequence[Spec]) -> Tuple[memoryview, List[np.ndarray]]:
    """A message for tensors of these dtypes and shapes, and its arrays, to be filled: they share its memory.

    Raises ValueError for a dtype or rank that the format does not have.
    """
    headers, sizes = [], []
    for dtype, shape in specs:
        dtype = np.dtype(dtype).newbyteorder('<')
        if dtype not in NUMBERS:
            raise ValueError('tensors of dtype %s cannot be sent' % dtype)
        if len(shape) > MAX_RANK:
            raise ValueError('a tensor of rank %d cannot be sent, at most %d' % (len(shape), MAX_RANK))
        count = 1
        for dimension in shape:
            count *= int(dimension)
        sizes.append(count * dtype.itemsize)
        headers.append(struct.pack('<ii%diq' % len(shape), NUMBERS[dtype], len(shape), *shape, sizes[-1]))
    length = 4 + sum(map(len, headers)) + sum(sizes)
    if length > MAX_MESSAGE:
        raise ValueError('a message of %d bytes cannot be sent, at most %d' % (length, MAX_MESSAGE))
    message = np.empty(length, np.uint8)
    buffer = memoryview(message)
    buffer[:4] = struct.pack('<i', len(specs))
    arrays, offset = [], 4
    for (dtype, shape), header, size in zip(specs, headers, sizes):
        buffer[offset:offset + len(header)] = header
        offset += len(header)
        data = message[offset:offset + size]
        arrays.append(data.view(np.dtype(dtype).newbyteorder('<')).reshape(shape))
        offset += size
    return buffer, arrays


def dump_arrays(arrays: Sequence[np.ndarray]) -> memoryview:
    """The message with these arrays, each copied once. Raises ValueError for a dtype that cannot be sent."""
    arrays = [np.asarray(a) for a in arrays]
    message, targets = new_message([(a.dtype, a.shape) for a in arrays])
    for target, array in zip(targets, arrays):
        target[...] = array
    return message


def load_arrays(buffer) -> List[np.ndarray]:
    """The arrays of a message (bytes or their memoryview), uncopied: read-only, they keep `buffer` alive.

    Raises ValueError that names what is wrong where a length does not fit the message.
    """
    data = memoryview(buffer)
    tensors = _read('i', data, 0, 'the number of tensors')[0]
    if tensors < 0 or tensors > (len(data) - 4) // 16:  # 16 bytes: the shortest tensor
        raise ValueError('%d tensors in a message of %d bytes' % (tensors, len(data)))
    arrays, offset = [], 4
    for i in range(tensors):
        number, rank = _read('ii', data, offset, 'the dtype and rank of tensor %d' % i)
        offset += 8
        if number not in DTYPES:
            raise ValueError('tensor %d has the unknown dtype number %d' % (i, number))
        if not 0 <= rank <= MAX_RANK:
            raise ValueError('tensor %d has rank %d, not one of 0 to %d' % (i, rank, MAX_RANK))
        shape_size = _read('%diq' % rank, data, offset, 'the shape of tensor %d' % i)
        shape, size = shape_size[:-1], shape_size[-1]
        offset += 4 * rank + 8
        array = _tensor(data, offset, DTYPES[number], shape, size, i)
        arrays.append(array)
        offset += size
    if offset != len(data):
        raise ValueError('%d bytes follow the last tensor' % (len(data) - offset))
    return arrays


def _read(layout: str, data: memoryview, offset: int, what: str) -> Tuple[int, ...]:
    layout = '<' + layout
    if offset + struct.calcsize(layout) > len(data):
        raise ValueError('the message ends after %d bytes, within %s' % (len(data), what))
    return struct.unpack_from(layout, data, offset)


def _tensor(data: memoryview, offset: int, dtype: np.dtype, shape: Tuple[int, ...], size: int,
            i: int) -> np.ndarray:
    if any(d < 0 for d in shape):
        raise ValueError('tensor %d has a negative dimension: %s' % (i, shape))
    count, extent = 1, dtype.itemsize
    for d in shape:
        count *= d
        extent *= max(d, 1)
    if extent > MAX_MESSAGE:
        raise ValueError('tensor %d is too large: %s of %s' % (i, shape, dtype))
    if size != count * dtype.itemsize:
        raise ValueError('tensor %d has %d bytes, but %s of %s has %d'
                         % (i, size, shape, dtype, count * dtype.itemsize))
    if size > len(data) - offset:
        raise ValueError('tensor %d has %d bytes, but only %d follow in the message'
                         % (i, size, len(data) - offset))
    if not count:
        return np.empty(shape, dtype)
    array = np.frombuffer(data, dtype, count, offset).reshape(shape)
    array.flags.writeable = False
    return array


def batch_specs(batch: int, image_size: int) -> List[Spec]:
    """What a training message holds: images uint8 (batch, size, size, 3) BGR, and labels int32 (batch,)."""
    return [(np.dtype('u1'), (batch, image_size, image_size, 3)), (np.dtype('<i4'), (batch,))]


def server_command(batch: int, image_size: int, endpoint: str) -> str:
    """The command that starts the server of such batches at an endpoint."""
    command = 'third_party/serve-data.py --data DIR --batch %d' % batch
    if image_size != 224:
        command += ' --image-size %d' % image_size
    if endpoint != _default_endpoint(batch, image_size):
        command += ' --endpoint %s' % endpoint
    return command


def socket_directory() -> str:
    """A directory for sockets that only this user can enter, created where there is none.

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
    """Where server and training of such batches meet on this machine. Raises InputError, as the above."""
    socket_directory()
    endpoint = _default_endpoint(batch, image_size)
    check_endpoint(endpoint)
    return endpoint


def _socket_directory_path() -> str:
    return os.path.join(tempfile.gettempdir(), 'adversarial-training-%d' % os.geteuid())


def _default_endpoint(batch: int, image_size: int) -> str:
    return 'ipc://%s/batch%d-size%d' % (_socket_directory_path(), batch, image_size)


def check_endpoint(endpoint: str) -> None:
    """Raises InputError for what cannot be an endpoint."""
    transport, _, address = endpoint.partition('://')
    port = re.match(r'.+:(\d{1,5})$', address)
    if transport == 'tcp':
        # libzmq would take larger ports modulo 65536
        valid = port is not None and 0 < int(port.group(1)) < 65536
    else:
        valid = transport == 'ipc' and address != ''
    if not valid:
        raise InputError('%r is no endpoint: expected ipc://PATH or tcp://HOST:PORT' % endpoint)
    # The server keeps two more files beside the socket, NAME.workers the longest.
    limit = SOCKET_PATH_LIMIT - len('.workers')
    if transport == 'ipc' and len(os.fsencode(address)) > limit:
        raise InputError('the socket path %s is longer than %d bytes: give a shorter --endpoint or TMPDIR'
                         % (address, limit))


class Receiver:
    """Iterates over the batches of a data server: lists of images uint8 (B,S,S,3) BGR and labels int32 (B,).

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
        self._command = server_command(batch, image_size, endpoint)
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
        """The next batch. Raises InputError after `timeout` seconds without, StopIteration once closed."""
        deadline = time.monotonic() + self._timeout
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
            raise ValueError('a batch of %s, but this training takes %s, so start %s'
                             % (_describe(received), _describe(self._specs), self._command))
        labels = arrays[1]
        if self._classes is not None and (labels.min() < 0 or labels.max() >= self._classes):
            # not one bad message: every label of this server may mean another class
            raise InputError('the server at %s sends labels from %d to %d, but this training has %d classes: give '
                             'both the same --data and --classes'
                             % (self._endpoint, labels.min(), labels.max(), self._classes))
        return arrays

    def _report(self, problem: str) -> None:
        self._last_problem = problem
        kind = re.sub(r'\d+', 'N', problem)
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning('skipped a message from %s: %s', self._endpoint, problem)

    def _timeout_message(self) -> str:
        message = 'no batch from %s in %g seconds' % (self._endpoint, self._timeout)
        if self._last_problem:
            return message + ', only messages that do not fit; the last was ' + self._last_problem
        return message + ': start %s on %s' % (self._command, network.gethostname())


def _describe(specs: Sequence[Spec]) -> str:
    return ' and '.join('%s %s' % (dtype, list(shape)) for dtype, shape in specs) or 'nothing'
