"""A trained network as a Python object: logits, loss gradients and attacks on NumPy arrays. Needs neither Horovod nor
MPI.

    clf = load_classifier('R152-Denoise.npz', arch='ResNetDenoise', depth=152)
    adversarial, targets = clf.pgd(images, labels, steps=100)
    predictions = clf.logits(adversarial).argmax(axis=1)
"""
import logging
import os
from typing import Any, Dict, Optional, Sequence, Set, Tuple

from runtime.compat import seed_where_deterministic, tf, xla_compile

import numpy as np

import checkpoint
import fitting
from adv_model import AttackTower, PGDAttacker, gradient_to
from attacks.table import address_of
from kernels.mode import native_mode
from kernels.prepared import prepared_weights
from nets import DTYPES, Network, find_network
from runtime.arguments import check_sizes, checked_cotangents, checked_images, checked_indices, checked_labels
from runtime.errors import InputError
from runtime.hardware import has_gpu, session_config, warn_of_cost
from runtime.own_code import load_code
from runtime.pixels import PIXEL, mistaken_attack, mistaken_images, unscale_pixels

log = logging.getLogger(__name__)

CLOSED = 'this classifier is closed: load it again'


def load_classifier(path: str, arch: str = 'ResNet', depth: Optional[int] = None, *, image_size: int = 224,
                    data_format: Optional[str] = None, batch: int = 32, dtype: str = 'float32',
                    denoise: Optional[str] = None, denoise_where: Optional[str] = None,
                    denoise_block: Optional[str] = None, weights: str = 'raw') -> 'Classifier':
    """Load a checkpoint into the network that it is of.

    Args:
        path: an .npz file or a TF checkpoint. arch, depth: the network's name and layers in the zoo, by default 50;
            torchvision's and one's own networks ('module:function') have no depth.
        image_size: height and width of the images, in pixels.
        data_format: 'NHWC' or 'NCHW'; by default what is native, NCHW on a GPU and NHWC on a CPU. A CPU computes NCHW
            through XLA, since TensorFlow has no kernels for it there.
        batch: how many images are computed at once; any number can be given to the methods.
        dtype: what the network is computed in, 'float32' or 'bfloat16', gradients and attacks too; what goes in and
            comes out is float32 all the same.
        denoise, denoise_where, denoise_block: of the denoising blocks of an architecture that has some, as main.py's
            flags; by default as the architecture has them.
        weights: 'raw', or 'ema': their averages, which a training with --ema keeps.
    Raises:
        runtime.errors.InputError, a ValueError: no such network or checkpoint, one that does not fit the other, or
            sizes that are no such numbers.
        ValueError: another data_format or dtype.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError('the checkpoint is the name of a file, not %r' % (path,))
    path = os.fspath(path)
    check_sizes(image_size, batch)
    check_dtype(dtype)
    if weights not in checkpoint.WEIGHTS:
        raise InputError('weights are %s, not %r' % (' or '.join(checkpoint.WEIGHTS), weights))
    network = find_network(arch, depth, denoise=denoise, denoise_where=denoise_where,
                           denoise_block=denoise_block)._replace(image_size=image_size)
    values = checkpoint.read_checkpoint(path, weights)
    network = network._replace(num_classes=fitting.num_classes(values, path, network))
    values = fitting.fit_checkpoint(values, network, path)
    for mistake in fitting.mistaken_denoising(network, path):
        log.warning('%s', mistake)
    warn_of_cost(dtype, data_format == 'NCHW', what='classification')
    return Classifier(network, values, image_size=image_size, data_format=data_format, batch=batch, dtype=dtype)


def check_dtype(dtype: str) -> None:
    """Raise ValueError for what a network can't be computed in."""
    if dtype not in DTYPES:
        raise ValueError('dtype is %s, not %r%s' % (' or '.join(DTYPES), dtype,
                                                    ', for which CPUs have no kernels' * (dtype == 'float16')))


