"""A trained network as a Python object: logits, loss gradients and PGD on NumPy arrays. Needs neither Horovod nor MPI."""
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

import checkpoint
from adv_model import PGDAttacker, effective_step_size, scale_pixels, unscale_pixels
from runtime.hardware import has_gpu, session_config
from runtime.compat import tf, xla_compile
from nets import Network, find_network
from kernels.mode import native_mode


def load_classifier(path: str, arch: str = 'ResNet', depth: int = 50, *, image_size: int = 224,
                    data_format: Optional[str] = None, batch: int = 32) -> 'Classifier':
    """Load a checkpoint into the network that it is of.

    Args:
        path: an .npz file or a TF checkpoint. arch, depth: the network's name and layers in the zoo.
        image_size: height and width of the images, in pixels.
        data_format: 'NHWC' or 'NCHW'; by default what is native, NCHW on a GPU and NHWC on a CPU. A CPU computes NCHW
            through XLA, since TensorFlow has no kernels for it there.
        batch: how many images are computed at once; any number can be given to the methods.
    Raises:
        errors.InputError: no such network or checkpoint, or one that does not fit the other.
    """
    weights = checkpoint.read_checkpoint(path)
    find_network(arch, depth)
    network = find_network(arch, depth, checkpoint.num_classes(weights, path))
    return Classifier(network, checkpoint.fit_checkpoint(weights, network, path), image_size=image_size,
                      data_format=data_format, batch=batch)


class Classifier:
    """Made by `load_classifier`. Images are (N, image_size, image_size, 3), BGR, uint8 or float, in [0, 255]."""

    def __init__(self, network: Network, weights: Dict[str, np.ndarray], *, image_size: int = 224,
                 data_format: Optional[str] = None, batch: int = 32):
        self.network = network
        self.image_size = image_size
        self.batch = batch
        mode = native_mode(data_format)
        compiled = mode.data_format == 'NCHW' and not has_gpu()
        with tf.Graph().as_default() as graph:
            self._image = tf.placeholder(tf.float32, [None, image_size, image_size, 3])
            self._label = tf.placeholder(tf.int32, [None])
            self._index = tf.placeholder(tf.int64, [None])
            self._seed, self._steps = tf.placeholder(tf.int64, []), tf.placeholder(tf.int32, [])
            self._epsilon, self._step_size = tf.placeholder(tf.float32, []), tf.placeholder(tf.float32, [])
            self._noise = tf.placeholder(tf.bool, [])

            scaled = scale_pixels(self._image)
            self._logits = xla_compile(lambda x: network.logits(x, mode), scaled) if compiled else \
                network.logits(scaled, mode)
            attacker = PGDAttacker(self._steps, self._epsilon, self._step_size, num_classes=network.num_classes,
                                   seed=self._seed, xla=compiled)
            self._gradient = attacker.gradient(scaled, self._label, lambda x: network.logits(x, mode)) * (2.0 / 255)
            self._target = attacker.targets(self._label, self._index)
            start = tf.cond(self._noise, lambda: attacker.start(scaled, self._index), lambda: tf.identity(scaled))
            start.set_shape(scaled.shape)
            self._adversarial = unscale_pixels(attacker.iterate(
                start, scaled, self._target, lambda x: network.logits(x, mode), num_iter=self._steps))
        self._session = tf.Session(graph=graph, config=session_config())
        checkpoint.assign_weights(self._session, weights)
        graph.finalize()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) images in [0, 255] -> (N, classes) float32."""
        images = self._checked(images)
        return self._run(self._logits, len(images), {self._image: images}, [self.network.num_classes])

    def loss_gradient(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """d CE(f(x), label) / d x of each image, x in [0, 255]: float32 like `images`."""
        images = self._checked(images)
        labels = self._checked_labels(labels, len(images))
        return self._run(self._gradient, len(images), {self._image: images, self._label: labels}, images.shape[1:])

    def pgd(self, images: np.ndarray, labels: np.ndarray, targets: Optional[np.ndarray] = None, steps: int = 10,
            epsilon: float = 16., step_size: float = 1., start_from_noise: bool = True,
            seed: int = 0) -> Tuple[np.ndarray, np.ndarray]:
        """Targeted PGD, the paper's attack (Section 5.1).

        Args:
            images, labels: (N, S, S, 3) in [0, 255], (N,) integers. targets: (N,) integers; drawn from the wrong labels
                if None. What is random depends on `seed` and an image's position in `images`, not on `batch`.
            steps: 0 leaves the images as they are. epsilon, step_size: in pixels; the step used is
                max(step_size, epsilon / steps).
        Returns:
            adversarial images, float32 in [0, 255], within epsilon of `images`; (N,) int32 target labels.
        """
        images = self._checked(images)
        labels = self._checked_labels(labels, len(images))
        if not isinstance(steps, (int, np.integer)):
            raise ValueError('steps is a whole number, not %r' % (steps,))
        if not (steps >= 0 and 0 <= epsilon < np.inf and 0 <= step_size < np.inf):
            raise ValueError('steps, epsilon and step_size are numbers that are not negative')
        if not 0 <= seed < 2 ** 31:
            raise ValueError('seed is from 0 to 2**31 - 1')
        feed: Dict[Any, np.ndarray] = {self._image: images, self._label: labels,
                                       self._index: np.arange(len(images), dtype=np.int64)}
        constants = {self._seed: seed}
        if targets is None:
            if self.network.num_classes < 2:
                raise ValueError('a network of one class has no wrong label to aim at')
            targets = self._run(self._target, len(images), feed, [], constants, np.int32)
        else:
            targets = self._checked_labels(targets, len(images))
        if steps == 0:
            return images.copy(), targets
        feed[self._target] = targets
        constants.update({self._steps: steps, self._epsilon: epsilon, self._noise: start_from_noise,
                          self._step_size: effective_step_size(steps, epsilon, step_size)})
        adversarial = self._run(self._adversarial, len(images), feed, images.shape[1:], constants)
        # the way to [-1, 1] and back rounds; the budget is exact
        return np.clip(adversarial, np.maximum(images - epsilon, 0), np.minimum(images + epsilon, 255)), targets

    def close(self) -> None:
        """Free the session. The object is of no use afterwards."""
        self._session.close()

    def _run(self, tensor: tf.Tensor, count: int, feed: Dict[Any, np.ndarray], shape: List[int],
             constants: Optional[Dict[Any, Any]] = None, dtype: Any = np.float32) -> np.ndarray:
        out = np.empty([count] + list(shape), dtype)
        for i in range(0, count, self.batch):
            part = {key: value[i:i + self.batch] for key, value in feed.items()}
            out[i:i + self.batch] = self._session.run(tensor, {**part, **(constants or {})})
        return out

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError('images have the shape %s, not (N, %d, %d, 3)'
                             % (images.shape, self.image_size, self.image_size))
        images = images.astype(np.float32)
        if images.size and not (images.min() >= 0 and images.max() <= 255):
            raise ValueError('images are in [0, 255]; these go from %s to %s' % (images.min(), images.max()))
        return images

    def _checked_labels(self, labels: np.ndarray, count: int) -> np.ndarray:
        labels = np.asarray(labels)
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError('labels are %d integers, not %s of shape %s' % (count, labels.dtype, labels.shape))
        if count and not (labels.min() >= 0 and labels.max() < self.network.num_classes):
            raise ValueError('labels are in 0..%d' % (self.network.num_classes - 1))
        return labels.astype(np.int32)
