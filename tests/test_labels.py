"""Which images a data folder has, in which order, and with which labels."""
import os
import random

import pytest

from runtime.errors import InputError
from third_party.imagenet import class_names, count_images, find_images, ilsvrc_names, load_dataset


def put(root, *names):
    """Create (empty) files; nothing here decodes them."""
    for name in names:
        path = os.path.join(str(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, 'w').close()


def write(root, name, text):
    put(root, name)
    with open(os.path.join(str(root), name), 'w', encoding='utf-8') as f:
        f.write(text)
    return os.path.join(str(root), name)


def relative(root, paths):
    return [os.path.relpath(p, str(root)) for p in paths]


def error(function, *args):
    with pytest.raises(InputError) as info:
        function(*args)
    assert '\n' not in str(info.value)
    return str(info.value)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / 'data')


def test_sorted_training_names_give_the_labels_of_both_splits(root):
    put(root, 'train/cat/b.jpg', 'train/cat/a.jpg', 'train/ant/x.png', 'train/dog/1.JPEG', 'val/dog/v.jpg')
    train, val = load_dataset(root, 'train'), load_dataset(root, 'val')
    assert train.class_names == val.class_names == ['ant', 'cat', 'dog']
    assert relative(root, train.paths) == ['train/ant/x.png', 'train/cat/a.jpg', 'train/cat/b.jpg',
                                           'train/dog/1.JPEG']
    assert train.labels == [0, 1, 1, 2] and len(train) == 4
    assert val.labels == [2] and relative(root, val.paths) == ['val/dog/v.jpg']
    assert count_images(root, 'train') == 4 and count_images(root, 'val') == 1


def test_names_of_val_where_there_is_no_training_set(root):
    put(root, 'val/b/1', 'val/a/1')
    assert load_dataset(root, 'val').class_names == ['a', 'b']


def test_ilsvrc_order_has_1000_classes_from_a_few_folders(root):
    put(root, 'val/n15075141/1.JPEG', 'val/n01440764/1.JPEG', 'val/n02119789/1.JPEG')
    val = load_dataset(root, 'val')
    assert len(val.class_names) == 1000
    # ILSVRC-2012 numbers the kit fox 278; sorted by wnid, as the folders are
    assert val.labels == [0, 278, 999]


def test_ilsvrc_list():
    names = ilsvrc_names()
    assert len(set(names)) == 1000 and names == sorted(names)
    assert names[207] == 'n02099601' and names[970] == 'n09193705'


def test_wnids_of_another_imagenet_are_sorted_names(root):
    put(root, 'train/n01440764/1', 'train/n00000001/1')
    assert class_names(root) == ['n00000001', 'n01440764']


def test_a_stray_folder_among_wnids_is_an_error(root):
    put(root, 'train/n01440764/1', 'train/rest/1')
    assert 'rest' in error(class_names, root)


def test_synsets_file_and_classes_flag(root, tmp_path):
    put(root, 'train/cat/1', 'train/ant/1')
    write(root, 'synsets.txt', 'dog\ncat\tFelis catus\nant\n\n')
    assert load_dataset(root, 'train').labels == [2, 1]
    flag = write(tmp_path, 'classes', '\ufeffcat\r\nant\r\n')
    dataset = load_dataset(root, 'train', flag)
    assert dataset.class_names == ['cat', 'ant'] and dataset.labels == [1, 0]


@pytest.mark.parametrize('text, expected', [
    ('cat\ncat\nant\n', "'cat' is there twice"), ('cat\n\nant\n', 'line 2'), ('', 'is empty'),
    ('cat\n', 'single'), ('cat\nmouse\n', 'train/ant')])
def test_wrong_classes_file(root, tmp_path, text, expected):
    put(root, 'train/cat/1', 'train/ant/1')
    assert expected in error(load_dataset, root, 'train', write(tmp_path, 'classes', text))


def test_classes_file_missing_or_not_text(root, tmp_path):
    put(root, 'train/cat/1', 'train/ant/1')
    assert 'nowhere' in error(class_names, root, str(tmp_path / 'nowhere'))
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    assert 'binary' in error(class_names, root, str(tmp_path / 'binary'))
    assert 'data' in error(class_names, root, root)


