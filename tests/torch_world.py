"""What runs in PyTorch's environment, .venv-torch, for tests: one process does many cases, since loading takes seconds.

A worker is a script with functions: it runs those that its command line names in the current folder, and prints what
they return as JSON.
"""
import json
import os
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = os.path.join(ROOT, '.venv-torch', 'bin', 'python')

needs_torch = pytest.mark.skipif(not os.path.exists(PYTHON),
                                 reason='there is no .venv-torch; `TEST_TOOLS=1 make test` makes it')


def run_torch(*arguments, cwd=ROOT, timeout=1800):
    """Run PyTorch's Python with these arguments; returns the CompletedProcess."""
    environment = dict(os.environ, PYTHONPATH=ROOT)
    return subprocess.run([PYTHON] + [str(a) for a in arguments], cwd=str(cwd), env=environment, timeout=timeout,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)


def run_worker(script, folder, *functions):
    """Run functions of a worker, a script in this folder, in a folder; returns {function: what it returned}."""
    done = run_torch(os.path.join(ROOT, 'tests', script), *functions, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
