"""Black-box scoring: main.py --eval-directory on folders of all sorts of files."""
import os

import cv2
import numpy as np
import pytest
from photos import photographs
from PIL import Image

SMALL = ['--arch', 'ResNet', '-d', '14', '--image-size', '32']


def write_odd_images(folder):
    """Images of many kinds, in sub-folders too; returns their relative paths, sorted."""
    photos = photographs(9)
    rgb = [Image.fromarray(p[:, :, ::-1]) for p in photos]
    (folder / 'b' / 'deep').mkdir(parents=True)
    (folder / 'a').mkdir()
    cv2.imwrite(str(folder / 'a' / 'plain.jpg'), photos[0])
    rgb[1].convert('L').save(str(folder / 'a' / 'grey.jpg'))
    rgb[2].convert('RGBA').save(str(folder / 'a' / 'transparent.png'))
    rgb[3].convert('CMYK').save(str(folder / 'b' / 'cmyk.jpg'))
    cv2.imwrite(str(folder / 'b' / 'sixteen bits.png'), photos[4].astype(np.uint16) * 257)
    rgb[5].convert('P').save(str(folder / 'b' / 'deep' / 'palette.png'))
    rgb[6].resize((300, 11)).save(str(folder / 'b' / 'deep' / 'long, thin.png'))
    rgb[7].resize((1, 1)).save(str(folder / 'one pixel.png'))
    rgb[8].save(str(folder / 'a.b.bmp'))
    return sorted(os.path.relpath(os.path.join(d, f), str(folder)) for d, _, fs in os.walk(str(folder)) for f in fs)


def score(python, folder, weights, out, *flags):
    return python('main.py', '--eval-directory', folder, '--load', weights, '--prediction-file', out,
                  '--batch', '4', *(SMALL + list(flags)))


def read(out):
    with open(str(out)) as f:
        return [line.rstrip('\n').rsplit(',', 1) for line in f]


@pytest.mark.parametrize('preprocess', ['resize', 'validation'])
def test_every_kind_of_image_gets_its_label(python, tmp_path, weights_file, classifier, preprocess):
    from third_party.images import PREPARATIONS, decode
    folder = tmp_path / 'images'
    names = write_odd_images(folder)
    done = score(python, folder, weights_file(), tmp_path / 'out.txt', '--preprocess', preprocess)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / 'out.txt')
    assert [path for path, _ in rows] == [str(folder / name) for name in names]
    images = np.stack([PREPARATIONS[preprocess](decode(path), 32) for path, _ in rows])
    assert [int(label) for _, label in rows] == list(classifier().logits(images).argmax(axis=1))


def test_unreadable_files_are_named_and_shift_nothing(python, tmp_path, weights_file):
    folder = tmp_path / 'images'
    write_odd_images(folder)
    good = score(python, folder, weights_file(), tmp_path / 'good.txt')
    assert good.returncode == 0
    (folder / 'a' / 'notes.txt').write_text('no image')
    (folder / 'b' / 'empty.jpg').write_text('')
    jpeg = (folder / 'a' / 'plain.jpg').read_bytes()
    (folder / 'b' / 'truncated.jpg').write_bytes(jpeg[:len(jpeg) // 2])
    done = score(python, folder, weights_file(), tmp_path / 'out.txt')
    assert done.returncode == 1
    for name in ('a/notes.txt', 'b/empty.jpg', 'b/truncated.jpg'):
        assert str(folder / name) in done.stderr
    assert '3 files were not scored' in done.stderr and 'Traceback' not in done.stderr
    assert read(tmp_path / 'out.txt') == read(tmp_path / 'good.txt')


@pytest.mark.parametrize('make, said', [
    (lambda p: None, 'there is no image'),
    (lambda p: (p / 'only.txt').write_text('x'), '1 files were not scored'),
])
def test_nothing_to_score(python, tmp_path, weights_file, make, said):
    folder = tmp_path / 'images'
    folder.mkdir()
    make(folder)
    done = score(python, folder, weights_file(), tmp_path / 'out.txt')
    assert done.returncode in (1, 2) and said in done.stderr and 'Traceback' not in done.stderr
