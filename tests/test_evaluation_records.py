"""What an evaluation leaves behind, and that it can be repeated, spread over ranks, continued and interrupted."""
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
from evaluating import SMALL, alone, evaluate, evaluation, ranks, read_table
from forked import start_main
from lanes import once
from photos import write_split

from tools.mpi import read_figures

FLAGS = ['--attack-iter', '0,3,10', '--attack-epsilon', '16,5.5', '--batch', '7']
NUM_IMAGES = 37
KILLS = int(os.environ.get('KILLS', 3))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """37 photos in 10 classes."""
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', NUM_IMAGES)
    return str(folder)


@pytest.fixture(scope='module')
def whole(root, data, weights_file, tmp_path_factory):
    """The folder of one undisturbed run with everything kept."""
    folder = tmp_path_factory.mktemp('whole')
    done = evaluate(root, alone, data, weights_file(), *(FLAGS + kept_in(folder, images=True)))
    (folder / 'stdout').write_text(done.stdout)
    return folder


def kept_in(folder, images=False):
    flags = ['--results', folder / 'results.json', '--per-image', folder / 'images.csv',
             '--journal', folder / 'journal']
    return flags + (['--save-adversarial', folder / 'saved'] if images else [])


def test_rows_add_up_to_the_records(whole):
    records = json.loads((whole / 'results.json').read_text())['attacks']
    rows = read_table(whole / 'images.csv')
    assert list(rows[0]) == 'index path label attack_iter epsilon target prediction top5_correct success'.split()
    assert len(rows) == 6 * NUM_IMAGES and len(records) == 6
    for record in records:
        of_record = [r for r in rows if (int(r['attack_iter']), float(r['epsilon'])) ==
                     (record['attack_iter'], record['epsilon'])]
        assert [int(r['index']) for r in of_record] == list(range(NUM_IMAGES))
        assert record['top1_error'] == np.mean([r['prediction'] != r['label'] for r in of_record])
        assert record['top5_error'] == np.mean([r['top5_correct'] == '0' for r in of_record])
        assert record['attack_success_rate'] == success_of(of_record)
        for row in of_record:
            assert os.path.basename(os.path.dirname(row['path'])) == 'c' + row['label'] and os.path.isfile(row['path'])
            if record['attack_iter']:
                assert row['target'] != row['label'] and 0 <= int(row['target']) < 10
                assert (row['success'] == '1') == (row['prediction'] == row['target'])
            else:
                assert row['target'] == '' and row['success'] == ''


def success_of(rows):
    """Of attacked images the rate; without an attack it can't be known."""
    return None if rows[0]['success'] == '' else np.mean([r['success'] == '1' for r in rows])


def test_targets_depend_on_the_image_alone(whole):
    """Not on the strength; and over the images they are not all alike."""
    rows = [r for r in read_table(whole / 'images.csv') if r['attack_iter'] != '0']
    targets = {r['index']: r['target'] for r in rows}
    assert all(targets[r['index']] == r['target'] for r in rows)
    assert len(set(targets.values())) > 5


def test_same_command_same_rows_and_another_seed_others(root, data, weights_file, whole, tmp_path):
    evaluate(root, alone, data, weights_file(), *(FLAGS + ['--per-image', tmp_path / 'again.csv']))
    assert (tmp_path / 'again.csv').read_bytes() == (whole / 'images.csv').read_bytes()
    evaluate(root, alone, data, weights_file(), '--attack-iter', 1, '--per-image', tmp_path / 'other.csv', '--seed', 1)
    targets = [{r['index']: r['target'] for r in read_table(path) if r['target']}
               for path in (whole / 'images.csv', tmp_path / 'other.csv')]
    assert np.mean([targets[0][index] != target for index, target in targets[1].items()]) > 0.6
    assert len(targets[0]) == len(targets[1]) == NUM_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize('count, batch, steps', [(3, 1, '0,3'), (2, 32, '0,3,10')])
def test_ranks_and_batch_sizes_change_nothing_but_rounding(root, data, weights_file, whole, tmp_path, count, batch,
                                                           steps):
    flags = ['--attack-iter', steps] + FLAGS[2:-1] + [batch]
    evaluate(root, ranks(count), data, weights_file(), *(flags + ['--per-image', tmp_path / 'images.csv']))
    here = read_table(tmp_path / 'images.csv')
    there = [row for row in read_table(whole / 'images.csv') if row['attack_iter'] in steps.split(',')]
    assert [(r['index'], r['attack_iter'], r['epsilon'], r['target']) for r in here] == \
        [(r['index'], r['attack_iter'], r['epsilon'], r['target']) for r in there]
    assert np.mean([a != b for a, b in zip(here, there)]) <= 0.005


