"""The flags of how a training learns: which go together, and what they mean."""
import os

import pytest

from main import parse_options
from runtime.errors import InputError
from training.flags import is_guarded
from training.log_directory import log_directory_of


def test_between_epochs_steps_have_their_usual_size():
    options = parse_options(['--fake', '--method', 'fast', '--attack-step-size', '20'])
    assert options.attack_step_size == 1.0 and options.training_step_size == 20.0
    options = parse_options(['--fake', '--attack-step-size', '2'])
    assert options.attack_step_size == options.training_step_size == 2.0


@pytest.mark.parametrize('flags, name', [
    ('', 'PGD-ResNet50-Batch32-2GPUs-iter30-epsilon16.0-step1.0'),
    ('--attack-iter 0 --logdir a', 'PGD-ResNet50-Batch32-2GPUs-iter0-epsilon16.0-step1.0-a'),
    ('--attack-goal untargeted', 'PGD-untargeted-ResNet50-Batch32-2GPUs-iter30-epsilon16.0-step1.0'),
    ('--method fast', 'Fast-ResNet50-Batch32-2GPUs-iter1-epsilon16.0-step20.0'),
    ('--method fast --noise 2', 'Fast-noise2.0-ResNet50-Batch32-2GPUs-iter1-epsilon16.0-step16.0'),
    ('--method free', 'Free-replays8-ResNet50-Batch32-2GPUs-iter1-epsilon16.0-step16.0'),
    ('--method trades --beta 2 --schedule cosine --ema 0.99',
     'TRADES-beta2.0-cosine-ema0.99-ResNet50-Batch32-2GPUs-iter30-epsilon16.0-step1.0')])
def test_methods_have_log_directories_of_their_own(flags, name):
    assert log_directory_of(parse_options(['--fake'] + flags.split()), 2) == os.path.join('train_log', name)


@pytest.mark.parametrize('flags, said', [
    ('--replays 4', '--replays goes with --method free, not with --method pgd'),
    ('--method free --replays 4 --attack-iter 2', 'by one step in each of its --replays, not by --attack-iter 2'),
    ('--method free --attack-iter 0', 'not by --attack-iter 0'), ('--method free --xla', 'has no attack apart from'),
    ('--method free --attack-goal targeted', 'no attack that is targeted'),
    ('--method free --replays 0', 'not a whole number'), ('--method free --replays 70000', 'at most 65536'),
    ('--method fast --attack-iter 7', '--method fast attacks by one step, not by --attack-iter 7'),
    ('--method fast --beta 6', '--beta goes with --method trades, not with --method fast'),
    ('--method trades --beta 1e30', '--beta 1e\\+30: above 10000 nothing is learnt'),
    ('--method trades --noise 2', '--noise goes with --method fast'),
    ('--method trades --attack-iter 0', 'needs an attack'),
    ('--method trades --attack-goal targeted', 'no attack that is targeted'), ('--method other', 'invalid choice'),
    ('--ema 1', "'1' is not a number between 0 and 1"), ('--ema 0', 'between 0 and 1'),
    ('--ema nan', 'between 0 and 1'), ('--ema 0.9999999999', '0.9999999999: above 0.999999 averages don\'t follow'),
    ('--method fast --noise 32 --attack-epsilon 8', '--noise 32 times --attack-epsilon 8 is more than 255'),
    ('--weights ema', '--weights goes with --load'), ('--attack-iter 0 --on-overfitting stop', 'goes with adversarial'),
    ('--keep-best eval-clean/error-top1', '--keep-best needs evaluations between epochs, and a training with --fake')])
def test_flags_that_do_not_go_together(flags, said):
    with pytest.raises(InputError, match=said):
        parse_options(['--fake'] + flags.split())


@pytest.mark.parametrize('flags, guarded', [
    ('', False), ('--method trades', False), ('--method fast', True), ('--method free', True),
    ('--on-overfitting stop', True), ('--method fast --on-overfitting restore', True),
    ('--method free --on-overfitting ignore', False), ('--on-overfitting ignore', False),
    ('--attack-iter 0 --on-overfitting ignore', False)])
def test_who_is_guarded_against_overfitting(flags, guarded):
    assert is_guarded(parse_options(['--fake'] + flags.split())) == guarded


@pytest.mark.parametrize('flags, refused', [
    ('--keep-best eval-10step/error-top1', False), ('--keep-best eval-100step/error-top5', False),
    ('--keep-best eval-10step/attack-success-rate', False), ('--keep-best eval-11step/error-top1', True),
    ('--keep-best eval-10step/attack-success-rate --method fast', True), ('--keep-best loss', True),
    ('--keep-best eval-ema-10step/error-top1', True), ('--keep-best eval-ema-10step/error-top1 --ema 0.9', False),
    ('--keep-best eval-10step/error-top1 --training-eval clean', True),
    ('--keep-best eval-clean/error-top1 --training-eval clean', False),
    ('--keep-best eval-clean/error-top1 --training-eval none', True)])
def test_only_what_is_evaluated_can_be_the_best(flags, refused):
    if refused:
        with pytest.raises(InputError, match='--keep-best'):
            parse_options(['--data', 'd'] + flags.split())
    else:
        parse_options(['--data', 'd'] + flags.split())
