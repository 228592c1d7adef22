"""What a result depends on beside its data and flags: the code and the libraries, as a digest and versions."""
import hashlib
import os
import sys
from importlib import import_module
from typing import Dict, Iterable, List

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = ('.py', '.c', '.cc', '.h', '.inc')
# Folders of the checkout whose code is no part of main.py's jobs (what a flag names there has a digest of its own), or
# that jobs fill with their output
NOT_IN_JOBS = ('tests', 'tools', 'benchmarks', 'examples', 'train_log', 'demo', 'cifar10-results', 'methods-results')


def digest(*parts: object) -> bytes:
    """Return the SHA-256 of the parts' texts, 32 bytes."""
    return hashlib.sha256(repr(parts).encode('utf-8', 'surrogateescape')).digest()


def sha256_of_files(files: Iterable[str]) -> str:
    """Return the SHA-256 of the files' bytes, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, 'rb') as f:
            for block in iter(lambda: f.read(1 << 20), b''):
                digest.update(block)
    return digest.hexdigest()


def code_files(root: str = ROOT) -> List[str]:
    """List the sources of the checkout `root` that run in a job, those of compiled ops included: sorted paths."""
    found = []
    for folder, folders, names in os.walk(root):
        if folder == root:
            folders[:] = [name for name in folders if name not in NOT_IN_JOBS]
        if folder != root and ('pyvenv.cfg' in names or {'train', 'val'} & set(folders)):
            # somebody's Python environment, or a data set, which may have millions of files
            folders[:], names = [], []
        folders[:] = [name for name in folders if not name.startswith('.') and name != 'build']
        found += [os.path.join(folder, name) for name in names if name.endswith(SOURCES)]
    return sorted(found)


def code_sha256(root: str = ROOT) -> str:
    """Return the SHA-256 of the names and contents of `code_files`."""
    files = code_files(root)
    names = '\n'.join(os.path.relpath(path, root).replace(os.sep, '/') for path in files)
    return hashlib.sha256(('%s\n%s' % (names, sha256_of_files(files))).encode('utf-8', 'surrogateescape')).hexdigest()


def versions() -> Dict[str, str]:
    """Return the versions of Python and of the libraries that figures depend on, {name: version}."""
    found = {'python': '%d.%d.%d' % sys.version_info[:3]}
    for name in ('tensorflow', 'tensorpack', 'numpy', 'cv2', 'PIL'):
        found[name] = import_module(name).__version__
    return found
