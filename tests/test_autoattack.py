"""AutoAttack on a network of ours, beside this project's APGD: a network of 14 layers, images of 32 pixels."""
import json
import re

import helpers
import numpy as np
import pytest
from photos import write_split

from runtime.errors import InputError
from third_party.batches import Batch
from third_party.imagenet import load_dataset
from third_party.preparations import PREPARATIONS
from tools.autoattack import command_line, facts_of, figures_text, masked, measure, results_of, run
from tools.ensemble import COLUMNS, OURS, STANDARD, Effort, Ensemble

needs_library = pytest.mark.usefixtures('library')


@pytest.fixture(scope='module')
def library():
    for name in 'torch', 'pyautoattack':
        pytest.importorskip(name, reason='the extra %s is not installed' % name)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 10)
    return folder


def attack_batch(classifier, batch, *arguments):
    """Attack a batch by one attack after the other; return (N, columns) of OUTCOME."""
    ensemble, found = Ensemble(classifier, *arguments), []
    for column, name in enumerate(COLUMNS):
        before = found[0 if name == OURS[0] else column - 1]['prediction'] if column else None
        found.append(ensemble.attack(column, batch, before))
    return np.stack(found, axis=1)


def accuracies(outcomes, labels):
    return dict(zip(COLUMNS, (outcomes['prediction'] == np.asarray(labels)[:, None]).mean(axis=0)))


@needs_library
@pytest.mark.slow
def test_ours_beside_the_librarys(classifier):
    """Each attack is on what those before have left; both APGDs find about as many images."""
    clf = classifier()
    images = helpers.images(16, 32, seed=2)
    labels = clf.logits(images).argmax(axis=1).astype(np.int32)
    labels[0] = (labels[0] + 1) % 10  # one that is wrong without an attack
    batch = Batch(images, labels, np.arange(16))
    found = accuracies(attack_batch(clf, batch, 1.0, 0, Effort(5, 5)), labels)
    left = [found[name] for name in ('clean',) + STANDARD]
    assert left[0] == 15 / 16 and left == sorted(left, reverse=True) and left[-1] < left[0]
    assert found[OURS[0]] >= found[OURS[1]]
    assert abs(found['apgd-ce'] - found[OURS[0]]) < 0.2 and abs(found['apgd-t'] - found[OURS[1]]) < 0.2


@needs_library
@pytest.mark.slow
def test_masked_gradients(weights_of, tmp_path):
    """Of logits that are a thousand times larger the cross-entropy has no gradient: APGD-CE leaves nearly all, APGD-T
    does not."""
    from inference import load_classifier
    scaled = {name: value * 1000 if name.startswith('linear/') else value for name, value in weights_of().items()}
    np.savez(tmp_path / 'masked.npz', **scaled)
    clf = load_classifier(str(tmp_path / 'masked.npz'), arch='ResNet', depth=14, image_size=32, batch=8)
    images = helpers.images(6, 32, seed=2)
    labels = clf.logits(images).argmax(axis=1).astype(np.int32)
    found = accuracies(attack_batch(clf, Batch(images, labels, np.arange(6)), 8., 0, Effort(4, 2)), labels)
    clf.close()
    assert min(found['apgd-ce'], found[OURS[0]]) > 0.7 and max(found['apgd-t'], found[OURS[1]]) < 0.3


@needs_library
def test_it_goes_on_from_its_journal(classifier, data, tmp_path, weights_file):
    """What was finished is not attacked again; of another budget the journal is refused."""
    clf, dataset = classifier(), load_dataset(str(data), 'val')
    options = command_line().parse_args([weights_file(), '-d', '14', '--image-size', '32', '--batch', '4', '--data',
                                         str(data), '--preprocess', 'resize', '--eps', '2', '--journal',
                                         str(tmp_path / 'j')])
    effort = Effort(1, 1)

    def attacked():
        return measure(clf, dataset, PREPARATIONS['resize'](), options, facts_of(options, dataset, effort), effort)
    whole = attacked()
    assert whole.shape == (len(dataset), len(COLUMNS))
    lines = (tmp_path / 'j').read_bytes().splitlines(True)
    assert len(lines) == 1 + 3 * len(COLUMNS)  # batches of 4, 4 and 2, by each attack
    kept = lines[:1 + 3 + 2]  # killed in the middle of writing the first attack's third batch
    (tmp_path / 'j').write_bytes(b''.join(kept) + lines[len(kept)][:99])
    continued = attacked()
    assert np.array_equal(continued[:, 0], whole[:, 0]) and np.array_equal(continued[:8, 1], whole[:8, 1])
    assert (tmp_path / 'j').read_bytes().startswith(b''.join(kept))
    assert (continued['prediction'] == whole['prediction']).mean() > 0.9
    options.eps = 3.0
    with pytest.raises(InputError, match='eps is 2.0 there and 3.0 here'):
        attacked()


