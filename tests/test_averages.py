"""Averaged weights and the best checkpoint: as files, as flags, and what a training says of them."""
import json
import os
import re
import signal
import subprocess
import sys

from runtime.compat import tf

import numpy as np
import pytest
from jobs import SMALL, Job, statistics
from lanes import once
from photos import write_split
from test_resume import save

from checkpoint import read_checkpoint
from evaluation.preflight import inputs_of_scoring
from evaluation.scoring import run_scoring
from inference import load_classifier
from main import parse_options
from nets import Network
from runtime.errors import InputError
from tools.mpi import read_figures
from training.averages import Averages
from training.beginning import read_initial_weights
from training.best import best_checkpoint, find_best, keep
from training.progress import evaluation_table
from training.records import write_json
from training.schedule import LearningRate


@pytest.fixture
def averaged_file(tmp_path, weights_of):
    """An .npz with weights, and others as their averages."""
    weights, averages = weights_of(seed=0), weights_of(seed=1)
    path = str(tmp_path / 'both.npz')
    np.savez(path, **weights, **{'training/ema/' + name: value for name, value in averages.items()})
    return path


def test_averages_are_read_in_place_of_the_weights(averaged_file, weights_file, weights_of, tmp_path):
    averages = read_checkpoint(averaged_file, 'ema')
    expected = weights_of(seed=1)
    assert set(averages) == set(expected) and all((averages[n] == expected[n]).all() for n in expected)
    assert (read_checkpoint(averaged_file)['linear/W'] == weights_of(seed=0)['linear/W']).all()
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in [('w', 1.0), ('training/ema/w', 2.0), ('training/ema/w2', 3.0)]:
            tf.get_variable(name, initializer=value)
        session.run(tf.global_variables_initializer())
        path = tf.train.Saver().save(session, str(tmp_path / 'model'), write_meta_graph=False)
    assert read_checkpoint(path, 'ema') == {'w': 2.0, 'w2': 3.0} and read_checkpoint(path) == {'w': 1.0}
    for lacking in weights_file(), save(tmp_path, 5):
        with pytest.raises(InputError, match='no averaged weights.*--ema: leave out --weights ema'):
            read_checkpoint(lacking, 'ema')


def test_a_classifier_of_averages(averaged_file, weights_file):
    image = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    given = dict(arch='ResNet', depth=14, image_size=32, batch=2)
    logits = [load_classifier(path, **given, **more).logits(image) for path, more in [
        (averaged_file, dict(weights='ema')), (weights_file(seed=1), {}), (averaged_file, {})]]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 0.01
    with pytest.raises(InputError, match='weights are raw or ema'):
        load_classifier(averaged_file, weights='mean', **given)


def test_a_training_begins_with_averages(averaged_file, weights_of):
    options = parse_options([*SMALL, '--fake', '--load', averaged_file, '--weights', 'ema'])
    weights, averages = read_initial_weights(options, Network('ResNet', 14, 10)), weights_of(seed=1)
    assert set(weights) == set(averages) and all((weights[n] == averages[n]).all() for n in averages)


def test_photos_are_scored_by_averages(averaged_file, weights_file, tmp_path):
    write_split(tmp_path / 'photos', 12)
    written = []
    for path, weights in (averaged_file, 'ema'), (weights_file(seed=1), 'raw'), (averaged_file, 'raw'):
        out = tmp_path / ('%d.txt' % len(written))
        options = parse_options([*SMALL, '--eval-directory', str(tmp_path / 'photos'), '--load', path, '--weights',
                                 weights, '--prediction-file', str(out)])
        assert run_scoring(options, *inputs_of_scoring(options)) == 0
        written.append(out.read_text())
    assert written[0].count('\n') == 12 and written[0] == written[1] != written[2]


def test_averages_take_the_networks_place_for_a_while(session):
    """To the last bit, and also where what is done meanwhile fails."""
    one, other = tf.get_variable('a', initializer=[1.0, 1 / 3]), tf.get_variable('b', initializer=0.1)
    averages = Averages(0.9, ['a'], begin=True)
    averages._setup_graph()
    session.run(tf.global_variables_initializer())
    session.run(averages._begin)
    session.run([tf.assign(one, [2.0, 0.7]), tf.assign(other, 5.0)])
    averages.follow(session)
    values = session.run([one, other])
    with pytest.raises(KeyError), averages.in_place(session):
        np.testing.assert_allclose(session.run(one), [0.9 * 1 + 0.1 * 2, 0.9 / 3 + 0.07], rtol=1e-6)
        assert session.run(other) == 5
        raise KeyError
    assert all((now == before).all() for now, before in zip(session.run([one, other]), values))


# --- the best checkpoint ---------------------------------------------------------------------------------------------

def records(folder, values):
    write_json(str(folder / 'stats.json'), [dict(global_step=step, epoch_num=step, x=value)
                                            for step, value in values.items()])


def kept(folder):
    return sorted(path.name for path in folder.glob('best-*'))


