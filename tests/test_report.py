"""The report of evaluations: read as data, and looked at in a browser."""
import json
import os
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from evaluating import alone, evaluate
from lanes import once
from photos import write_split

from runtime.errors import InputError

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.fixture(scope='module')
def report(root, python, weights_file, tmp_path_factory):
    """The folder of a report about two networks, one of them with saved images."""
    folder = tmp_path_factory.mktemp('report')
    write_split(folder / 'data' / 'val', 20)
    for name, arch, flags in [('plain', 'ResNet', ['--save-adversarial', folder / 'saved']),
                              ('denoise', 'ResNetDenoise', [])]:
        evaluate(root, alone, folder / 'data', weights_file(arch), '--arch', arch, '--attack-iter', '0,4,16,30',
                 '--results', folder / (name + '.json'), *flags)
    done = python('-m', 'tools.report', folder / 'plain.json', folder / 'denoise.json', '--out', folder / 'out')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder / 'out' / name) for name in ('report.html', 'curves.png')]
    return folder


@once
def test_the_page_holds_all_figures_and_needs_nothing_else(report):
    page = (report / 'out' / 'report.html').read_text()
    for name in ('plain', 'denoise'):
        results = json.loads((report / (name + '.json')).read_text())
        assert '%s-14' % results['arch'] in page and results['checkpoint_sha256'] in page
        for record in results['attacks']:
            assert '>%.1f <small>[%.1f, %.1f]' % tuple(
                100 * x for x in [record['top1_error']] + record['top1_error_interval']) in page
    # the curves, and three pictures of each example
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) == 1 + 3 * 6 and all(a.startswith('data:image/png;base64,') for a in addresses)


def test_the_picture_shows_both_networks(report):
    picture = cv2.imread(str(report / 'out' / 'curves.png'))
    for colour in [(180, 119, 31), (14, 127, 255)]:  # BGR of matplotlib's first two colours
        assert (np.abs(picture.astype(int) - colour).max(axis=2) < 8).sum() > 200


@once
@pytest.mark.skipif(not BROWSER, reason='there is no Chromium to look at the page with')
def test_in_a_browser(report):
    """What a person sees: the title, the curves, and images side by side, of which nothing failed to load."""
    environment = dict(os.environ, HOME=str(report))  # a profile of its own
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--window-size=1000,2200',
               '--virtual-time-budget=5000', '--user-data-dir=%s' % (report / 'profile')]
    page = report / 'out' / 'report.html'
    shot = report / 'shot.png'
    subprocess.run(command + ['--screenshot=%s' % shot, 'file://%s' % page], env=environment, check=True, timeout=120,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    screen = cv2.imread(str(shot))
    assert screen.shape[:2] == (2200, 1000)
    curve = (np.abs(screen.astype(int) - (14, 127, 255)).max(axis=2) < 8)
    assert curve.sum() > 100 and curve.any(axis=1).argmax() < 500  # near the top of the page
    # A script in a copy of the page asks the browser itself about its pictures.
    asking = report / 'asking.html'
    asking.write_text(page.read_text().replace('</body>', '''<script>
        window.onload = () => document.body.insertAdjacentText('beforeend',
            'loaded: ' + Array.from(document.images).map(i => i.complete && i.naturalWidth).join(' ') + '.')
        </script></body>'''))
    dom = subprocess.run(command + ['--dump-dom', 'file://%s' % asking], env=environment, check=True, timeout=120,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True).stdout
    widths = re.search(r'loaded: ([\d ]+)\.<', dom).group(1).split()
    assert len(widths) == 19 and int(widths[0]) > 1000 and set(widths[1:]) == {'32'}


def test_figures_that_are_not_known(report, python, tmp_path):
    results = json.loads((report / 'plain.json').read_text())
    for record in results['attacks']:
        for name in ('top1_error', 'top5_error', 'attack_success_rate'):
            record[name] = record[name + '_interval'] = None
    (tmp_path / 'r.json').write_text(json.dumps(results))
    done = python('-m', 'tools.report', tmp_path / 'r.json', '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert page.count('n/a') == 4 + 4 + 3 and 'nan' not in page  # the clean one has no success at all


@pytest.mark.parametrize('content, said', [
    ('{"attacks": [{"attack_iter": 0, "epsilon": 16, "step_size": 0, "num_images": 1, "top1_error": 0, '
     '"top5_error": 0, "attack_success_rate": 0, "top1_error_interval": [0, 1], '
     '"attack_success_rate_interval": [0, 1]}], "arch": "A", "depth": 14, "image_size": 32, '
     '"preprocess": "no such"}', 'no file of'),
    (None, 'cannot read'), ('', 'no file of main.py --eval --results'), ('[]', 'no file of'),
    ('{"attacks": []}', 'no file of'), ('{"attacks": [{"attack_iter": "ten"}]}', 'no file of')])
def test_bad_input(python, tmp_path, content, said):
    if content is not None:
        (tmp_path / 'r.json').write_text(content)
    done = python('-m', 'tools.report', tmp_path / 'r.json', '--out', tmp_path / 'out')
    assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_a_pipe_is_not_waited_for(tmp_path):
    from tools.report import read_results
    os.mkfifo(str(tmp_path / 'pipe'))
    with pytest.raises(InputError, match='pipe: it is not a file'):
        read_results(str(tmp_path / 'pipe'))
