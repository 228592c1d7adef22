"""Units of an attack: pixels of 255, the [-1, 1] scale of networks' images, and the step size that a budget asks
for."""
from typing import Any, Callable, List, Sequence

import numpy as np

PIXEL = 2.0 / 255  # a pixel's distance, one of 255, on the [-1, 1] scale
MISTAKEN = 2.1  # pixels of [0, 1], or of [0, 2] before 1 is taken off, and what resizing adds to the largest of them
LARGEST_IMAGE = 8192  # height and width; of larger ones a network's features have more elements than TensorFlow counts
# What torchvision's networks subtract from RGB images in [0, 1], and divide them by; a checkpoint has its own
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_STEP = 0.1  # in pixels; 8/255 of [0, 1], taken for pixels, is below it, and no step that people use is


def unscale_pixels(image: Any) -> Any:
    """Map [-1, 1] to [0, 255]: a tensor or an array of floats."""
    return (image + 1.0) * (255.0 / 2)


def effective_step_size(num_iter: Any, epsilon: Any, step_size: Any, *, maximum: Callable = max) -> Any:
    """Return alpha = max(step_size, epsilon / num_iter): few steps must be long ones to reach the edge of the ball.

    Section 5 of the paper: 1 of 255, and 1.6 with 10 steps at epsilon 16. Numbers, or with tf.maximum tensors of
    floats.
    """
    return maximum(step_size, epsilon / num_iter)


def mistaken_attack(epsilons: Sequence[float], step_size: float) -> List[str]:
    """Say which budgets and step size can hardly be meant in pixels of 255; an attack with them proves nothing.

    Such a mistake makes any network look robust.
    """
    said = ['epsilon %g is below one pixel: budgets are in pixels, of 255. %g of [0, 1] is %g pixels'
            % (epsilon, epsilon, round(255 * epsilon, 2)) for epsilon in epsilons if 0 < epsilon < 1]
    said += ['epsilon %g is more than the whole range of a pixel, 255: budgets are in pixels, of 255, and this one '
             'limits nothing' % epsilon for epsilon in epsilons if epsilon > 255]
    if 0 < step_size < SMALLEST_STEP:
        said.append('step size %g is a small part of a pixel: steps are in pixels, of 255. %g of [0, 1] is %g pixels'
                    % (step_size, step_size, round(255 * step_size, 2)))
    # where the budget is below the usual step, of 1, that is said of the budget
    said += ['step size %g is above the budget, epsilon %g: both are in pixels, of 255, and every step goes from edge '
             'to edge' % (step_size, epsilon) for epsilon in epsilons if step_size > max(epsilon, 1) and epsilon > 0]
    return said


def mistaken_images(images: np.ndarray) -> List[str]:
    """Say where images of floats can hardly be meant in [0, 255]: they end at 1 or 2. Black ones, of 0 alone, are
    fine."""
    if np.issubdtype(images.dtype, np.floating) and images.size and 0 < images.max() <= MISTAKEN:
        return ['the largest of all pixels is %g: images are in [0, 255], and to the network these are black. '
                'Multiply images in [0, 1] by 255, those in [0, 2] by 127.5' % images.max()]
    return []
