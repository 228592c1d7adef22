"""What a job prints on stdout, its figures, is there or is an error."""
import contextlib
import os
import sys

from runtime.errors import InputError, RunError


def check_stdout() -> None:
    """Raise InputError where stdout is closed: figures would be lost, or end in the file that is opened next."""
    if sys.stdout is None:
        raise InputError('stdout is closed, and the figures go there: give it a file, or /dev/null')


def say(text: str) -> None:
    """Print lines, at once. Raises RunError where stdout doesn't take them."""
    try:
        print(text, flush=True)
    except (OSError, ValueError) as e:
        with contextlib.suppress(OSError, ValueError):
            # what it did not take would be tried again, and fail again, when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RunError('cannot write to stdout: %s' % (getattr(e, 'strerror', None) or e))
