"""Trainings of a network of two small layers, as jobs.tiny_trainings runs them: methods_worker.py FOLDER SCENARIO...

Each SCENARIO is a dict in JSON, of `run`'s parameters. What each rank learnt is in FOLDER/NAME-RANK.npz, the
checkpoints in FOLDER/NAME/.
"""
import json
import os
import signal
import sys

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback, logger
from tensorpack.input_source import TensorInput

from adv_model import Attacker, NoOpAttacker
from evaluation.outcomes import Strength
from main import parse_options
from runtime.distributed import HorovodWorld
from runtime.errors import RunError
from training.averages import has_averages
from training.beginning import Inputs, Plan
from training.callbacks import StopOnSignal
from training.input import TimedInput
from training.log_directory import Start, start_after
from training.methods import METHODS
from training.overfitting import Remembered, remembered
from training.run import train
from training.schedule import LearningRate

CLASSES, SIZE, BATCH, HIDDEN, BATCHES = 4, 4, 3, 5, 40
NAMES = ('one/W', 'two/W')
TRACKED = 'hidden/mean/EMA'  # which nothing reads: a statistic like BatchNorm's


def first_weights():
    rng = np.random.RandomState(7)
    return {'one/W': (rng.standard_normal((SIZE * SIZE * 3, HIDDEN)) / 4).astype(np.float32),
            'two/W': rng.standard_normal((HIDDEN, CLASSES)).astype(np.float32)}


def stream(rank, labelled=False):
    """Return a rank's batches, (BATCHES, BATCH, ...); labelled: as the first weights classify them."""
    rng = np.random.RandomState(rank)
    images = rng.randint(0, 256, (BATCHES, BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    labels = rng.randint(0, CLASSES, (BATCHES, BATCH)).astype(np.int32)
    if labelled:
        one, two = [first_weights()[name] for name in NAMES]
        labels = (np.tanh((images / 127.5 - 1).reshape(BATCHES, BATCH, -1) @ one) @ two).argmax(-1).astype(np.int32)
    return images, labels


class TinyNetwork:
    """dies_in: the pass of training that kills the process, counted from 1."""
    num_classes, denoising = CLASSES, None

    def __init__(self, dies_in=None):
        self.dies_in, self.passes = dies_in, 0

    def variable_shapes(self):
        return dict({name: value.shape for name, value in first_weights().items()}, **{TRACKED: (HIDDEN,)})

    def logits(self, x, mode):
        with tf.variable_scope('', reuse=tf.AUTO_REUSE):
            one, two = [tf.get_variable(name, value.shape) for name, value in first_weights().items()]
            tracked = tf.get_variable(TRACKED, [HIDDEN], initializer=tf.zeros_initializer(), trainable=False)
        hidden = tf.tanh(tf.matmul(tf.reshape(x, [-1, SIZE * SIZE * 3]), one))
        if mode.training:
            with tf.control_dependencies([tf.py_func(self.count, [], [])] * (self.dies_in is not None)):
                update = tf.assign_sub(tracked, 0.1 * (tracked - tf.reduce_mean(hidden, axis=0)))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update.op)
        return tf.matmul(hidden, two)

    def count(self):
        self.passes += 1
        if self.passes == self.dies_in:
            os.kill(os.getpid(), signal.SIGKILL)


class Stream(TimedInput, TensorInput):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        super().__init__(self.make)

    def make(self):
        number = tf.Variable(-1, trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES], use_resource=True)
        place = tf.assign_add(number, 1) % BATCHES
        return [tf.gather(tf.constant(values), place) for values in (self.images, self.labels)]


class Overfits(Attacker):
    """Leaves images as they are, and, when the weights are so far from the first ones, turns them into their opposites,
    which an odd network confuses."""

    def __init__(self, distance):
        self.distance = distance

    def attack(self, image, label, logits, index=None):
        with tf.variable_scope('', reuse=True):
            moved = tf.norm(tf.get_variable('one/W') - first_weights()['one/W'])
        return tf.cond(moved > self.distance, lambda: -image, lambda: image), -tf.ones_like(label)


