"""Losses of an attack, which it raises: functions of logits, labels and targets, that table.py gives names.

Each takes (N, classes) float32 logits, (N,) integer labels and (N,) targets, or None for an untargeted attack, and
returns (N,). A targeted attack needs labels for difference_of_logits_ratio alone. The loss and its gradient are NaN
where logits are no finite numbers: an attack that went on would look like one that fails. Cross-entropy alone takes
-infinity of other classes, which have no probability then.
"""
from typing import Optional

from runtime.compat import tf

SMALL = 1e-12  # what a ratio's denominator is above 0 by, as published


def cross_entropy(logits: tf.Tensor, label: Optional[tf.Tensor], target: Optional[tf.Tensor]) -> tf.Tensor:
    """Return the label's cross-entropy; of a targeted attack the target's, times -1."""
    if target is not None:
        return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=logits)


def margin(logits: tf.Tensor, label: Optional[tf.Tensor], target: Optional[tf.Tensor]) -> tf.Tensor:
    """Return by how much the largest other logit is above the label's; targeted: the target's above the largest
    other."""
    if target is not None:
        return nan_unless_finite(logits, logit_of(logits, target) - largest_other(logits, target))
    return nan_unless_finite(logits, largest_other(logits, label) - logit_of(logits, label))


def difference_of_logits_ratio(logits: tf.Tensor, label: tf.Tensor, target: Optional[tf.Tensor]) -> tf.Tensor:
    """Return the DLR (Croce and Hein 2020), which stays the same when logits are scaled: a margin, over the distance of
    large logits, z1 - z3; targeted: of target and label, over z1 - (z3 + z4) / 2."""
    if target is not None:
        z1, _, z3, z4 = largest(logits, 4)
        ratio = (logit_of(logits, target) - logit_of(logits, label)) / (z1 - (z3 + z4) / 2 + SMALL)
    else:
        z1, _, z3 = largest(logits, 3)
        ratio = (largest_other(logits, label) - logit_of(logits, label)) / (z1 - z3 + SMALL)
    return nan_unless_finite(logits, ratio)


def logit_of(logits: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Return the logit, (N,), of a class for each image."""
    return tf.reduce_sum(logits * tf.one_hot(which, int(logits.shape[1]), dtype=logits.dtype), axis=1)


def largest_other(logits: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Return the largest logit, (N,), of all classes but one for each image. Of equal ones the first is
    differentiated."""
    excluded = tf.one_hot(which, int(logits.shape[1]), on_value=True, off_value=False, dtype=tf.bool)
    others = tf.where(excluded, tf.fill(tf.shape(logits), logits.dtype.min), logits)
    return logit_of(logits, tf.argmax(others, axis=1, output_type=tf.int32))


def largest(logits: tf.Tensor, k: int) -> list:
    """Return the k largest logits, each (N,), in descending order."""
    places = tf.nn.top_k(tf.stop_gradient(logits), k).indices
    return [logit_of(logits, places[:, i]) for i in range(k)]


def nan_unless_finite(logits: tf.Tensor, loss: tf.Tensor) -> tf.Tensor:
    """Make NaN of the loss of an image, and of its gradient, where a logit is no finite number."""
    finite = tf.reduce_all(tf.is_finite(logits), axis=1)
    return loss * tf.where(finite, tf.ones_like(loss), tf.fill(tf.shape(loss), float('nan')))


def most_likely(logits: tf.Tensor) -> tf.Tensor:
    """Return the label of the largest logit, (N,) int32; -1 where logits are not numbers."""
    finite = tf.reduce_all(tf.is_finite(logits), axis=1)
    return tf.where(finite, tf.argmax(logits, axis=1, output_type=tf.int32), -tf.ones([tf.shape(logits)[0]], tf.int32))
