"""Which folders are classes, and in which order: what gives every image its label."""
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from test_labels import error, put, relative, write

from third_party.imagenet import class_names, count_images, find_images, ilsvrc_names, load_dataset

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SYSTEMS = ['__MACOSX', '@eaDir', 'lost+found', 'System Volume Information', '$RECYCLE.BIN', '$Recycle.Bin', '#recycle',
           '@Recycle', 'found.000', '.Trashes', '.Trash-1000', '.ipynb_checkpoints']


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / 'data')


def folder(root, *names):
    for name in names:
        os.makedirs(os.path.join(root, name))


# ---- numbers

@pytest.mark.parametrize('form', ['%d', '%02d', '%05d'])
@pytest.mark.parametrize('count', [2, 10, 12, 101])
def test_numbers_are_their_labels(root, form, count):
    names = [form % i for i in range(count)]
    put(root, *['train/%s/1' % n for n in names], 'val/%s/1' % names[-1])
    assert class_names(root) == names
    assert load_dataset(root, 'val').labels == [count - 1]
    train = load_dataset(root, 'train')
    assert relative(root, train.paths) == sorted(relative(root, train.paths))
    assert train.labels == [int(path.split('/')[1]) for path in relative(root, train.paths)]


def test_numbers_padded_or_not(root):
    put(root, 'val/00/1', 'val/1/1', 'val/002/1')
    assert class_names(root) == ['00', '1', '002']


@pytest.mark.parametrize('names, wrong', [
    (['1', '2', '3'], '1'), (['0', '2'], '2'), (['0', '1', '01'], '01'), (['-1', '0', '1'], '-1'), (['10', '20'], '10'),
    ([str(i) for i in range(1, 11)], '1'), (['+0', '1', '3'], '3')])
def test_numbers_with_gaps_are_refused(root, names, wrong, tmp_path):
    put(root, *['train/%s/1' % n for n in names])
    message = error(load_dataset, root, 'train')
    assert '--classes FILE' in message and root in message
    assert any('(%s would have' % w in message for w in (wrong, names[1]))
    assert class_names(root, write(tmp_path, 'classes', '\n'.join(names))) == names


def test_a_number_among_names_is_a_name(root, caplog):
    put(root, 'train/7/1', 'train/10/1', 'train/cat/1')
    assert class_names(root) == ['10', '7', 'cat']
    assert caplog.text.count('numbers and names, \'cat\' for one, and so sorted as text: class \'10\' has label 0') == 1


def test_numbers_that_are_their_labels_all_the_same_are_not_warned_of(root, caplog):
    put(root, 'train/0/1', 'train/1/1', 'train/cat/1')
    assert class_names(root) == ['0', '1', 'cat'] and caplog.text == ''


@pytest.mark.parametrize('empty', [['5'], ['5', '7'], ['0']])
def test_a_gap_that_is_an_empty_folder_is_named(root, tmp_path, empty):
    put(root, *['train/%d/1' % i for i in range(12) if str(i) not in empty])
    folder(root, *['train/' + name for name in empty])
    put(root, 'train/%s/README.txt' % empty[0])
    message = error(class_names, root)
    assert ', '.join('%s/train/%s' % (root, name) for name in empty) + ', one of those, has no image' in message
    names = write(tmp_path, 'classes', '\n'.join(map(str, range(12))))
    assert len(class_names(root, names)) == 12 and len(load_dataset(root, 'train', names)) == 12 - len(empty)


def test_a_number_without_an_image(root, caplog):
    put(root, *['train/%d/1' % i for i in range(11)])
    folder(root, 'train/11', 'train/notes')
    assert class_names(root) == [str(i) for i in range(11)]
    assert 'train/11, one of 2 such, has no image' in caplog.text
    put(root, 'val/11/1')
    assert class_names(root) == [str(i) for i in range(12)]
    folder(root, 'train/12')
    put(root, 'train/13/1')
    assert '--classes' in error(class_names, root)


# ---- folders that are no class

@pytest.mark.parametrize('name', SYSTEMS)
@pytest.mark.parametrize('content', [None, '1', 'cat/1.jpg', 'x.jpg'])
def test_systems_folders_are_ignored(root, name, content, caplog):
    put(root, 'train/cat/1', 'train/dog/1', 'val/cat/2', 'val/dog/1')
    for split in ('train', 'val', 'train/cat', 'val/dog', '.'):
        folder(root, '%s/%s' % (split, name))
        if content:
            put(root, '%s/%s/%s' % (split, name, content))
    train, val = load_dataset(root, 'train'), load_dataset(root, 'val')
    assert train.class_names == val.class_names == class_names(root) == ['cat', 'dog']
    assert train.labels == val.labels == [0, 1] and count_images(root, 'train') == count_images(root, 'val') == 2
    assert relative(root, find_images(root)) == ['train/cat/1', 'train/dog/1', 'val/cat/2', 'val/dog/1']
    assert caplog.text == ''


