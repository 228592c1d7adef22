"""Run checks of cpu_conv's ops in a process of its own: as an older CPU would, or with another number of threads."""
import os

from forked import run_python


def call_apart(module, call, **environment):
    """Run a call such as 'check_sizes("float32")' of a test module in a new process; returns what it prints.

    environment: variables that the process has besides those of this one. The last line names the instruction set.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    command = ('import sys; sys.path[:0] = [%r, %r]; import cpu_conv, %s; %s.%s; '
               'print("computed by", cpu_conv.isa())' % (here, os.path.dirname(here), module, module, call))
    done = run_python('-c', command, env=dict(os.environ, **environment))
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


def call_as(isa, module, call):
    """Run a call of a test module with the kernels of an instruction set, and check that those computed it.

    It takes a process of its own: cpu_conv reads CPU_CONV_ISA once. Where this CPU lacks the instructions, others
    compute the call, and it alone is checked.
    """
    printed = call_apart(module, call, CPU_CONV_ISA=isa)
    with open('/proc/cpuinfo') as f:
        known = isa == 'any_cpu' or isa + ('f' if isa == 'avx512' else '') in f.read().split()
    assert 'computed by ' + isa + '\n' in printed or not known


def check_threads(module, call):
    """Check that `call % threads` of a test module prints the same for 1, 2 and 5 threads.

    Each number takes a process of its own: TensorFlow keeps the threads of a process's first session.
    """
    printed = {threads: call_apart(module, call % threads) for threads in (1, 2, 5)}
    assert printed[1] == printed[2] == printed[5] and printed[1].strip()
