"""A training that is interrupted goes on where it was: the choice of the checkpoint, the schedule, the files."""
import os
import signal

import numpy as np
import pytest
from jobs import FAKE, Job, statistics
from lanes import once

NAME = 'PGD-ResNet14-Batch4-%dGPUs-iter0-epsilon16.0-step1.0'


def save(folder, step, value=1.0, **more):
    from runtime.compat import tf
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable('w', initializer=tf.fill([1000], value))
        for name, number in dict(global_step=step, **more).items():
            tf.get_variable(name, initializer=np.int64(number))
        session.run(tf.global_variables_initializer())
        return tf.train.Saver(max_to_keep=100).save(session, str(folder / 'model'), global_step=step,
                                                    write_meta_graph=False)


def test_only_a_complete_checkpoint_counts(tmp_path):
    from training.log_directory import newest_complete, saved_checkpoints
    assert newest_complete(str(tmp_path)) is None
    paths = [save(tmp_path, step) for step in (9, 10, 100)]
    assert saved_checkpoints(str(tmp_path)) == paths[::-1]
    assert newest_complete(str(tmp_path)) == paths[2]
    data = tmp_path / 'model-100.data-00000-of-00001'
    whole = data.read_bytes()
    for damaged in [whole[:-1], whole[:100], b'', whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]]:
        data.write_bytes(damaged)
        assert newest_complete(str(tmp_path)) == paths[1]
    data.write_bytes(whole)
    assert newest_complete(str(tmp_path)) == paths[2]
    index = tmp_path / 'model-100.index'
    index.write_bytes(index.read_bytes()[:40])
    assert newest_complete(str(tmp_path)) == paths[1]
    index.unlink()
    save(tmp_path, 200, value=float('nan'))
    assert newest_complete(str(tmp_path)) == paths[1]
    (tmp_path / 'model-10.data-00000-of-00001').unlink()
    assert newest_complete(str(tmp_path)) == paths[0]


def test_a_place_in_the_schedule_under_another_number_of_steps(tmp_path):
    from training.log_directory import start_after
    place = {'training/steps_per_epoch': 100, 'training/step_offset': 0, 'training/total_batch': 8}
    at_epoch, within = save(tmp_path, 300, **place), save(tmp_path, 350, **place)
    same = start_after(within, 100)
    assert (same.epoch, same.step_of_epoch, same.offset, same.global_step) == (4, 50, 0, 350)
    fewer_ranks = start_after(within, 200)  # steps were made, and are counted on; the schedule's are twice as many
    assert (fewer_ranks.epoch, fewer_ranks.step_of_epoch, fewer_ranks.global_step) == (4, 100, 350)
    more_ranks = start_after(at_epoch, 33)
    assert (more_ranks.epoch, more_ranks.step_of_epoch, more_ranks.offset) == (4, 0, 300 - 99)
    assert more_ranks.former_batch == 8
    # and again from a checkpoint of that
    place.update({'training/steps_per_epoch': 33, 'training/step_offset': more_ranks.offset})
    back = start_after(save(tmp_path, 311, **place), 100)
    assert (back.epoch, back.step_of_epoch) == (4, 33)


def test_the_directory_that_resume_means(tmp_path, monkeypatch):
    from evaluation.outcomes import Strength
    from main import parse_options
    from runtime.errors import InputError
    from training.log_directory import LogName, directory_to_resume
    monkeypatch.chdir(tmp_path)

    def found(ranks, *flags):
        options = parse_options(['--fake', '-d', '14', '--attack-iter', '0', '--batch', '4'] + list(flags))
        attack = Strength(options.attack_iter[0], options.attack_epsilon[0], options.attack_step_size)
        name = LogName(options.arch, options.depth, options.batch, ranks, attack, options.logdir)
        return directory_to_resume(name, options.resume)

    assert found(2, '--resume') is None
    for name in [NAME % 2, NAME % 2 + '-other', (NAME % 2).replace('iter0', 'iter1')]:
        (tmp_path / 'train_log' / name).mkdir(parents=True)
        save(tmp_path / 'train_log' / name, 5)
    assert found(2, '--resume') == found(16, '--resume') == os.path.join('train_log', NAME % 2)
    assert found(2, '--resume', '--batch', '8') == os.path.join('train_log', NAME % 2)
    assert found(2, '--resume', '--logdir', 'other') == os.path.join('train_log', NAME % 2 + '-other')
    assert found(2, '--resume', '--attack-iter', '2') is None
    (tmp_path / 'train_log' / (NAME % 4)).mkdir()
    assert found(3, '--resume') == os.path.join('train_log', NAME % 2)  # nothing was learnt in the other one
    save(tmp_path / 'train_log' / (NAME % 4), 5)
    assert found(4, '--resume') == os.path.join('train_log', NAME % 4)
    with pytest.raises(InputError, match='2GPUs.* or .*4GPUs.*--resume DIR'):
        found(3, '--resume')
    assert found(3, '--resume', 'train_log/' + NAME % 4) == 'train_log/' + NAME % 4
    with pytest.raises(InputError, match='no checkpoint in nowhere'):
        found(3, '--resume', 'nowhere')
    with pytest.raises(InputError, match='--overwrite'):
        found(3, '--resume', '--overwrite')


