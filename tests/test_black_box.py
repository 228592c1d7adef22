"""The all-or-nothing criterion of black-box attacks: tools.black_box on files of predictions and on folders."""
import json
import os
import re

import cv2
import numpy as np
import pytest
from lanes import once
from photos import photographs

from evaluation.results import wilson_interval
from runtime.errors import InputError, RunError
from runtime.files import kept_if_cut_off
from third_party.preparations import PREPARATIONS
from tools import black_box
from tools.predictions import classify, read_predictions

# label, and what the network says of the versions of three attackers. By hand: A is right on 4 of 6, B on 4, C on 3;
# all of them on 0 and 5 alone.
BY_HAND = [(3, 3, 3, 3), (1, 1, 1, 2), (7, 7, 0, 7), (2, 5, 2, 2), (9, 4, 4, 4), (0, 0, 0, 0)]
RIGHT, ALL_RIGHT = [4, 4, 4], 2


def options_of(*arguments):
    return black_box.parse_options([str(a) for a in arguments])


@pytest.fixture
def judged(capfd, tmp_path):
    """Return judged(*arguments) -> the results of the command, as JSON."""
    def judge(*arguments):
        assert black_box.run(options_of(*(arguments + ('--results', tmp_path / 'results.json')))) == 0
        out = capfd.readouterr().out
        results = json.loads((tmp_path / 'results.json').read_text())
        assert 'all or nothing' in out and '%d photos' % results['num_images'] in out
        return results
    return judge


def write_lines(path, lines, ending='\n'):
    path.write_bytes(b''.join(os.fsencode(line) + ending.encode() for line in lines))
    return path


def write_case(folder, rows=BY_HAND, name='photo %d, a.png', attackers='ABC', manifest_name=None):
    """Write a manifest and a file of predictions for each attacker, whose images lie in folders of their own."""
    manifest = write_lines(folder / 'manifest.csv', ['file,label'] + [
        '"%s",%d' % ((manifest_name or name) % i, row[0]) for i, row in enumerate(rows)])
    files = [write_lines(folder / (a + '.txt'), ['attacked/%s/%s,%d' % (a, name % i, row[1 + k])
                                                 for i, row in enumerate(rows)]) for k, a in enumerate(attackers)]
    return manifest, files


def test_against_a_count_by_hand(judged, tmp_path):
    manifest, files = write_case(tmp_path)
    results = judged(*files, '--labels', manifest)
    assert results['attackers'] == ['A', 'B', 'C'] and results['num_images'] == 6
    assert results['right'] == RIGHT and results['rates'] == [count / 6 for count in RIGHT]
    assert results['all_right'] == ALL_RIGHT and results['all_or_nothing'] == ALL_RIGHT / 6
    assert results['all_or_nothing_interval'] == list(wilson_interval(ALL_RIGHT, 6))
    assert results['rate_intervals'] == [list(wilson_interval(count, 6)) for count in RIGHT]


@pytest.mark.parametrize('seed', range(3))
def test_against_numpy(judged, tmp_path, seed):
    """Predictions in another order for each attacker, of which many agree."""
    rng = np.random.RandomState(seed)
    rows = rng.randint(0, 4, (200, 5))
    manifest, files = write_case(tmp_path, rows, attackers='ABCD')
    for path in files:
        lines = path.read_text().splitlines()
        write_lines(path, [lines[i] for i in rng.permutation(len(lines))])
    results = judged(*files, '--labels', manifest)
    right = rows[:, 1:] == rows[:, :1]
    assert results['rates'] == list(right.mean(axis=0)) and results['all_or_nothing'] == right.all(axis=1).mean()


def test_one_attacker(judged, tmp_path):
    manifest, files = write_case(tmp_path, attackers='A')
    results = judged(*files, '--labels', manifest)
    assert results['rates'] == [results['all_or_nothing']] == [4 / 6]


