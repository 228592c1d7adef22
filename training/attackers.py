"""Attackers that make training images by fewer steps than PGD, or for another loss than the labels'."""
from typing import Any, Optional, Tuple

from runtime.compat import tf, xla_compile

from attacks.pgd import Logits, PGDAttacker, gradient_to, pixels

# Zhang et al. (2019) begin beside the clean image, where the divergence's gradient is 0; of [0, 1]
TRADES_NOISE = 0.001


class FastAttacker(PGDAttacker):
    """Takes one step from uniform noise (Wong, Rice and Kolter 2020).

    Args:
        epsilon, step_size: in pixels of 255; the step used is step_size, whatever the budget.
        noise: None: uniform in the ball, and what the step reaches is projected into it. A number makes N-FGSM of it
            (de Jorge et al. 2022): uniform noise up to so many epsilons, and only pixels are clipped, to [0, 255].
        Others as of PGDAttacker.
    """

    def __init__(self, epsilon: float, step_size: float, *, noise: Optional[float] = None, goal: str = 'untargeted',
                 **others: Any):
        super().__init__(1, epsilon, step_size, goal=goal, **others)
        self.step_size = step_size
        self.noise = noise

    def start(self, image: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        if self.noise is None:
            return super().start(image, index)
        radius = pixels(self.epsilon) * self.noise
        return self.project(image + tf.random_uniform(tf.shape(image), -radius, radius), image)

    def project(self, adversarial: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        if self.noise is None:
            return super().project(adversarial, image)
        return tf.clip_by_value(adversarial, -1.0, 1.0)


class TradesAttacker(PGDAttacker):
    """Raises KL(clean || attacked), the divergence between what the network says of an image before and after, from a
    small normal noise (TRADES, Zhang et al. 2019). It knows no label, and has no target."""

    def __init__(self, num_iter: Any, epsilon: Any, step_size: Any, **others: Any):
        super().__init__(num_iter, epsilon, step_size, goal='untargeted', **others)

    def attack(self, image: tf.Tensor, label: tf.Tensor, logits: Logits,
               index: Optional[tf.Tensor] = None) -> Tuple[tf.Tensor, tf.Tensor]:
        target = self.aims(label)
        clean = tf.stop_gradient(logits(image))
        return self.iterate(self.start(image), image, target, logits, num_iter=self.num_iter, clean=clean), target

    def start(self, image: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        return image + 2 * TRADES_NOISE * tf.random_normal(tf.shape(image))

    def gradient(self, adversarial: tf.Tensor, target: tf.Tensor, logits: Logits,
                 label: Optional[tf.Tensor] = None, clean: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Return the gradient to the images of -KL, up to a positive factor. clean: the clean images' logits."""
        def loss_gradient(x: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
            return gradient_to(-tf.reduce_sum(divergence(clean, logits(x))) * self.loss_scale, x)

        return xla_compile(loss_gradient, adversarial, clean) if self.xla else loss_gradient(adversarial, clean)


def divergence(clean: tf.Tensor, attacked: tf.Tensor) -> tf.Tensor:
    """Return KL(clean || attacked), (N,), of the distributions that logits (N, classes) stand for."""
    of_clean = tf.nn.log_softmax(clean)
    return tf.reduce_sum(tf.exp(of_clean) * (of_clean - tf.nn.log_softmax(attacked)), axis=1)
