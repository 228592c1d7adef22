"""What a result depends on: the code, the libraries, the checkpoint, the data and the flags, as digests and versions."""
import argparse
import glob
import hashlib
import inspect
import os
import sys
from importlib import import_module
from typing import Any, Dict, Iterable, Sequence

from checkpoint import checkpoint_files
from nets import Network
from outcomes import Strength
from third_party.imagenet import Dataset

ROOT = os.path.dirname(os.path.abspath(__file__))


def sha256_of_files(files: Iterable[str]) -> str:
    """Of their bytes, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, 'rb') as f:
            for block in iter(lambda: f.read(1 << 20), b''):
                digest.update(block)
    return digest.hexdigest()


def attacker_sha256(attacker: type) -> str:
    """Of the file that an attacker's class is in, which need not be this project's."""
    return sha256_of_files([inspect.getfile(attacker)])


def code_sha256() -> str:
    """Of this project's code that runs in a job, and of the ops that compute figures."""
    patterns = ['*.py', 'third_party/*.py', 'third_party/cpu_conv/*/*']
    paths = [path for pattern in patterns for path in sorted(glob.glob(os.path.join(ROOT, pattern)))]
    return sha256_of_files(path for path in paths if path.endswith(('.py', '.cc', '.h', '.inc')))


def versions() -> Dict[str, str]:
    """Of Python and of the libraries that the figures depend on."""
    found = {'python': '%d.%d.%d' % sys.version_info[:3]}
    for name in ('tensorflow', 'tensorpack', 'numpy', 'cv2'):
        found[name] = import_module(name).__version__
    return found


def evaluation_facts(options: argparse.Namespace, network: Network, dataset: Dataset, attacker: type,
                     strengths: Sequence[Strength]) -> Dict[str, Any]:
    """All that the outcomes of an evaluation depend on, but for rounding: two with the same facts are the same one."""
    return dict(
        arch=network.arch, depth=network.depth, classes=network.num_classes, image_size=options.image_size,
        checkpoint_sha256=sha256_of_files(checkpoint_files(options.load)), data_sha256=dataset.digest(options.data),
        num_images=len(dataset), seed=options.seed, attack_dtype=options.attack_dtype, xla=options.xla,
        attacker='%s:%s' % (attacker.__module__, attacker.__name__),
        attacker_sha256=attacker_sha256(attacker), strengths=[list(s) for s in strengths],
        saves_images=bool(options.save_adversarial), code_sha256=code_sha256(), versions=versions())
