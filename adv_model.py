"""The towers that attack a network: one trains it on what comes of it, one measures (Section 5 of the paper).

The attackers are in attacks/, and importable from here: PGDAttacker, and Attacker, which all are subclasses of. Inside
of a tower images are NHWC, BGR, float32 in [-1, 1]. Budgets are given in units of a pixel, of 255, as in the paper.
"""
import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from runtime.compat import depends_on, tf, xla_compile  # before tensorpack

from tensorpack import ModelDesc
from tensorpack.models import l2_regularizer, regularize_cost
from tensorpack.tfutils.summary import add_moving_summary
from tensorpack.tfutils.tower import get_current_tower_context

# attackers are part of this module for those who write one
from attacks.losses import most_likely
from attacks.pgd import Attacker, Logits, NoOpAttacker, PGDAttacker, gradient_to, other_targets, pixels  # noqa: F401
from attacks.table import check_aim
from kernels.mode import Mode
from nets import Network
from runtime.errors import InputError
from runtime.hardware import has_gpu
from runtime.pixels import PIXEL, unscale_pixels  # noqa: F401  the inverse of scale_pixels

LABEL_SMOOTHING = 0.1  # Section 5: a tenth of each label is spread over all classes
# Section 5 trains as large-batch training of ImageNet classifiers does (Goyal et al. 2017): the weights of convolutions
# and of the last layer decay, BatchNorm's gamma and beta and the biases do not; Nesterov's momentum
WEIGHT_DECAY = 1e-4
MOMENTUM = 0.9
# Section 5: the attack on a fifth of the training batches starts from the clean images, on the others from noise
CLEAN_START_PROBABILITY = 0.2
PAPERS_AIM = dict(loss='ce', goal='targeted')  # of attacks (Section 6.1)


def scale_pixels(image: tf.Tensor) -> tf.Tensor:
    """Map [0, 255], of any dtype, to [-1, 1], float32. The inverse is unscale_pixels."""
    return tf.cast(image, tf.float32) * PIXEL - 1.0


# --- losses and figures ----------------------------------------------------------------------------------------------

