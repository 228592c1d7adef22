"""Broken images are found before the first step, all of them; one that is repaired or replaced costs no work."""
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import zlib

import cv2
import numpy as np
import pytest
from evaluating import alone, evaluate, evaluation, ranks, read_table
from forked import run_main
from lanes import once
from photos import photographs, write_split
from PIL import Image

from runtime.errors import InputError
from third_party.batches import examine
from third_party.images import check_complete
from third_party.preparations import PREPARATIONS

NUM_IMAGES = 40


def encoded(ending, seed=0):
    return cv2.imencode(ending, photographs(1, seed)[0])[1].tobytes()


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


JPEG, PNG = encoded('.jpg'), encoded('.png')
HEADER = struct.pack('>IIBBBBB', 8, 8, 8, 2, 0, 0, 0)
ROWS = b''.join(b'\0' + bytes(range(24 * i, 24 * i + 24)) for i in range(8))  # of that header, each with its filter


def png(data=None, header=HEADER, before=b''):
    """A PNG of 8x8 pixels with right checksums, whatever its compressed image data is."""
    return PNG[:8] + chunk(b'IHDR', header) + before + chunk(b'IDAT', zlib.compress(ROWS) if data is None else data) + \
        chunk(b'IEND', b'')


# What is wrong with it no checksum of a part tells
UNDECODABLE = {
    'PNG of garbage': png(b'no image data' * 9), 'PNG without any': png(b''),
    'PNG with half': png(zlib.compress(ROWS)[:60]),
    'PNG of half the rows': png(zlib.compress(ROWS[:100])), 'PNG that lacks a row': png(zlib.compress(ROWS[:175])),
    'PNG with another sum of its rows': png(zlib.compress(ROWS)[:-4] + b'sums'),
    'PNG with a filter that is none': png(zlib.compress(b'\x09' + ROWS[1:])),
    'PNG with such a filter in the middle': png(zlib.compress(ROWS[:100] + b'\x07' + ROWS[101:])),
    'PNG of 3 bits': png(header=HEADER[:8] + b'\3' + HEADER[9:]),
    'PNG of no colours': png(header=HEADER[:9] + b'\5\0\0\0'),
    'RGB in 4 bits': png(header=HEADER[:8] + b'\4' + HEADER[9:]),
    'PNG without its palette': png(header=HEADER[:9] + b'\3\0\0\0'),
    'PNG compressed otherwise': png(header=HEADER[:10] + b'\1\0\0'),
    'PNG interlaced otherwise': png(header=HEADER[:12] + b'\2'),
    'PNG with a part that must be understood': png(before=chunk(b'MUST', b'x')),
}
BROKEN = {
    'truncated JPEG': JPEG[:-2], 'half a JPEG': JPEG[:len(JPEG) // 2], 'beginning of a JPEG': JPEG[:3],
    'JPEG with a hole': JPEG[:len(JPEG) // 2] + b'\xff\x03' * 40 + JPEG[len(JPEG) // 2 + 80:],
    'JPEG without image data': b'\xff\xd8\xff\xd9', 'JPEG without a scan': JPEG[:JPEG.index(b'\xff\xda')] + b'\xff\xd9',
    'JPEG without tables': JPEG[:2] + JPEG[JPEG.index(b'\xff\xc0'):], 'JPEG with a wrong table': JPEG.replace(
        b'\xff\xc4\0\x1f\0\0\1', b'\xff\xc4\0\x1f\0\xc8\1'),
    'truncated PNG': PNG[:-13], 'PNG with another byte': PNG[:100] + bytes([PNG[100] ^ 1]) + PNG[101:],
    'PNG without image data': PNG[:8] + chunk(b'IHDR', HEADER) + chunk(b'IEND', b''),
    'PNG of a billion pixels': PNG[:8] + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)) +
                               PNG[33:],
    'empty': b'', 'a text': b'not found\n', 'zeros': b'\0' * 4096, 'GIF': b'GIF89a' + b'\0' * 50,
    'BMP of a billion pixels': encoded('.bmp')[:18] + struct.pack('<ii', 60000, 60000) + encoded('.bmp')[26:],
    'half a WebP': encoded('.webp')[:60], 'half a TIFF': encoded('.tiff')[:60], **UNDECODABLE,
}


