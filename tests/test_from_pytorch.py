"""tools.from_pytorch: which files of PyTorch become networks, and what is said of the others."""
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from lanes import once
from torch_world import ROOT, needs_torch, run_torch, run_worker

pytestmark = once
IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
OWN = [[0.5, 0.4, 0.3], [0.2, 0.25, 0.3]]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    return run_worker('from_pytorch_worker.py', folder, 'files', 'forms', 'dtypes', 'refused_states')


@needs_torch
@pytest.mark.parametrize('form, normalisation', [
    ('plain', IMAGENET), ('without counters', IMAGENET), ('state_dict', IMAGENET), ('model', IMAGENET),
    ('model.', IMAGENET), ('module.model.', IMAGENET), ('model.module.', IMAGENET), ('model.state_dict', IMAGENET),
    ('robustness', OWN), ('in float32 with a normalizer', OWN), ('a sequence', OWN), ('mu and sigma', OWN),
    ('of 255', OWN), ('beside the state', OWN), ('arrays', OWN),
    ('divided by 255', [[0] * 3, [1] * 3]), ('one number', [[0.5] * 3, [0.25] * 3]), ('averaged beside', IMAGENET),
    ('average alone', IMAGENET), ('twice the same', IMAGENET)])
def test_forms(results, form, normalisation):
    equal, mean, std, notes = results['forms'][form]
    assert equal
    np.testing.assert_allclose([mean, std], normalisation, rtol=1e-6)
    assert ('no mean and std' in ' '.join(notes)) == (normalisation is IMAGENET)


@needs_torch
def test_an_average_is_said_and_can_be_chosen(results):
    notes = ' '.join(results['forms']['averaged beside'][3])
    assert 'the network under model. is used' in notes and 'model_ema.module.' in notes
    assert results['forms']['averaged chosen'][0]


@needs_torch
@pytest.mark.parametrize('dtype, digits', [('float16', 1e-3), ('bfloat16', 1e-2), ('float64', 0)])
def test_other_dtypes_become_float32(results, dtype, digits):
    kind, difference, notes = results['dtypes']['torch.' + dtype]
    assert kind == 'float32' and difference <= digits
    assert '102 of 102 tensors are %s' % dtype in notes[0]


@needs_torch
@pytest.mark.parametrize('case, said', [
    ('vit_b_16', ['missing: conv1.weight', 'it has: class_token']),
    ('efficientnet_b0', ['missing: conv1.weight', 'it has: features.0.0.weight']),
    ('densenet121', ['missing: conv1.weight', 'features.conv0.weight']),
    ('mobilenet_v3_small', ['missing: conv1.weight']),
    ('another ResNeXt', ['Nearest is resnext50_32x4d', 'layer1.0.conv2.weight is (128, 8, 3, 3), not (128, 4, 3, 3)']),
    ('no fc', ['Nearest is resnet18: 2 missing: fc.weight, fc.bias']),
    ('no conv1', ['1 missing: module.conv1.weight']),
    ('another head', ['2 missing: backbone.fc.weight, backbone.fc.bias', '1 left over: head.weight']),
    ('one more', ['1 left over: layer1.0.se.weight']),
    ('biases', ['1 left over: conv1.bias']),
    ('shape', ['conv1.weight is (64, 1, 7, 7), not (64, 3, 7, 7)']),
    ('nan', ['not a number', 'bn1.bias']), ('variance', ['variances below 0', 'bn1.running_var']),
    ('beyond', ['beyond float32', 'bn1.bias']), ('integers', ['floating-point', 'fc.bias']),
    ('std 0', ['standard deviation that is not above 0', 'normalize.std']), ('std nan', ['not a number']),
    ('std next to 0', ['standard deviation that is not above 0']), ('two units', ['mean is of pixels in [0, 1]']),
    ('one class', ['1 outputs']), ('no class', ['0 outputs']),
    ('mean alone', ['no standard deviation', 'mean']), ('two means', ['a.mean, b.mean', 'differ']),
    ('a mean of another size', ['1 left over: normalize.mean']),
    ('two networks', ['several networks', 'student., teacher.', '--prefix']),
    ('counters alone', ['missing: conv1.weight']), ('no such prefix', ['--prefix model.', '(none)'])])
def test_what_does_not_fit_is_named(results, case, said):
    text = results['refused_states'][case]
    assert '\n' not in text and len(text) < 500
    for words in said:
        assert words in text


