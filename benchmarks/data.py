#!/usr/bin/env python
"""How fast the data plane is, beside what one would otherwise use, measured in turns in one run.

    python benchmarks/data.py --data DIR         a folder with train/CLASS/* (or val/CLASS/*), such as ImageNet's

Prints one JSON line for each system and subject; `ratio` is to the baseline of the same subject.
    images    decoding and augmenting photos, on one core: this project's worker, and tensorpack's imgaug with OpenCV
    receive   a batch of uint8 images from another process into a TensorFlow graph: the native op, this project's Python
              receiver with its queue, and pyzmq + np.frombuffer + feed_dict; beside them ZeroMQ alone, which drops what
              it receives: no receiver is faster. With the CPU seconds that each side takes for a gigabyte, and the
              milliseconds that a step takes when it finds its batch there, as in a training with time to spare
    memory    memory copies alone, for comparison
"""
import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import zmq  # noqa: E402
from zmq_ops.wire import dump_arrays, load_arrays  # noqa: E402

from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from third_party.imagenet import load_dataset  # noqa: E402
from third_party.images import LIGHTING_COMPONENTS, LIGHTING_EIGENVALUES, load_training_image  # noqa: E402
from third_party.transport import batch_specs  # noqa: E402

SIZE = 224
Steps = Callable[[str, int], Iterator[None]]  # of an end point and a batch size: receives a batch at each `next`


def rounds(systems: Dict[str, Callable[[], float]], repeats: int) -> Dict[str, List[float]]:
    """Measure each system in turns, after one turn that does not count; returns its `repeats` rates."""
    rates: Dict[str, List[float]] = {name: [] for name in systems}
    for i in range(repeats + 1):
        for name, measure in systems.items():
            rate = measure()
            if i:
                rates[name].append(rate)
    return rates


def report(subject: str, unit: str, rates: Dict[str, List[float]], baseline: str, scale: float = 1.,
           details: Optional[Dict[str, Dict[str, float]]] = None, **facts: int) -> None:
    """Print a JSON line for each system.

    unit: of the rates times `scale`. baseline: the system that `ratio` is to. details: what else was measured of each
    system. facts: what is the same for all.
    """
    for name, values in rates.items():
        values = [value * scale for value in values]
        ratios = [value / (base * scale) for value, base in zip(values, rates[baseline])]
        print(json.dumps(dict(
            subject=subject, system=name, **{unit: round(statistics.median(values), 3)},
            lowest=round(min(values), 3), highest=round(max(values), 3), repeats=len(values),
            ratio=round(statistics.median(ratios), 3), baseline=baseline, **facts, **(details or {}).get(name, {}))),
            flush=True)


# ---- decoding and augmenting


def imgaug_pipeline() -> Callable[[str, int], np.ndarray]:
    """Return the augmentation of training as tensorpack composes it, on images as OpenCV reads them."""
    from tensorpack.dataflow import imgaug

    augmentor = imgaug.AugmentorList([
        imgaug.GoogleNetRandomCropAndResize((0.08, 1.), (3 / 4., 4 / 3.), SIZE, cv2.INTER_CUBIC),
        imgaug.RandomOrderAug([imgaug.BrightnessScale((0.6, 1.4), clip=False),
                               imgaug.Contrast((0.6, 1.4), rgb=False, clip=False),
                               imgaug.Saturation(0.4, rgb=False, clip=False)]),
        imgaug.Lighting(0.1, eigval=LIGHTING_EIGENVALUES[::-1], eigvec=LIGHTING_COMPONENTS[:, ::-1]),
        imgaug.Flip(horiz=True)])
    return lambda path, _: augmentor.augment(cv2.imread(path, cv2.IMREAD_COLOR))


