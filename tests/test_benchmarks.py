"""The benchmarks run, and print what they promise. What they measure is not asserted."""
import json
import os

from runtime.compat import USES_BFLOAT16_UNITS

import pytest
from lanes import once
from photos import write_split

pytestmark = [once, pytest.mark.slow]


def test_data(root, tmp_path, python):
    write_split(tmp_path / 'train', 12)
    done = python(os.path.join(root, 'benchmarks', 'data.py'), '--data', str(tmp_path), '--batch', '4',
                  '--repeats', '1', '--seconds', '0.2')
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line['subject'], line['system']) for line in lines} == {
        ('images', 'opencv+imgaug'), ('images', 'opencv decoding alone'), ('images', 'serve-data.py'),
        ('receive', 'feed_dict'), ('receive', 'python_queue'), ('receive', 'native_op'), ('receive', 'zeromq_alone'),
        ('memory', 'memcpy')}
    for line in lines:
        unit = 'images_per_second' if line['subject'] == 'images' else 'gigabytes_per_second'
        assert 0 < line['lowest'] <= line[unit] <= line['highest'] and line['repeats'] == 1
        assert line['system'] != line['baseline'] or line['ratio'] == 1
        if line['subject'] == 'receive':
            assert min(line['receiver_cpu_seconds_per_gigabyte'], line['sender_cpu_seconds_per_gigabyte'],
                       line['step_milliseconds']) >= 0


def test_data_says_what_it_needs(root, python):
    done = python(os.path.join(root, 'benchmarks', 'data.py'), '--data', 'nowhere')
    assert done.returncode == 2 and 'nowhere' in done.stderr and len(done.stderr.splitlines()) == 1


def test_scaling(root, python):
    done = python(os.path.join(root, 'benchmarks', 'scaling.py'))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    published = [row for row in rows if row['gpus'] == 128]  # 52 h on 128 GPUs is where the rate comes from
    assert all(51 < row['training_hours'] < 56 for row in published)
    assert {row['allreduce_bytes'] for row in rows} == {4 * 60192808}
    for slow, middle, fast in zip(rows[::3], rows[1::3], rows[2::3]):
        assert slow['exposed_share'] >= middle['exposed_share'] >= fast['exposed_share']


def test_hours_of_methods(root, python):
    """The paper's method beside the model of many GPUs; twice as fast a GPU takes half of the hours."""
    script = os.path.join(root, 'benchmarks', 'scaling.py')
    tables = []
    for rate in '185.2', '370.4':
        done = python(script, '--methods', '--gpu-rate', rate)
        assert done.returncode == 0, done.stderr
        rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in done.stdout.splitlines()[2:]]
        tables.append({row[0]: [float(cell) for cell in row[1:]] for row in rows})
    slow, fast = tables
    steps, epochs, one, eight = slow['pgd, 30 steps (the paper)']
    model = [json.loads(line) for line in python(script).stdout.splitlines()][0]
    assert (steps, epochs) == (31.5, 110) and eight == pytest.approx(model['training_hours'], rel=2e-2)
    assert one == pytest.approx(8 * eight, rel=2e-2)
    for title, (*_, hours, _) in slow.items():
        assert fast[title][2] == pytest.approx(hours / 2, rel=2e-2)
    # 128 x 128 pixels are 0.327 of 224 x 224, 288 x 288 are 1.653 of them
    wanted = slow['fast, 15 epochs'][2] * (6 * 0.327 + 6 + 3 * 1.653) / 15
    assert slow['fast, 6 epochs at 128, 6 at 224, 3 at 288'][2] == pytest.approx(wanted, rel=2e-2)
    done = python(script, '--methods', '--update', '3', '--beside', '0.5')
    steps = {line.split('|')[1].strip(): float(line.split('|')[2]) for line in done.stdout.splitlines()[2:]}
    assert steps['standard training'] == 3 and steps['fast, 15 epochs'] == 4.5 and steps['trades, 10 steps'] == 17
    assert steps['free, 4 replays, 92 / 4 epochs'] == 12


