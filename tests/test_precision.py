"""What an attack computes in: dtypes, attention in parts, folded weights, gradients written by hand; and the flags for it."""
import numpy as np
import pytest

import adv_model
import checkpoint
import helpers
from adv_model import PGDAttacker, attack_settings, cost_of_dtype, scale_pixels, unscale_pixels
from attention import softmax_attention
from compat import session_config, tf, xla_compile
from errors import InputError
from nets import Network
from options import parse_options
from resnet_model import Mode, frozen_stem

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
    of_weights = g @ v.transpose(0, 2, 1)
    of_scores = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True))
    return [a.ravel() for a in (weights @ v, of_scores @ k, of_scores.transpose(0, 2, 1) @ q,
                                weights.transpose(0, 2, 1) @ g)]


@pytest.fixture(scope='module')
def attention_arrays():
    rng = np.random.RandomState(0)
    # scores of a few units: the softmax is neither flat nor a maximum; 10 rows are no multiple of 4
    return [rng.standard_normal((3, 10, channels)).astype(np.float32) for channels in (4, 4, 8, 8)]


@pytest.mark.parametrize('how', [dict(), dict(in_loop=True), pytest.param(dict(xla=True), marks=slow)],
                         ids=['plain', 'loop', 'xla'])
@pytest.mark.parametrize('dtype, tolerance', [('float32', 2e-6), ('bfloat16', 0.03), ('float16', 0.004)])
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
    np.testing.assert_allclose(y, 3000, rtol=1e-3)


def test_attention_of_large_maps_holds_no_matrix_of_all_pairs():
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 56 * 56, 2])
        tf.gradients(softmax_attention(x, x, x), x)
        shapes = [t.shape.as_list() for op in graph.get_operations() for t in op.outputs if t.shape.ndims]
    assert max(shape[-2] for shape in shapes if shape[-1] == 56 * 56 and len(shape) > 1) < 500


# --- the stem --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('height, width', [(32, 32), (14, 22)])
def test_stem_and_its_gradient(height, width):
    """The one with a gradient written by hand, and TensorFlow's own operations."""
    rng = np.random.RandomState(0)
    x, w, bias = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, height, width, 3), (7, 7, 3, 64), (64,))]
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, [None, height, width, 3])
        ours = tf.nn.relu(frozen_stem(image, tf.constant(w), tf.constant(bias)))
        plain = tf.nn.relu(tf.nn.conv2d(image, w, strides=[1, 2, 2, 1], padding='SAME') + bias)
        plain = tf.nn.max_pool(plain, [1, 3, 3, 1], [1, 2, 2, 1], 'SAME')
        upstream = rng.standard_normal((2,) + tuple(plain.shape.as_list()[1:])).astype(np.float32)
        ours, plain = run([(y, tf.gradients(y, image, upstream)[0]) for y in (ours, plain)], {image: x})
    for a, b in zip(ours, plain):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
