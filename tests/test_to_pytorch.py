"""tools.to_pytorch: what it writes is the network, in PyTorch and in onnxruntime."""
import os

import pytest
from helpers import ARCHITECTURES
from lanes import once
from test_torch_networks import write_weights
from torch_world import needs_torch, run_torch, run_worker

pytestmark = [needs_torch, once, pytest.mark.slow]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    write_weights(folder, [(arch, 14) for arch in ARCHITECTURES])
    return folder


def test_files(folder):
    results = run_worker('torch_networks_worker.py', folder, 'exported')['exported']
    # torchvision's own network loads the file without the two
    assert results.pop('torchvision') == ['input.mean', 'input.std']
    assert sorted(results) == sorted(ARCHITECTURES + ['resnet18'])
    for arch, found in results.items():
        size = '45' if arch == 'ResNetDenoise' else '64'
        assert found['opset'] >= 17
        (name, shape), = found['inputs']
        assert name == 'images' and shape[1:] == ['3', size, size] and not shape[0].isdigit()
        (name, shape), = found['outputs']
        assert name == 'logits' and shape[1:] == ['10'] and not shape[0].isdigit()
        assert found['error'] < 1e-4 and found['loaded'] == 0, arch


def test_command(folder):
    done = run_torch('-m', 'tools.to_pytorch', 'ResNet-14-10.npz', '--arch', 'ResNet', '-d', '14', '--out', 'G.pt',
                     '--onnx', 'G.onnx', '--image-size', '32', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert 'G.onnx: checked in onnxruntime' in done.stderr and len(done.stderr.splitlines()) == 1
    program = done.stdout + 'import torch\nprint(tuple(net(torch.rand(2, 3, 64, 64)).shape))'
    assert run_torch('-c', program, cwd=folder).stdout == '(2, 10)\n'
    done = run_torch('-m', 'tools.to_pytorch', 'ResNet-14-10.npz', '--arch', 'ResNet', '-d', '50', '--out', 'H.pt',
                     cwd=folder)
    assert done.returncode == 2 and 'It fits --arch ResNet -d 14' in done.stderr and done.stderr.count('\n') == 1
    assert not os.path.exists(str(folder / 'H.pt'))
