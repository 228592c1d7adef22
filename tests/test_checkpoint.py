"""Reading checkpoints, and refusing those that are damaged or of another network."""
import glob
import io
import os
import pickle
import zipfile

from runtime.compat import tf  # before tensorpack

import helpers
import numpy as np
import pytest
from helpers import NumpyNetwork
from lanes import once
from tensorpack.tfutils.tower import TrainTowerContext

import checkpoint
import fitting
from adv_model import AdversarialModel, NoOpAttacker
from inference import load_classifier
from kernels.mode import Mode
from nets import Network
from runtime.errors import InputError
from runtime.hardware import session_config  # before tensorpack


def refusal(function, *arguments, **options):
    """The text of the InputError, which is one line."""
    with pytest.raises(InputError) as e:
        function(*arguments, **options)
    assert str(e.value) and '\n' not in str(e.value)
    return str(e.value)


def assert_same(weights, expected):
    assert set(weights) == set(expected)
    for name, value in weights.items():
        assert isinstance(value, np.ndarray) and (value == expected[name]).all(), name


# --- reading ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('suffix', ['', ':0'])
def test_npz(tmp_path, save, suffix):
    expected = {'conv0/W': np.arange(6, dtype=np.float32).reshape(1, 2, 3), 'linear/b': np.zeros(0, np.float32)}
    path = str(tmp_path / 'weights.npz')
    save(path, **{name + suffix: value for name, value in expected.items()})
    assert_same(checkpoint.read_checkpoint(path), expected)


def test_classes_are_counted_without_reading_all(tmp_path, weights_of, weights_file):
    """Where that is possible; what can't be read is said later, of all of it."""
    suffixed, torn, text = [str(tmp_path / name) for name in ('suffixed.npz', 'torn.npz', 'text.npz')]
    np.savez(suffixed, **{name + ':0': value for name, value in weights_of(classes=7).items()})
    with open(suffixed, 'rb') as f, open(torn, 'wb') as part:
        part.write(f.read(1000))
    with open(text, 'w') as f:
        f.write('no archive')
    for path, arch, classes in [(weights_file(), 'ResNet', 10), (suffixed, 'ResNet', 7), (torn, 'ResNet', None),
                                (text, 'ResNet', None), (weights_file(), 'some.module:function', None),
                                (str(tmp_path / 'model-5'), 'ResNet', None)]:
        assert checkpoint.classes_in(path, arch) == classes, path


@pytest.mark.parametrize('dtype', [np.float16, np.float64])
def test_weights_of_another_precision_become_float32(dtype, weights_of, caplog):
    network, expected = Network('ResNet', 14, 10), weights_of('ResNet')
    with caplog.at_level('INFO'):
        fitted = fitting.fit_checkpoint({n: v.astype(dtype) for n, v in expected.items()}, network, 'some.npz')
    said = 'checkpoint some.npz has float16 numbers: they are converted to float32'
    assert caplog.messages == ([said] if dtype == np.float16 else [])
    for name, value in fitted.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4)


def test_variables_of_training_are_left_out(tmp_path):
    path = str(tmp_path / 'weights.npz')
    rate = np.float32(0.1)
    np.savez(path, **{'conv0/W': np.ones(3), 'conv0/W/Momentum': np.ones(3), 'conv0/bn/mean/EMA': np.ones(2),
                      'global_step:0': np.int64(3), 'learning_rate:0': rate, 'EMA/cost': rate,
                      'EMA/cost/biased': rate, 'EMA/cost/local_step': rate})
    assert set(checkpoint.read_checkpoint(path)) == {'conv0/W', 'conv0/bn/mean/EMA'}


@pytest.fixture(scope='module')
def trained(tmp_path_factory, weights_of):
    """A checkpoint as training writes it: with the optimizer's variables and the smoothed summaries."""
    weights = weights_of('ResNet')
    prefix = str(tmp_path_factory.mktemp('train_log') / 'model-7')
    with tf.Graph().as_default():
        model = AdversarialModel(Network('ResNet', 14, 10), NoOpAttacker(), 32, mode=Mode(), attack_mode=Mode())
        with TrainTowerContext(''):
            cost = model.build_graph(*[tf.placeholder(s.dtype, s.shape) for s in model.inputs()])
        model.optimizer().minimize(cost, tf.train.get_or_create_global_step())
        variables = {v.op.name: v for v in tf.global_variables()}
        assert len(variables) > len(weights) + 30
        with tf.Session(config=session_config()) as session:
            session.run(tf.global_variables_initializer())
            for name, value in weights.items():
                variables[name].load(value, session)
            tf.train.Saver().save(session, prefix)
    return prefix, weights


