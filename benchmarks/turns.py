"""Measuring systems in turns: each in a process of its own, which is idle while another one is measured."""
import json
import os
import subprocess
import sys
from typing import Any, Callable, Dict, List, Sequence

HERE = os.path.dirname(os.path.realpath(__file__))
PEAK = 'matmul'  # the system whose rate, in operations a second, the others' arithmetic is compared with


def peak_memory_bytes() -> int:
    """Of this process, since its start."""
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))


def serve_turns(prepare: Callable[[], Callable[[], float]]) -> None:
    """In a worker: one warm-up, then one measurement for each line on stdin; answers are JSON lines on stdout.

    `prepare` returns what measures: a rate.
    """
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints is no answer
    measure = prepare()
    measure()
    print(json.dumps({'ready': True}), file=answers, flush=True)
    for _ in iter(sys.stdin.readline, ''):
        rate = measure()
        print(json.dumps({'rate': rate, 'peak_memory_bytes': peak_memory_bytes()}), file=answers, flush=True)


class Worker:
    """A system's process: `python` runs `script --worker CONFIGURATION`."""

    def __init__(self, python: str, script: str, configuration: Dict[str, Any]):
        self.configuration = configuration
        environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL='3', OMP_NUM_THREADS=str(configuration['threads']))
        self.process = subprocess.Popen([python, os.path.join(HERE, script), '--worker', json.dumps(configuration)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
                                        env=environment)
        self.answer()

    def answer(self) -> Dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError('%s ended with status %s' % (self.configuration, self.process.wait()))
        return json.loads(line)

    def turn(self) -> Dict[str, Any]:
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def take_turns(workers: Sequence[Worker], repeats: int) -> List[List[Dict[str, Any]]]:
    """For each worker its answers; the order of the turns is reversed every other time."""
    answers: List[List[Dict[str, Any]]] = [[] for _ in workers]
    for i in range(repeats):
        order = list(range(len(workers)))
        for k in (order if i % 2 == 0 else order[::-1]):
            answers[k].append(workers[k].turn())
    return answers


def median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def report(workers: Sequence[Worker], answers: List[List[Dict[str, Any]]], unit: str, operations: Dict[str, float],
           baseline: str) -> List[Dict[str, Any]]:
    """Prints a JSON line for each system, and returns them.

    Args:
        unit: of the rates. operations: of each network, arithmetic for one unit; 0 where it isn't counted.
        baseline: the system that `ratio` is to, on the first network in the same turn.
    """
    rates = [[a['rate'] for a in of_worker] for of_worker in answers]
    systems = [w.configuration['system'] for w in workers]
    peaks = {w.configuration['dtype']: r for w, r in zip(workers, rates) if w.configuration['system'] == PEAK}
    base = next((r for s, r in zip(systems, rates) if s == baseline), None)
    records = []
    for worker, of_worker, rate in zip(workers, answers, rates):
        c = worker.configuration
        record = {k: c[k] for k in ('system', 'dtype', 'network', 'batch', 'image_size', 'threads')}
        name = 'operations_per_second' if c['system'] == PEAK else unit
        record.update({name: float('%.5g' % median(rate)), 'lowest': float('%.5g' % min(rate)),
                       'highest': float('%.5g' % max(rate)), 'repeats': len(rate),
                       'peak_memory_bytes': of_worker[-1]['peak_memory_bytes']})
        if c['system'] != PEAK:
            if operations[c['network']]:
                record['fraction_of_matmul_peak'] = round(median(
                    [r * operations[c['network']] / p for r, p in zip(rate, peaks[c['dtype']])]), 3)
            if base:
                record.update(ratio=round(median([r / b for r, b in zip(rate, base)]), 3), baseline=baseline)
        records.append(record)
        print(json.dumps(record), flush=True)
    return records


def markdown_table(records: Sequence[Dict[str, Any]], unit: str) -> str:
    lines = ['| system | dtype | %s (lowest to highest) | of matmul peak | peak memory | ratio |' % unit.replace('_', ' '),
             '|---|---|---|---|---|---|']
    for r in records:
        if r['system'] != PEAK:
            lines.append('| %s, %s | %s | %.4g (%.4g to %.4g) | %s | %.2f GB | %s |' % (
                r['system'], r['network'], r['dtype'], r[unit], r['lowest'], r['highest'],
                '%.0f%%' % (100 * r['fraction_of_matmul_peak']) if 'fraction_of_matmul_peak' in r else '',
                r['peak_memory_bytes'] / 1e9, '%.2f' % r['ratio'] if 'ratio' in r else ''))
    return '\n'.join(lines)


def draw(records: Sequence[Dict[str, Any]], unit: str, path: str, title: str) -> None:
    """A bar for each system, with its spread."""
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
