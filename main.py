#!/usr/bin/env python
"""Train ImageNet classifiers against a strong adversary, and measure how robust they are.

    python main.py --eval --load CKPT --data DIR --arch A -d N --attack-iter K          white-box evaluation
    python main.py --eval-directory DIR --load CKPT --arch A -d N                       black-box scoring
    mpirun -np 16 ... python main.py --data DIR --batch 32 --arch A -d N                training, beside a data server
"""
import argparse
import logging
import signal
import sys
from typing import List, Set

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the rest is loaded; run_command changes it back

from attacks.table import ATTACKERS, GOALS, LOSSES
from checkpoint import WEIGHTS
from evaluation import attack_flags
from evaluation.outputs import check_outputs
from evaluation.preflight import inputs_of_evaluation, inputs_of_scoring
from evaluation.preparation import default_preprocess
from nets import DTYPES, OPERATIONS, network_of
from runtime.command_line import Parser, end_on_interrupt, run_command
from runtime.errors import InputError, LaunchError
from runtime.flag_values import image_size, natural, positive_float, positive_int, several
from runtime.limits import check_threads, mistaken_memory
from third_party.preparations import PREPARATIONS
from training.flags import METHOD_FLAGS, add_method_flags, settle_training
from training.preflight import inputs_of_training

log = logging.getLogger(__name__)


def main() -> int:
    """Do the job that the flags name. The jobs load TensorFlow, after all was checked that can be without it."""
    options = parse_options(sys.argv[1:])
    for mistake in mistaken_memory():
        log.warning('%s', mistake)
    check_threads()
    end_on_interrupt('main.py')
    if options.eval:
        evaluated = inputs_of_evaluation(options)
        from evaluation.run import run_evaluation
        return run_evaluation(options, evaluated)
    if options.eval_directory:
        folder = inputs_of_scoring(options)
        from evaluation.scoring import run_scoring
        return run_scoring(options, folder.paths, folder.listed)
    data = inputs_of_training(options)
    from training.run import run_training
    return run_training(options, data.classes, data.validation)


# --- flags -----------------------------------------------------------------------------------------------------------

ATTACK_DTYPES = ['float32', 'float16', 'bfloat16']

# Flags that change nothing in a job: what somebody gives them for will not happen
OF_TRAINING = ['fake', 'no_zmq_ops', 'endpoint', 'logdir', 'overwrite', 'accumulate', 'save_every_steps',
               'starting_epoch', 'max_epoch', 'steps_per_epoch', 'base_lr', 'training_eval', 'data_timeout',
               *METHOD_FLAGS]
WITHOUT_EFFECT = {'--eval': OF_TRAINING + ['prediction_file'],
                  '--eval-directory': OF_TRAINING + ['data', 'classes', 'attack_iter', 'attack_epsilon', 'seed',
                                                     'attack_step_size', 'attack_dtype', 'xla', 'use_fp16xla'],
                  'training': ['seed', 'prediction_file']}


def parse_options(arguments: List[str]) -> argparse.Namespace:
    """Return the command line as a plain object. Raises InputError for flags that are wrong or don't go together."""
    options = command_line().parse_args(arguments)
    given = given_flags(arguments, options)
    try:
        check_options(options)
        if not (options.eval or options.eval_directory):
            settle_training(options, given)
        network = network_of(options)
    except InputError as e:  # all ranks have the same flags
        raise LaunchError(str(e))
    warn_of_unused(options, given)
    options.depth, options.denoise = network.depth, network.denoise
    options.denoise_where, options.denoise_block = network.denoise_where, network.denoise_block
    options.xla = options.xla or options.use_fp16xla
    options.attack_dtype = options.attack_dtype or ('float16' if options.use_fp16xla else 'float32')
    options.dtype = options.dtype or 'float32'
    options.weights = options.weights or 'raw'
    for flag, default in attack_flags.DEFAULTS.items():
        setattr(options, flag, default if getattr(options, flag) is None else getattr(options, flag))
    options.preprocess = options.preprocess or default_preprocess(options.arch, bool(options.eval_directory))
    return options


