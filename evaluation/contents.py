"""Before the first step: every image file is read once, by all ranks together.

What would stop the run hours later is found now, all of it, and the digests of the files tell whether an evaluation
that is continued is still one of the same images.
"""
import itertools
import json
from typing import Any, List, Sequence, Tuple

import numpy as np

from evaluation.rounds import parts_of
from runtime.bars import tqdm
from runtime.distributed import World
from runtime.errors import InputError
from third_party.batches import Check, contents
from third_party.imagenet import Dataset

FOUND = np.dtype([('position', '<i8'), ('sha256', 'u1', 32)])


def read_contents(dataset: Dataset, world: World, batch: int, check: Check) -> List[str]:
    """Return the SHA-256 of each image's file, in hexadecimal digits, by position. All ranks must call it.

    Each rank reads the files of which it will attack the images. check: a preparation's. Raises InputError, on all
    ranks, that names those that can't be decoded.
    """
    mine = list(itertools.chain.from_iterable(parts_of(len(dataset), batch)[world.rank::world.size]))
    found = np.zeros((len(mine), 1), FOUND)
    problems: List[Tuple[int, str]] = []
    read = contents((dataset.paths[i] for i in mine), check)
    # the bar is of this rank's share, and there only when it takes long
    bar = tqdm(read, total=len(mine), desc='reading the images', unit='img', disable=not world.is_chief,
               mininterval=1.0, delay=3, leave=False)

    def read_mine() -> None:
        for row, position, content in zip(found[:, 0], mine, bar):
            row['position'], row['sha256'] = position, np.frombuffer(content.sha256, np.uint8)
            if content.problem:
                problems.append((position, content.problem))

    world.patiently(read_mine)  # another rank's share may take minutes longer
    refuse_broken(gather_lists(world, problems), len(dataset))
    everybodys = world.gather(found)[:, 0]
    digests = np.zeros((len(dataset), 32), np.uint8)
    digests[everybodys['position']] = everybodys['sha256']
    return [digest.tobytes().hex() for digest in digests]


def gather_lists(world: World, mine: List[Any]) -> List[List[Any]]:
    """Return every rank's list, which must have a form in JSON, on all ranks."""
    text = np.frombuffer((json.dumps(mine) + '\n').encode(), np.uint8)
    return [json.loads(line) for line in world.gather(text[:, None]).tobytes().decode().splitlines()]


def refuse_broken(of_ranks: Sequence[List[Any]], num_images: int) -> None:
    """Raise InputError, which names them all, where ranks found broken files. of_ranks: (position, text) of each."""
    texts = [text for _, text in sorted(tuple(problem) for problems in of_ranks for problem in problems)]
    if len(texts) == 1:
        raise InputError(texts[0])
    if texts:
        raise InputError('%d of the %d images would stop the evaluation: %s' % (
            len(texts), num_images, '; '.join(texts)))
