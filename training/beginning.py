"""What a training is of, and where in its schedule it begins: anew, from a checkpoint, or where it left off."""
import argparse
import logging
from typing import List, NamedTuple, Optional

import runtime.compat  # noqa: F401  before tensorpack

from tensorpack import logger

import checkpoint
import fitting
from evaluation.outcomes import Strength
from nets import Network, network_of
from runtime.distributed import World
from runtime.errors import InputError
from third_party.imagenet import Dataset, count_images
from training.averages import has_averages
from training.log_directory import (
    Start,
    log_directory_of,
    log_name_of,
    newest_complete,
    prepare_log_directory,
    saved_checkpoints,
    start_after,
)
from training.methods import Method, method_of
from training.overfitting import Remembered, remembered
from training.records import evaluated_epochs, forget_after
from training.schedule import LearningRate, steps_in_epoch

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
IMAGENET_TRAINING_IMAGES = 1281167  # the length of a --fake epoch


class Inputs(NamedTuple):
    """What the flags of a training name."""
    network: Network
    classes: List[str]
    validation: Optional[Dataset]
    weights: Optional[checkpoint.Weights]
    attack: Strength  # of evaluations between epochs; a method may have steps of its own
    method: Method


class Plan(NamedTuple):
    """Where a training begins, and its learning rate: the same on every rank."""
    start: Start
    schedule: LearningRate
    catch_up: bool  # with the evaluation of the epoch before
    averages_begin: bool  # with the weights that there are
    remembered: Remembered  # of overfitting


def find_inputs(options: argparse.Namespace, classes: List[str], validation: Optional[Dataset]) -> Inputs:
    """Find what the flags name. Raises InputError where something is missing or does not fit."""
    network = network_of(options)._replace(image_size=options.image_size)
    classes = [str(k) for k in range(IMAGENET_CLASSES)] if options.fake else classes
    network = network._replace(num_classes=len(classes))
    weights = read_initial_weights(options, network) if options.load else None
    attack = Strength(options.attack_iter[0], options.attack_epsilon[0], options.attack_step_size)
    return Inputs(network, classes, validation, weights, attack, method_of(options))


def read_initial_weights(options: argparse.Namespace, network: Network) -> checkpoint.Weights:
    """Read the checkpoint of --load: of this network, or with --reset-head of one with other classes."""
    weights = checkpoint.read_checkpoint(options.load, options.weights)
    if options.reset_head:
        weights = fitting.without_head(weights, options.load, network)
    else:
        weights = fitting.fit_checkpoint(weights, network, options.load)
    for mistake in fitting.mistaken_denoising(network, options.load):
        log.warning('%s', mistake)
    return weights


def make_plan(options: argparse.Namespace, inputs: Inputs, world: World) -> Plan:
    """Create or find the log directory, as the chief, and tell all ranks where in the schedule the training begins."""
    # one rank lists the training images: a hundred ranks would keep a file server busy
    images = IMAGENET_TRAINING_IMAGES if options.fake else \
        world.from_chief(world.patiently(lambda: count_images(options.data, 'train') if world.is_chief else None))
    total_batch = options.batch * world.size * options.accumulate
    steps_per_epoch = options.steps_per_epoch or steps_in_epoch(images, total_batch)
    schedule = LearningRate(options.base_lr, total_batch, steps_per_epoch, options.max_epoch, options.schedule)
    start, catch_up, averages_begin, known = Start(steps_per_epoch), False, True, Remembered()
    # reading its checkpoints may take the chief minutes
    prepared = world.patiently(lambda: prepare_chief(options, inputs, world.size, steps_per_epoch)
                               if world.is_chief else None)
    if prepared:
        start = prepared
        if start.checkpoint:
            averages_begin = not has_averages(start.checkpoint)
            if options.ema is None and not averages_begin:
                logger.info('without --ema, the averages that %s has end here' % start.checkpoint)
            known = remembered(start.checkpoint, inputs.method.attack_name())
            if known.text:
                logger.info(known.text)
        catch_up = bool(start.checkpoint and inputs.validation and start.epoch > 1 and not start.step_of_epoch
                        and start.epoch - 1 not in evaluated_epochs(logger.get_logger_dir()))
        logger.info('%d classes, %d training images, %d ranks, total batch %d, %d steps an epoch, peak learning '
                    'rate %g' % (len(inputs.classes), images, world.size, total_batch, steps_per_epoch, schedule.peak))
        if inputs.validation:
            logger.info('evaluations prepare their images as --preprocess %s' % options.preprocess)
        if start.former_batch not in (None, total_batch):
            logger.info('the total batch was %d and is %d now: the learning rate follows it' % (
                start.former_batch, total_batch))
    else:
        logger.setLevel('WARNING')
    # the chief alone knows its disk
    global_step, offset, catch_up, averages_begin, known = world.from_chief(
        [start.global_step, start.offset, catch_up, averages_begin, known])
    return Plan(start._replace(global_step=global_step, offset=offset), schedule, catch_up, averages_begin,
                Remembered(*known))


def prepare_chief(options: argparse.Namespace, inputs: Inputs, ranks: int, steps_per_epoch: int) -> Start:
    """Create or find the log directory; return where in the schedule the training begins."""
    resumes = options.resume is not None
    directory = log_directory_of(options, ranks)
    prepare_log_directory(directory, resume=resumes, overwrite=options.overwrite, keep=options.load)
    start = find_start(options, directory, inputs.network, steps_per_epoch)
    if resumes:
        forget_after(directory, start.global_step)
    if start.checkpoint:
        logger.info('resuming from %s: %d steps were made, next is step %d of %d in epoch %d' % (
            start.checkpoint, start.global_step, start.step_of_epoch + 1, steps_per_epoch, start.epoch))
        name = log_name_of(options, ranks)
        if not name.fits(directory):  # --resume DIR
            logger.info('this directory keeps its name; that of these flags would be %s' % name.path())
    elif resumes:
        logger.info('--resume: there is no checkpoint yet in %s; the training begins anew' % directory)
    return start


def find_start(options: argparse.Namespace, directory: str, network: Network, steps_per_epoch: int) -> Start:
    """Return where the chief begins: after the newest complete checkpoint with --resume, else where --starting-epoch
    says.

    Raises InputError where that checkpoint is of another network.
    """
    newest = newest_complete(directory) if options.resume is not None else None
    if newest:
        fitting.fit_checkpoint(checkpoint.read_checkpoint(newest), network, newest)
        for mistake in fitting.mistaken_denoising(network, newest):
            log.warning('%s', mistake)
        return start_after(newest, steps_per_epoch)
    if options.resume is not None and saved_checkpoints(directory):
        raise InputError('none of the checkpoints in %s is complete: restore one, or delete them to begin anew'
                         % directory)
    # so that checkpoints and summaries of a training that goes on continue its count of steps
    return Start(steps_per_epoch, (options.starting_epoch - 1) * steps_per_epoch)