def test_the_best_checkpoint_is_kept_alone(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, value=float(step))
    assert keep(str(tmp_path), 1) and keep(str(tmp_path), 2) and not keep(str(tmp_path), 7)
    assert kept(tmp_path) == ['best-2.data-00000-of-00001', 'best-2.index']
    for path in tmp_path.glob('model-2.*'):
        path.unlink()
    assert best_checkpoint(str(tmp_path)) == str(tmp_path / 'best-2')
    assert (read_checkpoint(str(tmp_path / 'best-2'))['w'] == 2.0).all()


def test_the_best_checkpoint_is_found_again(tmp_path):
    assert find_best(str(tmp_path), 'x') is None and best_checkpoint(str(tmp_path)) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
    records(tmp_path, {1: 0.5, 2: 0.3, 3: 0.3})
    assert find_best(str(tmp_path), 'x') == (0.3, 2) and kept(tmp_path)[0].startswith('best-2.')
    for path in tmp_path.glob('model-2.*'):
        path.unlink()
    assert find_best(str(tmp_path), 'x') == (0.3, 2)
    # of a training that goes back to before it
    records(tmp_path, {1: 0.5})
    assert find_best(str(tmp_path), 'x') == (0.5, 1) and kept(tmp_path)[0].startswith('best-1.')
    assert find_best(str(tmp_path), 'y') is None


def test_the_best_by_another_figure_replaces_the_former(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    write_json(str(tmp_path / 'stats.json'), [dict(global_step=step, epoch_num=step, x=step, y=-step)
                                              for step in (1, 2)])
    assert find_best(str(tmp_path), 'x') == (1, 1) and kept(tmp_path)[0].startswith('best-1.')
    assert find_best(str(tmp_path), 'y') == (-2, 2)
    assert [name.split('.')[0] for name in kept(tmp_path)] == ['best-2'] * 2


def test_the_best_checkpoint_is_the_one_that_is_there_now(tmp_path):
    """Not one that an earlier course of the training left by that name. Others' files beside it stay."""
    save(tmp_path, 1, value=1.0)
    save(tmp_path, 2, value=2.0)
    assert keep(str(tmp_path), 2)
    (tmp_path / 'best-2.json').write_text('results of an evaluation')
    (tmp_path / 'best-2.adv').mkdir()
    for path in tmp_path.glob('model-2.*'):
        path.unlink()
    save(tmp_path, 2, value=3.0)
    assert keep(str(tmp_path), 2) and keep(str(tmp_path), 2)
    assert (read_checkpoint(str(tmp_path / 'best-2'))['w'] == 3.0).all()
    assert keep(str(tmp_path), 1)
    assert kept(tmp_path) == ['best-1.data-00000-of-00001', 'best-1.index', 'best-2.adv', 'best-2.json']
    assert best_checkpoint(str(tmp_path)) == str(tmp_path / 'best-1')


def test_the_last_table_has_both_weights(tmp_path):
    figures = {'error-top1': 0.5, 'error-top5': 0.25}
    last = {'epoch_num': 3}
    for place, strength in enumerate(['10step', 'clean', '100step', 'ema-clean', 'ema-10step']):
        last.update(('eval-%s/%s' % (strength, name), value + place / 100) for name, value in figures.items())
    last['eval-10step/attack-success-rate'] = 0.125
    write_json(str(tmp_path / 'stats.json'), [last])
    rows = [line.split() for line in evaluation_table(str(tmp_path))[2:]]
    assert [row[:-3] for row in rows] == [['clean'], ['10step'], ['100step'], ['clean', 'ema'], ['10step', 'ema']]
    assert rows[1][-3:] == ['0.500000', '0.250000', '0.125000'] and rows[4][-3:] == ['0.540000', '0.290000', '-']


# --- a training ------------------------------------------------------------------------------------------------------

def change(path, **changed):
    """Write a TF checkpoint anew, with other values of some variables."""
    reader = tf.train.load_checkpoint(path)
    with tf.Graph().as_default(), tf.Session() as session:
        for name in reader.get_variable_to_shape_map():
            value = reader.get_tensor(name)
            tf.get_variable(name, initializer=np.full_like(value, changed.get(name, value)))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, path, write_meta_graph=False)


