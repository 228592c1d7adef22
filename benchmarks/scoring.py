#!/usr/bin/env python
"""How fast images are classified, beside PyTorch, onnxruntime and OpenVINO, measured in turns in one run.

    python benchmarks/scoring.py --peer torch --torch-python TORCH_ENVIRONMENT/bin/python --table scoring.md

Prints one JSON line for each system and dtype; `ratio` is to OpenVINO in the same dtype. One dtype is measured after
the other. The weights are random, and every system is given a batch and waits for its logits.
    this project    Classifier.logits on uint8 images, with all of its checks
    tuned PyTorch   channels_last, folded BatchNorm, torch.compile, on floats that are scaled already, as the next two
    onnxruntime     the network of torch_peer.py as ONNX; float32 alone, there are no kernels of bfloat16
    OpenVINO        the same file, its inference precision set
    matmul          products of large matrices, in each dtype: the machine's peak
"""
import argparse
import functools
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

from pgd import add_flags, check_flags, convolution_operations, matmul_rate  # noqa: E402
from turns import (  # noqa: E402
    PEAK,
    Configuration,
    Worker,
    draw,
    markdown_table,
    report,
    serve_turns,
    take_turns,
    worker_configuration,
)

from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.errors import InputError  # noqa: E402

if TYPE_CHECKING:  # it loads NumPy
    from checkpoint import Weights
    from nets import Network

UNIT = 'images_per_second'
PEERS = {'float32': ['tuned PyTorch', 'onnxruntime', 'OpenVINO'], 'bfloat16': ['tuned PyTorch', 'OpenVINO']}


def random_weights(network: 'Network') -> 'Weights':
    """Draw weights that keep features near 1, without the zeros that a training begins with."""
    import numpy as np
    rng = np.random.RandomState(0)

    def value(name: str, shape: Any) -> np.ndarray:
        if name.endswith('W'):
            return rng.standard_normal(shape).astype(np.float32) * (1 / np.prod(shape[:-1])) ** 0.5
        return np.full(shape, 0.5 if name.endswith('gamma') else float(name.endswith('variance/EMA')), np.float32)
    return {name: value(name, shape).astype(np.float32) for name, shape in network.variable_shapes().items()}


def scoring_rate(c: Configuration) -> Callable[[], float]:
    """Return what measures the classification of `steps` batches, in images a second."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:c.threads])  # TensorFlow counts them
    import numpy as np

    from inference import Classifier
    from nets import network_named
    network = network_named(c.network)
    classifier = Classifier(network, random_weights(network), image_size=c.image_size, batch=c.batch, dtype=c.dtype)
    images = np.random.RandomState(0).randint(0, 256, (c.batch, c.image_size, c.image_size, 3)).astype(np.uint8)

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(c.steps):
            classifier.logits(images)
        return c.batch * c.steps / (time.perf_counter() - begin)
    return measure


def start_workers(args: argparse.Namespace, dtype: str) -> List[Worker]:
    """Start a worker for the peak, for this project and, where they are asked for, for each peer."""
    workers: List[Worker] = []

    def start(python: str, file: str, system: str, network: str) -> None:
        workers.append(Worker(python, file, Configuration(
            system=system, dtype=dtype, job='scoring', network=network, batch=args.batch, image_size=args.image_size,
            threads=args.threads, steps=args.steps)))
    networks = args.network.split(',')
    start(sys.executable, 'scoring.py', PEAK, networks[0])
    for network in networks:
        start(sys.executable, 'scoring.py', 'this project', network)
        for system in PEERS[dtype] if args.peer and dtype in (args.peer_dtypes or args.dtypes).split(',') else ():
            start(args.torch_python, 'scoring_peer.py', system, network)
    return workers


def check_peers(args: argparse.Namespace) -> None:
    """Raise InputError where the peers' environment is not complete."""
    modules = 'onnx, onnxscript, onnxruntime, openvino'
    try:
        subprocess.run([args.torch_python, '-c', 'import ' + modules], check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        raise InputError('--torch-python %s has not all of %s: it needs requirements/torch.txt'
                         % (args.torch_python, modules))


def main() -> int:
    c = worker_configuration()
    if c is not None:
        serve_turns(functools.partial(matmul_rate if c.system == PEAK else scoring_rate, c))
        return 0
    parser = Parser(prog='scoring.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.set_defaults(batch=32)
    parser.add_argument('--steps', type=int, default=2, help='batches of each turn (2)')
    args = parser.parse_args()
    check_flags(args)
    if args.peer:
        check_peers(args)
    operations = {network: convolution_operations(network, args.image_size) for network in args.network.split(',')}
    records: List[Dict[str, Any]] = []
    for dtype in args.dtypes.split(','):
        workers = start_workers(args, dtype)
        answers = take_turns([worker.turn for worker in workers], args.repeats)
        for worker in workers:
            worker.close()
        records += report(workers, answers, UNIT, operations, 'OpenVINO' if args.peer else 'this project')
    if args.table:
        with open(args.table, 'w') as f:
            f.write(markdown_table(records, UNIT) + '\n')
    if args.plot:
        draw(records, UNIT, args.plot, 'scoring, %s, %dx%d, batch %d, %d threads' % (
            args.network, args.image_size, args.image_size, args.batch, args.threads))
    return 0


if __name__ == '__main__':
    run_command('scoring.py', main)
