"""The data server as its users run it: a real process, real images, real sockets."""
import collections
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
import pytest
from lanes import once

from third_party.transport import Receiver

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, 'third_party', 'serve-data.py')
CLASSES, BATCH, SIZE = 24, 4, 16


@pytest.fixture
def temporary():
    """For TMPDIR: pytest's own directories can be too long for the path of a socket."""
    path = tempfile.mkdtemp()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """24 classes of one image each, so that a label tells the image."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.RandomState(0)
    for i in range(CLASSES):
        folder = root / 'train' / ('%02d' % i)
        folder.mkdir(parents=True)
        image = cv2.resize(rng.uniform(0, 255, (4, 4, 3)).astype(np.float32), (48, 40)).astype(np.uint8)
        cv2.imwrite(str(folder / 'image.jpg'), image)
    return str(root)


def flags(data, *more, workers=2):
    return ['--data', data, '--batch', BATCH, '--image-size', SIZE, '--workers', workers] + list(more)


def launch(temporary, arguments, **options):
    environment = dict(os.environ, TMPDIR=temporary)
    return subprocess.Popen([sys.executable, SCRIPT] + [str(a) for a in arguments], env=environment,
                            cwd=temporary, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True, **options)


class Server:
    """A server that has printed its line. Ended in any case."""

    def __init__(self, temporary, arguments):
        self.process = launch(temporary, arguments)
        self.line = self.read_line(self.process.stdout)
        match = re.search(r' at (\S+)', self.line)
        if not match:
            time.sleep(1)
            self.process.kill()
            output = self.process.communicate()
            pytest.fail('no server: %r %r, status %d' % (self.line, output, self.process.returncode))
        self.endpoint = match.group(1)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    @staticmethod
    def read_line(stream, timeout=20):
        if not select.select([stream], [], [], timeout)[0]:
            pytest.fail('the server said nothing')
        return stream.readline()

    def error_line(self):
        return self.read_line(self.process.stderr)

    def children(self):
        """Process ids, in the order in which they were started."""
        with open('/proc/%d/task/%d/children' % (self.pid, self.pid)) as f:
            return [int(pid) for pid in f.read().split()]

    def receiver(self, **options):
        return Receiver(self.endpoint, BATCH, SIZE, timeout=20, classes=CLASSES, **options)

    def stop(self, number=signal.SIGTERM):
        """Seconds until the end, exit status and the rest of stderr."""
        start = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=10)
        return time.monotonic() - start, self.process.returncode, errors


def alive(pid):
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def wait_until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited %g s in vain' % seconds
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def labels_of(receiver, batches):
    return [label for _ in range(batches) for label in next(receiver)[1].tolist()]


def files(endpoint):
    directory, start = os.path.split(endpoint[len('ipc://'):])
    return sorted(name for name in os.listdir(directory) if name.startswith(start))


def test_every_image_once_an_epoch_in_a_new_order(temporary, data):
    with Server(temporary, flags(data, workers=1)) as server:
        receiver = server.receiver()
        epochs = [labels_of(receiver, CLASSES // BATCH) for _ in range(4)]
        receiver.close()
    assert all(sorted(epoch) == list(range(CLASSES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_workers_share_the_epochs(temporary, data):
    with Server(temporary, flags(data, workers=3)) as server:
        assert server.line.startswith('serving 24 images of 24 classes in batches of 4, size 16, at ipc://')
        receiver = server.receiver()
        counts = collections.Counter(labels_of(receiver, 20 * CLASSES // BATCH))
        receiver.close()
    assert sum(counts.values()) == 20 * CLASSES
    # only batches that are under way can be missing or early
    assert set(counts) == set(range(CLASSES)) and max(counts.values()) - min(counts.values()) <= 2


def test_a_seed_gives_the_same_data_however_many_workers(temporary, data):
    received = []
    for workers in (1, 3):
        with Server(temporary, flags(data, '--seed', 7, workers=workers)) as server:
            receiver = server.receiver()
            received.append([b''.join(a.tobytes() for a in next(receiver)) for _ in range(12)])
            receiver.close()
    assert len(set(received[0]) & set(received[1])) >= 9  # the rest overtook each other


def test_images_are_those_of_their_labels(temporary, tmp_path):
    """Crop, contrast and saturation leave a grey surface alone, so its brightness tells the class."""
    for name, level in (('dark', 40), ('light', 200)):
        (tmp_path / 'train' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'train' / name / 'x.png'), np.full((30, 30, 3), level, np.uint8))
    with Server(temporary, flags(str(tmp_path))) as server:
        receiver = Receiver(server.endpoint, BATCH, SIZE, timeout=20)
        for _ in range(20):
            images, labels = next(receiver)
            assert ((images.mean(axis=(1, 2, 3)) > 90) == (labels == 1)).all()
        receiver.close()


def test_only_the_user_can_connect(temporary, data):
    with Server(temporary, flags(data)) as server:
        path = server.endpoint[len('ipc://'):]
        assert path.startswith(temporary)
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
        for name in files(server.endpoint):
            assert os.stat(os.path.join(os.path.dirname(path), name)).st_mode & 0o077 == 0


def test_no_tensorflow_and_no_threads_where_it_forks(temporary, data):
    with Server(temporary, flags(data)) as server:
        receiver = server.receiver()
        next(receiver)
        receiver.close()
        with open('/proc/%d/status' % server.pid) as f:
            assert 'Threads:\t1\n' in f.read()
        for pid in [server.pid] + server.children():
            with open('/proc/%d/maps' % pid) as f:
                assert 'tensorflow' not in f.read()


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize('receiving', [False, True])
def test_a_signal_ends_all_within_two_seconds(temporary, data, number, status, receiving):
    with Server(temporary, flags(data)) as server:
        receiver = server.receiver()
        next(receiver)
        if not receiving:
            receiver.close()
        children = server.children()
        assert len(children) == 3
        seconds, returned, errors = server.stop(number)
        receiver.close()
        assert seconds < 2 and returned == status
        assert errors == ('serve-data.py: interrupted\n' if status == 130 else '')
        assert not any(alive(pid) for pid in children)
        assert files(server.endpoint) == []


def test_ctrl_c_and_a_signal_to_all_processes(temporary, data):
    """The terminal and slurm signal the whole group."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        process = launch(temporary, flags(data), start_new_session=True)
        assert 'serving' in Server.read_line(process.stdout)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=5)
        assert process.returncode == status and errors == ('serve-data.py: interrupted\n' if status else '')


