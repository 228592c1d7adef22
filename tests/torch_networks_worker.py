"""Worker of test_torch_networks.py and test_to_pytorch.py: what PyTorch computes with the networks, in .venv-torch."""
import glob
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torchvision_import import import_torchvision
from interop.from_torch import import_network
from interop.torch_networks import NonLocalSoftmax, ResNet, load_network, network
from nets import TORCHVISION
from runtime.errors import InputError
from tools.to_pytorch import convert

torch.set_num_threads(1)


def randomized(net, seed=0):
    """Give a network random weights, such that features stay near 1, and statistics that are far from trivial."""
    draw = torch.Generator().manual_seed(seed)
    blocks = sum(name.endswith('conv2.weight') for name, _ in net.named_parameters())
    last = 'bn3.' if any('bn3.' in key for key in net.state_dict()) else '0.bn2.'
    for key, value in net.state_dict().items():  # its values are the network's own
        if value.dim() > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=draw)
        elif key.endswith('num_batches_tracked'):
            value.fill_(0)
        elif key.endswith('running_var'):
            value.uniform_(0.5, 2, generator=draw)
            if key.replace('bn.running_var', 'theta.weight') not in net.state_dict() and 'denoise' in key:
                value.mul_((2 * len(value)) ** 2)  # a dot product is cubic in the features
        elif key.endswith('weight'):
            value.uniform_(0.6, 1.4, generator=draw)
            if last in key:
                value.mul_(0.3 * (16 / blocks) ** 0.5)
        elif not key.startswith('input.'):
            value.uniform_(-0.3, 0.3, generator=draw)
    return net.eval()


def torchvision_network(arch, seed=0, classes=1000):
    with torch.device('meta'):  # its own random weights take seconds
        net = getattr(import_torchvision().models, arch)(num_classes=classes)
    return randomized(net.to_empty(device='cpu'), seed)


def gradient(net, images, cotangents):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(net(images), images, cotangents)[0]


def relative(values, expected):
    return float(torch.linalg.vector_norm(values - expected) / torch.linalg.vector_norm(expected))


def error(logits, expected):
    return float((logits - expected).abs().max() / expected.std())


# --- the zoo: files ARCH-DEPTH-....npz and inputs.npz come from the test ----------------------------------------------

def zoo():
    """Compute, for each .npz, logits in float32, and in float64 the gradient along a direction."""
    results = {}
    with np.load('inputs.npz') as f:
        inputs = {name: f[name] for name in f.files}
    for path in sorted(glob.glob('*-*-*.npz')):
        arch, depth = os.path.basename(path).split('-')[:2]
        net = load_network(path, arch, int(depth))
        for size in sorted({int(name.split('-')[1]) for name in inputs}):
            images = torch.from_numpy(inputs['images-%d' % size][..., ::-1].copy()).permute(0, 3, 1, 2)
            direction = torch.from_numpy(inputs['direction-%d' % size][..., ::-1].copy()).permute(0, 3, 1, 2)
            with torch.no_grad():
                logits = net.float()(images.float() / 255)
            cotangents = torch.from_numpy(inputs['cotangents-%d' % size])
            slope = (gradient(net.double(), images.double() / 255, cotangents) * direction).sum() / 255
            results['%s-%s-%d' % (arch, depth, size)] = logits.tolist(), float(slope)
    return results


def ways_to_compute():
    """Compare compiled, channels_last, autocast and batches of other sizes with plain float32."""
    results = {}
    for arch, depth in ('ResNetDenoise', 14), ('ResNeXtDenoiseAll', 14), ('ResNet', 14), ('resnet18', None):
        net = randomized(network(arch, depth, 10))
        torch.manual_seed(0)
        images = torch.rand(3, 3, 64, 64)
        cotangents = torch.randn(3, 10)
        logits, slopes = net(images).detach(), gradient(net, images, cotangents)
        compiled = torch.compile(net, fullgraph=True, dynamic=False, backend='eager')
        autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        with torch.no_grad(), autocast:
            reduced = net(images)
        last = net.to(memory_format=torch.channels_last)
        images_last = images.contiguous(memory_format=torch.channels_last)
        results[arch] = dict(
            compiled=error(compiled(images).detach(), logits),
            bfloat16=relative(reduced.float(), logits),
            one=error(net(images[:1]).detach(), logits[:1]),
            channels_last=error(last(images_last).detach(), logits),
            channels_last_gradient=relative(gradient(last, images_last, cotangents), slopes))
    return results


def inductor():
    """Compile a network with denoising blocks by the default backend: its gradient is another one than eager's. Two
    bottlenecks have all kinds of layers, and less C++ to compile than a whole network."""
    net = randomized(ResNet([1, 1, 0, 0], 10, after_block=NonLocalSoftmax, same=True))
    images, cotangents = torch.rand(2, 3, 32, 32), torch.randn(2, 10)
    compiled = torch.compile(net, fullgraph=True)
    return dict(logits=error(compiled(images).detach(), net(images).detach()),
                gradient=relative(gradient(compiled, images, cotangents), gradient(net, images, cotangents)))


