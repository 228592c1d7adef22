"""What a result depends on: the code, the libraries, the checkpoint, the data and the flags, as digests and versions."""
import argparse
import hashlib
import inspect
import os
import sys
from importlib import import_module
from typing import Any, Dict, Iterable, List, Sequence

from checkpoint import checkpoint_files
from nets import Network
from outcomes import Strength
from third_party.imagenet import Dataset

ROOT = os.path.dirname(os.path.abspath(__file__))
SOURCES = ('.py', '.c', '.cc', '.h', '.inc')
# Folders of the checkout whose code no job runs, or that jobs fill with their output
NOT_IN_JOBS = ('tests', 'tools', 'benchmarks', 'examples', 'train_log', 'demo', 'cifar10-results')


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


def code_files(root: str = ROOT) -> List[str]:
    """List the sources of the checkout `root` that run in a job, those of compiled ops included: sorted paths."""
    found = []
    for folder, folders, names in os.walk(root):
        if folder == root:
            folders[:] = [name for name in folders if name not in NOT_IN_JOBS]
        folders[:] = [name for name in folders if not name.startswith('.') and name != 'build']
        found += [os.path.join(folder, name) for name in names if name.endswith(SOURCES)]
    return sorted(found)


def code_sha256(root: str = ROOT) -> str:
    """Return the SHA-256 of the names and contents of `code_files`."""
    files = code_files(root)
    names = '\n'.join(os.path.relpath(path, root).replace(os.sep, '/') for path in files)
    return hashlib.sha256(('%s\n%s' % (names, sha256_of_files(files))).encode()).hexdigest()


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
