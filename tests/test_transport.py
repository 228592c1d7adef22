"""The wire format, its parser against malformed messages, the sockets' place, and the receiver."""
import gc
import os
import random
import shutil
import struct
import tempfile
import threading
import time

import numpy as np
import pytest
import zmq

from errors import InputError
from third_party import transport
from third_party.transport import (Receiver, batch_specs, check_endpoint, default_endpoint, dump_arrays,
                                   load_arrays, new_message)


@pytest.fixture
def short_directory():
    """pytest's own directories can be too long for the path of a socket."""
    path = tempfile.mkdtemp()
    yield path
    shutil.rmtree(path)


def some_array(dtype, rank, seed=0):
    rng = np.random.RandomState(seed)
    shape = tuple(rng.randint(1, 4, rank))
    if dtype.kind == 'b':
        return rng.randint(0, 2, shape).astype(dtype)
    return (rng.uniform(-50, 50, shape) + (1j if dtype.kind == 'c' else 0)).astype(dtype)


@pytest.mark.parametrize('number', sorted(transport.DTYPES))
def test_round_trip_of_all_dtypes_and_ranks(number):
    dtype = transport.DTYPES[number]
    arrays = [some_array(dtype, rank, rank) for rank in range(9)]
    result = load_arrays(bytes(dump_arrays(arrays)))
    assert len(result) == 9
    for a, b in zip(arrays, result):
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def test_the_bytes_are_those_of_the_written_format():
    message = dump_arrays([np.array([[1, 2, 3]], np.int32), np.array(7, np.uint8),
                           np.array([0.5], np.float32)])
    assert bytes(message) == (
        struct.pack('<i', 3) +
        struct.pack('<iiiiq', 3, 2, 1, 3, 12) + struct.pack('<iii', 1, 2, 3) +
        struct.pack('<iiq', 4, 0, 1) + b'\x07' +
        struct.pack('<iiiq', 1, 1, 1, 4) + struct.pack('<f', 0.5))


@pytest.mark.parametrize('array', [
    np.arange(12, dtype='>i4').reshape(3, 4), np.arange(24).reshape(4, 6)[::2, ::-3],
    np.zeros((0, 5), np.float32), np.asfortranarray(np.arange(6.).reshape(2, 3)), np.float64(3)])
def test_any_layout_in_memory(array):
    result, = load_arrays(dump_arrays([array]))
    assert np.array_equal(result, array) and result.dtype.kind == np.asarray(array).dtype.kind
    assert result.shape == np.shape(array)


def test_no_tensors():
    assert load_arrays(bytes(dump_arrays([]))) == []


@pytest.mark.parametrize('array', [
    np.array(['a']), np.array([None]), np.zeros(2, 'i4,f4'), np.zeros(2, 'M8[s]')])
def test_what_cannot_be_sent(array):
    with pytest.raises(ValueError, match='cannot be sent'):
        dump_arrays([array])


def test_too_large_to_be_sent():
    with pytest.raises(ValueError, match='cannot be sent'):
        new_message([(np.dtype('u1'), (2 ** 16, 2 ** 15))])


def test_a_new_message_is_filled_in_place():
    message, (images, labels) = new_message(batch_specs(2, 3))
    images[...] = 7
    labels[...] = [1, -2]
    received = load_arrays(message)
    assert (received[0] == 7).all() and received[0].shape == (2, 3, 3, 3) and received[1].tolist() == [1, -2]
    images[...] = 8
    assert (received[0] == 8).all()  # views, not copies
    with pytest.raises(ValueError):
        received[0][...] = 9


def one(*, tensors=1, number=3, shape=(2,), size=None, data=None, rank=None):
    shape = tuple(shape)
    data = b'\0' * 8 if data is None else data
    size = len(data) if size is None else size
    return (struct.pack('<iii', tensors, number, len(shape) if rank is None else rank) +
            struct.pack('<%diq' % len(shape), *shape, size) + data)


