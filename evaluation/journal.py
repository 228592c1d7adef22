"""The journal of an evaluation: what became of the images so far, on disk, so that a run that died can be continued.

A text file. Its first line says which evaluation it is of, each line after it holds the outcomes of some images in
a stage (plan.py), in the order of the validation set. Before each line stands the CRC-32 of the rest of it: a line
that a crash cut off is recognised and overwritten.

Each line of outcomes has a digest of every image that it is of, the first line of all images: a file that changed is
named, and matters where it is done already.
"""
import contextlib
import errno
import itertools
import json
import logging
import os
import re
import stat
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from evaluation.outcomes import OUTCOME, OUTCOME_FIELDS
from runtime.errors import InputError, RunError
from runtime.files import check_not_printed_to, sync_folder
from runtime.locks import InUse, is_locked, take_lock

log = logging.getLogger(__name__)

FORMAT = 'evaluation journal 3'
NOT_A_FILE = 'cannot use the journal %s: it is not a file'
IN_USE = 'the journal %s is in use by another evaluation: wait for it, or give another file'
DIGITS = 16  # of the 64 of an image's SHA-256: they tell a file that changed, nobody forges one


def check_usable(path: str, facts: Callable[[], Dict[str, Any]] = dict) -> bool:
    """Tell whether a journal was begun at `path`; none is made.

    facts: returns some facts of this evaluation; called where there is a journal, to compare with its own.
    Raises InputError where no journal can be written there, or what is there is none, in use, or of another evaluation.
    """
    problem = None
    try:
        os.close(os.open(path, os.O_RDWR))
    except FileNotFoundError as e:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            problem = e.strerror
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = os.strerror(errno.EACCES)
    except OSError as e:
        problem = e.strerror
    if problem:
        raise InputError('cannot use the journal %s: %s' % (path, problem))
    if not os.path.exists(path):
        return False
    if not os.path.isfile(path):
        raise InputError(NOT_A_FILE % path)
    check_not_printed_to(path, path)
    if is_locked(path):
        raise InputError(IN_USE % path)
    with open(path, 'rb') as f:
        first = f.readline()
    header = parsed(first)
    if header is None:
        if not re.match(rb'([0-9a-f]{8} |[0-9a-f]{0,7}$)', first):  # a crash may have cut it off
            raise InputError('%s is no journal: give another file' % path)
        return False
    ours = facts()
    if isinstance(header.get('facts'), dict):  # the rest of them is compared when it is known
        header['facts'] = {name: header['facts'].get(name) for name in ours}
    compare(path, header, json.loads(json.dumps(dict(format=FORMAT, facts=ours))))
    return True


def compare(path: str, there: Dict[str, Any], here: Dict[str, Any]) -> None:
    """Raise InputError where a journal, that begins with `there`, is of another evaluation than `here`."""
    if there.get('format') != FORMAT:
        raise InputError('%s does not begin as a journal of this version: give another file' % path)
    theirs, ours = there['facts'], here['facts']
    differing = ['%s is %s there and %s here' % (name, json.dumps(theirs.get(name)), json.dumps(ours.get(name)))
                 for name in sorted(set(theirs) | set(ours)) if theirs.get(name) != ours.get(name)]
    if differing:
        raise InputError('the journal %s is of another evaluation: %s; give another file, or the same command'
                         % (path, '; '.join(differing)))


