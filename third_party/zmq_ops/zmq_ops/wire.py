"""The bytes of a message of tensors, read and written in Python; wire.h reads the same in C++.

All numbers are little endian:
    int32 number of tensors, and for each tensor
    int32 TensorFlow dtype, int32 rank, int32 for each dimension, int64 number of bytes, the bytes (C order).
Nothing in it is ever executed or unpickled. Both readers refuse the same messages, in the same words.
"""
import struct
from typing import Dict, List, Sequence, Tuple, Union

import numpy as np

# The numbers of tensorflow/core/framework/types.proto. Strings and TensorFlow's own types don't travel.
DTYPES: Dict[int, np.dtype] = {
    1: np.dtype('<f4'), 2: np.dtype('<f8'), 3: np.dtype('<i4'), 4: np.dtype('u1'), 5: np.dtype('<i2'),
    6: np.dtype('i1'), 8: np.dtype('<c8'), 9: np.dtype('<i8'), 10: np.dtype('?'), 17: np.dtype('<u2'),
    18: np.dtype('<c16'), 19: np.dtype('<f2'), 22: np.dtype('<u4'), 23: np.dtype('<u8')}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
MAX_RANK = 32  # numpy's limit
MAX_TENSORS = 1024
MAX_MESSAGE = 2 ** 31 - 1

Spec = Tuple[np.dtype, Tuple[int, ...]]


def new_message(specs: Sequence[Spec]) -> Tuple[memoryview, List[np.ndarray]]:
    """Return a message for tensors of these dtypes and shapes, and its arrays, to be filled: they share its memory.

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
    buffer = message.data
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
    """Return the message with these arrays, each copied once. Raises ValueError for a dtype that cannot be sent."""
    arrays = [np.asarray(a) for a in arrays]
    message, targets = new_message([(a.dtype, a.shape) for a in arrays])
    for target, array in zip(targets, arrays):
        target[...] = array
    return message


def load_arrays(buffer: Union[bytes, bytearray, memoryview]) -> List[np.ndarray]:
    """Return the arrays of a message, uncopied: they are read-only and keep `buffer` alive.

    Raises ValueError that names what is wrong where a length does not fit the message.
    """
    data = memoryview(buffer)
    tensors = _read('i', data, 0, 'the number of tensors')[0]
    if tensors < 0 or tensors > (len(data) - 4) // 16:  # 16 bytes: the shortest tensor
        raise ValueError('%d tensors in a message of %d bytes' % (tensors, len(data)))
    if tensors > MAX_TENSORS:
        raise ValueError('%d tensors, at most %d are expected' % (tensors, MAX_TENSORS))
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
