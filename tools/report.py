"""Draw the results of evaluations: curves of error and attack success against attack steps, and a page with all of it.

    python -m tools.report RESULTS.json... --out DIR

RESULTS.json: files that `main.py --eval --results` wrote, of one network or of several. DIR gets curves.png and
report.html, which holds its pictures itself and needs no other file. Where --save-adversarial kept the attacked images,
the page shows some of them beside the clean ones and the difference.
"""
import argparse
import base64
import csv
import itertools
import json
import os
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from evaluation.outcomes import Strength
from evaluation.plan import WORST_CASE, how_attacked
from evaluation.saved_images import MANIFEST
from nets import Network
from runtime.command_line import Parser, run_command
from runtime.errors import InputError
from runtime.files import require_file
from runtime.printing import check_stdout, say
from third_party.images import decode
from third_party.preparations import PREPARATIONS, Preparation
from tools.pictures import make_plain, png_of

EXAMPLES = 6
TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'report.html.j2')
PANELS = [('top1_error', 'top-1 error, %'), ('attack_success_rate', 'attack success, %')]
NUMBERS = ('attack_iter', 'epsilon', 'num_images')
OR_NULL = ('top1_error', 'top5_error', 'attack_success_rate', 'step_size')  # where they can't be known


class Curve(NamedTuple):
    """The records of one network, attacker and budget, sorted by attack steps."""
    title: str
    records: List[Dict[str, Any]]

    @property
    def has_starts(self) -> bool:
        """Tell whether images were attacked from several starts."""
        return any((r.get('restarts') or 1) * (r.get('num_targets') or 1) > 1 for r in self.records)


class Example(NamedTuple):
    """An attacked image. Its pictures are addresses that contain them, data:image/png;base64,..."""
    title: str
    clean: str
    attacked: str
    difference: str


def read_results(path: str) -> Dict[str, Any]:
    """Read a file that `main.py --eval --results` wrote. Raises InputError for anything else."""
    require_file(path)
    try:
        with open(path) as f:
            results = json.load(f)
        for record in results['attacks']:
            for key in NUMBERS:
                float(record[key])
            for key in OR_NULL:
                if record[key] is not None:
                    float(record[key])
            for key, _ in PANELS:
                if record[key] is not None:
                    low, high = map(float, record[key + '_interval'])
        if not results['attacks']:
            raise KeyError('attacks')
        results['arch'], results['depth'], int(results['image_size'])
        preparation_of(results)
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    except (ValueError, KeyError, TypeError) as e:
        raise InputError('%s is no file of main.py --eval --results (%s: %s)' % (path, type(e).__name__, e))
    return results


def preparation_of(results: Dict[str, Any]) -> Preparation:
    """Return how an evaluation prepared its images; those that don't say so, as for validation."""
    return PREPARATIONS[results.get('preprocess', 'validation')]()


def titles(paths: List[str], all_results: List[Dict[str, Any]]) -> List[str]:
    """Name the networks of the results; where two have one name, with their files' names."""
    # results of before there were other denoising blocks don't say which they have
    names = [Network(r['arch'], r['depth'], denoise=r.get('denoise'), denoise_where=r.get('denoise_where'),
                     denoise_block=r.get('denoise_block')).name for r in all_results]
    files = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    files = files if len(set(files)) == len(files) else paths
    return [name if names.count(name) == 1 else '%s (%s)' % (name, file) for name, file in zip(names, files)]


def curves_of(title: str, results: Dict[str, Any]) -> List[Curve]:
    """Return a curve for each budget and attacker, the worst case of several last, in a network's results."""
    attackers = list(dict.fromkeys(r.get('attacker') for r in results['attacks']))  # results of before have none
    records = sorted(results['attacks'],
                     key=lambda r: (r['epsilon'], attackers.index(r.get('attacker')), r['attack_iter']))
    groups = [(key, list(group)) for key, group in itertools.groupby(
        records, lambda r: (r['epsilon'], r.get('attacker')))]
    several = len({epsilon for (epsilon, _), _ in groups}) > 1
    return [Curve(title + (', epsilon %g' % epsilon if several else '') +
                  (', ' + attacker.replace(WORST_CASE, 'worst case') if len(attackers) > 1 else ''), group)
            for (epsilon, attacker), group in groups]