@pytest.mark.parametrize('place', ['val.txt', 'val/val.txt'])
def test_flat_validation_set(root, place):
    put(root, 'val/b.JPEG', 'val/a b.JPEG', 'val/sub/c.JPEG', 'val/.DS_Store')
    write(root, place, 'b.JPEG 999\na b.JPEG n01443537\nsub/c.JPEG\t7\n')
    val = load_dataset(root, 'val')
    assert relative(root, val.paths) == ['val/a b.JPEG', 'val/b.JPEG', 'val/sub/c.JPEG']
    assert val.labels == [1, 999, 7] and len(val.class_names) == 1000
    assert count_images(root, 'val') == 3


def test_flat_validation_set_with_the_classes_of_train(root):
    put(root, 'train/golden retriever/1', 'train/cat/1', 'val/1.png', 'val/2.png', 'val/3.png')
    write(root, 'val.txt', '3.png golden retriever\n1.png 1\n2.png cat\n')
    assert load_dataset(root, 'val').labels == [1, 0, 1]


@pytest.mark.parametrize('line, expected', [
    ('1.png', 'expected a file and its label'), ('no.png 1', 'no such file'), ('1.png 2', 'from 0 to 1'),
    ('1.png mouse', 'neither an index nor'), ('2.png 0', 'listed before'), ('1.png -1', 'neither')])
def test_wrong_line_of_val_txt_is_named(root, line, expected):
    put(root, 'train/cat/1', 'train/ant/1', 'val/1.png', 'val/2.png')
    path = write(root, 'val.txt', '2.png 0\n%s\n' % line)
    message = error(load_dataset, root, 'val')
    assert expected in message and path + ', line 2' in message


def test_a_number_that_names_another_class_is_refused(root):
    names = [str(i) for i in range(12)]
    put(root, 'val/1.png', 'val/2.png', *['train/%s/1' % n for n in names])
    write(root, 'val.txt', '1.png 1\n2.png 2\n')
    assert load_dataset(root, 'val').labels == [1, 2]
    classes = write(root, 'classes', '\n'.join(sorted(names)))  # 0, 1, 10, 11, 2, ...
    message = error(load_dataset, root, 'val', classes)
    assert 'class 4' in message and classes in message and '--classes' not in message
    put(root, 'train/no number/1')  # such names are sorted as text
    assert '--classes FILE' in error(load_dataset, root, 'val')


def test_images_that_val_txt_leaves_out_are_told(root, caplog):
    put(root, 'val/1.png', 'val/2.png', 'val/readme')
    write(root, 'val.txt', '1.png 1\n')
    assert len(load_dataset(root, 'val')) == 1
    assert '1 images' in caplog.text and '2.png' in caplog.text


@pytest.mark.parametrize('place', ['val.txt', 'val/val.txt'])
def test_class_folders_win_over_a_val_txt_beside_them(root, caplog, place):
    put(root, 'val/cat/1.png', 'val/ant/1.png', 'train/cat/1.png', 'train/ant/1.png')
    path = write(root, place, 'ILSVRC2012_val_00000001.JPEG 65\n')
    assert load_dataset(root, 'val').labels == [0, 1]
    assert caplog.text.count('%s is not read: the class folders' % path) == 1
    caplog.clear()
    load_dataset(root, 'train')
    assert caplog.text == ''


def test_what_is_no_regular_file_is_not_waited_for(root, tmp_path):
    put(root, 'val/cat/1.png', 'val/ant/1.png')
    os.mkfifo(str(tmp_path / 'pipe'))
    for path in (str(tmp_path / 'pipe'), '/dev/zero'):
        assert error(load_dataset, root, 'val', path) == 'cannot read %s: it is not a file' % path
    os.mkfifo(os.path.join(root, 'synsets.txt'))
    assert 'synsets.txt: it is not a file' in error(load_dataset, root, 'val')


def test_two_val_txt(root):
    put(root, 'val/1.png')
    write(root, 'val.txt', '1.png 1\n')
    write(root, 'val/val.txt', '1.png 2\n')
    assert 'remove one' in error(load_dataset, root, 'val')


def test_missing_and_empty_folders(root, tmp_path):
    assert 'no folder' in error(load_dataset, root, 'train')
    os.makedirs(root)
    assert 'no class folders' in error(load_dataset, root, 'train')
    put(root, 'val/cat/1', 'val/ant/1')
    assert os.path.join(root, 'train') in error(load_dataset, root, 'train')
    os.makedirs(os.path.join(root, 'train', 'dog'))
    os.makedirs(os.path.join(root, 'train', 'eel'))
    assert 'all class folders' in error(load_dataset, root, 'train')
    assert 'val/ant is not among' in error(load_dataset, root, 'val')
    assert 'not a folder' in error(load_dataset, write(tmp_path, 'file', ''), 'val')
    for split in ('train', 'val'):
        assert 'no folder' in error(count_images, str(tmp_path / 'none'), split)


