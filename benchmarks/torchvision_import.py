"""Imports torchvision, also where its wheel is linked to a CUDA that PyTorch is without: `import_torchvision()` before
`import torchvision` or what imports it, such as timm and torchattacks. For tests and benchmarks; needs no compiled
operation of torchvision's.
"""
from typing import Any, List

OPERATIONS = ['nms', 'qnms']
_definitions: List[Any] = []  # last as long as this does


def import_torchvision() -> Any:
    """Return the module torchvision."""
    import torch
    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library('torchvision', 'DEF')
        for name in OPERATIONS:
            library.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _definitions.append(library)
        import torchvision
    return torchvision
