"""Which images are attacked, and towards what: --subset, --targets, and flags that don't go together."""
import os

import numpy as np
import pytest
from evaluating import alone, evaluate, read_table
from photos import write_split

from evaluation.attack_flags import evaluated_images
from main import parse_options
from runtime.errors import InputError
from third_party.imagenet import load_dataset

LINES = ['c%d/%03d.jpg' % (i % 10, i) for i in range(20)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """20 images in 10 classes; besides, few/ with 3 classes, two/ with 2, and flat/ with the 20 in no folders."""
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 20)
    write_split(folder / 'few' / 'val', 3, classes=3)
    write_split(folder / 'two' / 'val', 2, classes=2)
    (folder / 'flat' / 'val').mkdir(parents=True)
    for line in LINES:
        os.symlink(str(folder / 'val' / line), str(folder / 'flat' / 'val' / os.path.basename(line)))
    (folder / 'flat' / 'val.txt').write_text(''.join('%s %s\n' % (os.path.basename(x), x.split('/')[0]) for x in LINES))
    (folder / 'flat' / 'synsets.txt').write_text(''.join('c%d\n' % i for i in range(10)))
    return folder


def looked_at(data, *flags):
    """Return what main.py finds of an evaluation of `data` before it loads TensorFlow."""
    options = parse_options(['--eval', '--load', 'x.npz', '--data', str(data)] + list(map(str, flags)))
    return evaluated_images(options, load_dataset(str(data), 'val'))


def names(dataset):
    return ['/'.join(path.split('/')[-2:]) for path in dataset.paths]


def target_lines(**changed):
    """The lines of a file with a target for every image: the class after its own. changed: {'c0': another}."""
    return ['%s,%s' % (line, changed.get(line[:2], 'c%d' % ((int(line[1]) + 1) % 10))) for line in LINES]


@pytest.mark.parametrize('flags, said', [
    ('--restarts 0', '--restarts: \'0\' is not a whole number from 1'),
    ('--restarts 10001', '--restarts is at most 10000'), ('--num-targets 0', '\'0\' is not a whole number from 1'),
    ('--num-targets 10', '--num-targets 10: an image has 9 wrong classes'),
    ('--attacker pgd,apdg', 'the attacker apdg can\'t be used: one of pgd, momentum, apgd, or module:Class'),
    ('--attacker pgd,', 'there is no name between two commas'), ('--attacker=', '--attacker is empty'),
    ('--targets=', '--targets is empty'), ('--subset=', '--subset is empty'),
    ('--attack-goal untargeted --targets likeliest', '--targets goes with targeted attacks'),
    ('--attack-goal untargeted --num-targets 1', '--num-targets goes with targeted attacks'),
    ('--targets list.csv --num-targets 2', 'a file has one target for each image'),
    ('--targets likelest', '--targets likelest: there is no such file'),
    ('--subset nowhere.txt', '--subset nowhere.txt: there is no such file'),
    ('--subset 21', '--subset 21: from 1 to 20 images'), ('--subset 0', '--subset 0: from 1 to 20 images'),
    ('--data two --attack-loss dlr', 'needs 4 classes, and the network has 2'),
    ('--data two --attack-loss dlr --attack-goal untargeted', 'needs 3 classes, and the network has 2'),
    ('--data few --attack-loss dlr', 'needs 4 classes, and the network has 3')])
def test_flags_that_go_wrong_together(data, flags, said, monkeypatch):
    monkeypatch.chdir(data)
    with pytest.raises(InputError, match=said) as raised:
        arguments = ['--eval', '--load', 'x.npz', '--data', '.'] + flags.split()
        options = parse_options(arguments)
        evaluated_images(options, load_dataset(options.data, 'val'))
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('flag', [
    '--attacker pgd', '--attack-loss ce', '--attack-goal targeted', '--targets random', '--num-targets 1',
    '--restarts 1', '--subset 3'])
def test_what_trainings_do_not_have(flag):
    scoring = ['--eval-directory', 'x', '--load', 'x.npz']
    for job in [scoring] + [['--data', 'x']] * (not flag.startswith('--attack-goal')):
        with pytest.raises(InputError, match='%s goes with --eval' % flag.split()[0]):
            parse_options(job + flag.split())


def test_a_number_of_images_is_spread_over_the_whole_set(data):
    whole = looked_at(data).dataset
    assert whole.indices is None and whole.index(7) == 7
    dataset = looked_at(data, '--subset', 4).dataset
    assert dataset.indices == [0, 5, 10, 15] and dataset.paths == [whole.paths[i] for i in (0, 5, 10, 15)]
    assert dataset.labels == [whole.labels[i] for i in (0, 5, 10, 15)] and len(dataset.class_names) == 10
    assert looked_at(data, '--subset', 20).dataset.paths == whole.paths


@pytest.mark.parametrize('folder', ['', 'flat'])
@pytest.mark.parametrize('text', ['c3/013.jpg\nc0/000.jpg\n', 'val/c3/013.jpg\r\nval/c0/000.jpg\r\n',
                                  '013.jpg\n./c0/000.jpg', '\ufeff013.jpg\n000.jpg\n\n'])
