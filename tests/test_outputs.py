"""A job never writes over what it reads, nor over images, checkpoints and programs."""
import os

import numpy as np
import pytest

from main import parse_options
from runtime.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'data' / 'val' / 'c0').mkdir(parents=True)
    for name in ('data/val/c0/a.jpg', 'data/synsets.txt', 'data/val.txt', 'attack.py', 'model-2.index', 'photo.JPEG',
                 'model-2.data-00000-of-00001', 'list.txt', 'targets.csv', 'other.npz', 'net.pth', 'notes', 'r.json'):
        (tmp_path / name).write_text('what somebody made')
    np.savez(str(tmp_path / 'w.npz'), w=np.zeros(1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVAL = ['--eval', '--load', 'w.npz', '--data', 'data']


@pytest.mark.parametrize('flags, said', [
    (['--results', 'attack.py', '--attacker', 'attack:A'], 'would replace .*attack.py'),
    (['--per-image', 'attack.py', '--arch', 'attack:network'], 'would replace .*attack.py'),
    (['--results', 'data/synsets.txt'], '--results and one of --data are the same file'),
    (['--journal', 'data/val.txt'], '--journal and one of --data are the same file'),
    (['--results', 'list.txt', '--subset', './list.txt'], '--results and --subset are the same file'),
    (['--per-image', 'targets.csv', '--targets', 'targets.csv'], '--per-image and --targets are the same file'),
    (['--load', 'model-2', '--results', 'model-2.index'], '--results and --load are the same file'),
    (['--load', 'model-2', '--results', 'model-2.data-00000-of-00001'], '--results and --load are the same file'),
    (['--results', 'other.npz'], 'would replace .*other.npz'), (['--results', 'net.pth'], 'would replace .*net.pth'),
    (['--results', 'photo.JPEG'], 'would replace .*photo.JPEG')])
def test_what_an_evaluation_would_lose(folder, flags, said):
    with pytest.raises(InputError, match=said):
        parse_options(EVAL + flags)


def test_what_scoring_would_lose(folder):
    with pytest.raises(InputError, match='--prediction-file would replace .*a.jpg'):
        parse_options(['--load', 'w.npz', '--eval-directory', 'data/val', '--prediction-file', 'data/val/c0/a.jpg'])


@pytest.mark.parametrize('flags', [['--results', 'r.json'], ['--per-image', 'notes'], ['--results', 'new.py'],
                                   ['--results', 'data/r.json']])
def test_files_of_results_are_replaced(folder, flags):
    parse_options(EVAL + flags)
    assert os.path.exists('r.json')