@pytest.mark.parametrize('suffix', ['BATCH256', 'RANKS', 'Batch4-2GPUs', 'a.b[c]+', '-', 'BATCH-RANKS-'])
def test_any_suffix_is_found_again_under_other_ranks(tmp_path, monkeypatch, suffix):
    from evaluation.outcomes import Strength
    from training.log_directory import LogName, directory_to_resume
    monkeypatch.chdir(tmp_path)
    name = LogName('ResNet', 14, 4, 2, Strength(0), suffix)
    for suffixed in (suffix, suffix + 'x', 'x' + suffix, None):
        path = tmp_path / name._replace(suffix=suffixed).path()
        path.mkdir(parents=True)
        save(path, 5)
    assert directory_to_resume(name._replace(ranks=16, batch=256), '') == name.path()


@once
@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_uninterrupted_one(root, tmp_path):
    """Stopped by a signal within an epoch, its last checkpoint lost, resumed, then on one rank without mpirun."""
    from training.schedule import LearningRate
    flags = FAKE + ['--steps-per-epoch', '16', '--max-epoch', '4', '--base-lr', '0.64', '--save-every-steps', '3']
    log = tmp_path / 'train_log' / (NAME % 2)

    first = Job(root, tmp_path, 2, *flags, '--resume')  # there is nothing yet
    first.wait_for('model-3.')
    first.ranks()[1].send_signal(signal.SIGTERM)  # one rank alone: all end at the same step
    text = first.end()
    assert 'no checkpoint yet' in text and 'the same command with --resume goes on from' in text
    stopped = int(text.split('goes on from')[-1].split('model-')[1].split()[0])
    assert 3 <= stopped < 64
    data = log / ('model-%d.data-00000-of-00001' % stopped)
    data.write_bytes(data.read_bytes()[:-100])  # as if it had been killed meanwhile
    newest = max(step for step in range(stopped) if (log / ('model-%d.index' % step)).exists())

    second = Job(root, tmp_path, 2, *flags, '--resume')
    second.wait_for('%d steps were made, next is step %d of 16 in epoch %d' % (
        newest, newest % 16 + 1, newest // 16 + 1))
    second.wait_for('Model saved to train_log/%s/model-' % (NAME % 2))
    second.process.send_signal(signal.SIGUSR1)  # mpirun hands this one on to its ranks
    text = second.end()
    assert 'incomplete or damaged' in text and 'Start Epoch %d ...' % (newest // 16 + 1) in text
    on_two_ranks = int(text.split('goes on from')[-1].split('model-')[1].split()[0])
    assert newest < on_two_ranks < 64

    third = Job(root, tmp_path, None, *flags, '--resume')
    third.end()
    assert 'the total batch was 8 and is 4 now' in third.text and 'peak learning rate 0.01' in third.text
    assert 'Epoch 4 (global_step 64) finished' in third.text and (log / 'model-64.index').exists()

    rates = {ranks: LearningRate(0.64, 4 * ranks, 16, 4) for ranks in (1, 2)}
    records = [r for r in statistics(log) if 'learning_rate' in r]
    assert [r['global_step'] for r in records] == [16, 32, 48, 64] and [r['epoch_num'] for r in records] == [1, 2, 3, 4]
    for r in records:
        of_these = rates[2 if r['global_step'] <= on_two_ranks else 1]
        assert r['learning_rate'] == pytest.approx(of_these.at(r['global_step'] - 1), rel=1e-5)

    # all that a training has is in its checkpoint, momentum too
    from runtime.compat import tf
    reader = tf.train.load_checkpoint(str(log / 'model-64'))
    assert reader.get_tensor('global_step') == 64 and np.abs(reader.get_tensor('linear/W/Momentum')).max() > 0

    # it is complete: there is nothing to do
    again = Job(root, tmp_path, None, *flags, '--resume')
    assert 'Start Epoch' not in again.end()


@pytest.mark.slow
def test_stopped_after_the_last_step_of_an_epoch_its_statistics_are_kept(root, tmp_path):
    job = Job(root, tmp_path, None, *FAKE, '--steps-per-epoch', '1', '--max-epoch', '10000')
    job.wait_for('Epoch 3 (global_step 3) finished')
    job.process.send_signal(signal.SIGTERM)
    stopped = int(job.end().split('goes on from')[-1].split('model-')[1].split()[0])
    records = statistics(tmp_path / 'train_log' / (NAME % 1))
    assert [r['global_step'] for r in records] == list(range(1, stopped + 1))
