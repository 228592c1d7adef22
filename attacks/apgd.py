"""APGD, Auto-PGD (Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", Algorithm 1): PGD with momentum, whose step size of each image follows from how its loss goes.

The step is 2 epsilon at first. At checkpoints, that lie closer together towards the end, it is halved for an image
where less than 3/4 of the steps since the checkpoint before raised its loss, or where neither its step size nor its
best loss changed since then; it goes on from its best point.

Where the article and the authors' code differ this is the article: a checkpoint comes after ceil(p N) of N steps, the
start of an attack is one (so a best loss that has not changed since halves the first step too), exactly 3/4 of the
steps is enough, and after a return the next step is compared with the point that it started from. An attack starts
from PGD's noise, uniform in the ball; theirs is stretched until one pixel is at the ball's edge, which of thousands of
pixels one nearly is anyway.
"""
from typing import Any, List, NamedTuple, Optional, Tuple

from runtime.compat import tf, xla_compile

from attacks.losses import most_likely
from attacks.pgd import Logits, PGDAttacker, gradient_to, pixels

CHECKPOINTS = (0, 22, 41, 57, 70, 80, 87, 93, 99)  # in percent of the steps: p, with p + max(p - p before - 3, 6) next
ENOUGH = 0.75  # of the steps since the last checkpoint
INERTIA = 0.75  # of the new step; the rest is of the one before

# What was found of an image: no point that is misclassified, such a point, or one that is taken for the target
NOTHING, WRONG, TARGET = 0, 1, 2


class Climb(NamedTuple):
    """Where an attack stands: images, (N, H, W, 3) float32, and what is one number each, (N,)."""
    x: tf.Tensor  # the point that comes next
    before: tf.Tensor  # the one before it
    loss_before: tf.Tensor
    best: tf.Tensor  # the point of the best loss, with its gradient and loss
    best_gradient: tf.Tensor
    best_loss: tf.Tensor
    first: tf.Tensor  # the first point of the most that was `found`
    found: tf.Tensor
    broken: tf.Tensor  # a loss or a gradient was no number
    eta: tf.Tensor  # the step size, in [-1, 1]
    raised: tf.Tensor  # since the last checkpoint: how many steps raised the loss
    halved: tf.Tensor  # there: whether the step size was halved, and the best loss
    loss_there: tf.Tensor
    at_checkpoint: tf.Tensor  # best losses, (N, checkpoints)


