"""Training: tensorpack's HorovodTrainer on every rank, fed by the machine's data server, evaluated between epochs."""
import argparse
import logging
import os
import shutil
from typing import Dict, Optional

import numpy as np

from compat import tf  # before tensorpack
from tensorpack import Callback, HyperParamSetter, ModelSaver, TrainConfig, launch_train_with_config, logger
from tensorpack.callbacks import EstimatedTimeLeft, ThroughputTracker
from tensorpack.tfutils import DictRestore
from tensorpack.tfutils.sesscreate import NewSessionCreator
from tensorpack.train import HorovodTrainer

import checkpoint
from adv_model import CLEAN_START_PROBABILITY, AdversarialModel, Attacker, NoOpAttacker, PGDAttacker, attack_settings, \
    warn_of_cost
from distributed import HorovodWorld, World
from errors import InputError
from evaluation import AttackTower, Figures, Strength, evaluate
from nets import Network, find_network
from resnet_model import native_mode
from schedule import LearningRate, attack_iters_after
from third_party.batches import shard, validation_batches
from third_party.imagenet import Dataset, class_names, count_images, load_dataset
from training_input import errors_of_input, training_input

IMAGENET_CLASSES = 1000
IMAGENET_TRAINING_IMAGES = 1281167  # the length of a --fake epoch
CHECKPOINTS_KEPT = 100


class ScheduledLearningRate(HyperParamSetter):
    """Sets the rate of every step. It depends on the epoch and step alone, so it is right in a continued training."""

    def __init__(self, schedule: LearningRate):
        super().__init__('learning_rate')
        self.schedule = schedule

    def _get_value_to_set(self):
        return self.schedule.at(max(0, self.epoch_num - 1) * self.schedule.steps_per_epoch + self.local_step + 1)

    def _before_epoch(self):
        self.param.set_value(self.schedule.at((self.epoch_num - 1) * self.schedule.steps_per_epoch))

    def _trigger_step(self):
        self._set_param()

    def _trigger(self):
        pass  # the next epoch begins with its own


class DistributedEvaluation(Callback):
    """Attacks the validation set after an epoch, each rank its share, in float32 and from noise."""

    _chief_only = False

    def __init__(self, network: Network, dataset: Dataset, world: World, *, image_size: int, batch: int,
                 max_epoch: int, epsilon: float, step_size: float, clean_only: bool):
        self.network, self.dataset, self.world = network, dataset, world
        self.image_size, self.batch, self.max_epoch = image_size, batch, max_epoch
        self.epsilon, self.step_size, self.clean_only = epsilon, step_size, clean_only

    def _setup_graph(self):
        mode = native_mode()
        self.tower = AttackTower(self.network, self.image_size, mode=mode, attack_mode=mode)

    def _trigger_epoch(self):
        iters = [0] if self.clean_only else attack_iters_after(self.epoch_num, self.max_epoch)
        strengths = [Strength(k, self.epsilon, self.step_size) for k in iters]
        positions = shard(len(self.dataset), self.world.rank, self.world.size)
        batches = validation_batches(self.dataset, positions, batch=self.batch, image_size=self.image_size)
        figures = evaluate(self.tower, self.trainer.sess, batches, strengths, self.world, total=len(positions),
                           description='evaluation, epoch %d' % self.epoch_num)
        for strength, of_strength in figures.items():
            self.report(strength, of_strength)

    def report(self, strength: Strength, figures: Figures) -> None:
        prefix = 'eval-clean' if strength.num_iter == 0 else 'eval-%dstep' % strength.num_iter
        put = self.trainer.monitors.put_scalar
        put(prefix + '/error-top1', figures.rate('wrong_top1'))
        put(prefix + '/error-top5', figures.rate('wrong_top5'))
        if strength.num_iter:
            put(prefix + '/attack-success-rate', figures.rate('successes'))


class CompletedEpochs(Callback):
    """Remembers the last epoch that was completed: tensorpack also returns from a training that ended early."""

    _chief_only = False
    epoch = 0

    def _trigger_epoch(self):
        self.epoch = self.epoch_num


class SessionCreator(NewSessionCreator):
    """tensorpack's, with the threads and the GPU of this rank in place of those that HorovodTrainer has just set."""

    def __init__(self, world: World):
        super().__init__()
        self.world = world

    def create_session(self):
        threads = self.world.session_config()
        self.config.intra_op_parallelism_threads = threads.intra_op_parallelism_threads
        self.config.inter_op_parallelism_threads = threads.inter_op_parallelism_threads
        self.config.gpu_options.visible_device_list = threads.gpu_options.visible_device_list
        return super().create_session()


def log_directory(options: argparse.Namespace, ranks: int) -> str:
    name = 'PGD-{o.arch}{o.depth}-Batch{o.batch}-{ranks}GPUs-iter{o.attack_iter}-epsilon{o.attack_epsilon}' \
           '-step{o.attack_step_size}'.format(o=options, ranks=ranks)
    return os.path.join('train_log', name + ('-' + options.logdir if options.logdir else ''))