def test_saved_images_are_within_the_budget_and_classified_as_they_are(whole, classifier):
    from third_party.images import decode, validation_image
    manifest = read_table(whole / 'saved' / 'manifest.csv')
    assert len(manifest) == 6 * NUM_IMAGES
    saved = np.stack([cv2.imread(str(whole / 'saved' / row['file'])) for row in manifest])
    clean = np.stack([validation_image(decode(row['path']), 32) for row in manifest])
    change = np.abs(saved.astype(int) - clean).max(axis=(1, 2, 3))
    budgets = [int(float(row['epsilon'])) if row['attack_iter'] != '0' else 0 for row in manifest]
    assert (change <= budgets).all() and change.max() == 16
    predictions = classifier().logits(saved).argmax(axis=1)
    assert np.mean(predictions == [int(row['prediction']) for row in manifest]) > 0.99
    records = json.loads((whole / 'results.json').read_text())['attacks']
    for record in records:
        rows = [r for r in manifest if (int(r['attack_iter']), float(r['epsilon'])) ==
                (record['attack_iter'], record['epsilon'])]
        assert record['saved_top1_error'] == np.mean([r['prediction'] != r['label'] for r in rows])
        assert record['saved_attack_success_rate'] == success_of(rows)


def test_saved_images_are_scored_by_their_manifest(python, whole, weights_file, tmp_path):
    """On the network that was attacked: the figures of the images as saved. On another one: of the transfer."""
    figures = {}
    for seed in (0, 1):
        done = python('main.py', '--eval-directory', whole / 'saved', '--labels', whole / 'saved' / 'manifest.csv',
                      '--load', weights_file(seed=seed), '--prediction-file', tmp_path / 'p.txt', *SMALL)
        assert done.returncode == 0, done.stderr
        blocks = re.findall(r'37 images, (\d+) attack steps, epsilon (\S+)\n((?:.*: .*\n){3})', done.stdout)
        figures[seed] = {(int(k), float(e)): read_figures(text) for k, e, text in blocks}
        assert sum(1 for _ in open(str(tmp_path / 'p.txt'))) == 6 * NUM_IMAGES
    for record in json.loads((whole / 'results.json').read_text())['attacks']:
        key = record['attack_iter'], record['epsilon']
        for title, name in [('Top1 Error', 'saved_top1_error'), ('Top5 Error', 'saved_top5_error'),
                            ('Attack Success Rate', 'saved_attack_success_rate')]:
            if record[name] is None:
                assert figures[0][key][title] is None and key[0] == 0
            else:
                assert figures[0][key][title] == pytest.approx(record[name], abs=1.1 / NUM_IMAGES)
    assert figures[1][(10, 16)]['Attack Success Rate'] < figures[0][(10, 16)]['Attack Success Rate'] - 0.3


