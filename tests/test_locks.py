"""Locks of files, and what the processes of a data server write beside their reports."""
import os
import subprocess
import sys

import pytest

from runtime.locks import InUse, is_locked, take_lock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_a_lock_goes_with_its_process(tmp_path):
    path = str(tmp_path / 'lock')
    assert not is_locked(path) and not os.path.exists(path)
    program = 'import os, sys; from runtime.locks import take_lock\n' \
              'take_lock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)); print("taken", flush=True); input()'
    with subprocess.Popen([sys.executable, '-c', program, path], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'taken\n'
        assert is_locked(path)
        with open(path, 'r+') as f, pytest.raises(InUse):
            take_lock(f.fileno())
        other.kill()
    assert not is_locked(path)
    with open(path, 'r+') as f:
        assert take_lock(f.fileno()) is None
        assert is_locked(path)


REPORTING = r'''
import os, sys, time
from third_party.supervisor import REPORT, Supervisor

def child(reports):
    os.write(2, b'12 warnings generated\n3\n')  # as a decoder may write
    os.write(reports, REPORT + b'3 x.jpg is not an image\n')

with Supervisor(lambda: None) as supervisor:
    supervisor.add('the child', child, supervisor.reports, last=True)
    supervisor.run(lambda line: print('report', line))
'''


def test_a_line_that_begins_with_a_number_is_no_report():
    done = subprocess.run([sys.executable, '-c', REPORTING], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
    assert done.returncode == 0 and done.stdout == 'report 3 x.jpg is not an image\n'
    assert done.stderr == '12 warnings generated\n3\n'
