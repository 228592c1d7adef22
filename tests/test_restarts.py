"""Several starts, targets and attackers: what is attacked again, what is recorded, and that it can be continued."""
import json
import os
import re

import cv2
import numpy as np
import pytest
from evaluating import alone, evaluate, ranks, read_table
from lanes import once
from photos import write_split

from evaluation.course import Course
from evaluation.journal import Journal
from evaluation.outcomes import OUTCOME, Strength, count
from evaluation.plan import Attack, Start, stages_of, trajectories
from runtime.distributed import World
from runtime.errors import InputError
from third_party.imagenet import Dataset
from third_party.preparations import PREPARATIONS
from tools.mpi import read_figures

CLASSES, NUM_IMAGES = 10, 41
LABELS = (np.arange(NUM_IMAGES) * 7) % CLASSES
STRENGTHS = [Strength(0, 8.0), Strength(20, 8.0), Strength(40, 8.0), Strength(4, 8.0)]  # 20 and 40 steps share theirs


def attacks_by(attackers=('pgd',), **how):
    return [Attack(attacker, strength, **how) for attacker in attackers for strength in STRENGTHS]


class MadeUp:
    """Stands for the attack of a batch: what becomes of an image follows from it, the attack and the start alone.

    `ran` lists the batches: attacks, start, indices.
    """

    def __init__(self, targeted=True):
        self.targeted, self.ran = targeted, []

    def attack(self, attacks, start, batch, before):
        self.ran.append((attacks, start, batch.indices.tolist()))
        assert (before is None) == (start == Start())
        return np.array([[self.outcome(i, attack, start) for attack in attacks] for i in batch.indices], OUTCOME)

    def outcome(self, index, attack, start):
        steps = attack.strength.num_iter
        label = LABELS[index]
        rng = np.random.RandomState([index, steps, start.restart, start.target, len(attack.attacker)])
        target = (label + 1 + start.target) % CLASSES if steps and self.targeted else -1
        prediction = rng.choice([label, (label + 5) % CLASSES, target if target >= 0 else label], p=[.7, .2, .1])
        return target, prediction, rng.rand() < 0.8, prediction, True, 1.0


def run(made_up, attacks, batch=7, course=None, journal=None):
    """Run all stages that are left; returns the course."""
    from evaluation.stages import run_stages
    course = course or Course(LABELS, attacks)
    preparation = PREPARATIONS['resize']()._replace(decode=lambda path: np.zeros((1, 1, 3), np.uint8),
                                                    cut=lambda image, size: image)
    dataset = Dataset(['val/%d' % i for i in range(NUM_IMAGES)], LABELS.tolist(), list(map(str, range(CLASSES))))
    for line in run_stages(made_up, course, attacks, dataset, World(), image_size=1, batch=batch,
                           preparation=preparation):
        if journal:
            journal.append(*line)
        course.add(*line)
    return course


@pytest.mark.parametrize('targeted', [True, False])
def test_the_worst_start_counts_as_often_as_it_can_change_something(targeted):
    """Against a plain loop over images, attacks and starts."""
    how = dict(num_targets=2, restarts=3) if targeted else dict(goal='untargeted', targets=None, num_targets=None,
                                                                restarts=5)
    attacks = attacks_by(['pgd', 'apgd'], **how)
    made_up = MadeUp(targeted)
    columns = run(made_up, attacks).columns()
    starts = [Start(r, t) for r in range(how['restarts']) for t in range(how['num_targets'] or 1)]
    groups = trajectories(attacks)
    assert [[attacks[i].strength.num_iter for i in group] for group in groups] == [[20, 40], [4]] * 2
    for i in (i for group in groups for i in group):
        for index, label in enumerate(LABELS):
            outcomes = []
            for start in starts:
                outcomes.append(made_up.outcome(index, attacks[i], start))
                success, error = any(o[1] == o[0] for o in outcomes), any(o[1] != label for o in outcomes)
                if success if targeted else error:
                    break
            column = columns[i]
            worst, first = column.worst[index], column.first[index]
            assert tuple(first)[:3] == outcomes[0][:3] and column.starts[index] == len(outcomes)
            assert (worst['prediction'] == worst['target'] >= 0) == (success and targeted)
            assert (worst['prediction'] != label) == error
            assert worst['top5_correct'] == all(o[2] for o in outcomes) and worst['seconds'] == len(outcomes)
            recorded = next((o for o in outcomes if o[1] == o[0]), None) if targeted else None
            recorded = recorded or next((o for o in outcomes if o[1] != label), outcomes[0])
            assert tuple(worst)[:2] == recorded[:2]
    if not targeted:
        assert all(count(LABELS, column.worst).rate('successes') is None for column in columns)
    of_last = [indices for _, start, indices in made_up.ran if start == starts[-1]]
    assert sum(map(len, of_last)) < NUM_IMAGES * len(groups) * 0.9