def test_an_unlisted_image_gets_a_label_and_no_figure(python, whole, weights_file, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    rows = read_table(whole / 'saved' / 'manifest.csv')[:4]
    for row in rows[:3]:
        (folder / row['file']).write_bytes((whole / 'saved' / row['file']).read_bytes())
    (folder / 'labels.csv').write_text('file,label\n' + ''.join('%s,%s\n' % (r['file'], r['label']) for r in rows[1:]))
    done = python('main.py', '--eval-directory', folder, '--labels', folder / 'labels.csv', '--load', weights_file(),
                  '--prediction-file', tmp_path / 'p.txt', *SMALL)
    assert done.returncode == 0, done.stderr
    assert '2 images\nTop1 Error' in done.stdout and len((tmp_path / 'p.txt').read_text().splitlines()) == 3
    assert '1 of the 3 images of --labels were not scored' in done.stderr


@once
def test_continued_from_any_line_on_other_ranks(root, data, weights_file, whole, tmp_path):
    """A journal that was cut off after the first rounds; two ranks go on, and the files are those of the whole run."""
    cut_off(whole, tmp_path)
    done = evaluate(root, ranks(2), data, weights_file(), *(FLAGS + kept_in(tmp_path, images=True)))
    assert '14/37' in done.stderr
    compare_with_whole(tmp_path, whole)
    assert sorted(os.listdir(str(tmp_path / 'saved'))) == sorted(os.listdir(str(whole / 'saved')))
    here, there = [json.loads((folder / 'results.json').read_text()) for folder in (tmp_path, whole)]
    assert here['ranks'] == 2 and here['checkpoint_sha256'] == there['checkpoint_sha256']
    for a, b in zip(here['attacks'], there['attacks']):
        assert a['num_images'] == NUM_IMAGES and a['top1_error'] == pytest.approx(b['top1_error'], abs=1.1 / NUM_IMAGES)


def cut_off(whole, folder):
    """What a run that was killed in its third batch of 7 leaves."""
    lines = (whole / 'journal').read_bytes().splitlines(True)
    (folder / 'journal').write_bytes(b''.join(lines[:3]) + lines[3][:50])
    (folder / 'saved').mkdir()
    for name in os.listdir(str(whole / 'saved')):
        if name != 'manifest.csv' and (name.startswith('.') or int(name[:6]) < 15):
            (folder / 'saved' / name).write_bytes((whole / 'saved' / name).read_bytes())
    (folder / 'saved' / '.000015-iter3-epsilon16.png.1.part').write_bytes(b'half')


def test_a_continued_run_needs_the_images_of_its_beginning(python, data, weights_file, whole, tmp_path):
    cut_off(whole, tmp_path)
    os.unlink(str(tmp_path / 'saved' / '000003-iter10-epsilon5.5.png'))
    done = python('main.py', '--eval', '--load', weights_file(), '--data', data, *(FLAGS + SMALL + kept_in(
        tmp_path, images=True)))
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert re.search('lacks 1 images .* such as 000003-iter10-epsilon5.5.png', done.stderr), done.stderr


def test_journal_of_another_command_is_refused(python, data, weights_file, whole):
    before = (whole / 'journal').read_bytes()
    done = python('main.py', '--eval', '--load', weights_file(), '--data', data, *(FLAGS + SMALL + [
        '--seed', 5, '--save-adversarial', whole / 'saved', '--journal', whole / 'journal']))
    assert done.returncode == 2
    assert re.search(r'main.py: error: the journal .* is of another evaluation: seed is 0 there and 5 here',
                     done.stderr)
    assert (whole / 'journal').read_bytes() == before


@once
@pytest.mark.slow
def test_killed_again_and_again(root, data, weights_file, tmp_path, whole):
    """SIGKILL at random moments of the work, alone and for a rank of two: nothing that was finished is lost, and the
    end is that of the undisturbed run."""
    draw = random.Random(int.from_bytes(os.urandom(4), 'little'))
    journal = tmp_path / 'journal'
    flags = FLAGS[:-1] + [2] + kept_in(tmp_path, images=True)  # 19 batches
    said, kills, deadline = tmp_path / 'said', 0, time.monotonic() + 1200
    while kills < KILLS:
        assert time.monotonic() < deadline
        before = finished_lines(journal)
        if kills % 3 == 2:
            with said.open('wb') as f:
                process = subprocess.Popen(evaluation(ranks(2), data, weights_file(), *flags), cwd=root,
                                           start_new_session=True, stdout=f, stderr=f)
        else:
            process = start_main(*evaluation(alone, data, weights_file(), *flags)[2:], outputs=(said, said))
        patience = time.monotonic() + 240
        while finished_lines(journal) <= before and process.poll() is None:  # until its first batch is finished
            if time.monotonic() > patience:
                if isinstance(process, subprocess.Popen):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.end()
                raise AssertionError('no batch is finished:\n' + said.read_text(errors='replace')[-20000:])
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        for pid in draw.sample(victims(process), 1) if process.poll() is None and victims(process) else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.wait(60) == 0:  # it was through: the next one begins anew
            compare_with_whole(tmp_path, whole)
            os.unlink(str(journal))
            shutil.rmtree(str(tmp_path / 'saved'))
            continue
        kills += 1
        assert finished_lines(journal) > before
    evaluate(root, ranks(2), data, weights_file(), *flags)
    compare_with_whole(tmp_path, whole)
    assert len(read_table(tmp_path / 'saved' / 'manifest.csv')) == 6 * NUM_IMAGES == \
        sum(name.endswith('.png') for name in os.listdir(str(tmp_path / 'saved')))
    assert not [name for name in os.listdir(str(tmp_path / 'saved')) if name.endswith('.part')]


def victims(process):
    """The processes of the evaluation: the ranks under mpirun, or the process itself."""
    return main_processes(process.pid) if isinstance(process, subprocess.Popen) else [process.pid]


def compare_with_whole(folder, whole):
    here, there = read_table(folder / 'images.csv'), read_table(whole / 'images.csv')
    assert [(r['index'], r['target']) for r in here] == [(r['index'], r['target']) for r in there]
    assert np.mean([a != b for a, b in zip(here, there)]) <= 0.005


def finished_lines(path):
    return path.read_bytes().count(b'\n') if path.exists() else 0


def main_processes(leader):
    """Of the session that `leader` leads: the ranks."""
    listing = subprocess.run(['ps', '-eo', 'pid,sess,args'], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return [int(pid) for pid, session, arguments in (line.split(None, 2) for line in listing.splitlines()[1:])
            if session == str(leader) and 'main.py --eval' in arguments and 'mpirun' not in arguments]


@pytest.mark.slow
@pytest.mark.parametrize('count, steps', [(1, 10000000), (2, 40)])
def test_ctrl_c_ends_all_ranks_within_seconds(root, weights_file, tmp_path, count, steps):
    """Also in the middle of an attack of many hours; what was finished before is continued."""
    write_split(tmp_path / 'data' / 'val', 24)
    journal = tmp_path / 'journal'
    command = evaluation(ranks(count), tmp_path / 'data', weights_file(), '--attack-iter', steps, '--batch', 2,
                         '--journal', journal, '--per-image', tmp_path / 'rows.csv')
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wanted, deadline = 1 if count == 1 else 2, time.monotonic() + 240  # the endless one finishes nothing
        while finished_lines(journal) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(5 if count == 1 else 0.3)
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) != 0
        assert time.monotonic() - begin < 10
        assert main_processes(process.pid) == []
        assert sorted(os.listdir(str(tmp_path))) == ['data', 'journal']  # nothing of the rows that were not all there
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if count > 1:
        before = finished_lines(journal)
        assert before < 1 + 12
        evaluate(root, alone, tmp_path / 'data', weights_file(), *command[command.index('--attack-iter'):])
        assert finished_lines(journal) > before