def test_the_table(capfd, tmp_path):
    manifest, files = write_case(tmp_path)
    assert black_box.run(options_of(*files, '--labels', manifest)) == 0
    lines = capfd.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    low, high = [100 * x for x in wilson_interval(2, 6)]
    assert cells[0] == ['attacker', 'right', 'accuracy, %', '95% interval', 'error, %']
    assert cells[-1] == ['all or nothing', '2', '33.3', '%.1f to %.1f' % (low, high), '66.7']
    assert cells[2][:3] == ['A', '4', '66.7']


# --- which image is whose version of what ----------------------------------------------------------------------------

@pytest.mark.parametrize('name, manifest_name', [
    ('%d.png', '%d.png'), ('n01/%d.png', 'n01/%d.JPEG'), ('%d.png', 'val/n01/%d.JPEG'),
    ('caf\udce9 %d,1.png', './caf\udce9 %d,1.png')])
def test_names(judged, tmp_path, name, manifest_name):
    """By the end of the path, another ending of the file's name, and in whatever bytes."""
    manifest, files = write_case(tmp_path, name=name, manifest_name=manifest_name)
    assert judged(*files, '--labels', manifest)['all_right'] == ALL_RIGHT


def test_same_names_in_class_folders(judged, tmp_path):
    manifest = write_lines(tmp_path / 'm.csv', ['file,label'] + ['c%d/0.png,%d' % (c, c) for c in range(4)])
    a = write_lines(tmp_path / 'a.txt', ['A/c%d/0.png,%d' % (c, c) for c in range(4)])
    b = write_lines(tmp_path / 'b.txt', ['/x/B/c%d/0.png,%d' % (c, min(c, 2)) for c in range(4)])
    assert judged(a, b, '--labels', manifest)['rates'] == [1, 0.75]


def test_a_manifest_for_each_attacker(judged, tmp_path):
    """As --save-adversarial writes them: the original is in the column `path`, and files are called otherwise."""
    arguments = []
    for k, attacker in enumerate('ABC'):
        folder = tmp_path / attacker
        folder.mkdir()
        arguments += ['--labels', write_lines(folder / 'manifest.csv', ['file,index,path,label'] + [
            '%06d-iter%d.png,%d,val/%d.JPEG,%d' % (i, k, i, i, row[0]) for i, row in enumerate(BY_HAND)])]
        arguments.append(write_lines(tmp_path / (attacker + '.txt'), [
            '%s/%06d-iter%d.png,%d' % (folder, i, k, row[1 + k]) for i, row in enumerate(BY_HAND)]))
    assert judged(*arguments)['all_right'] == ALL_RIGHT


def test_a_manifest_of_all_attackers_files(judged, tmp_path):
    """Without the column `path`: they are versions of one photo where their names in the attackers' folders agree."""
    manifest = write_lines(tmp_path / 'm.csv', ['file,label'] + [
        '%s/x/%d.png,%d' % (a, i, row[0]) for a in 'ABC' for i, row in enumerate(BY_HAND)])
    files = [write_lines(tmp_path / (a + '.txt'), ['%s/%s/x/%d.png,%d' % (tmp_path, a, i, row[1 + k])
                                                   for i, row in enumerate(BY_HAND)]) for k, a in enumerate('ABC')]
    assert judged(*files, '--labels', manifest)['all_right'] == ALL_RIGHT


# --- images that are missing -----------------------------------------------------------------------------------------

@pytest.fixture
def incomplete(tmp_path):
    """A lacks photo 0, on which all are right, and B photo 3; C has a photo of its own."""
    manifest, files = write_case(tmp_path, name='%d.png')
    lines = [path.read_text().splitlines() for path in files]
    del lines[0][0], lines[1][3]
    lines[2].append('attacked/C/99.png,0')
    for path, kept in zip(files, lines):
        write_lines(path, kept)
    return manifest, files


def test_missing_images_are_an_error(incomplete):
    manifest, files = incomplete
    with pytest.raises(InputError) as info:
        black_box.collect(options_of(*files, '--labels', manifest))
    assert 'A lacks 1 of the 6 photos of --labels, such as 0.png; B lacks 1 of the 6 photos of --labels, such as ' \
           '3.png; C has 1 images that --labels doesn\'t list, such as attacked/C/99.png; --all' in str(info.value)


