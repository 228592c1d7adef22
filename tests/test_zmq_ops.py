"""The native receiver: what it takes, what it refuses, and how it waits."""
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

from runtime.compat import tf

import numpy as np
import pytest
import zmq
from messages import damaged
from zmq_ops import ZMQPullSocket, dump_arrays, load_arrays
from zmq_ops.wire import DTYPES

GOOD = [np.arange(6, dtype=np.int32).reshape(2, 3)]


@pytest.fixture
def end_point():
    """pytest's own directories can be too long for the path of a socket."""
    path = tempfile.mkdtemp()
    yield 'ipc://%s/s' % path
    shutil.rmtree(path)


@pytest.fixture
def push(end_point):
    """A socket that sends to the end point. It connects, as one that binds would wait for the first pull to connect."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, 0)
    socket.connect(end_point)
    yield socket
    context.destroy(linger=0)


class Puller:
    """A session with one pull of a socket."""

    def __init__(self, end_point, types, **options):
        with tf.Graph().as_default() as graph:
            self.tensors = ZMQPullSocket(end_point, types, **dict(dict(bind=True, timeout=30), **options)).pull()
        self.session = tf.Session(graph=graph)

    def __call__(self):
        return self.session.run(self.tensors)


@pytest.fixture
def puller(end_point):
    """puller(types, **options) -> a Puller at the end point, closed at the end."""
    made = []

    def make(types=(tf.int32,), **options):
        made.append(Puller(end_point, types, **options))
        return made[-1]
    yield make
    for each in made:
        each.session.close()


def some_array(dtype, shape, seed=0):
    rng = np.random.RandomState(seed)
    if dtype.kind == 'b':
        return rng.randint(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


@pytest.mark.parametrize('number', sorted(DTYPES))
def test_round_trip_of_all_dtypes_and_ranks(push, puller, number):
    dtype = DTYPES[number]
    pull = puller([tf.as_dtype(dtype)])
    for rank in range(9):
        array = some_array(dtype, (3, 1, 2, 1, 2, 1, 1, 2)[:rank], seed=rank)
        push.send(dump_arrays([array]))
        received, = pull()
        assert received.dtype == dtype and received.shape == array.shape and received.tobytes() == array.tobytes()


def test_the_written_format(push, puller):
    """A message written byte by byte, as the original sender does."""
    push.send(struct.pack('<i ii ii q', 2, 4, 2, 1, 3, 3) + b'\x01\x02\xff' + struct.pack('<ii q f', 1, 0, 4, 0.5))
    image, number = puller([tf.uint8, tf.float32])()
    assert image.tolist() == [[1, 2, 255]] and number == 0.5 and number.shape == ()


def test_booleans_are_0_or_1(push, puller):
    push.send(struct.pack('<iiiiq', 1, 10, 1, 4, 4) + b'\x00\x01\x02\xff')
    received, = puller([tf.bool])()
    assert received.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize('shape', [(0,), (3, 0), (0, 5, 2)])
def test_nothing_in_a_tensor(push, puller, shape):
    push.send(dump_arrays([np.zeros(shape, np.int32)]))
    assert puller()()[0].shape == shape


def test_a_large_message_arrives_whole(push, puller):
    array = np.random.RandomState(0).randint(0, 256, (64, 224, 224, 3), dtype=np.uint8)
    push.send(dump_arrays([array]))
    np.testing.assert_array_equal(puller([tf.uint8])()[0], array)


def test_tensorpack_at_both_ends(end_point, tmp_path):
    """Its send_dataflow_zmq in one process, and its ZMQInput's arguments in this one."""
    sender = tmp_path / 'sender.py'
    sender.write_text('import sys\n'
                      'import numpy as np\n'
                      'from tensorpack.dataflow import DataFromList, RepeatedData\n'
                      'from tensorpack.dataflow.remote import send_dataflow_zmq\n'
                      'points = [[np.full((2, 3), i, np.uint8), np.int32(i)] for i in range(3)]\n'
                      'data = DataFromList(points, shuffle=False)\n'
                      'send_dataflow_zmq(RepeatedData(data, -1), sys.argv[1], hwm=5, format="zmq_ops")\n')
    process = subprocess.Popen([sys.executable, str(sender), end_point], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        with tf.Graph().as_default(), tf.Session() as session:
            tensors = ZMQPullSocket(end_point, [tf.uint8, tf.int32], hwm=5, bind=True).pull()
            for i in range(6):
                images, label = session.run(tensors)
                assert label == i % 3 and images.shape == (2, 3) and (images == i % 3).all()
    finally:
        process.kill()
        process.wait()


def one(*, tensors=1, number=3, shape=(2,), size=None, data=None, rank=None):
    """A message with one tensor, some of its fields as given."""
    count = int(np.prod(shape)) * 4
    return struct.pack('<iii%diq' % len(shape), tensors, number, len(shape) if rank is None else rank, *shape,
                       count if size is None else size) + (bytes(8) if data is None else data)


MALFORMED = [
    b'', b'\x01', struct.pack('<i', -1), struct.pack('<i', 5), struct.pack('<i', 1), one(tensors=2), one(number=7),
    one(number=99), one(rank=-1), one(rank=33), one(shape=(-1,)), one(shape=(-2, -1)), one(size=-1), one(size=2 ** 62),
    one(size=4), one(data=b''), one(data=bytes(9)), one(shape=(1000,), size=4000), one(shape=(65536, 65536), size=0),
    struct.pack('<i', 2000) + struct.pack('<iiiq', 4, 1, 0, 0) * 2000,
    one(shape=(2 ** 31 - 1,) * 4 + (0,), size=0), one(shape=(2 ** 31 - 1,) * 32, size=8)]


@pytest.mark.parametrize('message', MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_message_is_an_error_and_the_next_is_received(push, puller, end_point, message):
    with pytest.raises(ValueError) as in_python:
        load_arrays(message)
    pull = puller()
    push.send(message)
    push.send(dump_arrays(GOOD))
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        pull()
    assert 'malformed message from %s: %s' % (end_point, in_python.value) in str(info.value)
    np.testing.assert_array_equal(pull()[0], GOOD[0])


@pytest.mark.parametrize('arrays, words', [
    ([np.zeros((2, 3), np.float32)], r'float32 \(2, 3\), instead of int32 \(-1, 3\)'),
    ([np.zeros((2, 4), np.int32)], r'int32 \(2, 4\), instead of int32 \(-1, 3\)'),
    ([np.zeros((), np.int32)], r'int32 \(\), instead of'), (GOOD * 2, r'int32 \(2, 3\) and int32 \(2, 3\), instead of'),
    ([], 'nothing, instead of')])
def test_other_tensors_than_expected(push, puller, arrays, words):
    pull = puller(shapes=[[None, 3]])
    push.send(dump_arrays(arrays))
    push.send(dump_arrays(GOOD))
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        pull()
    np.testing.assert_array_equal(pull()[0], GOOD[0])


def test_a_message_of_several_parts(push, puller):
    pull = puller()
    push.send_multipart([dump_arrays(GOOD), b'x', b'y'])
    push.send(dump_arrays(GOOD))
    with pytest.raises(tf.errors.InvalidArgumentError, match='3 parts'):
        pull()
    np.testing.assert_array_equal(pull()[0], GOOD[0])


def test_a_type_that_does_not_travel(puller):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match='cannot be received|string'):
        puller([tf.string])()


@pytest.mark.slow
def test_a_hundred_thousand_malformed_messages_are_skipped(push, puller, capfd):
    """The sound ones between them arrive, in order and unchanged; the log grows with the logarithm of the rest."""
    rng = random.Random(0)
    sources = [bytes(dump_arrays([np.zeros((2, 3), np.int32), np.ones(2, np.uint8)])), bytes(dump_arrays(GOOD)),
               bytes(dump_arrays([])), bytes(dump_arrays([np.zeros((1, 2, 1, 3), np.float16)]))]
    pull = puller(skip_malformed=True, hwm=1000)
    sent = 0
    for i in range(100):
        for _ in range(1000):
            message = damaged(rng, sources)
            try:
                sound = [(a.dtype, a.shape[:0]) for a in load_arrays(message)] == [(np.dtype('i4'), ())]
            except ValueError:
                sound = False
            if not sound:
                push.send(message)
                sent += 1
        push.send(dump_arrays([np.full((1, 1), i, np.int32)]))
        assert pull()[0].tolist() == [[i]]
    assert sent > 90000
    lines = [line for line in capfd.readouterr().err.splitlines() if 'zmq_ops: skipped' in line]
    assert 10 < len(lines) < 20


@pytest.mark.slow
def test_the_reader_under_sanitizers(root, tmp_path):
    done = subprocess.run(['make', '-C', os.path.join(root, 'third_party', 'zmq_ops'), 'fuzz', 'OUT=%s' % tmp_path,
                           'RUNS=200000'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert '200000 good messages, 200000 read' in done.stdout


def test_silence_ends_with_advice(puller, end_point):
    start = time.monotonic()
    with pytest.raises(tf.errors.DeadlineExceededError, match='in 0.5 seconds: start the server'):
        puller(timeout=0.5, advice='start the server')()
    assert 0.4 < time.monotonic() - start < 5


def test_malformed_messages_do_not_extend_the_wait(push, puller):
    pull = puller(timeout=1, skip_malformed=True)
    stop = threading.Event()

    def send():
        while not stop.wait(0.05):
            push.send(b'nonsense!')
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(tf.errors.DeadlineExceededError, match='only messages that do not fit; the last was'):
            pull()
    finally:
        stop.set()
        thread.join()


def test_an_old_malformed_message_does_not_explain_a_silence(push, puller):
    pull = puller(timeout=0.5, skip_malformed=True, advice='start the server')
    push.send(b'nonsense')
    push.send(dump_arrays(GOOD))
    pull()
    with pytest.raises(tf.errors.DeadlineExceededError, match='start the server'):
        pull()


def test_closing_the_session_ends_the_wait(puller):
    pull = puller(timeout=0)
    ended = []

    def wait():
        try:
            pull()
        except (tf.errors.CancelledError, RuntimeError) as e:
            ended.append(e)
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    pull.session.close()
    thread.join(5)
    assert not thread.is_alive() and len(ended) == 1


@pytest.mark.parametrize('bad', ['ipc:///no/such/folder/s', 'nonsense', 'tcp://127.0.0.1:none'])
def test_an_end_point_that_cannot_be_had(bad):
    pull = Puller(bad, [tf.int32])
    with pytest.raises(tf.errors.FailedPreconditionError, match='cannot bind %s' % bad):
        pull()
    pull.session.close()


def test_the_server_may_come_later_and_come_again(end_point, puller):
    def serve(socket):
        socket.bind(end_point)
        socket.send(dump_arrays(GOOD))

    pull = puller(bind=False)
    for _ in range(2):
        context = zmq.Context()
        socket = context.socket(zmq.PUSH)
        threading.Timer(0.3, serve, [socket]).start()
        np.testing.assert_array_equal(pull()[0], GOOD[0])
        context.destroy(linger=0)


def test_two_pulls_share_the_socket(push, end_point):
    with tf.Graph().as_default(), tf.Session() as session:
        socket = ZMQPullSocket(end_point, [tf.int32], bind=True, timeout=30)
        first, second = socket.pull(), socket.pull()
        for i in range(4):
            push.send(dump_arrays([np.int32(i)]))
        received = [session.run(pull)[0] for pull in (first, second, first, second)]
    assert received == [0, 1, 2, 3]