@needs_torch
@pytest.mark.parametrize('file, said', [
    ('zip', ''), ('legacy', ''), ('good.safetensors', ''), ('trainer', ''),
    ('half zip', 'cut off or damaged'), ('half legacy', 'cut off or damaged'), ('half good.safetensors', 'cut off'),
    ('short zip', 'cut off or damaged'), ('pickle', 'cut off or damaged'),
    ('code', 'holds code.*mkdir'), ('legacy code', 'holds code.*mkdir'), ('module', 'holds code.*torch.nn.modules'),
    ('script', 'TorchScript'), ('arrays.npz', 'give it to --load'), ('tensor', 'one object of the type Tensor'),
    ('list', 'one object of the type list'), ('nothing', 'it holds nothing'), ('optimizer', 'state, param_groups'),
    ('empty', 'is empty'), ('text', 'text file, which begins with \'epoch,loss\''), ('html', 'text file'),
    ('lfs', 'pointer of git-lfs'), ('noise', 'no file of PyTorch'), ('folder', 'is a folder'),
    ('nowhere', 'No such file')])
def test_files(results, file, said):
    text = results['files'][file]
    assert '\n' not in text and len(text) < 400 and (file in text or not text)
    assert re.search(said, text) and bool(text) == bool(said), text


@needs_torch
def test_nothing_is_run(results):
    assert results['files']['ran'] is False


@needs_torch
def test_command(tmp_path):
    flags, off, first, second = run_worker('from_pytorch_worker.py', tmp_path, 'whole')['whole']
    assert flags == "--arch resnet18 --load 'of timm.npz'" and off < 1e-4
    done = run_torch('-m', 'tools.from_pytorch', 'background.pth', '--out', 'F.npz', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == '--arch resnet18 --load F.npz\n', done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith('from_pytorch.py: ') for line in lines) and len(lines) == 3, lines
    assert 'float16' in lines[0] and 'ImageNet' in lines[1] and '--drop-background' in lines[2]
    with np.load(str(tmp_path / 'F.npz')) as f:
        assert f['linear/W'].shape == (512, 1001) and f['linear/b'][0] == np.float32(first)
    done = run_torch('-m', 'tools.from_pytorch', 'background.pth', '--out', 'G.npz', '--drop-background', cwd=tmp_path)
    with np.load(str(tmp_path / 'G.npz')) as f:
        assert f['linear/W'].shape == (512, 1000) and f['linear/b'][0] == np.float32(second)
    assert done.returncode == 0 and '--drop-background' not in done.stderr
    done = run_torch('-m', 'tools.from_pytorch', 'nowhere.pth', '--out', 'H.npz', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == 'from_pytorch.py: error: cannot read nowhere.pth: ' \
        'No such file or directory\n' and not done.stdout
    assert sorted(name for name in os.listdir(str(tmp_path)) if name.endswith('.npz')) == [
        'F.npz', 'G.npz', 'of timm.npz']


def run_in_lane(folder, tool, *arguments):
    """Run a tool in a folder and the lane's environment, where modules of the folder come first."""
    return subprocess.run([sys.executable, '-m', 'tools.' + tool] + list(arguments), cwd=str(folder),
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), ROOT])), timeout=60,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)


@pytest.mark.parametrize('arguments, said', [
    (['from_pytorch', 'x.pth'], '--out'), (['from_pytorch', 'x.pth', '--out', 'x.txt'], '.npz'),
    (['from_pytorch', 'x.pth', '--out', 'nowhere/x.npz'], 'there is no folder'),
    (['to_pytorch', 'x.npz', '--out', 'x.pt'], '--arch'),
    (['to_pytorch', 'x.npz', '--out', 'x.pt', '--arch', 'ResNet', '--image-size', '8'], '--image-size')])
def test_wrong_flags(arguments, said, tmp_path):
    done = run_in_lane(tmp_path, *arguments)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1, done.stderr


@pytest.mark.parametrize('arguments', [['from_pytorch', 'x.pth', '--out', 'x.npz'],
                                       ['to_pytorch', 'x.npz', '--arch', 'ResNet', '--out', 'x.pt']])
def test_without_pytorch_it_says_what_it_needs(tmp_path, arguments):
    (tmp_path / 'torch.py').write_text('raise ImportError("as where it is not installed")\n')
    done = run_in_lane(tmp_path, *arguments)
    assert done.returncode == 2 and 'requirements/torch.txt' in done.stderr and done.stderr.count('\n') == 1
