"""The same networks and jobs in PyTorch: a worker of pgd.py, attacks.py and train.py. Imports nothing of this project's
networks.

    torchattacks    torchattacks' PGD as installed, on a network as one writes it; for training with an eager update
    PyTorch         standard training alone, eager
    tuned PyTorch   channels_last, BatchNorm folded into the convolutions, frozen weights, torch.compile
"""
import time
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import torchattacks
from torch import nn
from turns import serve_turns, worker_configuration

BLOCKS = {14: [1, 1, 1, 1], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
CLASSES = 1000

Folded = Sequence[torch.Tensor]  # weights and bias, which convolution and BatchNorm are replaced by
FoldedOf = Callable[['ConvNorm'], Optional[Folded]]
Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # from images and targets to adversarial images


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride, self.padding, self.groups = stride, kernel // 2, groups
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def folded(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return weights and bias of the one convolution that both are for constant statistics."""
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - self.norm.running_mean * scale

    def forward(self, x: torch.Tensor, folded: Optional[Folded] = None) -> torch.Tensor:
        if folded is None:
            return self.norm(self.conv(x))
        return F.conv2d(x, *folded, self.stride, self.padding, groups=self.groups)


def softmax_denoising(x: torch.Tensor, theta: nn.Conv2d, phi: nn.Conv2d) -> torch.Tensor:
    """Denoise by the embedded Gaussian, with the attention that PyTorch brings along."""
    q, k, v = [t.flatten(2).transpose(1, 2)[:, None] for t in (theta(x), phi(x), x)]
    y = F.scaled_dot_product_attention(q, k, v, scale=theta.out_channels ** -0.5)
    return y[:, 0].transpose(1, 2).reshape(x.shape)


def dot_product_denoising(x: torch.Tensor) -> torch.Tensor:
    """Denoise by dot products, in the order of products that has less arithmetic."""
    m = x.flatten(2)  # channels, positions
    scaled = m.transpose(1, 2) / m.shape[2]
    y = (m @ scaled) @ m if m.shape[1] < m.shape[2] else m @ (scaled @ m)
    return y.reshape(x.shape)


class Denoising(nn.Module):
    """A denoising block: by softmax with embeddings, or by dot products."""

    def __init__(self, channels: int, softmax: bool) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Conv2d(channels, channels // 2, 1, bias=False) for _ in range(2 * softmax)])
        self.conv = ConvNorm(channels, channels, 1)

    def forward(self, x: torch.Tensor, weights: FoldedOf) -> torch.Tensor:
        y = softmax_denoising(x, *self.embeddings) if self.embeddings else dot_product_denoising(x)
        return x + self.conv(y, weights(self.conv))


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3 of `width` channels, and 1x1 to 4 times `channels`."""

    def __init__(self, channels_in: int, channels: int, stride: int, width: int, groups: int) -> None:
        super().__init__()
        out = 4 * channels
        self.shortcut = ConvNorm(channels_in, out, 1, stride) if channels_in != out or stride != 1 else None
        self.convs = nn.ModuleList([ConvNorm(channels_in, width, 1), ConvNorm(width, width, 3, stride, groups),
                                    ConvNorm(width, out, 1)])

    def forward(self, x: torch.Tensor, weights: FoldedOf) -> torch.Tensor:
        y = x
        for conv in self.convs[:2]:
            y = F.relu(conv(y, weights(conv)))
        y = self.convs[2](y, weights(self.convs[2]))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x, weights(self.shortcut))))


class ResNet(nn.Module):
    """One of the project's networks: images (N, 3, S, S) in [-1, 1] to logits (N, CLASSES)."""

    def __init__(self, arch: str, depth: int) -> None:
        super().__init__()
        groups, per_group = (32, 8) if arch == 'ResNeXtDenoiseAll' else (1, 64)
        self.stem = ConvNorm(3, 64, 7, 2)
        layers: List[nn.Module] = []
        channels_in = 64
        for g, blocks in enumerate(BLOCKS[depth]):
            channels = 64 * 2 ** g
            for b in range(blocks):
                stride = 2 if g and not b else 1
                layers.append(Bottleneck(channels_in, channels, stride, groups * per_group * 2 ** g, groups))
                channels_in = 4 * channels
                if arch == 'ResNeXtDenoiseAll':
                    layers.append(Denoising(channels_in, False))
            if arch == 'ResNetDenoise':
                layers.append(Denoising(channels_in, True))
        self.layers = nn.ModuleList(layers)
        self.linear = nn.Linear(2048, CLASSES)
        self.conv_norms = [m for m in self.modules() if isinstance(m, ConvNorm)]

    def folded(self, dtype: torch.dtype) -> List[Folded]:
        """Return the folded weights and biases of all convolutions, constants, which an attack needs once."""
        with torch.no_grad():
            return [[t.to(dtype=dtype).contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.to(dtype)
                     for t in m.folded()] for m in self.conv_norms]

    def forward(self, x: torch.Tensor, folded: Optional[List[Folded]] = None) -> torch.Tensor:
        folded_by_id: Dict[int, Folded] = {id(m): f for m, f in zip(self.conv_norms, folded)} if folded else {}
        x = self.stem(x, folded_by_id.get(id(self.stem)))
        x = F.max_pool2d(F.relu(x), 3, 2, 1)
        for layer in self.layers:
            x = layer(x, lambda m: folded_by_id.get(id(m)))
        x = x.mean((2, 3))
        return F.linear(x.float(), self.linear.weight, self.linear.bias) if folded else self.linear(x)