@pytest.mark.parametrize('which', [0, 1, 2])
def test_a_process_that_dies_is_replaced_and_reported(temporary, data, which):
    """The distributor is the first child, workers follow."""
    with Server(temporary, flags(data)) as server:
        receiver = server.receiver()
        next(receiver)
        victim = server.children()[which]
        os.kill(victim, signal.SIGKILL)
        line = server.error_line()
        assert '(process %d) was killed by signal 9: starting another' % victim in line
        assert ('the distributor' if which == 0 else 'worker %d' % (which - 1)) in line
        wait_until(lambda: len(server.children()) == 3 and victim not in server.children())
        counts = collections.Counter(labels_of(receiver, 120))
        receiver.close()
        assert set(counts) == set(range(CLASSES))
        seconds, status, errors = server.stop()
        assert seconds < 2 and status == 0 and errors == ''


@once
def test_a_process_that_keeps_dying_ends_the_server(temporary, data):
    with Server(temporary, flags(data, workers=1)) as server:
        seen = set()
        while server.process.poll() is None and len(seen) < 20:
            for pid in server.children()[1:]:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        _, errors = server.process.communicate(timeout=5)
        assert server.process.returncode == 2 and 'giving up' in errors.splitlines()[-1]
        assert files(server.endpoint) == []