class Recorder(Callback):
    """Keeps the network's variables, averages and attacked images of each step, and the variables after each epoch."""

    _chief_only = False

    def __init__(self, path):
        self.path, self.kept = path, {}

    def _setup_graph(self):
        trainer = self.trainer
        named = {v.op.name: v for v in tf.global_variables()}
        self.values = {name: named[name] for name in NAMES + (TRACKED,)}
        self.steps = dict(self.values)
        if trainer.averages is not None:
            self.steps.update(('ema/' + v.op.name, a) for v, a in zip(trainer.averages.variables,
                                                                      trainer.averages.averages))
        if trainer.replays is not None:
            self.steps['perturbation'] = trainer.replays.perturbation
        self.fetched = tf.train.SessionRunArgs(self.get_tensors_maybe_in_tower(
            ['attack/adversarial:0', 'smoothed-loss:0']))

    def _before_run(self, _):
        return self.fetched

    def _after_run(self, _, run_values):
        for name, value in zip(('adversarial', 'loss'), run_values.results):
            self.kept.setdefault(name, []).append(value)

    def _trigger_step(self):
        for name, value in self.trainer.sess.run(self.steps).items():
            self.kept.setdefault(name, []).append(value)

    def _trigger_epoch(self):
        for name, value in self.trainer.sess.run(self.values).items():
            self.kept.setdefault('epoch/' + name, []).append(value)

    def _after_train(self):
        np.savez(self.path, **self.kept)


class Constant(LearningRate):
    """A learning rate that is as it was given, and no other."""

    def at(self, step):
        return self.base_lr


def overfitting(kind, distance):
    """Return a method whose guard sees the network overfit so far from the first weights."""
    class Forced(kind):
        def one_step(self, **_):
            return NoOpAttacker()

        def several_steps(self, **_):
            return Overfits(distance)
    return Forced


def run(folder, world, name, flags, epochs=1, steps=2, restore=None, rate=0.1, overfits_at=None, save_every=None,
        kept=100, dies_in=None, signalled=False):
    """Train by the method that the flags say. restore: a checkpoint to go on from. overfits_at: how far from the first
    weights. save_every: steps between checkpoints, of which `kept` are kept. dies_in: as of TinyNetwork.
    signalled: a signal comes before the first epoch."""
    more = ['--save-every-steps', str(save_every)] if save_every else []
    options = parse_options(['--fake', '--image-size', str(SIZE), '--batch', str(BATCH), '--max-epoch', str(epochs)]
                            + more + flags)
    kind = METHODS[options.method] if overfits_at is None else overfitting(METHODS[options.method], overfits_at)
    directory, method = os.path.join(folder, name), kind(options)
    logger.set_logger_dir(directory, action='k')
    strength = Strength(options.attack_iter[0], options.attack_epsilon[0], options.attack_step_size)
    inputs = Inputs(TinyNetwork(dies_in), [], None, first_weights(), strength, method)
    path = os.path.join(folder, restore) if restore else None
    plan = Plan(start_after(path, steps) if path else Start(steps), Constant(rate, BATCH, steps), catch_up=False,
                averages_begin=not (path and has_averages(path)),
                remembered=remembered(path, method.attack_name()) if path else Remembered())
    stopper = StopOnSignal(world)
    if signalled:
        os.kill(os.getpid(), signal.SIGTERM)
    train(options, inputs, plan, world, stopper, data=Stream(*stream(
        world.rank, labelled=overfits_at is not None)), kept=kept,
        more_callbacks=[Recorder(os.path.join(folder, '%s-%d.npz' % (name, world.rank)))])


if __name__ == '__main__':
    the_world = HorovodWorld()
    for scenario in sys.argv[2:]:
        with tf.Graph().as_default():
            try:
                run(sys.argv[1], the_world, **json.loads(scenario))
            except RunError as e:
                print('RunError: %s' % e)
