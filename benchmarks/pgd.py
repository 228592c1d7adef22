#!/usr/bin/env python
"""How fast a step of the attack is, beside PyTorch, measured in turns in one run.

    python benchmarks/pgd.py --peer torch --torch-python TORCH_ENVIRONMENT/bin/python --plot pgd.png

Prints one JSON line for each system, and with --table FILE the table for docs/measurements.md.
    this project    in float32 and bfloat16
    plain port      this project without its shortcuts: BatchNorm apart, TensorFlow's own gradients (--plain)
    torchattacks    torchattacks' PGD as installed; float32
    tuned PyTorch   channels_last, folded BatchNorm, frozen weights, torch.compile; float32 and bfloat16
    matmul          products of large matrices, in each dtype: the machine's peak
"""
import argparse
import functools
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Callable, List

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

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
from runtime.files import check_writable  # noqa: E402

if TYPE_CHECKING:  # it takes seconds to load, which --help does not need
    from runtime.compat import tf

    from adv_model import Attacker

PLOTS = ['.png', '.pdf', '.svg']
UNIT = 'image_steps_per_second'
DTYPES = 'float32,bfloat16'
MATRIX = 2048  # rows and columns


def matmul_rate(c: Configuration) -> Callable[[], float]:
    """Return what measures products of large matrices, in operations a second."""
    from runtime.compat import tf
    size = min(MATRIX, 16 * c.image_size)
    values = tf.random_normal([size, size], stddev=size ** -0.5)
    matrix = tf.get_variable('matrix', initializer=tf.cast(values, c.dtype))
    product = matrix
    for _ in range(8):
        product = tf.matmul(product, matrix)
    return rate_of(product.op, c, 8 * 2 * size ** 3)


def rate_of(op: 'tf.Operation', c: Configuration, amount: float) -> Callable[[], float]:
    """Return what runs an operation of the default graph, with new variables, and measures its rate.

    amount: of work in one run; the rate is `amount` over the run's seconds.
    """
    from runtime.compat import tf

    import numpy as np

    from runtime.hardware import session_config
    config = session_config()
    config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = c.threads
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    for variable in tf.global_variables():
        if variable.op.name.endswith('/gamma'):  # the zeros that end branches would spare some of the work
            variable.load(np.full(variable.shape.as_list(), 0.5, np.float32), session)

    def measure() -> float:
        begin = time.perf_counter()
        session.run(op)
        return amount / (time.perf_counter() - begin)
    return measure


def attack_rate(c: Configuration) -> Callable[[], float]:
    """Return what measures PGD, in image-steps a second."""
    from adv_model import PGDAttacker
    return rate_of_attack(c, PGDAttacker, plain=c.system == 'plain port')


def rate_of_attack(c: Configuration, attacker: Callable[..., 'Attacker'], *, plain: bool = False,
                   by_index: bool = False) -> Callable[[], float]:
    """Return what measures an attack, in image-steps a second. attacker: takes PGDAttacker's parameters. by_index: what
    is random follows from the images' indices, as in an evaluation."""
    from runtime.compat import tf

    import numpy as np

    from kernels.mode import attack_settings
    from nets import network_named
    network, settings = network_named(c.network), attack_settings(c.dtype)
    mode = settings['attack_mode']._replace(plain=plain)
    shape = [c.batch, c.image_size, c.image_size, 3]
    image = tf.get_variable('image', initializer=np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32))
    # of a batch size that the graph does not know, as in training and evaluation
    image = tf.placeholder_with_default(image, [None] + shape[1:])
    label = tf.placeholder_with_default(tf.range(c.batch), [None])
    made = attacker(c.steps, 16., 1., num_classes=network.num_classes, loss_scale=settings['loss_scale'])
    adversarial, _ = made.attack(image, label, lambda x: network.logits(x, mode),
                                 tf.range(c.batch) if by_index else None)
    return rate_of(adversarial.op, c, c.batch * c.steps)


