"""What an attack computes in: dtypes, attention in parts, folded weights, gradients written by hand; and its flags."""
import json

from runtime.compat import USES_BFLOAT16_UNITS, tf, xla_compile

import helpers
import numpy as np
import pytest
from evaluating import SMALL, alone, evaluate
from lanes import once
from photos import write_split

import checkpoint
from adv_model import PGDAttacker, scale_pixels
from kernels.attention import softmax_attention
from kernels.mode import Mode, attack_settings
from main import parse_options
from nets import Network
from runtime.errors import InputError
from runtime.hardware import cost_of_dtype, session_config
from runtime.pixels import unscale_pixels

slow = pytest.mark.slow


def run(fetches, feed=None):
    with tf.Session(config=session_config()) as session:
        session.run(tf.global_variables_initializer())
        return session.run(fetches, feed)


# --- attention in parts ----------------------------------------------------------------------------------------------

def attention_and_gradients(xla, dtype, queries, keys, values, upstream, in_loop=False, **options):
    """y and the gradients of the three, in NumPy; of a batch whose size the graph does not know."""
    with tf.Graph().as_default():
        arrays = [queries, keys, values, upstream]
        inputs = [tf.placeholder(tf.float32, (None,) + a.shape[1:]) for a in arrays]

        def flat(*tensors):
            q, k, v, g = [tf.cast(t, dtype) for t in tensors]
            y = softmax_attention(q, k, v, **options)
            assert y.shape.as_list()[1:] == v.shape.as_list()[1:]
            parts = [y] + tf.gradients(y, [q, k, v], g)
            return tf.concat([tf.reshape(tf.cast(t, tf.float32), [-1]) for t in parts], axis=0)

        if in_loop:  # as in an attack
            result = tf.while_loop(lambda i, _: i < 1, lambda i, _: (i + 1, flat(*inputs)), [0, tf.zeros([1])],
                                   shape_invariants=[tf.TensorShape([]), tf.TensorShape([None])], back_prop=False)[1]
        else:
            result = xla_compile(flat, *inputs) if xla else flat(*inputs)
        result = run(result, dict(zip(inputs, arrays)))
    return np.split(result, np.cumsum([a.size for a in (values, queries, keys)]))


def attention_in_numpy(q, k, v, g):
    q, k, v, g = [a.astype(np.float64) for a in (q, k, v, g)]
    weights = helpers.softmax(q @ k.transpose(0, 2, 1))
    d_weights = g @ v.transpose(0, 2, 1)
    d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    return [a.ravel() for a in (weights @ v, d_scores @ k, d_scores.transpose(0, 2, 1) @ q,
                                weights.transpose(0, 2, 1) @ g)]


@pytest.fixture(scope='module')
def attention_arrays():
    rng = np.random.RandomState(0)
    # scores of a few units: the softmax is neither flat nor a maximum; 10 rows are no multiple of 4
    return [rng.standard_normal((3, 10, channels)).astype(np.float32) for channels in (4, 4, 8, 8)]


@pytest.mark.parametrize('how', [dict(), dict(in_loop=True), pytest.param(dict(xla=True), marks=slow)],
                         ids=['plain', 'loop', 'xla'])
@pytest.mark.parametrize('dtype, tolerance', [
    ('float32', 2e-6), ('bfloat16', 0.03), ('float16', 0.01)])  # TensorFlow 1 also sums in float16
def test_attention_in_parts_is_attention(how, dtype, tolerance, attention_arrays):
    computed = attention_and_gradients(dtype=tf.as_dtype(dtype), queries=attention_arrays[0], keys=attention_arrays[1],
                                       values=attention_arrays[2], upstream=attention_arrays[3], few_positions=9,
                                       rows_together=4, **dict(dict(xla=False), **how))
    for ours, expected in zip(computed, attention_in_numpy(*attention_arrays)):
        np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())
        assert dtype == 'float32' or (np.abs(ours - expected) > 1e-7).any()


def test_attention_in_float16_keeps_its_range():
    """Sums over many positions would leave it before they are divided; and large scores must not overflow."""
    ones = np.ones((1, 64, 1), np.float32)
    y = attention_and_gradients(False, tf.float16, 200 * ones, 200 * ones, 3000 * ones, 0 * ones, few_positions=9,
                                rows_together=16)[0]
    np.testing.assert_allclose(y, 3000, rtol=0.01)


def test_attention_of_large_maps_holds_no_matrix_of_all_pairs():
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 56 * 56, 2])
        tf.gradients(softmax_attention(x, x, x), x)
        shapes = [t.shape.as_list() for op in graph.get_operations() for t in op.outputs if t.shape.ndims]
    assert max(shape[-2] for shape in shapes if shape[-1] == 56 * 56 and len(shape) > 1) < 500


# --- whole attacks ---------------------------------------------------------------------------------------------------

def attack_in(settings, network, weights, pixels, target):
    """Four steps by attack_settings(*settings): adversarial pixels, and the float32 network's logits of them."""
    with tf.Graph().as_default() as graph:
        settings = attack_settings(*settings)
        image = scale_pixels(tf.constant(pixels))
        attacker = PGDAttacker(4, 8., 1., num_classes=10, loss_scale=settings['loss_scale'], xla=settings['xla'])
        adversarial = attacker.iterate(image, image, tf.constant(target), lambda x: network.logits(
            x, settings['attack_mode']), num_iter=4)
        logits = network.logits(adversarial, Mode())
        assert all(v.dtype.base_dtype == tf.float32 for v in tf.global_variables())
        in_loop = [op for op in graph.get_operations() if op._get_control_flow_context() is not None]
        assert not any(op.type == 'Rsqrt' for op in in_loop), 'what depends on weights alone runs once per attack'
        with tf.Session(graph=graph, config=session_config()) as session:
            checkpoint.assign_weights(session, weights)
            return session.run([unscale_pixels(adversarial), logits])


