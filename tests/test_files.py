"""Outputs that can't be written as usual: mount points, other people's files, full disks, file systems that refuse
calls. What can be known is said before the work; what fails after it loses nothing."""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from evaluating import SMALL, read_table
from lanes import once
from photos import write_split

from runtime.files import WholeFile
from tools.mpi import read_figures

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason='needs root')

# What a program does with an output: it is checked before the work, and written after it
WRITE = '''
import os, sys
from runtime.files import WholeFile, check_writable
path = sys.argv[1]
{before}
try:
    check_writable(path)
    print('checked')
    with WholeFile(path, keep=True) as f:
        for i in range(20000):
            f.write('line %d\\n' % i)
        {meanwhile}
    print('written')
except Exception as e:
    sys.exit('%s: %s' % (type(e).__name__, e))
'''
EXPECTED = ''.join('line %d\n' % i for i in range(20000))
TO_NOBODY = 'os.setgroups([]); os.setgid(%d); os.setuid(%d)' % (NOBODY, NOBODY)


@pytest.fixture(scope='module')
def refusing(tmp_path_factory):
    """refusing(rename=errno.EBUSY, fsync_folder=..., ...) -> the environment of a process whose calls fail so."""
    compiler = shutil.which('cc') or shutil.which('gcc')
    if not compiler:
        pytest.skip('there is no C compiler')
    library = str(tmp_path_factory.mktemp('library') / 'refusing.so')
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'refusing.c')
    subprocess.run([compiler, '-shared', '-fPIC', '-o', library, source, '-ldl'], check=True)
    return lambda **calls: dict(LD_PRELOAD=library, REFUSE=' '.join(
        '%s=%d' % (call.replace('_', '-'), error) for call, error in calls.items()))


@pytest.fixture
def place():
    """A folder that any user may enter."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


def write(root, path, *, before='', meanwhile='', env=None, launcher=()):
    """Run WRITE; returns its CompletedProcess."""
    program = WRITE.format(before=before, meanwhile=meanwhile)
    return subprocess.run(list(launcher) + [sys.executable, '-c', program, path], cwd=root, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=dict(os.environ, **(env or {})),
                          timeout=60)


def read(path):
    with open(path) as f:
        return f.read()


def in_own_mounts(*commands):
    """What starts a program after commands of the shell, such as mounts, that nobody else sees."""
    if os.geteuid() != 0 or subprocess.run(['unshare', '-m', 'true'], stderr=subprocess.DEVNULL).returncode:
        pytest.skip('mounts need root, and unshare')
    return ['unshare', '-m', 'sh', '-c', ' && '.join(commands) + ' && exec "$@"', 'sh']


@pytest.mark.parametrize('times_as_long', [None, 0, 2])
@pytest.mark.parametrize('error', [errno.EBUSY, errno.EPERM, errno.EXDEV, errno.EACCES])
def test_what_cannot_be_replaced_is_written_over(root, refusing, place, error, times_as_long):
    path = os.path.join(place, 'r.json')
    if times_as_long is not None:
        with open(path, 'w') as f:
            f.write('old' + EXPECTED * times_as_long)
        number = os.stat(path).st_ino
    done = write(root, path, env=refusing(rename=error))
    assert done.returncode == 0, done.stderr
    assert read(path) == EXPECTED and os.listdir(place) == ['r.json']
    assert times_as_long is None or os.stat(path).st_ino == number


def test_a_mount_point(root, place):
    path, source = os.path.join(place, 'r.json'), os.path.join(place, 'source')
    for name in (path, source):
        open(name, 'w').close()
    done = write(root, path, launcher=in_own_mounts('mount --bind %s %s' % (source, path)))
    assert done.returncode == 0, done.stderr
    assert read(source) == EXPECTED and read(path) == ''
    done = write(root, path, launcher=in_own_mounts(
        'mount --bind %s %s' % (source, path), 'mount -o remount,bind,ro %s' % path))
    assert 'neither be written over nor replaced' in done.stderr and 'checked' not in done.stdout
    assert sorted(os.listdir(place)) == ['r.json', 'source']


@AS_ROOT
@pytest.mark.parametrize('mode, folder, writable', [
    (0o666, 0o1777, True), (0o644, 0o1777, False), (0o644, 0o777, True), (0o666, 0o755, True), (0o644, 0o755, False),
    (None, 0o1777, True), (None, 0o755, False)])
def test_somebody_elses_file(root, place, mode, folder, writable):
    """In a sticky folder only its owner may replace it; in one that is not ours nobody but its owner."""
    path = os.path.join(place, 'r.json')
    if mode:
        with open(path, 'w') as f:
            f.write('theirs')
        os.chmod(path, mode)
    os.chmod(place, folder)
    done = write(root, path, before=TO_NOBODY)
    if writable:
        assert done.returncode == 0 and read(path) == EXPECTED, done.stderr
    else:
        assert done.stderr.startswith('InputError: cannot write %s: ' % path) and done.stderr.count('\n') == 1
        assert 'checked' not in done.stdout and (not mode or read(path) == 'theirs')
    assert os.listdir(place) == (['r.json'] if mode or writable else [])


@AS_ROOT
def test_an_error_of_another_file_is_not_this_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match='no-such-file'), WholeFile(str(tmp_path / 'r.json')) as f:
        f.write('half')
        open(str(tmp_path / 'no-such-file'))
    assert os.listdir(str(tmp_path)) == []


def test_the_trial_leaves_a_file_as_it_is(root, place):
    """One that can be replaced alone: another user's."""
    path = os.path.join(place, 'r.json')
    with open(path, 'w') as f:
        f.write('theirs')
    os.chmod(path, 0o644)
    os.chmod(place, 0o777)
    before = os.stat(path)
    done = write(root, path, before=TO_NOBODY, meanwhile='raise ValueError("the work fails")')
    assert 'checked' in done.stdout and 'the work fails' in done.stderr
    assert os.stat(path) == before and read(path) == 'theirs' and os.listdir(place) == ['r.json']


