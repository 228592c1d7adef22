"""Attackers, and the towers that attack a network: one trains it on what comes of it, one measures (Section 5 of the
paper).

Inside of a tower images are NHWC, BGR, float32 in [-1, 1]. Budgets are given in units of a pixel, of 255, as in the
paper.

    attacker = PGDAttacker(10, 16., 1., num_classes=1000)
    adversarial, target = attacker.attack(images, labels, lambda x: network.logits(x, Mode()))
"""
from abc import ABC, abstractmethod
from typing import Any, Callable, List, Optional, Tuple

from runtime.compat import depends_on, tf, xla_compile  # before tensorpack

from tensorpack import ModelDesc
from tensorpack.models import l2_regularizer, regularize_cost
from tensorpack.tfutils.summary import add_moving_summary
from tensorpack.tfutils.tower import get_current_tower_context

from kernels.mode import Mode
from nets import Network
from runtime.errors import InputError
from runtime.hardware import has_gpu
from runtime.pixels import PIXEL, effective_step_size, unscale_pixels  # noqa: F401  the inverse of scale_pixels

LABEL_SMOOTHING = 0.1  # Section 5: a tenth of each label is spread over all classes
# Section 5 trains as large-batch training of ImageNet classifiers does (Goyal et al. 2017): the weights of convolutions
# and of the last layer decay, BatchNorm's gamma and beta and the biases do not; Nesterov's momentum
WEIGHT_DECAY = 1e-4
MOMENTUM = 0.9
# Section 5: the attack on a fifth of the training batches starts from the clean images, on the others from noise
CLEAN_START_PROBABILITY = 0.2

Logits = Callable[[tf.Tensor], tf.Tensor]


def pixels(value: Any) -> Any:
    """Convert a distance in pixels, of 255, to the [-1, 1] scale."""
    return value * PIXEL


def scale_pixels(image: tf.Tensor) -> tf.Tensor:
    """Map [0, 255], of any dtype, to [-1, 1], float32. The inverse is unscale_pixels."""
    return tf.cast(image, tf.float32) * PIXEL - 1.0


# --- attackers -------------------------------------------------------------------------------------------------------

class Attacker(ABC):
    """Makes adversarial images of a batch. Subclasses give `attack`."""

    @abstractmethod
    def attack(self, image: tf.Tensor, label: tf.Tensor, logits: Logits,
               index: Optional[tf.Tensor] = None) -> Tuple[tf.Tensor, tf.Tensor]:
        """Attack a batch.

        Args:
            image: (N, H, W, 3) float32 in [-1, 1]. label: (N,) int32.
            logits: images to logits, (N, H, W, 3) -> (N, classes), with BatchNorm in test mode.
            index: (N,) integers. When given, what is random depends on the seed and the image's index alone;
                otherwise it is drawn anew in every run of the graph.
        Returns:
            adversarial images like `image`, and (N,) int32 target labels; -1 where there is none.
        """


class NoOpAttacker(Attacker):
    """Leaves images as they are: standard training and clean evaluation."""

    def attack(self, image: tf.Tensor, label: tf.Tensor, logits: Logits,
               index: Optional[tf.Tensor] = None) -> Tuple[tf.Tensor, tf.Tensor]:
        return image, -tf.ones_like(label)


