"""One way out for messages: a line on stderr, in the name of the program; what all ranks would say, the chief says."""
import os
import subprocess
import sys

import pytest

PROGRAM = '''
import logging, logging.config, sys
from runtime.command_line import THIS_RANK, run_command
from runtime.errors import InputError, RunError

def command():
    log = logging.getLogger('evaluation.anything')
    log.debug('too much')
    log.info('a note')
    log.warning('two\\nlines of %s', 'a warning')
    log.warning('a message', extra=THIS_RANK)
    logging.getLogger('somebody.else').info('chatter')
    logging.getLogger('somebody.else').warning('their warning')
    logging.getLogger('somebody.else').error('their error')
    log.warning('a file', extra={'word': 'not scored'})
    logging.config.dictConfig({'version': 1})  # what a library may do: it disables all loggers that there are
    log.warning('lost')
    raise {'input': InputError('wrong\\ninput'), 'run': RunError('no disk'), 'bug': ValueError('a bug')}[sys.argv[1]]

run_command('prog.py', command, chief_speaks=sys.argv[2] == 'chief')
'''


def run(root, how, speaks='chief', **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('OMPI_', 'PMI_', 'PMIX_'))}
    return subprocess.run([sys.executable, '-c', PROGRAM, how, speaks], cwd=root, env=dict(clean, **environment),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=60)


@pytest.mark.parametrize('how, status, last', [
    ('input', 2, 'prog.py: error: wrong input'), ('run', 1, 'prog.py: failed: no disk'),
    ('bug', 1, 'prog.py: failed: ValueError: a bug')])
def test_every_message_is_a_line_of_the_program(root, how, status, last):
    done = run(root, how)
    assert done.returncode == status and not done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith('prog.py: ')]
    assert lines == ['prog.py: note: a note', 'prog.py: warning: two lines of a warning', 'prog.py: warning: a message',
                     'prog.py: warning: somebody.else: their warning', 'prog.py: warning: somebody.else: their error',
                     'prog.py: not scored: a file', last]
    assert (len(lines) == done.stderr.count('\n')) == (how != 'bug')  # a bug has a traceback


def test_the_chief_speaks_for_all(root):
    ranks = [run(root, 'run', OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_SIZE='2') for rank in (0, 1)]
    assert len(ranks[0].stderr.splitlines()) == 7
    lines = ranks[1].stderr.splitlines()
    assert lines[0].startswith('prog.py: warning: rank 1 on ') and lines[0].endswith(': a message')
    assert lines[1:3] == ['prog.py: warning: somebody.else: their ' + word for word in ('warning', 'error')]
    assert lines[3].startswith('prog.py: failed: rank 1 on ') and lines[3].endswith(': no disk') and len(lines) == 4


def test_a_program_of_which_each_machine_has_one_always_speaks(root):
    """Whatever the launcher says, as of a data server that mpirun started."""
    assert len(run(root, 'run', 'all', PMI_RANK='3', PMI_SIZE='4').stderr.splitlines()) == 7