class Journal:
    """Keeps the outcomes of an evaluation in a file, which one process at a time may have open.

    Args:
        path: of the file; it is created where there is none.
        facts: all that the outcomes depend on beside the files, {name: JSON value}. num_images: of the evaluation.
            paths, contents: of the images by position, and the SHA-256 of each file in hexadecimal digits.
    Raises:
        InputError: the file is another evaluation's or of images that have changed since, in use, damaged, no journal,
            or can't be written.
    """

    def __init__(self, path: str, facts: Dict[str, Any], *, num_images: int, paths: Sequence[str] = (),
                 contents: Sequence[str] = ()):
        self._path = path
        self._paths, self._images = paths, [digits[:DIGITS] for digits in contents]
        self.num_done = 0  # images of the first stage, from the first of the set on
        self.existed = False  # it has the header of this evaluation from an earlier run
        try:
            # not 'w' or 'a': what is there must be read first, and what a crash cut off be overwritten
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b')
        except OSError as e:
            raise self._unusable(e)
        try:
            self._begin(dict(format=FORMAT, facts=facts, images=self._images), num_images)
        except OSError as e:
            self.close()
            raise self._unusable(e)
        except InputError:
            self.close()
            raise

    def _unusable(self, error: OSError) -> InputError:
        return InputError('cannot use the journal %s: %s' % (self._path, error.strerror))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what a full disk did not take; that was reported
            self._file.close()

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _begin(self, header: Dict[str, Any], num_images: int) -> None:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise InputError(NOT_A_FILE % self._path)
        try:
            unlocked = take_lock(self._file.fileno())
        except InUse:
            raise InputError(IN_USE % self._path)
        if unlocked:
            log.warning('the journal %s can\'t be locked on its file system (%s): no other evaluation may use it '
                        'meanwhile, and none would be noticed', self._path, unlocked)
        end = self._check(header, num_images)
        self._file.truncate(end)
        if end == 0:
            self._write(header)
            sync_folder(self._path)

    def _check(self, header: Dict[str, Any], num_images: int) -> int:
        """Set `num_done`; return where the next line goes. Raises InputError for what is not to be continued."""
        end = 0
        at_begin: List[str] = []
        changed: List[str] = []
        for line, end in self._lines(header):
            if not self.existed:
                self.existed = True
                compare(self._path, line, json.loads(json.dumps(header)))
                at_begin = line['images']
            elif self._follows(line, num_images):
                changed += self._changed(line['images'], line['positions'])
                self.num_done += len(line['positions']) if line['stage'] == 0 else 0
            else:
                raise InputError('the journal %s is damaged before byte %d: image %s comes after %d images'
                                 % (self._path, end, ', '.join(map(str, line['positions'][:1])), self.num_done))
        if changed:
            raise InputError('the journal %s has what became of images that have changed since, %s: restore them, or '
                             'give another file to begin anew' % (self._path, ', '.join(dict.fromkeys(changed))))
        changed = self._changed(at_begin[self.num_done:], range(self.num_done, len(at_begin)))
        if changed:
            log.warning('%d images have changed since the journal %s was begun, and were not done yet, so the '
                        'evaluation goes on with them as they are now: %s', len(changed), self._path,
                        ', '.join(changed))
        return end

    def _follows(self, line: Dict[str, Any], num_images: int) -> bool:
        """Tell whether a line may stand here: the first stage has all images in their order, and the others, of which
        Course knows the images, come after it."""
        positions = line['positions']
        if line['stage'] == 0:
            return positions == list(range(self.num_done, self.num_done + len(positions))) and \
                positions[-1:] < [num_images]
        return self.num_done == num_images and all(0 <= i < num_images for i in positions)

    def _changed(self, then: Sequence[str], positions: Sequence[int]) -> List[str]:
        """Return the paths of images at these positions whose digests were others `then`."""
        return [self._paths[i] for i, digits in zip(positions, then) if digits != self._images[i]]

    def _lines(self, header: Optional[Dict[str, Any]] = None) -> Iterator[Tuple[Dict[str, Any], int]]:
        """Yield every whole line, with the position after it.

        A crash may have cut off the last one. If that is the first, too, it must be a beginning of the `header`:
        nobody else's file is written over.
        """
        self._file.seek(0)
        end = 0
        for raw in self._file:
            content = parsed(raw)
            if content is None:
                if end == 0 and not (header and line_of(header).startswith(raw)):
                    raise InputError('%s is no journal: give another file' % self._path)
                if self._file.read(1):
                    raise InputError('the journal %s is damaged at byte %d; what stands before can be continued when '
                                     'the rest is cut off' % (self._path, end))
                return
            end += len(raw)
            yield content, end

    def replay(self) -> Iterator[Tuple[int, List[int], np.ndarray]]:
        """Yield the outcomes so far, as `append` was given them: stage, positions, outcomes."""
        for line, _ in itertools.islice(self._lines(), 1, None):
            outcomes = np.zeros(np.shape(line[OUTCOME_FIELDS[0]]), OUTCOME)
            for name in OUTCOME_FIELDS:
                outcomes[name] = line[name]
            yield line['stage'], line['positions'], outcomes

    def append(self, stage: int, positions: Sequence[int], outcomes: np.ndarray) -> None:
        """Write the outcomes of the next images of a stage, (len(positions), number of its attacks) of OUTCOME. They
        are on the disk afterwards."""
        try:
            self._write(dict({name: outcomes[name].tolist() for name in OUTCOME_FIELDS}, stage=stage,
                             positions=list(positions), images=[self._images[i] for i in positions if self._images]))
        except OSError as e:
            raise RunError('cannot write the journal %s: %s; what it holds can be continued' % (self._path, e.strerror))

    def _write(self, content: Dict[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(line_of(content))
        self._file.flush()
        os.fsync(self._file.fileno())


def line_of(content: Dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(',', ':'), sort_keys=True).encode()
    return b'%08x %s\n' % (zlib.crc32(text), text)


def parsed(line: bytes) -> Optional[Dict[str, Any]]:
    """Return the content of a line; None where it isn't whole."""
    checksum, _, text = line[:-1].partition(b' ')
    if not line.endswith(b'\n') or checksum != b'%08x' % zlib.crc32(text):
        return None
    return json.loads(text.decode())
