"""A training, from its flags to its end: tensorpack's HorovodTrainer on every rank, evaluated between epochs."""
import argparse
import logging
import shlex
from typing import Any, List, Optional, Sequence

from runtime.compat import is_deterministic  # before tensorpack

import numpy as np
from tensorpack import Callback, TrainConfig, launch_train_with_config, logger
from tensorpack.callbacks import MergeAllSummaries, MovingAverageSummary, RunUpdateOps, ScalarPrinter, ThroughputTracker
from tensorpack.tfutils import DictRestore, SaverRestore

import checkpoint
from adv_model import AdversarialModel
from evaluation.contents import read_contents
from kernels.mode import attack_settings, native_mode
from runtime.agreement import check_agreement
from runtime.distributed import HorovodWorld, World
from runtime.errors import InputError
from runtime.fingerprint import sha256_of_files
from runtime.hardware import warn_of_cost
from runtime.pixels import mistaken_attack
from runtime.printing import say
from third_party.imagenet import Dataset
from third_party.preparations import PREPARATIONS
from training.averages import Averages
from training.beginning import Inputs, Plan, find_inputs, make_plan
from training.best import best_checkpoint, find_best
from training.callbacks import (
    CHECKPOINTS_KEPT,
    KeepBest,
    LossGuard,
    RecordedDenoising,
    Saver,
    ScheduledLearningRate,
    ScheduledPosition,
    StopOnSignal,
    errors_of_disk,
)
from training.flags import is_guarded
from training.input import TimedInput, errors_of_input, training_input
from training.log_directory import OWN_OF_A_TRAINING, saved_checkpoints
from training.overfitting import STEP_FACTOR, Guard, attack_step_factor
from training.progress import Events, Progress, evaluation_table
from training.records import Statistics
from training.replays import HeldInput, Replays
from training.schedule import attack_iters_after
from training.trainer import AccumulatingTrainer, SessionCreator
from training.validation import DistributedEvaluation, Validation

log = logging.getLogger(__name__)

SUMMARY_STEPS = 100


def run_training(options: argparse.Namespace, classes: List[str], validation: Optional[Dataset]) -> int:
    """Run the training that the options describe, as one of its ranks; return 0 when it is complete, or a signal ended
    it.

    Raises InputError where the options, the data or the checkpoint are wrong, or the data server falls silent, and
    RunError where the training can't go on. classes, validation: those of --data, as `Inputs` has them.
    """
    if is_deterministic():
        raise InputError('TF_DETERMINISTIC_OPS is set: TensorFlow 2 refuses the clock then, by which a training tells '
                         'how long its attacks take; unset it')
    inputs = find_inputs(options, classes, validation)
    world = HorovodWorld()
    stopper = StopOnSignal(world)
    # one flag gives both step sizes, of the method and of evaluations
    flags = dict(vars(options), attack_step_size=[options.attack_step_size, options.training_step_size])
    del flags['training_step_size']
    check_agreement(world, flags, checkpoint=checkpoint.checkpoint_files(options.load) if options.load else [],
                    data=inputs.validation.listing(options.data) if inputs.validation else inputs.classes,
                    more_code=sha256_of_files(inputs.network.files()))
    warn_of_cost(options.attack_dtype, options.xla)
    attacks = inputs.attack.num_iter or (inputs.validation and options.training_eval == 'all')
    mistakes = mistaken_attack([inputs.attack.epsilon], inputs.attack.step_size) if attacks else []
    if inputs.method.attacks and options.training_step_size != inputs.attack.step_size:
        mistakes += mistaken_attack([], options.training_step_size)  # one step may well be longer than the budget
    for mistake in mistakes:
        log.warning('%s', mistake)
    if inputs.validation:  # a broken image would end it after an epoch, which may be hours
        read_contents(inputs.validation, world, options.batch, PREPARATIONS[options.preprocess]().check)
    plan = make_plan(options, inputs, world)
    for mistake in mistakes if world.is_chief else ():
        logger.warning(mistake)  # once more, into the log file, which there is from now on
    if plan.start.epoch <= options.max_epoch or plan.catch_up:
        train(options, inputs, plan, world, stopper)
    stopper.ignore()
    if world.is_chief:
        report_end(options, inputs, stopper)
    return 0