@pytest.mark.parametrize('message, problem', [
    (b'', 'ends after 0 bytes'), (b'\1\0\0', 'number of tensors'), (one()[:-1], 'only 7 follow'),
    (one() + b'x', '1 bytes follow'), (one()[:11], '1 tensors in'), (one()[:18], '1 tensors in'),
    (one(tensors=2) + bytes(4), 'rank of tensor 1'), (one(rank=32), 'shape of tensor 0'),
    (one(tensors=-1), '-1 tensors'), (one(tensors=2), '2 tensors in'),
    (one(tensors=2 ** 31 - 1), 'tensors in'),
    (one(number=7), 'dtype number 7'), (one(number=0), 'dtype number 0'),
    (one(number=-4), 'dtype number -4'),
    (one(rank=-1), 'rank -1'), (one(rank=33), 'rank 33'), (one(rank=2 ** 31 - 1), 'rank 2147483647'),
    (one(shape=(-2,)), 'negative dimension'), (one(shape=(-1, -2)), 'negative dimension'),
    (one(shape=(2 ** 31 - 1, 2 ** 31 - 1, 4)), 'too large'),
    (one(shape=(0, 2 ** 31 - 1, 2 ** 31 - 1)), 'too large'),
    (one(shape=(3,)), 'has 8 bytes, but'), (one(size=-1), 'has -1 bytes'), (one(size=2 ** 62), 'bytes, but'),
    (one(shape=(1000,), size=4000), 'only 8 follow'), (one(shape=(65536, 65536), size=0), 'too large')],
    ids=lambda value: value if isinstance(value, str) else 'message')
def test_malformed_message_names_what_is_wrong(message, problem):
    with pytest.raises(ValueError) as info:
        load_arrays(message)
    assert problem in str(info.value)


def test_thousands_of_malformed_messages():
    """Changed, cut and extended messages raise ValueError or hold arrays that lie within them."""
    rng = random.Random(0)
    good = [bytes(dump_arrays([some_array(transport.DTYPES[n], r, n) for n, r in pairs]))
            for pairs in [[(4, 4), (3, 1)], [(1, 0)], [(9, 2), (10, 3), (19, 8)], []]]
    interesting = [0, 1, -1, 2 ** 31 - 1, -2 ** 31, 65536, 4, 3]
    refused = 0
    for _ in range(20000):
        message = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 3)):
            action = rng.randrange(4)
            if action == 0:
                message = message[:rng.randint(0, len(message))]
            elif action == 1:
                message += bytes(rng.randint(1, 9))
            elif action == 2 and message:
                message[rng.randrange(len(message))] = rng.randrange(256)
            elif len(message) >= 4:
                struct.pack_into('<i', message, rng.randrange(len(message) - 3), rng.choice(interesting))
        try:
            arrays = load_arrays(bytes(message))
            assert sum(a.nbytes for a in arrays) <= len(message)
        except ValueError as e:
            assert str(e)
            refused += 1
    assert refused > 10000


# ---- where the sockets are


@pytest.fixture
def temporary(short_directory, monkeypatch):
    monkeypatch.setattr(transport.tempfile, 'tempdir', short_directory)
    return short_directory


def test_the_endpoint_is_the_users_alone_and_named_by_the_batch(temporary):
    endpoint = default_endpoint(32, 224)
    assert endpoint == default_endpoint(32, 224)
    assert len({endpoint, default_endpoint(64, 224), default_endpoint(32, 32)}) == 3
    directory = os.path.dirname(endpoint[len('ipc://'):])
    assert directory.startswith(temporary) and os.stat(directory).st_mode & 0o777 == 0o700


@pytest.mark.parametrize('what', ['mode', 'link', 'file', 'owner'])
def test_a_directory_that_others_made_is_refused(temporary, what, monkeypatch):
    path = os.path.dirname(default_endpoint(1, 1)[len('ipc://'):])
    if what == 'mode':
        os.chmod(path, 0o750)
    elif what == 'owner':
        os.rename(path, os.path.join(temporary, 'adversarial-training-12345'))
        monkeypatch.setattr(os, 'geteuid', lambda: 12345)
    else:
        os.rmdir(path)
        if what == 'link':
            os.symlink(temporary, path)
        else:
            open(path, 'w').close()
    with pytest.raises(InputError, match='only you can enter'):
        default_endpoint(32, 224)


def test_no_place_for_sockets(temporary, monkeypatch):
    monkeypatch.setattr(transport.tempfile, 'tempdir', temporary + '/none')
    with pytest.raises(InputError, match='TMPDIR'):
        default_endpoint(32, 224)
    os.makedirs(temporary + '/' + 'x' * 90)
    monkeypatch.setattr(transport.tempfile, 'tempdir', temporary + '/' + 'x' * 90)
    with pytest.raises(InputError, match='longer than'):
        default_endpoint(32, 224)


@pytest.mark.parametrize('endpoint', [
    '', 'x', '/tmp/x', 'ipc://', 'http://x:1', 'inproc://x', 'ipc://' + 'x' * 120, 'tcp://x', 'tcp://x:0',
    'tcp://x:65536', 'tcp://:5'])
def test_no_endpoint(endpoint):
    with pytest.raises(InputError):
        check_endpoint(endpoint)


# ---- the receiver


