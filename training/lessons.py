"""What methods learn from a batch where that is more than the loss of attacked images, adv_model's Lesson."""
from typing import TYPE_CHECKING

from runtime.compat import tf  # before tensorpack

from tensorpack.tfutils.summary import add_moving_summary

from adv_model import Learnt, Lesson, attacked_images, smoothed_loss
from kernels.mode import Mode
from training.attackers import divergence

if TYPE_CHECKING:
    from adv_model import AdversarialModel
    from training.replays import Replays


class TradesLesson(Lesson):
    """Teaches to classify clean images, and attacked ones as those: clean loss + beta KL(clean || attacked).

    The clean loss is this project's, with smoothed labels. Clean and attacked images are batches of their own to
    BatchNorm, and the statistics of both are tracked, the clean ones' first.
    """

    def __init__(self, beta: float):
        self.beta = beta

    def learn(self, model: 'AdversarialModel', image: tf.Tensor, label: tf.Tensor, mode: Mode) -> Learnt:
        adversarial, target = attacked_images(model.network, model.attacker, image, label, model.attack_mode)
        before = list(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        with tf.control_dependencies([adversarial]):  # the attack sees the statistics of before the step
            clean = model.network.logits(tf.identity(image), mode)
        tracked = [op for op in tf.get_collection(tf.GraphKeys.UPDATE_OPS) if op not in before]
        with tf.control_dependencies(tracked):  # two updates at the same time could lose one
            logits = model.network.logits(tf.identity(adversarial), mode)
        of_clean = tf.identity(smoothed_loss(clean, label), name='clean-loss')
        between = tf.reduce_mean(divergence(clean, logits), name='divergence')
        add_moving_summary(of_clean, between)
        return Learnt(logits, target, of_clean + self.beta * between)


class FreeLesson(Lesson):
    """Teaches attacked images whose perturbation each backward pass moves on: see Replays."""

    def __init__(self, replays: 'Replays'):
        self.replays = replays

    def learn(self, model: 'AdversarialModel', image: tf.Tensor, label: tf.Tensor, mode: Mode) -> Learnt:
        with tf.name_scope('attack'):
            adversarial = tf.identity(self.replays.perturbed(image), name='adversarial')
        logits = model.network.logits(adversarial, mode)
        return Learnt(logits, -tf.ones_like(label), smoothed_loss(logits, label))
