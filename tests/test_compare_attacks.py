"""The table of all attacks on a network: tools.compare_attacks."""
import json
import os
import shutil

import pytest
from lanes import once
from photos import write_split

from main import parse_options
from tools.compare_attacks import WAYS, command_line, evaluation, markdown, points_of, wrong_images

RECORD = dict(epsilon=8.0, num_images=4, top1_error=0.5, top1_error_interval=[0.15, 0.85], attack_success_rate=None)


def test_gradient_steps_are_steps_times_starts():
    points = points_of(dict(attacks=[dict(RECORD, attack_iter=20, starts=10), dict(RECORD, attack_iter=5, starts=4)]))
    assert [(p.steps, p.gradient_steps) for p in points] == [(5, 5.0), (20, 50.0)]
    table = markdown({'margin': points, 'restarts': points}, wrong=3, total=4)
    _, _, first, _, worst = table.splitlines()
    assert [cell.strip() for cell in first.split('|')[1:-1]] == [
        WAYS['margin'].title, '20', '50', '50.0 (15.0 to 85.0)', 'n/a']
    assert 'worst case' in worst and ' 100 ' in worst and ' 75.0 (' in worst  # both ways' steps


def test_wrong_images_of_a_table(tmp_path):
    """A prediction is empty where logits were no numbers, which is wrong too."""
    (tmp_path / 'r.csv').write_text('index,label,attack_iter,prediction\n'
                                    '0,1,10,1\n0,1,100,2\n4,1,10,2\n4,1,100,1\n7,3,10,\n7,3,100,3\n9,0,10,0\n')
    assert wrong_images(str(tmp_path / 'r.csv'), 10) == {'4', '7'}
    assert wrong_images(str(tmp_path / 'r.csv'), 100) == {'0'}


@once
@pytest.mark.slow
def test_a_network_is_attacked_in_several_ways_and_goes_on(python, weights_file, tmp_path):
    write_split(tmp_path / 'data' / 'val', 10)
    command = ['-m', 'tools.compare_attacks', weights_file(), '-d', 14, '--image-size', 32, '--batch', 8,
               '--data', tmp_path / 'data', '--eps', 2, '--steps', '1,3', '--subset', 6, '--out', tmp_path / 'out',
               '--only', 'paper,apgd-t']
    done = python(*command)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / 'out' / 'attacks.md').read_text()
    assert table in done.stdout and len(table.splitlines()) == 5
    record = json.loads((tmp_path / 'out' / 'apgd-t.json').read_text())['attacks'][-1]
    assert (record['attack_iter'], record['num_targets'], record['num_images'], record['targets']) == (3, 9, 6,
                                                                                                  'likeliest')
    assert os.path.getsize(tmp_path / 'out' / 'attacks.png') > 10000
    assert python(*command).stdout.splitlines()[-5:] == table.splitlines()  # of the journals
    # another seed's is told before the first way has run
    other = python(*command, '--seed', 1)
    assert other.returncode == 2 and 'seed is 0 there and 1 here' in other.stderr and not other.stdout


def test_flags_reach_every_way():
    options = command_line().parse_args(
        ['w.npz', '--data', 'd', '--out', 'o', '--eps', '3', '--arch', 'ResNetDenoise', '-d', '50', '--denoise', 'mean',
         '--denoise-where', 'block', '--dtype', 'bfloat16', '--weights', 'ema', '--seed', '7', '--batch', '5',
         '--step-size', '0.5', '--steps', '2,4', '--preprocess', 'resize'])
    for name in WAYS:
        given = parse_options(evaluation(name, options, 1000))
        assert (given.arch, given.depth, given.denoise, given.denoise_where) == ('ResNetDenoise', 50, 'mean', 'block')
        assert (given.dtype, given.attack_dtype, given.weights, given.seed, given.batch) == (
            'bfloat16', 'bfloat16', 'ema', 7, 5)
        assert (given.attack_step_size, given.attack_epsilon, given.attack_iter, given.preprocess) == (
            0.5, [3.0], [2, 4], 'resize')
        assert given.results == 'o/%s.json' % name and given.journal == 'o/%s.journal' % name


@pytest.mark.parametrize('flags, said', [
    (['--only', 'pgd'], '--only pgd: there is no such way; choose of paper, ce'),
    (['--eps', '0'], "'0' is not a positive number"), (['--subset', 'missing'], 'there is no such file'),
    (['--subset', '11'], '--subset 11: from 1 to 10'), (['--classes', ''], '--classes is empty'),
    (['--out', '{file}'], 'cannot write to'), (['--classes', '{classes}'], 'needs 4 classes, and the network has 3')])
def test_bad_input(python, weights_file, tmp_path, flags, said):
    """Before the first attack, and without a folder of results."""
    write_split(tmp_path / 'data' / 'val', 10)
    (tmp_path / 'file').write_text('')
    folders = sorted((tmp_path / 'data' / 'val').iterdir())
    (tmp_path / 'classes').write_text(''.join(folder.name + '\n' for folder in folders[:3]))
    if '{classes}' in flags:
        for folder in folders[3:]:
            shutil.rmtree(str(folder))
    flags = [flag.format(file=tmp_path / 'file', classes=tmp_path / 'classes') for flag in flags]
    done = python('-m', 'tools.compare_attacks', weights_file(), '-d', 14, '--image-size', 32, '--data',
                  tmp_path / 'data', '--eps', 2, '--out', tmp_path / 'out', *flags)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1, done.stderr
    assert not (tmp_path / 'out').exists() and not done.stdout
