"""Attackers, and the tower that trains a network on what they make of its images (Section 5 of the paper).

Inside of a tower images are NHWC, BGR, float32 in [-1, 1]. Budgets are given in units of a pixel, of 255, as in the paper.
"""
from abc import ABC, abstractmethod
from typing import Callable, Optional, Tuple

from runtime.compat import tf, xla_compile  # before tensorpack
from tensorpack import ModelDesc
from tensorpack.models import l2_regularizer, regularize_cost
from tensorpack.tfutils.summary import add_moving_summary
from tensorpack.tfutils.tower import get_current_tower_context

from nets import Network
from kernels.mode import Mode

LABEL_SMOOTHING = 0.1
WEIGHT_DECAY = 1e-4
CLEAN_START_PROBABILITY = 0.2  # of a training batch: from the clean image instead of from noise (Section 5.1)

Logits = Callable[[tf.Tensor], tf.Tensor]


def scale_pixels(image: tf.Tensor) -> tf.Tensor:
    """[0, 255], any dtype -> [-1, 1], float32."""
    return tf.cast(image, tf.float32) * (2.0 / 255) - 1.0


def unscale_pixels(image: tf.Tensor) -> tf.Tensor:
    """The inverse of scale_pixels, float32."""
    return (image + 1.0) * (255.0 / 2)


class Attacker(ABC):
    """Makes adversarial images of a batch. Subclasses give `attack`.

    `memoryless` says of a class that it also has PGDAttacker's `targets`, `start` and `iterate`, and that a step depends
    on nothing but where it starts. An evaluation then reads off shorter attacks on a longer one's way. Subclasses don't
    inherit it.
    """
    memoryless = False

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

    def attack(self, image, label, logits, index=None):
        return image, -tf.ones_like(label)


