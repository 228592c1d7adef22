"""What an evaluation leaves behind: a file with one record for each strength of the attack, and all it depends on."""
import hashlib
import json
import os
import sys
from importlib import import_module
from typing import Any, Dict, Iterable, List, Tuple

from errors import InputError
from evaluation import Figures, Strength

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def wilson_interval(count: int, total: int) -> Tuple[float, float]:
    """The 95% interval (Wilson 1927) of a rate of which `count` of `total` independent draws were seen."""
    if not total:
        return 0.0, 1.0
    rate, z2 = count / total, Z_95 ** 2
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 * ((rate * (1 - rate) + z2 / (4 * total)) / total) ** 0.5 / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def attack_record(strength: Strength, figures: Figures, ranks: int) -> Dict[str, Any]:
    """One strength's record. Rates are fractions; `seconds` are those of its whole trajectory, of which strengths with
    the same step size share the beginning."""
    seconds = figures.seconds / ranks
    record = dict(attack_iter=strength.num_iter, epsilon=strength.epsilon, step_size=strength.step_used,
                  num_images=figures.num_images)
    for name, count in [('top1_error', 'wrong_top1'), ('top5_error', 'wrong_top5'), ('attack_success_rate', 'successes')]:
        record[name] = figures.rate(count)
        record[name + '_interval'] = list(wilson_interval(getattr(figures, count), figures.num_images))
    record['seconds'] = round(seconds, 3)
    record['image_steps_per_second'] = round(figures.num_images * strength.num_iter / seconds, 3) if seconds else 0.0
    return record


def checkpoint_sha256(files: Iterable[str]) -> str:
    """Of the bytes of a checkpoint's files, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, 'rb') as f:
            for block in iter(lambda: f.read(1 << 20), b''):
                digest.update(block)
    return digest.hexdigest()


def versions() -> Dict[str, str]:
    """Of Python and of the libraries that the figures depend on."""
    found = {'python': '%d.%d.%d' % sys.version_info[:3]}
    for name in ('tensorflow', 'tensorpack', 'numpy', 'cv2'):
        found[name] = import_module(name).__version__
    return found


def write_results(path: str, facts: Dict[str, Any], attacks: List[Dict[str, Any]]) -> None:
    """JSON: `facts`, and the records under `attacks`. The file is there as a whole or not at all."""
    path = os.path.realpath(path)  # a link stays one
    temporary = '%s.%d.part' % (path, os.getpid())
    try:
        with open(temporary, 'w') as f:
            json.dump(dict(facts, attacks=attacks), f, indent=1, sort_keys=True)
            f.write('\n')
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise InputError('cannot write %s: %s' % (path, e.strerror))
