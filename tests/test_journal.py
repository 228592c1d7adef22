"""The journal of an evaluation, cut off anywhere, damaged, somebody else's, or of images that have changed."""
import hashlib
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from evaluation.journal import Journal
from evaluation.outcomes import OUTCOME, Figures, Tally
from runtime.errors import InputError

FACTS = dict(arch='ResNet', seed=0, strengths=[[10, 16.0, 1.0], [100, 16.0, 1.0]])
NUM_IMAGES = 23


def made_up(positions, seed=0):
    outcomes = np.zeros((len(positions), 2), OUTCOME)
    rng = np.random.RandomState([seed, positions[0]])
    for name in ('target', 'prediction', 'saved_prediction'):
        outcomes[name] = rng.randint(-1, 1000, outcomes.shape)
    outcomes['top5_correct'] = rng.randint(0, 2, outcomes.shape)
    outcomes['seconds'] = rng.uniform(0, 100, outcomes.shape)
    return outcomes


def open_journal(path, facts=None, num_images=NUM_IMAGES):
    return Journal(str(path), dict(FACTS, **(facts or {})), num_images=num_images)


def fill(path, size=5):
    """Continue it to the end; returns all that it then holds."""
    journal = open_journal(path)
    for begin in range(journal.num_done, NUM_IMAGES, size):
        positions = range(begin, min(begin + size, NUM_IMAGES))
        journal.append(0, positions, made_up(positions))
    journal.close()
    journal = open_journal(path)
    held = list(journal.replay())
    journal.close()
    return held


def done_in(path):
    journal = open_journal(path)
    journal.close()
    return journal.num_done


def test_every_cut_is_continued_to_the_same_end(tmp_path):
    path = tmp_path / 'whole'
    expected = fill(path)
    assert [(stage, positions) for stage, positions, _ in expected] == [
        (0, list(range(begin, min(begin + 5, 23)))) for begin in (0, 5, 10, 15, 20)]
    for _, positions, outcomes in expected:
        assert np.array_equal(outcomes, made_up(positions))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord('\n')]
    cut = tmp_path / 'cut'
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        assert done_in(cut) == 5 * max(0, sum(end <= size for end in ends) - 1)
        if size % 29 == 0:
            fill(cut)
            assert cut.read_bytes() == whole, size


def test_garbage_at_the_end_is_a_cut_too(tmp_path):
    """What a file system may leave of the last block after a power failure."""
    path = tmp_path / 'j'
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + b'\0' * 40)
    assert done_in(path) == 20
    fill(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize('change, said', [
    (dict(seed=1), 'seed is 0 there and 1 here'),
    (dict(arch='ResNetDenoise'), 'arch is "ResNet" there and "ResNetDenoise" here'),
    (dict(strengths=[[10, 16.0, 1.0]]), r'strengths is \[\[10'),
    (dict(checkpoint_sha256='ab'), 'checkpoint_sha256 is null there and "ab" here'),
])
def test_another_evaluation_is_refused_by_what_differs(tmp_path, change, said):
    fill(tmp_path / 'j')
    before = (tmp_path / 'j').read_bytes()
    with pytest.raises(InputError, match=said):
        open_journal(tmp_path / 'j', change)
    assert (tmp_path / 'j').read_bytes() == before


@pytest.mark.parametrize('content', [b'my thesis', b'my thesis\nsecond line\n', b'\0' * 100, b'{"attacks": []}\n'])
def test_somebody_elses_file_is_not_written_over(tmp_path, content):
    (tmp_path / 'j').write_bytes(content)
    with pytest.raises(InputError, match='no journal'):
        open_journal(tmp_path / 'j')
    assert (tmp_path / 'j').read_bytes() == content


def test_damage_before_the_end_is_an_error(tmp_path):
    path = tmp_path / 'j'
    fill(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r'damaged at byte \d+'):
        open_journal(path)
    assert path.read_bytes() == bytes(content)


def test_a_lost_line_is_an_error(tmp_path):
    path = tmp_path / 'j'
    fill(path)
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b''.join(lines[:2] + lines[3:]))
    with pytest.raises(InputError, match='image 10 comes after 5 images'):
        open_journal(path)


def test_a_lost_beginning_is_an_error(tmp_path):
    """Nothing says which evaluation the rest is of."""
    path = tmp_path / 'j'
    fill(path)
    path.write_bytes(b''.join(path.read_bytes().splitlines(True)[1:]))
    with pytest.raises(InputError, match='does not begin as a journal'):
        open_journal(path)


