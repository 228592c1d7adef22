"""Momentum iterative FGSM (Dong et al. 2018, "Boosting Adversarial Attacks with Momentum").

It is PGDAttacker but for the direction of a step: the sign of a decaying sum of the gradients so far, each scaled to an
L1 norm of 1, in place of the last gradient's sign. The published attack starts from the clean image, and so does this
one.
"""
from typing import List, Optional, Tuple

from runtime.compat import tf

from attacks.pgd import PGDAttacker

DECAY = 1.0  # of the sum, per step: mu in the article


class MomentumAttacker(PGDAttacker):
    """MI-FGSM, with PGDAttacker's parameters. Every start is the same: a restart changes nothing."""

    def start(self, image: tf.Tensor, index: Optional[tf.Tensor] = None) -> tf.Tensor:
        return image

    def initial_state(self, image: tf.Tensor) -> List[tf.Tensor]:
        return [tf.zeros_like(image)]

    def direction(self, gradient: tf.Tensor, state: List[tf.Tensor]) -> Tuple[tf.Tensor, List[tf.Tensor]]:
        norm = tf.reduce_sum(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
        momentum = DECAY * state[0] + gradient / tf.maximum(norm, 1e-30)
        return momentum, [momentum]
