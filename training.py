"""Training: tensorpack's HorovodTrainer on every rank, fed by the machine's data server, evaluated between epochs."""
import argparse
import logging
import shlex
from typing import Dict, List, Optional

import numpy as np

import runtime.compat  # noqa: F401  before tensorpack
from tensorpack import Callback, TrainConfig, launch_train_with_config, logger
from tensorpack.callbacks import (MergeAllSummaries, MovingAverageSummary, RunUpdateOps, ScalarPrinter,
                                  ThroughputTracker)
from tensorpack.tfutils import DictRestore, SaverRestore

import checkpoint
from adv_model import CLEAN_START_PROBABILITY, AdversarialModel, Attacker, NoOpAttacker, PGDAttacker
from runtime.agreement import check_agreement
from callbacks import (Events, LossGuard, Place, Progress, Saver, ScheduledLearningRate, Statistics, StopOnSignal,
                       evaluation_table)
from runtime.distributed import HorovodWorld, World
from runtime.errors import InputError
from evaluation import AttackTower, evaluate, with_progress
from nets import Network, find_network
from outcomes import Figures, Strength, Tally
from kernels.mode import attack_settings
from runtime.hardware import warn_of_cost
from kernels.mode import native_mode
from resume import (OFFSET, STEPS_PER_EPOCH, TOTAL_BATCH, Start, directory_to_resume, forget_after, log_directory,
                    newest_complete, prepare_log_directory, saved_checkpoints, start_after, evaluated_epochs)
from schedule import LearningRate, attack_iters_after
from third_party.imagenet import Dataset, class_names, count_images, load_dataset
from trainer import AccumulatingTrainer, SessionCreator
from training_input import errors_of_input, training_input

IMAGENET_CLASSES = 1000
IMAGENET_TRAINING_IMAGES = 1281167  # the length of a --fake epoch
SUMMARY_STEPS = 100


class DistributedEvaluation(Callback):
    """Attacks the validation set after an epoch, each rank its share, in float32 and from noise."""

    _chief_only = False

    def __init__(self, network: Network, dataset: Dataset, world: World, stopper: StopOnSignal, *, image_size: int,
                 batch: int, max_epoch: int, epsilon: float, step_size: float, clean_only: bool, missing: bool):
        """`missing`: the epoch before the first one of this training was not evaluated any more."""
        self.network, self.dataset, self.world, self.stopper = network, dataset, world, stopper
        self.image_size, self.batch, self.max_epoch = image_size, batch, max_epoch
        self.epsilon, self.step_size, self.clean_only, self.missing = epsilon, step_size, clean_only, missing

    def _setup_graph(self):
        mode = native_mode()
        self.tower = AttackTower(self.network, self.image_size, mode=mode, attack_mode=mode)

    def _before_train(self):
        if self.missing:
            self._trigger_epoch()

    def _trigger_epoch(self):
        iters = [0] if self.clean_only else attack_iters_after(self.epoch_num, self.max_epoch)
        strengths = [Strength(k, self.epsilon, self.step_size) for k in iters]
        tally = Tally(self.dataset.labels, len(strengths))
        rounds = evaluate(self.tower, self.trainer.sess, self.dataset, strengths, self.world,
                          image_size=self.image_size, batch=self.batch)
        # When it is stopped, the checkpoint of this epoch is saved, and the training that goes on from it evaluates.
        if self.stopper.agreed():
            return
        for positions, _ in with_progress(rounds, tally, self.world, total=len(self.dataset),
                                          description='evaluation, epoch %d' % self.epoch_num):
            if positions.stop < len(self.dataset) and self.stopper.agreed():
                return
        for strength, figures in zip(strengths, tally.figures):
            self.report(strength, figures)

    def report(self, strength: Strength, figures: Figures) -> None:
        prefix = 'eval-clean' if strength.num_iter == 0 else 'eval-%dstep' % strength.num_iter
        put = self.trainer.monitors.put_scalar
        put(prefix + '/error-top1', figures.rate('wrong_top1'))
        put(prefix + '/error-top5', figures.rate('wrong_top5'))
        if strength.num_iter:
            put(prefix + '/attack-success-rate', figures.rate('successes'))


def training_attacker(options: argparse.Namespace, network: Network, xla: bool, loss_scale: float) -> Attacker:
    if options.attack_iter == 0:
        return NoOpAttacker()
    return PGDAttacker(options.attack_iter, options.attack_epsilon, options.attack_step_size,
                       num_classes=network.num_classes, clean_start_probability=CLEAN_START_PROBABILITY,
                       xla=xla, loss_scale=loss_scale)