@pytest.mark.parametrize('settings', [
    ('bfloat16',), pytest.param(('float16',), marks=slow), pytest.param(('bfloat16', True), marks=[slow, once])],
    ids=['bfloat16', 'float16', 'bfloat16-xla'])
def test_attack_in_reduced_precision_is_about_as_strong(settings, weights_of):
    """Within the budget, and in the float32 network about as good as the float32 attack."""
    if not USES_BFLOAT16_UNITS and len(settings) == 1:
        pytest.skip('without XLA, TensorFlow 1 takes minutes for it')
    pixels = helpers.images(8, 32, seed=1)
    network, weights = Network('ResNetDenoise', 14, 10), weights_of('ResNetDenoise')
    target = (np.arange(8) + 3).astype(np.int32) % 10
    (slow_pixels, slow_logits), (fast_pixels, fast_logits) = [
        attack_in(s, network, weights, pixels, target) for s in (('float32',), settings)]
    assert np.abs(fast_pixels - pixels).max() < 8.01 and fast_pixels.min() > -0.01 and fast_pixels.max() < 255.01
    assert (np.abs(fast_pixels - slow_pixels) > 0.5).any(), '%s was not used' % settings[0]
    clean = helpers.NumpyNetwork('ResNetDenoise', 14, weights).logits(pixels)
    before, after, after_fast = [helpers.cross_entropy(x, target).mean() for x in (clean, slow_logits, fast_logits)]
    assert after < before - 1
    assert (before - after_fast) / (before - after) == pytest.approx(1, abs=0.15)


# --- flags -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('flags, dtype, xla', [
    ([], 'float32', False), (['--xla'], 'float32', True), (['--attack-dtype', 'bfloat16'], 'bfloat16', False),
    (['--use-fp16xla'], 'float16', True), (['--use-fp16xla', '--attack-dtype', 'float16'], 'float16', True),
    (['--attack-dtype', 'float16'], 'float16', False)])
def test_flags_say_what_the_attack_computes_in(flags, dtype, xla):
    options = parse_options(['--fake'] + flags)
    assert (options.attack_dtype, options.xla) == (dtype, xla)
    settings = attack_settings(options.attack_dtype, options.xla)
    assert settings['attack_mode'].dtype == tf.as_dtype(dtype) and settings['xla'] == xla
    assert settings['loss_scale'] == (128 if dtype == 'float16' else 1)


def test_flags_that_contradict_each_other():
    with pytest.raises(InputError, match='float16, not bfloat16'):
        parse_options(['--fake', '--use-fp16xla', '--attack-dtype', 'bfloat16'])


@pytest.mark.parametrize('flags, dtype', [([], 'float32'), (['--dtype', 'bfloat16'], 'bfloat16')])
def test_flags_say_what_images_are_classified_in(flags, dtype):
    for job in (['--eval', '--data', 'd'], ['--eval-directory', 'x']):
        assert parse_options(job + ['--load', 'f'] + flags).dtype == dtype


@pytest.mark.parametrize('flags, said', [
    (['--fake', '--dtype', 'bfloat16'], 'goes with --eval and --eval-directory'),
    (['--eval', '--data', 'd', '--load', 'f', '--dtype', 'float16'], "invalid choice: 'float16'")])
def test_a_dtype_that_is_none_of_the_jobs(flags, said):
    with pytest.raises(InputError, match=said):
        parse_options(flags)


@pytest.mark.skipif(not USES_BFLOAT16_UNITS, reason='TensorFlow 1 takes minutes for it')
def test_an_evaluation_in_bfloat16_says_so(python, root, tmp_path, weights_file):
    """On stderr and in its results; and its journal is not continued in float32."""
    write_split(tmp_path / 'val', 12)
    flags = ['--attack-iter', 0, '--journal', tmp_path / 'j', '--results', tmp_path / 'r.json']
    done = evaluate(root, alone, tmp_path, weights_file(), *flags, '--dtype', 'bfloat16')
    assert 'the figures are of the network in bfloat16' in done.stderr
    assert json.loads((tmp_path / 'r.json').read_text())['dtype'] == 'bfloat16'
    done = python('main.py', '--eval', '--load', weights_file(), '--data', tmp_path, *(SMALL + flags))
    assert done.returncode == 2 and 'dtype is "bfloat16" there and "float32" here' in done.stderr


def test_program_says_where_reduced_precision_costs():
    def cost(*arguments, gpu=False, flags=('avx512f', 'avx512_bf16'), kernels=True, **what):
        return cost_of_dtype(*arguments, gpu=gpu, cpu_flags=frozenset(flags), kernels=kernels, **what)

    assert cost('float32', False, flags=()) is None and cost('bfloat16', False) is None
    assert cost('bfloat16', False, flags=['amx_bf16']) is None and cost('float16', True, gpu=True) is None
    assert 'no bfloat16 units' in cost('bfloat16', False, flags=['avx512f']) and 'slower' in cost('float16', True)
    assert 'without --xla' in cost('bfloat16', True) and 'TensorFlow 1' in cost('bfloat16', False, kernels=False)
    assert 'in float32' in cost('bfloat16', True, kernels=False)
    assert 'no bfloat16 units' in cost('bfloat16', True, flags=())
    assert 'the attack' in cost('float16', True) and 'scoring' in cost('bfloat16', True, what='scoring')
