"""The sockets' place, and the receiver in Python."""
import gc
import os
import re
import shlex
import shutil
import socket as network
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
import zmq
from zmq_ops.wire import dump_arrays

from runtime.errors import InputError
from third_party import transport
from third_party.transport import Receiver, check_endpoint, default_endpoint


@pytest.fixture
def short_directory():
    """pytest's own directories can be too long for the path of a socket."""
    path = tempfile.mkdtemp()
    yield path
    shutil.rmtree(path)


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
    ([batch(n=2)], 'uint8 (2, 8, 8, 3)'), ([batch(size=4)], '--batch 4'),
    ([batch(0)[:-1]], 'only 15 follow'),
    ([dump_arrays([np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, np.int32)])], 'float32 (4, 8, 8, 3)'),
    ([dump_arrays([])], 'tensors of nothing')])
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


def test_the_printed_command_meets_this_end_also_in_a_shell_with_another_tmpdir(temporary, short_directory):
    endpoint = default_endpoint(2, 8)
    receiver = Receiver(endpoint, 2, 8, timeout=0.1)
    with pytest.raises(InputError, match='--data DIR --batch 2 --image-size 8 on ') as info:
        next(receiver)
    receiver.close()
    printed = re.search(r'start (third_party/serve-data.py .*) on (\S+)$', str(info.value))
    assert printed.group(2) == network.gethostname()
    words = shlex.split(printed.group(1).replace('--data DIR', '--fake'))
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    elsewhere = tempfile.mkdtemp()
    server = subprocess.Popen([sys.executable] + words, cwd=root, env=dict(os.environ, TMPDIR=elsewhere),
                              stdout=subprocess.PIPE)
    try:
        receiver = Receiver(endpoint, 2, 8, timeout=20)
        assert next(receiver)[0].shape == (2, 8, 8, 3)
        receiver.close()
    finally:
        server.kill()
        server.communicate()
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize('endpoint, expected, host', [
    ('tcp://10.0.0.5:5555', 'tcp://10.0.0.5:5555', '10.0.0.5'), ('tcp://node7:5555', 'tcp://node7:5555', 'node7'),
    ('tcp://localhost:5555', 'tcp://localhost:5555', None), ('tcp://127.0.0.1:55', 'tcp://127.0.0.1:55', None),
    ('ipc://beside', 'ipc://%s/beside' % os.getcwd(), None), ('ipc:///a b/c', "'ipc:///a b/c'", None)])
def test_where_to_start_the_server(endpoint, expected, host):
    text = transport.server_to_start(32, 224, endpoint)
    assert text == 'start third_party/serve-data.py --data DIR --batch 32 --endpoint %s on %s' % (
        expected, host or network.gethostname())


def test_messages_that_do_not_fit_do_not_extend_the_wait(sender):
    receiver = Receiver(sender[1], BATCH, SIZE, timeout=0.5)
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            sender[0].send(bytes(batch(n=3)))
            time.sleep(0.01)

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(InputError, match='the last was tensors of uint8 .3, 8, 8, 3.'):
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