def test_a_killed_server_leaves_no_process_and_no_obstacle(temporary, data):
    with Server(temporary, flags(data)) as first:
        receiver = first.receiver()
        next(receiver)
        children = first.children()
        first.process.kill()
        wait_until(lambda: not any(alive(pid) for pid in children), 2)
        assert files(first.endpoint)  # stale ones
        with Server(temporary, flags(data)) as second:
            assert second.endpoint == first.endpoint
            assert set(labels_of(receiver, 60)) == set(range(CLASSES))  # the same receiver goes on
            receiver.close()
            assert second.stop()[1] == 0


def test_a_second_server_is_refused_and_the_first_goes_on(temporary, data):
    with Server(temporary, flags(data)) as server:
        other = launch(temporary, flags(data))
        _, errors = other.communicate(timeout=10)
        assert other.returncode == 2 and errors.count('\n') == 1
        assert 'process %d' % server.pid in errors and server.endpoint in errors
        receiver = server.receiver()
        labels_of(receiver, 30)
        receiver.close()


def test_servers_side_by_side(temporary, data):
    own = 'ipc://%s/own' % temporary
    small = ['--data', data, '--batch', 2, '--image-size', SIZE, '--workers', 1]
    with Server(temporary, flags(data)) as a, Server(temporary, small) as b, \
            Server(temporary, flags(data, '--endpoint', own)) as c:
        assert len({a.endpoint, b.endpoint, c.endpoint}) == 3 and c.endpoint == own
        for server, batch in ((a, BATCH), (b, 2), (c, BATCH)):
            receiver = Receiver(server.endpoint, batch, SIZE, timeout=10)
            assert next(receiver)[0].shape == (batch, SIZE, SIZE, 3)
            receiver.close()
        for server in (a, b, c):
            assert server.stop()[1] == 0


def test_several_ranks_share_the_batches(temporary, data):
    with Server(temporary, flags(data, '--endpoint', 'tcp://127.0.0.1:%d' % free_port())) as server:
        receivers = [server.receiver(hwm=1) for _ in range(3)]
        labels = [label for _ in range(40) for r in receivers for label in labels_of(r, 1)]
        for receiver in receivers:
            receiver.close()
    assert len(labels) == 120 * BATCH and set(labels) == set(range(CLASSES))


