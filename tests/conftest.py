"""What several test files share. Every test runs from any directory, on a CPU, without a network."""
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

# A job in the background, or under nohup, ignores these signals, and would hand that on to the programs that the tests
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from forked import run_main  # noqa: E402
from helpers import expected_shapes, random_weights  # noqa: E402

# The files with the longest tests. These begin first, so that the test processes end at about the same time.
LONGEST = ['test_torch_networks.py', 'test_slurm.py', 'test_networks.py', 'test_averages.py', 'test_training.py',
           'test_training_setups.py', 'test_reference.py', 'test_cifar10.py', 'test_resume.py', 'test_failures.py',
           'test_evaluation_records.py', 'test_apgd.py']


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope='session')
def root():
    """Return the folder of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def reference_dir():
    """Return the folder of the published code's results; skip what needs it where REFERENCE_DIR names none."""
    path = os.environ.get('REFERENCE_DIR')
    if not path:
        pytest.skip('REFERENCE_DIR names no folder with results of the published code')
    assert os.path.isfile(os.path.join(path, 'variables.json')), 'no variables.json in REFERENCE_DIR=%s' % path
    return os.path.abspath(path)


@pytest.fixture(scope='session')
def python(root):
    """Return what runs this environment's Python: python('main.py', ..., timeout=s, cwd=root) -> CompletedProcess.

    It runs main.py by way of forked.py, which saves the seconds of loading TensorFlow. Other scripts are a new Python
    each, and so is main.py where it gets an `env` or options of subprocess.run.
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
    """Return weights_of(arch='ResNet', depth=14, classes=10, seed=0) -> {name: float32 array}.

    The weights are random, such that features stay near 1.
    """
    made = {}

    def make(arch='ResNet', depth=14, classes=10, seed=0):
        key = arch, depth, classes, seed
        if key not in made:
            made[key] = random_weights(expected_shapes(arch, depth, classes), seed)
        return dict(made[key])
    return make


@pytest.fixture(scope='session')
def weights_file(tmp_path_factory, weights_of):
    """Return weights_file(arch='ResNet', depth=14, classes=10, seed=0) -> the path of an .npz with those weights."""
    folder = tmp_path_factory.mktemp('weights')

    def write(arch='ResNet', depth=14, classes=10, seed=0):
        path = str(folder / ('%s-%d-%d-%d.npz' % (arch, depth, classes, seed)))
        if not os.path.exists(path):
            np.savez(path, **weights_of(arch, depth, classes, seed))
        return path
    return write


@pytest.fixture(scope='session')
def classifier(weights_file):
    """Return classifier(arch='ResNet') -> a loaded network of 14 layers, 10 classes and images of 32 pixels.

    Loading is slow, so all tests share the networks.
    """
    from inference import load_classifier
    loaded = {}

    def load(arch='ResNet'):
        if arch not in loaded:
            loaded[arch] = load_classifier(weights_file(arch), arch=arch, depth=14, image_size=32, batch=8)
        return loaded[arch]
    return load


@pytest.fixture
def session():
    """Open a session of a new graph, which is the default graph until the test ends."""
    from runtime.compat import tf

    from runtime.hardware import session_config
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        yield session
