"""Which preparation of images a network is used to, and that an evaluation says where it gets another one."""
from typing import List

import nets

# --arch of torchvision's networks
TORCHVISION = frozenset(nets.TORCHVISION)


def default_preprocess(arch: str, eval_directory: bool) -> str:
    """Name the preparation for a network: the one that its published figures are of. eval_directory: for a folder that
    is scored, for which it is the published command's, whatever the network."""
    if eval_directory:
        return 'resize'
    return 'torchvision' if arch in TORCHVISION else 'validation'


def mistaken_preprocess(arch: str, preprocess: str) -> List[str]:
    """Say where a network gets photos that are prepared otherwise than those of its training and its published
    figures."""
    if arch in TORCHVISION and preprocess == 'validation':
        return ['%s is a network of torchvision, whose photos are those of --preprocess torchvision; with validation '
                'they are resized otherwise, and the figures are not comparable with published ones' % arch]
    return []
