"""How many cores a process may use: its affinity mask, and the CPU quotas of its cgroups."""
import os
import subprocess
import sys

import pytest

from runtime import cores

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)))


def count(tmp_path, own, files):
    for name, text in files.items():
        path = tmp_path / 'cgroup' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / 'own').write_text(own)
    return cores.usable_cores(str(tmp_path / 'cgroup'), str(tmp_path / 'own'))


@pytest.mark.parametrize('own, files, expected', [
    ('0::/\n', {'cpu.max': '200000 100000\n'}, 2),
    ('0::/\n', {'cpu.max': 'max 100000\n'}, 8),
    ('0::/\n', {}, 8),
    ('', {'cpu.max': '200000 100000\n'}, 8),
    ('0::/\n', {'cpu.max': '150000 100000\n'}, 2),
    ('0::/\n', {'cpu.max': '1000 100000\n'}, 1),
    ('0::/\n', {'cpu.max': '6400000 100000\n'}, 8),
    ('0::/\n', {'cpu.max': '25000 12500\n'}, 2),
    ('0::/\n', {'cpu.max': 'nonsense\n'}, 8),
    ('0::/\n', {'cpu.max': ''}, 8),
    ('0::/job/step\n', {'job/step/cpu.max': 'max 100000\n', 'job/cpu.max': '300000 100000\n'}, 3),
    ('0::/job/step\n', {'job/step/cpu.max': '100000 100000\n', 'job/cpu.max': '300000 100000\n'}, 1),
    ('0::/job/step\n', {'other/cpu.max': '100000 100000\n'}, 8),
    ('0::/../../job\n', {'cpu.max': '400000 100000\n'}, 4),
    # version 1, and both side by side
    ('4:cpu,cpuacct:/\n', {'cpu,cpuacct/cpu.cfs_quota_us': '200000\n', 'cpu,cpuacct/cpu.cfs_period_us': '100000\n'}, 2),
    ('4:cpu,cpuacct:/\n', {'cpu/cpu.cfs_quota_us': '200000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 2),
    ('1:cpu:/a\n', {'cpu/a/cpu.cfs_quota_us': '-1\n', 'cpu/a/cpu.cfs_period_us': '100000\n'}, 8),
    ('2:cpuset:/\n1:cpu:/a/b\n0::/\n', {'cpu/a/cpu.cfs_quota_us': '50000', 'cpu/a/cpu.cfs_period_us': '10000'}, 5),
    # in a container, which sees its own cgroup as the root, and the path from outside
    ('1:cpu:/docker/1f2e\n', {'cpu/cpu.cfs_quota_us': '300000', 'cpu/cpu.cfs_period_us': '100000'}, 3),
    ('1:cpu:/\n0::/x\n', {'unified/x/cpu.max': '100000 50000'}, 2)])
def test_quotas(eight, tmp_path, own, files, expected):
    assert count(tmp_path, own, files) == expected


def test_a_process_bound_to_one_core_has_one():
    code = 'import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from runtime.cores import *; ' \
           'print(usable_cores())'
    assert subprocess.check_output([sys.executable, '-c', code], cwd=ROOT) == b'1\n'


def test_a_real_cgroup(tmp_path):
    """In a cgroup of this machine with a quota of one core, the data server starts one worker by itself."""
    folder = next((f for f in ('/sys/fs/cgroup/cpu', '/sys/fs/cgroup') if os.access(f + '/cgroup.procs', os.W_OK)), '')
    name = '%s/cores-test-%d' % (folder, os.getpid())
    try:
        os.mkdir(name)
    except OSError:
        pytest.skip('cgroups can\'t be made here')
    try:
        try:
            if os.path.exists(name + '/cpu.cfs_quota_us'):
                with open(name + '/cpu.cfs_quota_us', 'w') as f:
                    f.write('100000')
            else:
                with open(name + '/cpu.max', 'w') as f:
                    f.write('100000 100000')
        except OSError:
            pytest.skip('this cgroup has no CPU quota')

        def enter():
            with open(name + '/cgroup.procs', 'w') as f:
                f.write(str(os.getpid()))
        run = subprocess.run([sys.executable, '-c', 'from runtime.cores import usable_cores; print(usable_cores())'],
                             cwd=ROOT, preexec_fn=enter, stdout=subprocess.PIPE)
        assert run.stdout == b'1\n'
        help_text = subprocess.run([sys.executable, 'third_party/serve-data.py', '--help'], cwd=ROOT,
                                   preexec_fn=enter, stdout=subprocess.PIPE, universal_newlines=True).stdout
        assert 'as many as cores, 1)' in ' '.join(help_text.split())
    finally:
        os.rmdir(name)