def read_initial_weights(options: argparse.Namespace, network: Network) -> Dict[str, np.ndarray]:
    weights = checkpoint.read_checkpoint(options.load)
    if options.reset_head:
        return checkpoint.without_head(weights, options.load, network)
    return checkpoint.fit_checkpoint(weights, network, options.load)


def find_start(options: argparse.Namespace, directory: str, network: Network, steps_per_epoch: int) -> Start:
    """Where the chief begins: after the newest complete checkpoint with --resume, else where --starting-epoch says.

    Raises InputError where that checkpoint is of another network.
    """
    newest = newest_complete(directory) if options.resume is not None else None
    if newest:
        checkpoint.fit_checkpoint(checkpoint.read_checkpoint(newest), network, newest)
        return start_after(newest, steps_per_epoch)
    if options.resume is not None and saved_checkpoints(directory):
        raise InputError('none of the checkpoints in %s is complete: restore one, or delete them to begin anew' % directory)
    # so that checkpoints and summaries of a training that goes on continue its count of steps
    return Start(steps_per_epoch, (options.starting_epoch - 1) * steps_per_epoch)


def prepare_chief(options: argparse.Namespace, ranks: int, network: Network, steps_per_epoch: int) -> Start:
    """Create or find the log directory, and where in the schedule the training begins."""
    found = directory_to_resume(options, ranks) if options.resume is not None else None
    directory = found or log_directory(options, ranks)
    prepare_log_directory(directory, resume=options.resume is not None, overwrite=options.overwrite, keep=options.load)
    start = find_start(options, directory, network, steps_per_epoch)
    if options.resume is not None:
        forget_after(directory, start.global_step)
    if start.checkpoint:
        logger.info('resuming from %s: %d steps were made, next is step %d of %d in epoch %d' % (
            start.checkpoint, start.global_step, start.step_of_epoch + 1, steps_per_epoch, start.epoch))
    elif options.resume is not None:
        logger.info('--resume: there is no checkpoint yet in %s; the training begins anew' % directory)
    return start