def measure_images(paths: List[str], repeats: int) -> None:
    """Print the rates of decoding and augmenting photos on one core; the files come from the page cache."""
    cv2.setNumThreads(0)
    plain = imgaug_pipeline()
    target = np.empty((SIZE, SIZE, 3), np.uint8)

    def rate(function: Callable[[str, int], object]) -> float:
        start = time.perf_counter()
        for i, path in enumerate(paths):
            function(path, i)
        return len(paths) / (time.perf_counter() - start)

    def ours(path: str, i: int) -> None:
        load_training_image(path, np.random.RandomState([0, i]), SIZE, out=target)

    def decoded(path: str, _: int) -> None:
        cv2.imread(path, cv2.IMREAD_COLOR)

    report('images', 'images_per_second', rounds({
        'opencv+imgaug': lambda: rate(plain), 'opencv decoding alone': lambda: rate(decoded),
        'serve-data.py': lambda: rate(ours)}, repeats), 'opencv+imgaug', photos=len(paths), cores=1)


# ---- receiving


class Received(NamedTuple):
    """What a turn of a receiver gave."""
    batches_per_second: float
    receiver_seconds: float  # of CPU, for each batch
    sender_seconds: float
    step_milliseconds: float  # of a step for which a batch has arrived already, the median


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, user and system."""
    with open('/proc/%d/stat' % pid) as f:
        fields = f.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def send_for_ever(end_point: str, batch: int) -> None:
    """Send one random batch again and again."""
    socket = zmq.Context().socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, 4)
    socket.bind(end_point)
    rng = np.random.RandomState(0)
    message = dump_arrays([rng.randint(0, 256, shape).astype(dtype) for dtype, shape in batch_specs(batch, SIZE)])
    while True:
        socket.send(message, copy=False)


def native_op(end_point: str, batch: int) -> Iterator[None]:
    """Receive by the native op of the graph."""
    from runtime.compat import tf

    from zmq_ops import ZMQPullSocket
    with tf.Graph().as_default(), tf.Session() as session:
        images, labels = ZMQPullSocket(end_point, [tf.uint8, tf.int32], hwm=4, bind=False, timeout=60).pull()
        used = tf.group(images[0, 0, 0, 0], labels[0])
        while True:
            yield session.run(used)


def zeromq_alone(end_point: str, batch: int) -> Iterator[None]:
    """Receive by ZeroMQ, and drop what comes."""
    socket = zmq.Context().socket(zmq.PULL)
    socket.set(zmq.RCVHWM, 4)
    socket.connect(end_point)
    while True:
        socket.recv(copy=False)
        yield


def feed_dict(end_point: str, batch: int) -> Iterator[None]:
    """Receive by pyzmq, and feed the arrays to the graph."""
    from runtime.compat import tf
    socket = zmq.Context().socket(zmq.PULL)
    socket.set(zmq.RCVHWM, 4)
    socket.connect(end_point)
    with tf.Graph().as_default(), tf.Session() as session:
        images, labels = [tf.placeholder(dtype, shape) for dtype, shape in batch_specs(batch, SIZE)]
        used = tf.group(images[0, 0, 0, 0], labels[0])
        while True:
            yield session.run(used, dict(zip((images, labels), load_arrays(socket.recv(copy=False).buffer))))


def python_queue(end_point: str, batch: int) -> Iterator[None]:
    """Receive as with --no-zmq-ops: a thread of Python fills TensorFlow's queue."""
    import threading

    from runtime.compat import tf

    from third_party.transport import Receiver
    receiver = Receiver(end_point, batch, SIZE, hwm=4)
    with tf.Graph().as_default(), tf.Session() as session:
        specs = batch_specs(batch, SIZE)
        queue = tf.FIFOQueue(4, [tf.as_dtype(dtype) for dtype, _ in specs], [shape for _, shape in specs])
        fed = [tf.placeholder(dtype, shape) for dtype, shape in specs]
        enqueue = queue.enqueue(fed)

        def fill() -> None:
            for arrays in receiver:
                session.run(enqueue, dict(zip(fed, arrays)))
        threading.Thread(target=fill, daemon=True).start()
        images, labels = queue.dequeue()
        used = tf.group(images[0, 0, 0, 0], labels[0])
        while True:
            yield session.run(used)


