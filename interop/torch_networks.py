"""The zoo's networks and torchvision's ResNets in PyTorch: plain modules that load this project's .npz files.

    net = load_network('R152-Denoise.npz', 'ResNetDenoise', 152)
    logits = net(images)  # (N, 3, 224, 224) float, RGB in [0, 1], as attack libraries have them

What a network does to such an image first (the zoo's scale, torchvision's mean and std) is a part of it. TensorFlow is
not needed. The modules have torchvision's names, so that its own networks load the state of those that are the same.
"""
import os
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

import checkpoint
import fitting
import nets
from interop.torch_names import COUNTER, npz_layout, torch_layout, variable_of
from nets import find_network
from runtime.errors import InputError
from runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

Layer = Callable[[int], nn.Module]  # of a number of channels, which it leaves as it is


def network(arch: str, depth: Optional[int] = None, num_classes: int = 1000) -> 'ResNet':
    """Build a network with random weights, in training mode.

    Args:
        arch, depth: of the zoo (nets.ARCHITECTURES, nets.DEPTHS; 50 layers by default), or one of torchvision's names
            (nets.TORCHVISION) without a depth.
    Returns:
        a module from images, (N, 3, H, W) float, RGB in [0, 1], to logits, (N, num_classes). The zoo's denoising blocks
        depend on H and W, its padding on whether they are even: both may be any from 32 on.
    Raises:
        runtime.errors.InputError: there is no such network.
    """
    found = find_network(arch, depth)
    if nets.is_own(arch):
        raise InputError('%s is a graph of TensorFlow, and no network of PyTorch' % arch)
    return module(found._replace(num_classes=num_classes))


def module(network: nets.Network) -> 'ResNet':
    """Build a network of the tables. Of its denoising blocks only whether they are embedded and where they are matters:
    the operation is the one that the tables' networks have."""
    if network.depth is None:
        return ResNet(num_classes=network.num_classes, **nets.TORCHVISION[network.arch])
    options: Dict[str, Any] = {name: value for name, value in nets.ARCHITECTURES[network.arch].items()
                               if name in ('groups', 'width_per_group')}
    if network.denoising:
        embedded = network.denoising.operation in nets.EMBEDDED
        options['after_' + network.denoising.where] = NonLocalSoftmax if embedded else NonLocalDotProduct
    return ResNet(network.num_blocks, network.num_classes, same=True, **options)


def load_network(path: str, arch: str, depth: Optional[int] = None) -> 'ResNet':
    """Load an .npz file into the network that it is of; returns that in evaluation mode.

    Args:
        path: a file as published, or as tools.from_pytorch writes it. arch, depth: see `network`.
    Raises:
        runtime.errors.InputError: no such network or file, or one that does not fit the other.
    """
    path = os.fspath(path)
    expected = TorchNetwork(*find_network(arch, depth))
    if not path.endswith('.npz'):
        raise InputError('%s is no .npz file, and only those are read without TensorFlow' % path)
    weights = checkpoint.read_checkpoint(path)
    recorded = checkpoint.recorded_denoising(path)
    if recorded not in (None, expected.denoising):
        raise InputError('%s is of a network with --denoise %s --denoise-where %s --denoise-block %s, which can\'t be '
                         'converted: in PyTorch there are only the blocks that an --arch has by itself'
                         % (path, *recorded))
    expected = expected._replace(num_classes=fitting.num_classes(weights, path, expected))
    weights = fitting.fit_checkpoint(weights, expected, path)
    net = network(arch, depth, expected.num_classes)
    for key, value in net.state_dict().items():  # its values are the network's own
        if is_variable(key, net):
            tensor = torch_layout(torch.from_numpy(weights[variable_of(key)]))
            value.copy_(tensor.flip(1) if net.same and key == 'conv1.weight' else tensor)  # the zoo's images are BGR
    return net.eval()


# --- layers ----------------------------------------------------------------------------------------------------------

def padded_same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Pad a map by zeros as TensorFlow's SAME does: where the sum is odd, there is one more after than before."""
    padding: List[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


class Convolution(nn.Conv2d):
    """A convolution without bias, padded on all sides alike, or `same`: as TensorFlow does."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, *,
                 same: bool) -> None:
        self.same = same and stride > 1 and kernel > 1  # else both are the same
        super().__init__(channels_in, channels_out, kernel, stride, 0 if self.same else kernel // 2, groups=groups,
                         bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(padded_same(x, self.kernel_size[0], self.stride[0]) if self.same else x)


class Normalize(nn.Module):
    """Subtracts a mean from RGB images and divides them by a standard deviation, (3,) each; ImageNet's at first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN))
        self.register_buffer('std', torch.tensor(IMAGENET_STD))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)


