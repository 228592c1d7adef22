"""The ways in which an image file becomes what a network sees, by the names that `main.py --preprocess` takes.

    PREPARATIONS['validation']().load('photo.jpg', 224)     -> uint8 (224, 224, 3) BGR

What a preparation computes with (OpenCV, Pillow) is loaded when it is called: the command line knows the names at once.
"""
from typing import TYPE_CHECKING, Callable, Dict, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Preparation(NamedTuple):
    """Holds how an image file is decoded, and cut to what a network sees."""
    # uint8 (height, width, 3) BGR of the file at a path; raises InputError, naming it, where it can't be decoded
    decode: 'Callable[[str], np.ndarray]'
    # uint8 (size, size, 3) of an image of any size, and the network's size
    cut: 'Callable[[np.ndarray, int], np.ndarray]'
    # raises InputError where `decode` would for the file that has these bytes, in less time; given its path, too
    check: Callable[[bytes, str], None]

    def load(self, path: str, size: int) -> 'np.ndarray':
        """Return what a network of images of `size` pixels sees of a file: uint8 (size, size, 3) BGR. Raises InputError
        as `decode` does."""
        return self.cut(self.decode(path), size)


def resize() -> Preparation:
    """Return the preparation by which the published code scores a folder: whole images, whatever their shape."""
    from third_party.images import check_decodable, decode, resized_image
    return Preparation(decode, resized_image, check_decodable)


def validation() -> Preparation:
    """Return the preparation of the paper's evaluations: OpenCV's shortest edge 256, cubic, and the centre 224."""
    from third_party.images import check_decodable, decode, validation_image
    return Preparation(decode, validation_image, check_decodable)


def torchvision() -> Preparation:
    """Return the preparation of torchvision's networks: Pillow's shortest edge 256, bilinear, and the centre 224."""
    from third_party.pillow import check_decodable, decode, torchvision_image
    return Preparation(decode, torchvision_image, check_decodable)


PREPARATIONS: Dict[str, Callable[[], Preparation]] = {
    'resize': resize, 'validation': validation, 'torchvision': torchvision}