@AS_ROOT
def test_somebody_elses_file_on_a_mount_point(root, place):
    """With a space in its name, as the kernel writes it otherwise."""
    path, source = os.path.join(place, 'r 1.json'), os.path.join(place, 'source')
    for name in (path, source):
        open(name, 'w').close()
    os.chmod(place, 0o777)
    done = write(root, path, before=TO_NOBODY,
                 launcher=in_own_mounts('mount --bind %s \'%s\'' % (source, path)))
    assert 'neither be written over nor replaced' in done.stderr and 'checked' not in done.stdout


@AS_ROOT
def test_a_read_only_file_system(root, place):
    done = write(root, os.path.join(place, 'disk', 'r.json'), launcher=in_own_mounts(
        'mkdir %s/disk' % place, 'mount -t tmpfs -o ro tmpfs %s/disk' % place))
    assert 'Read-only file system' in done.stderr and 'checked' not in done.stdout


@pytest.mark.parametrize('meanwhile, error, folder', [
    ('import shutil; shutil.rmtree(os.path.dirname(path))', 0, 'elsewhere'),
    ('os.unlink(path); os.mkdir(path)', 0, 'out'),
    ('os.unlink(path); os.mkdir(path)', errno.EBUSY, 'out')])
def test_what_fails_at_the_end_is_kept(root, refusing, place, meanwhile, error, folder):
    """The folder is gone, or a folder is in the way. It is kept beside it where that can be."""
    os.mkdir(os.path.join(place, 'elsewhere'))
    os.mkdir(os.path.join(place, 'out'))
    path = os.path.join(place, 'out', 'r.json')
    open(path, 'w').close()
    done = write(root, path, meanwhile=meanwhile,
                 env=dict(refusing(rename=error), TMPDIR=os.path.join(place, 'elsewhere')))
    assert done.returncode and 'written' not in done.stdout
    kept = re.search(r'its content is in (\S+)\n', done.stderr)
    assert kept and os.path.basename(os.path.dirname(kept.group(1))) == folder
    assert read(kept.group(1)) == EXPECTED, done.stderr


