"""Run evaluations: main.py --eval on a small network, alone and under mpirun.

A launcher makes a command of the arguments of Python: `alone` one process's, `ranks(n)` one of mpirun.
"""
import csv
import subprocess

from forked import run_main

from tools.mpi import mpirun

SMALL = ['--arch', 'ResNet', '-d', '14', '--image-size', '32']


def alone(arguments):
    return mpirun(1, arguments)[-len(arguments) - 1:]  # this Python, without the launcher


def ranks(count):
    return (lambda arguments: mpirun(count, arguments)) if count > 1 else alone


def evaluation(launcher, data, weights, *flags):
    """Return the command that evaluates `weights` on the folder `data`."""
    return launcher(['main.py', '--eval', '--load', weights, '--data', str(data)] + SMALL + [str(f) for f in flags])


def evaluate(root, launcher, data, weights, *flags):
    """Run an evaluation that must succeed; returns its CompletedProcess. root: the folder of the checkout."""
    command = evaluation(launcher, data, weights, *flags)
    if launcher is alone:
        done = run_main(*command[2:])
    else:
        done = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def read_table(path):
    with open(str(path), newline='') as f:
        return list(csv.DictReader(f))
