"""Write the weights of an .npz file for PyTorch and, as a whole network, for ONNX.

    python -m tools.to_pytorch F.npz --arch A -d N --out F.pt [--onnx F.onnx]

F.pt: a state_dict of the module that interop.torch_networks.network(A, N) builds, whose images are RGB in [0, 1], NCHW.
F.onnx: the same network from `images` (batch, 3, S, S) to `logits` (batch, classes), for any batch size; where
onnxruntime is installed it is checked there. Needs PyTorch (requirements/torch.txt), and no TensorFlow.
"""
import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from runtime.command_line import Parser, run_command
from runtime.errors import InputError, RunError
from runtime.files import WholeFile, check_writable
from tools.pytorch import require_pytorch

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

OPSET = 18
SAME = 1e-4  # of the logits' standard deviation: what onnxruntime may differ by


def onnx_bytes(net: 'torch.nn.Module', image_size: int) -> bytes:
    """Return a network, in evaluation mode, as an ONNX model of OPSET: images (batch, 3, S, S) to logits."""
    import torch
    images = torch.rand(2, 3, image_size, image_size)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        program = torch.onnx.export(net, (images,), dynamo=True, opset_version=OPSET, input_names=['images'],
                                    output_names=['logits'], verbose=False,
                                    dynamic_shapes={'images': {0: torch.export.Dim('batch')}})
    assert program is not None
    return program.model_proto.SerializeToString()


def check_onnx(model: bytes, net: 'torch.nn.Module', image_size: int) -> str:
    """Compare an ONNX model in onnxruntime with its network, for batches of 1 and 3; returns what is to be said.

    Raises RunError where they differ.
    """
    import torch
    try:
        import onnxruntime
    except ImportError:
        return 'not checked: onnxruntime is not installed'
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    largest = 0.
    for batch in (1, 3):
        images = torch.rand(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = net(images).numpy()
        logits = session.run(['logits'], {'images': images.numpy()})[0]
        largest = max(largest, float(np.abs(logits - expected).max() / expected.std()))
    if not largest < SAME:
        raise RunError('onnxruntime computes other logits than PyTorch, by %.1e of their standard deviation' % largest)
    return 'checked in onnxruntime %s: logits differ from PyTorch\'s by at most %.1e of their standard deviation' % (
        onnxruntime.__version__, largest)


def convert(path: str, arch: str, depth: Optional[int], out: str, onnx: Optional[str] = None,
            image_size: int = 224) -> int:
    """Write the state_dict of an .npz file's network to `out` and, with `onnx`, that file; returns its classes.

    Raises:
        runtime.errors.InputError: the file is of another network, or something can't be written.
    """
    files = [os.path.realpath(file) for file in (path, out, onnx) if file]
    if len(set(files)) < len(files):
        raise InputError('two of F.npz, --out and --onnx are the same file: give each another name')
    for file in filter(None, (out, onnx)):
        check_writable(file)
    require_pytorch()
    import torch
    if onnx:
        try:
            import onnxscript  # noqa: F401
        except ImportError:
            raise InputError('--onnx needs the packages onnx and onnxscript: requirements/torch.txt has them')
    from interop.torch_networks import load_network
    net = load_network(path, arch, depth)
    content = io.BytesIO()
    torch.save(net.state_dict(), content)
    write(out, content.getbuffer())
    if onnx:
        model = onnx_bytes(net, image_size)
        log.info('%s: %s', onnx, check_onnx(model, net, image_size))
        write(onnx, model)
    return net.fc.out_features


def write(path: str, content: Any) -> None:
    with WholeFile(path, 'wb') as f:
        f.write(content)


def main() -> int:
    parser = Parser(prog='to_pytorch.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='F.npz')
    parser.add_argument('--arch', required=True, help='a name of the zoo, or one of torchvision\'s ResNets')
    parser.add_argument('-d', '--depth', type=int, help='of the zoo\'s networks: 14, 50, 101 or 152')
    parser.add_argument('--out', required=True, metavar='F.pt')
    parser.add_argument('--onnx', metavar='F.onnx')
    parser.add_argument('--image-size', type=int, default=224, metavar='S', help='of the ONNX network (224)')
    options = parser.parse_args(sys.argv[1:])
    if options.image_size < 32:
        parser.error('--image-size is at least 32, not %d' % options.image_size)
    classes = convert(options.checkpoint, options.arch, options.depth, options.out, options.onnx, options.image_size)
    print('import torch\nfrom interop.torch_networks import network')
    print('net = network(%r, %s, num_classes=%d)' % (options.arch, options.depth, classes))
    print('net.load_state_dict(torch.load(%r)); net.eval()' % options.out)
    return 0


if __name__ == '__main__':
    run_command('to_pytorch.py', main)
