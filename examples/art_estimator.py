"""inference.py's classifier as an estimator of the adversarial-robustness-toolbox, whose attacks then run on it.

    from art.attacks.evasion import AutoProjectedGradientDescent
    estimator = ArtEstimator(load_classifier('R152-Denoise.npz', arch='ResNetDenoise', depth=152))
    attack = AutoProjectedGradientDescent(estimator, eps=16., eps_step=2., max_iter=100, targeted=True, loss_type=None)
    adversarial = attack.generate(images, targets)

Images are the classifier's: (N, S, S, 3) BGR in [0, 255], so eps is in pixels. The toolbox is an extra
(requirements/extras.txt); its own TensorFlow classifiers need eager mode, hence this one from its neutral base classes.
"""
from typing import Any

import numpy as np
from art.estimators import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from art.estimators.classification import ClassifierMixin

from inference import Classifier


class ArtEstimator(ClassifierMixin, LossGradientsMixin, NeuralNetworkMixin, BaseEstimator):
    """Predictions are logits. For attacks that use `predict`, `loss_gradient` and `compute_loss`; it can't be
    trained."""

    estimator_params = BaseEstimator.estimator_params + NeuralNetworkMixin.estimator_params

    def __init__(self, classifier: Classifier):
        super().__init__(model=classifier, clip_values=(0.0, 255.0), channels_first=False)
        self._nb_classes = classifier.network.num_classes
        self._input_shape = (classifier.image_size, classifier.image_size, 3)

    @property
    def input_shape(self) -> Any:
        return self._input_shape

    def predict(self, x: np.ndarray, batch_size: int = 128, **kwargs: Any) -> np.ndarray:
        """Compute logits: (N, S, S, 3) in [0, 255] -> (N, classes) float32. The batch size is the classifier's own."""
        return self.model.logits(x)

    def loss_gradient(self, x: np.ndarray, y: np.ndarray, **kwargs: Any) -> np.ndarray:
        """Compute the gradient of each image's cross-entropy: float32 like x. y: (N,) labels or (N, classes)
        one-hot."""
        return self.model.loss_gradient(x, labels_of(y))

    def compute_loss(self, x: np.ndarray, y: np.ndarray, reduction: str = 'none', **kwargs: Any) -> Any:
        """Compute the cross-entropy: (N,) float64, or with reduction 'sum' or 'mean' a number."""
        logits, labels = self.predict(x).astype(np.float64), labels_of(y)
        shifted = logits - logits.max(axis=1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        return {'none': lambda: loss, 'sum': loss.sum, 'mean': loss.mean}[reduction]()

    def fit(self, x: np.ndarray, y: np.ndarray, batch_size: int = 128, nb_epochs: int = 20, **kwargs: Any) -> None:
        raise NotImplementedError('main.py trains networks')

    def get_activations(self, x: np.ndarray, layer: Any, batch_size: int, framework: bool = False) -> np.ndarray:
        raise NotImplementedError('only logits can be had')


def labels_of(y: np.ndarray) -> np.ndarray:
    """Return (N,) integers for labels, (N,) or (N, 1), or for one-hot rows."""
    y = np.asarray(y)
    if y.ndim == 2:
        y = y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0]
    return y.astype(np.int64)
