#!/usr/bin/env python
"""Serve batches of augmented training images to the training processes of this machine.

    ./third_party/serve-data.py --data DIR --batch 32

Run one on each machine, with the same --batch (images per GPU) and --image-size as the training. It serves
until SIGTERM (exit status 0) or Ctrl-C (130).
"""
import argparse
import functools
import os
import sys
from typing import List

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# The first process forks, so nothing in it may start threads, as numpy's linear algebra does when it is
# imported.
for library in ('OPENBLAS', 'OMP', 'MKL'):
    os.environ[library + '_NUM_THREADS'] = '1'

from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.cores import usable_cores  # noqa: E402
from runtime.errors import InputError  # noqa: E402
from runtime.limits import raise_named  # noqa: E402

try:
    from zmq_ops.wire import MAX_MESSAGE

    from third_party import imagenet, server
    from third_party.images import MIN_CROP_AREA
    from third_party.transport import check_endpoint, default_endpoint
except (ImportError, OSError, MemoryError) as e:  # OpenCV and NumPy want 300 MB of address space
    run_command('serve-data.py', functools.partial(raise_named, e))

FAKE_CLASSES = 1000


def parse(arguments: List[str]) -> argparse.Namespace:
    """Read the command line. Raises InputError for what cannot be served."""
    parser = Parser(prog='serve-data.py', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='DIR', help='folder with train/CLASS/*')
    parser.add_argument('--batch', type=int, default=32, help='images a batch, as for main.py (default: 32)')
    parser.add_argument('--image-size', type=int, default=224,
                        help='height and width in pixels (default: 224)')
    parser.add_argument('--classes', metavar='FILE', help='the class names in label order, one a line')
    parser.add_argument('--endpoint', help='where to serve: ipc://PATH or tcp://HOST:PORT '
                        '(default: a socket in a directory that only you can enter)')
    parser.add_argument('--workers', type=int, default=usable_cores(),
                        help='processes that decode and augment (default: as many as cores, %(default)s)')
    parser.add_argument('--seed', type=int, help='of the order and the augmentation, for the same data '
                        'again; give each machine another one (default: a random one)')
    parser.add_argument('--min-crop-area', type=float, default=MIN_CROP_AREA, metavar='FRACTION',
                        help='of an image that a training crop keeps at least; the paper\'s %(default)s leaves '
                        'little of very small images')
    parser.add_argument('--fake', action='store_true', help='serve one constant batch again and again')
    parser.add_argument('--benchmark', action='store_true', help='print the images per second and end')
    parser.add_argument('--benchmark-seconds', type=float, default=10., help='how long to measure (10)')
    parser.add_argument('--no-zmq-ops', action='store_true',
                        help='changes nothing: what is sent fits the native op and --no-zmq-ops of main.py alike')
    args = parser.parse_args(arguments)
    for flag in ('batch', 'image_size', 'workers'):
        if getattr(args, flag) < 1:
            name, value = flag.replace('_', '-'), getattr(args, flag)
            raise InputError('--%s must be at least 1, not %d' % (name, value))
    if server.message_size(args.batch, args.image_size) > MAX_MESSAGE - 1024:
        raise InputError('a batch of %d images of size %d is larger than 2 GiB: lower --batch or '
                         '--image-size' % (args.batch, args.image_size))
    if not 0 < args.benchmark_seconds < float('inf'):
        raise InputError('--benchmark-seconds must be a positive number')
    if not 0 < args.min_crop_area <= 1:
        raise InputError('--min-crop-area must be above 0 and at most 1')
    if args.seed is None:
        args.seed = int.from_bytes(os.urandom(4), 'little')
    if not 0 <= args.seed < 2 ** 32:
        raise InputError('--seed must be from 0 to 2**32 - 1')
    if args.benchmark and args.fake:
        raise InputError('--benchmark measures real images: give it without --fake')
    if not args.data and not args.fake:
        raise InputError('--data DIR is required, the folder with train/CLASS/*')
    if args.endpoint:
        check_endpoint(args.endpoint)
    return args


def number_of_classes(args: argparse.Namespace) -> int:
    """Count the classes that the labels of --fake are of, which needs no --data."""
    if args.data:
        return len(imagenet.class_names(args.data, args.classes))
    return len(imagenet.read_classes(args.classes)) if args.classes else FAKE_CLASSES


def main() -> int:
    try:
        return run(parse(sys.argv[1:]))
    except (OSError, MemoryError) as e:
        raise_named(e)


def run(args: argparse.Namespace) -> int:
    """Serve, or measure, what the flags say; return the exit status."""
    settings = server.Settings(args.endpoint or default_endpoint(args.batch, args.image_size), args.batch,
                               args.image_size, args.workers, args.seed, args.min_crop_area)
    if args.fake:
        return server.serve_constant(number_of_classes(args), settings)
    dataset = imagenet.load_dataset(args.data, 'train', args.classes)
    if args.benchmark:
        return server.benchmark(dataset, settings, args.benchmark_seconds)
    return server.serve(dataset, settings)


if __name__ == '__main__':
    run_command('serve-data.py', main)