def test_systems_folders_among_wnids_and_beside_a_flat_set(root):
    put(root, 'train/n01440764/1', 'train/lost+found/1', 'val/1.png', 'val/__MACOSX/._1.png')
    write(root, 'val.txt', '1.png 3\n')
    assert class_names(root) == ilsvrc_names() and load_dataset(root, 'val').labels == [3]


def test_files_that_systems_make_are_no_images(root):
    put(root, 'train/cat/1', 'train/dog/1', 'train/cat/Thumbs.db', 'train/dog/desktop.ini', 'train/bee/Thumbs.db')
    assert load_dataset(root, 'train').class_names == ['cat', 'dog'] and count_images(root, 'train') == 2


def test_a_folder_without_an_image_is_no_class(root, caplog):
    put(root, 'train/ant/1', 'train/cat/1', 'val/cat/1', 'val/ant/1')
    folder(root, 'train/bee', 'val/also')
    for split in ('train', 'val'):
        caplog.clear()
        dataset = load_dataset(root, split)
        assert dataset.labels == [0, 1] and dataset.class_names == ['ant', 'cat']
        assert caplog.text.count('train/bee has no image') == 1 and '--classes FILE' in caplog.text


def test_a_folder_whose_files_are_no_images_is_no_class(root, tmp_path, caplog):
    put(root, 'train/ant/1.png', 'train/cat/1.png', 'val/ant/1.png', 'val/cat/1.png', 'val/_notes/list.csv')
    write(root, 'train/_notes/README.txt', 'no class\n')
    write(root, 'train/_notes/TODO', 'more\n')
    for split in ('train', 'val'):
        caplog.clear()
        dataset = load_dataset(root, split)
        assert dataset.labels == [0, 1] and dataset.class_names == ['ant', 'cat'] and count_images(root, split) == 2
        assert caplog.text.count('_notes') == 1 and 'train/_notes has no image in any split' in caplog.text
    # a list names it all the same, and another one doesn't
    named = write(tmp_path, 'named', '_notes\nant\ncat\n')
    assert load_dataset(root, 'train', named).labels == [1, 2]
    caplog.clear()
    assert load_dataset(root, 'train', write(tmp_path, 'others', 'ant\ncat\n')).labels == [0, 1]
    assert 'train/_notes has files, and none of them is an image' in caplog.text


