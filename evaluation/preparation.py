"""Which preparation of images a network is used to, and that an evaluation says where it gets another one."""
from typing import List

import nets


def default_preprocess(arch: str, eval_directory: bool) -> str:
    """Name the preparation for a network: the one that its published figures are of. eval_directory: for a folder that
    is scored, for which it is the published command's, whatever the network."""
    if eval_directory:
        return 'resize'
    return 'torchvision' if arch in nets.TORCHVISION else 'validation'


def mistaken_preprocess(arch: str, preprocess: str, eval_directory: bool = False) -> List[str]:
    """Say where a network gets photos that are prepared otherwise than those of its training and its published
    figures."""
    usual = default_preprocess(arch, eval_directory)
    if nets.is_own(arch) or preprocess == usual or eval_directory and preprocess == default_preprocess(arch, False):
        return []
    return ['the published figures of %s are of photos as --preprocess %s prepares them; those with %s can\'t be '
            'compared with them' % (arch, default_preprocess(arch, False), preprocess)]