@once
@pytest.mark.slow
def test_a_training_with_averages_is_stopped_and_goes_on(root, tmp_path, python):
    """Free replays with averages and the best of them kept: stopped by a signal, and resumed."""
    data = tmp_path / 'data'
    write_split(data / 'train', 40)
    write_split(data / 'val', 11, seed=1)  # two of class 0, one of each other
    endpoint = 'ipc://%s' % (tmp_path / 'socket')
    server = subprocess.Popen(
        [sys.executable, os.path.join(root, 'third_party', 'serve-data.py'), '--data', str(data), '--batch', '4',
         '--image-size', '32', '--workers', '1', '--endpoint', endpoint], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL)
    flags = [*SMALL, '--data', str(data), '--endpoint', endpoint, '--method', 'free', '--replays', '3', '--ema', '0.5',
             '--attack-epsilon', '4', '--keep-best', 'eval-ema-clean/error-top1', '--training-eval', 'clean',
             '--max-epoch', '2', '--steps-per-epoch', '4', '--schedule', 'cyclic', '--resume']
    log = tmp_path / 'train_log' / 'Free-replays3-cyclic-ema0.5-ResNet14-Batch4-1GPUs-iter1-epsilon4.0-step4.0'
    try:
        job = Job(root, tmp_path, None, *flags)
        job.wait_for('Epoch 1 (global_step 4) finished')
        job.process.send_signal(signal.SIGTERM)
        text = job.end()
        stopped = int(re.findall(r'goes on from \S+model-(\d+)', text)[0])
        text = Job(root, tmp_path, None, *flags).end()
    finally:
        server.terminate()
        server.wait(10)
    assert 'resuming from %s' % os.path.join('train_log', log.name, 'model-%d:' % stopped) in text
    schedule = LearningRate(0.1, total_batch=4, steps_per_epoch=4, max_epoch=2, kind='cyclic')
    rates = {r['global_step']: r['learning_rate'] for r in statistics(log) if 'learning_rate' in r}
    assert rates[8] == pytest.approx(schedule.at(7))
    measured = {r['global_step']: r for r in statistics(log) if 'eval-ema-clean/error-top1' in r}
    assert sorted(measured) == [4, 8] and all('eval-clean/error-top1' in r for r in measured.values())
    best = min(measured, key=lambda step: (measured[step]['eval-ema-clean/error-top1'], step))
    said = 'train_log/%s/best-%d' % (log.name, best)
    assert 'The best checkpoint by eval-ema-clean/error-top1: %s\n' % said in text
    assert measured[8]['best-step'] == best and (log / ('best-%d.index' % best)).exists()
    reader = tf.train.load_checkpoint(str(log / 'model-8'))
    assert reader.has_tensor('training/ema/conv0/bn/variance/EMA')
    assert not any('perturbation' in name for name in reader.get_variable_to_shape_map())

    # the averages evaluate to what was said of them
    done = python(os.path.join(root, 'main.py'), '--eval', '--load', said, '--weights', 'ema', '--data', str(data),
                  '--attack-iter', '0', *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_figures(done.stdout)['Top1 Error'] == pytest.approx(
        measured[best]['eval-ema-clean/error-top1'], abs=1.01 / 11)

    # an evaluation alone is made up for without a data server; all images are of class 1, by the averages of class 0
    change(str(log / 'model-8'), **{'linear/b': 1e6 * np.eye(10)[1], 'training/ema/linear/b': 1e6 * np.eye(10)[0]})
    records = [{k: v for k, v in record.items() if not k.startswith('eval-')} if record['global_step'] == 8 else record
               for record in statistics(log)]
    (log / 'stats.json').write_text(json.dumps(records))
    Job(root, tmp_path, None, *flags, '--data-timeout', '20').end()
    again = [record for record in statistics(log) if 'eval-clean/error-top1' in record][-1]
    errors = [again['eval-%serror-top1' % which] for which in ('clean/', 'ema-clean/')]
    assert errors == pytest.approx([10 / 11, 9 / 11])


@pytest.mark.slow
def test_averages_and_the_attacks_step_are_those_of_the_checkpoint(root, tmp_path):
    """The weights hardly move."""
    flags = [*SMALL[:-1], '64', '--fake', '--method', 'fast', '--ema', '0.5', '--base-lr', '1e-6', '--steps-per-epoch',
             '2', '--resume', '--max-epoch']
    Job(root, tmp_path, None, '--on-overfitting', 'restore', *flags, '1').end()
    log = tmp_path / 'train_log' / 'Fast-ema0.5-ResNet14-Batch64-1GPUs-iter1-epsilon16.0-step20.0'
    change(str(log / 'model-2'), **{'training/ema/linear/b': 8.0, 'training/attack_step_factor': 0.5})
    assert "the attack's steps are 0.5 times as long" in Job(root, tmp_path, None, *flags, '2').end()
    reader = tf.train.load_checkpoint(str(log / 'model-4'))
    np.testing.assert_allclose(reader.get_tensor('training/ema/linear/b'), 8 / 4, atol=1e-3)
    assert reader.get_tensor('training/attack_step_factor') == 0.5
    assert all('overfitting/error-1step' in record for record in statistics(log))

    # whoever goes on in this directory by other flags is told what ends
    others = [*SMALL, '--fake', '--steps-per-epoch', '2', '--max-epoch', '2', '--resume', str(log)]
    text = Job(root, tmp_path, None, *others).end()
    assert 'the averages that %s has end here' % (log / 'model-4') in text
    assert re.search(r'keeps its name; that of these flags would be train_log/PGD-ResNet14-', text)
