"""Runs checks of cpu_conv's ops in a process of its own: as an older CPU would, or with another number of threads."""
import os
import subprocess
import sys


def call_apart(module, call, **environment):
    """What `call`, a call of a function of a test module, prints in a new process."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = 'import sys; sys.path[:0] = [%r, %r]; import cpu_conv, %s; %s.%s; print("computed by", cpu_conv.isa())' % (
        here, os.path.dirname(here), module, module, call)
    done = subprocess.run([sys.executable, '-c', command], env=dict(os.environ, **environment), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


def call_as(isa, module, call):
    """CPU_CONV_ISA only holds for a process."""
    printed = call_apart(module, call, CPU_CONV_ISA=isa)
    with open('/proc/cpuinfo') as f:
        known = isa == 'any_cpu' or isa + ('f' if isa == 'avx512' else '') in f.read().split()
    assert 'computed by ' + isa + '\n' in printed or not known


def check_threads(module, call):
    """That `call % threads` prints the same for any number. A process has the threads of its first session."""
    printed = {threads: call_apart(module, call % threads) for threads in (1, 2, 5)}
    assert printed[1] == printed[2] == printed[5] and printed[1].strip()