def test_missing_images_that_are_allowed(judged, incomplete, caplog):
    manifest, files = incomplete
    results = judged(*files, '--labels', manifest, '--allow-missing')
    # photos 1, 2, 4 and 5 are left
    assert results['num_images'] == 4 and results['right'] == [3, 2, 2] and results['all_right'] == 1
    assert results['missing'] == {'A': ['0.png'], 'B': ['3.png']}
    assert 'A lacks 1 of the 6 photos of --labels, and has 0 images' in caplog.text
    assert 'C lacks 0 of the 6 photos of --labels, and has 1 images' in caplog.text


def test_no_label_counts_as_wrong(judged, tmp_path, caplog):
    manifest, files = write_case(tmp_path, name='%d.png')
    files[0].write_text(files[0].read_text().replace('A/5.png,0', 'A/5.png,-1'))
    results = judged(*files, '--labels', manifest)
    assert results['right'] == [3, 4, 4] and results['all_right'] == 1
    assert 'A has no label for 1 images, such as attacked/A/5.png: they count as wrong' in caplog.text


# --- bad input -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('content, said', [
    (b'', 'has no predictions'), (b'\n\n', 'has no predictions'), (b'0.png\n', 'line 1: it is no line `path,label`'),
    (b'0.png,1\n,2\n', 'line 2: it is no line'), (b'0.png,cat\n', "the label of 0.png is 'cat'"),
    (b'0.png,1.0\n', "is '1.0', and must be a whole number"), (b'0.png,-2\n', "is '-2'"), (b'0.png,\n', "is ''"),
    (b'0.png,1\n0.png,1\n', 'line 2: 0.png is in line 1, too'), (b'0.png,9999999999\n', 'must be a whole number'),
    (b'\x80\x02}q\x00(X\x01', 'no line'), (b'0.png,1_0\n', "is '1_0'"), (b'a\x00,1\n', 'no line')])
def test_files_that_are_no_predictions(tmp_path, content, said):
    (tmp_path / 'p.txt').write_bytes(content)
    with pytest.raises(InputError) as info:
        read_predictions(str(tmp_path / 'p.txt'))
    assert said in str(info.value) and str(tmp_path / 'p.txt') in str(info.value)


def test_predictions_of_windows_and_with_empty_lines(tmp_path):
    write_lines(tmp_path / 'p.txt', ['\ufeffa\\b, c.png, 3', '', 'd.png,0'], ending='\r\n')
    assert read_predictions(str(tmp_path / 'p.txt')) == (['a\\b, c.png', 'd.png'], [3, 0])


@pytest.mark.parametrize('arguments, said', [
    (['A.txt', '--labels', 'none.csv'], 'cannot read'),
    (['none.txt', '--labels', 'manifest.csv'], 'cannot read none.txt'),
    (['A.txt', './A.txt', '--labels', 'manifest.csv'], './A.txt is given twice'),
    (['A.txt', '', '--labels', 'manifest.csv'], 'empty'),
    (['A.txt'], 'required: --labels'),
    (['.', '--labels', 'manifest.csv'], 'is a folder: give the network'),
    (['A.txt', '--labels', 'manifest.csv', '--load', 'x.npz'], 'none is given'),
    (['A.txt', '--labels', 'manifest.csv', '--keep', 'kept'], 'none is given'),
    (['A.txt', '--labels', 'manifest.csv', '--results', 'A.txt'], '--results and A.txt are the same file'),
    (['A.txt', '--labels', 'manifest.csv', '--results', 'w.npz'], '--results would replace'),
    (['.', '--labels', 'manifest.csv', '--load', 'w.npz', '--results', 'w.npz'], '--results and --load are the same'),
    (['A.txt', '--labels', 'manifest.csv', '--results', 'no/such.json'], 'there is no folder'),
    (['A.txt', '--labels', 'manifest.csv', '--classes', '0'], 'is not a whole number from 1'),
    (['A.txt', '--labels', 'manifest.csv', '--classes', '9'], 'has the label 9, and there are 9 classes'),
    (['A.txt', 'B.txt', '--labels', 'manifest.csv', '--classes', '8'], 'has the label 9'),
    (['D.txt', '--labels', 'manifest.csv'], 'D has two images of 0.png: p/0.png and q/0.png'),
    (['E.txt', '--labels', 'manifest.csv', '--allow-missing'], 'no photo of --labels has an image of every'),
    (['A.txt', '--labels', 'manifest.csv', '--labels', 'other.csv'], 'in another manifest 3'),
    (['A.txt', '--labels', 'twice.csv'], 'may be p/0.png of --labels or q/0.png'),
    (['A.txt', '--labels', 'unlike.csv'], 'has the label 4 in --labels, and another image of the same'),
])
def test_bad_input(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path, name='%d.png')
    write_lines(tmp_path / 'D.txt', ['p/0.png,1', 'q/0.png,1'])
    write_lines(tmp_path / 'E.txt', ['p/x.png,1'])
    write_lines(tmp_path / 'other.csv', ['file,label', '0.png,4'])
    write_lines(tmp_path / 'twice.csv', ['file,label', 'p/0.png,4', 'q/0.png,4'])
    write_lines(tmp_path / 'unlike.csv', ['file,label,path', '0.png,3,x', '1.png,4,x'])
    (tmp_path / 'w.npz').write_text('what somebody made')
    before = sorted(os.listdir('.'))
    with pytest.raises(InputError) as info:
        options = options_of(*arguments)
        attackers, predictions, originals, _ = black_box.collect(options)
        black_box.check_labels(attackers, predictions, list(originals.labels.values()), options.classes)
        black_box.judge(originals, predictions)
    assert said in str(info.value) and '\n' not in str(info.value)
    assert sorted(os.listdir('.')) == before