def holds_training(path: str) -> bool:
    """Whether anything was learnt there; one that ended before its first epoch did leaves a log alone."""
    names = os.listdir(path) if os.path.isdir(path) else []
    return any(name == 'stats.json' or name == 'checkpoint' or name.startswith('model-') for name in names)


def prepare_log_directory(path: str, *, overwrite: bool, keep: Optional[str]) -> None:
    """Create it. Raises InputError rather than mixing two trainings or deleting one, or the checkpoint `keep`."""
    try:
        if holds_training(path):
            if not overwrite:
                raise InputError('%s holds an earlier training: choose another name with --logdir, or delete it with '
                                 '--overwrite' % path)
            if keep and os.path.realpath(keep).startswith(os.path.realpath(path) + os.sep):
                raise InputError('--overwrite would delete %s, which holds the checkpoint of --load: choose another '
                                 'name with --logdir' % path)
            shutil.rmtree(path)
        logger.set_logger_dir(path, action='k')
    except OSError as e:
        raise InputError('cannot write the log directory %s: %s' % (path, e.strerror))


def training_attacker(options: argparse.Namespace, network: Network, xla: bool, loss_scale: float) -> Attacker:
    if options.attack_iter == 0:
        return NoOpAttacker()
    return PGDAttacker(options.attack_iter, options.attack_epsilon, options.attack_step_size,
                       num_classes=network.num_classes, clean_start_probability=CLEAN_START_PROBABILITY,
                       xla=xla, loss_scale=loss_scale)


def read_initial_weights(options: argparse.Namespace, network: Network) -> Dict[str, np.ndarray]:
    return checkpoint.fit_checkpoint(checkpoint.read_checkpoint(options.load), network, options.load)


def train(options: argparse.Namespace) -> None:
    """Run the training that the options describe, as one of its ranks.

    Raises InputError where the options, the data or the checkpoint are wrong, or the data server falls silent.
    """
    find_network(options.arch, options.depth)
    classes = IMAGENET_CLASSES if options.fake else len(class_names(options.data, options.classes))
    network = find_network(options.arch, options.depth, classes)
    validation = None if options.fake or options.training_eval == 'none' else \
        load_dataset(options.data, 'val', options.classes)
    weights = read_initial_weights(options, network) if options.load else None

    world = HorovodWorld()
    # one rank lists the training images: a hundred ranks would keep a file server busy
    images = IMAGENET_TRAINING_IMAGES if options.fake else \
        int(world.sum([count_images(options.data, 'train') if world.is_chief else 0])[0])
    total_batch = options.batch * world.size
    steps_per_epoch = options.steps_per_epoch or max(1, images // total_batch)
    schedule = LearningRate(options.base_lr, total_batch, steps_per_epoch, options.max_epoch)
    directory = log_directory(options, world.size)
    if world.is_chief:
        warn_of_cost(options.attack_dtype, options.xla)
        prepare_log_directory(directory, overwrite=options.overwrite, keep=options.load)
        logger.info('%d classes, %d training images, %d ranks, total batch %d, %d steps an epoch, peak learning '
                    'rate %g' % (classes, images, world.size, total_batch, steps_per_epoch, schedule.peak))
    else:
        logger.setLevel('WARNING')

    settings = attack_settings(options.attack_dtype, options.xla)
    model = AdversarialModel(network, training_attacker(options, network, settings['xla'], settings['loss_scale']),
                             options.image_size, mode=native_mode(), attack_mode=settings['attack_mode'])
    completed = CompletedEpochs()
    callbacks = [ScheduledLearningRate(schedule), ThroughputTracker(samples_per_step=total_batch), completed]
    if world.is_chief:
        callbacks += [ModelSaver(max_to_keep=CHECKPOINTS_KEPT, checkpoint_dir=directory), EstimatedTimeLeft()]
    if validation is not None:
        callbacks.append(DistributedEvaluation(
            network, validation, world, image_size=options.image_size, batch=options.batch,
            max_epoch=options.max_epoch, epsilon=options.attack_epsilon, step_size=options.attack_step_size,
            clean_only=options.training_eval == 'clean'))
    # tensorpack's message about a failed training has an argument too many; logging would print a traceback about it
    logging.raiseExceptions = False
    data = training_input(options, classes)
    # so that checkpoints and summaries of a training that goes on continue its count of steps
    initial = dict(weights or {}, global_step=np.int64((options.starting_epoch - 1) * steps_per_epoch))
    trainer = HorovodTrainer()
    with errors_of_input(data):
        launch_train_with_config(TrainConfig(
            model=model, data=data, callbacks=callbacks, steps_per_epoch=steps_per_epoch,
            starting_epoch=options.starting_epoch, max_epoch=options.max_epoch, session_creator=SessionCreator(world),
            session_init=DictRestore(initial)), trainer)
    if completed.epoch < options.max_epoch:
        raise RuntimeError('the training ended early, after %d of %d epochs: see the log in %s'
                           % (completed.epoch, options.max_epoch, directory))
