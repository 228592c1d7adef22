"""Which preparation of images a network's published figures are of, and the warning where it gets another one."""
from typing import List

import nets

IMAGENET_CLASSES = 1000


def default_preprocess(arch: str, eval_directory: bool) -> str:
    """Name the preparation for a network: the one that its published figures are of. eval_directory: for a folder that
    is scored, for which it is the published command's, whatever the network."""
    if eval_directory:
        return 'resize'
    return 'torchvision' if arch in nets.TORCHVISION else 'validation'


def mistaken_preprocess(arch: str, preprocess: str, num_classes: int, *, eval_directory: bool = False) -> List[str]:
    """Say where a network gets photos that are prepared otherwise than those of its published figures.

    These are of ImageNet: the paper's networks of other classes have none. Torchvision's are mostly trained further,
    for any classes, on photos prepared as before.
    """
    own = default_preprocess(arch, False)
    usual = {own, default_preprocess(arch, eval_directory)}
    if nets.is_own(arch) or preprocess in usual or (num_classes != IMAGENET_CLASSES and arch not in nets.TORCHVISION):
        return []
    if arch in nets.TORCHVISION:
        return ['networks of torchvision\'s, such as %s, are trained on photos as --preprocess torchvision prepares '
                'them; figures with %s can\'t be compared with their published ones' % (arch, preprocess)]
    return ['the published figures of %s are of photos as --preprocess %s prepares them; those with %s can\'t be '
            'compared with them' % (arch, own, preprocess)]