def test_unreadable_images_are_skipped_and_named_once(temporary, data, tmp_path):
    shutil.copytree(os.path.join(data, 'train'), str(tmp_path / 'train'))
    (tmp_path / 'train' / '03' / 'image.jpg').write_bytes(b'no image')
    whole = (tmp_path / 'train' / '05' / 'image.jpg').read_bytes()
    (tmp_path / 'train' / '05' / 'image.jpg').write_bytes(whole[:len(whole) // 2])
    with Server(temporary, flags(str(tmp_path))) as server:
        receiver = server.receiver()
        counts = collections.Counter(labels_of(receiver, 100))
        receiver.close()
        _, status, errors = server.stop()
    assert status == 0 and set(counts) == set(range(CLASSES)) - {3, 5}
    lines = errors.splitlines()
    assert len(lines) == 2 and '(1 of 24' in lines[0] and '(2 of 24' in lines[1]
    assert sum('03/image.jpg is not a readable image' in line for line in lines) == 1
    assert sum('05/image.jpg' in line and 'truncated' in line for line in lines) == 1


def test_no_readable_image_at_all(temporary, tmp_path):
    for name in 'ab':
        (tmp_path / 'train' / name).mkdir(parents=True)
        (tmp_path / 'train' / name / 'x.jpg').write_bytes(b'no image')
    process = launch(temporary, flags(str(tmp_path)))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert 'error: not one of the 2 images can be read' in errors.splitlines()[-1]


def test_fake_serves_one_batch_again_and_again(temporary, data):
    for more, classes in (([], 1000), (['--data', data], CLASSES)):
        with Server(temporary, ['--fake', '--batch', BATCH, '--image-size', SIZE] + more) as server:
            receiver = Receiver(server.endpoint, BATCH, SIZE, timeout=10, classes=classes)
            first = [a.copy() for a in next(receiver)]
            for _ in range(50):
                assert all(np.array_equal(a, b) for a, b in zip(first, next(receiver)))
            receiver.close()
            assert 'labels of %d classes' % classes in server.line
            seconds, status, errors = server.stop()
            assert seconds < 2 and status == 0 and errors == ''


def test_benchmark(temporary, data):
    process = launch(temporary, flags(data, '--benchmark', '--benchmark-seconds', 0.5))
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and errors == ''
    match = re.match(r'([\d.]+) images/s with decode, augmentation and serialisation: 2 workers, '
                     r'([\d.]+) images/s each', output)
    assert match and float(match.group(1)) > 50 and output.count('\n') == 1
    assert float(match.group(1)) == pytest.approx(2 * float(match.group(2)), abs=0.2)
    assert os.listdir(os.path.join(temporary, os.listdir(temporary)[0])) == []


@pytest.mark.parametrize('arguments, expected', [
    ([], '--data DIR is required'), (['--data', 'none'], 'no folder none'),
    (['--data', '.'], 'no class folders'),
    (['--data', 'DATA', '--batch', '0'], '--batch must be at least 1'),
    (['--data', 'DATA', '--batch', 'x'], '--batch'),
    (['--data', 'DATA', '--batch', '1000000'], 'larger than 2 GiB'),
    (['--data', 'DATA', '--image-size', '0'], '--image-size must be'),
    (['--data', 'DATA', '--nosuch'], '--nosuch'),
    (['--data', 'DATA', '--workers', '0'], '--workers must be'),
    (['--data', 'DATA', '--seed', '-1'], '--seed'),
    (['--data', 'DATA', '--classes', 'none'], 'none'),
    (['--data', 'DATA', '--classes', 'wrong'], 'train/00'),
    (['--data', 'DATA', '--benchmark', '--benchmark-seconds', 'nan'], '--benchmark-seconds'),
    (['--fake', '--benchmark'], '--benchmark'),
    (['--data', 'DATA', '--endpoint', 'x'], 'no endpoint'),
    (['--data', 'DATA', '--endpoint', 'ipc:///no/such/dir/x'], 'cannot serve at'),
    (['--data', 'DATA', '--endpoint', 'ipc://wrong'], 'wrong exists and is no socket'),
    (['--data', 'DATA', '--endpoint', 'ipc://' + 'x' * 120], 'longer than'),
    (['--data', 'DATA', '--endpoint', 'tcp://127.0.0.1:99999'], 'no endpoint'),
    (['--data', 'DATA', '--endpoint', 'tcp://127.0.0.1:*'], 'no endpoint')])
def test_bad_input_is_one_line_and_status_2(temporary, data, arguments, expected):
    with open(os.path.join(temporary, 'wrong'), 'w') as f:
        f.write('cat\nant\n')
    process = launch(temporary, [data if a == 'DATA' else a for a in arguments])
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and output == ''
    assert errors.startswith('serve-data.py: error: ') and errors.count('\n') == 1 and expected in errors
    assert os.path.exists(os.path.join(temporary, 'wrong'))


def test_a_port_that_is_taken(temporary, data):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        process = launch(temporary, flags(data, '--endpoint', 'tcp://127.0.0.1:%d' % taken.getsockname()[1]))
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and errors.count('\n') == 1 and 'cannot serve at tcp://127' in errors


def test_a_foreign_socket_directory_is_refused(temporary, data):
    os.mkdir(os.path.join(temporary, 'adversarial-training-%d' % os.geteuid()), 0o755)
    process = launch(temporary, flags(data))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and 'only you can enter' in errors


def test_it_is_a_program(temporary, data):
    """Run through its first line, from another directory, by a link."""
    link = os.path.join(temporary, 'serve')
    os.symlink(SCRIPT, link)
    environment = dict(os.environ, PATH=os.path.dirname(sys.executable) + ':' + os.environ['PATH'])
    run = subprocess.run([link, '--help'], cwd='/', env=environment, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    assert run.returncode == 0 and b'--benchmark-seconds' in run.stdout and run.stderr == b''