def test_predictions_of_other_classes(tmp_path):
    """A network of 10 classes beside labels, or another attacker's predictions, of 1000."""
    rng = np.random.RandomState(0)
    many, few = list(rng.randint(0, 1000, 60)), list(rng.randint(0, 10, 60))
    attackers = [black_box.Attacker('A', ['a']), black_box.Attacker('B', ['b'])]
    for predictions, labels in (([many, few], many), ([few, many], few)):
        with pytest.raises(InputError, match='has the labels 0 to 9 alone, and .* labels up to 9.*--classes'):
            black_box.check_labels(attackers, predictions, labels, None)
        black_box.check_labels(attackers, predictions, labels, 1000)
    # attacks that make a network say the same of every image, and labels that are the first of many
    for predictions, labels in (([many, [0] * 60], many), ([many, [7] * 60], many), ([many, many], few)):
        black_box.check_labels(attackers, predictions, labels, None)


def test_shifted_labels_are_warned_of(judged, tmp_path, caplog):
    labels = np.random.RandomState(0).randint(1, 10, 80)
    manifest, files = write_case(tmp_path, np.stack([labels, labels - 1, labels - 1], axis=1), attackers='AB')
    assert judged(*files, '--labels', manifest)['all_or_nothing'] == 0
    assert 'likely shifted: A is right on 0% of the images, and on 100% if each label were -1' in caplog.text


def test_the_command(python, tmp_path):
    """As people give it: a wrong one ends with one line and status 2, a right one prints the table without
    TensorFlow."""
    manifest, files = write_case(tmp_path, name='%d.png')
    wrong = python('-m', 'tools.black_box', files[0], tmp_path / 'none.txt', '--labels', manifest)
    assert wrong.returncode == 2 and wrong.stdout == ''
    assert wrong.stderr == 'black_box.py: error: cannot read %s: No such file or directory\n' % (tmp_path / 'none.txt')
    right = python('-X', 'importtime', '-m', 'tools.black_box', '--labels', manifest, *files)
    assert right.returncode == 0 and '| all or nothing |' in right.stdout
    assert ' tensorflow' not in right.stderr and 'black_box.py:' not in right.stderr


# --- folders ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def folders(tmp_path, classifier):
    """Folders of two attackers, A in the network's size and B larger, and what the network says of their images."""
    said = {}
    for attacker, size in (('A', 32), ('B', 48)):
        (tmp_path / attacker).mkdir()
        images = [cv2.resize(photo, (size, size)) for photo in photographs(12, seed=size)]
        for i, image in enumerate(images):
            cv2.imwrite(str(tmp_path / attacker / ('%d.png' % i)), image)
        ready = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC) for image in images])
        said[attacker] = list(classifier().logits(ready).argmax(axis=1))
    return said


