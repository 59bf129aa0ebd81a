"""What holds for every network: labels, gradients, independent samples, half precision, compilation, copies."""

import copy
import io
import shutil

import pytest
import torch

from lightning_decgan.gan.ema import averaged_copy, update_average
from lightning_decgan.gan.networks import (
    ConditionalBatchNorm2d,
    DCGANDiscriminator,
    DCGANGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
    SAGANDiscriminator,
    SAGANGenerator,
    SelfAttention,
)
from lightning_decgan.gan.penalties import PENALTIES, get_penalty

LATENT_DIM, CHANNELS = 6, 2
GENERATORS = {
    "dcgan": lambda classes: DCGANGenerator(LATENT_DIM, CHANNELS, 16, 4, num_classes=classes),
    "resnet": lambda classes: ResNetGenerator(LATENT_DIM, CHANNELS, 32, 4, classes),
    "sagan": lambda classes: SAGANGenerator(LATENT_DIM, CHANNELS, 32, 8, classes),
}
DISCRIMINATORS = {
    "dcgan": lambda classes: DCGANDiscriminator(CHANNELS, 16, 4, num_classes=classes),
    "dcgan_spectral": lambda classes: DCGANDiscriminator(CHANNELS, 16, 4, spectral_norm=True, num_classes=classes),
    "resnet": lambda classes: ResNetDiscriminator(CHANNELS, 32, 4, num_classes=classes),
    "resnet_mean": lambda classes: ResNetDiscriminator(CHANNELS, 32, 4, pooling="mean", num_classes=classes),
    "resnet_layer": lambda classes: ResNetDiscriminator(CHANNELS, 32, 4, "layer", num_classes=classes),
    "resnet_spectral": lambda classes: ResNetDiscriminator(CHANNELS, 32, 4, "spectral", num_classes=classes),
    "sagan": lambda classes: SAGANDiscriminator(CHANNELS, 32, 8, classes),
}
LABELS = torch.tensor([0, 1, 2, 1])

generators = pytest.mark.parametrize("name", GENERATORS)
discriminators = pytest.mark.parametrize("name", DISCRIMINATORS)
with_and_without_classes = pytest.mark.parametrize("classes", [None, 3])


