"""The flags of how a training learns: its method, averages, what is kept of it. TensorFlow isn't loaded."""
import argparse
from typing import Set

from runtime.errors import InputError
from runtime.flag_values import decay, positive_float, positive_int
from training.methods import METHODS, method_of, own_flags, settle_method
from training.schedule import SCHEDULES, attack_iters_after

IGNORE = 'ignore'
ACTIONS = (IGNORE, 'stop', 'restore')
MOST_NOISE = 255  # to each side
MOST_BETA = 1e4  # a weight of the divergence next to which the clean loss is a rounding error
MOST_PASSES = 65536  # of batches in a step, which takes no signal before its end

# Without them a training is as published
METHOD_FLAGS = ['method', 'schedule', 'ema', 'keep_best', 'on_overfitting'] + own_flags()


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a command line."""
    method = parser.add_argument_group('method of training')
    method.add_argument('--method', choices=list(METHODS), default='pgd',
                        help='pgd as published; fast: one step; free: several updates from each batch, which attack it '
                             'too; trades: clean images, and attacked ones classified alike (pgd)')
    method.add_argument('--noise', type=positive_float, metavar='R',
                        help='of fast: N-FGSM, from noise of R epsilons, a step of epsilon, unprojected')
    method.add_argument('--replays', type=positive_int, metavar='M', help='of free: updates from each batch (8)')
    method.add_argument('--beta', type=positive_float, help='of trades: how much the divergence weighs (6)')
    method.add_argument('--schedule', choices=SCHEDULES, default='steps',
                        help='of the learning rate: steps as published; cyclic: up to its peak at 2/5 of the epochs, '
                             'and down to 0; cosine (steps)')
    method.add_argument('--ema', type=decay, metavar='DECAY',
                        help='keep moving averages of the weights, evaluated beside them: 0.999, for example')
    method.add_argument('--keep-best', metavar='METRIC',
                        help='keep the checkpoint with the lowest METRIC of stats.json, eval-10step/error-top1 for '
                             'example, as best-<step>')
    method.add_argument('--on-overfitting', choices=ACTIONS,
                        help='when the network becomes robust to one step alone: stop, or restore the last good '
                             'checkpoint and halve the attack\'s steps; ignore: don\'t attack it after each epoch, '
                             'which costs minutes on a CPU; otherwise fast and free warn')


def settle_training(options: argparse.Namespace, given: Set[str]) -> None:
    """Set what the method of a training determines. Raises InputError for flags that don't go together.

    given: the names of the flags that stand in the command.
    """
    settle_method(options, given)
    method = method_of(options)
    if method.replays * options.accumulate > MOST_PASSES:
        raise InputError('%s--accumulate is at most %d' % ('--replays times ' if method.replays > 1 else '',
                                                           MOST_PASSES))
    if options.noise is not None and options.noise * options.attack_epsilon[0] > MOST_NOISE:
        raise InputError('--noise %g times --attack-epsilon %g is more than %d, all of a pixel\'s range'
                         % (options.noise, options.attack_epsilon[0], MOST_NOISE))
    if options.beta is not None and options.beta > MOST_BETA:
        raise InputError('--beta %g: above %g nothing is learnt of clean images' % (options.beta, MOST_BETA))
    if options.on_overfitting not in (None, IGNORE) and not method.attacks:
        raise InputError('--on-overfitting goes with adversarial training, not with --attack-iter 0')
    if options.keep_best is not None:
        check_metric(options, targeted=method.goal == 'targeted')


def is_guarded(options: argparse.Namespace) -> bool:
    """Tell whether the network is attacked after each epoch, to see whether it is robust to one step alone."""
    if options.on_overfitting is None:
        return method_of(options).guarded_by_default
    return options.on_overfitting != IGNORE


def metrics_of(options: argparse.Namespace, *, targeted: bool) -> Set[str]:
    """List the figures of evaluations between epochs that a training with these options puts into stats.json."""
    if options.fake or options.training_eval == 'none':
        return set()
    iters = {0} if options.training_eval == 'clean' else {
        k for epoch in range(options.starting_epoch, options.max_epoch + 1)
        for k in attack_iters_after(epoch, options.max_epoch)}
    prefixes = ['eval-'] + ['eval-ema-'] * (options.ema is not None)
    return {'%s%s/%s' % (prefix, '%dstep' % k if k else 'clean', figure) for prefix in prefixes for k in iters
            for figure in ['error-top1', 'error-top5'] + ['attack-success-rate'] * (targeted and k > 0)}


def check_metric(options: argparse.Namespace, *, targeted: bool) -> None:
    """Raise InputError where the training doesn't evaluate what --keep-best names."""
    known = metrics_of(options, targeted=targeted)
    if not known:
        raise InputError('--keep-best needs evaluations between epochs, and a training with %s has none'
                         % ('--fake' if options.fake else '--training-eval none'))
    if options.keep_best not in known:
        usual = [name for name in ('eval-10step/error-top1', 'eval-ema-10step/error-top1', 'eval-clean/error-top1',
                                   'eval-ema-clean/error-top1') if name in known]
        raise InputError('--keep-best %s: this training doesn\'t evaluate that; it does %s, for example'
                         % (options.keep_best, ', '.join(usual)))
