"""A classifier of inference.py as a PyTorch module, so that PyTorch's attack libraries run on a network in TensorFlow.

    net = TorchClassifier(load_classifier('R152-Denoise.npz', arch='ResNetDenoise', depth=152))
    adversarial = torchattacks.PGD(net, eps=16 / 255, alpha=1 / 255, steps=100)(images, labels)

Images are as PyTorch has them: (N, 3, S, S), RGB, in [0, 1]. The only module of this folder that needs both
TensorFlow and PyTorch.
"""
from typing import Any, Tuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from inference import Classifier

ROUNDING = 1e-4  # beyond [0, 1], of attacks that come back to it by a sum or a tanh


class TorchClassifier(nn.Module):
    """Logits of a Classifier, whose own gradient to the images is the backward pass: (N, 3, S, S) RGB in [0, 1], of any
    float dtype, to (N, classes) float32 on the images' device.

    The weights stay where they are: there is nothing to train, and train() and eval() change nothing. The gradient
    itself has no gradient. Raises ValueError for images of another shape, dtype or range.
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier
        # attack libraries ask the first parameter for the device
        self.device_mark = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return Logits.apply(images, self.classifier)


class Logits(torch.autograd.Function):
    """The classifier's logits, and its vector-Jacobian product as their gradient."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, classifier: Classifier) -> torch.Tensor:
        pixels = as_pixels(images, classifier.image_size)
        if ctx.needs_input_grad[0]:
            ctx.classifier, ctx.pixels, ctx.dtype = classifier, pixels, images.dtype
        return torch.from_numpy(classifier.logits(pixels)).to(images.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: torch.Tensor) -> Tuple[torch.Tensor, None]:
        gradient = ctx.classifier.vjp(ctx.pixels, cotangents.cpu().numpy())
        # in one piece, as PyTorch's own networks have it: some libraries take a view of it
        gradient = torch.from_numpy(255 * gradient).permute(0, 3, 1, 2).flip(1).contiguous()
        return gradient.to(cotangents.device, ctx.dtype), None


def as_pixels(images: torch.Tensor, image_size: int) -> np.ndarray:
    """Return images as a Classifier takes them: (N, 3, S, S) RGB in [0, 1] -> (N, S, S, 3) float32, BGR in [0, 255].

    Raises ValueError for images of another shape, dtype or range.
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, image_size, image_size):
        raise ValueError('images have the shape %s, not (N, 3, %d, %d)'
                         % (tuple(images.shape), image_size, image_size))
    if not images.is_floating_point():
        raise ValueError('images are floats in [0, 1], not %s: divide pixels by 255' % images.dtype)
    pixels = images.detach().to('cpu', torch.float32).flip(1).permute(0, 2, 3, 1).contiguous().numpy()
    if pixels.size and not (pixels.min() >= -ROUNDING and pixels.max() <= 1 + ROUNDING):
        raise ValueError('images are in [0, 1]; these go from %s to %s' % (pixels.min(), pixels.max()))
    return 255 * pixels.clip(0, 1)
