"""Units of an attack: pixels of 255, the [-1, 1] scale of networks' images, and the step size that a budget asks
for."""
from typing import Any, Callable

PIXEL = 2.0 / 255  # a pixel's distance, one of 255, on the [-1, 1] scale


def unscale_pixels(image: Any) -> Any:
    """Map [-1, 1] to [0, 255]: a tensor or an array of floats."""
    return (image + 1.0) * (255.0 / 2)


def effective_step_size(num_iter: Any, epsilon: Any, step_size: Any, *, maximum: Callable = max) -> Any:
    """Return alpha = max(step_size, epsilon / num_iter): few steps must be long ones to reach the edge of the ball.

    Section 5 of the paper: 1 of 255, and 1.6 with 10 steps at epsilon 16. Numbers, or with tf.maximum tensors of
    floats.
    """
    return maximum(step_size, epsilon / num_iter)