def given_flags(arguments: List[str], options: argparse.Namespace) -> Set[str]:
    """Return the names of the flags that stand in the command, also where their values are the defaults."""
    parser = command_line()
    parser.set_defaults(**dict.fromkeys(vars(options)))
    return {name for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


def warn_of_unused(options: argparse.Namespace, given: Set[str]) -> None:
    """Name the given flags that change nothing in the job that was asked for."""
    job = '--eval' if options.eval else '--eval-directory' if options.eval_directory else 'training'
    unused = ['--' + name.replace('_', '-') for name in WITHOUT_EFFECT[job] if name in given]
    if unused:
        log.warning('%s %s no effect on %s', ', '.join(unused), 'has' if len(unused) == 1 else 'have',
                    job if job.startswith('-') else 'a ' + job)


def command_line() -> Parser:
    """Return the flags, with their defaults and their help."""
    parser = Parser(prog='main.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-d', '--depth', type=int,
                        help='layers of the zoo\'s networks: 50, 101 or 152; 14 for small images (50)')
    parser.add_argument('--arch', default='ResNet', metavar='A',
                        help='of the zoo: ResNet, ResNetDenoise, ResNeXtDenoiseAll or ResNetPlacebo; of torchvision: '
                             'resnet50, ...; or one\'s own: module:function (ResNet)')
    parser.add_argument('--denoise', metavar='OPERATION',
                        help='of the denoising blocks, where there are some: ' + ', '.join(OPERATIONS))
    parser.add_argument('--denoise-where', metavar='PLACE', help='of the blocks: after each group or block')
    parser.add_argument('--denoise-block', metavar='FORM', help='of the blocks: full, no-1x1 or no-residual')
    parser.add_argument('--load', metavar='CKPT', help='an .npz file or a TF checkpoint: to evaluate, or to start from')
    parser.add_argument('--weights', choices=WEIGHTS, help='of --load: raw, or ema, their averages of a training with '
                        '--ema (raw)')
    parser.add_argument('--batch', type=positive_int, default=32, help='images per GPU or process (32)')
    data = parser.add_argument_group('data')
    data.add_argument('--data', metavar='DIR', help='folder with train/ and val/')
    data.add_argument('--classes', metavar='FILE', help='class names, one a line, in label order')
    data.add_argument('--image-size', type=image_size, default=224, metavar='S', help='height and width (224)')
    data.add_argument('--fake', action='store_true', help='train on constant data, without a data server')
    data.add_argument('--no-zmq-ops', action='store_true',
                      help='receive training data in Python instead of by the native op')
    data.add_argument('--endpoint', help='of the data server; by default the one of this batch and image size')
    attack = parser.add_argument_group('attack')
    attack.add_argument('--attack-iter', type=several(natural), default=[30], metavar='K[,K...]',
                        help='steps; 0 is no attack; an evaluation takes several (30)')
    attack.add_argument('--attack-epsilon', type=several(positive_float), default=[16.0], metavar='E[,E...]',
                        help='budget in pixels, of 255; an evaluation takes several (16)')
    attack.add_argument('--attack-step-size', type=positive_float, default=1.0,
                        help='in pixels; epsilon / K where that is more (1). Of --method fast and free the training\'s '
                             'one step as it is')
    attack.add_argument('--attack-dtype', choices=ATTACK_DTYPES,
                        help='what the attack computes in; not of evaluations during training (float32)')
    attack.add_argument('--xla', action='store_true', help='compile the attack by XLA')
    attack.add_argument('--use-fp16xla', action='store_true', help='--attack-dtype float16 --xla')
    attack.add_argument('--attacker', type=several(str), metavar='A[,A...]',
                        help='of an evaluation: %s, or one\'s own, module:Class (pgd)' % ', '.join(ATTACKERS))
    attack.add_argument('--attack-loss', choices=list(LOSSES), help='of an evaluation (ce)')
    attack.add_argument('--attack-goal', choices=GOALS, help='its target label, or any wrong one; also of a '
                        'training (targeted; untargeted of --method fast, free and trades)')
    attack.add_argument('--targets', metavar='T', help='random or likeliest wrong labels, or a FILE of lines '
                        '`path,target` (random)')
    attack.add_argument('--num-targets', type=positive_int, metavar='N', help='attack each image towards N labels (1)')
    attack.add_argument('--restarts', type=positive_int, metavar='R', help='attack each image from R noises (1)')
    attack.add_argument('--seed', type=natural, default=0, help='of an evaluation\'s targets and noise (0)')
    job = parser.add_argument_group('evaluation and scoring')
    which = job.add_mutually_exclusive_group()
    which.add_argument('--eval', action='store_true', help='evaluate --load on the validation images of --data')
    which.add_argument('--eval-directory', metavar='DIR', help='classify all images below a folder with --load')
    job.add_argument('--preprocess', choices=list(PREPARATIONS),
                     help='resize: whole images to the network\'s size, those of that size stay as they are (of '
                          '--eval-directory); validation: shortest edge 256, then the centre 224 (of --eval); '
                          'torchvision: the same as torchvision does it, with Pillow (of its networks in --eval)')
    job.add_argument('--dtype', choices=DTYPES,
                     help='what images are classified in; attacks have --attack-dtype (float32)')
    job.add_argument('--results', metavar='FILE', help='where the figures of --eval go, as JSON')
    job.add_argument('--per-image', metavar='FILE', help='where a row for each image and attack goes, as CSV')
    job.add_argument('--save-adversarial', metavar='DIR',
                     help='where the attacked images go, as PNG with a manifest.csv')
    job.add_argument('--journal', metavar='FILE',
                     help='keeps what --eval has finished; the same command continues from it')
    job.add_argument('--subset', metavar='S', help='evaluate S images, spread evenly, or those of a FILE, one a line')
    job.add_argument('--prediction-file', default='predictions.txt', metavar='FILE',
                     help='where the lines `path,label` go (predictions.txt)')
    job.add_argument('--labels', metavar='MANIFEST',
                     help='of the images of --eval-directory, for error and success rates')
    training = parser.add_argument_group('training')
    training.add_argument('--logdir', help='a suffix for the log directory\'s name below train_log/')
    earlier = training.add_mutually_exclusive_group()
    earlier.add_argument('--overwrite', action='store_true', help='delete a log directory that is there already')
    earlier.add_argument('--resume', nargs='?', const='', metavar='DIR',
                         help='go on from the newest complete checkpoint of this log directory; without DIR: of the '
                              'one of these flags, under any number of ranks and batch; begin where there is none yet')
    training.add_argument('--reset-head', action='store_true',
                          help='--load all but the last layer, which begins anew: for other classes')
    training.add_argument('--accumulate', type=positive_int, default=1, metavar='N',
                          help='a step is N batches on every rank: few GPUs train with a large total batch (1)')
    training.add_argument('--save-every-steps', type=positive_int, metavar='N',
                          help='checkpoints within epochs too; by default one after every epoch')
    training.add_argument('--starting-epoch', type=positive_int, default=1)
    training.add_argument('--max-epoch', type=positive_int, default=110,
                          help='number of epochs; the schedule scales with it (110)')
    training.add_argument('--steps-per-epoch', type=positive_int,
                          help='by default one pass over the training images, to the nearest step')
    training.add_argument('--base-lr', type=positive_float, default=0.1, help='learning rate per 256 images (0.1)')
    training.add_argument('--training-eval', choices=['all', 'clean', 'none'], default='all',
                          help='evaluations between epochs: those of the paper, clean ones, or none (all)')
    training.add_argument('--data-timeout', type=positive_float, default=300, metavar='SECONDS',
                          help='how long to wait for the data server (300)')
    add_method_flags(parser)
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise InputError for flags that are wrong or don't go together."""
    for flag in ('load', 'data', 'classes', 'endpoint', 'results', 'per_image', 'save_adversarial', 'journal',
                 'attacker', 'targets', 'subset', 'eval_directory', 'prediction_file', 'labels', 'keep_best'):
        if getattr(options, flag) in ('', ['']):  # most likely a shell variable that is not set
            raise InputError('--%s is empty' % flag.replace('_', '-'))
    for flag in ('logdir', 'resume'):
        value = getattr(options, flag) or ''
        if value.encode('utf-8', 'replace').decode() != value:
            raise InputError('--%s %s is not UTF-8, which TensorFlow needs of the names of its files' % (flag, value))
    if options.logdir and ('/' in options.logdir or options.logdir in ('.', '..')):
        raise InputError('--logdir is a suffix for a name below train_log/, without a slash: %s' % options.logdir)
    if (options.eval or options.eval_directory) and not options.load:
        raise InputError('nothing to evaluate: give the checkpoint with --load')
    if options.eval and not options.data:
        raise InputError('--eval needs --data, a folder with val/')
    if not (options.eval or options.eval_directory or options.data or options.fake):
        raise InputError('training needs --data, a folder with train/ and val/ (or --fake)')
    if not options.eval and len(options.attack_iter) * len(options.attack_epsilon) > 1:
        raise InputError('several values of --attack-iter or --attack-epsilon go with --eval alone')
    for flag in ('results', 'per_image', 'save_adversarial', 'journal'):
        if getattr(options, flag) and not options.eval:
            raise InputError('--%s goes with --eval' % flag.replace('_', '-'))
    attack_flags.check_attack_flags(options)
    if options.preprocess and not (options.eval or options.eval_directory):
        raise InputError('--preprocess goes with --eval and --eval-directory')
    if options.dtype and not (options.eval or options.eval_directory):
        raise InputError('--dtype goes with --eval and --eval-directory; what a training\'s attack computes in is '
                         '--attack-dtype')
    check_outputs(options)
    if options.labels and not options.eval_directory:
        raise InputError('--labels goes with --eval-directory')
    if options.resume is not None and (options.eval or options.eval_directory):
        raise InputError('--resume goes with training; an evaluation reads the checkpoint of --load')
    if options.reset_head and (not options.load or options.eval or options.eval_directory):
        raise InputError('--reset-head goes with a training that begins with --load')
    if options.weights and not options.load:
        raise InputError('--weights goes with --load')
    if options.use_fp16xla and options.attack_dtype not in (None, 'float16'):
        raise InputError('--use-fp16xla means --attack-dtype float16, not %s: give one of them' % options.attack_dtype)
    if options.starting_epoch > options.max_epoch:
        raise InputError('--starting-epoch %d comes after --max-epoch %d' % (options.starting_epoch, options.max_epoch))


if __name__ == '__main__':
    run_command('main.py', main, chief_speaks=True)
