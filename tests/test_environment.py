"""tools/setup.sh as a user meets it: the real script in a copy of the checkout whose requirements are empty.

Nothing is downloaded and nothing is installed on the machine: apt-get, sudo and id, where they are used, are
small stand-ins on PATH that record what they were asked for.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from lanes import once

ROOT = Path(__file__).resolve().parent.parent
LANE = 'tf1' if sys.version_info < (3, 8) else 'tf2'
VERSION = '%d.%d' % sys.version_info[:2]
# All that the script calls, besides the interpreter and what it looks for.
TOOLS = ('bash cat cp cut dirname env find flock id make mkdir paste rm sed sh sha256sum sort tail timeout true'
         .split())


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def base_interpreter() -> str:
    """The interpreter that the environment of this test run was made from."""
    config = Path(sys.prefix) / 'pyvenv.cfg'
    if not config.exists():
        return sys.executable
    return re.search(r'^home = (.*)$', config.read_text(), re.M).group(1) + '/python' + VERSION


class Machine:
    """A copy of the checkout, and a PATH that holds only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / 'checkout'
        self.bin = folder / 'bin'
        self.bin.mkdir()
        for tool in TOOLS:
            if shutil.which(tool):
                (self.bin / tool).symlink_to(shutil.which(tool))
        (self.checkout / 'tools').mkdir(parents=True)
        shutil.copy(str(ROOT / 'tools' / 'setup.sh'), str(self.checkout / 'tools'))
        shutil.copy(str(ROOT / 'Makefile'), str(self.checkout))
        (self.checkout / 'requirements').mkdir()
        for name in os.listdir(str(ROOT / 'requirements')):
            (self.checkout / 'requirements' / name).write_text('')

    @property
    def environment(self) -> Path:
        return self.checkout / ('.venv-' + LANE)

    def give_python(self, where: Optional[Path] = None, makes_environments: bool = True) -> None:
        """The real interpreter at a path. One that refuses to make an environment ends a set-up right there,
        when what came before is all that a test asks about."""
        refusal = '' if makes_environments else '[ "$2" != venv ] || exit 3\n'
        executable(where or self.bin / ('python' + VERSION),
                   '#!/bin/sh\n%sexec %s "$@"\n' % (refusal, base_interpreter()))

    def give_system_packages(self) -> None:
        executable(self.bin / 'g++', '#!/bin/sh\necho 12\n')  # what it answers to -dumpversion
        for name in ['mpicxx', 'pkg-config']:
            executable(self.bin / name, '#!/bin/sh\nexit 0\n')
        # Runs the check at the end once, which is an empty file here.
        executable(self.bin / 'mpirun', '#!/bin/bash\nexec "${@: -2}"\n')

    def run(self, *command: str, **variables: str) -> 'subprocess.CompletedProcess':
        env = {'PATH': str(self.bin), 'HOME': str(self.folder), 'PIP_NO_INDEX': '1'}
        env.update(variables)
        return subprocess.run(list(command) or ['tools/setup.sh'], cwd=str(self.checkout), env=env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                              universal_newlines=True, timeout=120)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refused(result: 'subprocess.CompletedProcess') -> str:
    """Asserts that a command ended with status 2 and one line on stderr; returns the line."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith('setup: error: '), result.stderr
    assert result.stdout == ''
    return lines[0]


def test_an_unknown_lane_is_refused(machine: Machine) -> None:
    assert 'LANE=tf3' in refused(machine.run(LANE='tf3'))
    made = machine.run('make', 'setup', 'LANE=tf3')
    assert made.returncode == 2 and 'choose tf1 or tf2' in made.stderr


@pytest.mark.parametrize('lane, needs', [('tf1', 'Python 3.7'), ('tf2', 'Python 3.9 to 3.12'),
                                         ('', 'Python 3.9 to 3.12')])
def test_without_an_interpreter_the_user_is_told_which(machine: Machine, lane: str, needs: str) -> None:
    # What pyenv leaves on PATH for a version that is not active, and an interpreter of no lane.
    for name in ['python3.7', 'python3.9', 'python3.11']:
        executable(machine.bin / name, '#!/bin/sh\necho "pyenv: command not found" >&2\nexit 127\n')
    executable(machine.bin / 'python3', '#!/bin/sh\necho 3.13\n')
    assert needs in refused(machine.run(LANE=lane))


def test_an_interpreter_of_the_other_lane_is_refused(machine: Machine) -> None:
    machine.give_python()
    other = {'tf1': 'tf2', 'tf2': 'tf1'}[LANE]
    assert 'is Python %s;' % VERSION in refused(machine.run(LANE=other, PYTHON='python' + VERSION))
    assert 'PYTHON=nopython' in refused(machine.run(PYTHON='nopython'))


@pytest.mark.parametrize('where', ['PATH', 'python3', 'PYENV_ROOT', 'home'])
def test_the_interpreter_is_found(machine: Machine, where: str) -> None:
    machine.give_system_packages()
    variables = {}
    python = {'PATH': machine.bin / ('python' + VERSION), 'python3': machine.bin / 'python3',
              'PYENV_ROOT': machine.folder / 'elsewhere' / 'versions' / (VERSION + '.99') / 'bin' / 'python',
              'home': machine.folder / '.pyenv' / 'versions' / (VERSION + '.99') / 'bin' / 'python'}[where]
    machine.give_python(python, makes_environments=False)
    if where == 'PYENV_ROOT':
        variables['PYENV_ROOT'] = str(machine.folder / 'elsewhere')
    result = machine.run(**variables)
    assert result.returncode == 1
    first = result.stderr.splitlines()[0]
    assert first == 'setup: making .venv-%s with %s (Python %s)' % (LANE, python, VERSION)


def set_up(machine: Machine) -> str:
    """Runs the set-up, which must succeed, and returns what it said."""
    result = machine.run()
    assert result.returncode == 0, result.stderr
    assert result.stdout == '%s\n' % machine.environment
    return result.stderr


@once
def test_a_second_run_sets_up_nothing(machine: Machine) -> None:
    machine.give_system_packages()
    machine.give_python()
    assert 'making .venv-%s' % LANE in set_up(machine)
    made = str(machine.environment / 'bin' / 'python')
    version = subprocess.check_output([made, '-c', 'import sys; print(sys.version)'], universal_newlines=True)
    assert version == sys.version + '\n'
    mark = machine.environment / 'mark'
    mark.write_text('')
    assert len(set_up(machine).splitlines()) == 1 and mark.exists()

    # A pin of the lane that changes is brought up to date in place.
    (machine.checkout / 'requirements' / (LANE + '.txt')).write_text('pip\n')
    said = set_up(machine)
    assert 'installing' in said and 'making' not in said and mark.exists()
    assert len(set_up(machine).splitlines()) == 1


@once
@pytest.mark.slow
def test_an_environment_that_is_not_to_be_trusted_is_made_again(machine: Machine) -> None:
    machine.give_system_packages()
    machine.give_python()
    set_up(machine)
    # Another TensorFlow: Horovod was compiled against the one before.
    for name in ['cpu.txt', 'gpu.txt']:
        (machine.checkout / 'requirements' / name).write_text('pip\n')
    assert 'making' in set_up(machine)
    # An installation that failed halfway.
    pins = machine.checkout / 'requirements' / (LANE + '.txt')
    pins.write_text('no-such-package==1\n')
    failed = machine.run()
    assert failed.returncode == 1 and failed.stdout == ''
    assert 'no-such-package' in failed.stderr and str(machine.environment) + '.log' in failed.stderr
    pins.write_text('')
    assert 'making' in set_up(machine)
    # A checkout that was moved: the scripts in an environment name their interpreter by its path.
    machine.checkout.rename(machine.folder / 'moved')
    machine.checkout = machine.folder / 'moved'
    assert 'making' in set_up(machine)


def test_a_user_who_may_not_install_gets_the_command(machine: Machine) -> None:
    machine.give_python()
    executable(machine.bin / 'apt-get', '#!/bin/sh\necho "$@" >>%s/asked\n' % machine.folder)
    executable(machine.bin / 'sudo', '#!/bin/sh\nexit 1\n')
    (machine.bin / 'id').unlink()
    executable(machine.bin / 'id', '#!/bin/sh\necho 1000\n')
    line = refused(machine.run())
    assert re.search(r'sudo apt-get install -y (.*)$', line).group(1).split() == \
        ['openmpi-bin', 'libopenmpi-dev', 'g++', 'pkg-config', 'libzmq3-dev', 'libjpeg-dev']
    assert not (machine.folder / 'asked').exists()
    assert not machine.environment.exists()


def test_what_is_missing_is_installed_with_sudo(machine: Machine) -> None:
    machine.give_python(makes_environments=False)
    machine.give_system_packages()
    for name in ['mpirun', 'mpicxx']:
        (machine.bin / name).rename(machine.folder / name)
    executable(machine.bin / 'apt-get', '#!/bin/sh\necho "$DEBIAN_FRONTEND $@" >>{0}/asked\n'
               'case "$*" in *install*) {1} {0}/mpirun {0}/mpicxx {0}/bin ;; esac\n'
               .format(machine.folder, shutil.which('mv')))
    executable(machine.bin / 'sudo', '#!/bin/sh\n[ "$1" = -n ] || exit 1\nshift\nexec "$@"\n')
    (machine.bin / 'id').unlink()
    executable(machine.bin / 'id', '#!/bin/sh\necho 1000\n')
    said = machine.run().stderr.splitlines()
    assert said[0] == 'setup: installing system packages: openmpi-bin libopenmpi-dev'
    assert said[1].startswith('setup: making ')
    asked = (machine.folder / 'asked').read_text().splitlines()
    assert asked[-1].startswith('noninteractive ')
    assert asked[-1].endswith(' install openmpi-bin libopenmpi-dev')


def test_a_compiler_too_new_for_horovod_asks_for_an_older_one(machine: Machine) -> None:
    machine.give_python(makes_environments=False)
    machine.give_system_packages()
    executable(machine.bin / 'g++', '#!/bin/sh\necho 14\n')
    (machine.bin / 'id').unlink()
    executable(machine.bin / 'id', '#!/bin/sh\necho 1000\n')
    assert refused(machine.run()).endswith(' install -y g++-13')
    executable(machine.bin / 'g++-13', '#!/bin/sh\necho 13\n')
    assert machine.run().stderr.startswith('setup: making ')


def test_the_environment_of_this_checkout_is_kept() -> None:
    """With an index that answers nobody: `make test` made the environment, so nothing is left to set up."""
    if Path(sys.prefix) != ROOT / ('.venv-' + LANE):
        pytest.skip('the tests run in an environment of their own')
    result = subprocess.run([str(ROOT / 'tools' / 'setup.sh')], timeout=60, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True,
                            env=dict(os.environ, LANE=LANE, PYTHON='', PIP_INDEX_URL='http://127.0.0.1:9'))
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1 and 'lane %s is ready' % LANE in result.stderr
