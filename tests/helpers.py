"""The networks and their maths again, plainly, in NumPy and float64: what the tests expect. No TensorFlow here.

Images and features are NHWC; weights are {name: array} as in a checkpoint.
"""
import numpy as np

BLOCKS = {14: [1, 1, 1, 1], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
ARCHITECTURES = ['ResNet', 'ResNetDenoise', 'ResNeXtDenoiseAll']


def expected_shapes(arch, depth, classes):
    """Return {variable name: shape}, written out from the paper's description of the networks."""
    shapes = {}

    def conv_norm(name, kernel, channels_in, channels_out):
        shapes[name + '/W'] = (kernel, kernel, channels_in, channels_out)
        for statistic in ['gamma', 'beta', 'mean/EMA', 'variance/EMA']:
            shapes['%s/bn/%s' % (name, statistic)] = (channels_out,)

    conv_norm('conv0', 7, 3, 64)
    channels = 64
    for group, blocks in enumerate(BLOCKS[depth]):
        base, out = [64, 128, 256, 512][group], [256, 512, 1024, 2048][group]
        width, groups = ([256, 512, 1024, 2048][group], 32) if arch == 'ResNeXtDenoiseAll' else (base, 1)
        for block in range(blocks):
            name = 'group%d/block%d/' % (group, block)
            conv_norm(name + 'conv1', 1, channels, width)
            conv_norm(name + 'conv2', 3, width // groups, width)
            conv_norm(name + 'conv3', 1, width, out)
            if block == 0:
                conv_norm(name + 'convshortcut', 1, channels, out)
            if arch == 'ResNeXtDenoiseAll':
                conv_norm(name + 'non_local/conv', 1, out, out)
            channels = out
        if arch == 'ResNetDenoise':
            name = 'group%d_denoise/' % group
            for embedding in ['embedding_theta', 'embedding_phi']:
                shapes[name + embedding + '/W'] = (1, 1, out, out // 2)
            conv_norm(name + 'conv', 1, out, out)
    shapes['linear/W'] = (2048, classes)
    shapes['linear/b'] = (classes,)
    return shapes


def ends_a_branch(name):
    """Tell whether a BatchNorm variable is of the last convolution of a residual or denoising branch."""
    return '/conv3/bn/' in name or '/conv/bn/' in name


def random_weights(shapes, seed):
    """Draw float32 weights that keep features near 1, with statistics of BatchNorm that are far from trivial."""
    rng = np.random.RandomState(seed)
    # every branch adds to the features, and dot-product denoising is cubic in them: many blocks need damping
    damping = 2.0 if sum(name.endswith('conv3/W') for name in shapes) <= 4 else 60.0
    weights = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith('/W'):
            gain = 1 if name == 'linear/W' or 'embedding' in name else 2
            value = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[:-1]))
        elif name.endswith('gamma'):
            value = rng.uniform(0.2, 0.6, shape) if ends_a_branch(name) else rng.uniform(0.6, 1.4, shape)
        elif name.endswith('variance/EMA'):
            value = rng.uniform(0.5, 2.0, shape)
            if '/non_local/' in name:
                value = value * (damping * shape[0]) ** 2
        else:  # beta, mean/EMA, linear/b
            value = rng.uniform(-0.3, 0.3, shape)
        weights[name] = value.astype(np.float32)
    return weights


def images(count, size, seed=0):
    """Draw uint8 (count, size, size, 3): colour patches and fine noise, with some pixels at 0 and 255."""
    rng = np.random.RandomState(seed)
    patches = rng.uniform(-40, 295, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return np.clip(patches + rng.uniform(-40, 40, patches.shape), 0, 255).astype(np.uint8)


# --- layers ----------------------------------------------------------------------------------------------------------

def padding(size, kernel, stride, symmetric=False):
    """Return the padding (before, after) of TensorFlow's SAME; where the sum is odd, `after` has one more. Symmetric:
    PyTorch's, of half a kernel on each side."""
    if symmetric:
        return kernel // 2, kernel // 2
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def padded(x, kernel, stride, value, symmetric=False):
    rows, columns = [padding(n, kernel, stride, symmetric) for n in x.shape[1:3]]
    return np.pad(x, [(0, 0), rows, columns, (0, 0)], 'constant', constant_values=value)


def windows(x, kernel, stride):
    """Yield (i, j, index) for each row i and column j of a square kernel.

    `x[index]`, of a map x that is padded already, is (N, rows, columns, channels) of the output's size: what the
    kernel's element (i, j) is multiplied with.
    """
    height, width = [(n - kernel) // stride + 1 for n in x.shape[1:3]]
    for i in range(kernel):
        for j in range(kernel):
            yield i, j, (slice(None), slice(i, i + stride * (height - 1) + 1, stride),
                         slice(j, j + stride * (width - 1) + 1, stride))


def convolution(x, w, stride=1, symmetric=False):
    w = np.asarray(w, np.float64)
    groups = x.shape[3] // w.shape[2]
    if groups > 1:
        return np.concatenate([convolution(a, b, stride, symmetric) for a, b in zip(
            np.split(x, groups, axis=3), np.split(w, groups, axis=3))], axis=3)
    x = padded(np.asarray(x, np.float64), w.shape[0], stride, 0, symmetric)
    return sum(x[inputs] @ w[i, j] for i, j, inputs in windows(x, w.shape[0], stride))


def convolution_gradients(x, w, upstream, stride=1, symmetric=False):
    """Return the gradients of sum(convolution(x, w, stride, symmetric) * upstream) with respect to x and w."""
    groups = x.shape[3] // w.shape[2]
    if groups > 1:
        parts = [convolution_gradients(a, b, u, stride, symmetric) for a, b, u in zip(
            np.split(x, groups, axis=3), np.split(w, groups, axis=3), np.split(upstream, groups, axis=3))]
        return [np.concatenate(gradients, axis=3) for gradients in zip(*parts)]
    kernel = w.shape[0]
    big = padded(np.asarray(x, np.float64), kernel, stride, 0, symmetric)
    d_x, d_w = np.zeros_like(big), np.zeros(w.shape)
    for i, j, inputs in windows(big, kernel, stride):
        d_x[inputs] += upstream @ w[i, j].astype(np.float64).T
        d_w[i, j] = np.tensordot(big[inputs], upstream, ([0, 1, 2], [0, 1, 2]))
    top, left = [padding(n, kernel, stride, symmetric)[0] for n in x.shape[1:3]]
    return d_x[:, top:top + x.shape[1], left:left + x.shape[2]], d_w


def max_pool(x, kernel=3, stride=2, symmetric=False):
    x = padded(x, kernel, stride, -np.inf, symmetric)
    return np.max([x[inputs] for _, _, inputs in windows(x, kernel, stride)], axis=0)


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def dot_product_denoising(x):
    """Return y_i = 1/N sum_j (x_i . x_j) x_j, over the N positions of an image."""
    flat = x.reshape(len(x), -1, x.shape[3]).astype(np.float64)
    y = [(m @ m.T) @ m / len(m) for m in flat]
    return np.reshape(y, x.shape)


def softmax_denoising(x, theta, phi):
    """Return y_i = sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(d)) x_j; theta and phi are (channels, d)."""
    flat = x.reshape(len(x), -1, x.shape[3]).astype(np.float64)
    y = [softmax((m @ theta) @ (m @ phi).T / np.sqrt(theta.shape[1])) @ m for m in flat]
    return np.reshape(y, x.shape)


class NumpyNetwork:
    """The forward pass of a network, in float64.

    training: whether BatchNorms use the batch's statistics. `statistics` then keeps what each of them had:
    {name: (mean, variance, values per channel)}.
    """

    def __init__(self, arch, depth, weights, training=False):
        self.arch, self.depth, self.training = arch, depth, training
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.statistics = {}

    def logits(self, pixels):
        """Return the logits, float64 (N, classes), of pixels (N, S, S, 3) in [0, 255]."""
        x = np.asarray(pixels, np.float64) * 2 / 255 - 1
        x = max_pool(relu(self.conv_norm(x, 'conv0', 2)))
        for group, blocks in enumerate(BLOCKS[self.depth]):
            for block in range(blocks):
                x = self.bottleneck(x, 'group%d/block%d/' % (group, block), 2 if group > 0 and block == 0 else 1)
                if self.arch == 'ResNeXtDenoiseAll':
                    x = x + self.conv_norm(dot_product_denoising(x), 'group%d/block%d/non_local/conv' % (group, block))
            if self.arch == 'ResNetDenoise':
                name = 'group%d_denoise/' % group
                theta, phi = [self.weights[name + e + '/W'][0, 0] for e in ['embedding_theta', 'embedding_phi']]
                x = x + self.conv_norm(softmax_denoising(x, theta, phi), name + 'conv')
        return x.mean(axis=(1, 2)) @ self.weights['linear/W'] + self.weights['linear/b']

    def bottleneck(self, x, name, stride):
        y = relu(self.conv_norm(x, name + 'conv1'))
        y = relu(self.conv_norm(y, name + 'conv2', stride))
        y = self.conv_norm(y, name + 'conv3')
        if name + 'convshortcut/W' in self.weights:
            x = self.conv_norm(x, name + 'convshortcut', stride)
        return relu(x + y)

    def conv_norm(self, x, name, stride=1):
        x = self.convolution(x, self.weights[name + '/W'], stride)
        gamma, beta, mean, variance = [self.weights['%s/bn/%s' % (name, s)]
                                       for s in ['gamma', 'beta', 'mean/EMA', 'variance/EMA']]
        if self.training:
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            self.statistics[name] = mean, variance, x[..., 0].size
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def convolution(self, x, w, stride):
        return convolution(x, w, stride)


def cross_entropy(logits, label):
    """Return the cross entropy of each image, (N,), from logits (N, classes) and labels (N,)."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(logits)), label]


def smoothed_cross_entropy(logits, label, smoothing):
    """Return the cross entropy of each image, (N,), with smoothed labels.

    These are the one-hot vectors times (1 - smoothing), plus smoothing / classes everywhere.
    """
    return np.mean([(1 - smoothing) * cross_entropy(logits, label) + smoothing * cross_entropy(
        logits, np.full(len(logits), k)) for k in range(logits.shape[1])], axis=0)


def target_margin(logits, target):
    """Return the target's logit less the greatest other one, (N,).

    It is above 0 where an image is classified as its target.
    """
    logits, rows = np.array(logits, np.float64), np.arange(len(logits))
    target_logit = logits[rows, target]
    logits[rows, target] = -np.inf
    return target_logit - logits.max(axis=1)