@needs_library
def test_figures_are_printed_and_kept(data, tmp_path, weights_file, capsys):
    """Alike; and what is doubtful, in the file."""
    flags = [weights_file(), '-d', '14', '--image-size', '32', '--batch', '5', '--data', str(data), '--eps', '0.5',
             '--subset', '9', '--results', str(tmp_path / 'r.json')]
    assert run(command_line().parse_args(flags), Effort(2, 2)) == 0
    said, results = capsys.readouterr().out, json.loads((tmp_path / 'r.json').read_text())
    assert said.startswith('9 images, epsilon 0.5, pyautoattack')
    for record in results['attacks']:
        assert re.search('%s +%.6f' % (re.escape(record['attack']), record['accuracy']), said)
    assert (results['batch'], results['subset'], results['num_images']) == (5, '9', 9)
    assert 'epsilon 0.5 is below one pixel' in results['warnings'][0]


@needs_library
@pytest.mark.parametrize('name', ['apgd-ce', OURS[0]])
def test_logits_that_overflow(weights_of, tmp_path, name):
    from inference import load_classifier
    weights = weights_of()
    weights['linear/W'] = weights['linear/W'] / np.abs(weights['linear/W']).max() * np.float32(3e38)
    np.savez(tmp_path / 'w.npz', **weights)
    clf = load_classifier(str(tmp_path / 'w.npz'), arch='ResNet', depth=14, image_size=32, batch=4)
    batch = Batch(helpers.images(4, 32), np.zeros(4, np.int32), np.arange(4))
    with pytest.raises(InputError, match='%s made pixels that are no numbers' % name):
        Ensemble(clf, 8., 0, Effort(2, 2)).attack(COLUMNS.index(name), batch, np.zeros(4, np.int32))
    clf.close()


def test_masked_gradients_are_said():
    from evaluation.outcomes import OUTCOME
    outcomes = np.zeros((10, len(COLUMNS)), OUTCOME)
    assert masked(outcomes, [0] * 10) == []
    outcomes['prediction'][3:, COLUMNS.index('square'):] = 1
    assert '70.0 points' in masked(outcomes, [0] * 10)[0]


def test_what_is_printed():
    from evaluation.outcomes import OUTCOME
    outcomes = np.zeros((4, len(COLUMNS)), OUTCOME)
    for column in range(1, len(COLUMNS)):
        outcomes['prediction'][:min(column, 3), column] = 1
    text = figures_text(outcomes, [0, 0, 0, 0], 4.0, {'pyautoattack': '0.2.0', 'PyTorch': '2.13.0'})
    assert text.startswith('4 images, epsilon 4, pyautoattack 0.2.0, PyTorch 2.13.0\n')
    assert re.search(r'^AutoAttack, after apgd-t +0.500000 ', text, re.MULTILINE)
    assert text.endswith('Clean accuracy: 1.000000\nAutoAttack robust accuracy: 0.250000')
    figures = results_of(outcomes, [0, 0, 0, 0])
    assert figures['num_images'] == 4 and [a['attack'] for a in figures['attacks']] == list(COLUMNS)
    assert [a['accuracy'] for a in figures['attacks']] == [1, 0.75, 0.5, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize('flags, said', [
    (['--eps', '0'], '--eps'), (['--eps', '4', '--data', 'nowhere'], 'nowhere'), (['--eps', '4', '--batch', '0'],
                                                                                 '--batch'),
    (['--eps', '4', '--subset', '21'], '--subset 21: from 1 to 10'),
    (['--eps', '4', '--subset', 'nowhere'], '--subset nowhere'),
    (['--eps', '4', '--results', 'same', '--journal', 'same'], 'are the same file'),
    (['--eps', '4', '-d', '13'], 'no depth 13')])
def test_bad_input(python, data, weights_file, flags, said):
    done = python('-m', 'tools.autoattack', weights_file(), '--data', data, '-d', 14, '--image-size', 32, *flags)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and said in done.stderr, done.stderr
