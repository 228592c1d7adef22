"""Folders of real photographs, cut from the two that scikit-learn brings along."""
import os

import cv2
import numpy as np


def photographs(count, seed=0):
    """Cut `count` pieces of 40 to 90 pixels a side from the photographs: a list of uint8 (height, width, 3) BGR."""
    from sklearn.datasets import load_sample_images
    rng = np.random.RandomState(seed)
    pieces = []
    for _ in range(count):
        photo = load_sample_images_once(load_sample_images)[rng.randint(2)]
        height, width = rng.randint(40, 91, 2)
        y, x = rng.randint(photo.shape[0] - height), rng.randint(photo.shape[1] - width)
        pieces.append(photo[y:y + height, x:x + width])
    return pieces


_loaded = []


def load_sample_images_once(load):
    if not _loaded:
        _loaded.append([image[:, :, ::-1] for image in load().images])
    return _loaded[0]


def write_split(folder, count, classes=10, seed=0):
    """Write `count` JPEGs as folder/<class>/<n>.jpg, classes named c0, c1, ... in turn."""
    for i, image in enumerate(photographs(count, seed)):
        target = os.path.join(str(folder), 'c%d' % (i % classes))
        os.makedirs(target, exist_ok=True)
        assert cv2.imwrite(os.path.join(target, '%03d.jpg' % i), image)
