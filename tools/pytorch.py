"""What the tools say that need PyTorch where there is none."""
import sys

from runtime.errors import InputError


def require_pytorch() -> None:
    """Raise InputError where PyTorch can't be imported."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError('this needs PyTorch, which is not in this environment (%s): use one with '
                         'requirements/torch.txt, such as .venv-torch' % sys.executable)
