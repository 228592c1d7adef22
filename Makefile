# The two commands: `make demo` and `make test`. Both set up the environment first, when it is not yet there.
SHELL := bash
export LANE PYTHON

# Every recipe gets the lane's environment from tools/setup.sh, which prints its path, and puts it first on PATH.
ENTER = env=$$(tools/setup.sh) && export PATH="$$env/bin:$$PATH"

# A test process more than there are cores, as tests often wait, for each other's processes, for slurm, for time limits;
# at most 4 for their memory. One that has nothing left takes tests from another; until then each keeps to its share of
# the files, since tests of a file share networks and data.
PARALLEL = -n $$(($$(nproc) < 4 ? $$(nproc) + 1 : 4)) --dist worksteal

.PHONY: help setup demo test lint

help:
	@echo 'make demo    set up, then train, attack and score on a small data set (3 to 10 minutes on 2 cores)'
	@echo 'make test    set up, then run the tests, the fast ones first; pytest reads options from PYTEST_ADDOPTS'
	@echo 'make lint    check style and types, with ruff and mypy'
	@echo 'make setup   set up alone: .venv-tf1 or .venv-tf2 in this folder'
	@echo
	@echo 'LANE=tf1|tf2 picks the lane: TensorFlow 1.15 on Python 3.7, or 2.18 on Python 3.9 to 3.12.'
	@echo '             Without it: the one that a Python of this machine can run, tf2 first.'
	@echo 'PYTHON=...   picks the interpreter, for example: make setup PYTHON=python3.12'
	@echo '             Without it: an environment keeps its own, and a new one takes the first that fits, on PATH or'
	@echo '             in pyenv.'
	@echo 'TEST_TOOLS=1  has make test install what some tests are skipped without: Chromium, slurm, a toolbox, PyTorch.'
	@echo 'HOROVOD_GPU_OPERATIONS=NCCL and other HOROVOD_ variables reach the build of Horovod.'

lint:
	@tools/lint.sh

setup:
	@tools/setup.sh >/dev/null

demo:
	@$(ENTER) && python tools/demo.py

test:
	@$(ENTER) && tools/test_tools.sh "$$env" && python -m pytest $(PARALLEL) -m 'not slow' tests && python -m pytest $(PARALLEL) -m slow tests
