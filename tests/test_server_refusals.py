"""The data server, and an evaluation, on machines that refuse something: locks, open files, processes, memory."""
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from lanes import once
from photos import write_split
from test_serve_data import (
    BATCH,
    CLASSES,
    SIZE,
    Server,
    alive,
    data,
    files,
    flags,
    labels_of,
    launch,
    temporary,
    wait_until,
)

__all__ = ['data', 'temporary']  # fixtures

NO_LOCKS = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
static int refused(void) { errno = atoi(getenv("REFUSED_WITH")); return -1; }
int flock(int fd, int operation) { (void)fd; (void)operation; return refused(); }
static int other(const char *name, int fd, int command, void *argument) {
  if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) return refused();
  return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(fd, command, argument);
}
#define FORWARD(name) int name(int fd, int command, ...) { \
  va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \
  return other(#name, fd, command, argument); }
FORWARD(fcntl)
FORWARD(fcntl64)
'''


# The call CALL fails from its AFTER-th time in a process on.
REFUSES = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <pthread.h>
#include <sys/socket.h>
static int count;
static int refused(const char *name) {
  return strcmp(getenv("CALL"), name) == 0 && ++count >= atoi(getenv("AFTER")) ? atoi(getenv("REFUSED_WITH")) : 0;
}
#define ORIGINAL(result, name, ...) ((result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
pid_t fork(void) {
  errno = refused("fork");
  return errno ? -1 : ORIGINAL(pid_t, fork, void)();
}
int pipe2(int *ends, int flags) {
  errno = refused("pipe2");
  return errno ? -1 : ORIGINAL(int, pipe2, int *, int)(ends, flags);
}
int socket(int domain, int type, int protocol) {
  errno = refused("socket");
  return errno ? -1 : ORIGINAL(int, socket, int, int, int)(domain, type, protocol);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument) {
  int number = refused("pthread_create");
  return number ? number : ORIGINAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)
      (thread, attributes, function, argument);
}
'''


def compiled(folder, text):
    (folder / 'preload.c').write_text(text)
    library = str(folder / 'preload.so')
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, str(folder / 'preload.c'), '-ldl'], check=True)
    return library


@pytest.fixture(scope='module')
def no_locks(tmp_path_factory):
    """Compile a library that makes locks fail as REFUSED_WITH says, for LD_PRELOAD."""
    return compiled(tmp_path_factory.mktemp('locks'), NO_LOCKS)


@pytest.fixture(scope='module')
def refuses(tmp_path_factory):
    """Compile a library that makes a call fail, for LD_PRELOAD."""
    return compiled(tmp_path_factory.mktemp('refuses'), REFUSES)


# ---- locks

