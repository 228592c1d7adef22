"""The recipe for small photos, on a few of them."""
import fcntl
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from lanes import once
from photos import write_split

from runtime.errors import InputError

pytestmark = [once, pytest.mark.slow]


def table_row(text):
    """Return the cells of the table's one row."""
    title, _, row = [line for line in text.splitlines() if line.startswith('|')]
    assert title.split('|')[1].strip() == 'network'
    return [cell.strip() for cell in row.split('|')[1:-1]]


def test_a_network_is_trained_attacked_and_drawn_once(root, tmp_path, python):
    data, out = tmp_path / 'data', tmp_path / 'out'
    write_split(data / 'train', 130)
    write_split(data / 'val', 30, seed=1)
    command = [os.path.join(root, 'tools', 'cifar10.py'), data, '--out', out, '--val-images', '20',
               '--only', 'ResNet-standard']
    done = python(*command)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / 'ResNet-standard.json').read_text())
    assert [r['attack_iter'] for r in results['attacks']] == [0, 10, 20, 100]
    assert {(r['num_images'], r['epsilon']) for r in results['attacks']} == {(20, 8)}
    assert table_row(done.stdout)[:3] == ['ResNet-14', 'standard', '%.1f' % (100 * results['attacks'][0]['top1_error'])]
    assert (out / 'curves.png').read_bytes()[1:4] == b'PNG'
    again = python(*command)
    assert again.returncode == 0 and '$' not in again.stdout, 'what is done is not done again'
    assert again.stdout.strip() == done.stdout[done.stdout.index('Top-1 error'):].strip()
    assert 'of 20 validation photos' in again.stdout


def test_a_training_that_is_stopped_goes_on(root, tmp_path, python):
    """And isn't taken for finished. All of it in one folder, with the attack that the recipe has."""
    data, out = tmp_path / 'data', tmp_path / 'out'
    write_split(data / 'train', 260)  # two steps an epoch
    write_split(data / 'val', 20, seed=1)
    command = [sys.executable, os.path.join(root, 'tools', 'cifar10.py'), str(data), '--out', str(out),
               '--val-images', '10', '--only', 'ResNet-adversarial']
    first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             universal_newlines=True)
    end = time.time() + 200
    while not list(out.glob('train_log/*/model-*.index')):
        assert time.time() < end and first.poll() is None
        time.sleep(0.1)
    training = [p for p in psutil.Process(first.pid).children() if any('main.py' in word for word in p.cmdline())]
    training[0].terminate()
    _, errors = first.communicate(timeout=100)
    assert first.returncode == 2 and 'goes on' in errors and 'Traceback' not in errors, errors
    assert not (out / 'ResNet-adversarial.json').exists()
    done = python(*command[1:])
    assert done.returncode == 0, done.stderr
    assert 'resuming from' in (out / 'ResNet-adversarial-training.log').read_text()
    assert table_row(done.stdout)[:2] == ['ResNet-14', 'adversarial']
    other = python(*(command[1:] + ['--val-images', '20']))
    assert other.returncode == 2 and 'another --out' in other.stderr and len(other.stderr.splitlines()) == 1


def test_a_data_server_ends_with_a_tool_that_is_killed(root, tmp_path):
    write_split(tmp_path / 'train', 10)
    code = ('import sys, time; from tools.commands import data_server\n'
            'with data_server(sys.argv[1], ["--batch", "4", "--workers", "1"], sys.argv[1] + "/log"): time.sleep(600)')
    tool = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], cwd=root, stdin=subprocess.DEVNULL)
    end = time.time() + 60
    while len(psutil.Process(tool.pid).children(recursive=True)) < 2:
        assert time.time() < end and tool.poll() is None
        time.sleep(0.1)
    started = psutil.Process(tool.pid).children(recursive=True)
    tool.kill()
    tool.wait()
    assert not psutil.wait_procs(started, timeout=30)[1]


