"""Batches of validation images, decoded ahead by threads, in order; and what can be known of the files before."""
import collections
import hashlib
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Deque, Iterable, Iterator, NamedTuple, Optional, Sequence, TypeVar

import numpy as np

from runtime.cores import usable_cores
from runtime.errors import InputError
from runtime.limits import retried
from third_party.imagenet import Dataset
from third_party.images import check_decodable, read_file
from third_party.preparations import Preparation

Item = TypeVar('Item')
Result = TypeVar('Result')


class Batch(NamedTuple):
    """Images with their labels."""
    images: np.ndarray   # (N, S, S, 3) uint8 BGR
    labels: np.ndarray   # (N,) int32
    indices: np.ndarray  # (N,) int64, positions in the whole data set


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int,
              ahead: int) -> Iterator[Result]:
    """Yield `function` of every item, in order, computed by threads at most `ahead` items early.

    An exception of the function is raised where its result would have been.
    """
    pending: 'Deque[Future[Result]]' = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def validation_batches(dataset: Dataset, parts: Sequence[Sequence[int]], *, image_size: int,
                       preparation: Preparation, threads: Optional[int] = None) -> Iterator[Batch]:
    """Yield a batch for each of the `parts`, which are positions in the data set, of images that are prepared.

    Raises InputError naming the file when an image can't be read: leaving it out would give a wrong result. What the
    system refuses (open files, memory) is tried again, and a RunError in the end.
    """
    threads = threads or min(16, usable_cores())
    largest = max(map(len, parts), default=0)
    images = map_ahead(lambda i: retried(lambda: preparation.load(dataset.paths[i], image_size)),
                       itertools.chain.from_iterable(parts), threads=threads, ahead=2 * largest + threads)
    for part in parts:
        yield Batch(np.stack([next(images) for _ in part]), np.array([dataset.labels[i] for i in part], np.int32),
                    np.array([dataset.index(i) for i in part], np.int64))


class Content(NamedTuple):
    """What was found in a file: the problem that would stop a run which decodes it, '' where there is none; and the
    SHA-256 of its bytes, 32 zeros where there is a problem."""
    sha256: bytes
    problem: str


Check = Callable[[bytes, str], None]


def examine(path: str, check: Check = check_decodable) -> Content:
    """Read an image file, once. check: raises InputError where the file at a path, with these bytes, is no image.
    Raises RunError where the system refuses what that takes, and still does after some tries."""
    try:
        data = retried(lambda: read_file(path))
        retried(lambda: check(data, path))
    except InputError as e:
        return Content(bytes(32), str(e))
    return Content(hashlib.sha256(data).digest(), '')


def contents(paths: Iterable[str], check: Check) -> Iterator[Content]:
    """Examine files, in order."""
    return map_ahead(lambda path: examine(path, check), paths, threads=8, ahead=64)  # file servers are slow one by one
