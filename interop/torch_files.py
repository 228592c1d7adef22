"""Checkpoint files of PyTorch: what is in them, read without running anything that is in them."""
import argparse
import os
import pathlib
import pickle
import re
import warnings
import zipfile
from typing import Any, Dict, List

import numpy as np
import torch

from runtime.errors import InputError
from runtime.files import require_file

# What trainers keep beside a network's tensors and what is data alone: their flags and figures
SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
HARMLESS: List[Any] = [
    argparse.Namespace, pathlib.PosixPath, SCALAR, ARRAY, np.ndarray, np.dtype,
    *[(function, 'numpy.%s.multiarray.%s' % (core, name)) for core in ('core', '_core')
      for function, name in ((SCALAR, 'scalar'), (ARRAY, '_reconstruct'))]] + [
    type(np.dtype(kind)) for kind in ('float64', 'float32', 'float16', 'int64', 'int32', 'uint8', 'bool')]

MAX_DEPTH = 4  # of dictionaries in each other
GET_AGAIN = 'is cut off or damaged (%s): get it again'

State = Dict[str, torch.Tensor]


def read_states(path: str) -> Dict[str, State]:
    """Read the tensors of a .pth, .pt or .safetensors file, whatever it is called.

    Returns:
        where a dictionary stands in the file ('' for the file's own, 'model.' for that under `model`) -> its tensors,
        {name: tensor}. All are on the CPU.
    Raises:
        runtime.errors.InputError: no such file, or one that is none, is damaged, or would have to run code.
    """
    require_file(path)
    try:
        with open(path, 'rb') as f:
            start, size = f.read(256), os.fstat(f.fileno()).st_size
    except IsADirectoryError:
        raise InputError('%s is a folder: give one file of it, .pth, .pt or .safetensors' % path)
    except OSError as e:
        raise InputError('cannot read %s: %s' % (path, e.strerror))
    if not size:
        raise InputError('%s is empty: get it again' % path)
    if start.startswith(b'version https://git-lfs'):
        raise InputError('%s is a pointer of git-lfs, not the file itself: get that by `git lfs pull`' % path)
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') < 1 << 32:
        content: Any = read_safetensors(path)
    elif start.startswith(b'PK') or start[:1] == b'\x80':
        content = read_pickle(path, start)
    elif is_text(start):
        raise InputError('%s is a text file, which begins with %r: give a .pth, .pt or .safetensors file'
                         % (path, start[:40].decode(errors='replace').split('\n')[0]))
    else:
        raise InputError('%s is no file of PyTorch or safetensors: it is damaged, or of another program' % path)
    states: Dict[str, State] = {}
    collect(content, '', states)
    if not states:
        raise InputError('%s holds no tensors by name: %s. Save a network\'s state_dict()' % (path, described(content)))
    return states


def is_text(start: bytes) -> bool:
    """Tell whether bytes are the beginning of a text."""
    return all(byte in b'\t\r\n' or 32 <= byte < 127 for byte in start)


def read_safetensors(path: str) -> State:
    """Read a .safetensors file: {name: tensor}."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError('%s needs the package safetensors: requirements/torch.txt has it' % path)
    try:
        return load_file(path)
    except Exception as e:  # a damaged file can end in many: all that happens here is reading it
        raise InputError('%s %s' % (path, GET_AGAIN % first_words(e)))


def read_pickle(path: str, start: bytes) -> Any:
    """Read what torch.save wrote, as far as it is data. start: the file's first bytes."""
    if start.startswith(b'PK'):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                damaged = archive.testzip()  # torch.load doesn't look at checksums
        except Exception as e:  # as above
            raise InputError('%s %s' % (path, GET_AGAIN % first_words(e)))
        if damaged:
            raise InputError('%s %s' % (path, GET_AGAIN % ('%s has another checksum' % damaged)))
        if any(name.endswith('.npy') for name in names):
            raise InputError('%s is an .npz file, which needs no conversion: give it to --load' % path)
        if any(name.endswith('/constants.pkl') for name in names):
            raise InputError('%s is a TorchScript program: save the state_dict() of torch.jit.load of it' % path)
        if not any(name.endswith('data.pkl') for name in names):
            raise InputError('%s is a zip archive that torch.save has not written: give the .pth or .pt in it' % path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        found = re.search(r'(?:GLOBAL|[Cc]lass|[Tt]ype) ([\w.]+\.[\w.]+)', str(e))
        if found or 'nsupported' in str(e):
            raise InputError('%s holds code, or objects that may run some (%s), which is not done: save its tensors '
                             'alone, network.state_dict(), where you trust it'
                             % (path, found.group(1) if found else first_words(e)))
        raise InputError('%s %s' % (path, GET_AGAIN % first_words(e)))
    except Exception as e:  # as above
        raise InputError('%s %s' % (path, GET_AGAIN % first_words(e)))


def first_words(error: Exception) -> str:
    """Return what an error says, in few words."""
    text = str(error).split('WeightsUnpickler error: ')[-1].strip()
    return '%s: %s' % (type(error).__name__, re.split(r'[\n.]', text)[0][:80]) if text else type(error).__name__


def collect(content: Any, place: str, states: Dict[str, State], depth: int = 0) -> None:
    """Add the dictionaries with tensors in `content` to `states`, by their places."""
    if not isinstance(content, dict) or depth > MAX_DEPTH:
        return
    tensors = {key: value if isinstance(value, torch.Tensor) else as_tensor(value) for key, value in content.items()
               if isinstance(key, str) and (isinstance(value, torch.Tensor) or is_numbers(value))}
    if tensors:
        states[place] = tensors
    for key, value in content.items():
        if isinstance(key, str):  # an optimizer's state has numbers
            collect(value, '%s%s.' % (place, key), states, depth + 1)


def as_tensor(value: Any) -> torch.Tensor:
    """Return an array, or a list of numbers, as a tensor."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder('=')))
    return torch.tensor(value, dtype=torch.float32)


def is_numbers(value: Any) -> bool:
    """Tell whether a value is an array, or a list of three numbers, as a mean or a standard deviation of colours is
    kept."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == 'f'
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(n, float) for n in value)


def described(content: Any) -> str:
    """Say what a file holds instead."""
    if not isinstance(content, dict):
        return 'it holds one object of the type %s' % type(content).__name__
    keys = [str(key) for key in content]
    return 'it holds %s' % (', '.join(keys[:6]) + (', ...' if len(keys) > 6 else '') if keys else 'nothing')
