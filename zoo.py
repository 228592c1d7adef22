"""The zoo's two tables: a name and a depth make a network, which nets.py builds.

A new network is a line in one of them. Without TensorFlow, so that the command line knows the names at once.
"""
from typing import Any, Dict, List

from runtime.errors import InputError

# name -> what its backbone is called with (Section 6); a denoising block is named by its operation, a function of
# denoising.py. Denoising after each of the four groups is the paper's default; the network of the winning entry to CAAD
# 2018 (6.2) is a ResNeXt 32x8d with denoising after every residual block
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    'ResNet': {},
    'ResNetDenoise': dict(after_group='non_local_softmax'),
    'ResNeXtDenoiseAll': dict(groups=32, width_per_group=8, after_block='non_local_dot_product'),
}

# number of layers -> bottlenecks in each of the four groups. 14 is for demonstrations and tests on a laptop.
DEPTHS: Dict[int, List[int]] = {
    14: [1, 1, 1, 1],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}


def check_network(arch: str, depth: int) -> None:
    """Raise InputError where the zoo has no network of this name and depth."""
    if arch not in ARCHITECTURES:
        raise InputError('no architecture %r in the zoo; choose one of %s' % (arch, ', '.join(ARCHITECTURES)))
    if depth not in DEPTHS:
        raise InputError('no depth %r in the zoo; choose one of %s' % (depth, ', '.join(map(str, DEPTHS))))