@pytest.mark.parametrize('batch', [1, 5, 7, 64])
def test_batches_are_full_and_change_nothing(batch):
    attacks = attacks_by(restarts=4)
    made_up = MadeUp()
    columns = run(made_up, attacks, batch).columns()
    for a, b in zip(columns, run(MadeUp(), attacks, 3).columns()):
        assert np.array_equal(a.worst, b.worst) and np.array_equal(a.starts, b.starts)
    stages = {}
    for ran, start, indices in made_up.ran:
        stages.setdefault((start, len(ran)), []).append(len(indices))
    assert len(stages) == 1 + 3 * 2
    for sizes in stages.values():
        assert set(sizes[:-1]) <= {batch}


def test_the_worst_case_over_attackers():
    """Of a number of steps: over the attacks of all attackers with at most so many, the clean images among them."""
    attacks = attacks_by(['pgd', 'apgd'], restarts=2)
    columns = run(MadeUp(), attacks).columns()
    single, worst = columns[:8], columns[8:]
    assert [(c.attack.attacker, c.attack.strength.num_iter) for c in worst] == [
        ('worst_case', 20), ('worst_case', 40), ('worst_case', 4)]
    for column in worst:
        of = [c for c in single if c.attack.strength.num_iter <= column.attack.strength.num_iter]
        assert len(of) == {20: 6, 40: 8, 4: 4}[column.attack.strength.num_iter]
        for now, each in ((column.worst, [c.worst for c in of]), (column.first, [c.first for c in of])):
            figures = count(LABELS, now)
            assert figures.targeted == NUM_IMAGES
            assert figures.wrong_top1 == np.any([c['prediction'] != LABELS for c in each], axis=0).sum()
            assert figures.successes == np.any([(c['prediction'] == c['target']) for c in each], axis=0).sum()
            assert figures.wrong_top5 == np.any([~c['top5_correct'] for c in each], axis=0).sum()
    # 20 steps are the beginning of 40, whose seconds count those of both
    of_longest = [c.starts.sum() for c in single if c.attack.strength.num_iter in (4, 40)]
    assert count(LABELS, worst[1].worst).seconds == sum(of_longest)


def test_cut_off_anywhere_it_is_continued_to_the_same_end(tmp_path):
    """Also with another batch; what was finished is not done again."""
    attacks = attacks_by(restarts=4)
    path = str(tmp_path / 'whole')
    with Journal(path, {}, num_images=NUM_IMAGES) as journal:
        whole = run(MadeUp(), attacks, journal=journal)
    lines = (tmp_path / 'whole').read_bytes().splitlines(True)
    stages = [json.loads(line[9:].decode())['stage'] for line in lines[1:]]
    assert stages == sorted(stages) and set(stages) == set(range(7))
    for kept in range(1, len(lines) + 1, 3):
        (tmp_path / 'cut').write_bytes(b''.join(lines[:kept]) + b''.join(lines[kept:kept + 1])[:40])
        course, made_up = Course(LABELS, attacks), MadeUp()
        with Journal(str(tmp_path / 'cut'), {}, num_images=NUM_IMAGES) as journal:
            for line in journal.replay():
                course.add(*line)
            run(made_up, attacks, batch=4, course=course, journal=journal)
        for a, b in zip(course.columns(), whole.columns()):
            assert np.array_equal(a.worst, b.worst) and np.array_equal(a.first, b.first)
        done = sum(len(json.loads(line[9:].decode())['positions']) for line in lines[1:kept])
        all_done = sum(len(json.loads(line[9:].decode())['positions']) for line in lines[1:])
        assert sum(len(indices) for _, _, indices in made_up.ran) == all_done - done


def test_what_does_not_follow_is_no_course():
    attacks = attacks_by(restarts=2)
    course = Course(LABELS, attacks)
    outcomes = np.zeros((NUM_IMAGES, len(attacks)), OUTCOME)
    outcomes['prediction'] = LABELS[:, None]
    outcomes['target'] = np.where(np.arange(NUM_IMAGES) == 3, LABELS, (LABELS + 1) % CLASSES)[:, None]  # 3 is decided
    for stage, positions in [(1, [0, 1]), (0, [1, 2]), (0, [])]:
        with pytest.raises(InputError, match='not what follows'):
            course.add(stage, positions, outcomes[positions])
    course.add(0, range(NUM_IMAGES), outcomes)
    with pytest.raises(InputError, match='stage 1 with the images 2, 3, 4, ... is not'):
        course.add(1, [2, 3, 4], outcomes[:3, :2])
    assert course.next().positions == [i for i in range(NUM_IMAGES) if i != 3]