def train(options: argparse.Namespace) -> None:
    """Run the training that the options describe, as one of its ranks; returns when it is complete, or a signal ended it.

    Raises InputError where the options, the data or the checkpoint are wrong, or the data server falls silent, and
    RunError where the training can't go on.
    """
    find_network(options.arch, options.depth)
    classes = IMAGENET_CLASSES if options.fake else class_names(options.data, options.classes)
    classes = ['%d' % k for k in range(IMAGENET_CLASSES)] if options.fake else classes
    network = find_network(options.arch, options.depth, len(classes))
    validation = None if options.fake or options.training_eval == 'none' else \
        load_dataset(options.data, 'val', options.classes)
    weights = read_initial_weights(options, network) if options.load else None

    world = HorovodWorld()
    stopper = StopOnSignal(world)
    check_agreement(world, vars(options), checkpoint=checkpoint.checkpoint_files(options.load) if options.load else [],
                    data=validation.listing(options.data) if validation else classes)
    # one rank lists the training images: a hundred ranks would keep a file server busy
    images = IMAGENET_TRAINING_IMAGES if options.fake else \
        world.from_chief(count_images(options.data, 'train') if world.is_chief else None)
    total_batch = options.batch * world.size * options.accumulate
    steps_per_epoch = options.steps_per_epoch or max(1, images // total_batch)
    schedule = LearningRate(options.base_lr, total_batch, steps_per_epoch, options.max_epoch)
    start, missing = Start(steps_per_epoch), False
    if world.is_chief:
        warn_of_cost(options.attack_dtype, options.xla)
        start = prepare_chief(options, world.size, network, steps_per_epoch)
        missing = bool(start.checkpoint and validation and start.epoch > 1 and not start.step_of_epoch
                       and start.epoch - 1 not in evaluated_epochs(logger.get_logger_dir()))
        logger.info('%d classes, %d training images, %d ranks, total batch %d, %d steps an epoch, peak learning '
                    'rate %g' % (len(classes), images, world.size, total_batch, steps_per_epoch, schedule.peak))
        if start.former_batch not in (None, total_batch):
            logger.info('the total batch was %d and is %d now: the learning rate follows it' % (
                start.former_batch, total_batch))
    else:
        logger.setLevel('WARNING')
    # the chief alone knows its disk
    global_step, offset, missing = world.from_chief([start.global_step, start.offset, missing])
    start = start._replace(global_step=global_step, offset=offset)
    if start.epoch <= options.max_epoch or missing:
        run(options, network, validation, world, stopper, start, schedule, weights, missing=missing)
    stopper.ignore()
    if world.is_chief:
        report_end(options, stopper)


def run(options: argparse.Namespace, network: Network, validation: Optional[Dataset], world: World,
        stopper: StopOnSignal, start: Start, schedule: LearningRate, weights: Optional[checkpoint.Weights], *,
        missing: bool) -> None:
    """All epochs from the start on. `missing`: the evaluation of the epoch before it is, too."""
    directory = logger.get_logger_dir()  # the chief's
    settings = attack_settings(options.attack_dtype, options.xla)
    model = AdversarialModel(network, training_attacker(options, network, settings['xla'], settings['loss_scale']),
                             options.image_size, mode=native_mode(), attack_mode=settings['attack_mode'])
    place = Place(start, schedule.total_batch)
    callbacks: List[Callback] = [
        place, ScheduledLearningRate(schedule, start.offset), LossGuard(network.num_classes, world.rank, directory),
        ThroughputTracker(samples_per_step=schedule.total_batch), stopper]
    if world.is_chief:
        stopper.saver = Saver(directory, options.save_every_steps, start.offset)
        callbacks += [stopper.saver, Progress(start, total_batch=schedule.total_batch, max_epoch=options.max_epoch,
                                              micro_batches=options.accumulate, attacked=options.attack_iter > 0)]
    if validation is not None:
        callbacks.append(DistributedEvaluation(
            network, validation, world, stopper, image_size=options.image_size, batch=options.batch,
            max_epoch=options.max_epoch, epsilon=options.attack_epsilon, step_size=options.attack_step_size,
            clean_only=options.training_eval == 'clean', missing=missing))
    # tensorpack's message about a failed training has an argument too many; logging would print a traceback about it
    logging.raiseExceptions = False
    data = training_input(options, network.num_classes)
    if start.checkpoint:
        restored = SaverRestore(start.checkpoint, ignore=[STEPS_PER_EPOCH, OFFSET, TOTAL_BATCH])
    else:
        restored = DictRestore(dict(weights or {}, global_step=np.int64(start.global_step)))
    trainer = AccumulatingTrainer(options.accumulate)
    with errors_of_input(data):
        launch_train_with_config(TrainConfig(
            model=model, data=data, callbacks=callbacks, steps_per_epoch=start.steps_per_epoch,
            starting_epoch=start.epoch, max_epoch=options.max_epoch, session_creator=SessionCreator(world),
            session_init=restored, monitors=[Events(start.global_step), Statistics(), ScalarPrinter()]
            if world.is_chief else [], extra_callbacks=[
                MovingAverageSummary(), MergeAllSummaries(period=SUMMARY_STEPS), RunUpdateOps()]), trainer)
    if place.completed_epochs < options.max_epoch and not stopper.stopped:
        raise RuntimeError('the training ended early, after %d of %d epochs: see the log in %s'
                           % (place.completed_epochs, options.max_epoch, directory))


def report_end(options: argparse.Namespace, stopper: StopOnSignal) -> None:
    """What the chief says last: the last evaluation, and the command that repeats it; or how to go on."""
    directory = logger.get_logger_dir()
    if stopper.stopped:
        logger.info('stopped by a signal; the same command with --resume goes on from %s' % saved_checkpoints(directory)[0])
        return
    for line in evaluation_table(directory):
        print(line)
    if options.data:
        iters = [0] if options.training_eval == 'clean' else attack_iters_after(options.max_epoch, options.max_epoch)
        command = ['python', 'main.py', '--eval', '--load', saved_checkpoints(directory)[0], '--arch', options.arch, '-d',
                   str(options.depth), '--data', options.data, '--image-size', str(options.image_size), '--batch',
                   str(options.batch), '--attack-iter', ','.join(map(str, iters)), '--attack-epsilon',
                   '%g' % options.attack_epsilon, '--attack-step-size', '%g' % options.attack_step_size]
        command += ['--classes', options.classes] if options.classes else []
        print('To repeat it: ' + ' '.join(shlex.quote(word) for word in command), flush=True)
