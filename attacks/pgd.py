"""Attackers: what an attack is, and the paper's, PGD in the L-infinity ball (Section 5).

Images are NHWC, BGR, float32 in [-1, 1]. Budgets are given in units of a pixel, of 255, as in the paper.

    attacker = PGDAttacker(10, 16., 1., num_classes=1000)
    adversarial, target = attacker.attack(images, labels, lambda x: network.logits(x, Mode()))
"""
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, List, Optional, Tuple

from runtime.compat import tf, xla_compile

from attacks import losses
from attacks.table import LOSSES, check_aim
from runtime.errors import InputError
from runtime.pixels import PIXEL, effective_step_size

Logits = Callable[[tf.Tensor], tf.Tensor]


def pixels(value: Any) -> Any:
    """Convert a distance in pixels, of 255, to the [-1, 1] scale."""
    return value * PIXEL


class Attacker(ABC):
    """Makes adversarial images of a batch. Subclasses give `attack`."""

    finds_step_size = False  # whether the step size that is asked for is of no matter

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
    """Projected gradient descent in the L-infinity ball (Madry et al. 2018; Section 5 of the paper).

    The paper's is targeted, by the cross-entropy, with epsilon 16 and steps of 1; with 10 steps these are 1.6, as
    effective_step_size has it. A subclass may replace the direction of a step (`initial_state`, `direction`), where the
    attack starts (`start`), or its targets.

    Args:
        num_iter: steps, at least 1. epsilon, step_size: in pixels of 255; the step used is
            max(step_size, epsilon / num_iter), so that the ball's edge is in reach. Numbers or scalar tensors.
        num_classes: targets are drawn uniformly from the num_classes - 1 wrong labels.
        clean_start_probability: that a batch starts from the clean images instead of noise in the ball.
        seed: of targets and noise where `attack` is given indices.
        loss_scale: of the loss whose gradient is taken; float16 needs it against underflow. xla: compile the gradient.
        loss: what the steps raise, a name of table.LOSSES. goal: 'targeted', or 'untargeted': away from the label, all
            target labels are -1.
    Raises:
        InputError: no such loss or goal, or it needs more classes.
    """

    uses_label = False  # of a subclass whose steps need the labels whatever the loss

    def __init__(self, num_iter: Any, epsilon: Any, step_size: Any, *, num_classes: int,
                 clean_start_probability: float = 0.0, seed: Any = 0, loss_scale: float = 1.0, xla: bool = False,
                 loss: str = 'ce', goal: str = 'targeted'):
        if (loss, goal) != ('ce', 'targeted'):
            check_aim(loss, goal, num_classes)
        self.loss = loss
        self.goal = goal
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
        target = self.aims(label, index)
        return self.iterate(self.start(image, index), image, target, logits, num_iter=self.num_iter,
                            **self.known(label)), target

    def known(self, label: tf.Tensor) -> Dict[str, tf.Tensor]:
        """Return what steps get beside the target, as keyword arguments: the label, where loss and goal need it.

        A subclass with an `iterate`, `advance` or `gradient` of its own takes it only where it does more than the
        paper's targeted attack.
        """
        needed = self.uses_label or self.goal == 'untargeted' or LOSSES[self.loss].needs_label
        return dict(label=label) if needed else {}

    def aims(self, label: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Return the target labels; of an untargeted attack, also one of a subclass with its own, -1 for each."""
        return -tf.ones_like(label) if self.goal == 'untargeted' else self.targets(label, index)

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

    def iterate(self, start: tf.Tensor, image: tf.Tensor, target: tf.Tensor, logits: Logits, *, num_iter: Any,
                **known: tf.Tensor) -> tf.Tensor:
        """Take `num_iter` (a number or a scalar tensor) steps from `start`, where the state is the initial one."""
        return self.advance(start, self.initial_state(image), image, target, logits, num_iter=num_iter, **known)[0]

    def advance(self, adversarial: tf.Tensor, state: List[tf.Tensor], image: tf.Tensor, target: tf.Tensor,
                logits: Logits, *, num_iter: Any, **known: tf.Tensor) -> Tuple[tf.Tensor, List[tf.Tensor]]:
        """Take `num_iter` steps from anywhere on a trajectory, with the state there; return where they end, and the
        state. known: what `known` returned."""
        def step(i: tf.Tensor, x: tf.Tensor, *state: tf.Tensor) -> List[tf.Tensor]:
            direction, after = self.direction(self.gradient(x, target, logits, **known), list(state))
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

    def gradient(self, adversarial: tf.Tensor, target: tf.Tensor, logits: Logits,
                 label: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Return the gradient to the images, (N, H, W, 3), of what steps lower, up to a positive factor.

        That is CE(f(x), target), or the loss of another name, times -1. label: where loss and goal need it.
        """
        def loss_gradient(x: tf.Tensor, *aim: tf.Tensor) -> tf.Tensor:
            return gradient_to(-tf.reduce_sum(self.raised(logits(x), *aim)) * self.loss_scale, x)

        inputs = [adversarial, target] if label is None else [adversarial, target, label]
        return xla_compile(loss_gradient, *inputs) if self.xla else loss_gradient(*inputs)

    def raised(self, logits: tf.Tensor, target: tf.Tensor, label: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Return the loss, (N,), that steps raise."""
        function = getattr(losses, LOSSES[self.loss].function)
        return function(logits, label, target if self.goal == 'targeted' else None)

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


def other_targets(label: tf.Tensor, target: tf.Tensor, index: tf.Tensor, seed: Any, count: int,
                  num_classes: int) -> tf.Tensor:
    """Draw (N, count) int32 wrong labels, of each image distinct and none its target, uniform over all such choices.

    They follow from seed and index. The generator's seeds below 0 are those that targets and noise don't use.
    """
    keys = per_image_uniform(index, -1 - seed, [num_classes - 1], 0.0, 1.0, tf.float32)
    taken = tf.one_hot(tf.floormod(target - label, num_classes) - 1, num_classes - 1)
    shifts = tf.nn.top_k(keys - 2 * taken, count).indices + 1
    return tf.floormod(label[:, tf.newaxis] + shifts, num_classes)