def test_figures_of_a_strength_do_not_depend_on_the_others():
    """Two strengths of a trajectory, and one of them alone: also top-5 errors, and how often an image was attacked."""
    both = [Attack('pgd', strength, restarts=6) for strength in STRENGTHS[1:3]]
    together = run(MadeUp(), both).columns()
    for attack, column in zip(both, together):
        alone, = run(MadeUp(), [attack]).columns()
        assert column.starts.max() > 1 and len(set(column.starts)) > 1
        assert np.array_equal(column.starts, alone.starts) and np.array_equal(column.worst, alone.worst)


def test_steps_that_are_not_shared_are_stages_of_their_own():
    attacks = [attack._replace(shares_steps=attack.attacker == 'pgd') for attack in attacks_by(['pgd', 'apgd'])]
    assert trajectories(attacks) == [(1, 2), (3,), (5,), (6,), (7,)]


def test_stages_follow_one_restart_after_the_other():
    stages = stages_of(attacks_by(restarts=2, num_targets=2))
    assert [stage.start for stage in stages] == [Start(0, 0)] + [
        start for start in (Start(0, 1), Start(1, 0), Start(1, 1)) for _ in range(2)]
    assert stages[0].columns == (0, 1, 2, 3) and {stage.columns for stage in stages[1:]} == {(1, 2), (3,)}


# --- as people run it ------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 30)
    return str(folder)


FLAGS = ['--attack-iter', '0,1', '--attack-epsilon', '16,5', '--batch', 7]
RESTARTS = FLAGS + ['--restarts', 4]


def kept_in(folder):
    return ['--results', folder / 'r.json', '--per-image', folder / 'i.csv', '--journal', folder / 'j',
            '--save-adversarial', folder / 'saved']


@pytest.fixture(scope='module')
def restarted(root, data, weights_file, tmp_path_factory):
    """The folder of an undisturbed run of four restarts, with everything kept."""
    folder = tmp_path_factory.mktemp('restarted')
    (folder / 'stdout').write_text(evaluate(root, alone, data, weights_file(), *RESTARTS, *kept_in(folder)).stdout)
    return folder


@pytest.fixture(scope='module')
def single(root, data, weights_file, tmp_path_factory):
    """The folder of the same run with one start."""
    folder = tmp_path_factory.mktemp('single')
    evaluate(root, alone, data, weights_file(), *FLAGS, *kept_in(folder))
    return folder


def test_restarts_have_the_figures_of_one_start_and_the_worst(restarted, single):
    once, records = [[r for r in json.loads((folder / 'r.json').read_text())['attacks'] if r['attack_iter']]
                     for folder in (single, restarted)]
    rows, firsts = [[r for r in read_table(folder / 'i.csv') if r['attack_iter'] == '1']
                    for folder in (restarted, single)]
    assert [(r['target'], r['first_prediction'], r['first_success']) for r in rows] == [
        (r['target'], r['prediction'], r['success']) for r in firsts]
    for first, record in zip(once, records):
        for name in ('top1_error', 'top5_error', 'attack_success_rate'):
            assert record['first_' + name] == first[name] == first['first_' + name] <= record[name]
        assert (record['attacker'], record['restarts'], record['loss'], record['goal'], record['targets']) == (
            'pgd', 4, 'ce', 'targeted', 'random')
        of_record = [r for r in rows if float(r['epsilon']) == record['epsilon']]
        assert record['starts'] == sum(int(r['starts']) for r in of_record)
        assert {'1', '4'} <= {r['starts'] for r in of_record}
        assert record['attack_success_rate'] == np.mean([r['success'] == '1' for r in of_record])
    assert sum(r['attack_success_rate'] for r in records) > sum(r['attack_success_rate'] for r in once)
    stdout = (restarted / 'stdout').read_text()
    assert ', 4 restarts\nfirst' not in stdout and re.search(', 4 restarts\nas saved: .*\nfirst start: top-1 ', stdout)
    assert read_figures(stdout)['Attack Success Rate'] == pytest.approx(records[-1]['attack_success_rate'], abs=1e-6)