class PGDAttacker(Attacker):
    """Targeted projected gradient descent in the L-infinity ball (Madry et al. 2018; Section 5 of the paper).

    The paper attacks with epsilon 16 and steps of 1; with 10 steps these are 1.6, as effective_step_size has it. A
    subclass may replace the direction of a step (`initial_state`, `direction`), where the attack starts (`start`), or
    its targets.

    Args:
        num_iter: steps, at least 1. epsilon, step_size: in pixels of 255; the step used is
            max(step_size, epsilon / num_iter), so that the ball's edge is in reach. Numbers or scalar tensors.
        num_classes: targets are drawn uniformly from the num_classes - 1 wrong labels.
        clean_start_probability: that a batch starts from the clean images instead of noise in the ball.
        seed: of targets and noise where `attack` is given indices.
        loss_scale: of the loss whose gradient is taken; float16 needs it against underflow. xla: compile the gradient.
    """

    def __init__(self, num_iter: Any, epsilon: Any, step_size: Any, *, num_classes: int,
                 clean_start_probability: float = 0.0, seed: Any = 0, loss_scale: float = 1.0, xla: bool = False):
        self.num_iter = num_iter
        self.epsilon = epsilon
        if any(tf.is_tensor(value) for value in (num_iter, epsilon, step_size)):
            self.step_size = effective_step_size(tf.cast(num_iter, tf.float32), epsilon, step_size, maximum=tf.maximum)
        else:
            self.step_size = effective_step_size(num_iter, epsilon, step_size)
        self.alpha = self.step_size  # as it follows from the budget, also where a subclass changes step_size
        self.num_classes = num_classes
        self.clean_start_probability = clean_start_probability
        self.seed = seed
        self.loss_scale = loss_scale
        self.xla = xla

    def attack(self, image: tf.Tensor, label: tf.Tensor, logits: Logits,
               index: Optional[tf.Tensor] = None) -> Tuple[tf.Tensor, tf.Tensor]:
        target = self.targets(label, index)
        return self.iterate(self.start(image, index), image, target, logits, num_iter=self.num_iter), target

    def targets(self, label: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Draw a wrong label for each image, uniform over all of them: the paper's threat model (Section 6.1)."""
        if index is None:
            shift = tf.random_uniform(tf.shape(label), 1, self.num_classes, tf.int32)
        else:
            shift = per_image_uniform(index, 2 * self.seed, [], 1, self.num_classes, tf.int32)
        return tf.floormod(label + shift, self.num_classes)

    def start(self, image: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Add uniform noise in the ball, or now and then nothing to the whole batch."""
        radius = pixels(self.epsilon)
        if index is None:
            noise = tf.random_uniform(tf.shape(image), -radius, radius)
        else:
            noise = per_image_uniform(index, 2 * self.seed + 1, image.shape[1:].as_list(), -radius, radius, tf.float32)
        if self.clean_start_probability > 0:
            noise *= tf.cast(tf.random_uniform([]) >= self.clean_start_probability, tf.float32)
        return self.project(image + noise, image)

    def iterate(self, start: tf.Tensor, image: tf.Tensor, target: tf.Tensor, logits: Logits, *,
                num_iter: Any) -> tf.Tensor:
        """Take `num_iter` (a number or a scalar tensor) steps from `start`, where the state is the initial one."""
        return self.advance(start, self.initial_state(image), image, target, logits, num_iter=num_iter)[0]

    def advance(self, adversarial: tf.Tensor, state: List[tf.Tensor], image: tf.Tensor, target: tf.Tensor,
                logits: Logits, *, num_iter: Any) -> Tuple[tf.Tensor, List[tf.Tensor]]:
        """Take `num_iter` steps from anywhere on a trajectory, with the state there; return where they end, and the
        state."""
        def step(i: tf.Tensor, x: tf.Tensor, *state: tf.Tensor) -> List[tf.Tensor]:
            direction, after = self.direction(self.gradient(x, target, logits), list(state))
            for new, old in zip(after, state):
                new.set_shape(old.shape)
            return [i + 1, self.move(x, direction, image)] + list(after)

        _, adversarial, *state = tf.while_loop(lambda i, *_: i < num_iter, step,
                                               [tf.constant(0), adversarial] + list(state),
                                               back_prop=False, parallel_iterations=1)
        return tf.stop_gradient(adversarial), state

    def initial_state(self, image: tf.Tensor) -> List[tf.Tensor]:
        """Return what a step knows of those before it, at the first one: tensors whose first axis is the images'."""
        return []

    def direction(self, gradient: tf.Tensor, state: List[tf.Tensor]) -> Tuple[tf.Tensor, List[tf.Tensor]]:
        """Return the direction, (N, H, W, 3), and the new state; a step goes against the direction's sign."""
        return gradient, state

    def move(self, adversarial: tf.Tensor, direction: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """Step to x - alpha sign(direction), and back into the ball.

        Where the direction is NaN the pixel becomes NaN: TensorFlow 1's sign of NaN is 0, and an attack that stood
        still would look like a robust network.
        """
        moved = self.project(adversarial - pixels(self.step_size) * tf.sign(direction), image)
        moved.set_shape(adversarial.shape)
        return tf.where(tf.is_nan(direction), direction, moved)

    def gradient(self, adversarial: tf.Tensor, target: tf.Tensor, logits: Logits) -> tf.Tensor:
        """Return d CE(f(x), target) / d x, (N, H, W, 3), up to a positive factor."""
        def loss_gradient(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=t, logits=logits(x))
            return gradient_to(tf.reduce_sum(loss) * self.loss_scale, x)

        return xla_compile(loss_gradient, adversarial, target) if self.xla else loss_gradient(adversarial, target)

    def project(self, adversarial: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """Clip to the ball around the image, and to valid pixels."""
        radius = pixels(self.epsilon)
        lower, upper = tf.maximum(image - radius, -1.0), tf.minimum(image + radius, 1.0)
        return tf.clip_by_value(adversarial, lower, upper)


def gradient_to(y: tf.Tensor, x: tf.Tensor, upstream: Optional[tf.Tensor] = None) -> tf.Tensor:
    """Return d sum(upstream * y) / dx, like x. Raises InputError where no gradient reaches x."""
    gradient = tf.gradients(y, x, upstream)[0]
    if gradient is None:
        raise InputError('no gradient reaches the image: the network has a step without one, such as rounding')
    return gradient


def per_image_uniform(index: tf.Tensor, seed: Any, shape: List[int], low: Any, high: Any, dtype: tf.DType) -> tf.Tensor:
    """Draw (N,) + shape uniform numbers, each image's by its own generator: the batch that it is in does not matter."""
    return tf.map_fn(lambda i: tf.random.stateless_uniform(shape, [seed, i], low, high, dtype),
                     tf.cast(index, tf.int64), dtype=dtype, back_prop=False)


# --- losses and figures ----------------------------------------------------------------------------------------------

def smoothed_loss(logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Return the mean cross-entropy of a batch with smoothed labels, a scalar."""
    one_hot = tf.one_hot(label, int(logits.shape[1]))
    return tf.losses.softmax_cross_entropy(one_hot, logits, label_smoothing=LABEL_SMOOTHING, loss_collection=None)


def is_wrong(logits: tf.Tensor, label: tf.Tensor, k: int) -> tf.Tensor:
    """Tell of each image, (N,), whether its label is not among the k largest logits. Logits that are no numbers are
    wrong."""
    return tf.logical_not(tf.nn.in_top_k(logits, label, min(k, int(logits.shape[1]))))


def most_likely(logits: tf.Tensor) -> tf.Tensor:
    """Return the label of the largest logit, (N,) int32; -1 where logits are not numbers."""
    finite = tf.reduce_all(tf.is_finite(logits), axis=1)
    return tf.where(finite, tf.argmax(logits, axis=1, output_type=tf.int32), -tf.ones([tf.shape(logits)[0]], tf.int32))


def is_target(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Tell of each image, (N,), whether it is classified as its target label, the attack's success; not where that is
    -1."""
    return tf.logical_and(tf.equal(most_likely(logits), target), target >= 0)



# --- towers ----------------------------------------------------------------------------------------------------------

def adversarial_logits(network: Network, attacker: Attacker, image: tf.Tensor, label: tf.Tensor, *, attack_mode: Mode,
                       mode: Mode, index: Optional[tf.Tensor] = None) -> Tuple[tf.Tensor, tf.Tensor]:
    """Attack scaled images and classify the result; return logits in `mode`, and target labels.

    The attack sees the network in `attack_mode`, which is never training: it leaves no BatchNorm updates. For training
    its result is a constant.
    """
    if attack_mode.training:
        raise ValueError('an attack must not change the BatchNorm statistics')
    with tf.name_scope('attack'):
        adversarial, target = attacker.attack(image, label, lambda x: network.logits(x, attack_mode), index)
        adversarial = tf.stop_gradient(adversarial, name='adversarial')
    return network.logits(adversarial, mode), target


class AdversarialModel(ModelDesc):
    """The tower that trains: uint8 batch -> [-1, 1] -> attack -> logits -> smoothed loss, weight decay and metrics.

    In a tower that is not training the loss is left out and the attack's randomness is not tied to indices.
    """

    def __init__(self, network: Network, attacker: Attacker, image_size: int, *, mode: Mode, attack_mode: Mode):
        super().__init__()
        self.network = network
        self.attacker = attacker
        self.image_size = image_size
        self.mode = mode
        self.attack_mode = attack_mode

    def inputs(self) -> List[tf.TensorSpec]:
        return [tf.TensorSpec([None, self.image_size, self.image_size, 3], tf.uint8, 'input'),
                tf.TensorSpec([None], tf.int32, 'label')]

    def build_graph(self, image: tf.Tensor, label: tf.Tensor) -> Optional[tf.Tensor]:
        is_training = get_current_tower_context().is_training
        image = scale_pixels(image)
        logits, target = adversarial_logits(self.network, self.attacker, image, label, attack_mode=self.attack_mode,
                                            mode=self.mode._replace(training=is_training))
        wrong_1, wrong_5, success = [
            tf.reduce_mean(tf.cast(x, tf.float32), name=name) for name, x in [
                ('train-error-top1', is_wrong(logits, label, 1)), ('train-error-top5', is_wrong(logits, label, 5)),
                ('attack-success-rate', is_target(logits, target))]]
        if not is_training:
            return None
        loss = tf.identity(smoothed_loss(logits, label), name='smoothed-loss')
        decay = regularize_cost('.*/W', l2_regularizer(WEIGHT_DECAY), name='l2_regularize_loss')
        cost = tf.add(loss, decay, name='cost')
        attacked = not isinstance(self.attacker, NoOpAttacker)  # without an attack its success is unknown, not 0
        add_moving_summary(loss, decay, cost, wrong_1, wrong_5, *[success] * attacked)
        return cost

    def optimizer(self) -> tf.train.Optimizer:
        rate = tf.get_variable('learning_rate', initializer=0.1, trainable=False)
        tf.summary.scalar('learning_rate-summary', rate)
        return tf.train.MomentumOptimizer(rate, MOMENTUM, use_nesterov=True)


class AttackTower:
    """The tower that measures: placeholders, and the tensors of an attack that can be taken in parts.

    The attack of a batch can be read off on its way: one of 100 steps of size 1 passes the result of 50 of them. Feed
    `image` for `clean`, `target` and `start`; then `image`, `current`, `state`, `towards` and `steps` for `advanced`.
    Where `shares_steps` is False there is only `attacked`, the whole attack with its targets. Build it in the graph
    that has, or will get, the network's variables.

    Args:
        attacker: a class with PGDAttacker's parameters, which are given as scalar tensors. mode: of the classification;
            attack_mode, xla, loss_scale: of the attack. seed: a number or a scalar tensor.
    """

    def __init__(self, network: Network, image_size: int, *, mode: Mode, attack_mode: Mode, seed: Any = 0,
                 xla: bool = False, loss_scale: float = 1.0, attacker: Callable[..., Attacker] = PGDAttacker):
        with tf.name_scope('evaluation'):
            self.image = tf.placeholder(tf.float32, [None, image_size, image_size, 3], 'image')  # in [0, 255]
            self.label = tf.placeholder(tf.int32, [None], 'label')
            self.index = tf.placeholder(tf.int64, [None], 'index')
            self.num_iter = tf.placeholder(tf.int32, [], 'num-iter')  # of the whole attack
            self.steps = tf.placeholder(tf.int32, [], 'steps')  # of those, how many now
            self.epsilon = tf.placeholder(tf.float32, [], 'epsilon')
            self.step_size = tf.placeholder(tf.float32, [], 'step-size')
            self.attacker = attacker(self.num_iter, self.epsilon, self.step_size, num_classes=network.num_classes,
                                     seed=seed, xla=xla, loss_scale=loss_scale)
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
        # who replaces the loop itself may keep in it what a part of the attack would have to know
        if isinstance(made, PGDAttacker) and all(getattr(type(made), name) is getattr(PGDAttacker, name)
                                                 for name in ('attack', 'iterate', 'advance')):
            self.target = made.targets(self.label, self.index)
            self.start = made.start(self.clean, self.index)
            self.initial_state = list(made.initial_state(self.clean))
            self.state = [tf.placeholder(s.dtype, s.shape) for s in self.initial_state]
            self.towards = tf.placeholder(tf.int32, [None], 'towards')
            self.advanced, self.next_state = made.advance(self.current, self.state, self.clean, self.towards,
                                                          self.attack_logits, num_iter=self.steps)
            # a step that knows how many there will be is another one in a longer attack
            parts = [self.target, self.start, self.advanced] + self.next_state + self.initial_state
            self.shares_steps = not depends_on(parts, self.num_iter, but_for=getattr(made, 'alpha', made.step_size))
        if not self.shares_steps:
            self.attacked = made.attack(self.clean, self.label, self.attack_logits, self.index)