def test_a_bad_folder(root, tmp_path, python):
    script = os.path.join(root, 'tools', 'cifar10.py')
    write_split(tmp_path / 'train', 10)
    write_split(tmp_path / 'val', 10)
    for out, said in (script, 'cannot write to'), (tmp_path, '--out'):
        done = python(script, tmp_path, '--out', out)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_is_not_its_own_is_left_alone(root, tmp_path, python):
    script, data, out = os.path.join(root, 'tools', 'cifar10.py'), tmp_path / 'data', tmp_path / 'out'
    for folder in (data, out / 'photos'):
        write_split(folder / 'train', 10)
        write_split(folder / 'val', 10)
    before = sorted(tmp_path.rglob('*.jpg'))
    for place, said in (data, 'another --out'), (out / 'photos', 'DATA must not lie in'):
        done = python(script, place, '--out', out, '--val-images', '10')
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
        assert sorted(tmp_path.rglob('*.jpg')) == before
    with open(str(out / '.lock'), 'w') as locked:
        locked.write('cifar10_methods.py\n')
        locked.flush()
        fcntl.flock(locked, fcntl.LOCK_EX)
        done = python(script, data, '--out', out, '--val-images', '10')
        assert done.returncode == 2 and 'another cifar10_methods.py is at work' in done.stderr


@pytest.mark.parametrize('flags, named', [
    (['nowhere'], 'nowhere'), (['nowhere', '--only', 'VGG'], 'VGG'), (['{data}', '--val-images', '3'], '--val-images'),
    (['{data}', '--val-images', '20'], 'has 1 photos'), ([''], 'DATA is empty'),
    (['{data}', '--networks', 'ResNet-15'], 'no depth 15'), (['{data}', '--networks', 'ResNet-14:x'], ':2'),
    (['{data}', '--networks', 'ResNet-14-mean'], 'has no denoising blocks'),
    (['{data}', '--networks', 'ResNetDenoise'], 'like ResNetDenoise-14'),
    (['{data}', '--networks', 'ResNet-14,'], 'a name is empty'),
    (['{data}', '--networks', 'ResNetDenoise-14-no-1x1-mean'], 'in this order'),
    (['{data}', '--networks', 'examples.efficientnet_lite0:network'], 'the zoo\'s'),
    (['{data}', '--epochs', '3'], '--networks'), (['{data}', '--base-lr', '0.1'], '--networks'),
    (['{data}', '--networks', 'ResNet-14', '--base-lr', '0'], '--base-lr')])
def test_bad_input(root, tmp_path, python, flags, named):
    write_split(tmp_path / 'train', 10)
    write_split(tmp_path / 'val', 10)
    flags = [flag.format(data=tmp_path) for flag in flags]
    done = python(os.path.join(root, 'tools', 'cifar10.py'), *flags, '--out', tmp_path / 'out')
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1


def test_rows():
    """Of networks that were named, one of which diverged."""
    from tools.cifar10 import recipes_of, table
    recipes = recipes_of('ResNet-14,ResNetDenoise-14-mean-block:2', 9)
    assert [r.name for r in recipes] == ['ResNet-14-adversarial-9-epochs',
                                         'ResNetDenoise-14-mean-block-adversarial-9-epochs-2']
    assert recipes_of('ResNet-14:2', 6, 0.05)[0].name == 'ResNet-14-adversarial-lr0.05-2'
    attacks = [dict(attack_iter=k, top1_error=0.5, top1_error_interval=[0.4, 0.61], attack_success_rate=0.125)
               for k in (0, 10, 20, 100)]
    rows = table({recipes[0]: dict(attacks=attacks), recipes[1]: 'the loss is nan'}, intervals=True).splitlines()
    assert '| 50.0 (40.0 to 61.0) ' in rows[2] and rows[2].count('50.0 (40.0 to 61.0) / 12.5') == 3
    assert 'ResNetDenoise-14-mean-block' in rows[3] and 'diverged: the loss is nan' in rows[3]