def draw(curves: List[Curve]) -> bytes:
    """Draw top-1 error and attack success against attack steps; returns the bytes of a PNG."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    steps = sorted({r['attack_iter'] for curve in curves for r in curve.records})
    for panel, (key, label) in zip(axes, PANELS):
        for curve in curves:
            shown = [r for r in curve.records
                     if r[key] is not None and (r['attack_iter'] > 0 or key == 'top1_error')]
            x = [r['attack_iter'] for r in shown]
            y = np.array([r[key] for r in shown])
            low, high = np.array([r[key + '_interval'] for r in shown]).reshape(-1, 2).T
            panel.errorbar(x, 100 * y, 100 * np.clip([y - low, high - y], 0, 1), marker='o', markersize=4, capsize=3,
                           label=curve.title.replace('$', r'\$'))  # to matplotlib it means mathematics
        # a logarithmic axis that still has a place for 0, no attack
        panel.set_xscale('symlog', linthresh=1)
        panel.set_xticks(steps)
        panel.set_xticklabels(['clean' if k == 0 else str(k) for k in steps], rotation=45 if len(steps) > 6 else 0)
        panel.minorticks_off()
        panel.set_xlabel('attack steps')
        panel.set_ylabel(label)
        panel.set_ylim(0, 102)
        make_plain(panel)
    # below the panels, where no number of curves hides them
    figure.legend(*axes[0].get_legend_handles_labels(), loc='upper center', bbox_to_anchor=(0.5, 0), ncol=3, fontsize=8,
                  frameon=False)
    return png_of(figure, bbox_inches='tight')


def data_address(png: bytes) -> str:
    """Return an address that contains a picture."""
    return 'data:image/png;base64,' + base64.b64encode(png).decode()


def found(path: str, results_file: str) -> Optional[str]:
    """Find what an evaluation calls `path`, from this folder or from the one of its results; None where it is gone."""
    places = [path, os.path.join(os.path.dirname(results_file), path)]
    return next((place for place in places if os.path.exists(place)), None)


def examples(results: Dict[str, Any], results_file: str) -> Iterator[Example]:
    """Yield up to EXAMPLES images under the strongest attack, spread over those that the evaluation saved.

    What is gone or damaged is left out.
    """
    saved = results.get('saved_adversarial')
    folder = found(str(saved), results_file) if saved else None
    if not folder or not os.path.isfile(os.path.join(folder, MANIFEST)):
        return
    strongest = max((r for r in results['attacks'] if r.get('attacker') != WORST_CASE),
                    key=lambda r: (r['epsilon'], r['attack_iter']))
    strength = Strength(strongest['attack_iter'], strongest['epsilon'])
    wanted = {'attack_iter': str(strength.num_iter), 'epsilon': strength.epsilon_text}
    with open(os.path.join(folder, MANIFEST), newline='', encoding='utf-8', errors='surrogateescape') as f:
        rows = [row for row in csv.DictReader(f) if all(row.get(name) == value for name, value in wanted.items()) and
                row.get('attacker') in (None, strongest.get('attacker'))]
    chosen = sorted({int(i) for i in np.linspace(0, len(rows) - 1, EXAMPLES)}) if rows else []
    for row in (rows[i] for i in chosen):
        photo = found(row['path'], results_file)
        try:
            clean = preparation_of(results).load(photo or row['path'], results['image_size'])
            attacked = decode(os.path.join(folder, row['file']))
        except InputError:  # gone, or damaged
            continue
        if attacked.shape != clean.shape:
            continue
        # grey where nothing changed; the whole budget is black or white
        change = (attacked.astype(np.float32) - clean) / max(strongest['epsilon'], 1)
        difference = np.clip(127.5 + 127.5 * change, 0, 255).astype(np.uint8)
        outcome = 'the target' if row['success'] == '1' else \
            'still its label' if row['prediction'] == row['label'] else 'neither'
        title = 'label %s, target %s; classified as %s: %s' % (row['label'], row['target'] or 'none',
                                                               row['prediction'] or 'nothing', outcome)
        yield Example(title, *[data_address(cv2.imencode('.png', image)[1].tobytes())
                               for image in (clean, attacked, difference)])


def write_report(paths: List[str], out: str) -> Tuple[str, str]:
    """Write the page and the picture of some results to the folder `out`; returns the two paths.

    Raises InputError for files that are no results, and where nothing can be written.
    """
    import jinja2

    all_results = [read_results(path) for path in paths]
    named = list(zip(titles(paths, all_results), paths, all_results))
    curves = [curve for title, _, results in named for curve in curves_of(title, results)]
    picture = draw(curves)
    with open(TEMPLATE) as f:
        template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(f.read())
    page = template.render(curves=curves, how_attacked=how_attacked, picture=data_address(picture),
                           networks=[(title, results, list(examples(results, path))) for title, path, results in named])
    page_path, picture_path = os.path.join(out, 'report.html'), os.path.join(out, 'curves.png')
    try:
        os.makedirs(out, exist_ok=True)
        with open(page_path, 'w', encoding='utf-8', errors='surrogateescape') as f:
            f.write(page)
        with open(picture_path, 'wb') as f:
            f.write(picture)
    except OSError as e:
        raise InputError('cannot write to %s: %s' % (out, e.strerror))
    return page_path, picture_path


def main() -> int:
    parser = Parser(prog='report.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', nargs='+', metavar='RESULTS.json')
    parser.add_argument('--out', required=True, metavar='DIR')
    options = parser.parse_args(sys.argv[1:])
    check_stdout()
    say('\n'.join(write_report(options.results, options.out)))
    return 0


if __name__ == '__main__':
    run_command('report.py', main)
