"""What several test files share. Every test runs from any directory, on a CPU, without a network."""
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

# A job in the background, or under nohup, ignores these, and would hand that on to the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from forked import run_main  # noqa: E402
from helpers import expected_shapes, random_weights  # noqa: E402


@pytest.fixture(scope='session')
def root():
    """The checkout."""
    return ROOT


@pytest.fixture(scope='session')
def reference_dir():
    """The folder of the published code's results; tests that need it are skipped without."""
    path = os.environ.get('REFERENCE_DIR')
    if not path:
        pytest.skip('REFERENCE_DIR names no folder with results of the published code')
    assert os.path.isfile(os.path.join(path, 'variables.json')), 'no variables.json in REFERENCE_DIR=%s' % path
    return os.path.abspath(path)


@pytest.fixture(scope='session')
def python(root):
    """Runs this environment's Python in the checkout: python('main.py', ..., timeout=s) -> CompletedProcess.

    main.py is run by forked.py, without the seconds of loading TensorFlow; with an `env`, everything is a new Python.
    """
    def run(*arguments, timeout=300, cwd=root, env=None, **options):
        if arguments[0] in ('main.py', os.path.join(root, 'main.py')) and not env and not options:
            return run_main(*arguments[1:], timeout=timeout, cwd=cwd)
        environment = dict(os.environ, **(env or {}))
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, [root, environment.get('PYTHONPATH')]))
        return subprocess.run([sys.executable] + [str(a) for a in arguments], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                              timeout=timeout, cwd=str(cwd), env=environment, **options)
    return run


@pytest.fixture(scope='session')
def weights_of():
    """weights_of(arch, depth=14, classes=10, seed=0) -> {name: float32 array}: random, with features near 1."""
    made = {}

    def make(arch='ResNet', depth=14, classes=10, seed=0):
        key = arch, depth, classes, seed
        if key not in made:
            made[key] = random_weights(expected_shapes(arch, depth, classes), seed)
        return dict(made[key])
    return make


@pytest.fixture(scope='session')
def weights_file(tmp_path_factory, weights_of):
    """weights_file(arch, depth=14, classes=10, seed=0) -> the path of an .npz with those weights."""
    folder = tmp_path_factory.mktemp('weights')

    def write(arch='ResNet', depth=14, classes=10, seed=0):
        path = str(folder / ('%s-%d-%d-%d.npz' % (arch, depth, classes, seed)))
        if not os.path.exists(path):
            np.savez(path, **weights_of(arch, depth, classes, seed))
        return path
    return write


@pytest.fixture(scope='session')
def classifier(weights_file):
    """classifier(arch) -> a loaded network: 14 layers, 10 classes, images of 32 pixels. Shared, as it is slow."""
    from inference import load_classifier
    loaded = {}

    def load(arch='ResNet'):
        if arch not in loaded:
            loaded[arch] = load_classifier(weights_file(arch), arch=arch, depth=14, image_size=32, batch=8)
        return loaded[arch]
    return load


@pytest.fixture
def session():
    """A session of a new graph, which is the default one."""
    from runtime.compat import tf

    from runtime.hardware import session_config
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        yield session