class Scaled(nn.Module):
    """A network for pixels in [0, 1], as the libraries have them, not in [-1, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x * 2 - 1)


def torchattacks_pgd(net: nn.Module, steps: int) -> Attack:
    """Return PGD as torchattacks has it."""
    attack = torchattacks.PGD(Scaled(net), eps=16 / 255, alpha=max(1, 16 / steps) / 255, steps=steps, random_start=True)
    attack.set_mode_targeted_by_label(quiet=True)
    return lambda image, target: attack((image + 1) / 2, target) * 2 - 1


def untargeted(system: str, net: nn.Module, steps: int) -> Attack:
    """Return an untargeted attack by cross-entropy as a library has it."""
    how = dict(eps=16 / 255, steps=steps)
    if system == 'torchattacks PGD':
        attack = torchattacks.PGD(Scaled(net), alpha=1 / 255, random_start=True, **how)
    elif system == 'torchattacks APGD':
        attack = torchattacks.APGD(Scaled(net), norm='Linf', seed=0, **how)
    else:
        from pyautoattack.autopgd_base import APGDAttack
        attack = APGDAttack(Scaled(net), n_iter=steps, norm='Linf', eps=16 / 255, device='cpu').perturb
    return lambda image, label: attack((image + 1) / 2, label) * 2 - 1


def tuned_pgd(net: ResNet, steps: int, dtype: torch.dtype, compiled: Callable[..., torch.Tensor]) -> Attack:
    """Return PGD that folds the weights once per call.

    compiled: the network's forward pass, of which autograd makes the backward pass.
    """
    radius, alpha = 32 / 255, max(1, 16 / steps) * 2 / 255

    def attack(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        folded = net.folded(dtype)
        lower, upper = (image - radius).clamp(min=-1), (image + radius).clamp(max=1)
        x = torch.max(torch.min(image + torch.empty_like(image).uniform_(-radius, radius), upper), lower)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(compiled(x.to(dtype), folded), target, reduction='sum')
            gradient, = torch.autograd.grad(loss, x)
            with torch.no_grad():
                x = torch.max(torch.min(x - alpha * gradient.sign(), upper), lower)
        return x.detach()
    return attack


def prepare() -> Callable[[], float]:
    """Return what measures the configured job, in image-steps or images a second."""
    c = worker_configuration()
    if c is None:
        raise SystemExit('this is a worker of pgd.py and train.py: give them --peer torch')
    torch.set_num_threads(c.threads)
    torch.manual_seed(0)
    arch, depth = c.network.rsplit('-', 1)
    tuned, dtype, batch = c.system == 'tuned PyTorch', getattr(torch, c.dtype), c.batch
    net = ResNet(arch, int(depth))
    image = torch.rand(batch, 3, c.image_size, c.image_size) * 2 - 1
    label, target = torch.arange(batch) % CLASSES, (torch.arange(batch) + 7) % CLASSES
    if tuned:
        net, image = net.to(memory_format=torch.channels_last), image.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net) if tuned else net

    net.eval()
    if c.job == 'attacks':
        attack = untargeted(c.system, net, c.steps)
        with torch.no_grad():
            target = net(image).argmax(dim=1)  # the libraries leave alone what is wrong already
    elif not c.steps:
        def attack(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return image
    elif not tuned:
        attack = torchattacks_pgd(net, c.steps)
    elif arch == 'ResNetDenoise' and dtype != torch.float32:
        raise SystemExit('tuned PyTorch has no denoising blocks in reduced precision here')
    else:
        attack = tuned_pgd(net, c.steps, dtype, compiled)

    if c.job != 'train':
        net.requires_grad_(not tuned)

        def work() -> None:
            attack(image, target)
        amount = batch * c.steps
    else:
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)

        def work() -> None:
            net.eval()
            adversarial = attack(image, target)
            net.train()
            loss = F.cross_entropy(compiled(adversarial), label, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        amount = batch

    def measure() -> float:
        begin = time.perf_counter()
        work()
        return amount / (time.perf_counter() - begin)
    return measure


if __name__ == '__main__':
    serve_turns(prepare)