def test_a_saved_image_is_that_of_the_start_that_is_recorded(restarted, single, classifier):
    rows, manifest = [read_table(restarted / name) for name in ('i.csv', 'saved/manifest.csv')]
    saved = np.stack([cv2.imread(str(restarted / 'saved' / row['file'])) for row in manifest])
    predictions = classifier().logits(saved).argmax(axis=1)
    assert np.mean(predictions == [int(row['prediction']) for row in manifest]) > 0.98
    changed = 0
    for row, file in zip(rows, [row['file'] for row in manifest]):
        kept, first = [(folder / 'saved' / file).read_bytes() for folder in (restarted, single)]
        did_more = row['success'] != row['first_success'] or \
            row['prediction'] != row['label'] == row['first_prediction']
        assert (kept != first) == did_more
        changed += did_more
    assert changed


@once
@pytest.mark.parametrize('count', [1, 2])
def test_killed_in_the_third_restart_and_continued(root, data, weights_file, restarted, single, tmp_path, count):
    lines = (restarted / 'j').read_bytes().splitlines(True)
    stages = [json.loads(line[9:].decode()).get('stage', -1) for line in lines]
    cut = stages.index(3) + 1  # two stages of each restart: an epsilon each
    (tmp_path / 'j').write_bytes(b''.join(lines[:cut]) + lines[cut][:30])
    done = json.loads(lines[cut - 1][9:].decode())['positions']
    rows, files = read_table(restarted / 'i.csv'), [r['file'] for r in read_table(restarted / 'saved' / 'manifest.csv')]
    # those that a later start made a success: there are the images of the first start
    late = [name for row, name in zip(rows, files) if row['success'] == '1' and int(row['starts']) > 2
            and int(row['index']) not in done]
    assert late
    (tmp_path / 'saved').mkdir()
    for name in files:
        folder = single if name in late else restarted
        (tmp_path / 'saved' / name).write_bytes((folder / 'saved' / name).read_bytes())
    evaluate(root, ranks(count), data, weights_file(), *RESTARTS, *kept_in(tmp_path))
    for name in late:
        assert (tmp_path / 'saved' / name).read_bytes() != (single / 'saved' / name).read_bytes()
    assert (tmp_path / 'i.csv').read_text() == (restarted / 'i.csv').read_text()
    continued = (tmp_path / 'j').read_bytes().splitlines(True)
    assert continued[:cut] == lines[:cut]
    assert (tmp_path / 'saved' / 'manifest.csv').read_text() == (restarted / 'saved' / 'manifest.csv').read_text()


@once
def test_several_attackers_and_their_worst_case(root, data, weights_file, tmp_path, python):
    flags = ['--attack-iter', '0,3,6', '--attack-epsilon', '1.5', '--attacker', 'pgd,momentum', '--num-targets', 2]
    done = evaluate(root, alone, data, weights_file(), *flags, *kept_in(tmp_path))
    records = json.loads((tmp_path / 'r.json').read_text())['attacks']
    assert [(r['attacker'], r['attack_iter']) for r in records] == [
        (a, k) for a in ('pgd', 'momentum') for k in (0, 3, 6)] + [('worst_case', 3), ('worst_case', 6)]
    assert [r['step_size'] for r in records] == [0, 1, 1, 0, 1, 1, None, None]
    rows = read_table(tmp_path / 'i.csv')
    assert [(r['attacker'], int(r['attack_iter'])) for r in rows[:8]] == [
        (r['attacker'], r['attack_iter']) for r in records]
    for i in range(30):
        of_image = rows[8 * i:8 * i + 8]
        for worst, others in ((of_image[7], of_image[:6]), (of_image[6], of_image[0:2] + of_image[3:5])):
            assert (worst['success'] == '1') == any(r['success'] == '1' for r in others)
            assert (worst['prediction'] != worst['label']) == any(r['prediction'] != r['label'] for r in others)
    for name, figure in [('top1_error', 'Top1 Error'), ('attack_success_rate', 'Attack Success Rate')]:
        assert records[7][name] >= max(r[name] for r in records[:7] if r[name] is not None)
        assert read_figures(done.stdout)[figure] == pytest.approx(records[7][name], abs=1e-6)
    assert '6 attack steps, epsilon 1.5, step size n/a, worst_case, 2 targets\n' in done.stdout
    manifest = read_table(tmp_path / 'saved' / 'manifest.csv')
    assert len(manifest) == 6 * 30 == len({r['file'] for r in manifest}) and manifest[5]['attacker'] == 'momentum'
    done = python('main.py', '--eval-directory', tmp_path / 'saved', '--labels', tmp_path / 'saved' / 'manifest.csv',
                  '--load', weights_file(), '-d', 14, '--image-size', 32, '--prediction-file', tmp_path / 'p.txt')
    assert done.returncode == 0 and '30 images, 6 attack steps, epsilon 1.5, momentum\nTop1' in done.stdout, done.stderr
    assert python('-m', 'tools.report', tmp_path / 'r.json', '--out', tmp_path / 'out').returncode == 0
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert all('ResNet-14, %s' % name in page for name in ('pgd', 'momentum', 'worst case'))