@pytest.mark.parametrize('preprocess', ['validation', 'torchvision'])
@pytest.mark.parametrize('kind', sorted(BROKEN))
def test_what_decoding_would_refuse_is_found(tmp_path, kind, preprocess):
    (tmp_path / 'x.JPEG').write_bytes(BROKEN[kind])
    preparation = PREPARATIONS[preprocess]()
    with pytest.raises(InputError) as info:
        preparation.decode(str(tmp_path / 'x.JPEG'))
    assert str(info.value).startswith('%s is not a readable image: ' % (tmp_path / 'x.JPEG'))
    assert examine(str(tmp_path / 'x.JPEG'), preparation.check).problem == str(info.value)


def test_only_the_decoder_finds_them():
    """So that they test something."""
    assert {check_complete(data) for data in UNDECODABLE.values()} == {None}


@pytest.mark.parametrize('preprocess', ['validation', 'torchvision'])
def test_what_can_be_decoded_is_not_refused(tmp_path, preprocess):
    preparation = PREPARATIONS[preprocess]()
    photo = photographs(1)[0]
    picture = Image.fromarray(photo[:, :, ::-1])
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, save in {
            'progressive.jpg': dict(progressive=True), 'turned.jpg': dict(exif=turned), 'x.png': {}, 'x.bmp': {},
            'x.tiff': {}, 'x.webp': {}, 'x.ppm': {}}.items():
        picture.save(str(tmp_path / name), **save)
    picture.convert('L').save(str(tmp_path / 'grey.jpg'))
    picture.convert('CMYK').save(str(tmp_path / 'cmyk.jpg'))
    picture.convert('P').save(str(tmp_path / 'palette.png'))
    (tmp_path / 'more behind it.jpg').write_bytes(JPEG + b'\0' * 99)
    (tmp_path / 'made.png').write_bytes(png())
    for name in os.listdir(str(tmp_path)):
        found = examine(str(tmp_path / name), preparation.check)
        assert found.problem == '' and found.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).digest()
        preparation.decode(str(tmp_path / name))


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    (tmp_path / 'folder').mkdir()
    for name in ('missing', 'pipe', 'folder'):
        assert name in examine(str(tmp_path / name)).problem


@pytest.fixture
def data(tmp_path):
    """40 photos in 10 classes."""
    write_split(tmp_path / 'data' / 'val', NUM_IMAGES)
    return tmp_path / 'data'


def paths_of(data):
    """The images in their order."""
    return sorted(str(path) for path in (data / 'val').glob('*/*'))


def run(launcher, root, data, weights, *flags):
    command = evaluation(launcher, data, weights, *flags)
    if launcher is alone:
        return run_main(*command[2:])
    return subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=120)


def refused(done):
    """The one line that says why."""
    assert done.returncode == 2 and 'Top1 Error' not in done.stdout, done.stderr
    lines = set(re.findall('main.py: error: (.*)', done.stderr))
    assert len(lines) == 1 and 'Traceback' not in done.stderr, done.stderr
    return lines.pop()


@once
@pytest.mark.parametrize('launcher', [alone, ranks(2)])
@pytest.mark.parametrize('outputs', [False, True])
def test_all_broken_images_are_named_before_the_first_step(root, tmp_path, data, weights_file, launcher, outputs):
    paths = paths_of(data)
    contents = [BROKEN[kind] for kind in ('truncated JPEG', 'a text', 'empty', 'truncated PNG')]
    for position, content in zip((0, 7, 38, 39), contents):
        with open(paths[position], 'wb') as f:
            f.write(content)
    flags = ['--journal', tmp_path / 'j', '--results', tmp_path / 'r.json', '--per-image', tmp_path / 'i.csv',
             '--save-adversarial', tmp_path / 's'] if outputs else []
    # a step of such an attack would take longer than the test may
    done = run(launcher, root, data, weights_file(), '--attack-iter', 10000000, '--batch', 4, *flags)
    line = refused(done)
    assert line.startswith('4 of the 40 images would stop the evaluation: %s is not' % paths[0])
    assert [path for path in paths if path in line] == [paths[i] for i in (0, 7, 38, 39)]
    assert sorted(os.listdir(str(tmp_path))) == ['data']


