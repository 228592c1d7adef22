"""Convert a checkpoint of one of torchvision's ResNets, as PyTorch programs save it, into an .npz file of this project.

    python -m tools.from_pytorch CKPT --out F.npz

CKPT: a .pth, .pt or .safetensors file. The tensors may lie under `state_dict` or `model`, with names that begin with
`module.`, `model.` or both, and a mean and std of the input beside them, which are kept. Which of the ResNets it is, is
found out by names and shapes. Prints the flags for main.py. Nothing in the file is run. Needs PyTorch
(requirements/torch.txt), and no TensorFlow.
"""
import argparse
import io
import logging
import shlex
import sys
from typing import Any, Dict, Optional

import numpy as np

from runtime.command_line import Parser, run_command
from runtime.errors import InputError
from runtime.files import WholeFile, check_writable
from tools.pytorch import require_pytorch

log = logging.getLogger(__name__)


def convert(path: str, out: str, prefix: Optional[str] = None, drop_background: bool = False) -> str:
    """Write the .npz file `out` of the network in the file `path`; returns the flags for it.

    Args:
        prefix, drop_background: as the flags.
    Raises:
        runtime.errors.InputError: `path` is no such file, or `out` can't be written.
    """
    if not out.endswith('.npz'):
        raise InputError('--out %s: the name of a checkpoint ends with .npz' % out)
    check_writable(out)
    require_pytorch()
    from interop.from_torch import import_network
    from interop.torch_files import read_states
    network = import_network(read_states(path), path, prefix, drop_background)
    for note in network.notes:
        log.info('%s', note)
    for warning in network.warnings:
        log.warning('%s', warning)
    if network.num_classes not in (1000, 1001):
        log.info('%d classes: the data must have as many', network.num_classes)
    content = io.BytesIO()
    arrays: Dict[str, Any] = network.weights
    np.savez(content, **arrays)
    with WholeFile(out, 'wb') as f:
        f.write(content.getvalue())
    return '--arch %s --load %s' % (network.arch, shlex.quote(out))


def main() -> int:
    parser = Parser(prog='from_pytorch.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='CKPT')
    parser.add_argument('--out', required=True, metavar='F.npz')
    parser.add_argument('--prefix', metavar='P', help='which network, where CKPT has several: what names begin with')
    parser.add_argument('--drop-background', action='store_true',
                        help='leave out output 0, where a network of 1001 classes has a background class')
    options = parser.parse_args(sys.argv[1:])
    print(convert(options.checkpoint, options.out, options.prefix, options.drop_background))
    return 0


if __name__ == '__main__':
    run_command('from_pytorch.py', main)
