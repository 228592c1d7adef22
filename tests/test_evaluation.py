"""White-box evaluation as its users run it: main.py --eval, alone and under mpirun."""
import hashlib
import json
import os
import re

import numpy as np
import pytest
from evaluating import SMALL, alone, evaluate
from photos import write_split

from evaluation.results import wilson_interval
from tools.mpi import mpirun, read_figures


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """37 photos in 10 classes."""
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 37)
    return str(folder)


@pytest.fixture(scope='module')
def images(data):
    from third_party.imagenet import load_dataset
    from third_party.images import decode, validation_image
    dataset = load_dataset(data, 'val')
    return np.stack([validation_image(decode(p), 32) for p in dataset.paths]), np.array(dataset.labels)


def counts(done, num_images):
    figures = read_figures(done.stdout)
    assert len(figures) == 3, done.stdout
    return [int(round(figures[k] * num_images)) for k in ('Top1 Error', 'Attack Success Rate', 'Top5 Error')]


def expected_counts(classifier, images, labels, steps):
    """The same evaluation by the Python API, one call for all images, counted with NumPy."""
    attacked, targets = classifier.pgd(images, labels, steps=steps, seed=0)
    order = np.argsort(-classifier.logits(attacked), axis=1)
    return [int((order[:, 0] != labels).sum()), int((order[:, 0] == targets).sum()) if steps else 0,
            int((order[:, :5] != labels[:, None]).all(axis=1).sum())]


def close(a, b):
    """Rounding may tip one image in a hundred steps; a lost or doubled image would change the total."""
    return all(abs(x - y) <= 1 for x, y in zip(a, b))


@pytest.mark.parametrize('steps', [0, 3])
def test_figures_are_those_of_the_python_api(root, data, images, weights_file, classifier, steps):
    done = evaluate(root, alone, data, weights_file(), '--attack-iter', str(steps))
    assert close(counts(done, 37), expected_counts(classifier(), *images, steps=steps))
    lines = done.stdout.strip().split('\n')
    assert [line.split(':')[0] for line in lines[-3:]] == ['Top1 Error', 'Attack Success Rate', 'Top5 Error']
    assert '37 images' in lines[-4]
    bar = done.stderr.replace('\r', '\n').strip().split('\n')[-1]
    assert re.search(r'100%.* 37/37 .*error \d\.\d+, success ' + (r'\d\.\d+' if steps else 'n/a'), bar), bar


@pytest.mark.slow
@pytest.mark.parametrize('ranks', [1, 2])  # 3 are below, with many strengths
def test_every_image_counts_once_for_any_number_of_ranks(root, data, images, weights_file, classifier, ranks):
    done = evaluate(root, lambda a: mpirun(ranks, a), data, weights_file(), '--attack-iter', '3', '--batch', '5')
    assert close(counts(done, 37), expected_counts(classifier(), *images, steps=3))
    assert done.stdout.count('Top1 Error') == 1 and '37 images' in done.stdout


@pytest.mark.slow
def test_more_ranks_than_images(root, tmp_path, weights_file, classifier):
    write_split(tmp_path / 'val', 2, classes=2)
    (tmp_path / 'synsets.txt').write_text('\n'.join('c%d' % i for i in range(10)))
    done = evaluate(root, lambda a: mpirun(3, a), str(tmp_path), weights_file(), '--attack-iter', '2')
    alone_ = evaluate(root, alone, str(tmp_path), weights_file(), '--attack-iter', '2')
    assert '2 images' in done.stdout
    assert read_figures(done.stdout) == read_figures(alone_.stdout)


def test_needs_neither_horovod_nor_mpi(root, data, weights_file, tmp_path, python):
    (tmp_path / 'horovod.py').write_text('raise ImportError("there is no Horovod here")')
    done = python('main.py', '--eval', '--load', weights_file(), '--data', data, '--attack-iter', '0', *SMALL,
                  env={'PYTHONPATH': str(tmp_path), 'PATH': '/nowhere'})
    assert done.returncode == 0, done.stderr
    assert len(read_figures(done.stdout)) == 3