def test_notes_among_wnids_are_no_class(root, caplog):
    put(root, 'train/n01440764/1.JPEG', 'train/notes/README.txt')
    dataset = load_dataset(root, 'train')
    assert dataset.labels == [0] and len(dataset.class_names) == 1000 and 'train/notes has no image' in caplog.text


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.bmp', '.tiff', '.webp', '.ppm', '.jp2'])
@pytest.mark.parametrize('name', ['0001', 'x.dat'])
def test_images_are_images_whatever_their_names(root, ending, name):
    put(root, 'train/ant/1.png')
    folder(root, 'train/cat')
    with open('%s/train/cat/%s' % (root, name), 'wb') as f:
        f.write(cv2.imencode(ending, np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    assert class_names(root) == ['ant', 'cat'] and count_images(root, 'train') == 2


def test_a_folder_with_an_image_in_one_split_is_a_class(root, caplog):
    put(root, 'train/ant/1', 'train/cat/1', 'val/bee/1', 'val/cat/1')
    folder(root, 'train/bee', 'val/ant')
    assert load_dataset(root, 'val').labels == [1, 2] and class_names(root) == ['ant', 'bee', 'cat']
    assert load_dataset(root, 'train').labels == [0, 2] and 'no image in any split' not in caplog.text
    assert 'train/bee is empty' in caplog.text


def test_a_list_names_classes_without_an_image(root, tmp_path, caplog):
    put(root, 'train/ant/1', 'train/cat/1')
    folder(root, 'train/bee', 'train/dog')
    names = write(tmp_path, 'classes', 'ant\nbee\ncat\n')
    dataset = load_dataset(root, 'train', names)
    assert dataset.labels == [0, 2] and dataset.class_names == ['ant', 'bee', 'cat']
    assert 'train/bee is empty' in caplog.text
    write(root, 'synsets.txt', 'cat\nbee\nant\n')
    assert load_dataset(root, 'train').labels == [2, 0]


def test_an_empty_folder_and_a_val_txt(root, caplog):
    put(root, 'train/ant/1', 'train/cat/1', 'val/1.png')
    folder(root, 'train/bee')
    write(root, 'val.txt', '1.png cat\n')
    assert load_dataset(root, 'val').labels == [1]
    write(root, 'val.txt', '1.png bee\n')  # an image of this class
    assert load_dataset(root, 'val').labels == [1] and len(class_names(root)) == 3
    write(root, 'val.txt', '1.png 1\n')
    assert 'train/bee' in error(load_dataset, root, 'val') and '--classes' in error(class_names, root)
    os.rename(root + '/train/bee', root + '/train/zebra')  # behind the others: the number means the same
    assert load_dataset(root, 'val').labels == [1]


def test_two_folders_of_which_one_is_empty(root):
    put(root, 'train/ant/1')
    folder(root, 'train/bee')
    assert 'a single class, ant' in error(class_names, root)


def test_an_empty_folder_among_wnids(root):
    put(root, 'train/n01440764/1')
    folder(root, 'train/n01443537', 'train/notes')
    assert load_dataset(root, 'train').labels == [0] and len(class_names(root)) == 1000


def test_the_server_says_the_same_classes(tmp_path):
    root = str(tmp_path)
    for name in range(11):
        folder(root, 'train/%d' % name)
        cv2.imwrite('%s/train/%d/x.png' % (root, name), np.zeros((4, 4, 3), np.uint8))
    folder(root, 'train/lost+found', 'train/misc')
    run = subprocess.run([sys.executable, ROOT + '/third_party/serve-data.py', '--data', root, '--batch', '1',
                          '--image-size', '8', '--workers', '1', '--benchmark', '--benchmark-seconds', '0.1'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert run.returncode == 0 and run.stderr.count('\n') == 1 and 'train/misc has no image' in run.stderr


# ---- lists of classes

WORDS = 'n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark\n'


@pytest.mark.parametrize('text', [WORDS, WORDS.replace(' ', '\t', 1), WORDS.replace('4 tench', '4: tench'),
                                  'n01440764\nn01443537,goldfish\nn01484850;x\n', WORDS.replace('\n', '\r\n')])
@pytest.mark.parametrize('name', ['classes', 'data/synsets.txt'])
def test_the_first_words_of_a_list_of_wnids(root, tmp_path, text, name):
    put(root, 'train/n01443537/1', 'train/n01440764/1')
    path = write(tmp_path, name, text)
    dataset = load_dataset(root, 'train', path if name == 'classes' else None)
    assert dataset.class_names == ['n01440764', 'n01443537', 'n01484850'] and dataset.labels == [0, 1]


def test_first_words_that_are_no_wnids_are_a_part_of_the_name(root, tmp_path):
    put(root, 'train/n01440764 tench/1', 'train/golden retriever/1')
    names = write(tmp_path, 'classes', 'n01440764 tench\ngolden retriever\n')
    assert load_dataset(root, 'train', names).class_names == ['n01440764 tench', 'golden retriever']


@pytest.mark.parametrize('name', ['classes', 'data/synsets.txt'])
def test_folders_named_by_the_whole_lines_of_a_list_of_wnids(root, tmp_path, name):
    lines = WORDS.splitlines()
    put(root, 'train/%s/1' % lines[1], 'train/n01440764/1', 'val/1.png', 'val/2.png')
    path = write(tmp_path, name, WORDS)
    given = path if name == 'classes' else None
    dataset = load_dataset(root, 'train', given)
    assert dataset.class_names == ['n01440764', 'n01443537', 'n01484850'] and dataset.labels == [0, 1]
    write(root, 'val.txt', '1.png %s\n2.png n01484850\n' % lines[1])
    assert load_dataset(root, 'val', given).labels == [1, 2]
    put(root, 'train/n01443537 goldfish/1')  # not the line
    assert 'n01443537 goldfish is not among' in error(load_dataset, root, 'train', given)


@pytest.mark.parametrize('text, expected', [
    ('0 cat\n1 ant\n', "line 2 is '1 ant'"), ('cat,Felis\nant,Formica\n', "line 2 is 'ant,Formica'"),
    ('cat\nAnt\n', "line 2 is 'Ant'"), ('cat\nmouse\n', 'Add this one'), ('Felis catus\nFormica\n', 'Add this one')])
@pytest.mark.parametrize('name', ['classes', 'data/synsets.txt'])
def test_advice_to_somebody_who_gave_a_list(root, tmp_path, text, expected, name):
    put(root, 'train/ant/1', 'train/cat/1')
    path = write(tmp_path, name, text)
    message = error(load_dataset, root, 'train', path if name == 'classes' else None)
    assert expected in message and path in message and 'train/ant' in message and '--classes' not in message


def test_advice_without_a_list(root):
    put(root, 'train/ant/1', 'train/cat/1', 'val/bee/1')
    assert 'val/bee is not among' in error(load_dataset, root, 'val')
    assert '--classes FILE' in error(load_dataset, root, 'val')


# ---- val.txt

@pytest.mark.parametrize('second', ['./a.JPEG 5', 'a.JPEG 5', '../val/a.JPEG 5', 'sub/../a.JPEG 5', './/a.JPEG 3',
                                    'sub/.././../val//./a.JPEG 3', './a.JPEG n01440764', 'ROOT/val/a.JPEG 3'])
def test_the_same_file_twice(root, second):
    put(root, 'val/a.JPEG', 'val/sub/b.JPEG')
    second = second.replace('ROOT', root)
    for lines in (['a.JPEG 3', second], [second, 'a.JPEG 3'], ['./a.JPEG 3', 'sub/b.JPEG 1', second]):
        path = write(root, 'val.txt', '\n'.join(lines) + '\n')
        message = error(load_dataset, root, 'val')
        assert 'listed before, in line 1' in message and '%s, line %d' % (path, len(lines)) in message


@pytest.mark.parametrize('name', ['./a.JPEG', '../val/a.JPEG', 'sub/../a.JPEG', './/a.JPEG', 'ROOT/val/a.JPEG',
                                  'ROOT//val/sub/../a.JPEG'])
def test_other_ways_to_write_a_file(root, name, caplog):
    name = name.replace('ROOT', root)
    put(root, 'val/a.JPEG', 'val/sub/b c.JPEG')
    write(root, 'val.txt', '%s 3\n./sub//b c.JPEG 4\n' % name)
    val = load_dataset(root, 'val')
    assert relative(root, val.paths) == ['val/a.JPEG', 'val/sub/b c.JPEG'] and val.labels == [3, 4]
    assert val.listing(root)[1] == ['val/a.JPEG', 'val/sub/b c.JPEG'] and caplog.text == ''
    write(root, 'val.txt', 'a.JPEG 3\nsub/b c.JPEG 4\n')
    assert load_dataset(root, 'val').listing(root) == val.listing(root)


@pytest.mark.parametrize('name', ['../x.JPEG', '../train/cat/x.JPEG', 'sub/../../x.JPEG', '..', '.', '../val2/x.JPEG',
                                  'ROOT/val/../x.JPEG', 'ROOT/val2/x.JPEG', 'ROOT/val',
                                  '../../data/x.JPEG', 'ROOT/x.JPEG', '/etc/passwd', '../val'])
def test_a_file_outside_of_val(root, name):
    put(root, 'val/a.JPEG', 'x.JPEG', 'val2/x.JPEG')
    folder(root, 'val/sub')
    path = write(root, 'val.txt', 'a.JPEG 3\n%s 4\n' % name.replace('ROOT', root))
    message = error(load_dataset, root, 'val')
    assert path + ', line 2' in message and 'is not in %s/val' % root in message


def test_links_inside_of_val_may_point_anywhere(root, tmp_path):
    put(tmp_path, 'store/1', 'elsewhere/c.JPEG')
    folder(root, 'val')
    for name in 'ab':  # to one file: two images that happen to be the same
        os.symlink(str(tmp_path / 'store/1'), '%s/val/%s.JPEG' % (root, name))
    os.symlink(str(tmp_path / 'elsewhere'), root + '/val/sub')
    write(root, 'val.txt', 'a.JPEG 1\nb.JPEG 2\n./sub/c.JPEG 3\n')
    val = load_dataset(root, 'val')
    assert val.labels == [1, 2, 3] and relative(root, val.paths)[2] == 'val/sub/c.JPEG'


def test_a_relative_data_folder_and_a_linked_val(root, tmp_path):
    put(tmp_path, 'images/a.JPEG')
    folder(root, '.')
    os.symlink(str(tmp_path / 'images'), root + '/val')
    write(root, 'val.txt', '../val/a.JPEG 3\n')
    code = 'from third_party.imagenet import load_dataset; print(load_dataset("data", "val").paths)'
    run = subprocess.run([sys.executable, '-c', code], cwd=str(tmp_path), env=dict(os.environ, PYTHONPATH=ROOT),
                         stdout=subprocess.PIPE, universal_newlines=True)
    assert run.stdout == "['data/val/a.JPEG']\n"
    for top in (root + '/val', str(tmp_path / 'images')):  # a path from / on may be of either
        write(root, 'val.txt', top + '/a.JPEG 3\n')
        assert relative(root, load_dataset(root, 'val').paths) == ['val/a.JPEG']
