"""Worker of test_in_tensorflow.py: torchvision's own networks, as .npz files, and what PyTorch computes with them."""
import json
import sys

import numpy as np
import torch
from torch_networks_worker import torchvision_network

from tools.from_pytorch import convert

torch.set_num_threads(1)
CLASSES = 12
SIZES = {'resnet18': 64, 'resnet50': 95, 'wide_resnet50_2': 64, 'resnext50_32x4d': 64}
MEAN, STD = [torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]


def networks():
    """Write ARCH.npz by tools.from_pytorch, and ARCH-computed.npz: images, labels, logits and gradients. Return the
    size of images."""
    for arch, size in SIZES.items():
        net = torchvision_network(arch, 3, CLASSES).eval()
        torch.save({'state_dict': {'module.' + key: value for key, value in net.state_dict().items()}}, arch + '.pth')
        convert(arch + '.pth', arch + '.npz')
        generator = torch.Generator().manual_seed(size)
        coarse = torch.rand(3, 3, 5, 5, generator=generator) * 255
        images = torch.nn.functional.interpolate(coarse, (size, size), mode='bilinear')
        images = (images + 20 * torch.randn(images.shape, generator=generator)).clamp(0, 255).round()
        images.requires_grad_()
        labels = torch.tensor([0, 5, 11])
        logits = net((images / 255 - MEAN) / STD)
        torch.nn.functional.cross_entropy(logits, labels, reduction='sum').backward()
        bgr = [t.detach().numpy().transpose(0, 2, 3, 1)[..., ::-1] for t in (images, images.grad)]
        np.savez(arch + '-computed.npz', images=bgr[0].astype(np.uint8), gradients=bgr[1], labels=labels.numpy(),
                 logits=logits.detach().numpy())
    return SIZES


if __name__ == '__main__':
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
