"""Figures that can't be printed: on a full device, into a pipe that nobody reads, on a closed stdout."""
import json
import os
import subprocess
import sys

import pytest
from evaluating import SMALL
from lanes import once
from photos import write_split

PROGRAM = '''
from runtime.command_line import run_command
from runtime.printing import check_stdout, say

def command():
    check_stdout()
    say('figures')
    return 0

run_command('prog.py', command)
'''


def run(root, redirection, *command, **environment):
    """Run a command in a shell, with its stdout redirected."""
    return subprocess.run(['bash', '-c', '"$@" ' + redirection, 'bash'] + list(command), cwd=root,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=200, env=dict(os.environ, **environment))


@pytest.mark.parametrize('redirection, status, said', [
    ('', 0, ''), ('>/dev/full', 1, 'failed: cannot write to stdout: No space left on device'),
    ('>&-', 2, 'error: stdout is closed'), ('| (exec <&-; sleep 1); exit ${PIPESTATUS[0]}', 1,
                                            'failed: cannot write to stdout: Broken pipe')])
@pytest.mark.parametrize('buffering', ['', 'x'])
def test_one_line_and_a_status(root, redirection, status, said, buffering):
    slow = PROGRAM.replace("    say(", "    import time; time.sleep(0.5)\n    say(") if '|' in redirection else PROGRAM
    done = run(root, redirection, sys.executable, '-c', slow, PYTHONUNBUFFERED=buffering)
    assert done.returncode == status and done.stderr.count('\n') == bool(said), done.stderr
    assert done.stderr.startswith('prog.py: ' + said if said else '')
    assert done.stdout == ('' if status else 'figures\n')


def test_what_is_printed_at_the_end_of_a_program(root):
    """Without asking whether it is there."""
    done = run(root, '>/dev/full', sys.executable, '-c', PROGRAM.replace("say('figures')", "print('figures')"),
               PYTHONUNBUFFERED='')
    assert done.returncode == 1
    assert done.stderr == 'prog.py: failed: cannot write to stdout: No space left on device\n'


@once
def test_an_evaluation_keeps_its_results_all_the_same(root, weights_file, tmp_path):
    write_split(tmp_path / 'data' / 'val', 12)
    done = run(root, '>/dev/full', sys.executable, 'main.py', '--eval', '--load', weights_file(), '--data',
               str(tmp_path / 'data'), '--attack-iter', '0', '--results', str(tmp_path / 'r.json'), *SMALL)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1] == 'main.py: failed: cannot write to stdout: No space left on device'
    assert len(json.loads((tmp_path / 'r.json').read_text())['attacks']) == 1