class PGDAttacker(Attacker):
    """Targeted projected gradient descent in the L-infinity ball (Madry et al. 2018; Section 5.1 of the paper).

    Args:
        num_iter: steps, at least 1. epsilon, step_size: in pixels of 255; the step used is
            max(step_size, epsilon / num_iter), so that the ball's edge is in reach. Numbers or scalar tensors.
        num_classes: targets are drawn uniformly from the num_classes - 1 wrong labels.
        clean_start_probability: that a batch starts from the clean images instead of noise in the ball.
        seed: of targets and noise where `attack` is given indices.
        loss_scale: of the loss whose gradient is taken; float16 needs it against underflow. xla: compile the gradient.
    """

    memoryless = True

    def __init__(self, num_iter: int, epsilon: float, step_size: float, *, num_classes: int,
                 clean_start_probability: float = 0.0, seed: int = 0, loss_scale: float = 1.0, xla: bool = False):
        self.num_iter = num_iter
        self.epsilon = epsilon
        self.step_size = effective_step_size(num_iter, epsilon, step_size)
        self.num_classes = num_classes
        self.clean_start_probability = clean_start_probability
        self.seed = seed
        self.loss_scale = loss_scale
        self.xla = xla

    def attack(self, image, label, logits, index=None):
        target = self.targets(label, index)
        start = self.start(image, index)
        return self.iterate(start, image, target, logits, num_iter=self.num_iter), target

    def targets(self, label: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        """A wrong label for each image, uniform over all of them."""
        if index is None:
            shift = tf.random_uniform(tf.shape(label), 1, self.num_classes, tf.int32)
        else:
            shift = per_image_uniform(index, 2 * self.seed, [], 1, self.num_classes, tf.int32)
        return tf.floormod(label + shift, self.num_classes)

    def start(self, image: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Uniform noise in the ball, or now and then the clean batch."""
        radius = pixels(self.epsilon)
        if index is None:
            noise = tf.random_uniform(tf.shape(image), -radius, radius)
        else:
            noise = per_image_uniform(index, 2 * self.seed + 1, image.shape[1:].as_list(), -radius, radius, tf.float32)
        if self.clean_start_probability > 0:
            noise *= tf.cast(tf.random_uniform([]) >= self.clean_start_probability, tf.float32)
        return self.project(image + noise, image)

    def iterate(self, start: tf.Tensor, image: tf.Tensor, target: tf.Tensor, logits: Logits, *, num_iter) -> tf.Tensor:
        """`num_iter` (a number or a scalar tensor) steps from `start`, which may lie on an earlier trajectory."""
        def step(i, adversarial):
            gradient = self.gradient(adversarial, target, logits)
            return i + 1, self.move(adversarial, gradient, image)

        _, adversarial = tf.while_loop(lambda i, _: i < num_iter, step, [tf.constant(0), start],
                                       back_prop=False, parallel_iterations=1)
        return tf.stop_gradient(adversarial)

    def move(self, adversarial: tf.Tensor, direction: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """A step against the direction's sign. Where that is NaN the pixel becomes NaN: TensorFlow 1's sign of NaN is 0, and an
        attack that stood still would look like a robust network.
        """
        moved = self.project(adversarial - pixels(self.step_size) * tf.sign(direction), image)
        moved.set_shape(adversarial.shape)
        return tf.where(tf.is_nan(direction), direction, moved)

    def gradient(self, adversarial: tf.Tensor, target: tf.Tensor, logits: Logits) -> tf.Tensor:
        """Of the cross-entropy towards the target label, with respect to the image; up to a positive factor."""
        def loss_gradient(x, t):
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=t, logits=logits(x))
            return tf.gradients(tf.reduce_sum(loss) * self.loss_scale, x)[0]

        return xla_compile(loss_gradient, adversarial, target) if self.xla else loss_gradient(adversarial, target)

    def project(self, adversarial: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """To the ball around the image, and to valid pixels."""
        radius = pixels(self.epsilon)
        lower, upper = tf.maximum(image - radius, -1.0), tf.minimum(image + radius, 1.0)
        return tf.clip_by_value(adversarial, lower, upper)


def effective_step_size(num_iter, epsilon, step_size):
    """alpha = max(step_size, epsilon / num_iter): few steps must be long ones to reach the edge of the ball."""
    if any(tf.is_tensor(x) for x in (num_iter, epsilon, step_size)):
        return tf.maximum(step_size, epsilon / tf.cast(num_iter, tf.float32))
    return max(step_size, epsilon / num_iter)


def pixels(value):
    """A distance in pixels, of 255, on the [-1, 1] scale."""
    return value * (2.0 / 255)


def per_image_uniform(index: tf.Tensor, seed: int, shape, low, high, dtype) -> tf.Tensor:
    """(N,) + shape uniform draws, each image's by its own generator: the batch that it is in does not matter."""
    return tf.map_fn(lambda i: tf.random.stateless_uniform(shape, [seed, i], low, high, dtype),
                     tf.cast(index, tf.int64), dtype=dtype, back_prop=False)


def smoothed_loss(logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of a batch with smoothed labels, a scalar."""
    one_hot = tf.one_hot(label, int(logits.shape[1]))
    return tf.losses.softmax_cross_entropy(one_hot, logits, label_smoothing=LABEL_SMOOTHING, loss_collection=None)


def is_wrong(logits: tf.Tensor, label: tf.Tensor, k: int) -> tf.Tensor:
    """(N,) booleans: the label is not among the k largest logits. With logits that are not numbers: wrong."""
    return tf.logical_not(tf.nn.in_top_k(logits, label, min(k, int(logits.shape[1]))))


def most_likely(logits: tf.Tensor) -> tf.Tensor:
    """(N,) int32: the label of the largest logit; -1 where logits are not numbers."""
    finite = tf.reduce_all(tf.is_finite(logits), axis=1)
    return tf.where(finite, tf.argmax(logits, axis=1, output_type=tf.int32), -tf.ones([tf.shape(logits)[0]], tf.int32))


def is_target(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """(N,) booleans: the attack succeeded, the image is classified as its target label. Not where there is none, -1."""
    return tf.logical_and(tf.equal(most_likely(logits), target), target >= 0)


def adversarial_logits(network: Network, attacker: Attacker, image: tf.Tensor, label: tf.Tensor, *, attack_mode: Mode,
                       mode: Mode, index: Optional[tf.Tensor] = None) -> Tuple[tf.Tensor, tf.Tensor]:
    """Attack scaled images and classify the result: logits in `mode`, and target labels.

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
    """The tower: uint8 batch -> [-1, 1] -> attack -> logits -> smoothed loss, weight decay and metrics.

    In a tower that is not training the loss is left out and the attack's randomness is not tied to indices; evaluation
    has its own tower in evaluation.py, made of the same parts.
    """

    def __init__(self, network: Network, attacker: Attacker, image_size: int, *, mode: Mode, attack_mode: Mode):
        super().__init__()
        self.network = network
        self.attacker = attacker
        self.image_size = image_size
        self.mode = mode
        self.attack_mode = attack_mode

    def inputs(self):
        return [tf.TensorSpec([None, self.image_size, self.image_size, 3], tf.uint8, 'input'),
                tf.TensorSpec([None], tf.int32, 'label')]

    def build_graph(self, image, label):
        is_training = get_current_tower_context().is_training
        image = scale_pixels(image)
        logits, target = adversarial_logits(self.network, self.attacker, image, label, attack_mode=self.attack_mode,
                                            mode=self.mode._replace(training=is_training))
        wrong_1, wrong_5, success = [
            tf.reduce_mean(tf.cast(x, tf.float32), name=name) for name, x in [
                ('train-error-top1', is_wrong(logits, label, 1)), ('train-error-top5', is_wrong(logits, label, 5)),
                ('attack-success-rate', is_target(logits, target))]]
        if not is_training:
            return
        loss = tf.identity(smoothed_loss(logits, label), name='smoothed-loss')
        decay = regularize_cost('.*/W', l2_regularizer(WEIGHT_DECAY), name='l2_regularize_loss')
        cost = tf.add(loss, decay, name='cost')
        add_moving_summary(loss, decay, cost, wrong_1, wrong_5, success)
        return cost

    def optimizer(self):
        rate = tf.get_variable('learning_rate', initializer=0.1, trainable=False)
        tf.summary.scalar('learning_rate-summary', rate)
        return tf.train.MomentumOptimizer(rate, 0.9, use_nesterov=True)