BATCH, SIZE = 4, 8


def batch(value=1, size=SIZE, n=BATCH):
    return dump_arrays([np.full((n, size, size, 3), value, np.uint8), np.full(n, value, np.int32)])


@pytest.fixture
def sender(short_directory):
    """A PUSH socket, and its endpoint."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    endpoint = 'ipc://%s/socket' % short_directory
    socket.bind(endpoint)
    yield socket, endpoint
    context.destroy(linger=0)


@pytest.fixture
def receiver(sender):
    result = Receiver(sender[1], BATCH, SIZE, classes=10, timeout=10)
    yield result
    result.close()


def test_batches_are_received_and_stay_valid(sender, receiver):
    for value in range(5):
        sender[0].send(batch(value), copy=False)
    received = [next(receiver) for _ in range(5)]
    gc.collect()
    for value, (images, labels) in enumerate(received):
        assert images.dtype == np.uint8 and images.shape == (BATCH, SIZE, SIZE, 3)
        assert (images == value).all()
        assert labels.dtype == np.int32 and labels.tolist() == [value] * BATCH


@pytest.mark.parametrize('bad, problem', [
    ([b'garbage'], 'tensors in a message'), ([b''], 'ends after 0 bytes'),
    ([b'\x80\x04\x95 pickle'], 'tensors in'), ([bytes(batch()), b'more'], '2 parts'),
    ([batch(n=2)], 'uint8 [2, 8, 8, 3]'), ([batch(size=4)], '--batch 4'),
    ([batch(0)[:-1]], 'only 15 follow'),
    ([dump_arrays([np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, np.int32)])], 'float32 [4, 8, 8, 3]'),
    ([dump_arrays([])], 'a batch of nothing')])
def test_a_message_that_is_no_batch_is_reported_once_and_skipped(sender, receiver, caplog, bad, problem):
    for value in (1, 2):
        sender[0].send_multipart(bad)
        sender[0].send(batch(value))
    assert [next(receiver)[1][0] for _ in range(2)] == [1, 2]
    assert len(caplog.records) == 1
    assert problem in caplog.text and sender[1] in caplog.text


def test_labels_of_other_classes_are_an_error_at_once(sender, receiver):
    sender[0].send(batch(10))
    with pytest.raises(InputError, match='labels from 10 to 10, but this training has 10 classes'):
        next(receiver)


def test_silence_names_the_server_to_start(sender):
    receiver = Receiver(sender[1], BATCH, SIZE, timeout=0.3)
    start = time.monotonic()
    with pytest.raises(InputError) as info:
        next(receiver)
    assert 0.3 <= time.monotonic() - start < 2
    command = 'third_party/serve-data.py --data DIR --batch 4 --image-size 8 --endpoint ' + sender[1]
    assert command in str(info.value)
    sender[0].send(batch(3))
    assert next(receiver)[1][0] == 3  # it may go on
    receiver.close()


def test_the_default_endpoint_needs_no_flag(temporary):
    receiver = Receiver(default_endpoint(16, 224), 16, 224, timeout=0.1)
    with pytest.raises(InputError, match='--data DIR --batch 16 on '):
        next(receiver)
    receiver.close()


def test_messages_that_do_not_fit_do_not_extend_the_wait(sender):
    receiver = Receiver(sender[1], BATCH, SIZE, timeout=0.5)
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            sender[0].send(bytes(batch(n=3)))
            time.sleep(0.01)

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(InputError, match='the last was a batch of uint8 .3, 8, 8, 3.'):
        next(receiver)
    stop.set()
    thread.join()
    receiver.close()


def test_the_server_may_come_later_and_come_again(short_directory):
    endpoint = 'ipc://%s/socket' % short_directory
    receiver = Receiver(endpoint, BATCH, SIZE, timeout=20)
    for value in (1, 2, 3):
        context = zmq.Context()
        socket = context.socket(zmq.PUSH)
        socket.bind(endpoint)
        socket.send(batch(value))
        assert next(receiver)[1][0] == value
        context.destroy(linger=0)
    receiver.close()


def test_closing_ends_another_threads_wait(receiver):
    ended = []

    def consume():
        ended.append(list(receiver))

    thread = threading.Thread(target=consume)
    thread.start()
    time.sleep(0.3)
    start = time.monotonic()
    receiver.close()
    thread.join(5)
    assert ended == [[]] and time.monotonic() - start < 1
    receiver.close()


def test_no_address(short_directory):
    for endpoint in ('tcp://nowhere', 'tcp://:-1', 'x://y'):
        with pytest.raises(InputError):
            Receiver(endpoint, BATCH, SIZE)
