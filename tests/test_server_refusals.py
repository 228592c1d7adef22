"""The data server on machines that refuse it something: locks, open files, processes, memory."""
import errno
import os
import signal
import subprocess

import pytest
from test_serve_data import BATCH, CLASSES, SIZE, Server, alive, data, files, flags, labels_of, launch, temporary

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


@pytest.fixture(scope='module')
def no_locks(tmp_path_factory):
    """Compile a library that makes locks fail as REFUSED_WITH says, for LD_PRELOAD."""
    folder = tmp_path_factory.mktemp('preload')
    (folder / 'locks.c').write_text(NO_LOCKS)
    library = str(folder / 'locks.so')
    subprocess.run(['cc', '-shared', '-fPIC', '-o', library, str(folder / 'locks.c'), '-ldl'], check=True)
    return library


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
