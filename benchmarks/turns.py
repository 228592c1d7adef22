"""Measuring systems in turns: each in a process of its own, which is idle while another one is measured.

PyTorch's workers run this file too, in an environment that has neither TensorFlow nor this project's requirements.
"""
import json
import os
import statistics
import subprocess
import sys
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, TypeVar

HERE = os.path.dirname(os.path.realpath(__file__))
Answer = TypeVar('Answer')
PEAK = 'matmul'  # the system whose rate, in operations a second, the others' arithmetic is compared with


class Configuration(NamedTuple):
    """What a worker measures."""
    system: str
    dtype: str    # of the attack: float32 or bfloat16
    job: str      # 'pgd' or 'train'
    network: str  # architecture and depth, like ResNet-50
    batch: int
    image_size: int
    threads: int
    steps: int    # of the attack


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held since its start."""
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))


def serve_turns(prepare: Callable[[], Callable[[], float]]) -> None:
    """Be a worker: measure once for each line on stdin, after a warm-up; the answers are JSON lines on stdout.

    prepare: returns the function that measures, which returns a rate.
    """
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints is no answer
    measure = prepare()
    measure()
    print(json.dumps({'ready': True}), file=answers, flush=True)
    for _ in iter(sys.stdin.readline, ''):
        rate = measure()
        print(json.dumps({'rate': rate, 'peak_memory_bytes': peak_memory_bytes()}), file=answers, flush=True)


def worker_configuration() -> Optional[Configuration]:
    """Return what this process is to measure where it is a worker, None where a user started it."""
    if '--worker' not in sys.argv:
        return None
    return Configuration(**json.loads(sys.argv[sys.argv.index('--worker') + 1]))


class Worker:
    """A system's process: `python` runs `script --worker CONFIGURATION`."""

    def __init__(self, python: str, script: str, configuration: Configuration) -> None:
        self.configuration = configuration
        environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL='3', OMP_NUM_THREADS=str(configuration.threads))
        self.process = subprocess.Popen(
            [python, os.path.join(HERE, script), '--worker', json.dumps(configuration._asdict())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True, env=environment)
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.answer()

    def answer(self) -> Dict[str, float]:
        """Wait for the worker's next line: {'rate': ..., 'peak_memory_bytes': ...}, and {'ready': True} at first.

        Raises RuntimeError where the worker ended.
        """
        line = self.answers.readline()
        if not line:
            raise RuntimeError('%s ended with status %s' % (self.configuration, self.process.wait()))
        return json.loads(line)

    def turn(self) -> Dict[str, float]:
        """Have the worker measure once; returns its answer."""
        self.requests.write('\n')
        self.requests.flush()
        return self.answer()

    def close(self) -> None:
        """End the worker."""
        self.requests.close()
        self.process.wait()


def take_turns(turns: Sequence[Callable[[], Answer]], repeats: int) -> List[List[Answer]]:
    """Measure one after another, `repeats` times; returns what each of the functions, like Worker.turn, returned.

    The order is reversed every other time.
    """
    answers: List[List[Answer]] = [[] for _ in turns]
    for i in range(repeats):
        order = list(range(len(turns)))
        for k in (order if i % 2 == 0 else order[::-1]):
            answers[k].append(turns[k]())
    return answers


def report(workers: Sequence[Worker], answers: List[List[Dict[str, float]]], unit: str, operations: Dict[str, float],
           baseline: str) -> List[Dict[str, Any]]:
    """Print a JSON line for each system; returns these records.

    unit: of the rates. operations: of each network, arithmetic for one unit; 0 where it isn't counted.
    baseline: the system that `ratio` is to, on the first network in the same turn.
    """
    all_rates = [[answer['rate'] for answer in answers_of_worker] for answers_of_worker in answers]
    configurations = [worker.configuration for worker in workers]
    peaks = {c.dtype: rates for c, rates in zip(configurations, all_rates) if c.system == PEAK}
    base = next((rates for c, rates in zip(configurations, all_rates) if c.system == baseline), None)
    records = []
    for c, answers_of_worker, rates in zip(configurations, answers, all_rates):
        record: Dict[str, Any] = dict(system=c.system, dtype=c.dtype, network=c.network, batch=c.batch,
                                      image_size=c.image_size, threads=c.threads)
        name = 'operations_per_second' if c.system == PEAK else unit
        record.update({name: float('%.5g' % statistics.median(rates)), 'lowest': float('%.5g' % min(rates)),
                       'highest': float('%.5g' % max(rates)), 'repeats': len(rates),
                       'peak_memory_bytes': answers_of_worker[-1]['peak_memory_bytes']})
        if c.system != PEAK:
            if operations[c.network]:
                record['fraction_of_matmul_peak'] = round(statistics.median(
                    rate * operations[c.network] / peak for rate, peak in zip(rates, peaks[c.dtype])), 3)
            if base:
                record['ratio'] = round(statistics.median(rate / b for rate, b in zip(rates, base)), 3)
                record['baseline'] = baseline
        records.append(record)
        print(json.dumps(record), flush=True)
    return records


def markdown_table(records: Sequence[Dict[str, Any]], unit: str) -> str:
    """Lay out the records of the systems, but for the peak, as a table in Markdown."""
    from tabulate import tabulate  # not in PyTorch's environment

    rows = [['%s, %s' % (r['system'], r['network']), r['dtype'],
             '%.4g (%.4g to %.4g)' % (r[unit], r['lowest'], r['highest']),
             '%.0f%%' % (100 * r['fraction_of_matmul_peak']) if 'fraction_of_matmul_peak' in r else '',
             '%.2f GB' % (r['peak_memory_bytes'] / 1e9), '%.2f' % r['ratio'] if 'ratio' in r else '']
            for r in records if r['system'] != PEAK]
    titles = ['system', 'dtype', '%s (lowest to highest)' % unit.replace('_', ' '), 'of matmul peak', 'peak memory',
              'ratio']
    return tabulate(rows, titles, tablefmt='github', disable_numparse=True)


def draw(records: Sequence[Dict[str, Any]], unit: str, path: str, title: str) -> None:
    """Draw a bar for each system, with its spread, to a picture at `path`."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    shown = [r for r in records if r['system'] != PEAK][::-1]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.45 * len(shown)))
    values = [r[unit] for r in shown]
    spread = [[v - r['lowest'] for v, r in zip(values, shown)], [r['highest'] - v for v, r in zip(values, shown)]]
    axes.barh(['%s, %s, %s' % (r['system'], r['network'], r['dtype']) for r in shown], values, xerr=spread, capsize=3,
              color=['#3b6ea5' if r['system'] == 'this project' else '#b8b8b8' for r in shown])
    axes.set_xlabel(unit.replace('_', ' '))
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