def stirred(network):
    """A network as it is after some training: what begins at zero and hides a part of it is not zero any more."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, SelfAttention):
                module.gamma.fill_(0.7)
            elif isinstance(module, ConditionalBatchNorm2d):
                module.gain.weight.normal_(0, 0.5)
                module.bias.weight.normal_(0, 0.5)
    return network


def make_generator(name, classes=None):
    torch.manual_seed(0)
    return stirred(GENERATORS[name](classes)), torch.randn(4, LATENT_DIM), _labels(classes)


def make_discriminator(name, classes=None):
    torch.manual_seed(0)
    discriminator = stirred(DISCRIMINATORS[name](classes))
    size = discriminator.image_size
    return discriminator, torch.rand(4, CHANNELS, size, size) * 2 - 1, _labels(classes)


def _labels(classes):
    return () if classes is None else (LABELS,)


@with_and_without_classes
@generators
def test_a_generator_says_what_it_takes_and_makes_images(name, classes):
    generator, latents, labels = make_generator(name, classes)
    assert (generator.latent_dim, generator.channels, generator.num_classes) == (LATENT_DIM, CHANNELS, classes)
    images = generator(latents, *labels)
    assert images.shape == (4, CHANNELS, generator.image_size, generator.image_size)
    assert images.abs().max() <= 1
    assert images.std(0).min() > 0, "every pixel depends on the latent"


@with_and_without_classes
@discriminators
def test_a_discriminator_says_what_it_takes_and_makes_one_logit_a_sample(name, classes):
    discriminator, images, labels = make_discriminator(name, classes)
    assert (discriminator.channels, discriminator.num_classes) == (CHANNELS, classes)
    logits = discriminator(images, *labels)
    assert logits.shape == (4,)
    assert logits.unique().numel() == 4


@generators
def test_the_class_changes_the_image_and_nothing_else_does(name):
    generator, latents, _ = make_generator(name, 3)
    generator.eval()
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    images, others = generator(latents, zeros), generator(latents, ones)
    assert ((images - others).abs().amax((1, 2, 3)) > 1e-3).all()
    mixed = generator(latents, torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(mixed[::2], images[::2])
    torch.testing.assert_close(mixed[1::2], others[1::2])


@discriminators
def test_the_class_changes_the_logit_of_its_own_sample_only(name):
    discriminator, images, _ = make_discriminator(name, 3)
    discriminator.eval()
    before, after = discriminator(images, LABELS), discriminator(images, torch.tensor([0, 1, 2, 2]))
    torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=0)
    assert before[3] != after[3]


@with_and_without_classes
@discriminators
def test_a_logit_depends_on_its_own_image_and_on_no_other(name, classes):
    discriminator, images, labels = make_discriminator(name, classes)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images, *labels)[0], images)
    assert (gradient[0] != 0).float().mean() > 0.99
    assert not gradient[1:].any()


@with_and_without_classes
@generators
def test_the_gradient_reaches_every_parameter_of_a_generator(name, classes):
    generator, latents, labels = make_generator(name, classes)
    (generator(latents, *labels) - 0.3).square().sum().backward()
    assert_all_have_gradients(generator)


@with_and_without_classes
@discriminators
def test_the_gradient_reaches_every_parameter_of_a_discriminator(name, classes):
    discriminator, images, labels = make_discriminator(name, classes)
    (discriminator(images, *labels) - 0.3).square().sum().backward()
    assert_all_have_gradients(discriminator)


def assert_all_have_gradients(network):
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-7, name


@with_and_without_classes
@pytest.mark.parametrize("penalty", PENALTIES)
@discriminators
def test_the_gradient_of_a_penalty_is_its_change(name, penalty, classes):
    discriminator, real, labels = make_discriminator(name, classes)
    discriminator, real = discriminator.double(), real[:2].double()
    for layer in discriminator.modules():
        if hasattr(layer, "parametrizations"):
            for _ in range(100):  # a singular value changes as its vectors say once these are right
                layer.weight  # noqa: B018
    discriminator.eval()
    fake = real.flip(0)

    def value():
        with torch.random.fork_rng():
            torch.manual_seed(1)  # of the places between real and fake
            conditioned = discriminator if classes is None else _Conditioned(discriminator, *labels)
            return get_penalty(penalty)(conditioned, real, fake)

    parameters = [p for p in discriminator.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    torch.manual_seed(2)
    directions = [torch.randn_like(p) for p in parameters]
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    small, ends = 1e-7, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * small)
        ends.append(value().item())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=-sign * small)
    assert (ends[0] - ends[1]) / (2 * small) == pytest.approx(expected, rel=5e-3)
    assert expected != 0


class _Conditioned(torch.nn.Module):
    def __init__(self, discriminator, labels):
        super().__init__()
        self.discriminator, self.labels = discriminator, labels

    def forward(self, images):
        return self.discriminator(images, self.labels[: len(images)])


@with_and_without_classes
@generators
def test_a_generator_draws_and_learns_in_bfloat16(name, classes):
    generator, latents, labels = make_generator(name, classes)
    exact = copy.deepcopy(generator)(latents, *labels)
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(latents, *labels)
    assert images.dtype == torch.bfloat16
    assert (images.float() - exact).square().mean().sqrt() < 0.03 * exact.std() + 0.01
    (images.float() - 0.3).square().sum().backward()
    assert_all_have_gradients(generator)


@with_and_without_classes
@discriminators
def test_a_discriminator_judges_and_learns_in_bfloat16_with_logits_in_full_precision(name, classes):
    discriminator, images, labels = make_discriminator(name, classes)
    exact = copy.deepcopy(discriminator)(images, *labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(images, *labels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())
    (logits - 0.3).square().sum().backward()
    assert_all_have_gradients(discriminator)


# Compiling takes seconds; most of it is tracing, which "aot_eager" does twice, for the backward as well.
@pytest.mark.parametrize(
    ("make", "name", "backend"),
    [
        (make_discriminator, "dcgan_spectral", "aot_eager"),
        (make_discriminator, "resnet_layer", "eager"),
        (make_discriminator, "sagan", "eager"),
        (make_generator, "dcgan", "eager"),
        (make_generator, "resnet", "aot_eager"),
        (make_generator, "sagan", "eager"),
    ],
)
def test_a_compiled_network_is_one_graph_that_computes_and_learns_the_same(make, name, backend):
    """Twice, so that what is kept from step to step (running statistics, singular vectors) counts too."""
    torch._dynamo.reset()
    network, inputs, labels = make(name, 3)
    plain = copy.deepcopy(network)
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    for _ in range(2):
        found, expected = compiled(inputs, *labels), plain(inputs, *labels)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.square().sum().backward()
        expected.square().sum().backward()
    for (where, parameter), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=f"gradient of {where}")
    for (where, buffer), other in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=f"buffer {where}")


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU, found no g++")
def test_code_that_is_compiled_for_half_precision_loses_no_gradient():
    """Torch's own compiler: the others above run torch's ordinary kernels, which lose none."""
    torch._dynamo.reset()
    network, inputs, labels = make_generator("resnet", 3)
    plain = copy.deepcopy(network)
    compiled = torch.compile(network)
    for each in (compiled, plain):
        with torch.autocast("cpu", torch.bfloat16):
            images = each(inputs, *labels).float()
        (images * torch.linspace(-1, 1, images.numel()).view_as(images)).sum().backward()
    for (where, parameter), other in zip(network.named_parameters(), plain.named_parameters(), strict=True):
        gap = (parameter.grad - other[1].grad).norm()
        assert gap < 0.5 * other[1].grad.norm(), f"gradient of {where}"


def test_a_compiled_discriminator_evaluates_with_other_code_than_it_trains_with():
    torch._dynamo.reset()
    discriminator, images, labels = make_discriminator("dcgan_spectral", 3)
    compiled = torch.compile(discriminator, backend="eager", fullgraph=True)
    compiled(images, *labels)
    compiled.eval()
    plain = copy.deepcopy(discriminator)
    torch.testing.assert_close(compiled(images, *labels), plain(images, *labels), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(discriminator.state_dict(), plain.state_dict(), rtol=0, atol=0)


@with_and_without_classes
@pytest.mark.parametrize(
    ("make", "name"), [(make_generator, n) for n in GENERATORS] + [(make_discriminator, n) for n in DISCRIMINATORS]
)
def test_a_state_dict_carries_all_that_a_network_computes_with(make, name, classes):
    network, inputs, labels = make(name, classes)
    network(inputs, *labels)  # moves statistics and singular vectors
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    torch.manual_seed(5)
    fresh = (GENERATORS if make is make_generator else DISCRIMINATORS)[name](classes)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eval()(inputs, *labels), network.eval()(inputs, *labels))


@generators
def test_a_generator_can_be_averaged(name):
    generator, latents, labels = make_generator(name, 3)
    average = averaged_copy(generator)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    generator(latents, *labels)
    update_average(average, generator, decay=0.5)
    images = average.eval()(latents, *labels)
    assert images.isfinite().all()
    assert not torch.equal(images, generator.eval()(latents, *labels))


@generators
def test_what_a_conditional_generator_cannot_take_is_refused(name):
    check_labels_refused(*make_generator(name, 3))
    generator, latents, _ = make_generator(name)
    with pytest.raises(ValueError, match=r"labels must be None for an unconditional .*Generator .* found shape \(4,\)"):
        generator(latents, LABELS)
    with pytest.raises(ValueError, match=r"latent must be \(n, 6\), found \(4, 5\)"):
        generator(latents[:, :5])


@discriminators
def test_what_a_conditional_discriminator_cannot_take_is_refused(name):
    check_labels_refused(*make_discriminator(name, 3))
    discriminator, images, _ = make_discriminator(name)
    size = discriminator.image_size
    with pytest.raises(ValueError, match=r"labels must be None for an unconditional .*Discriminator"):
        discriminator(images, LABELS)
    for wrong in (images[:, :1], images[..., :-2], torch.zeros(4, CHANNELS, 2 * size, 2 * size), images[0]):
        with pytest.raises(ValueError, match=rf"images must be \(n, 2, {size}, {size}\), found \({wrong.shape[0]}, "):
            discriminator(wrong)


def check_labels_refused(network, inputs, labels):
    kind = type(network).__name__
    for given, error, message in [
        (None, ValueError, f"labels must be given to {kind}, which is conditional on 3 classes, found None"),
        (LABELS[:3], ValueError, r"labels must be \(4,\), one for each sample, found \(3,\)"),
        (LABELS[:, None], ValueError, r"labels must be \(4,\), one for each sample, found \(4, 1\)"),
        (LABELS.float(), TypeError, r"labels must be int64, found torch.float32"),
        (LABELS + 1, ValueError, "labels must be from 0 to 2, found 1 to 3"),
        (LABELS - 1, ValueError, "labels must be from 0 to 2, found -1 to 1"),
    ]:
        with pytest.raises(error, match=message):
            network(inputs, given)