@once
def test_folders_that_are_scored(judged, folders, tmp_path, weights_file):
    labels = [a if i % 3 else (a + 1) % 10 for i, a in enumerate(folders['A'])]
    manifest = write_lines(tmp_path / 'm.csv', ['file,label'] + ['%d.JPEG,%d' % row for row in enumerate(labels)])
    network = ['--load', weights_file(), '--arch', 'ResNet', '-d', '14', '--image-size', '32', '--batch', '5']
    results = judged(tmp_path / 'A', tmp_path / 'B', '--labels', manifest, '--keep', tmp_path / 'kept', *network)
    right = np.array([folders['A'], folders['B']]) == labels
    assert results['rates'] == list(right.mean(axis=1)) and results['all_or_nothing'] == right.all(axis=0).mean()
    assert [results[key] for key in ('arch', 'depth', 'preprocess')] == ['ResNet', 14, 'resize']
    assert len(results['checkpoint_sha256']) == 64
    # what was kept gives the same, also beside a folder
    again = judged(tmp_path / 'kept' / 'A.txt', tmp_path / 'B', '--labels', manifest, *network)
    assert again['right'] == results['right'] and again['all_right'] == results['all_right']


@once
def test_an_image_that_cannot_be_read_is_missing(judged, folders, tmp_path, weights_file, caplog):
    (tmp_path / 'B' / '3.png').write_bytes(b'no image')
    manifest = write_lines(tmp_path / 'm.csv', ['file,label'] + ['%d.png,%d' % row for row in enumerate(folders['A'])])
    arguments = [tmp_path / 'A', tmp_path / 'B', '--labels', manifest, '--load', weights_file(), '-d', '14',
                 '--image-size', '32']
    with pytest.raises(InputError, match='B/3.png.*--allow-missing leaves out') as info:
        black_box.collect(options_of(*arguments, '--keep', tmp_path / 'kept'))
    assert '\n' not in str(info.value) and not list((tmp_path / 'kept').iterdir()), 'none was scored'
    with pytest.raises(InputError, match='--keep.*A.txt lies among the images'):
        black_box.collect(options_of(*arguments, '--keep', tmp_path / 'B'))
    attackers, predictions, originals, failed = black_box.collect(options_of('--allow-missing', *arguments))
    verdict = black_box.judge(originals, predictions)
    assert failed == 1 and len(verdict.photos) == 11 and list(verdict.right[0]) == [True] * 11
    assert list(verdict.right[1]) == [folders['A'][i] == folders['B'][i] for i in range(12) if i != 3]


def test_what_was_scored_before_a_failure_is_kept(folders, tmp_path, classifier):
    class Failing:
        """Fails with its second batch."""
        image_size, batch, calls = 32, 5, 0

        def classify(self, images, labels):
            self.calls += 1
            if self.calls == 2:
                raise RunError('no memory')
            return classifier().classify(images, labels)

    paths = [str(tmp_path / 'A' / ('%d.png' % i)) for i in range(12)]
    with pytest.raises(RunError) as info, kept_if_cut_off(str(tmp_path / 'kept.txt'), 'the predictions') as out:
        classify(Failing(), paths, {}, PREPARATIONS['resize'](), out)
    kept = re.search('no memory; the predictions so far are in (.*)', str(info.value)).group(1)
    assert not (tmp_path / 'kept.txt').exists()
    assert read_predictions(kept) == (paths[:5], [int(label) for label in folders['A'][:5]])


@once
def test_a_network_without_the_manifests_classes(folders, tmp_path, weights_file):
    manifest = write_lines(tmp_path / 'm.csv', ['file,label'] + ['%d.png,10' % i for i in range(12)])
    with pytest.raises(InputError, match='--labels has the label 10, and there are 10 classes'):
        black_box.collect(options_of(tmp_path / 'A', '--labels', manifest, '--load', weights_file(), '-d', '14',
                                     '--image-size', '32'))
