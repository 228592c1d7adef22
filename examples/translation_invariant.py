"""An attacker of one's own: the translation-invariant attack (Dong et al. 2019, "Evading Defenses to Transferable
Adversarial Examples by Translation-Invariant Attacks").

    python main.py --eval ... --attack-iter 10 --attacker examples.translation_invariant:TranslationInvariantAttacker

It is PGDAttacker but for the direction of a step: the gradient, smoothed over neighbouring pixels. Among attacks with
such smooth changes more fool other networks too.
"""
from typing import List, Tuple

from runtime.compat import tf

from adv_model import PGDAttacker

KERNEL = 7  # height and width of the Gaussian that smooths
SIGMA = 3.0  # of a standard normal distribution, where the kernel ends


class TranslationInvariantAttacker(PGDAttacker):
    """TI-FGSM of several steps, with PGDAttacker's parameters."""

    def direction(self, gradient: tf.Tensor, state: List[tf.Tensor]) -> Tuple[tf.Tensor, List[tf.Tensor]]:
        weights = tf.exp(-tf.linspace(-SIGMA, SIGMA, KERNEL) ** 2 / 2)
        kernel = weights[:, tf.newaxis] * weights / tf.reduce_sum(weights) ** 2
        channels = tf.tile(kernel[:, :, tf.newaxis, tf.newaxis], [1, 1, 3, 1])
        return tf.nn.depthwise_conv2d(gradient, channels, [1, 1, 1, 1], 'SAME'), state
