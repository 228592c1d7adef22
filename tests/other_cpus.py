"""Runs checks of cpu_conv's ops as an older CPU would."""
import os
import subprocess
import sys


def call_as(isa, module, call):
    """`call`, a call of a function of a test module, in a new process: CPU_CONV_ISA only holds for one."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = 'import sys; sys.path[:0] = [%r, %r]; import cpu_conv, %s; %s.%s; print("computed by", cpu_conv.isa())' % (
        here, os.path.dirname(here), module, module, call)
    done = subprocess.run([sys.executable, '-c', command], env=dict(os.environ, CPU_CONV_ISA=isa),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    with open('/proc/cpuinfo') as f:
        known = isa == 'any_cpu' or isa + ('f' if isa == 'avx512' else '') in f.read().split()
    assert 'computed by ' + isa + '\n' in done.stdout or not known