@pytest.mark.parametrize('ending', ['', '.index', '.data-00000-of-00001', '.meta'])
def test_checkpoint_of_training(trained, ending):
    prefix, weights = trained
    assert os.path.isfile(prefix + '.index')
    assert_same(checkpoint.read_checkpoint(prefix + ending), weights)


def test_classifier_from_a_checkpoint_of_training(trained):
    prefix, weights = trained
    clf, pixels = load_classifier(prefix, arch='ResNet', depth=14, image_size=32), helpers.images(3, 32)
    np.testing.assert_allclose(clf.logits(pixels), NumpyNetwork('ResNet', 14, weights).logits(pixels), atol=1e-4)
    clf.close()


# --- files that can't be read ----------------------------------------------------------------------------------------

@pytest.fixture
def bad_file(tmp_path):
    """bad_file(bytes) -> the path of an .npz with these; asserts that it is refused by name, with what to do."""
    def check(content):
        path = str(tmp_path / 'bad.npz')
        with open(path, 'wb') as f:
            f.write(content)
        text = refusal(load_classifier, path, arch='ResNet', depth=14)
        assert path in text and 'can\'t be read' in text
        return text
    return check


def npz_bytes(save=np.savez, **arrays):
    stream = io.BytesIO()
    noise = np.random.RandomState(0).standard_normal((7, 7, 3, 4))
    save(stream, **(arrays or {'conv0/W': noise, 'linear/b': np.ones(9)}))
    return stream.getvalue()


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('kept', [0, 1, 4, 30, 200, 0.3, 0.5, 0.9, -100, -22, -1])
def test_truncated_npz(bad_file, kept, save):
    content = npz_bytes(save)
    bad_file(content[:int(len(content) * kept) if isinstance(kept, float) else kept])


@pytest.mark.parametrize('content', [
    b'This is text.\n' * 100, b'\x00' * 5000, b'\x80\x04K\x01.', b'\x93NUMPY', b'PK\x03\x04' + b'\xff' * 300],
    ids=['text', 'zeros', 'pickle', 'npy header', 'zip header'])
def test_not_an_npz(bad_file, content):
    bad_file(content)


def test_one_array_is_not_an_npz(bad_file):
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 4)))
    bad_file(stream.getvalue())


def test_zip_of_other_files(tmp_path):
    path = str(tmp_path / 'photos.npz')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    refusal(load_classifier, path, arch='ResNet', depth=14)


REFUSE_ALL = '''
import sys
from runtime.command_line import run_command
from runtime.errors import InputError
from inference import load_classifier

def command():
    for path in sys.argv[2:]:
        try:
            load_classifier(path)
        except InputError:
            pass
        else:
            return 1
    load_classifier(sys.argv[1])

run_command('prog', command)
'''


def test_user_sees_one_line(tmp_path, python):
    """Not what is left of a file object, either."""
    content = npz_bytes()
    paths = []
    for kept in 0, 10, 400, len(content) // 2, len(content) - 1:
        paths.append(str(tmp_path / ('%d.npz' % kept)))
        with open(paths[-1], 'wb') as f:
            f.write(content[:kept])
    process = python('-c', REFUSE_ALL, *paths)
    assert process.returncode == 2
    assert process.stderr.startswith('prog: error: checkpoint %s ' % paths[0])
    assert process.stderr.count('\n') == 1 and process.stdout == ''


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_any_damaged_byte_is_noticed_or_harmless(tmp_path, save):
    """Never another exception than InputError, and never other numbers."""
    expected = {'conv0/W': np.random.RandomState(0).standard_normal((2, 3)).astype(np.float32), 'linear/b': np.ones(2)}
    content, path = npz_bytes(save, **expected), str(tmp_path / 'bad.npz')
    refused = 0
    for i in range(len(content)):
        for flipped in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[i] ^= flipped
            with open(path, 'wb') as f:
                f.write(damaged)
            try:
                weights = checkpoint.read_checkpoint(path)
            except InputError as e:
                assert '\n' not in str(e)
                refused += 1
                continue
            for name, value in weights.items():
                if name in expected:  # a name may be damaged: then it is missing from the network's
                    assert np.shape(value) == expected[name].shape and (value == expected[name]).all()
    assert refused > len(content)


