#!/usr/bin/env python
"""How a training scales to many GPUs: a model of it, and the measurement of an allreduce here.

    python benchmarks/scaling.py                                      the table of the model, as JSON lines
    python benchmarks/scaling.py --methods                            hours of each method on one machine, in Markdown
    mpirun -np N ... python benchmarks/scaling.py --allreduce BYTES   Horovod's allreduce over these ranks, a JSON line

docs/scaling.md explains both.
"""
import argparse
import json
import math
import os
import statistics
import sys
import time
from typing import Dict, List, NamedTuple, Tuple

from tabulate import tabulate

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

from runtime.command_line import Parser, run_command  # noqa: E402
from runtime.flag_values import natural, positive_float, positive_int  # noqa: E402
from training.schedule import attack_iters_after, steps_in_epoch  # noqa: E402

IMAGES, VALIDATION, EPOCHS, BATCH, GPUS_PER_NODE = 1281167, 50000, 110, 32, 8
IMAGE_BYTES = 224 * 224 * 3
FUSION_BYTES = 64 * 2 ** 20  # Horovod's buffer
UPDATE = 1.5  # image-steps that an update takes the time of: forward, and backward to weights and image
HOP_SECONDS = 20e-6  # of a ring, a message's latency


# Wong et al.'s schedule for ImageNet: small photos first, the last epochs with larger ones
PROGRESSIVE = [(6, 128), (6, 224), (3, 288)]


class Cost(NamedTuple):
    """What a training on an image takes, in an epoch: steps of the attack, and updates of the weights."""
    attack_steps: float
    updates: int

    def image_steps(self, update: float, beside: float = 0.0) -> float:
        """Return the image-steps. update: those that an update takes the time of; beside: what an attack apart from it
        takes beside its steps."""
        return self.attack_steps + self.updates * update + beside * (self.attack_steps > 0)


def pgd(steps: int) -> Cost:
    return Cost(steps, 1)


def free(replays: int) -> Cost:
    """Each backward pass of an update makes a step of the attack, too."""
    return Cost(0, replays)


def trades(steps: int) -> Cost:
    """Two losses, of clean images and of attacked ones, and the logits that its attack begins with."""
    return Cost(steps + 0.5, 2)


class Method(NamedTuple):
    """A method of training, of training/methods.py, as its authors use it for ImageNet.

    phases: epochs, and the side of their images in pixels.
    """
    title: str
    cost: Cost
    phases: List[Tuple[int, int]]


METHODS = [
    Method('pgd, 30 steps (the paper)', pgd(30), [(EPOCHS, 224)]),
    Method('pgd, 10 steps', pgd(10), [(EPOCHS, 224)]),
    Method('trades, 10 steps', trades(10), [(EPOCHS, 224)]),
    Method('free, 4 replays, 92 / 4 epochs', free(4), [(23, 224)]),
    Method('fast, 15 epochs', pgd(1), [(15, 224)]),
    Method('fast, 6 epochs at 128, 6 at 224, 3 at 288', pgd(1), PROGRESSIVE),
    Method('pgd, 3 steps, 6 epochs at 128, 6 at 224, 3 at 288', pgd(3), PROGRESSIVE),
    Method('standard training', pgd(0), [(EPOCHS, 224)]),
]


def methods_table(gpu_rate: float, update: float, beside: float) -> str:
    """Lay out the hours of each method on 1 and 8 GPUs, without evaluations, as a table in Markdown.

    gpu_rate: image-steps a second of a GPU at 224x224; an image-step takes time in proportion to the pixels.
    update, beside: as of Cost.image_steps.
    """
    rows = []
    for m in METHODS:
        passes = m.cost.image_steps(update, beside)
        pixels = sum(epochs * (size / 224) ** 2 for epochs, size in m.phases)
        hours = IMAGES * passes * pixels / gpu_rate / 3600
        rows.append([m.title, '%.1f' % passes, sum(epochs for epochs, _ in m.phases)]
                    + ['%.*f' % (h < 100, h) for h in (hours, hours / GPUS_PER_NODE)])
    return tabulate(rows, ['method', 'image-steps an image and epoch', 'epochs', 'hours, 1 GPU', 'hours, 8 GPUs'],
                    tablefmt='github', disable_numparse=True)


class Job(NamedTuple):
    """A training whose speed is predicted.

    An image-step is a forward pass and a gradient of the image.
    """
    parameters: int  # trained ones, of the network
    attack_iter: int
    gpu_rate: float  # image-steps per second of one GPU
    gpus: int
    gigabits: float  # a second, of a node's network, each way