@pytest.mark.parametrize('error', [errno.EROFS, errno.EACCES])
def test_where_no_folder_takes_a_file_what_is_there_is_written_over(root, refusing, place, error):
    path = os.path.join(place, 'r.json')
    with open(path, 'w') as f:
        f.write('old')
    number = os.stat(path).st_ino
    done = write(root, path, env=refusing(create=error))
    assert done.returncode == 0, done.stderr
    assert read(path) == EXPECTED and os.stat(path).st_ino == number and os.listdir(place) == ['r.json']


def test_what_no_place_takes_is_printed(root, refusing, place):
    path = os.path.join(place, 'r.json')
    open(path, 'w').close()
    done = write(root, path, meanwhile='os.unlink(path)', env=refusing(create=errno.EROFS))
    assert done.returncode and done.stderr == \
        'InputError: cannot write %s: Read-only file system; its content is on stdout\n' % path
    assert done.stdout.startswith('checked\n') and done.stdout[len('checked\n'):] == EXPECTED


def test_a_folder_that_takes_no_new_file_is_found_before_the_work(root, refusing, place):
    """Where it takes folders, which are another right on some file servers."""
    done = write(root, os.path.join(place, 'r.json'), env=refusing(create=errno.EACCES))
    assert 'takes no new file (Permission denied)' in done.stderr and not done.stdout and not os.listdir(place)


@pytest.mark.parametrize('length', [201, 255])
def test_names_as_long_as_a_name_may_be(root, place, length):
    path = os.path.join(place, 'x' + 'é' * 100 + 'x' * (length - 201))
    done = write(root, path)
    assert done.returncode == 0 and read(path) == EXPECTED and len(os.listdir(place)) == 1, done.stderr
    done = write(root, path, meanwhile='os.unlink(path); os.mkdir(path)')
    assert re.search(r'its content is in \S+é', done.stderr), done.stderr


def test_a_name_that_is_too_long_is_found_before_the_work(root, place):
    done = write(root, os.path.join(place, 'x' * 256))
    assert 'File name too long' in done.stderr and not done.stdout and not os.listdir(place)


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
@pytest.mark.parametrize('named', ['/dev/%s', '{place}/log', '{place}/link'])
def test_what_is_printed_is_not_replaced(root, place, stream, named):
    path = os.path.join(place, 'log')
    with open(path, 'w') as f:
        f.write('precious\n')
    os.symlink('log', os.path.join(place, 'link'))
    named = named.format(place=place) if '{' in named else named % stream
    with open(path, 'a') as log:
        done = subprocess.run([sys.executable, '-c', WRITE.format(before='', meanwhile=''), named], cwd=root,
                              stdin=subprocess.DEVNULL, timeout=60, universal_newlines=True, **dict(
                                  dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE), **{stream: log}))
    said = done.stderr if stream == 'stdout' else read(path)
    assert done.returncode == 1 and 'cannot write %s: it is the file that %s goes to' % (named, stream) in said
    assert read(path).startswith('precious\n')


def test_what_is_kept_beside_it_takes_no_other_files_name(root, place):
    path = os.path.join(place, 'r.json')
    meanwhile = 'os.mkdir(path); open("%s.%d" % (path, os.getpid()), "w").close()'
    done = write(root, path, meanwhile=meanwhile)
    kept = re.search(r'its content is in (\S+)\n', done.stderr).group(1)
    assert read(kept) == EXPECTED and re.fullmatch(re.escape(path) + r'\.\d+\.1', kept)
    assert read(kept[:-2]) == '' and len(os.listdir(place)) == 3


