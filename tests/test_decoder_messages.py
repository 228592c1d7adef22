"""What libjpeg and libpng write about a file, without its name, is not shown; what others write is."""
import os
import struct
import subprocess
import sys
import zlib

import cv2
import jpeg_region
import numpy as np
import pytest
from test_images import encoded, photo, pil

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.skipif(not hasattr(jpeg_region, 'quiet_decoders'),
                                reason='jpeg_region is from before: run "make setup"')


def corrupt_jpeg():
    """Return a JPEG without a part of its codes, which libjpeg finds, and check_complete does not."""
    data = encoded(pil(photo(200, 300)), 'JPEG', quality=95)
    return data[:len(data) // 2] + data[len(data) * 3 // 4:]


def with_extra_bytes():
    data = encoded(pil(photo(200, 300)), 'JPEG', quality=95, progressive=True)
    scan = data.index(b'\xff\xda', data.index(b'\xff\xda') + 2)
    return data[:scan] + b'\0' * 7 + data[scan:]


def png_with_a_bad_profile():
    data = encoded(pil(), 'PNG')
    body = b'iCCP' + b'name\0\0' + zlib.compress(b'no profile' * 20)
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return data[:33] + chunk + data[33:]


FILES = {'missing-codes.jpg': corrupt_jpeg, 'extra-bytes.jpg': with_extra_bytes, 'profile.png': png_with_a_bad_profile}


@pytest.mark.parametrize('name', sorted(FILES))
def test_nothing_without_the_files_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    ours = 'import sys; from third_party.images import decode; print(decode(sys.argv[1]).mean())'
    plain = 'import cv2, sys; print(cv2.imread(sys.argv[1]).mean())'
    runs = [subprocess.run([sys.executable, '-c', code, str(path)], cwd=ROOT, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) for code in (ours, plain)]
    assert runs[1].stderr != b'', 'the library says nothing about this file, so that this tests nothing'
    assert runs[0].returncode == 0 and runs[0].stderr == b'' and runs[0].stdout == runs[1].stdout


OTHERS = r'''
import ctypes, sys, threading
from third_party.images import decode
libc = ctypes.CDLL(None)
write = lambda text: libc.fputs(text, ctypes.c_void_p.in_dll(libc, 'stderr'))
stop = threading.Event()

def decode_all():
    while not stop.is_set():
        decode(sys.argv[1])

threads = [threading.Thread(target=decode_all) for _ in range(3)]
for thread in threads:
    thread.start()
for i in range(2000):
    write(b'line %d\n' % i)
stop.set()
for thread in threads:
    thread.join()
write(b'after\n')
print('python', file=sys.stderr)
'''


def test_what_other_threads_write_is_shown(tmp_path):
    """TensorFlow's messages, in an evaluation that decodes in threads."""
    path = tmp_path / 'bad.jpg'
    path.write_bytes(corrupt_jpeg())
    run = subprocess.run([sys.executable, '-c', OTHERS, str(path)], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert run.returncode == 0
    assert run.stderr.splitlines() == ['line %d' % i for i in range(2000)] + ['after', 'python']


def test_the_server_is_quiet(tmp_path):
    for i, make in enumerate([corrupt_jpeg, with_extra_bytes, png_with_a_bad_profile]):
        folder = tmp_path / 'train' / str(i)
        folder.mkdir(parents=True)
        (folder / 'x').write_bytes(make())
    run = subprocess.run([sys.executable, ROOT + '/third_party/serve-data.py', '--data', str(tmp_path), '--batch', '4',
                          '--image-size', '32', '--workers', '2', '--benchmark', '--benchmark-seconds', '0.5'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.returncode == 0 and run.stderr == b''


def test_an_error_within_ends_the_silence(capfd):
    with pytest.raises(ZeroDivisionError):
        with jpeg_region.quiet_decoders():
            1 // 0
    cv2.imdecode(np.frombuffer(corrupt_jpeg(), np.uint8), cv2.IMREAD_COLOR)
    assert 'Corrupt JPEG' in capfd.readouterr().err
