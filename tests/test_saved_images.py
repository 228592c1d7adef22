"""Attacked images on disk: their pixel values, their folder, their manifest. And how an evaluation is dealt out."""
import os

import numpy as np
import pytest

from evaluation.outcomes import OUTCOME, Strength
from evaluation.saved_images import check_directory, file_name, prepare_directory, quantised, read_manifest
from runtime.distributed import World
from runtime.errors import InputError


def scaled(pixels):
    return pixels.astype(np.float32) * np.float32(2 / 255) - 1


STRENGTHS = [Strength(10, 16.0), Strength(100, 0.5)]
NAMES = [file_name(i, s) for i in range(2) for s in STRENGTHS]


@pytest.mark.parametrize('epsilon', [0.5, 1, 5.5, 16])
def test_whole_pixels_within_the_budget(epsilon):
    rng = np.random.RandomState(0)
    clean = rng.randint(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    clean[0, :4], clean[0, 4:8] = 0, 255
    images = np.clip(scaled(clean) + rng.uniform(-1, 1, clean.shape) * epsilon * 2 / 255, -1, 1).astype(np.float32)
    kept = quantised(images, clean, epsilon).astype(int)
    assert kept.min() >= 0 and kept.max() <= 255 and np.abs(kept - clean).max() <= int(epsilon)
    exact = (images + 1) * 127.5
    free = np.abs(exact - clean) < int(epsilon) - 0.5  # where the nearest whole number is within the budget
    assert np.abs(kept - exact)[free].max(initial=0) <= 0.501
    assert np.array_equal(quantised(scaled(clean), clean, epsilon), clean)


def test_folder_of_an_evaluation(tmp_path):
    folder = str(tmp_path / 'new' / 'saved')
    token = prepare_directory(folder, (), continued=False)
    check_directory(folder, token)
    with pytest.raises(InputError, match='needs one that all machines share'):
        check_directory(folder, token + 1)
    with pytest.raises(InputError, match='needs one that all machines share'):
        check_directory(str(tmp_path / 'elsewhere'), token)
    with pytest.raises(InputError, match='is not empty'):
        prepare_directory(folder, (), continued=False)
    with pytest.raises(InputError, match='lacks 4 images .* such as 000000-iter10-epsilon16.png'):
        prepare_directory(folder, NAMES, continued=True)
    for name in NAMES + ['.x.png.7.part']:
        (tmp_path / 'new' / 'saved' / name).write_bytes(b'x')
    prepare_directory(folder, NAMES, continued=True)
    assert not (tmp_path / 'new' / 'saved' / '.x.png.7.part').exists()


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot write'):
        prepare_directory(str(tmp_path / 'file'), (), continued=False)


@pytest.mark.parametrize('text, said', [
    ('', 'is no manifest'), ('name,class\n', 'is no manifest'), ('file,label\n', 'lists no image'),
    ('file,label\na.png,cat\n', "line 2: label is 'cat', and must be a whole number, 0 or more"),
    ('file,label\na.png,1.5\n', "line 2: label is '1.5'"), ('file,label\na.png,-1\n', "line 2: label is '-1'"),
    ('file,label\n\na.png,\n', 'line 3: the image has no label'), ('file,label\n,1\n', 'line 2: the image has no name'),
    ('file,label\na.png,1,2\n', 'line 2: it has 3 values, and the first line names 2 columns'),
    ('file,label,label\na.png,1,2\n', 'line 1: the column `label` is there twice'),
    ('file,label,target\na.png,1,x\n', "line 2: target is 'x'"),
    ('file,label,target\na.png,1,-2\n', "line 2: target is '-2'"),
    ('file,label,target\na.png,1,1\n', 'line 2: a.png has its label as its target'),
    ('file,label,epsilon\na.png,1,nan\n', "line 2: epsilon is 'nan', and must be a number, 0 or more"),
    ('file,label,epsilon\na.png,1,inf\n', "line 2: epsilon is 'inf'"),
    ('file,label,epsilon\na.png,1,-8\n', "line 2: epsilon is '-8'"),
    ('file,label,attack_iter\na.png,1,2.5\n', "line 2: attack_iter is '2.5', and must be a whole number"),
    ('file,label\na\0.png,1\n', 'm.csv.* line'),
    ('file,label\na.png,1\n"' + 'x' * 200000 + '",1\n', 'line 2: behind it is a line that no CSV has'),
    ('file,label\na.png,1\n./a.png,2\n', 'line 3: ./a.png is listed twice'),
    ('file,label,attack_iter,epsilon\na.png,1,ten,16\n', "line 2: attack_iter is 'ten'"),
    ('file,label\na.png\n', 'line 2: it has 1 values')])
def test_manifest_that_is_none(tmp_path, text, said):
    (tmp_path / 'm.csv').write_text(text)
    with pytest.raises(InputError, match=said):
        read_manifest(str(tmp_path / 'm.csv'))


def test_what_a_manifest_says(tmp_path):
    """With columns of its own, an empty line, and numbers in other forms."""
    (tmp_path / 'm.csv').write_text('mine,file,label,target,attack_iter,epsilon\n,a,1,,10,8.5\n\nx,b,2,-1,0.0,16\n'
                                    'x,"c,d",3,4,,\nx,e, 5 ,,,\n')
    listed = read_manifest(str(tmp_path / 'm.csv'))
    assert [tuple(row) for row in listed.values()] == [
        (1, -1, (10, 8.5), False), (2, -1, (0, 16), True), (3, 4, (), False), (5, -1, (), True)]
    assert list(listed) == [os.path.realpath(str(tmp_path / name)) for name in ('a', 'b', 'c,d', 'e')]


def test_a_manifest_that_is_no_file(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    with pytest.raises(InputError, match='pipe: it is not a file'):
        read_manifest(str(tmp_path / 'pipe'))


class FakeWorld(World):
    def __init__(self, rank, size, gathered):
        self.rank, self.size, self.gathered = rank, size, gathered

    def gather(self, rows):
        """A rank alone would wait for the others: here it gets its own, which the test puts together."""
        self.gathered.append(rows)
        return rows.copy()


@pytest.mark.parametrize('size', [1, 2, 3, 8])
@pytest.mark.parametrize('batch, begin', [(1, 0), (7, 0), (32, 0), (64, 0), (7, 14), (7, 15), (5, 36), (7, 37)])
def test_every_position_once_in_the_same_batches(size, batch, begin):
    from evaluation.rounds import in_rounds, parts_of
    count, parts = 37, parts_of(37, batch, begin)

    def outcomes(part):
        rows = np.zeros((len(part), 1), OUTCOME)
        rows['target'][:, 0] = part
        return rows

    dealt, yielded = [[] for _ in range(size)], []
    for rank in range(size):
        world = FakeWorld(rank, size, dealt[rank])
        yielded.append([positions for positions, _ in in_rounds(parts, map(outcomes, parts[rank::size]), world, 1)])
    assert all(y == yielded[0] for y in yielded) and len(set(map(len, dealt))) == 1  # all ranks meet as often
    in_order = [int(p) for shares in zip(*dealt) for rows in shares for p in rows['target'][:, 0]]
    assert in_order == list(range(begin, count)) == [p for positions in yielded[0] for p in positions]
    whole = {tuple(range(i, min(i + batch, count))) for i in range(0, count, batch)}
    assert set(map(tuple, parts)) <= whole or begin % batch  # but for the rest of a batch that another batch size left
