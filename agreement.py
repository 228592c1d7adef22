"""Whether all ranks were started alike. Ranks that differ would train a network that nobody asked for, or wait for ever."""
import argparse
import hashlib
import os
from typing import Dict, List, Optional, Sequence

import numpy as np

import checkpoint
from distributed import World
from errors import InputError
from provenance import code_sha256, sha256_of_files, versions
from third_party.imagenet import Dataset

# Where things are may differ between machines; what they hold may not
PLACES = ('data', 'classes', 'endpoint', 'load', 'resume')
SUBJECTS = ('code', 'libraries', 'flags', 'checkpoint', 'data')


def digest(*parts: object) -> int:
    """Of the parts' texts, in 48 bits: float64, in which ranks add up, holds it exactly."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16)


def data_digest(classes: Sequence[str], validation: Optional[Dataset], data_dir: Optional[str]) -> int:
    paths = [os.path.relpath(path, data_dir) for path in validation.paths] if validation else []
    return digest(list(classes), paths, list(validation.labels) if validation else [])


def ranks_that_differ(world: World, values: Sequence[int]) -> Dict[int, List[int]]:
    """{column: the ranks whose value there is not rank 0's}, the same on every rank."""
    table = np.zeros((world.size, len(values)))
    table[world.rank] = values
    table = world.sum(table)
    return {column: ranks for column, ranks in
            ((column, np.flatnonzero(table[:, column] != table[0, column]).tolist()) for column in range(len(values)))
            if ranks}


def check_agreement(world: World, options: argparse.Namespace, classes: Sequence[str],
                    validation: Optional[Dataset], attacker_sha256: str = '') -> None:
    """Raises InputError, on all ranks, that names the ranks that differ from rank 0 and in what.

    attacker_sha256: of an attacker's code that is not this project's."""
    if world.size == 1:
        return
    flags = {name: value for name, value in sorted(vars(options).items()) if name not in PLACES}
    files = checkpoint.checkpoint_files(options.load) if options.load else []
    different = ranks_that_differ(world, [
        digest(code_sha256(), attacker_sha256), digest(sorted(versions().items())), digest(flags),
        digest(sha256_of_files(files)), data_digest(classes, validation, options.data)])
    if not different:
        return
    where = {SUBJECTS[column]: ranks for column, ranks in different.items()}
    if 'flags' in where and 'code' not in where:  # which of them; under other code they may not be the same ones
        del where['flags']
        for column, ranks in ranks_that_differ(world, [digest(value) for value in flags.values()]).items():
            where['--' + list(flags)[column].replace('_', '-')] = ranks
    raise InputError('not all ranks were started alike: %s. Start all of them with the same flags, code, data and '
                     'checkpoint' % '; '.join('%s of rank %s is not that of rank 0' % (
                         what, ', '.join(map(str, ranks))) for what, ranks in where.items()))