def convolution_operations(network: str, image_size: int) -> float:
    """Count the multiplications and additions of the convolutions' forward pass, for one image."""
    from runtime.compat import tf

    from kernels.mode import Mode
    from nets import network_named
    total = 0.0
    with tf.Graph().as_default() as graph:  # of the layout in which groups are one convolution
        network_named(network).logits(tf.zeros([1, image_size, image_size, 3]), Mode(data_format='NCHW'))
        for op in graph.get_operations():
            if op.type == 'Conv2D':
                kernel_height, kernel_width, channels, _ = op.inputs[1].shape.as_list()
                total += 2.0 * op.outputs[0].shape.num_elements() * kernel_height * kernel_width * channels
    return total


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that pgd.py and train.py have in common."""
    parser.add_argument('--network', default='ResNet-50', metavar='N[,N...]',
                        help='architecture and depth, or resnet50, ... (ResNet-50)')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--image-size', type=int, default=224)
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='by default one a core')
    parser.add_argument('--repeats', type=int, default=5, help='turns (5)')
    parser.add_argument('--dtypes', default=DTYPES, help='of the attack (%s)' % DTYPES)
    parser.add_argument('--peer', choices=['torch'], help='measure PyTorch beside it')
    parser.add_argument('--peer-dtypes', help='by default those of --dtypes')
    parser.add_argument('--torch-python', metavar='PYTHON', default=sys.executable,
                        help='an interpreter with requirements/torch.txt')
    parser.add_argument('--table', metavar='FILE', help='write the table there')
    parser.add_argument('--plot', metavar='FILE', help='draw a picture')


def check_flags(args: argparse.Namespace, least_steps: int = 1) -> None:
    """Raise InputError for what cannot be measured or written."""
    from nets import TORCHVISION, network_named
    for name in args.network.split(','):
        if name not in TORCHVISION and not re.search(r'.-\d+(-|$)', name):
            raise InputError('--network is an architecture and a depth, like ResNet-50, or a name of torchvision\'s, '
                             'not %s' % name)
        network = network_named(name)
        if args.peer and (name in TORCHVISION or network.variant or network.arch == 'ResNetPlacebo'):
            raise InputError('--peer has the published networks, and not %s' % name)
    if min(args.batch, args.image_size, args.threads, args.repeats) < 1 or args.steps < least_steps:
        raise InputError('--batch, --image-size, --threads and --repeats must be positive, and the attack\'s steps %d '
                         'or more' % least_steps)
    for dtype in args.dtypes.split(','):
        if dtype not in ('float32', 'bfloat16'):
            raise InputError('--dtypes are float32 and bfloat16, not %s' % dtype)
    for dtype in (args.peer_dtypes or args.dtypes).split(','):
        if dtype not in args.dtypes.split(','):
            raise InputError('--peer-dtypes are some of --dtypes, not %s' % dtype)
    for path in filter(None, (args.table, args.plot)):
        check_writable(path)
    if args.plot and os.path.splitext(args.plot)[1].lower() not in PLOTS:
        raise InputError('--plot %s: the name must end in %s' % (args.plot, ', '.join(PLOTS)))
    if args.peer:
        try:
            subprocess.run([args.torch_python, '-c', 'import torch, torchattacks'], check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            raise InputError('--torch-python %s has no torch and torchattacks: it needs requirements/torch.txt'
                             % args.torch_python)


def untuned_peer(args: argparse.Namespace) -> str:
    """Name PyTorch as most people use it."""
    return 'torchattacks' if args.steps else 'PyTorch'


def start_workers(args: argparse.Namespace, job: str, script: str, ours: List[str]) -> List[Worker]:
    """Start a worker for each network in each dtype of the systems `ours` and of the peer, and for each dtype's peak.

    script: that of the workers for `ours`.
    """
    workers: List[Worker] = []

    def start(python: str, file: str, system: str, network: str, dtype: str) -> None:
        workers.append(Worker(python, file, Configuration(
            system=system, dtype=dtype, job=job, network=network, batch=args.batch, image_size=args.image_size,
            threads=args.threads, steps=args.steps)))
    networks = args.network.split(',')
    for dtype in args.dtypes.split(','):
        start(sys.executable, 'pgd.py', PEAK, networks[0], dtype)
        for network in networks:
            for system in ours:
                start(sys.executable, script, system, network, dtype)
            if args.peer and dtype in (args.peer_dtypes or args.dtypes).split(',') and not (
                    network.startswith('ResNetDenoise') and dtype != 'float32'):
                start(args.torch_python, 'torch_peer.py', 'tuned PyTorch', network, dtype)
    if args.peer:
        for network in networks:
            start(args.torch_python, 'torch_peer.py', untuned_peer(args), network, 'float32')
    return workers


def run_benchmark(args: argparse.Namespace, job: str, script: str, ours: List[str], unit: str,
                  operations: Callable[[float], float]) -> int:
    """Measure all systems in turns, print the records, and write the table and the picture; returns the exit status.

    unit: of the rates. operations: makes the arithmetic of one unit of that of a network's convolutions for one image,
    forward; 0 where it isn't counted.
    """
    workers = start_workers(args, job, script, ours)
    answers = take_turns([worker.turn for worker in workers], args.repeats)
    for worker in workers:
        worker.close()
    unit_operations = {network: operations(convolution_operations(network, args.image_size))
                       for network in args.network.split(',')}
    records = report(workers, answers, unit, unit_operations, untuned_peer(args) if args.peer else ours[-1])
    if args.table:
        with open(args.table, 'w') as f:
            f.write(markdown_table(records, unit) + '\n')
    if args.plot:
        draw(records, unit, args.plot, '%s, %dx%d, batch %d, %d threads' % (
            args.network, args.image_size, args.image_size, args.batch, args.threads))
    return 0


def main() -> int:
    c = worker_configuration()
    if c is not None:
        serve_turns(functools.partial(matmul_rate if c.system == PEAK else attack_rate, c))
        return 0
    parser = Parser(prog='pgd.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument('--steps', type=int, default=6, help='of each turn\'s attack (6)')
    parser.add_argument('--plain', action='store_true', help='measure the plain port too')
    args = parser.parse_args()
    check_flags(args)
    ours = ['this project'] + ['plain port'] * args.plain
    return run_benchmark(args, 'pgd', 'pgd.py', ours, UNIT, lambda forward: 2 * forward)


if __name__ == '__main__':
    run_command('pgd.py', main)