def refusals():
    """Return what is said of files that don't fit: {case: text}."""
    with np.load(sorted(glob.glob('ResNet-14-*.npz'))[0]) as f:
        good = {name: f[name] for name in f.files}
    np.savez('refused.npz', **good)

    def said(arch='ResNet', depth=14, path='refused.npz', **changes):
        if changes:
            path = 'changed.npz'
            np.savez(path, **{name: value for name, value in {**good, **changes}.items() if value is not None})
        try:
            load_network(path, arch, depth)
            return ''
        except InputError as e:
            return str(e)
    return {
        'good': said(),
        'missing': said(**{'conv0/W': None}),
        'extra': said(**{'conv9/W': np.zeros(3)}),
        'shape': said(**{'linear/W': np.zeros((2048, 11))}),
        'nan': said(**{'conv0/bn/beta': np.full(64, np.nan)}),
        'variance': said(**{'conv0/bn/variance/EMA': np.full(64, -1.)}),
        'other depth': said(depth=50),
        'other architecture': said(arch='ResNetDenoise'),
        'torchvision': said(arch='resnet50', depth=None),
        'no name': said(arch='ResNet50'),
        'no depth': said(depth=34),
        'depth of torchvision': said(arch='resnet50', depth=50),
        'no file': said(path='nowhere.npz'),
        'TensorFlow': said(path='model-17'),
    }


# --- torchvision -----------------------------------------------------------------------------------------------------

def against_torchvision(archs, sizes):
    """Compare with torchvision's own networks: {arch: (error of logits, of gradients)}, each at these sizes."""
    results = {}
    mean, std = [torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    for number, arch in enumerate(archs):
        theirs = torchvision_network(arch, seed=number)
        imported = import_network({'': theirs.state_dict()}, arch)
        assert imported.arch == arch and imported.num_classes == 1000
        np.savez(arch + '.npz', **imported.weights)
        ours = load_network(arch + '.npz', arch)
        os.unlink(arch + '.npz')
        results[arch] = []
        for size in sizes:
            torch.manual_seed(size)
            images, cotangents = torch.rand(2, 3, size, size), torch.randn(2, 1000)

            def normalized(images, theirs=theirs):
                return theirs((images - mean) / std)
            results[arch].append((error(ours(images).detach(), normalized(images).detach()),
                                  relative(gradient(ours, images, cotangents),
                                           gradient(normalized, images, cotangents))))
    return results


def some_of_torchvision():
    return against_torchvision(['resnet18', 'resnext50_32x4d'], (64, 75))


def more_of_torchvision():
    """Compare one of each other kind."""
    return against_torchvision(['resnet34', 'resnet50', 'wide_resnet50_2', 'resnext101_64x4d'], (75,))


def shapes_of_torchvision():
    """Return {arch: whether its weights have the names and shapes of torchvision's}, of all."""
    def shapes(net):
        return {name: value.shape for name, value in net.state_dict().items() if not name.startswith('input.')}
    with torch.device('meta'):  # without values
        return {arch: shapes(network(arch)) == shapes(getattr(import_torchvision().models, arch)())
                for arch in TORCHVISION}


# --- the published code ----------------------------------------------------------------------------------------------

def published():
    """Compare with what the published code computed: {network: (error of logits, of gradients)}."""
    torch.set_num_threads(2)
    folder = os.environ['REFERENCE_DIR']
    sys.path.insert(0, folder)
    from make_weights import make_weights
    results = {}
    for name in 'ResNet-50', 'ResNetDenoise-50', 'ResNeXtDenoiseAll-50':
        arch, depth = name.split('-')
        np.savez('published.npz', **make_weights(name, 0))
        net = load_network('published.npz', arch, int(depth))
        with np.load(os.path.join(folder, 'expected-%s.npz' % name)) as f:
            expected = {key: f[key] for key in f.files}
        images = torch.from_numpy(expected['image'][..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            logits = net(images)
        count = len(expected['gradient'])
        chosen = images[:count].clone().requires_grad_()
        loss = F.cross_entropy(net(chosen), torch.from_numpy(expected['target'][:count]).long(), reduction='sum')
        slopes = torch.autograd.grad(loss, chosen)[0].permute(0, 2, 3, 1).flip(3) / 2  # of [-1, 1], BGR
        results[name] = (error(logits, torch.from_numpy(expected['logits'])),
                         relative(slopes, torch.from_numpy(expected['gradient'])))
    return results


# --- out -------------------------------------------------------------------------------------------------------------

def exported():
    """Write F.pt and F.onnx of each .npz and of resnet18; returns what is in them."""
    import onnx
    import onnxruntime
    np.savez('resnet18-18-10.npz', **import_network({'': torchvision_network('resnet18', 0, 10).state_dict()},
                                                    'x').weights)
    results = {}
    for path in sorted(glob.glob('*-*-*.npz')):
        arch, depth = os.path.basename(path).split('-')[:2]
        number = None if arch in TORCHVISION else int(depth)
        size = 45 if arch == 'ResNetDenoise' else 64
        convert(path, arch, number, 'F.pt', 'F.onnx', size)
        net = network(arch, number, 10)
        net.load_state_dict(torch.load('F.pt', weights_only=True))
        with torch.no_grad():
            images = torch.rand(5, 3, size, size)
            expected = net.eval()(images).numpy()
        session = onnxruntime.InferenceSession('F.onnx', providers=['CPUExecutionProvider'])
        model = onnx.load('F.onnx')
        onnx.checker.check_model(model)
        results[arch] = dict(
            opset=max(o.version for o in model.opset_import if o.domain in ('', 'ai.onnx')),
            inputs=[(i.name, [str(s) for s in i.shape]) for i in session.get_inputs()],
            outputs=[(o.name, [str(s) for s in o.shape]) for o in session.get_outputs()],
            error=max(float(np.abs(session.run(None, {'images': images[:n].numpy()})[0] - expected[:n]).max())
                      for n in (1, 2, 5)) / float(expected.std()),
            loaded=error(torch.from_numpy(expected), load_network(path, arch, number)(images).detach()))
    theirs = import_torchvision().models.resnet18(num_classes=10)
    state = torch.load('F.pt', weights_only=True)
    results['torchvision'] = sorted(set(state) ^ set(theirs.state_dict()))
    return results


if __name__ == '__main__':
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
