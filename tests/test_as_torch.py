"""A classifier as a PyTorch module, attacked by PyTorch's libraries: networks of 14 layers, images of 32 pixels."""
import helpers
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the extra torch is not installed')

from interop.as_torch import TorchClassifier  # noqa: E402

SIZE = 32


@pytest.fixture(scope='module')
def clf(classifier):
    return classifier('ResNet')


@pytest.fixture(scope='module')
def net(clf):
    return TorchClassifier(clf)


def photos(count=6, seed=0):
    return helpers.images(count, SIZE, seed)


def as_torch(pixels):
    """(N, S, S, 3) BGR in [0, 255] -> (N, 3, S, S) RGB in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)[:, ::-1], np.float32)) / 255


def as_pixels(images):
    return 255 * images.numpy().transpose(0, 2, 3, 1)[..., ::-1]


def steps_uphill(clf, pixels, labels, steps, alpha, epsilon):
    """Untargeted PGD from the clean image by clf.loss_gradient alone."""
    pixels = pixels.astype(np.float32)
    x, low, high = pixels, np.maximum(pixels - epsilon, 0), np.minimum(pixels + epsilon, 255)
    for _ in range(steps):
        x = np.clip(x + alpha * np.sign(clf.loss_gradient(x, labels)), low, high)
    return x


# --- the module ------------------------------------------------------------------------------------------------------

def test_logits_are_the_classifiers(net, clf):
    """Of more images than its batch; of none; and of other float types."""
    pixels = photos(10)
    assert len(pixels) > clf.batch
    logits = net(as_torch(pixels))
    assert logits.dtype == torch.float32 and not logits.requires_grad
    np.testing.assert_allclose(logits.numpy(), clf.logits(pixels), atol=1e-4)
    assert net(as_torch(photos(0))).shape == (0, 10)
    np.testing.assert_allclose(net(as_torch(pixels).double()).numpy(), logits.numpy(), atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gradient_is_the_classifiers(net, clf, dtype):
    """Also where the image is only a part of what is differentiated, and when it is asked for again."""
    pixels, labels = photos(), np.arange(6)
    delta = torch.zeros(6, 3, SIZE, SIZE, dtype=dtype, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(net(as_torch(pixels) + delta), torch.from_numpy(labels), reduction='sum')
    first, = torch.autograd.grad(loss, delta, retain_graph=True)
    again, = torch.autograd.grad(loss, delta)
    assert first.dtype == dtype and torch.equal(first, again) and first.is_contiguous()
    expected = 255 * clf.loss_gradient(pixels, labels)
    np.testing.assert_allclose(as_pixels(first) / 255, expected, atol=1e-3 * np.abs(expected).max())


def test_what_libraries_do_to_modules_is_harmless(net):
    images = as_torch(photos(2))
    before = net(images)
    assert not net.training, 'foolbox warns of a network in training mode'
    assert next(net.parameters()).device == torch.device('cpu')
    assert not any(p.requires_grad for p in net.parameters())
    for change in (net.train, net.eval, net.zero_grad, lambda: net.to('cpu'), lambda: net.to(torch.float64)):
        change()
        assert torch.equal(net(images), before) and net(images).dtype == torch.float32
    net.float()
    with torch.no_grad():
        assert not net(images.clone().requires_grad_()).requires_grad
    images.requires_grad_()
    logits = net(images)
    assert logits.requires_grad and not logits.detach().requires_grad
    logits[0, 3].backward()
    assert images.grad[0].abs().max() > 0 and images.grad[1].abs().max() == 0
    assert all(p.grad is None for p in net.parameters())


def test_a_second_derivative_is_refused(net):
    images = as_torch(photos(1)).requires_grad_()
    gradient, = torch.autograd.grad(net(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        gradient.sum().backward()


@pytest.mark.parametrize('images, said', [
    (torch.zeros(3, SIZE, SIZE), r'not \(N, 3, 32, 32\)'), (torch.zeros(1, SIZE, SIZE, 3), r'not \(N, 3, 32, 32\)'),
    (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), 'divide pixels by 255'),
    (torch.full((1, 3, SIZE, SIZE), 255.), r'in \[0, 1\]'), (torch.full((1, 3, SIZE, SIZE), -0.1), r'in \[0, 1\]'),
    (torch.full((1, 3, SIZE, SIZE), float('nan')), r'in \[0, 1\]')])
def test_images_that_are_none(net, images, said):
    with pytest.raises(ValueError, match=said):
        net(images)


def test_rounding_beyond_the_range_is_none(net):
    """A sum or a tanh of an attack may end just outside of [0, 1]."""
    white = torch.ones(1, 3, SIZE, SIZE)
    assert torch.equal(net(white * (1 + 1e-6)), net(white))


# --- attacks ---------------------------------------------------------------------------------------------------------

def test_torchattacks_pgd_is_our_gradients(net, clf):
    attacks = pytest.importorskip('torchattacks')
    pixels, labels = photos(), np.arange(6)
    attack = attacks.PGD(net, eps=16 / 255, alpha=4 / 255, steps=5, random_start=False)
    attacked = as_pixels(attack(as_torch(pixels), torch.from_numpy(labels)))
    # signs of gradients near 0 may differ
    assert (np.abs(attacked - steps_uphill(clf, pixels, labels, 5, 4, 16)) < 0.01).mean() > 0.98


def test_foolbox_pgd_is_our_gradients(net, clf):
    foolbox = pytest.importorskip('foolbox')
    pixels, labels = photos(), np.arange(6)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=4 / 255, steps=5, random_start=False)
    _, attacked, success = attack(foolbox.PyTorchModel(net, bounds=(0, 1), device='cpu'), as_torch(pixels),
                                  torch.from_numpy(labels), epsilons=16 / 255)
    attacked = as_pixels(attacked)
    assert (np.abs(attacked - steps_uphill(clf, pixels, labels, 5, 4, 16)) < 0.01).mean() > 0.98
    assert success.numpy().tolist() == (clf.logits(attacked.clip(0, 255)).argmax(axis=1) != labels).tolist()


def test_attacks_that_take_a_view_of_the_gradient(net):
    attacks = pytest.importorskip('torchattacks')
    images = as_torch(photos(2)).contiguous()
    labels = net(images).argmax(dim=1)
    attacked = attacks.PGDL2(net, eps=4., alpha=2., steps=4)(images, labels)
    assert 1e-3 < (attacked - images).flatten(1).norm(dim=1).max() <= 4.001
    assert (net(attacked.detach()).argmax(dim=1) != labels).any()


@pytest.mark.parametrize('name, options', [
    ('APGD', dict(steps=10)), ('APGDT', dict(steps=10, n_classes=4)), ('FAB', dict(steps=3, n_classes=3)),
    ('Square', dict(n_queries=100))])
def test_parts_of_autoattack_fool_the_network(net, clf, name, options):
    """Each as torchattacks has it, within its budget; the labels are the network's own, so that all begin as right."""
    attacks = pytest.importorskip('torchattacks')
    images = as_torch(photos(4))
    labels = net(images).argmax(dim=1)
    attacked = getattr(attacks, name)(net, norm='Linf', eps=16 / 255, seed=0, **options)(images, labels)
    assert (attacked - images).abs().max() <= 16.01 / 255
    assert (net(attacked.detach()).argmax(dim=1) != labels).float().mean() >= 0.75