class Scale(nn.Module):
    """Scales images from [0, 1] to [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('factor', torch.tensor(2.))
        self.register_buffer('offset', torch.tensor(-1.))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.factor + self.offset


# --- denoising blocks ------------------------------------------------------------------------------------------------

class Denoising(nn.Module):
    """A denoising block: x + BN(conv1x1(denoised(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 1, same=True)
        self.bn = nn.BatchNorm2d(channels)

    def denoised(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn(self.conv(self.denoised(x)))


class NonLocalSoftmax(Denoising):
    """Non-local means, embedded Gaussian: y_i = sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(d)) x_j."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.theta = Convolution(channels, channels // 2, 1, same=True)
        self.phi = Convolution(channels, channels // 2, 1, same=True)

    def denoised(self, x: torch.Tensor) -> torch.Tensor:
        # as the only head: ONNX wants to have that axis
        q, k, v = [m.flatten(2).transpose(1, 2)[:, None] for m in (self.theta(x), self.phi(x), x)]
        y = F.scaled_dot_product_attention(q, k, v, scale=self.theta.out_channels ** -0.5)
        return y[:, 0].transpose(1, 2).reshape(x.shape)


class NonLocalDotProduct(Denoising):
    """Non-local means, dot product without embedding: y_i = 1/N sum_j (x_i . x_j) x_j over the N positions."""

    def denoised(self, x: torch.Tensor) -> torch.Tensor:
        m = x.flatten(2).transpose(1, 2)  # positions, channels
        scaled = m.transpose(1, 2) / m.shape[1]  # divided before it is summed over: float16 ends at 65504
        # the product is associative: in the order that has less arithmetic
        y = (m @ scaled) @ m if m.shape[1] < m.shape[2] else m @ (scaled @ m)
        return y.transpose(1, 2).reshape(x.shape)


# --- the network -----------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """A residual block: what its convolutions make of x, plus x or, where the shape changes, a 1x1 convolution of it.

    basic: two 3x3 convolutions of `channels`, else a bottleneck: 1x1 and 3x3 of `width` channels, the latter in groups
    and with the stride, and 1x1 to 4 * channels.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, *, basic: bool, width: int, groups: int,
                 same: bool, denoise: Optional[Layer]) -> None:
        super().__init__()
        self.channels_out = channels if basic else 4 * channels
        if basic:
            convolutions = [(channels_in, channels, 3, stride), (channels, channels, 3)]
        else:
            convolutions = [(channels_in, width, 1), (width, width, 3, stride, groups), (width, self.channels_out, 1)]
        for i, shape in enumerate(convolutions, 1):
            self.add_module('conv%d' % i, Convolution(*shape, same=same))
            self.add_module('bn%d' % i, nn.BatchNorm2d(shape[1]))
        self.basic = basic
        self.downsample = nn.Sequential(
            Convolution(channels_in, self.channels_out, 1, stride, same=same), nn.BatchNorm2d(self.channels_out)
        ) if channels_in != self.channels_out or stride != 1 else None
        self.denoise = denoise(self.channels_out) if denoise else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if not self.basic:
            y = self.bn3(self.conv3(F.relu(y)))
        y = F.relu(y + (x if self.downsample is None else self.downsample(x)))
        return y if self.denoise is None else self.denoise(y)


class ResNet(nn.Module):
    """A network: stem, four groups of blocks, global average pool, linear layer.

    Args:
        num_blocks: in each group. block: 'bottleneck' or 'basic'. groups, width_per_group: of the 3x3 convolutions in
            the first group's bottlenecks. after_group, after_block: a denoising block that follows every group, or
            every block. same: the zoo's padding and scale, else torchvision's.
    """

    def __init__(self, num_blocks: List[int], num_classes: int = 1000, *, block: str = 'bottleneck', groups: int = 1,
                 width_per_group: int = 64, after_group: Optional[Layer] = None, after_block: Optional[Layer] = None,
                 same: bool = False) -> None:
        super().__init__()
        self.same = same
        self.input = Scale() if same else Normalize()
        self.conv1, self.bn1 = Convolution(3, 64, 7, 2, same=same), nn.BatchNorm2d(64)
        channels = 64
        for g, count in enumerate(num_blocks):
            layers: Dict[str, nn.Module] = OrderedDict()
            for b in range(count):
                layer = Block(channels, 64 * 2 ** g, 2 if g > 0 and b == 0 else 1, basic=block == 'basic',
                              width=groups * width_per_group * 2 ** g, groups=groups, same=same, denoise=after_block)
                layers[str(b)], channels = layer, layer.channels_out
            if after_group is not None:
                layers['denoise'] = after_group(channels)
            self.add_module('layer%d' % (g + 1), nn.Sequential(layers))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits: (N, 3, H, W) float images, RGB in [0, 1] -> (N, classes)."""
        x = F.relu(self.bn1(self.conv1(self.input(images))))
        # zeros instead of -inf: no window lacks a feature, and these are not below 0
        x = F.max_pool2d(padded_same(x, 3, 2), 3, 2) if self.same else F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


# --- weights ---------------------------------------------------------------------------------------------------------

class TorchNetwork(nets.Network):
    """A network of the zoo, of which fitting.py knows without TensorFlow what variables it has."""

    def variable_shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Return every variable that a checkpoint of this network holds, {name: shape}."""
        with torch.device('meta'):
            net = module(self)
        shapes = {variable_of(key): tuple(npz_layout(value).shape) for key, value in net.state_dict().items()
                  if is_variable(key, net)}
        without_conv = self.denoising is not None and self.denoising.form == 'no-1x1'
        return {name: shape for name, shape in shapes.items() if not (without_conv and '/conv/' in name)}


def is_variable(key: str, net: ResNet) -> bool:
    """Tell whether an .npz file holds a tensor of a network's state: the zoo's scale is always the same."""
    return not key.endswith(COUNTER) and not (net.same and key.startswith('input.'))