def train(options: argparse.Namespace, inputs: Inputs, plan: Plan, world: World, stopper: StopOnSignal, *,
          data: Optional[TimedInput] = None, kept: int = CHECKPOINTS_KEPT,
          more_callbacks: Sequence[Callback] = ()) -> None:
    """Train for all epochs from the plan's start on. data: in place of what the options name. kept: checkpoints."""
    start, total_batch, method = plan.start, plan.schedule.total_batch, inputs.method
    directory = logger.get_logger_dir()  # the chief's
    position = ScheduledPosition(start, total_batch)
    callbacks: List[Callback] = [
        position, RecordedDenoising(checkpoint.denoising_record(inputs.network)),
        ScheduledLearningRate(plan.schedule, start.offset),
        LossGuard(inputs.network.num_classes, world.rank, directory, method.largest_loss)]
    averages = None
    if options.ema is not None:
        averages = Averages(options.ema, inputs.network.variable_shapes(), begin=plan.averages_begin)
        callbacks.append(averages)
    if world.is_chief:
        stopper.saver = Saver(directory, options.save_every_steps, start.offset, kept=kept)
    monitors = [Events(directory, start.global_step), Statistics(directory), ScalarPrinter()] if world.is_chief else []
    step_factor: Any = 1.0
    if is_guarded(options) or plan.remembered.factor != 1.0:
        step_factor = attack_step_factor(method.attack_name())
    if is_guarded(options):
        callbacks.append(guard_of(options, inputs, plan, world, step_factor, stopper, monitors))
    callbacks.append(stopper)  # it ends what a signal kept the guard from measuring, before the epoch's first step
    if world.is_chief:
        callbacks += [stopper.saver, Progress(start, total_batch=total_batch, max_epoch=options.max_epoch,
                                              micro_batches=options.accumulate, targeted=method.targeted,
                                              attacked=method.attacks and not method.holds_batches)]
    if inputs.validation is not None:
        validation = Validation(inputs.network, inputs.validation, options.image_size, options.batch, options.max_epoch,
                                inputs.attack.epsilon, inputs.attack.step_size, options.training_eval == 'clean',
                                PREPARATIONS[options.preprocess](), method.goal)
        callbacks.append(DistributedEvaluation(validation, world, stopper, catch_up=plan.catch_up, averages=averages))
    if options.keep_best and world.is_chief:
        callbacks.append(KeepBest(directory, options.keep_best))
    callbacks += more_callbacks
    # the last one, since its clock runs from here to the epoch's end: others measure and draw before an epoch
    callbacks.append(ThroughputTracker(samples_per_step=total_batch))
    data = data or training_input(options, inputs.network.num_classes)
    held, replays = data, None
    if method.holds_batches:
        held = HeldInput(data, options.accumulate, options.batch, options.image_size)
        replays = Replays(method.replays, held, epsilon=method.strength.epsilon,
                          step_size=method.strength.step_size * step_factor)
    model = training_model(options, inputs, replays, step_factor)
    if start.checkpoint:
        ignored = [*OWN_OF_A_TRAINING] + [STEP_FACTOR] * (not plan.remembered.same_attack)
        restored = SaverRestore(start.checkpoint, ignore=ignored)
    else:
        restored = DictRestore(dict(inputs.weights or {}, global_step=np.int64(start.global_step)))
    with errors_of_input(data):
        launch_train_with_config(TrainConfig(
            model=model, data=held, callbacks=callbacks, steps_per_epoch=start.steps_per_epoch,
            starting_epoch=start.epoch, max_epoch=options.max_epoch, session_creator=SessionCreator(world),
            session_init=restored, monitors=monitors, extra_callbacks=[
                MovingAverageSummary(), MergeAllSummaries(period=SUMMARY_STEPS), RunUpdateOps()]),
            AccumulatingTrainer(options.accumulate, replays=replays, averages=averages))
    if position.completed_epochs < options.max_epoch and not stopper.stopped:
        raise RuntimeError('the training ended early, after %d of %d epochs: see the log in %s'
                           % (position.completed_epochs, options.max_epoch, directory))


def training_model(options: argparse.Namespace, inputs: Inputs, replays: Optional[Replays],
                   step_factor: Any) -> AdversarialModel:
    """Return the tower that trains by the method."""
    settings = attack_settings(options.attack_dtype, options.xla)
    attacker = inputs.method.attacker(num_classes=inputs.network.num_classes, step_factor=step_factor,
                                      xla=settings['xla'], loss_scale=settings['loss_scale'])
    return AdversarialModel(inputs.network, attacker, options.image_size, mode=native_mode(),
                            attack_mode=settings['attack_mode'], lesson=inputs.method.lesson(replays))


def guard_of(options: argparse.Namespace, inputs: Inputs, plan: Plan, world: World, step_factor: Any,
             stopper: StopOnSignal, monitors: List[Any]) -> Guard:
    """Return the guard against catastrophic overfitting."""
    method, num_classes = inputs.method, inputs.network.num_classes
    return Guard(inputs.network, options.image_size, options.batch, world, step_factor=step_factor,
                 same_attack=plan.remembered.same_attack, action=options.on_overfitting,
                 one_step=lambda: method.one_step(step_factor=step_factor, num_classes=num_classes),
                 several_steps=lambda: method.several_steps(num_classes=num_classes),
                 advice=method.against_overfitting,
                 directory=logger.get_logger_dir(), saver=stopper.saver, monitors=monitors, stopped=stopper.agreed)


def report_end(options: argparse.Namespace, inputs: Inputs, stopper: StopOnSignal) -> None:
    """Say, as the chief, the last evaluation and the command that repeats it; or how to go on."""
    directory = logger.get_logger_dir()
    if stopper.stopped:
        logger.info('stopped by a signal; the same command with --resume goes on from %s'
                    % saved_checkpoints(directory)[0])
        return
    for line in evaluation_table(directory):
        say(line)
    if options.keep_best:
        with errors_of_disk(directory):
            best = find_best(directory, options.keep_best)
        say('The best checkpoint by %s: %s' % (options.keep_best, best_checkpoint(directory) if best else 'none'))
    if options.data and not options.fake and options.training_eval != 'none':
        iters = [0] if options.training_eval == 'clean' else attack_iters_after(options.max_epoch, options.max_epoch)
        command = ['python', 'main.py', '--eval', '--load', saved_checkpoints(directory)[0], *inputs.network.flags,
                   '--data', options.data, '--image-size', str(options.image_size), '--batch', str(options.batch),
                   '--attack-iter', ','.join(map(str, iters)), '--attack-epsilon', '%g' % inputs.attack.epsilon,
                   '--attack-step-size', '%g' % inputs.attack.step_size]
        command += ['--classes', options.classes] if options.classes else []
        command += ['--preprocess', options.preprocess]
        command += ['--attack-goal', inputs.method.goal] if inputs.method.goal != 'targeted' else []
        say('To repeat it%s: %s' % (', with --weights ema for the averages' if options.ema is not None else '',
                                    ' '.join(shlex.quote(word) for word in command)))