class Payload:
    """Writes a file when it gets unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_nothing_is_unpickled(bad_file, tmp_path):
    marker = str(tmp_path / 'marker')
    objects = np.empty(1, object)
    objects[0] = Payload(marker)
    archive = npz_bytes(**{'linear/b': objects})
    with np.load(io.BytesIO(archive), allow_pickle=True) as f:
        f['linear/b'][0].close()
    assert os.path.exists(marker), 'the payload works'
    os.remove(marker)
    bad_file(archive)
    bad_file(pickle.dumps(Payload(marker)))
    assert not os.path.exists(marker)


def test_no_such_file(tmp_path):
    for name in 'missing.npz', 'missing', 'model-10.index':
        path = str(tmp_path / name)
        assert path in refusal(load_classifier, path)
    (tmp_path / 'folder.npz').mkdir()
    for path in str(tmp_path / 'folder.npz'), str(tmp_path):
        assert path in refusal(load_classifier, path)


@pytest.mark.parametrize('ending', ['.pth', '.pt', '.safetensors', '.pth.tar'])
def test_a_file_of_pytorch(tmp_path, ending):
    path = tmp_path / ('net' + ending)
    path.write_bytes(b'any')
    assert 'python -m tools.from_pytorch' in refusal(load_classifier, str(path))


@pytest.mark.parametrize('damage', ['no data', 'short data', 'short index', 'empty index', 'text index'])
def test_damaged_checkpoint_of_training(trained, tmp_path, damage):
    prefix, _ = trained
    copy = str(tmp_path / 'model-7')
    for path in glob.glob(prefix + '.*'):
        with open(path, 'rb') as f:
            content = f.read()
        ending = path[len(prefix):]
        if ending.startswith('.data') and damage == 'no data':
            continue
        if ending.startswith('.data') and damage == 'short data':
            content = content[:1000]
        if ending == '.index':
            content = {'short index': content[:len(content) // 2], 'empty index': b'',
                       'text index': b'hello\n' * 100}.get(damage, content)
        with open(copy + ending, 'wb') as f:
            f.write(content)
    assert copy in refusal(load_classifier, copy, arch='ResNet', depth=14)


# --- checkpoints of another network ----------------------------------------------------------------------------------

def test_misfits_are_named(weights_of):
    weights = weights_of('ResNet')
    del weights['group2/block0/conv1/W']
    weights['group0/block9/conv1/W'] = np.zeros((1, 1, 64, 64), np.float32)
    weights['conv0/W'] = weights['conv0/W'].transpose(3, 2, 0, 1)
    text = refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')
    for part in ['some.npz', '1 missing: group2/block0/conv1/W', '1 extra: group0/block9/conv1/W', 'ResNet',
                 '14', 'conv0/W is (64, 3, 7, 7), not (7, 7, 3, 64)', 'no network of the zoo']:
        assert part in text, part


@pytest.mark.parametrize('name', ['conv0/bn/variance/EMA', 'group3/block0/conv3/bn/gamma', 'linear/W'])
def test_a_single_missing_variable_is_enough(name, weights_of):
    weights = weights_of('ResNet')
    del weights[name]
    assert '1 missing: %s' % name in refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')


def test_many_misfits_stay_one_readable_line(weights_of):
    weights = {name: value for name, value in weights_of('ResNetDenoise').items() if not name.startswith('group')}
    text = refusal(fitting.fit_checkpoint, weights, Network('ResNetDenoise', 14, 10), 'some.npz')
    assert '108 missing: ' in text and ', ...' in text and len(text) < 500


@pytest.mark.parametrize('arch', helpers.ARCHITECTURES)
def test_the_right_flags_are_suggested(arch, weights_file):
    for wrong in set(helpers.ARCHITECTURES) - {arch}:
        text = refusal(load_classifier, weights_file(arch), arch=wrong, depth=14, image_size=32)
        assert '--arch %s -d 14' % arch in text and weights_file(arch) in text


@once
@pytest.mark.slow
@pytest.mark.parametrize('arch, depth, wrong, wrong_depth', [
    ('ResNet', 50, 'ResNet', 101), ('ResNetDenoise', 50, 'ResNet', 50), ('ResNeXtDenoiseAll', 101, 'ResNet', 50)])
def test_the_right_depth_is_suggested(arch, depth, wrong, wrong_depth, weights_of):
    text = refusal(fitting.fit_checkpoint, weights_of(arch, depth), Network(wrong, wrong_depth, 10), 'some.npz')
    assert '--arch %s -d %d' % (arch, depth) in text


def test_another_number_of_classes_is_said(weights_of):
    text = refusal(fitting.fit_checkpoint, weights_of('ResNet'), Network('ResNet', 14, 12), 'some.npz')
    assert '10 classes' in text and '12' in text and '--arch' not in text


def test_no_weights_of_a_network(tmp_path):
    path = str(tmp_path / 'other.npz')
    np.savez(path, fc=np.ones(3))
    assert path in refusal(load_classifier, path)


def test_unknown_network_with_a_good_checkpoint(weights_file):
    assert 'VGG' in refusal(load_classifier, weights_file('ResNet'), arch='VGG', depth=14)
    assert '34' in refusal(load_classifier, weights_file('ResNet'), arch='ResNet', depth=34)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers(weights_of, value):
    weights = weights_of('ResNet')
    weights['conv0/bn/beta'] = weights['conv0/bn/beta'].copy()
    weights['conv0/bn/beta'][3] = value
    assert 'conv0/bn/beta' in refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')


def test_weights_beyond_float32(weights_of):
    """Finite in the file, infinite once loaded."""
    weights = weights_of('ResNet')
    weights['conv0/bn/beta'] = np.full(64, 1e300)
    assert 'conv0/bn/beta' in refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')


def test_complex_weights(weights_of):
    weights = weights_of('ResNet')
    weights['conv0/W'] = weights['conv0/W'] + 1j
    text = refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')
    assert 'complex' in text and 'conv0/W' in text


@pytest.mark.parametrize('value', [-1.0, -1e-6])
def test_negative_variances(weights_of, value):
    weights = weights_of('ResNet')
    name = 'group1/block0/conv2/bn/variance/EMA'
    weights[name] = weights[name].copy()
    weights[name][5] = value
    text = refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')
    assert 'variances below 0' in text and name in text
    weights[name][5] = 0  # of a dead channel
    fitting.fit_checkpoint(weights, Network('ResNet', 14, 10), 'some.npz')


@pytest.mark.parametrize('prefix', ['tower0/', 'module/net/', 'tower0_'])
def test_variables_under_a_prefix(tmp_path, weights_of, prefix):
    path = str(tmp_path / 'tower.npz')
    np.savez(path, **{prefix + name: value for name, value in weights_of('ResNet').items()}, global_step=np.int64(3))
    for text in (refusal(load_classifier, path, depth=14), refusal(
            fitting.fit_checkpoint, checkpoint.read_checkpoint(path), Network('ResNet', 14, 10), path)):
        assert 'under %s,' % prefix in text and 'name[%d:]' % len(prefix) in text


def test_two_towers(tmp_path, weights_of):
    path = str(tmp_path / 'towers.npz')
    np.savez(path, **{tower + name: value for name, value in weights_of('ResNet').items()
                      for tower in ('tower0/', 'tower1/')})
    assert 'under tower0/, tower1/,' in refusal(load_classifier, path, depth=14)


@pytest.mark.parametrize('names', [('conv0/W', 'conv0/W:0'), ('conv0/W:0', 'conv0/W')])
def test_a_variable_that_is_there_twice(tmp_path, weights_of, names):
    path = str(tmp_path / 'twice.npz')
    weights = weights_of('ResNet')
    kernel = weights.pop('conv0/W')
    np.savez(path, **{names[0]: kernel, names[1]: kernel + 1}, **weights)
    assert 'conv0/W and conv0/W:0' in refusal(load_classifier, path, depth=14)


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('member', ['linear/b.npy', 'linear/b'])
def test_a_member_that_is_there_twice(tmp_path, weights_of, member):
    path = str(tmp_path / 'twice.npz')
    np.savez(path, **weights_of('ResNet'))
    array = io.BytesIO()
    np.save(array, np.zeros(10, np.float32))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(member, array.getvalue())
    assert 'linear/b and linear/b' in refusal(load_classifier, path, depth=14)


def test_weights_that_are_text(weights_of):
    weights = weights_of('ResNet')
    weights['conv0/bn/beta'] = np.array(['a'] * 64)
    assert 'conv0/bn/beta' in refusal(fitting.fit_checkpoint, weights, Network('ResNet', 14, 10), 'some.npz')