def test_what_diverged_is_told_from_what_failed(root, tmp_path):
    from tools.cifar10_folders import divergence
    path = str(tmp_path / 'training.log')
    assert divergence(path) == ''
    for said, expected in [('the loss is nan at step 3', True), ('cannot write to x', False)]:
        code = ('from runtime.command_line import run_command; from runtime.errors import RunError\n'
                'def fail(): print("epoch 1"); raise RunError("%s")\nrun_command("main.py", fail)' % said)
        with open(path, 'w') as f:
            assert subprocess.call([sys.executable, '-c', code], stdout=f, stderr=f, cwd=root) == 1
        assert bool(divergence(path)) == expected


def test_a_table_of_methods():
    from tools.cifar10_methods import Measured, Run, draw, table
    records = {weights: dict(clean=0.25, top1_error=error, top1_error_interval=[error - 0.05, error + 0.05])
               for weights, error in (('raw', 0.6), ('ema', 0.55))}
    measured = {Run('ResNet-14', method, 0.4, epochs, 50): Measured(epochs * 11., records)
                for method in ('fast', 'pgd-7') for epochs in (1, 2)}
    measured[Run('ResNet-14', 'trades', 0.4, 1, 50)] = 'the loss is nan'
    assert [c.strip() for c in table(measured).splitlines()[2].split('|')[1:-1]] == [
        'fast', '50', '11.0', '25.0', '60.0 (55.0 to 65.0)', '25.0', '55.0 (50.0 to 60.0)']
    assert 'diverged: the loss is nan' in table(measured).splitlines()[-1]
    assert len(draw(measured)) > 10000


def test_how_long_a_training_lasts():
    """In epochs of about a pass, and as long as asked for even where that is no whole number of passes."""
    from tools.cifar10_methods import BATCH, Run, lasting
    probe = Run('ResNet-14', 'fast', 0.4, 1, 40)
    for batches, epochs, steps in (140, 1, 140), (240, 2, 120), (1000, 10, 100), (0.2, 1, 1):
        run = lasting(probe, batches, 100 * BATCH)
        assert run == probe._replace(epochs=epochs, steps_per_epoch=steps)
        assert run.flags[run.flags.index('--steps-per-epoch') + 1] == str(steps)


def test_minutes_of_a_training(tmp_path):
    """One epoch's rate is missing: its process was killed."""
    from tools.cifar10_methods import BATCH, RATE, seconds_and_steps
    records = [{'global_step': 10, RATE: 2 * BATCH}, {'global_step': 20}, {'global_step': 30, RATE: BATCH}]
    (tmp_path / 'stats.json').write_text(json.dumps(records))
    assert seconds_and_steps(str(tmp_path)) == (5 * 1.5 + 10 * 1.5, 30)
    (tmp_path / 'stats.json').write_text(json.dumps(records[1:2]))
    with pytest.raises(InputError, match='how long'):
        seconds_and_steps(str(tmp_path))


@once
@pytest.mark.slow
def test_a_method_is_trained_and_goes_on(root, tmp_path, python):
    write_split(tmp_path / 'data' / 'train', 300)
    write_split(tmp_path / 'data' / 'val', 20)
    command = [os.path.join(root, 'tools', 'cifar10_methods.py'), tmp_path / 'data', '--out', tmp_path / 'out',
               '--methods', 'fast', '--minutes', '0.01', '--val-images', '20', '--probe-steps', '2']
    done = python(*command)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / 'out' / 'methods.md').read_text()
    assert table in done.stdout and int(table.splitlines()[2].split('|')[2]) >= 1  # batches
    again = python(*command)
    assert again.returncode == 0 and table in again.stdout and again.stdout.count('--eval') == 0, again.stderr


@pytest.mark.parametrize('flags, named', [(['--methods', 'pgd'], 'pgd-3, pgd-7'), (['--minutes', '0'], '--minutes'),
                                          (['--network', 'ResNet-15'], 'no depth 15'),
                                          (['--network', 'a:b'], '--network a:b: it is one of the zoo\'s')])
def test_bad_input_of_methods(root, tmp_path, python, flags, named):
    done = python(os.path.join(root, 'tools', 'cifar10_methods.py'), tmp_path, '--out', tmp_path / 'out', *flags)
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1