@AS_ROOT
@pytest.mark.parametrize('space', ['4k', '100k'])
def test_a_folder_for_temporary_files_that_is_full_too(root, place, space):
    """The disk of both, one after the other; a third one takes it."""
    disks = [os.path.join(place, name) for name in ('out', 'temporary')]
    launcher = in_own_mounts(*['mkdir {0} && mount -t tmpfs -o size={1} tmpfs {0}'.format(d, space) for d in disks])
    done = write(root, os.path.join(disks[0], 'r.json'), launcher=launcher, env=dict(TMPDIR=disks[1]))
    kept = re.search(r'No space left on device; its content is in (\S+)\n', done.stderr).group(1)
    assert read(kept) == EXPECTED
    os.unlink(kept)


@pytest.mark.parametrize('error', [errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM])
def test_a_folder_need_not_be_synchronised(root, refusing, place, error):
    path = os.path.join(place, 'r.json')
    done = write(root, path, env=refusing(fsync_folder=error))
    assert done.returncode == 0 and read(path) == EXPECTED, done.stderr


def test_a_file_that_cannot_be_synchronised_is_an_error(root, refusing, place):
    path = os.path.join(place, 'r.json')
    done = write(root, path, env=dict(refusing(fsync_file=errno.EINVAL), TMPDIR=place))
    assert done.returncode and 'cannot write %s: Invalid argument' % path in done.stderr
    kept = re.search(r'its content is in (\S+)\n', done.stderr)
    assert kept and read(kept.group(1)) == EXPECTED and not os.path.exists(path)


INTERRUPTED = '''
import hashlib, sys
from runtime.command_line import end_on_interrupt, run_command
from runtime.files import WholeFile

def command():
    end_on_interrupt('prog.py')
    with WholeFile(sys.argv[1], keep=True) as f:
        f.write('x' * 100000)
        print('begun', flush=True)
        if sys.argv[2] == 'deaf':
            hashlib.pbkdf2_hmac('sha512', b'x', b'y', 10 ** 9)  # for an hour, and nothing of Python runs meanwhile
        sys.stdin.read()

run_command('prog.py', command)
'''


