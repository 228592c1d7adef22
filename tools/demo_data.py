"""The demonstration's images: real handwritten digits that each also carry a faint tint of their class.

The construction of "Robustness May Be at Odds with Accuracy" (Tsipras et al. 2019): one feature that is robust but not
perfect, the digit's shape, and one that is perfect but not robust, a tint of a few units of 255. A tint survives the
crops and the colour jitter of training, which a pattern in space would not.
"""
import os
from typing import Tuple

import cv2
import numpy as np

SIZE = 32
TINT = 4.0  # the largest change of a colour channel, in pixels of 255; the attack's budget is 8
CONTRAST = 205.0  # between paper and ink; more would leave no room for the tint when training jitters the colours
NOISE = 4.0  # standard deviation of each pixel


def tints(num_classes: int) -> np.ndarray:
    """Return a tint for each class, (num_classes, 3) BGR, to be added to pixels.

    The hues lie evenly around the colour circle. Brightness stays; no channel changes by more than TINT.
    """
    angle = 2 * np.pi * np.arange(num_classes) / num_classes
    across = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # orthonormal, both orthogonal to grey
    tint = np.stack([np.cos(angle), np.sin(angle)], axis=1).dot(across)
    return tint * (TINT / np.abs(tint).max())


def render(digit: np.ndarray, label: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw a digit, (8, 8) of ink in [0, 16], as (SIZE, SIZE, 3) uint8 BGR with the tint of its class."""
    ink = cv2.resize(digit / 16.0, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    grey = 127.5 + CONTRAST * (np.clip(ink, 0, 1) - 0.5)
    image = grey[:, :, None] + tints(10)[label] + rng.normal(0, NOISE, (SIZE, SIZE, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_digits(directory: str) -> Tuple[int, int]:
    """Write train/<digit>/*.png and val/<digit>/*.png, a tenth of the digits for validation; returns both counts."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    rng = np.random.RandomState(0)
    counts = {'train': 0, 'val': 0}
    for i, (digit, label) in enumerate(zip(digits.images, digits.target)):
        split = 'val' if i % 10 == 0 else 'train'
        folder = os.path.join(directory, split, str(label))
        os.makedirs(folder, exist_ok=True)
        cv2.imwrite(os.path.join(folder, '%04d.png' % i), render(digit, label, rng))
        counts[split] += 1
    return counts['train'], counts['val']


def tint_accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images, (N, SIZE, SIZE, 3), whose class the tint alone tells.

    It tells the class whose tint is nearest to the image's mean colour.
    """
    mean = images.reshape(len(images), -1, 3).mean(axis=1)
    mean -= mean.mean(axis=1, keepdims=True)
    distance = np.linalg.norm(mean[:, None] - tints(10)[None], axis=2)
    return float((distance.argmin(axis=1) == labels).mean())


def read_split(directory: str) -> Tuple[np.ndarray, np.ndarray]:
    """Read all images of a split, (N, SIZE, SIZE, 3) uint8 BGR, and their labels, (N,) int, in sorted order."""
    names = sorted((label, name) for label in os.listdir(directory)
                   for name in os.listdir(os.path.join(directory, label)))
    images = [cv2.imread(os.path.join(directory, label, name)) for label, name in names]
    return np.stack(images), np.array([int(label) for label, _ in names])