def smoothed_loss(logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Return the mean cross-entropy of a batch with smoothed labels, a scalar."""
    one_hot = tf.one_hot(label, int(logits.shape[1]))
    return tf.losses.softmax_cross_entropy(one_hot, logits, label_smoothing=LABEL_SMOOTHING, loss_collection=None)


def is_wrong(logits: tf.Tensor, label: tf.Tensor, k: int) -> tf.Tensor:
    """Tell of each image, (N,), whether its label is not among the k largest logits. Logits that are no numbers are
    wrong."""
    return tf.logical_not(tf.nn.in_top_k(logits, label, min(k, int(logits.shape[1]))))


def is_target(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Tell of each image, (N,), whether it is classified as its target label, the attack's success; not where that is
    -1."""
    return tf.logical_and(tf.equal(most_likely(logits), target), target >= 0)


# --- towers ----------------------------------------------------------------------------------------------------------

def adversarial_logits(network: Network, attacker: Attacker, image: tf.Tensor, label: tf.Tensor, *, attack_mode: Mode,
                       mode: Mode) -> Tuple[tf.Tensor, tf.Tensor]:
    """Attack scaled images and classify the result; return logits in `mode`, and target labels.

    The attack sees the network in `attack_mode`, which is never training: it leaves no BatchNorm updates. For training
    its result is a constant.
    """
    adversarial, target = attacked_images(network, attacker, image, label, attack_mode)
    return network.logits(adversarial, mode), target


def attacked_images(network: Network, attacker: Attacker, image: tf.Tensor, label: tf.Tensor,
                    attack_mode: Mode) -> Tuple[tf.Tensor, tf.Tensor]:
    """Attack scaled images, (N, H, W, 3); return what comes of them, a constant for training, and target labels.

    Targets and noise are drawn anew in every run.
    """
    if attack_mode.training:
        raise ValueError('an attack must not change the BatchNorm statistics')
    with tf.name_scope('attack'):
        adversarial, target = attacker.attack(image, label, lambda x: network.logits(x, attack_mode))
        return tf.stop_gradient(adversarial, name='adversarial'), target


class Learnt(NamedTuple):
    """What a training step is from: logits (N, classes) of attacked images, their targets (N,), and the loss, a
    scalar."""
    logits: tf.Tensor
    target: tf.Tensor
    loss: tf.Tensor


class Lesson:
    """What is learnt from a batch: of the paper, attacked images alone (Section 5). Others are in training/."""

    def learn(self, model: 'AdversarialModel', image: tf.Tensor, label: tf.Tensor, mode: Mode) -> Learnt:
        """Attack scaled images and compute the loss. mode: of what is trained. It names `attack/adversarial`."""
        logits, target = adversarial_logits(model.network, model.attacker, image, label,
                                            attack_mode=model.attack_mode, mode=mode)
        return Learnt(logits, target, smoothed_loss(logits, label))


class AdversarialModel(ModelDesc):
    """The tower that trains: uint8 batch -> [-1, 1] -> attack -> logits -> smoothed loss, weight decay and metrics.

    A tower that is not training has no cost. lesson: what is learnt from a batch, if that is not the paper's.
    """

    def __init__(self, network: Network, attacker: Attacker, image_size: int, *, mode: Mode, attack_mode: Mode,
                 lesson: Optional[Lesson] = None):
        super().__init__()
        self.network = network
        self.attacker = attacker
        self.image_size = image_size
        self.mode = mode
        self.attack_mode = attack_mode
        self.lesson = lesson or Lesson()

    def inputs(self) -> List[tf.TensorSpec]:
        return [tf.TensorSpec([None, self.image_size, self.image_size, 3], tf.uint8, 'input'),
                tf.TensorSpec([None], tf.int32, 'label')]

    def build_graph(self, image: tf.Tensor, label: tf.Tensor) -> Optional[tf.Tensor]:
        is_training = get_current_tower_context().is_training
        image = scale_pixels(image)
        logits, target, loss = self.lesson.learn(self, image, label, self.mode._replace(training=is_training))
        wrong_1, wrong_5, success = [
            tf.reduce_mean(tf.cast(x, tf.float32), name=name) for name, x in [
                ('train-error-top1', is_wrong(logits, label, 1)), ('train-error-top5', is_wrong(logits, label, 5)),
                ('attack-success-rate', is_target(logits, target))]]
        if not is_training:
            return None
        loss = tf.identity(loss, name='smoothed-loss')
        decay = regularize_cost('.*/W', l2_regularizer(WEIGHT_DECAY), name='l2_regularize_loss')
        cost = tf.add(loss, decay, name='cost')
        # without targets the attack's success is unknown, not 0
        targeted = not isinstance(self.attacker, NoOpAttacker) and getattr(self.attacker, 'goal', '') != 'untargeted'
        add_moving_summary(loss, decay, cost, wrong_1, wrong_5, *[success] * targeted)
        return cost

    def optimizer(self) -> tf.train.Optimizer:
        rate = tf.get_variable('learning_rate', initializer=0.1, trainable=False)
        tf.summary.scalar('learning_rate-summary', rate)
        return tf.train.MomentumOptimizer(rate, MOMENTUM, use_nesterov=True)


class AttackTower:
    """The tower that measures: placeholders, and the tensors of an attack.

    `image`, (N, S, S, 3) in [0, 255], makes `clean`. All of an attack also needs its strength, `num_iter`, `epsilon`
    and `step_size`, and `label` and `index`: these make `targets`, (N, num_targets) distinct wrong labels of which
    `target` is the first (-1 of an untargeted attack), and `start`. What is random follows from `seed`, an int64
    scalar, and the index.

    Where `shares_steps` is True the attack can be read off on its way: one of 100 steps of size 1 passes the result of
    50 of them. Feed `current`, `state`, `towards` and `steps` for `advanced`. Elsewhere, where `takes_targets` is True,
    `result` is the whole attack `towards` what is fed there; `attacked`, images and targets, is the whole attack with
    its own targets.

    `logits`, `prediction` and `in_top5` are of `current`, in [-1, 1], or else of the clean images. Build it in the
    graph that has, or will get, the network's variables.

    Args:
        attacker: a class with PGDAttacker's parameters, which are given as scalar tensors. mode: of the classification;
            attack_mode, xla, loss_scale: of the attack. seed: a number or a scalar tensor, which `seed` is by default.
        loss, goal: as of PGDAttacker. An attacker is given them where they are others than its own, the paper's.
    Raises:
        InputError: loss and goal need more classes, or the attacker doesn't take them.
    """

    def __init__(self, network: Network, image_size: int, *, mode: Mode, attack_mode: Mode, seed: Any = 0,
                 xla: bool = False, loss_scale: float = 1.0, attacker: Callable[..., Attacker] = PGDAttacker,
                 loss: str = 'ce', goal: str = 'targeted', num_targets: int = 1):
        if (loss, goal, num_targets) != ('ce', 'targeted', 1):
            check_aim(loss, goal, network.num_classes, num_targets)
        with tf.name_scope('evaluation'):
            self.image = tf.placeholder(tf.float32, [None, image_size, image_size, 3], 'image')  # in [0, 255]
            self.label = tf.placeholder(tf.int32, [None], 'label')
            self.index = tf.placeholder(tf.int64, [None], 'index')
            self.num_iter = tf.placeholder(tf.int32, [], 'num-iter')  # of the whole attack
            self.steps = tf.placeholder(tf.int32, [], 'steps')  # of those, how many now
            self.epsilon = tf.placeholder(tf.float32, [], 'epsilon')
            self.step_size = tf.placeholder(tf.float32, [], 'step-size')
            self.seed = tf.placeholder_with_default(tf.cast(seed, tf.int64), [], 'seed')
            self.attacker = attacker(self.num_iter, self.epsilon, self.step_size, num_classes=network.num_classes,
                                     seed=self.seed, xla=xla, loss_scale=loss_scale,
                                     **aim_of(attacker, loss=loss, goal=goal))
            self.num_targets = num_targets
            self.clean = scale_pixels(self.image)
            self.current = tf.placeholder_with_default(self.clean, self.clean.shape, 'current')  # in [-1, 1]
            self.attack_logits = lambda x: network.logits(x, attack_mode)
            self._build_attack()
            compiled = mode.data_format == 'NCHW' and not has_gpu()  # XLA has the kernels that CPUs lack
            self.logits = xla_compile(lambda x: network.logits(x, mode), self.current) if compiled else \
                network.logits(self.current, mode)
            self.prediction = most_likely(self.logits)  # (N,); -1 where logits are not numbers
            self.in_top5 = tf.logical_not(is_wrong(self.logits, self.label, 5))

    def _build_attack(self) -> None:
        made = self.attacker
        self.shares_steps = False
        self.takes_targets = isinstance(made, PGDAttacker) and type(made).attack is PGDAttacker.attack
        if not self.takes_targets:  # it finds targets of its own
            self.attacked = made.attack(self.clean, self.label, self.attack_logits, self.index)
            return
        assert isinstance(made, PGDAttacker)
        self.target = made.aims(self.label, self.index)
        self.targets = self.target[:, tf.newaxis]
        if self.num_targets > 1:
            others = other_targets(self.label, self.target, self.index, made.seed, self.num_targets - 1,
                                   made.num_classes)
            self.targets = tf.concat([self.targets, others], axis=1)
        self.towards = tf.placeholder_with_default(tf.cast(self.target, tf.int32), [None], 'towards')
        self.start = made.start(self.clean, self.index)
        known = made.known(self.label)
        # who replaces the loop itself may keep in it what a part of the attack would have to know
        if all(getattr(type(made), name) is getattr(PGDAttacker, name) for name in ('iterate', 'advance')):
            self.initial_state = list(made.initial_state(self.clean))
            self.state = [tf.placeholder(s.dtype, s.shape) for s in self.initial_state]
            self.advanced, self.next_state = made.advance(self.current, self.state, self.clean, self.towards,
                                                          self.attack_logits, num_iter=self.steps, **known)
            # a step that knows how many there will be is another one in a longer attack
            parts = [self.target, self.start, self.advanced] + self.next_state + self.initial_state
            self.shares_steps = not depends_on(parts, self.num_iter, but_for=getattr(made, 'alpha', made.step_size))
        if not self.shares_steps:
            self.result = made.iterate(self.start, self.clean, self.towards, self.attack_logits,
                                       num_iter=self.num_iter, **known)
            self.attacked = self.result, self.towards


def aim_of(attacker: Callable[..., Attacker], **aim: str) -> Dict[str, str]:
    """Return the loss and the goal, by name, that an attacker's class is to be given: those that aren't the paper's.

    Raises InputError where it doesn't take them, or steps of its own couldn't follow them.
    """
    given = {name: value for name, value in aim.items() if value != PAPERS_AIM[name]}
    if not given:
        return {}
    said = ' and '.join('the %s %s' % pair for pair in given.items())
    takes = inspect.signature(attacker).parameters
    if not all(name in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()) for name in given):
        raise InputError('the attacker %s takes no %s: leave out %s, or give it the parameters of '
                         'adv_model.PGDAttacker' % (attacker.__name__, ' and no '.join(given), said))
    for name in ('iterate', 'advance', 'gradient'):
        own = getattr(attacker, name, None)
        if own is not None and own is not getattr(PGDAttacker, name) and not any(
                p.name == 'label' or p.kind is p.VAR_KEYWORD for p in inspect.signature(own).parameters.values()):
            raise InputError('the attacker %s can\'t follow %s: its %s takes no label'
                             % (attacker.__name__, said, name))
    return given
