"""Types of flags for argparse: each makes a value of its text, or says in an ArgumentTypeError what the text should be.

    parser.add_argument('--attack-epsilon', type=several(positive_float))
"""
import argparse
from typing import Any, Callable, List

from runtime.pixels import LARGEST_IMAGE

LARGEST = 2 ** 31 - 1
LARGEST_FLOAT = 3.4e38  # of float32
MOST_DECAY = 0.999999  # float32 has 7 digits: a step of 1e-7 of the difference is often lost


def number_from(least: int, text: str) -> int:
    """Return a whole number, from `least` to LARGEST."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= LARGEST:
        raise argparse.ArgumentTypeError('%r is not a whole number from %d to %d' % (text, least, LARGEST))
    return value


def positive_int(text: str) -> int:
    return number_from(1, text)


def image_size(text: str) -> int:
    """Return a height and width in pixels."""
    value = positive_int(text)
    if value > LARGEST_IMAGE:
        raise argparse.ArgumentTypeError('%s is more than %d' % (text, LARGEST_IMAGE))
    return value


def natural(text: str) -> int:
    return number_from(0, text)


def positive_float(text: str) -> float:
    """Return a number above 0 that float32 can hold."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < LARGEST_FLOAT:
        raise argparse.ArgumentTypeError('%r is not a positive number' % text)
    return value


def several(of_one: Callable[[str], Any]) -> Callable[[str], List[Any]]:
    """Return a parser of values with commas between them, without repetitions."""
    def parse(text: str) -> List[Any]:
        try:
            return list(dict.fromkeys(of_one(part) for part in text.split(',')))
        except argparse.ArgumentTypeError as e:
            raise argparse.ArgumentTypeError('%s; several have commas between them' % e if ',' in text else str(e))
    return parse


def decay(text: str) -> float:
    """Return the decay of moving averages, between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError('%r is not a number between 0 and 1, such as 0.999' % text)
    if value > MOST_DECAY:
        raise argparse.ArgumentTypeError('%s: above %s averages don\'t follow, in float32' % (text, MOST_DECAY))
    return value
