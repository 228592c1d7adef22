"""An attacker of one's own: momentum iterative FGSM (Dong et al. 2018, "Boosting Adversarial Attacks with Momentum").

    python main.py --eval ... --attack-iter 10 --attacker examples.momentum_attacker:MomentumAttacker

It is PGDAttacker but for the direction of a step: the sign of a decaying sum of the gradients so far, each scaled to an L1
norm of 1, in place of the last gradient's sign. The published attack starts from the clean image, and so does this one.
"""
from adv_model import PGDAttacker
from runtime.compat import tf

DECAY = 1.0  # of the sum, per step: mu in the article


class MomentumAttacker(PGDAttacker):
    """Targeted MI-FGSM. Not `memoryless`: a step depends on the gradients before it, so every strength runs by itself."""

    def start(self, image, index=None):
        return image

    def iterate(self, start, image, target, logits, *, num_iter):
        def step(i, adversarial, momentum):
            gradient = self.gradient(adversarial, target, logits)
            norm = tf.reduce_sum(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
            momentum = DECAY * momentum + gradient / tf.maximum(norm, 1e-30)
            momentum.set_shape(adversarial.shape)
            return i + 1, self.move(adversarial, momentum, image), momentum

        _, adversarial, _ = tf.while_loop(lambda i, *_: i < num_iter, step,
                                          [tf.constant(0), start, tf.zeros_like(start)],
                                          back_prop=False, parallel_iterations=1)
        return tf.stop_gradient(adversarial)