def receive(how: Steps, batch: int, seconds: float) -> Received:
    """Measure a receiver for some seconds.

    Sender and receiver are new processes, so nothing of one system stays for the next. Raises RuntimeError where
    nothing arrives.
    """
    spawn = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        end_point = 'ipc://%s/s' % folder
        rates, child_end = spawn.Pipe(duplex=False)
        sender = spawn.Process(target=send_for_ever, args=(end_point, batch), daemon=True)
        sender.start()
        receiver = spawn.Process(target=measure_receiver, args=(how, end_point, batch, seconds, sender.pid, child_end),
                                 daemon=True)
        receiver.start()
        child_end.close()  # so that the end of the receiver is seen
        try:
            if not rates.poll(120 + seconds):
                raise RuntimeError('%s received nothing in 120 seconds' % how.__name__)
            return rates.recv()
        finally:
            for process in (receiver, sender):
                process.kill()
                process.join()


def measure_receiver(how: Steps, end_point: str, batch: int, seconds: float, sender: int, result: Connection) -> None:
    """Measure a receiver in this process, and send what it gave to `result`. sender: the process that sends."""
    steps = how(end_point, batch)
    for _ in range(20):
        next(steps)
    cpu = [cpu_seconds(pid) for pid in (os.getpid(), sender)]
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        next(steps)
        count += 1
    rate = count / (time.perf_counter() - start)
    taken = [(cpu_seconds(pid) - then) / count for pid, then in zip((os.getpid(), sender), cpu)]
    times = []
    for _ in range(20):
        time.sleep(0.03)
        start = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - start)
    result.send(Received(rate, taken[0], taken[1], statistics.median(times) * 1e3))


def copies_per_second(batch: int) -> float:
    """Return how often a second a batch of images is copied from memory to memory."""
    source = np.ones(batch * SIZE * SIZE * 3, np.uint8)
    target = np.empty_like(source)
    start = time.perf_counter()
    for _ in range(100):
        target[...] = source
    return 100 / (time.perf_counter() - start)


def measure_receiving(batch: int, repeats: int, seconds: float) -> None:
    """Print the rates of all receivers, and of copies in memory."""
    gigabytes = batch * (SIZE * SIZE * 3 + 4) / 1e9
    systems = [feed_dict, python_queue, native_op, zeromq_alone]
    turns: Dict[str, List[Received]] = {how.__name__: [] for how in systems}

    def rate(how: Steps) -> float:
        turns[how.__name__].append(receive(how, batch, seconds))
        return turns[how.__name__][-1].batches_per_second

    rates = rounds({how.__name__: functools.partial(rate, how) for how in systems}, repeats)
    medians = {name: np.median(received[1:], axis=0) for name, received in turns.items()}  # without the first turn
    report('receive', 'gigabytes_per_second', rates, 'feed_dict', gigabytes, {name: dict(
        receiver_cpu_seconds_per_gigabyte=round(receiver / gigabytes, 3),
        sender_cpu_seconds_per_gigabyte=round(sender / gigabytes, 3), step_milliseconds=round(step, 2))
        for name, (_, receiver, sender, step) in medians.items()}, batch=batch)
    copies = {'memcpy': [copies_per_second(batch) for _ in range(repeats)]}
    report('memory', 'gigabytes_per_second', copies, 'memcpy', gigabytes, batch=batch)


def main() -> int:
    parser = Parser(prog='data.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='DIR', required=True)
    parser.add_argument('--split', choices=['train', 'val'], default='train')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--repeats', type=int, default=5, help='turns (5)')
    parser.add_argument('--seconds', type=float, default=3., help='of each turn of a receiver (3)')
    args = parser.parse_args()
    if args.batch < 1 or args.repeats < 1 or args.seconds <= 0:
        raise InputError('--batch, --repeats and --seconds must be positive')
    paths = load_dataset(args.data, args.split).paths
    measure_images(paths[::-(-len(paths) // 200)], args.repeats)
    measure_receiving(args.batch, args.repeats, args.seconds)
    return 0


if __name__ == '__main__':
    run_command('data.py', main)