def test_many_broken_images_are_all_named(root, data, weights_file):
    paths = paths_of(data)
    broken = [UNDECODABLE[kind] for kind in sorted(UNDECODABLE)]
    for i, position in enumerate(range(3, 29, 2)):
        with open(paths[position], 'wb') as f:
            f.write(broken[i])
    line = refused(run(alone, root, data, weights_file(), '--batch', 3))
    assert line.startswith('13 of the 40 images')
    assert [path for path in paths if path in line] == paths[3:29:2]


@once
def test_the_digest_of_the_data_is_of_paths_labels_and_contents(root, data, tmp_path, weights_file):
    evaluate(root, ranks(2), data, weights_file(), '--attack-iter', 0, '--batch', 3, '--results', tmp_path / 'r.json')
    expected = hashlib.sha256()
    for path in paths_of(data):
        name = os.path.relpath(path, str(data))
        with open(path, 'rb') as f:
            expected.update(('%s\0%s\0%s\n' % (name, name.split(os.sep)[1][1:],
                                               hashlib.sha256(f.read()).hexdigest())).encode())
    assert json.loads((tmp_path / 'r.json').read_text())['data_sha256'] == expected.hexdigest()


@pytest.fixture
def begun(root, data, tmp_path, weights_file):
    """An evaluation that ended after 16 of the 40 images; returns what runs it again."""
    flags = ['--attack-iter', '0,2', '--batch', 4, '--journal', tmp_path / 'j', '--per-image', tmp_path / 'i.csv']
    evaluate(root, alone, data, weights_file(), *flags)
    lines = (tmp_path / 'j').read_bytes().splitlines(True)
    (tmp_path / 'j').write_bytes(b''.join(lines[:5]) + lines[5][:30])
    shutil.move(str(tmp_path / 'i.csv'), str(tmp_path / 'before.csv'))
    return lambda launcher=alone: run(launcher, root, data, weights_file(), *flags)


@once
def test_continued_when_only_later_images_changed(data, begun, tmp_path):
    """Under another number of ranks; the rows are those of before, but for the changed images."""
    paths = paths_of(data)
    for position, seed in [(16, 1), (39, 2)]:
        with open(paths[position], 'wb') as f:
            f.write(encoded('.jpg', seed))
    done = begun(ranks(2))
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if 'have changed since' in line]
    assert len(warned) == 1 and warned[0].endswith(': %s, %s' % (paths[16], paths[39])), done.stderr
    assert '16/40' in done.stderr
    before, after = [read_table(tmp_path / name) for name in ('before.csv', 'i.csv')]
    same = [a == b for a, b in zip(before, after) if int(a['index']) not in (16, 39)]
    assert len(after) == len(before) == 80 and np.mean(same) > 0.97
    # and once more: all is done now
    (tmp_path / 'i.csv').unlink()
    done = begun()
    assert done.returncode == 0 and 'changed' not in done.stderr


@once
def test_refused_when_an_image_changed_that_is_done(data, begun, tmp_path):
    paths = paths_of(data)
    before = (tmp_path / 'j').read_bytes()
    for position in (15, 30):
        with open(paths[position], 'wb') as f:
            f.write(encoded('.jpg', 1))
    line = refused(begun())
    assert 'the journal' in line and paths[15] in line and paths[30] not in line
    assert (tmp_path / 'j').read_bytes() == before


@once
def test_refused_when_an_image_is_gone_or_in_another_class(data, begun):
    paths = paths_of(data)
    moved = paths[39].replace('/c9/', '/c8/')
    shutil.move(paths[39], moved)
    assert 'paths_and_labels_sha256 is' in refused(begun())
    os.unlink(moved)
    assert 'num_images is 40 there and 39 here' in refused(begun())


@once
def test_a_later_image_that_broke_and_was_repaired_costs_nothing(data, begun):
    last = paths_of(data)[-1]
    with open(last, 'rb') as f:
        whole = f.read()
    with open(last, 'wb') as f:
        f.write(whole[:300])
    assert refused(begun()) == '%s is not a readable image: the JPEG is truncated' % last
    with open(last, 'wb') as f:
        f.write(whole)
    done = begun()
    assert done.returncode == 0 and '16/40' in done.stderr and 'changed' not in done.stderr, done.stderr