def test_a_list_of_images_as_leaderboards_write_it(data, tmp_path, folder, text):
    (tmp_path / 's.txt').write_bytes(text.encode())
    dataset = looked_at(data / folder, '--subset', tmp_path / 's.txt').dataset
    assert [os.path.basename(path) for path in dataset.paths] == ['000.jpg', '013.jpg'] and dataset.labels == [0, 3]
    assert [os.path.basename(looked_at(data / folder).dataset.paths[i]) for i in dataset.indices] == [
        '000.jpg', '013.jpg']


@pytest.mark.parametrize('text, said', [
    ('c0/000.jpg\nc0/001.jpg\n', 's.txt, line 2: there is no image c0/001.jpg in '),
    ('c0/000.jpg\n\nc1/001.jpg\n', 's.txt, line 2: the line is empty'), ('', 's.txt is empty'),
    ('c0/000.jpg\nc1/001.jpg\n000.jpg\n', 's.txt, line 3: 000.jpg is there twice, first in line 1')])
def test_a_list_of_other_images(data, tmp_path, text, said):
    (tmp_path / 's.txt').write_text(text)
    with pytest.raises(InputError, match=said):
        looked_at(data, '--subset', tmp_path / 's.txt')


def test_a_file_of_targets(data, tmp_path):
    """With a heading, class numbers, and images that are not evaluated."""
    lines = target_lines(c0='7')
    (tmp_path / 't.csv').write_text('\n'.join(['path,target'] + lines[::-1]))
    evaluated = looked_at(data, '--targets', tmp_path / 't.csv', '--subset', 10)
    targets = [evaluated.targets[evaluated.dataset.index(i)] for i in range(10)]
    assert targets == [7 if label == 0 else (label + 1) % 10 for label in evaluated.dataset.labels]


@pytest.mark.parametrize('lines, said', [
    (target_lines(c4='c4'), r't.csv, line 5: c4/004.jpg has its label as its target'),
    (target_lines(c4='4'), r't.csv, line 5: c4/004.jpg has its label as its target'),
    (target_lines(c4='dog'), r"t.csv, line 5: the target 'dog' is neither the name of one of the 10 classes \(c0"),
    (target_lines(c4='10'), r"line 5: the target '10' is neither .* from 0 to 9"),
    (target_lines(c4=''), r"line 5: the target '' is neither"),
    (target_lines()[:-2], r't.csv has no target for 2 of the 20 images, such as .*c8/018.jpg'),
    (target_lines() + ['c9/999.jpg,c0'], r'line 21: there is no image c9/999.jpg in'),
    (target_lines() + ['val/c0/000.jpg,c2'], r'line 21: val/c0/000.jpg has a target already'),
    (['c0/000.jpg'], 'line 1: expected a path and a target with a comma')])
def test_a_file_of_other_targets(data, tmp_path, lines, said):
    (tmp_path / 't.csv').write_text('\n'.join(lines))
    with pytest.raises(InputError, match=said):
        looked_at(data, '--targets', tmp_path / 't.csv')


def test_images_of_a_subset_have_the_outcomes_of_the_whole(root, data, weights_file, tmp_path):
    """And of other targets those that the flags say, likeliest wrong labels or a file's."""
    flags = ['--attack-iter', 1, '--attack-epsilon', 8, '--per-image']
    evaluate(root, alone, data, weights_file(), *flags, tmp_path / 'whole.csv')
    done = evaluate(root, alone, data, weights_file(), *flags, tmp_path / 'part.csv', '--subset', 7)
    assert '\n7 images, 1 attack steps' in '\n' + done.stdout
    whole, part = read_table(tmp_path / 'whole.csv'), read_table(tmp_path / 'part.csv')
    assert part == [whole[i] for i in (0, 2, 5, 8, 11, 14, 17)]
    (tmp_path / 't.csv').write_text('\n'.join(target_lines()))
    evaluate(root, alone, data, weights_file(), *flags, tmp_path / 'file.csv', '--targets', tmp_path / 't.csv')
    assert [int(r['target']) for r in read_table(tmp_path / 'file.csv')] == [
        (int(r['label']) + 1) % 10 for r in whole]


def test_likeliest_targets_are_those_of_the_clean_logits(root, data, weights_file, classifier, tmp_path):
    from third_party.images import decode, validation_image
    evaluate(root, alone, data, weights_file(), '--attack-iter', 1, '--attack-epsilon', 0.001, '--num-targets', 9,
             '--targets', 'likeliest', '--journal', tmp_path / 'j', '--per-image', tmp_path / 'i.csv')
    rows = read_table(tmp_path / 'i.csv')
    logits = classifier().logits(np.stack([validation_image(decode(r['path']), 32) for r in rows]))
    labels = np.array([int(r['label']) for r in rows])
    logits[np.arange(20), labels] = -np.inf
    order = np.argsort(-logits, axis=1)
    from evaluation.journal import Journal, parsed
    facts = parsed((tmp_path / 'j').read_bytes().splitlines(True)[0])
    with Journal(str(tmp_path / 'j'), facts['facts'], num_images=20, contents=facts['images']) as journal:
        for stage, positions, outcomes in journal.replay():
            assert outcomes['target'][:, 0].tolist() == order[positions, stage].tolist()
    assert {r['starts'] for r in rows} <= {'1', '9'}  # decided at once by what they are, or never
