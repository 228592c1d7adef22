#!/usr/bin/env python
"""How fast a step of training is, beside PyTorch, measured in turns in one run, on one process.

    python benchmarks/train.py --peer torch --torch-python TORCH_ENVIRONMENT/bin/python [--attack-iter 0]

Prints one JSON line for each system (see pgd.py). A step is an attack of --attack-iter steps, in each dtype, and an
update in float32, on constant data. Of 0 steps it is standard training, beside which PyTorch's is eager and, tuned,
compiled.
"""
import argparse
import functools
import os
import sys
from typing import Callable

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

from pgd import DTYPES, add_flags, check_flags, rate_of, run_benchmark  # noqa: E402
from turns import Configuration, serve_turns, worker_configuration  # noqa: E402

from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.errors import InputError  # noqa: E402

UNIT = 'images_per_second'


def training_rate(c: Configuration) -> Callable[[], float]:
    """Return what measures a training step, in images a second."""
    from runtime.compat import tf  # before tensorpack

    import numpy as np
    from tensorpack.tfutils.tower import TrainTowerContext

    from adv_model import CLEAN_START_PROBABILITY, AdversarialModel, Attacker, NoOpAttacker, PGDAttacker
    from kernels.mode import attack_settings, native_mode
    from nets import network_named
    network, settings = network_named(c.network), attack_settings(c.dtype)
    attacker: Attacker = NoOpAttacker()
    if c.steps:
        attacker = PGDAttacker(c.steps, 16., 1., num_classes=network.num_classes,
                               clean_start_probability=CLEAN_START_PROBABILITY, loss_scale=settings['loss_scale'])
    model = AdversarialModel(network, attacker, c.image_size, mode=native_mode(), attack_mode=settings['attack_mode'])
    shape = [c.batch, c.image_size, c.image_size, 3]
    pixels = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    inputs = [tf.placeholder_with_default(value, spec.shape) for value, spec in zip(
        [tf.constant(pixels), tf.range(c.batch)], model.inputs())]
    tf.train.create_global_step()
    with TrainTowerContext(''):
        cost = model.build_graph(*inputs)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        step = model.optimizer().minimize(cost)
    return rate_of(step, c, c.batch)


def main() -> int:
    c = worker_configuration()
    if c is not None:
        serve_turns(functools.partial(training_rate, c))
        return 0
    parser = Parser(prog='train.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.set_defaults(dtypes=None)
    parser.add_argument('--attack-iter', type=int, default=5, dest='steps',
                        help='steps of the attack (5); 0: standard training, in float32')
    args = parser.parse_args()
    if not args.steps and args.dtypes not in (None, 'float32'):
        raise InputError('--attack-iter 0 has no attack, and --dtypes are the attack\'s: leave them out')
    args.dtypes = args.dtypes or (DTYPES if args.steps else 'float32')
    check_flags(args, least_steps=0)
    # no share of the peak where a step's arithmetic is in two dtypes
    return run_benchmark(args, 'train', 'train.py', ['this project'], UNIT,
                         lambda forward: (2 * args.steps + 3) * forward if args.dtypes == 'float32' else 0.0)


if __name__ == '__main__':
    run_command('train.py', main)
