"""How ranks share a job: each computes some batches, and one of every rank at a time is put together.

The batches are the same whatever the number of ranks, and their outcomes come in the order of the positions, so what is
finished is always the beginning: an evaluation can be continued where it ended.
"""
from typing import Iterable, Iterator, List, Sequence, Tuple

import numpy as np

from evaluation.outcomes import OUTCOME
from runtime.distributed import World


def parts_of(total: int, batch: int, begin: int = 0) -> List[range]:
    """Deal the positions from `begin` to `total` into batches.

    They are the batches of the whole set: with another number of ranks, or continued, they hold the same images.
    """
    starts = [begin] + list(range(begin - begin % batch + batch, total, batch))
    return [range(i, min(i + batch - i % batch, total)) for i in starts if i < total]


def in_rounds(parts: Sequence[range], shares: Iterable[np.ndarray], world: World,
              num_strengths: int) -> Iterator[Tuple[range, np.ndarray]]:
    """Put together what ranks computed, one part of every rank at a time.

    shares: the outcomes of this rank's parts, parts[world.rank::world.size]. Yields the same on all ranks: the next
    positions, and (N, num_strengths) of OUTCOME.
    """
    remaining = iter(shares)
    for first in range(0, len(parts), world.size):
        # An attack may take an hour, on some ranks more than on others; in the last round some have nothing to do.
        share = world.patiently(lambda: next(remaining, None))
        outcomes = world.gather(np.zeros((0, num_strengths), OUTCOME) if share is None else share)
        outcomes['seconds'] /= world.size  # ranks work at the same time
        yield range(parts[first].start, parts[min(first + world.size, len(parts)) - 1].stop), outcomes
