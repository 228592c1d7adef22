"""Whether all ranks were started alike. Ranks that differ would train a network that nobody asked for, or wait for
ever."""
from typing import Dict, List, Mapping, Sequence

import numpy as np

from runtime.distributed import World
from runtime.errors import InputError
from runtime.fingerprint import code_sha256, digest, sha256_of_files, versions

# Where things are may differ between machines; what they hold may not
PLACES = ('data', 'classes', 'endpoint', 'load', 'resume')


def ranks_that_differ(world: World, digests: Sequence[bytes]) -> Dict[int, List[int]]:
    """Return {position in `digests`: the ranks whose digest there is not rank 0's}, the same on every rank."""
    mine = np.frombuffer(b''.join(digests), np.uint8)
    table = world.gather(mine.reshape(1, -1)).reshape(world.size, len(digests), -1)
    differs = (table != table[0]).any(axis=2)
    return {position: np.flatnonzero(differs[:, position]).tolist()
            for position in range(len(digests)) if differs[:, position].any()}


def check_agreement(world: World, flags: Mapping[str, object], *, checkpoint: Sequence[str] = (), data: object = None,
                    more_code: str = '') -> None:
    """Raise InputError, on all ranks, that names the ranks that differ from rank 0 and in what.

    Args:
        flags: {name: value}. checkpoint: paths of its files. data: anything whose repr() tells the data set.
        more_code: a digest of code that is not this project's.
    """
    if world.size == 1:
        return
    flags = {name: value for name, value in sorted(flags.items()) if name not in PLACES}
    subjects = {'code': digest(code_sha256(), more_code), 'libraries': digest(sorted(versions().items())),
                'flags': digest(flags), 'checkpoint': digest(sha256_of_files(checkpoint)), 'data': digest(data)}
    different = ranks_that_differ(world, list(subjects.values()))
    if not different:
        return
    where = {list(subjects)[position]: ranks for position, ranks in different.items()}
    if 'flags' in where and 'code' not in where:  # which of them; under other code they may not be the same ones
        del where['flags']
        for position, ranks in ranks_that_differ(world, [digest(value) for value in flags.values()]).items():
            where['--' + list(flags)[position].replace('_', '-')] = ranks
    raise InputError('not all ranks were started alike: %s. Start all of them with the same flags, code, data and '
                     'checkpoint' % '; '.join('%s of rank %s is not that of rank 0' % (
                         what, ', '.join(map(str, ranks))) for what, ranks in where.items()))