def step_seconds(job: Job) -> Dict[str, float]:
    """Return the seconds of a step of BATCH images on each GPU: compute, allreduce, its exposed part, and in total.

    A gradient of the image takes the time of two forward passes (forward, and backward to the image), one of image and
    weights that of three. So a training step is attack_iter + 1.5 image-steps.
    """
    compute = BATCH * (job.attack_iter + UPDATE) / job.gpu_rate
    backward = BATCH * 1.0 / job.gpu_rate  # two of its three passes: gradients of the last layers are ready first
    nodes = math.ceil(job.gpus / GPUS_PER_NODE)
    size = 4.0 * job.parameters
    allreduce = 0.0
    if nodes > 1:  # a ring over all GPUs crosses each node's network once in and once out
        allreduce = 2 * (job.gpus - 1) / job.gpus * size / (job.gigabits * 1e9 / 8)
        allreduce += 2 * (job.gpus - 1) * HOP_SECONDS * math.ceil(size / FUSION_BYTES)
    # the last fused buffer can only be sent when the backward pass has ended
    exposed = max(allreduce - backward, allreduce * min(1.0, FUSION_BYTES / size)) if allreduce else 0.0
    return dict(compute=compute, allreduce=allreduce, exposed=exposed, total=compute + exposed)


def evaluation_steps(epochs: int = EPOCHS) -> int:
    """Count the image-steps on each validation image in a whole training.

    Attacks of one step size share their steps: those of 16 steps and more have size 1; the one of 10 has 1.6. A
    classification counts as half an image-step, rounded up to one.
    """
    steps = 0
    for epoch in range(1, epochs + 1):
        iters = attack_iters_after(epoch, epochs)
        steps += 10 + max([k for k in iters if k >= 16], default=0) + len(iters)
    return steps


def predict(job: Job) -> Dict[str, float]:
    """Return a line of the model's table: the job, and how fast and how long it is."""
    seconds = step_seconds(job)
    steps = EPOCHS * steps_in_epoch(IMAGES, BATCH * job.gpus)
    evaluation = VALIDATION * evaluation_steps() / (job.gpu_rate * job.gpus)
    node_images = GPUS_PER_NODE * BATCH / seconds['total']
    return dict(job._asdict(), step_seconds=round(seconds['total'], 3),
                allreduce_seconds=round(seconds['allreduce'], 4),
                exposed_share=round(seconds['exposed'] / seconds['total'], 4), allreduce_bytes=4 * job.parameters,
                training_hours=round(steps * seconds['total'] / 3600, 1), evaluation_hours=round(evaluation / 3600, 2),
                images_per_second=round(job.gpus * BATCH / seconds['total'], 1),
                node_images_per_second=round(node_images, 1),
                node_megabytes_per_second=round(node_images * IMAGE_BYTES / 1e6, 2))


def measure_allreduce(size: int, repeats: int) -> None:
    """Sum `size` bytes over the ranks that mpirun started; the chief prints a JSON line."""
    from runtime.compat import tf

    from runtime.distributed import HorovodWorld
    world = HorovodWorld()
    with tf.Graph().as_default() as graph, tf.device('/cpu:0'):
        gradient = tf.Variable(tf.ones([math.ceil(size / 4)]))
        total = tf.reduce_sum(world.hvd.allreduce(gradient, op=world.hvd.Sum, name='gradient')[:1])
    seconds: List[float] = []
    with tf.Session(graph=graph, config=world.session_config()) as session:
        session.run(gradient.initializer)
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            assert session.run(total) == world.size
            seconds.append(time.perf_counter() - begin)
    counted = seconds[1:]
    middle = statistics.median(counted)
    if world.is_chief:
        print(json.dumps(dict(ranks=world.size, bytes=size, seconds=round(middle, 4), lowest=round(min(counted), 4),
                              highest=round(max(counted), 4), repeats=repeats,
                              gigabytes_per_second=round(size / middle / 1e9, 3))), flush=True)


def main() -> int:
    parser = Parser(prog='scaling.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--allreduce', type=positive_int, metavar='BYTES',
                        help='measure it over the ranks that mpirun started')
    parser.add_argument('--methods', action='store_true', help='hours of each method of training on 1 and 8 GPUs')
    parser.add_argument('--update', type=positive_float, default=UPDATE,
                        help='of --methods: image-steps that an update takes the time of (%s)' % UPDATE)
    parser.add_argument('--beside', type=positive_float, default=0.0,
                        help='of --methods: image-steps that an attack takes beside its steps (none)')
    parser.add_argument('--repeats', type=positive_int, default=7)
    parser.add_argument('--parameters', type=positive_int, default=60192808, help='of the network (ResNet-152)')
    parser.add_argument('--attack-iter', type=natural, default=30)
    parser.add_argument('--gpu-rate', type=positive_float, default=185.2,
                        help='image-steps/s of a GPU (a V100 with ResNet-152, from the published 52 h)')
    options = parser.parse_args()
    if options.allreduce:
        measure_allreduce(options.allreduce, options.repeats)
        return 0
    if options.methods:
        print(methods_table(options.gpu_rate, options.update, options.beside))
        return 0
    for gpus in (8, 16, 32, 64, 128, 256, 512, 1024):
        for gigabits in (10, 25, 100):
            print(json.dumps(predict(Job(options.parameters, options.attack_iter, options.gpu_rate, gpus, gigabits))))
    return 0


if __name__ == '__main__':
    run_command('scaling.py', main)