def test_one_evaluation_at_a_time(tmp_path, root):
    program = 'import sys; sys.path.insert(0, %r)\nfrom evaluation.journal import Journal\n' \
              'j = Journal(sys.argv[1], {}, num_images=1)\nprint("open", flush=True)\ninput()' % root
    with subprocess.Popen([sys.executable, '-c', program, str(tmp_path / 'j')], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'open\n'
        with pytest.raises(InputError, match='in use'):
            Journal(str(tmp_path / 'j'), {}, num_images=1)
        other.kill()
    Journal(str(tmp_path / 'j'), {}, num_images=1)


PATHS = ['val/%02d.png' % i for i in range(NUM_IMAGES)]


def with_images(path, **changed):
    """Open a journal of images whose files are made up; image_7=1 makes the one at position 7 another."""
    contents = [hashlib.sha256(b'%d %d' % (i, changed.get('image_%d' % i, 0))).hexdigest() for i in range(NUM_IMAGES)]
    return Journal(str(path), FACTS, num_images=NUM_IMAGES, paths=PATHS, contents=contents)


def begin_journal(path, done=10, size=5):
    with with_images(path) as journal:
        for begin in range(0, done, size):
            journal.append(0, range(begin, begin + size), made_up(range(begin, begin + size)))


def test_images_after_the_end_may_change_and_are_named(tmp_path, caplog):
    begin_journal(tmp_path / 'j')
    before = (tmp_path / 'j').read_bytes()
    with caplog.at_level(logging.WARNING), with_images(tmp_path / 'j', image_10=1, image_22=1) as journal:
        assert journal.num_done == 10 and (tmp_path / 'j').read_bytes() == before
        for begin in (10, 15):
            journal.append(0, range(begin, begin + 5), made_up(range(begin, begin + 5)))
    assert [record.getMessage().rsplit(': ', 1)[1] for record in caplog.records] == ['val/10.png, val/22.png']
    # what was done meanwhile is of the changed image
    with pytest.raises(InputError, match=r'have changed since, val/10.png: '):
        with_images(tmp_path / 'j', image_22=1)
    caplog.clear()
    with caplog.at_level(logging.WARNING), with_images(tmp_path / 'j', image_10=1) as journal:
        assert journal.num_done == 20 and not caplog.records


@pytest.mark.parametrize('position', [0, 4, 5, 9])
def test_an_image_that_is_done_may_not_change(tmp_path, position):
    begin_journal(tmp_path / 'j')
    before = (tmp_path / 'j').read_bytes()
    with pytest.raises(InputError, match='have changed since, %s: restore' % PATHS[position]):
        with_images(tmp_path / 'j', **{'image_%d' % position: 1, 'image_15': 1})
    assert (tmp_path / 'j').read_bytes() == before
    with with_images(tmp_path / 'j') as journal:
        assert journal.num_done == 10


def test_many_changed_images_are_all_named(tmp_path):
    begin_journal(tmp_path / 'j', done=20)
    with pytest.raises(InputError, match=': restore') as info:
        with_images(tmp_path / 'j', **{'image_%d' % i: 1 for i in range(18)})
    assert [path for path in PATHS if path in str(info.value)] == PATHS[:18]


def test_a_later_stage_holds_some_images_after_all_of_the_first(tmp_path):
    """Its lines are cut off and found to be damaged as the others are; and an image of it may not change either."""
    begin_journal(tmp_path / 'j', done=20)
    with with_images(tmp_path / 'j') as journal:
        journal.append(0, range(20, 23), made_up(range(20, 23)))
        journal.append(1, [3, 7, 20], made_up([3, 7, 20])[:, :1])
        journal.append(4, [7], made_up([7]))
    whole = (tmp_path / 'j').read_bytes()
    with with_images(tmp_path / 'j') as journal:
        assert journal.num_done == 23
        last = list(journal.replay())[-2:]
    assert [(stage, positions, outcomes.shape) for stage, positions, outcomes in last] == [
        (1, [3, 7, 20], (3, 1)), (4, [7], (1, 2))]
    assert np.array_equal(last[0][2], made_up([3, 7, 20])[:, :1])
    (tmp_path / 'cut').write_bytes(whole[:-3])
    with with_images(tmp_path / 'cut') as journal:
        assert [stage for stage, _, _ in journal.replay()][-2:] == [0, 1]
    with pytest.raises(InputError, match='have changed since, %s: restore' % PATHS[7]):
        with_images(tmp_path / 'j', image_7=1)
    lines = whole.splitlines(True)
    (tmp_path / 'lost').write_bytes(b''.join(lines[:5] + lines[6:]))  # the end of the first stage
    with pytest.raises(InputError, match='image 3 comes after 20 images'):
        with_images(tmp_path / 'lost')


def test_a_journal_of_another_version_is_refused(tmp_path):
    begin_journal(tmp_path / 'j')
    from evaluation.journal import FORMAT, line_of
    first = line_of(dict(format='evaluation journal 2', facts=FACTS))
    (tmp_path / 'j').write_bytes(first)
    assert FORMAT != 'evaluation journal 2'
    with pytest.raises(InputError, match='does not begin as a journal of this version'):
        with_images(tmp_path / 'j')
    assert (tmp_path / 'j').read_bytes() == first


@pytest.mark.parametrize('path', ['missing/j', '.', '/dev/null'])
def test_where_no_journal_can_be(tmp_path, path):
    with pytest.raises(InputError, match='cannot use the journal'):
        open_journal(os.path.join(str(tmp_path), path))


def test_figures_count_what_the_outcomes_say():
    labels = [3, 1, 4, 1]
    outcomes = np.zeros((4, 1), OUTCOME)
    outcomes['target'][:, 0] = [7, 7, 8, -1]
    outcomes['prediction'][:, 0] = [7, 1, -1, -1]  # the target, the label, no number, no number and no attack
    outcomes['top5_correct'][:, 0] = [1, 1, 0, 0]
    tally = Tally(labels, 1)
    tally.add(range(0, 2), outcomes[:2])
    tally.add(range(2, 4), outcomes[2:])
    figures = tally.figures[0]
    assert (figures.num_images, figures.wrong_top1, figures.wrong_top5, figures.successes) == (4, 3, 2, 1)
    assert figures.rate('wrong_top1') == 0.75
    assert figures.targeted == 3 and figures.rate('successes') == 1 / 3
    assert Figures().rate('wrong_top1') is None and 'nan' not in Figures().lines()
