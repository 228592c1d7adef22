"""The wire format in Python, and its reader against malformed messages."""
import random
import struct

import numpy as np
import pytest
from messages import damaged
from zmq_ops.wire import DTYPES, dump_arrays, load_arrays, new_message

from third_party.transport import batch_specs


def some_array(dtype, rank, seed=0):
    rng = np.random.RandomState(seed)
    shape = tuple(rng.randint(1, 4, rank))
    if dtype.kind == 'b':
        return rng.randint(0, 2, shape).astype(dtype)
    return (rng.uniform(-50, 50, shape) + (1j if dtype.kind == 'c' else 0)).astype(dtype)


@pytest.mark.parametrize('number', sorted(DTYPES))
def test_round_trip_of_all_dtypes_and_ranks(number):
    dtype = DTYPES[number]
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
    good = [bytes(dump_arrays([some_array(DTYPES[n], r, n) for n, r in pairs]))
            for pairs in [[(4, 4), (3, 1)], [(1, 0)], [(9, 2), (10, 3), (19, 8)], []]]
    refused = 0
    for _ in range(20000):
        message = damaged(rng, good)
        try:
            arrays = load_arrays(message)
            assert sum(a.nbytes for a in arrays) <= len(message)
        except ValueError as e:
            assert str(e)
            refused += 1
    assert refused > 10000