class APGDAttacker(PGDAttacker):
    """APGD, with PGDAttacker's parameters, of which step_size has no effect.

    Of each image the attack's result is the first point that the network takes for the target; else the first that is
    misclassified, which is what an untargeted attack looks for; else the point of the best loss. It is NaN where a loss
    or a gradient was no number before the goal was reached: an attack that stands still would look like a robust
    network. The network is computed forwards and backwards once a step, and forwards once more.
    """

    uses_label = True
    finds_step_size = True

    def iterate(self, start: tf.Tensor, image: tf.Tensor, target: tf.Tensor, logits: Logits, *, num_iter: Any,
                **known: tf.Tensor) -> tf.Tensor:
        return self.climb(start, image, target, logits, num_iter=num_iter, **known)[0]

    def climb(self, start: tf.Tensor, image: tf.Tensor, target: tf.Tensor, logits: Logits, *, num_iter: Any,
              label: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
        """Attack a batch; return adversarial images, and the best losses after each of CHECKPOINTS and at the end, (N,
        checkpoints + 1)."""
        checkpoints = -tf.floordiv(-tf.constant(CHECKPOINTS) * num_iter, 100)  # ceil

        def step(k: tf.Tensor, last: tf.Tensor, *variables: tf.Tensor) -> List[tf.Tensor]:
            at = Climb(*variables)
            loss, output, gradient = self.evaluate(at.x, target, label, logits)
            at = self.judged(at, target, label, loss, output, gradient)
            at = at._replace(raised=at.raised + tf.cast(loss > at.loss_before, tf.int32))
            is_due = tf.reduce_any(tf.equal(checkpoints, k))
            at, loss, gradient = checked(at, loss, gradient, tf.equal(checkpoints, k), k - last)
            inertia = tf.where(tf.equal(k, 0), 1.0, INERTIA)
            z = self.project(at.x + at.eta[:, None, None, None] * tf.sign(gradient), image)
            x = self.project(at.x + inertia * (z - at.x) + (1 - inertia) * (at.x - at.before), image)
            at = at._replace(x=x, before=at.x, loss_before=loss)
            for new, old in zip(at, variables):
                new.set_shape(old.shape)
            return [k + 1, tf.where(is_due, k, last)] + list(at)

        _, _, *variables = tf.while_loop(lambda k, *_: k < num_iter, step,
                                         [tf.constant(0), tf.constant(0)] + list(self.beginning(start)),
                                         back_prop=False, parallel_iterations=1)
        end = Climb(*variables)
        loss, output = self.evaluate(end.x, target, label, logits, with_gradient=False)
        end = self.judged(end, target, label, loss, output)
        goal = TARGET if self.goal == 'targeted' else WRONG
        result = tf.where(end.found > NOTHING, end.first, end.best)
        result = tf.where(tf.logical_and(end.broken, end.found < goal), tf.fill(tf.shape(result), float('nan')), result)
        losses = tf.concat([recorded(end, tf.equal(checkpoints, num_iter)), end.best_loss[:, None]], axis=1)
        return tf.stop_gradient(result), tf.stop_gradient(losses)

    def beginning(self, start: tf.Tensor) -> Climb:
        none = tf.zeros_like(start[:, 0, 0, 0])
        return Climb(x=start, before=start, loss_before=none + float('inf'), best=start,
                     best_gradient=tf.zeros_like(start), best_loss=none - float('inf'), first=start,
                     found=tf.zeros_like(none, tf.int32), broken=tf.zeros_like(none, tf.bool),
                     eta=none + 2 * pixels(self.epsilon), raised=tf.zeros_like(none, tf.int32),
                     halved=tf.zeros_like(none, tf.bool), loss_there=none + float('nan'),
                     at_checkpoint=tf.tile(none[:, None], [1, len(CHECKPOINTS)]))

    def evaluate(self, x: tf.Tensor, target: tf.Tensor, label: tf.Tensor, logits: Logits,
                 with_gradient: bool = True) -> List[tf.Tensor]:
        """Return the loss, (N,), logits, (N, classes), and the loss's gradient, like x, up to a positive factor."""
        def compute(x: tf.Tensor, target: tf.Tensor, label: tf.Tensor) -> List[tf.Tensor]:
            output = logits(x)
            loss = self.raised(output, target, label)
            gradient = [gradient_to(tf.reduce_sum(loss) * self.loss_scale, x)] if with_gradient else []
            return [loss, output] + gradient

        return xla_compile(compute, x, target, label) if self.xla else compute(x, target, label)

    def judged(self, at: Climb, target: tf.Tensor, label: tf.Tensor, loss: tf.Tensor, output: tf.Tensor,
               gradient: Optional[tf.Tensor] = None) -> Climb:
        """Return what is known after a point was evaluated: the best one, and what was found."""
        prediction = most_likely(output)
        found = tf.cast(tf.not_equal(prediction, label), tf.int32) * WRONG
        if self.goal == 'targeted':
            found = tf.where(tf.equal(prediction, target), tf.fill(tf.shape(found), TARGET), found)
        broken = tf.logical_or(prediction < 0, tf.is_nan(loss))
        found = tf.where(broken, tf.zeros_like(found), found)
        better = loss > at.best_loss
        if gradient is not None:
            broken = tf.logical_or(broken, tf.reduce_any(tf.is_nan(gradient), axis=[1, 2, 3]))
            at = at._replace(best_gradient=tf.where(better, gradient, at.best_gradient))
        return at._replace(best=tf.where(better, at.x, at.best), best_loss=tf.where(better, loss, at.best_loss),
                           first=tf.where(found > at.found, at.x, at.first), found=tf.maximum(found, at.found),
                           broken=tf.logical_or(broken, at.broken))


def checked(at: Climb, loss: tf.Tensor, gradient: tf.Tensor, now: tf.Tensor,
            steps: tf.Tensor) -> Tuple[Climb, tf.Tensor, tf.Tensor]:
    """Return where the next step starts, with its loss and gradient, and all else that changes at a checkpoint.

    now: (checkpoints,), which of them it is time for. steps: since the last one.
    """
    is_due = tf.logical_and(tf.reduce_any(now), tf.ones_like(at.halved))  # of each image, (N,)
    few = tf.cast(at.raised, tf.float32) < ENOUGH * tf.cast(steps, tf.float32)
    stuck = tf.logical_and(tf.logical_not(at.halved), tf.equal(at.best_loss, at.loss_there))
    halve = tf.logical_and(is_due, tf.logical_or(few, stuck))
    after = at._replace(
        x=tf.where(halve, at.best, at.x), eta=tf.where(halve, at.eta / 2, at.eta),
        raised=tf.where(is_due, tf.zeros_like(at.raised), at.raised), halved=tf.where(is_due, halve, at.halved),
        loss_there=tf.where(is_due, at.best_loss, at.loss_there),
        at_checkpoint=recorded(at, now))
    return after, tf.where(halve, at.best_loss, loss), tf.where(halve, at.best_gradient, gradient)


def recorded(at: Climb, now: tf.Tensor) -> tf.Tensor:
    """Return `at_checkpoint` with the best losses at those, (checkpoints,), that it is time for."""
    every = tf.zeros_like(at.at_checkpoint)
    return tf.where(tf.logical_and(now[None], tf.equal(every, 0)), every + at.best_loss[:, None], at.at_checkpoint)