def test_methods(root, tmp_path, python):
    """Of these methods' steps, in the measure that the two attacks give."""
    table = tmp_path / 'methods.md'
    done = python(os.path.join(root, 'benchmarks', 'methods.py'), '--network', 'ResNet-14', '--batch', '2',
                  '--image-size', '32', '--repeats', '1', '--steps', '8', '--methods', 'free-4', '--table', table)
    assert done.returncode == 0, done.stderr
    few, many, free = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    assert [record['method'] for record in (few, many, free)] == ['pgd-3', 'pgd-7', 'free-4']
    for record in few, many, free:
        assert 0 < record['lowest'] <= record['images_per_second'] <= record['highest'] and record['repeats'] == 1
    assert [record['counted'] for record in (few, many, free)] == [4.5, 8.5, 6]
    assert table.read_text().count('\n') == 5 and table.read_text().strip() in done.stderr
    bad = python(os.path.join(root, 'benchmarks', 'methods.py'), '--methods', 'free-5')
    assert bad.returncode == 2 and bad.stderr == (
        'methods.py: error: --methods free-5: there is no such method; choose of standard, pgd-3, pgd-7, fast, n-fgsm, '
        'free-4, free-8, trades\n')


@pytest.mark.parametrize('script, unit, steps, k', [('pgd.py', 'image_steps_per_second', '--steps', '1'),
                                                    ('train.py', 'images_per_second', '--attack-iter', '1'),
                                                    ('train.py', 'images_per_second', '--attack-iter', '0')])
def test_attack_and_training_step(script, unit, steps, k, root, tmp_path, python):
    table, plot = tmp_path / 'table.md', tmp_path / 'plot.png'
    done = python(os.path.join(root, 'benchmarks', script), '--network', 'ResNet-14', '--batch', '1',
                  '--image-size', '32', '--repeats', '2', steps, k, '--dtypes', 'float32', '--threads', '1',
                  '--table', table, '--plot', plot)
    assert done.returncode == 0, done.stderr
    peak, ours = [json.loads(line) for line in done.stdout.splitlines()]
    assert peak['system'] == 'matmul' and 0 < peak['lowest'] <= peak['operations_per_second'] <= peak['highest']
    assert ours['system'] == 'this project' and 0 < ours['lowest'] <= ours[unit] <= ours['highest']
    assert (ours['network'], ours['dtype'], ours['batch']) == ('ResNet-14', 'float32', 1)
    assert (ours['repeats'], ours['ratio']) == (2, 1)
    assert 0 < ours['fraction_of_matmul_peak'] < 1 and ours['peak_memory_bytes'] > 1e8
    assert len(table.read_text().splitlines()) == 3 and plot.read_bytes()[1:4] == b'PNG'


def test_scoring(root, tmp_path, python):
    """In both dtypes, each beside its own peak; without peers the ratio is to itself."""
    table = tmp_path / 'table.md'
    done = python(os.path.join(root, 'benchmarks', 'scoring.py'), '--network', 'ResNet-14', '--batch', '2',
                  '--image-size', '32', '--repeats', '2', '--steps', '1', '--threads', '1', '--table', table,
                  '--dtypes', 'float32,bfloat16' if USES_BFLOAT16_UNITS else 'float32')
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    dtypes = ['float32', 'bfloat16'][:len(lines) // 2]
    assert [(line['system'], line['dtype']) for line in lines] == [
        (system, dtype) for dtype in dtypes for system in ('matmul', 'this project')]
    for line in lines[1::2]:
        assert 0 < line['lowest'] <= line['images_per_second'] <= line['highest'] and line['ratio'] == 1
    assert len(table.read_text().splitlines()) == 2 + len(dtypes)


def test_attacks(root, tmp_path, python):
    """Each beside the paper's PGD, which is measured whatever is asked for."""
    done = python(os.path.join(root, 'benchmarks', 'attacks.py'), '--network', 'ResNet-14', '--batch', '1',
                  '--steps', '2', '--image-size', '32', '--repeats', '1', '--dtypes', 'float32', '--threads', '1',
                  '--attacks', 'pgd dlr untargeted,apgd margin targeted', '--table', tmp_path / 'table.md')
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line['system'] for line in lines] == ['pgd ce targeted', 'pgd dlr untargeted', 'apgd margin targeted']
    assert all(0 < line['lowest'] <= line['image_steps_per_second'] for line in lines)
    assert lines[0]['ratio'] == 1 and {line['baseline'] for line in lines} == {'pgd ce targeted'}
    assert len((tmp_path / 'table.md').read_text().splitlines()) == 5