@pytest.mark.parametrize('job', ['evaluation', 'api', 'own network'])
def test_where_the_environment_asks_for_determinism(root, python, data, weights_file, tmp_path, job):
    """TensorFlow 2 then refuses random operations without a seed, such as the first values of weights."""
    program = """
import inference, numpy as np
classifier = inference.load_classifier('%s', 'ResNet', 14, image_size=32)
classifier.pgd(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, int), steps=1)
""" % weights_file()
    (tmp_path / 'own.py').write_text("""
from runtime.compat import tf
def network(images, num_classes, mode):
    weights = tf.get_variable('W', [3, num_classes], initializer=tf.random_normal_initializer())
    return tf.matmul(tf.reduce_mean(images, [1, 2]), weights)
""")
    np.savez(str(tmp_path / 'own.npz'), W=np.ones((3, 10), np.float32))
    evaluate = [os.path.join(root, 'main.py'), '--eval', '--data', data, '--attack-iter', '1', '--image-size', '32']
    commands = {'evaluation': evaluate + ['--load', weights_file(), '-d', '14'], 'api': ['-c', program],
                'own network': evaluate + ['--arch', 'own:network', '--load', tmp_path / 'own.npz']}
    done = python(*commands[job], env={'TF_DETERMINISTIC_OPS': '1', 'PYTHONPATH': str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_a_longer_attack_passes_the_shorter_ones(images, weights_of):
    """Strengths that share a trajectory give the outcomes that they have alone."""
    from runtime.compat import tf

    from adv_model import AttackTower
    from checkpoint import assign_weights
    from evaluation.attack import attack_batch
    from evaluation.outcomes import Strength
    from kernels.mode import Mode
    from nets import Network
    from runtime.hardware import session_config
    from third_party.batches import Batch
    with tf.Graph().as_default() as graph:
        tower = AttackTower(Network('ResNet', 14, 10), 32, mode=Mode(), attack_mode=Mode())
    batch = Batch(images[0][:8], images[1][:8].astype(np.int32), np.arange(8))
    strengths = [Strength(k) for k in (20, 0, 5, 16, 18)]  # 5 steps of 3.2, and 16, 18, 20 steps of 1
    with tf.Session(graph=graph, config=session_config()) as session:
        assign_weights(session, weights_of())
        together = attack_batch(tower, session, batch, strengths)
        for i, strength in enumerate(strengths):
            single = attack_batch(tower, session, batch, [strength])[:, 0]
            for name in ('target', 'prediction', 'top5_correct'):
                assert np.array_equal(single[name], together[:, i][name]), (strength, name)


def test_flat_validation_set_gives_the_same(root, data, weights_file, tmp_path):
    flat = tmp_path / 'val'
    flat.mkdir()
    lines = []
    for label in sorted(os.listdir(os.path.join(data, 'val'))):
        for name in sorted(os.listdir(os.path.join(data, 'val', label))):
            os.symlink(os.path.join(data, 'val', label, name), str(flat / ('%s-%s' % (label, name))))
            lines.append('%s-%s %d' % (label, name, int(label[1:])))
    (tmp_path / 'val.txt').write_text('\n'.join(lines))
    (tmp_path / 'synsets.txt').write_text('\n'.join('c%d' % i for i in range(10)))
    folders, flat_ = [evaluate(root, alone, d, weights_file(), '--attack-iter', '2') for d in (data, str(tmp_path))]
    assert read_figures(folders.stdout) == read_figures(flat_.stdout)


@pytest.mark.slow
def test_many_strengths_for_one_run_and_their_records(root, data, weights_file, tmp_path):
    """They equal those of runs of their own, whose order and number of ranks are others."""
    weights, path = weights_file(), tmp_path / 'results.json'
    done = evaluate(root, lambda a: mpirun(3, a), data, weights, '--attack-iter', '20,0', '--attack-epsilon', '16,4',
                    '--results', str(path))
    results = json.loads(path.read_text())
    with open(weights, 'rb') as f:
        assert results['checkpoint_sha256'] == hashlib.sha256(f.read()).hexdigest()
    assert results['arch'] == 'ResNet' and results['depth'] == 14 and results['seed'] == 0 and results['ranks'] == 3
    assert results['versions']['numpy'] == np.__version__
    assert results['instruction_set'] in ('any_cpu', 'avx2', 'avx512', 'avx512_bf16', 'gpu')
    assert [(r['epsilon'], r['attack_iter'], r['step_size']) for r in results['attacks']] == [
        (16, 20, 1), (16, 0, 0), (4, 20, 1), (4, 0, 0)]
    assert done.stdout.count('Top1 Error') == 4
    for record in results['attacks']:
        assert record['num_images'] == 37 and record['seconds'] > 0
        assert (record['image_steps_per_second'] > 0) == (record['attack_iter'] > 0)
        alone_done = evaluate(root, alone, data, weights, '--attack-iter', str(record['attack_iter']),
                              '--attack-epsilon', str(record['epsilon']))
        assert (record['attack_success_rate'] is None) == (record['attack_iter'] == 0)
        of_record = [round(37 * (record[k] or 0)) for k in ('top1_error', 'attack_success_rate', 'top5_error')]
        assert close(of_record, counts(alone_done, 37))
        low, high = record['top1_error_interval']
        assert low <= record['top1_error'] <= high and 0.05 < high - low < 0.4


@pytest.mark.parametrize('count, total, low, high', [
    (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (0, 0, 0, 1)])
def test_wilson_intervals(count, total, low, high):
    """81 of 263: the example of Newcombe (1998)."""
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0, 1000)[0] == 0.0 and wilson_interval(1000, 1000)[1] == 1.0
