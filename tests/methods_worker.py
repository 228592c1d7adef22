"""Trainings of a network of two small layers, for test_methods.py: methods_worker.py FOLDER SCENARIO...

Each SCENARIO is a dict in JSON, of `train`'s parameters. What each rank learnt is in FOLDER/NAME-RANK.npz, the
checkpoints in FOLDER/NAME/.
"""
import json
import os
import sys
from types import SimpleNamespace

from runtime.compat import tf  # before tensorpack

import numpy as np
from tensorpack import Callback, TrainConfig, launch_train_with_config, logger
from tensorpack.callbacks import RunUpdateOps
from tensorpack.input_source import TensorInput
from tensorpack.tfutils import DictRestore, SaverRestore

from adv_model import Attacker, NoOpAttacker
from main import parse_options
from runtime.distributed import HorovodWorld
from runtime.errors import RunError
from training.averages import Averages
from training.callbacks import Saver
from training.input import TimedInput
from training.methods import method_of
from training.overfitting import Guard, attack_step_factor
from training.records import Statistics
from training.replays import HeldInput, Replays
from training.run import training_model
from training.trainer import AccumulatingTrainer, SessionCreator

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
    num_classes = CLASSES

    def logits(self, x, mode):
        with tf.variable_scope('', reuse=tf.AUTO_REUSE):
            one, two = [tf.get_variable(name, value.shape) for name, value in first_weights().items()]
            tracked = tf.get_variable(TRACKED, [HIDDEN], initializer=tf.zeros_initializer(), trainable=False)
        hidden = tf.tanh(tf.matmul(tf.reshape(x, [-1, SIZE * SIZE * 3]), one))
        if mode.training:
            update = tf.assign_sub(tracked, 0.1 * (tracked - tf.reduce_mean(hidden, axis=0)))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update.op)
        return tf.matmul(hidden, two)


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

    def __init__(self, path, averages, replays):
        self.path, self.averages, self.replays, self.kept = path, averages, replays, {}

    def _setup_graph(self):
        named = {v.op.name: v for v in tf.global_variables()}
        self.values = {name: named[name] for name in NAMES + (TRACKED,)}
        self.steps = dict(self.values)
        if self.averages is not None:
            self.steps.update(('ema/' + v.op.name, a) for v, a in zip(self.averages.variables, self.averages.averages))
        if self.replays is not None:
            self.steps['perturbation'] = self.replays.perturbation
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


def train(folder, world, name, flags, epochs=1, steps=2, restore=None, rate=0.1, overfits_at=None, save_every=None,
          kept=100):
    """Train by the method that the flags say. overfits_at: how far from the first weights. save_every: steps between
    checkpoints, of which `kept` are kept."""
    options = parse_options(['--fake', '--image-size', str(SIZE), '--batch', str(BATCH)] + flags)
    method, network = method_of(options), TinyNetwork()
    directory = os.path.join(folder, name)
    logger.set_logger_dir(directory, action='k')
    data = held = Stream(*stream(world.rank, labelled=overfits_at is not None))
    factor = attack_step_factor() if options.on_overfitting == 'restore' else 1.0
    replays = averages = None
    if options.method == 'free':
        held = HeldInput(data, options.accumulate, BATCH, SIZE)
        replays = Replays(method.replays, held, epsilon=method.strength.epsilon,
                          step_size=method.strength.step_size * factor)
    callbacks = []
    if options.ema:
        averages = Averages(options.ema, NAMES + (TRACKED,), begin=restore is None)
        callbacks.append(averages)
    saver = Saver(directory, save_every, 0, kept=kept) if world.is_chief else None
    monitors = [Statistics()] if world.is_chief else []
    if overfits_at is not None:
        callbacks.append(Guard(network, SIZE, BATCH, world, one_step=NoOpAttacker,
                               several=lambda: Overfits(overfits_at), action=options.on_overfitting,
                               directory=directory, step_factor=factor, saver=saver, monitors=monitors))
    callbacks += [saver] * world.is_chief
    callbacks.append(Recorder(os.path.join(folder, '%s-%d.npz' % (name, world.rank)), averages, replays))
    model = training_model(options, SimpleNamespace(network=network, method=method), replays, factor)
    init = SaverRestore(os.path.join(folder, restore)) if restore else DictRestore(dict(
        first_weights(), learning_rate=np.float32(rate)))
    launch_train_with_config(TrainConfig(
        model=model, data=held, callbacks=callbacks, steps_per_epoch=steps, max_epoch=epochs, monitors=monitors,
        session_creator=SessionCreator(world), session_init=init, extra_callbacks=[RunUpdateOps()]),
        AccumulatingTrainer(options.accumulate, replays=replays, averages=averages))


if __name__ == '__main__':
    the_world = HorovodWorld()
    for scenario in sys.argv[2:]:
        with tf.Graph().as_default():
            try:
                train(sys.argv[1], the_world, **json.loads(scenario))
            except RunError as e:
                print('RunError: %s' % e)
