"""What a result depends on: the digest of the code changes with every file that a job runs."""
import os
import shutil

import pytest

from runtime.fingerprint import NOT_IN_JOBS, code_files, code_sha256


@pytest.fixture
def copy(root, tmp_path):
    """A copy of the sources that jobs run."""
    for path in code_files(root):
        target = tmp_path / os.path.relpath(path, root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, str(target))
    return tmp_path


def test_every_source_counts(copy, root):
    """Each of them, wherever it lies: Python of any folder but those that no job runs, and the sources of every op."""
    digest = code_sha256(str(copy))
    assert digest == code_sha256(root)
    files = code_files(str(copy))
    for path in files:
        with open(path, 'rb+') as f:
            content = f.read()
            f.write(b'\n')
            f.flush()
            assert code_sha256(str(copy)) != digest, path
            f.truncate(len(content))
    assert code_sha256(str(copy)) == digest


def tracked_sources(root):
    """The sources in the checkout, found in another way: by names alone, without the folders that git ignores."""
    found = set()
    for folder in [''] + [name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name))]:
        if folder in NOT_IN_JOBS or folder.startswith('.'):
            continue
        inside = os.walk(os.path.join(root, folder)) if folder else [(root, [], os.listdir(root))]
        found |= {os.path.join(where, name) for where, _, names in inside for name in names
                  if os.path.splitext(name)[1] in ('.py', '.c', '.cc', '.h', '.inc') and '/build/' not in where + '/'}
    return found


def test_nothing_is_left_out(root):
    files = code_files(root)
    assert set(files) == tracked_sources(root)
    names = {os.path.relpath(path, root) for path in files}
    assert {'main.py', 'adv_model.py', 'third_party/images.py', 'third_party/jpeg_region/src/jpeg_region.c'} <= names
    assert any(name.endswith('src/frozen_kernels.inc') for name in names)


def test_what_jobs_do_not_run_does_not_count(copy):
    digest = code_sha256(str(copy))
    for folder in ('tests', 'tools', 'benchmarks', 'examples', '.venv-tf2/lib', 'train_log/one'):
        (copy / folder).mkdir(parents=True)
        (copy / folder / 'more.py').write_text('1\n')
    (copy / 'README.md').write_text('words\n')
    for folder, file in [('venv', 'pyvenv.cfg'), ('imagenet/val/c', 'a.JPEG')]:  # an environment, and a data set
        (copy / folder / 'lib').mkdir(parents=True)
        (copy / folder / file).write_text('')
        (copy / folder / 'lib' / 'more.py').write_text('1\n')
    assert code_sha256(str(copy)) == digest


def test_new_and_moved_files_count(copy):
    digests = {code_sha256(str(copy))}
    (copy / 'more' / 'deep').mkdir(parents=True)
    (copy / 'more' / 'deep' / 'file.py').write_text('1\n')
    digests.add(code_sha256(str(copy)))
    (copy / 'more' / 'deep' / 'file.py').rename(copy / 'more' / 'file.py')
    digests.add(code_sha256(str(copy)))
    assert len(digests) == 3