@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(temporary, data, no_locks, monkeypatch, number):
    monkeypatch.setenv('LD_PRELOAD', no_locks)
    monkeypatch.setenv('REFUSED_WITH', str(number))
    with Server(temporary, flags(data)) as server:
        line = server.error_line()
        assert line.startswith('serve-data.py: warning: ') and os.strerror(number) in line
        assert server.endpoint in line and 'nobody else' in line and 'another server' not in line
        monkeypatch.undo()
        receiver = server.receiver()
        labels = labels_of(receiver, 4 * CLASSES // BATCH)  # each image once an epoch, without locks between workers
        receiver.close()
        assert set(labels) == set(range(CLASSES))
        _, status, errors = server.stop()
        assert status == 0 and errors == '' and files(server.endpoint) == []


def test_fake_and_benchmark_without_locks(temporary, data, no_locks, monkeypatch):
    monkeypatch.setenv('LD_PRELOAD', no_locks)
    monkeypatch.setenv('REFUSED_WITH', str(errno.ENOSYS))
    process = launch(temporary, flags(data, '--benchmark', '--benchmark-seconds', 0.2))
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and 'images/s' in output and errors.count('\n') == 1
    with Server(temporary, ['--fake', '--batch', BATCH, '--image-size', SIZE]) as server:
        assert 'nobody else' in server.error_line()


def test_a_real_rival_is_called_one(temporary, data, no_locks, monkeypatch):
    with Server(temporary, flags(data)) as server:
        monkeypatch.setenv('LD_PRELOAD', no_locks)
        monkeypatch.setenv('REFUSED_WITH', str(errno.EWOULDBLOCK))
        other = launch(temporary, flags(data))
        _, errors = other.communicate(timeout=10)
        assert other.returncode == 2 and 'another server (process %d) serves' % server.pid in errors
        assert errors.count('\n') == 1 and server.stop(signal.SIGTERM)[1] == 0
    assert not alive(other.pid)


# ---- open files, processes, memory

def left_behind(temporary):
    """Return the processes that run in the test's directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if os.readlink('/proc/%s/cwd' % pid) == temporary and alive(int(pid)):
                found.append(pid)
        except OSError:
            pass
    return found


def check_refused(temporary, process, *words):
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 2, errors
    assert errors.startswith('serve-data.py: error: ') and errors.count('\n') == 1
    assert all(word in errors for word in words), errors
    assert left_behind(temporary) == []
    for folder, _, names in os.walk(temporary):
        assert [name for name in names if name.startswith('batch')] == []


def limited(which, number):
    return lambda: resource.setrlimit(which, (number, number))


@once
@pytest.mark.parametrize('number', [32, 24, 20, 18, 16, 14, 12])
@pytest.mark.parametrize('what', ['serve', 'benchmark', 'fake'])
def test_too_few_open_files(temporary, data, number, what):
    arguments = flags(data, workers=64)
    if what == 'benchmark':
        arguments, number = arguments + ['--benchmark'], min(number, 30)
    elif what == 'fake':
        arguments, number = ['--fake'], min(number, 15)
    process = launch(temporary, arguments, preexec_fn=limited(resource.RLIMIT_NOFILE, number))
    check_refused(temporary, process, os.strerror(errno.EMFILE), '%d open files' % number, 'ulimit -n')


def test_a_soft_limit_can_be_raised(temporary, data):
    process = launch(temporary, flags(data, workers=64), preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_NOFILE, (40, 400)))
    check_refused(temporary, process, '40 open files', 'can be raised to 400')


@pytest.mark.parametrize('number', [120, 200, 230])
def test_too_little_memory(temporary, data, number):
    process = launch(temporary, flags(data), preexec_fn=limited(resource.RLIMIT_AS, number << 20))
    seen = process.stdout.readline()
    if seen:
        process.kill()
        process.communicate()
        pytest.skip('%d MB are enough here' % number)
    check_refused(temporary, process, '%d KiB of memory' % (number << 10), 'ulimit -v')


@once
@pytest.mark.parametrize('call, number, words', [
    ('fork', errno.EAGAIN, 'ulimit -u'), ('fork', errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ('pipe2', errno.ENFILE, 'fs.file-max'), ('pipe2', errno.EMFILE, 'ulimit -n'),
    ('socket', errno.EMFILE, 'ulimit -n'), ('socket', errno.ENFILE, 'fs.file-max'),
    ('pthread_create', errno.EAGAIN, 'ulimit -u')])
@pytest.mark.parametrize('after', [1, 2, 4])
def test_a_call_that_the_system_refuses(temporary, data, refuses, monkeypatch, call, number, words, after):
    for name, value in (('LD_PRELOAD', refuses), ('CALL', call), ('AFTER', after), ('REFUSED_WITH', number)):
        monkeypatch.setenv(name, str(value))
    process = launch(temporary, flags(data, workers=4))
    if call in ('socket', 'pthread_create') and after > 1:  # each process needs but a few
        time.sleep(2)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate()
            return
    check_refused(temporary, process, words, 'the limit is')


def test_processes_of_a_cgroup(temporary, data):
    folder = '/sys/fs/cgroup/pids/test-%d' % os.getpid()
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip('no cgroup of processes can be made here')
    try:
        with open(folder + '/pids.max', 'w') as f:
            f.write('7')

        def enter():
            with open(folder + '/cgroup.procs', 'w') as f:
                f.write(str(os.getpid()))
        check_refused(temporary, launch(temporary, flags(data, workers=6), preexec_fn=enter), '7 in this container')
    finally:
        os.rmdir(folder)


def test_a_worker_that_cannot_be_replaced_now_is_replaced_later(temporary, data):
    """A server that works is not ended by what is refused for a moment."""
    with Server(temporary, flags(data)) as server:
        receiver = server.receiver()
        next(receiver)
        open_files = len(os.listdir('/proc/%d/fd' % server.pid))
        old = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (open_files - 3, old[1]))
        os.kill(server.children()[1], signal.SIGKILL)
        assert 'was killed by signal 9' in server.error_line()
        line = server.error_line()
        assert 'cannot start worker 0 again: Too many open files' in line and 'ulimit -n' in line
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, old)
        wait_until(lambda: len(server.children()) == 3, 10)
        labels_of(receiver, 20)
        receiver.close()
        assert server.stop()[1] == 0


@pytest.mark.parametrize('decoder, ending', [('images', 'png'), ('pillow', 'png'), ('pillow', 'tiff')])
def test_an_image_that_memory_does_not_suffice_for(tmp_path, decoder, ending):
    """It isn't broken: what decodes many tries again, and ends as a run that failed."""
    path = str(tmp_path / ('large.' + ending))
    cv2.imwrite(path, np.zeros((9000, 9000), np.uint8))
    code = ('import resource, sys; from third_party.%s import decode; size = int(open("/proc/self/statm").read()'
            '.split()[0]) * 4096 + (100 << 20); resource.setrlimit(resource.RLIMIT_AS, (size, size))\n'
            'from runtime.limits import retried\n'
            'tries = []\n'
            'try: retried(lambda: tries.append(1) or decode(sys.argv[1]), [0, 0])\n'
            'except RuntimeError as e: print(e if len(tries) == 3 else tries)' % decoder)
    run = subprocess.run([sys.executable, '-c', code, path], stdout=subprocess.PIPE, universal_newlines=True,
                         cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert re.match(r'cannot decode .*large\.\w+: Cannot allocate memory: the limit is \d+ KiB .*ulimit -v', run.stdout)


AS_NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--inh-caps=+dac_override',
             '--ambient-caps=+dac_override']


@pytest.mark.parametrize('limit, said', [
    ('u 8', r'main.py: error: .*: the limit is 8 processes and threads of yours \(ulimit -u\)'),
    ('v 600000', r'main.py: error: .*: the limit is .*600000 KiB of memory in a process \(ulimit -v\)')])
def test_what_an_evaluation_is_refused(root, tmp_path, weights_file, limit, said):
    write_split(tmp_path / 'val', 10)
    if limit.startswith('u') and (not shutil.which('setpriv') or subprocess.call(AS_NOBODY + ['true'])):
        pytest.skip('needs root and setpriv: root itself has no such limit')
    command = ['bash', '-c', 'ulimit -%s; exec "$0" "$@"' % limit, sys.executable, os.path.join(root, 'main.py'),
               '--eval', '--load', weights_file(), '-d', '14', '--image-size', '32', '--data', str(tmp_path)]
    # NumPy's library takes a thread a core when it is loaded, and dies without in its own way
    done = subprocess.run((AS_NOBODY if limit.startswith('u') else []) + command, stdout=subprocess.PIPE, cwd=root,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, universal_newlines=True, timeout=100,
                          env=dict(os.environ, OPENBLAS_NUM_THREADS='1'))
    lines = [line for line in done.stderr.splitlines() if 'warning: TensorFlow needs more memory' not in line]
    assert done.returncode == 2 and len(lines) == 1 and re.match(said, lines[0]), done.stderr


def test_too_little_memory_for_tensorflow_is_said():
    code = ('import resource; from runtime.limits import mistaken_memory; before = mistaken_memory()\n'
            'resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\nprint(before, *mistaken_memory())')
    run = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, universal_newlines=True,
                         cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert re.match(r'\[\] TensorFlow needs more memory .* 1048576 KiB .*\(ulimit -v\)', run.stdout)
