#!/usr/bin/env python
"""Grouped 3x3 convolutions of ResNeXt (32 groups) on a CPU: the op of third_party/cpu_conv beside a loop over groups.

    python benchmarks/grouped.py [--threads 1]

Prints a JSON line for each of ResNeXt-101's layers and direction (forward, to the input, to the weights): milliseconds,
and the loop's time over the op's. The last lines are sums over the network. All are measured in turns in one process.
The loop has its weights cut into groups beforehand. The op prepares its weights in each run, as a step of training does; how
long that takes, where an attack does it once, is in `preparation_ms`.
"""
import argparse
import json
import os
import sys
import time
from typing import Any, Dict, List

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(1, os.path.join(sys.path[0], 'benchmarks'))

from runtime.errors import InputError  # noqa: E402
from runtime.command_line import Parser, run_command  # noqa: E402
from turns import median  # noqa: E402

GROUPS = 32
# height and width, channels, stride, and how many ResNeXt-101 has
LAYERS = [(56, 256, 1, 3), (56, 512, 2, 1), (28, 512, 1, 3), (28, 1024, 2, 1), (14, 1024, 1, 22), (14, 2048, 2, 1),
          (7, 2048, 1, 2)]
DIRECTIONS = ['forward', 'input', 'weights']


def build(size: int, channels: int, stride: int, batch: int) -> Dict[str, List[Any]]:
    """{system: the operations of DIRECTIONS}, on variables. Of 'preparation' those there are."""
    from runtime.compat import tf
    from cpu_conv import conv2d, frozen_weights, isa

    def variable(*shape: int) -> tf.Variable:
        return tf.Variable(tf.random_normal(shape))
    x, w = variable(batch, size, size, channels), variable(3, 3, channels // GROUPS, channels)
    parts = [variable(3, 3, channels // GROUPS, channels // GROUPS) for _ in range(GROUPS)]
    upstream = variable(batch, -(-size // stride), -(-size // stride), channels)
    y = tf.concat([tf.nn.conv2d(a, b, strides=[1, stride, stride, 1], padding='SAME')
                   for a, b in zip(tf.split(x, GROUPS, axis=3), parts)], axis=3)
    loop = [y.op, tf.gradients(y, x, upstream)[0].op, tf.concat(tf.gradients(y, parts, upstream), axis=3).op]
    y = conv2d(x, w, stride)
    preparation = [frozen_weights(w, tf.float32, groups=GROUPS, turned=turned).op for turned in (False, True)]
    return {'loop': loop, 'op': [y.op] + [g.op for g in tf.gradients(y, [x, w], upstream)],
            'preparation': preparation if stride == 1 and isa() != 'any_cpu' else []}


def measure(layer: Any, batch: int, threads: int, repeats: int) -> Dict[str, List[List[float]]]:
    """{system: the seconds of each of DIRECTIONS}."""
    from runtime.hardware import session_config
    from runtime.compat import tf
    size, channels, stride, _ = layer
    config = session_config()
    config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = threads
    with tf.Graph().as_default():
        operations = build(size, channels, stride, batch)
        seconds: Dict[str, List[List[float]]] = {system: [[] for _ in DIRECTIONS] for system in operations}
        with tf.Session(config=config) as session:
            session.run(tf.global_variables_initializer())
            for turn in range(repeats + 1):
                for system, of_system in operations.items():
                    for times, operation in zip(seconds[system], of_system):
                        begin = time.perf_counter()
                        session.run(operation)
                        if turn:  # the first one is a warm-up
                            times.append(time.perf_counter() - begin)
    return seconds


def main() -> int:
    parser = Parser(prog='grouped.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=8, help='images (8)')
    parser.add_argument('--threads', type=int, default=1, help='of TensorFlow (1)')
    parser.add_argument('--repeats', type=int, default=7, help='turns (7)')
    args = parser.parse_args()
    if min(args.batch, args.threads, args.repeats) < 1:
        raise InputError('--batch, --threads and --repeats must be positive')
    sums = {direction: {'loop': 0., 'op': 0., 'preparation': 0.} for direction in DIRECTIONS}
    for layer in LAYERS:
        size, channels, stride, count = layer
        seconds = measure(layer, args.batch, args.threads, args.repeats)
        operations = 2. * args.batch * (size // stride) ** 2 * 9 * channels * channels / GROUPS
        for i, direction in enumerate(DIRECTIONS):
            record = dict(size=size, channels=channels, stride=stride, direction=direction, batch=args.batch,
                          threads=args.threads, repeats=args.repeats)
            for system, of_system in seconds.items():
                times = of_system[i]
                if not times:
                    continue
                sums[direction][system] += count * median(times)
                for name, value in ('', median(times)), ('_lowest', min(times)), ('_highest', max(times)):
                    record[system + name + '_ms'] = round(1e3 * value, 2)
            record['ratio'] = round(median([a / b for a, b in zip(seconds['loop'][i], seconds['op'][i])]), 2)
            record['op_operations_per_second'] = float('%.4g' % (operations / median(seconds['op'][i])))
            print(json.dumps(record), flush=True)
    for direction, total in sums.items():
        print(json.dumps(dict(network='ResNeXt-101', direction=direction, batch=args.batch, threads=args.threads,
                              **{system + '_ms': round(1e3 * value, 1) for system, value in total.items() if value},
                              ratio=round(total['loop'] / total['op'], 2))), flush=True)
    return 0


if __name__ == '__main__':
    run_command('grouped.py', main)