def test_an_attacker_that_finds_its_step_size_reports_none():
    for finds, steps, used in ((False, 4, 2.0), (True, 4, None), (True, 0, 0.0)):
        assert Attack('some.module:Class', Strength(steps, 8.0), finds_step_size=finds).step_used == used


@once
def test_restarts_that_do_the_same_are_said(python, data, weights_file, tmp_path):
    done = python('main.py', '--eval', '--load', weights_file(), '-d', 14, '--image-size', 32, '--data', data,
                  '--subset', 5, '--attack-iter', 1, '--attacker', 'pgd,momentum', '--restarts', 2,
                  '--results', tmp_path / 'r.json')
    said = 'the attacker momentum begins at the same place in every restart: all of them do the same'
    assert done.returncode == 0 and 'main.py: warning: %s\n' % said in done.stderr, done.stderr
    assert json.loads((tmp_path / 'r.json').read_text())['warnings'].count(said) == 1


def test_without_a_target_there_is_no_success(root, data, weights_file, tmp_path):
    done = evaluate(root, alone, data, weights_file(), *FLAGS, '--attack-goal', 'untargeted', '--attack-loss', 'margin',
                    '--restarts', 2, '--results', tmp_path / 'r.json', '--per-image', tmp_path / 'i.csv')
    assert read_figures(done.stdout)['Attack Success Rate'] is None
    record = json.loads((tmp_path / 'r.json').read_text())['attacks'][1]
    assert record['attack_success_rate'] is None and record['first_attack_success_rate'] is None
    assert record['targets'] is None and record['top1_error'] > json.loads(
        (tmp_path / 'r.json').read_text())['attacks'][0]['top1_error']
    rows = [row for row in read_table(tmp_path / 'i.csv') if row['attack_iter'] == '1']
    assert all(row['target'] == row['success'] == row['first_success'] == '' for row in rows)
    assert all((row['starts'] == '1') == (row['first_prediction'] != row['label']) for row in rows)


OWN = '''
from adv_model import Attacker as Base, PGDAttacker
from runtime.compat import tf

class Whole(Base):
    """Shifts all pixels of an image by what its index and the seed draw."""

    def __init__(self, num_iter, epsilon, step_size, *, num_classes, seed=0, loss_scale=1.0, xla=False):
        self.epsilon, self.seed = epsilon, seed

    def attack(self, image, label, logits, index=None):
        draw = tf.map_fn(lambda i: tf.random.stateless_uniform([], [self.seed, i], -1.0, 1.0), index, tf.float32)
        return tf.clip_by_value(image + draw[:, None, None, None] * self.epsilon * 2 / 255, -1, 1), -tf.ones_like(label)

class Broken(PGDAttacker):
    def direction(self, gradient, state):
        return gradient / 0.0 * 0.0, state
'''


@pytest.mark.parametrize('flags, status, said', [
    (['own:Whole', '--restarts', 3, '--num-targets', 1], 0, ''),
    (['own:Whole', '--num-targets', 2], 2, 'the attacker own:Whole finds its targets itself: leave out --targets'),
    (['own:Whole', '--attack-loss', 'dlr'], 2, 'the attacker Whole takes no loss'),
    (['pgd,own:Broken', '--restarts', 2], 2, 'pixels that are no numbers: .* or the attacker.s, Broken, do')])
def test_attackers_of_ones_own(python, root, data, weights_file, tmp_path, flags, status, said):
    (tmp_path / 'own.py').write_text(OWN)
    done = python(os.path.join(root, 'main.py'), '--eval', '--load', weights_file(), '--data', data, '-d', 14,
                  '--image-size', 32, '--attack-iter', 2, '--attack-epsilon', 60, '--results', tmp_path / 'r.json',
                  '--attacker', *flags, cwd=tmp_path)
    assert done.returncode == status and re.search(said, done.stderr) and 'Traceback' not in done.stderr, done.stderr
    if status == 0:
        record, = json.loads((tmp_path / 'r.json').read_text())['attacks']
        assert record['attack_success_rate'] is None and record['top1_error'] > record['first_top1_error']
    else:
        assert 'Top1 Error' not in done.stdout and not (tmp_path / 'r.json').exists()
