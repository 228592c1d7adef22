#!/usr/bin/env python
"""Kills trainings at random times, with SIGKILL, and resumes them: stress_resume.py [ROUNDS [SEED]], by default 30.

After each round: mpirun ended within 30 s, no rank is left, every checkpoint that was said to be saved is complete, and
the next training goes on from the newest.
"""
import os
import random
import re
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tests')]

from jobs import FAKE, Job  # noqa: E402

MAX_SECONDS = 6


def rounds(root, folder, count, rng):
    """Kill a rank or mpirun `count` times; returns the seconds that each end took.

    Raises AssertionError where anything is lost or left.
    """
    from training.log_directory import damage, newest_complete, step_of
    log, newest, endings = None, 0, []
    flags = FAKE + ['--steps-per-epoch', '50', '--max-epoch', '10000', '--save-every-steps', '1', '--resume']
    for number in range(count):
        ranks = rng.choice([1, 2, 3])
        job = Job(root, folder, ranks, *flags)
        try:
            if newest and rng.random() < 0.2:
                time.sleep(rng.uniform(0, 10))  # while it starts
            else:
                job.wait_for('Model saved to', timeout=300)
                time.sleep(rng.uniform(0, MAX_SECONDS))
            processes = job.ranks()
            victim = rng.randrange(-1, len(processes)) if processes else -1
            (job.process if victim < 0 else processes[victim]).kill()
            begin = time.time()
            while job.process.poll() is None or any(p.is_running() and p.status() != 'zombie' for p in processes):
                assert time.time() - begin < 30, 'round %d: still there after 30 s' % number
                time.sleep(0.1)
            took = time.time() - begin
        finally:
            job.kill()
        resumed = re.search(r'resuming from \S+model-(\d+)', job.text)
        if newest and ('Start Epoch' in job.text or resumed):
            assert resumed and int(resumed.group(1)) == newest, 'round %d: not resumed from %d: %s' % (
                number, newest, job.text[-2000:])
        saved = re.findall(r'Model saved to (\S+)\.(?:\x1b|\s|$)', job.text)
        if saved:
            log = os.path.join(str(folder), os.path.dirname(saved[-1]))
            said = os.path.join(str(folder), saved[-1])
            assert damage(said) is None, 'round %d: %s: %s' % (number, said, damage(said))
        if log:
            found = step_of(newest_complete(log))
            assert found >= newest, 'round %d: lost %d' % (number, newest)
            assert not saved or found >= step_of(saved[-1]), 'round %d: lost %s' % (number, saved[-1])
            newest = found
        endings.append(took)
        print('round %d: %d ranks, killed %s, gone after %.1f s, newest checkpoint %d' % (
            number + 1, ranks, 'mpirun' if victim < 0 else 'rank %d' % victim, took, newest), flush=True)
    return endings


if __name__ == '__main__':
    total, seed = [int(a) for a in (sys.argv[1:] + ['30', '0'][len(sys.argv) - 1:])]
    with tempfile.TemporaryDirectory() as directory:
        slowest = max(rounds(ROOT, directory, total, random.Random(seed)))
    print('%d rounds: no checkpoint lost, all processes gone after at most %.1f s' % (total, slowest))