@pytest.mark.parametrize('stray, expected', [
    ('val/loose.jpg', 'in no class folder'), ('val/cat/inner/1.png', 'folder inside a class folder')])
def test_images_that_would_be_left_out(root, stray, expected):
    put(root, 'val/cat/1.png', 'val/ant/1.png', stray)
    assert expected in error(load_dataset, root, 'val')


def test_every_file_of_a_class_folder_counts_but_hidden_ones(root):
    put(root, 'val/cat/notes.txt', 'val/cat/1.png', 'val/ant/1', 'val/README')
    put(root, 'val/cat/._1.png', 'val/cat/.DS_Store', 'val/.git/x')
    assert relative(root, load_dataset(root, 'val').paths) == ['val/ant/1', 'val/cat/1.png', 'val/cat/notes.txt']
    assert count_images(root, 'val') == 3


def test_links_count_as_what_they_point_to(root, tmp_path):
    put(tmp_path, 'elsewhere/1.png', 'one.png')
    put(root, 'val/cat/0.png')
    os.symlink(str(tmp_path / 'elsewhere'), os.path.join(root, 'val', 'ant'))
    os.symlink(str(tmp_path / 'one.png'), os.path.join(root, 'val', 'cat', 'x.png'))
    val = load_dataset(root, 'val')
    assert relative(root, val.paths) == ['val/ant/1.png', 'val/cat/0.png', 'val/cat/x.png']
    os.unlink(str(tmp_path / 'one.png'))
    assert 'x.png is a broken symbolic link' in error(load_dataset, root, 'val')


def test_a_pipe_is_no_image(root):
    put(root, 'val/ant/1.png', 'val/cat/1.png')
    os.mkfifo(os.path.join(root, 'val', 'cat', 'pipe'))
    assert 'pipe is neither' in error(load_dataset, root, 'val')


def test_order_is_that_of_relative_paths(root):
    folders, files = ('a', 'a-b', 'a b', 'B', 'ä', 'aa'), ('2', '10', 'Z', 'é', 'a')
    names = ['train/%s/%s' % (folder, file) for folder in folders for file in files]
    random.Random(0).shuffle(names)
    put(root, *names)
    assert relative(root, load_dataset(root, 'train').paths) == sorted(names)


def test_find_images_lists_all_files_in_order(root):
    names = ['b.png', 'a/2.png', 'a/10.png', 'a-b/x', 'a/deep/er/é.tif', 'notes.txt']
    put(root, '.hidden', '.git/config', 'a/._b.png', *names)
    assert find_images(root) == [os.path.join(root, n) for n in sorted(names)]
    assert find_images(root + '/') == [os.path.join(root, n) for n in sorted(names)]


def test_find_images_follows_links_but_no_loops(root, tmp_path):
    put(tmp_path, 'other/1.png')
    put(root, 'a/2.png')
    os.symlink(str(tmp_path / 'other'), os.path.join(root, 'z'))
    os.symlink(root, os.path.join(root, 'a', 'up'))
    os.symlink(os.path.join(root, 'a'), str(tmp_path / 'other' / 'back'))
    os.symlink('nowhere', os.path.join(root, 'a', 'broken.png'))
    os.mkfifo(os.path.join(root, 'a', 'pipe'))
    assert relative(root, find_images(root)) == ['a/2.png', 'a/broken.png', 'z/1.png', 'z/back/2.png',
                                                 'z/back/broken.png']


def test_find_images_in_nothing(root, tmp_path):
    assert 'no folder' in error(find_images, root)
    os.makedirs(os.path.join(root, 'empty'))
    put(root, '.hidden')
    assert 'no image' in error(find_images, root)
    assert 'not a folder' in error(find_images, write(tmp_path, 'file', ''))


def test_names_in_no_encoding_survive(root):
    put(root, 'a/1.png')
    with open(os.path.join(os.fsencode(root), b'a', b'\xff.png'), 'w'):
        pass
    assert [os.path.isfile(p) for p in find_images(root)] == [True, True]