class Classifier:
    """Made by `load_classifier`. Images are (N, image_size, image_size, 3), BGR, uint8 or float, in [0, 255]."""

    def __init__(self, network: Network, weights: checkpoint.Weights, *, image_size: int = 224,
                 data_format: Optional[str] = None, batch: int = 32, dtype: str = 'float32'):
        check_dtype(dtype)
        self.network = network
        self.image_size = image_size
        self.batch = batch
        self._said: Set[str] = set()
        self._closed = False
        mode = native_mode(data_format)._replace(dtype=tf.as_dtype(dtype))
        xla = mode.data_format == 'NCHW' and not has_gpu()

        def product(x: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            return gradient_to(tower.attack_logits(x), x, v)
        self._how: Dict[str, Any] = dict(mode=mode, attack_mode=mode, xla=xla)
        self._towers: Dict[Tuple[str, str, str], AttackTower] = {}  # by attacker, loss and goal, made when asked for
        self._graph = tf.Graph()
        with self._graph.as_default():
            seed_where_deterministic(0)
            self._tower = tower = self._tower_of('pgd', 'ce', 'targeted')
            assert isinstance(tower.attacker, PGDAttacker)
            self._gradient = PIXEL * tower.attacker.gradient(tower.clean, tower.label, tower.attack_logits)
            self._cotangent = tf.placeholder(tf.float32, [None, network.num_classes])
            self._vjp = PIXEL * (xla_compile(product, tower.clean, self._cotangent) if xla else
                                 gradient_to(tower.logits, tower.current, self._cotangent))
        self._session = tf.Session(graph=self._graph, config=session_config())
        checkpoint.assign_weights(self._session, weights)
        self._prepared: Dict[str, np.ndarray] = {}  # weights, by the names of tensors
        self._takes: Dict[str, Sequence[tf.Tensor]] = {}  # which of them, by the names of those that are made of them

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Compute logits: (N, S, S, 3) images in [0, 255] -> (N, classes) float32."""
        return self._pass([self._tower.logits], {self._tower.image: self._checked(images)})[0]

    def classify(self, images: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the (N,) int32 predictions of images, -1 where logits are no numbers, and whether (N,) labels are in
        the top 5."""
        images = self._checked(images)
        feed = {self._tower.image: images, self._tower.label: self._labels(labels, len(images))}
        prediction, in_top5 = self._pass([self._tower.prediction, self._tower.in_top5], feed)
        return prediction, in_top5

    def loss_gradient(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Compute d CE(f(x), label) / d x of each image, x in [0, 255]: float32 like `images`."""
        images = self._checked(images)
        return self._pass([self._gradient], {self._tower.image: images,
                                             self._tower.label: self._labels(labels, len(images))})[0]

    def vjp(self, images: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Compute d sum(v * logits) / d x of each image, x in [0, 255] and v its cotangent: float32 like `images`.

        Args:
            cotangents: (N, classes) finite numbers, the gradient of whatever is made of the logits with respect to
                them.
        Raises:
            ValueError: an argument is not as above.
        """
        images = self._checked(images)
        cotangents = checked_cotangents(cotangents, len(images), self.network.num_classes)
        return self._pass([self._vjp], {self._tower.image: images, self._cotangent: cotangents})[0]

    def pgd(self, images: np.ndarray, labels: np.ndarray, targets: Optional[np.ndarray] = None, steps: int = 10,
            epsilon: float = 16., step_size: float = 1., start_from_noise: bool = True,
            seed: int = 0) -> Tuple[np.ndarray, np.ndarray]:
        """Attack images by targeted PGD, the paper's attack (Section 5): `attack` with that attacker, loss and goal."""
        return self.attack(images, labels, targets, steps=steps, epsilon=epsilon, step_size=step_size,
                           start_from_noise=start_from_noise, seed=seed)

    def attack(self, images: np.ndarray, labels: np.ndarray, targets: Optional[np.ndarray] = None, *,
               attacker: str = 'pgd', loss: str = 'ce', goal: str = 'targeted', steps: int = 10, epsilon: float = 16.,
               step_size: float = 1., start_from_noise: bool = True, seed: int = 0,
               indices: Optional[np.ndarray] = None) -> Tuple[np.ndarray, np.ndarray]:
        """Attack images by an attacker of the table, or module:Class of one's own.

        The first attack by each attacker, loss and goal builds its graph, which takes seconds.

        Args:
            images, labels: (N, S, S, 3) in [0, 255], (N,) integers. targets: (N,) integers; drawn from the wrong labels
                if None. What is random depends on `seed` and an image's position in `images`, not on `batch`.
            attacker, loss, goal: names of attacks/table.py.
            steps: 0 leaves the images as they are. epsilon, step_size: in pixels; the step used is
                max(step_size, epsilon / steps), but for APGD, which finds its own.
            indices: (N,) integers from 0 on, from which what is random follows; None: the positions in `images`. With
                those of a whole set its images are attacked the same way in any batches.
        Returns:
            adversarial images, float32 in [0, 255], within epsilon of `images`; (N,) int32 target labels, -1 of an
            untargeted attack.
        Raises:
            ValueError: an argument is not as above.
        """
        images = self._checked(images)
        labels = self._labels(labels, len(images))
        if not isinstance(steps, (int, np.integer)):
            raise ValueError('steps is a whole number, not %r' % (steps,))
        if not (steps >= 0 and 0 <= epsilon < np.inf and 0 <= step_size < np.inf):
            raise ValueError('steps, epsilon and step_size are numbers that are not negative')
        if not 0 <= seed < 2 ** 31:
            raise ValueError('seed is from 0 to 2**31 - 1')
        if goal == 'untargeted' and targets is not None:
            raise ValueError('an untargeted attack has no targets: leave them out, or give goal=\'targeted\'')
        self._require_open()
        targets = None if targets is None else self._labels(targets, len(images))
        if targets is not None and (targets == labels).any():
            self._warn_once('targets', 'some images\' targets are their labels: attacked towards these, any network is '
                            'robust')
        tower = self._tower_of(attacker, loss, goal)
        for mistake in mistaken_attack([epsilon], step_size) if steps else ():
            self._warn_once(mistake, mistake)
        feed: Dict[Any, np.ndarray] = {tower.image: images, tower.label: labels,
                                       tower.index: checked_indices(indices, len(images))}
        settings = {tower.seed: seed, tower.num_iter: steps, tower.steps: steps, tower.epsilon: epsilon,
                    tower.step_size: step_size}
        if targets is not None and not tower.takes_targets:
            raise ValueError('the attacker %s finds targets of its own: leave them out' % attacker)
        if targets is None and self.network.num_classes < 2:
            raise ValueError('a network of one class has no wrong label to be attacked towards')
        if not tower.takes_targets:
            adversarial, towards = self._run(tower.attacked, feed, settings) if steps else \
                (images, np.full(len(images), -1, np.int32))
        else:
            feed[tower.towards] = towards = self._run([tower.target], feed, settings)[0] if targets is None else targets
            adversarial = self._attacked(tower, feed, settings, start_from_noise) if steps else images
        if steps == 0:
            return images.copy(), towards
        # the way to [-1, 1] and back rounds; the budget is exact
        return np.clip(unscale_pixels(adversarial), np.maximum(images - epsilon, 0),
                       np.minimum(images + epsilon, 255)), towards

    def _attacked(self, tower: AttackTower, feed: Dict[Any, np.ndarray], settings: Dict[Any, Any],
                  start_from_noise: bool) -> np.ndarray:
        """Return the attacked images, in [-1, 1], of an attacker that takes targets."""
        if not tower.shares_steps:
            start = {} if start_from_noise else {tower.start: self._run([tower.clean], feed)[0]}
            return self._run([tower.result], {**feed, **start}, settings)[0]
        start = {tower.current: self._run([tower.start], feed, settings)[0]} if start_from_noise else {}
        start.update(zip(tower.state, self._run(tower.initial_state, feed, settings)))
        return self._run([tower.advanced], {**feed, **start}, settings)[0]

    def _tower_of(self, attacker: str, loss: str, goal: str) -> AttackTower:
        """Return the tower of an attack. Its network's variables are those that are there."""
        key = attacker, loss, goal
        if key not in self._towers:
            made = PGDAttacker if attacker == 'pgd' else load_code('the attacker', address_of(attacker))
            with self._graph.as_default():
                self._towers[key] = AttackTower(self.network, self.image_size, attacker=made, loss=loss, goal=goal,
                                                **self._how)
        return self._towers[key]

    def close(self) -> None:
        """Free the session. The object is of no use afterwards: its methods raise ValueError."""
        self._closed = True
        self._session.close()

    def _pass(self, tensors: Sequence[tf.Tensor], feed: Dict[Any, np.ndarray]) -> Sequence[np.ndarray]:
        """Run tensors of a single pass. The weights that they need are prepared at the first one, and kept in
        memory."""
        self._require_open()
        names = ' '.join(t.name for t in tensors)
        if names not in self._takes:
            wanted = prepared_weights(tensors)
            new = [t for t in wanted if t.name not in self._prepared]
            self._prepared.update(zip([t.name for t in new], self._session.run(new)))
            self._takes[names] = wanted
        return self._run(tensors, feed, {t: self._prepared[t.name] for t in self._takes[names]})

    def _run(self, tensors: Sequence[tf.Tensor], feed: Dict[Any, np.ndarray],
             settings: Optional[Dict[Any, Any]] = None) -> Sequence[np.ndarray]:
        """Compute tensors, each with an element an image, `batch` images at a time. settings: fed to every batch."""
        self._require_open()
        count = len(next(iter(feed.values())))
        out = [np.empty([count] + t.shape.as_list()[1:], t.dtype.as_numpy_dtype) for t in tensors]
        for i in range(0, count, self.batch):
            part = {key: value[i:i + self.batch] for key, value in feed.items()}
            for whole, values in zip(out, self._session.run(list(tensors), {**part, **(settings or {})})):
                whole[i:i + self.batch] = values
        return out

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError(CLOSED)

    def _warn_once(self, what: str, text: str) -> None:
        """Warn of a mistake the first time alone: a data set's other batches make it, too."""
        if what not in self._said:
            self._said.add(what)
            log.warning('%s', text)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        checked = checked_images(images, self.image_size)
        for mistake in mistaken_images(np.asarray(images)):
            self._warn_once('images', mistake)
        return checked

    def _labels(self, labels: np.ndarray, count: int) -> np.ndarray:
        return checked_labels(labels, count, self.network.num_classes)