def test_denoising(root, tmp_path, python):
    table = tmp_path / 'table.md'
    done = python(os.path.join(root, 'benchmarks', 'denoise.py'), '--operations', 'mean', '--depth', '14', '--batch',
                  '1', '--image-size', '32', '--repeats', '1', '--steps', '1', '--threads', '1', '--table', table)
    assert done.returncode == 0, done.stderr
    plain, mean = [json.loads(line) for line in done.stdout.splitlines()]
    assert (plain['network'], mean['network']) == ('ResNet-14', 'ResNetDenoise-14-mean')
    assert plain['ratio'] == 1 and mean['image_steps_per_second'] > 0 and mean['peak_memory_bytes'] > 1e8
    assert [line.split('|')[1].strip() for line in table.read_text().splitlines()[2:]] == [
        'ResNet-14', 'ResNetDenoise-14-mean']


def test_convolutions_are_counted():
    """ResNet-50 has the literature's 4.09 billion multiply-adds; a denoising block has three 1x1 convolutions, as many
    of them in each of the four groups."""
    from benchmarks.pgd import convolution_operations
    assert abs(convolution_operations('ResNet-50', 224) / 2e9 - 4.09) < 0.01
    blocks = convolution_operations('ResNetDenoise-50', 224) - convolution_operations('ResNet-50', 224)
    assert blocks / 2 == 4 * 56 * 56 * (2 * 256 * 128 + 256 * 256)


@pytest.mark.parametrize('script, flags, named', [
    ('pgd.py', ['--network', 'ResNet50'], 'ResNet-50'), ('pgd.py', ['--network', 'ResNet-²'], 'ResNet-50'),
    ('denoise.py', ['--operations', 'mean,mode'], 'mode'), ('denoise.py', ['--where', 'layer'], 'layer'),
    ('denoise.py', ['--dtype', 'float16'], 'float16'), ('denoise.py', ['--repeats', '0'], '--repeats'),
    ('train.py', ['--dtypes', 'float8'], 'float8'), ('train.py', ['--attack-iter', '-1'], 'steps'),
    ('train.py', ['--attack-iter', '0', '--dtypes', 'bfloat16'], '--dtypes'),
    ('scoring.py', ['--dtypes', 'float16'], 'float16'),
    ('scoring.py', ['--peer', 'torch', '--torch-python', 'nowhere'], 'nowhere'),
    ('attacks.py', ['--attacks', 'pgd ce'], 'pgd ce'),
    ('attacks.py', ['--attacks', 'pgd cw targeted'], 'pgd cw targeted'),
    ('attacks.py', ['--attacks', 'fgsm ce targeted'], 'fgsm'),
    ('pgd.py', ['--table', 'nowhere/table.md'], 'nowhere'),
    ('train.py', ['--plot', 'nowhere/plot.png'], 'nowhere'), ('pgd.py', ['--plot', 'plot.foo'], '.png'),
    ('pgd.py', ['--dtypes', 'float32', '--peer-dtypes', 'float64'], '--peer-dtypes'),
    ('pgd.py', ['--peer', 'torch', '--torch-python', 'false'], 'requirements/torch.txt'),
    ('pgd.py', ['--peer', 'torch', '--torch-python', 'nowhere'], 'nowhere')])
def test_attack_benchmarks_say_what_they_need(script, flags, named, root, python):
    done = python(os.path.join(root, 'benchmarks', script), *flags)
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1
