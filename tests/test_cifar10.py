"""The recipe for small photos, on a few of them."""
import json
import os

import pytest

from photos import write_split

pytestmark = pytest.mark.slow


def test_a_network_is_trained_attacked_and_drawn_once(root, tmp_path, python):
    data, out = tmp_path / 'data', tmp_path / 'out'
    write_split(data / 'train', 130)
    write_split(data / 'val', 30, seed=1)
    command = [os.path.join(root, 'tools', 'cifar10.py'), data, '--out', out, '--val-images', '20', '--only', 'ResNet-standard']
    done = python(*command)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / 'ResNet-standard.json').read_text())
    assert [r['attack_iter'] for r in results['attacks']] == [0, 10, 20, 100]
    assert {(r['num_images'], r['epsilon']) for r in results['attacks']} == {(20, 8)}
    assert '| ResNet-14 | standard | %.1f |' % (100 * results['attacks'][0]['top1_error']) in done.stdout
    assert (out / 'curves.png').read_bytes()[1:4] == b'PNG'
    again = python(*command)
    assert again.returncode == 0 and '$' not in again.stdout, 'what is done is not done again'
    assert again.stdout.strip() == done.stdout[done.stdout.index('Top-1 error'):].strip()


@pytest.mark.parametrize('flags, named', [
    (['nowhere'], 'nowhere'), (['nowhere', '--only', 'VGG'], 'VGG'), (['nowhere', '--val-images', '3'], '--val-images')])
def test_bad_input(root, tmp_path, python, flags, named):
    done = python(os.path.join(root, 'tools', 'cifar10.py'), *flags, '--out', tmp_path)
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1