@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize('how', ['deaf', 'listening'])
def test_an_interrupt_leaves_no_temporary_file(root, place, number, status, how):
    path = os.path.join(place, 'r.json')
    with subprocess.Popen([sys.executable, '-c', INTERRUPTED, path, how], cwd=root, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout.readline() == b'begun\n' and len(os.listdir(place)) == 1
            process.send_signal(number)
            assert process.wait(30) == status
        finally:
            process.kill()
    assert os.listdir(place) == []


# --- the journal -----------------------------------------------------------------------------------------------------

JOURNAL = '''
import logging, sys
from evaluation.journal import Journal
logging.basicConfig(format='%(levelname)s: %(message)s')
try:
    j = Journal(sys.argv[1], {}, num_images=1)
    print('open', j.existed)
except Exception as e:
    sys.exit('%s: %s' % (type(e).__name__, e))
'''


def open_journal(root, path, env):
    return subprocess.run([sys.executable, '-c', JOURNAL, str(path)], cwd=root, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=dict(os.environ, **env), timeout=60)


@pytest.mark.parametrize('error', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_journal_where_there_are_no_locks(root, refusing, tmp_path, error):
    for existed in (False, True):
        done = open_journal(root, tmp_path / 'j', refusing(flock=error))
        assert done.stdout == 'open %s\n' % existed, done.stderr
        assert re.fullmatch(r'WARNING: the journal \S+ can\'t be locked .*no other evaluation may use it.*\n',
                            done.stderr)


@pytest.mark.parametrize('error, said', [(errno.EWOULDBLOCK, 'in use by another evaluation'),
                                         (errno.EIO, 'Input/output error')])
def test_a_lock_that_is_refused(root, refusing, tmp_path, error, said):
    done = open_journal(root, tmp_path / 'j', refusing(flock=error))
    assert done.returncode and done.stderr.startswith('InputError') and said in done.stderr


def test_a_journal_in_a_folder_that_is_not_synchronised(root, refusing, tmp_path):
    done = open_journal(root, tmp_path / 'j', refusing(fsync_folder=errno.EINVAL))
    assert done.stdout == 'open False\n' and done.stderr == ''


# --- whole jobs ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_split(folder / 'val', 12)
    return folder


def evaluation_of(data, weights, out):
    return ['--eval', '--load', weights, '--data', str(data), '--attack-iter', '0,2', *SMALL, '--results',
            str(out / 'r.json'), '--per-image', str(out / 'r.csv'), '--save-adversarial', str(out / 'saved')]


@once
def test_an_evaluation_on_a_file_system_that_refuses_much(python, refusing, data, weights_file, tmp_path):
    done = python('main.py', *evaluation_of(data, weights_file(), tmp_path), '--journal', tmp_path / 'j', env=refusing(
        rename=errno.EPERM, fsync_folder=errno.EINVAL, flock=errno.ENOSYS))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(read(str(tmp_path / 'r.json')))['attacks']) == 2
    assert len(read_table(tmp_path / 'r.csv')) == len(read_table(tmp_path / 'saved' / 'manifest.csv')) == 24
    assert done.stderr.count('main.py: warning: the journal') == 1
    assert sorted(os.listdir(str(tmp_path))) == ['j', 'r.csv', 'r.json', 'saved']


def kept_in(text):
    """{name of an output: where its content is}."""
    return {os.path.basename(path): kept for path, kept in
            re.findall(r'cannot write (\S+): No space left on device; its content is in (\S+)\n', text)}


@once
def test_an_evaluation_on_a_disk_that_is_full_at_the_end(root, data, weights_file, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    launcher = in_own_mounts('mount -t tmpfs -o size=4k tmpfs %s' % out)  # a file's first byte takes all of it
    flags = evaluation_of(data, weights_file(), out)[:-2]
    done = subprocess.run(launcher + [sys.executable, 'main.py'] + flags, cwd=root, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=200,
                          env=dict(os.environ, TMPDIR=str(tmp_path)))
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    kept = kept_in(done.stderr)
    figures = read_figures(done.stdout)
    assert set(kept) and figures['Top1 Error'] is not None, done.stderr
    if 'r.csv' in kept:
        assert len(read_table(kept['r.csv'])) == 24
    if 'r.json' in kept:
        assert json.loads(read(kept['r.json']))['attacks'][1]['top1_error'] == pytest.approx(figures['Top1 Error'])


@once
def test_scoring_on_a_full_disk(root, data, weights_file, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    launcher = in_own_mounts('mount -t tmpfs -o size=4k tmpfs %s' % out, 'head -c 4096 /dev/zero > %s/full' % out)
    done = subprocess.run(
        launcher + [sys.executable, 'main.py', '--eval-directory', str(data), '--load', weights_file(),
                    '--prediction-file', str(out / 'p.txt'), *SMALL], cwd=root, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=200, env=dict(os.environ, TMPDIR=str(tmp_path)))
    assert done.returncode == 1 and 'predictions are in' not in done.stdout, done.stderr
    assert len(read(kept_in(done.stderr)['p.txt']).splitlines()) == 12


def test_an_output_that_cannot_be_written_is_said_before_the_work(root, data, weights_file, tmp_path):
    open(str(tmp_path / 'r.json'), 'w').close()
    launcher = in_own_mounts('mount --bind %s %s' % ((tmp_path / 'r.json',) * 2),
                             'mount -o remount,bind,ro %s' % (tmp_path / 'r.json'))
    done = subprocess.run(launcher + [sys.executable, 'main.py'] + evaluation_of(data, weights_file(), tmp_path),
                          cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          timeout=200)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stdout == '', done.stderr
    assert 'r.json: it can neither be written over nor replaced' in done.stderr
