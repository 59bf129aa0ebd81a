"""The sizes of the residual networks: shapes, parameters in closed form, initial weights, and what is refused.

Networks of full size are made on the meta device, which knows shapes and has no memory.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from lightning_decgan.gan.networks import (
    DCGANGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
    SAGANDiscriminator,
    SAGANGenerator,
    SelfAttention,
    SpectralNorm,
)
from lightning_decgan.gan.networks.blocks import DownBlock, UpBlock

# base, multiples of the width from the base to the image
GENERATORS = {
    32: (4, (1, 1, 1, 1)),
    48: (6, (8, 4, 2, 1)),
    64: (4, (16, 8, 4, 2, 1)),
    128: (4, (16, 16, 8, 4, 2, 1)),
}
# multiples of the width from the image on, and how many blocks halve
DISCRIMINATORS = {
    32: ((1, 1, 1, 1), 2),
    48: ((1, 2, 4, 8, 16), 4),
    64: ((1, 2, 4, 8, 16), 5),
    128: ((1, 2, 4, 8, 16, 16), 5),
}


def attention_parameters(features):
    return 2 * features * (features // 8) + 2 * features * (features // 2) + 1


def generator_parameters(size, width, latent_dim=128, classes=1, attention=None):
    base, multiples = GENERATORS[size]
    widths = [width * multiple for multiple in multiples]
    total = (latent_dim + 1) * widths[0] * base**2
    for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
        total += 9 * before * after + 9 * after**2 + before * after + 2 * classes * (before + after)
        if base * 2**number == attention:
            total += attention_parameters(after)
    return total + 2 * width + (9 * width + 1) * 3


def discriminator_parameters(size, width, *, wide, classes=0, attention=None, layer_norm=False):
    multiples, halvings = DISCRIMINATORS[size]
    widths, total = [3, *(width * multiple for multiple in multiples)], 0
    for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
        hidden = after if wide or number == 1 else before
        total += (9 * before + 1) * hidden + (9 * hidden + 1) * after
        total += (before + 1) * after if number <= halvings or before != after else 0
        total += 2 * (before + hidden) if layer_norm and number > 1 else 0
        if number <= halvings and size // 2**number == attention:
            total += attention_parameters(after)
    return total + (widths[-1] + 1) + classes * widths[-1]


@pytest.fixture
def no_power_iterations(monkeypatch):
    """They take seconds on the meta device, where there is nothing to find."""
    monkeypatch.setattr(SpectralNorm, "_power_method", lambda *_: None)


def size_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "formula", "number"),
    [
        (lambda: ResNetGenerator(), generator_parameters(32, 128), 1_203_331),
        (lambda: ResNetGenerator(width=256), generator_parameters(32, 256), 4_274_435),
        (lambda: ResNetGenerator(image_size=48), generator_parameters(48, 64), 4_876_739),
        (lambda: ResNetGenerator(image_size=64), generator_parameters(64, 64), 12_217_795),
        (lambda: SAGANGenerator(), generator_parameters(32, 256, attention=16), 4_356_356),
        (lambda: SAGANGenerator(image_size=64), generator_parameters(64, 64, attention=32), 12_238_276),
        (lambda: SAGANGenerator(image_size=128), generator_parameters(128, 64, attention=32), 32_226_756),
        (
            lambda: SAGANGenerator(image_size=128, num_classes=1000),
            generator_parameters(128, 64, classes=1000, attention=32),
            42_072_900,
        ),
    ],
)
@pytest.mark.usefixtures("no_power_iterations")
def test_a_generator_of_full_size_has_the_parameters_that_its_docstring_says(make, formula, number):
    with torch.device("meta"):
        generator = make()
    assert size_of(generator) == formula == number
    assert f"{number:,}" in type(generator).__doc__
    labels = () if generator.num_classes is None else (torch.zeros(2, dtype=torch.int64, device="meta"),)
    images = generator(torch.zeros(2, 128, device="meta"), *labels)
    assert images.shape == (2, 3, generator.image_size, generator.image_size)


@pytest.mark.parametrize(
    ("make", "formula", "number"),
    [
        (lambda: ResNetDiscriminator(), discriminator_parameters(32, 128, wide=False), 1_053_825),
        (lambda: ResNetDiscriminator(norm="spectral"), discriminator_parameters(32, 128, wide=False), 1_053_825),
        (lambda: ResNetDiscriminator(image_size=48), discriminator_parameters(48, 64, wide=False), 10_141_441),
        (lambda: ResNetDiscriminator(image_size=64), discriminator_parameters(64, 64, wide=False), 10_141_441),
        (lambda: SAGANDiscriminator(), discriminator_parameters(32, 128, wide=True, attention=16), 1_074_306),
        (
            lambda: SAGANDiscriminator(image_size=64),
            discriminator_parameters(64, 64, wide=True, attention=32),
            19_547_842,
        ),
        (
            lambda: SAGANDiscriminator(image_size=128),
            discriminator_parameters(128, 64, wide=True, attention=32),
            38_439_618,
        ),
        (
            lambda: SAGANDiscriminator(image_size=128, num_classes=1000),
            discriminator_parameters(128, 64, wide=True, classes=1000, attention=32),
            39_463_618,
        ),
    ],
)
@pytest.mark.usefixtures("no_power_iterations")
def test_a_discriminator_of_full_size_has_the_parameters_that_its_docstring_says(make, formula, number):
    with torch.device("meta"):
        discriminator = make()
    assert size_of(discriminator) == formula == number
    assert f"{number:,}" in type(discriminator).__doc__
    size = discriminator.image_size
    labels = () if discriminator.num_classes is None else (torch.zeros(2, dtype=torch.int64, device="meta"),)
    assert discriminator(torch.zeros(2, 3, size, size, device="meta"), *labels).shape == (2,)


def test_a_layer_normalisation_adds_a_gain_and_a_bias_for_each_channel_that_it_sees():
    with torch.device("meta"):
        plain, normalized = ResNetDiscriminator(image_size=48), ResNetDiscriminator(image_size=48, norm="layer")
    assert size_of(normalized) == discriminator_parameters(48, 64, wide=False, layer_norm=True)
    assert size_of(normalized) - size_of(plain) == 2 * 2 * (64 + 128 + 256 + 512)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [((ResNetGenerator, ResNetDiscriminator), (32, 48, 64)), ((SAGANGenerator, SAGANDiscriminator), (32, 64, 128))],
)
@pytest.mark.parametrize("classes", [None, 4])
def test_a_narrow_generator_makes_what_a_narrow_discriminator_reads(family, sizes, classes):
    for size in sizes:
        generator = family[0](5, 2, size, width=1, num_classes=classes)
        discriminator = family[1](2, size, width=1, num_classes=classes)
        labels = () if classes is None else (torch.tensor([0, 3]),)
        images = generator(torch.randn(2, 5), *labels)
        assert images.shape == (2, 2, size, size)
        assert discriminator(images, *labels).shape == (2,)


def attention_place(network, blocks):
    """After how many blocks the attention comes."""
    kinds = [type(layer) for layer in network.layers if isinstance(layer, blocks | SelfAttention)]
    assert kinds.count(SelfAttention) == 1
    return kinds.index(SelfAttention)


@pytest.mark.parametrize(
    ("size", "attention", "after_up", "after_down"),
    [(32, None, 2, 1), (32, 8, 1, 2), (64, None, 3, 1), (64, 16, 2, 2), (128, None, 3, 2), (128, 64, 4, 1)],
)
def test_attention_comes_after_the_maps_of_its_size(size, attention, after_up, after_down):
    generator = SAGANGenerator(image_size=size, width=1, attention_size=attention)
    discriminator = SAGANDiscriminator(image_size=size, width=1, attention_size=attention)
    assert attention_place(generator, UpBlock) == after_up
    assert attention_place(discriminator, DownBlock) == after_down


def check_uniform(weight, bound):
    """Uniform between the two bounds: the standard deviation is the bound over the root of 3."""
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_weights_start_as_in_the_papers_code():
    torch.manual_seed(0)
    generator, discriminator = ResNetGenerator(width=32), ResNetDiscriminator(width=32, num_classes=64)
    for conv in (generator.layers[2].residual[3], discriminator.layers[2].residual[1]):
        check_uniform(conv.weight, math.sqrt(2) * math.sqrt(6 / (9 * 32 + 9 * 32)))
    check_uniform(generator.layers[2].shortcut.weight, math.sqrt(6 / 64))
    check_uniform(generator.layers[0].weight, math.sqrt(6 / (128 + 32 * 16)))
    check_uniform(discriminator.head.embedding.weight, math.sqrt(6 / (32 + 64)))
    sagan = SAGANGenerator(width=32)
    check_uniform(sagan.layers[2].residual[3].parametrizations.weight.original, math.sqrt(6 / (9 * 32 + 9 * 32)))
    for network in (generator, discriminator, sagan):
        biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
        assert biases
        assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("size", [16, 28, 33, 128, 32.0, True, "32", None])
def test_a_size_without_a_residual_network_is_refused(size):
    for network in (ResNetGenerator, ResNetDiscriminator):
        with pytest.raises(ValueError, match=f"image_size must be one of 32, 48, 64, found {size!r}"):
            network(image_size=size)


@pytest.mark.parametrize("size", [16, 48, 256, 64.0])
def test_a_size_without_a_self_attention_network_is_refused(size):
    for network in (SAGANGenerator, SAGANDiscriminator):
        with pytest.raises(ValueError, match=f"image_size must be one of 32, 64, 128, found {size!r}"):
            network(image_size=size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAGANGenerator(width=1, attention_size=4), "attention_size must be one of 8, 16, 32, found 4"),
        (lambda: SAGANGenerator(width=1, attention_size=24), "attention_size must be one of 8, 16, 32, found 24"),
        (lambda: SAGANDiscriminator(width=1, attention_size=32), "attention_size must be one of 16, 8, found 32"),
        (
            lambda: SAGANDiscriminator(width=1, image_size=64, attention_size=3),
            "must be one of 32, 16, 8, 4, 2, found 3",
        ),
        (lambda: ResNetDiscriminator(norm="batch"), "norm must be one of None, layer, spectral, found 'batch'"),
        (lambda: ResNetDiscriminator(norm=False), "norm must be one of None, layer, spectral, found False"),
        (lambda: ResNetDiscriminator(pooling="max"), "pooling must be one of sum, mean, found 'max'"),
        (lambda: DCGANGenerator(norm=False, num_classes=3), "norm must be True for a class-conditional generator"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("network", [ResNetGenerator, ResNetDiscriminator, SAGANGenerator, SAGANDiscriminator])
@pytest.mark.parametrize("name", ["channels", "width", "num_classes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_below_one_are_refused(network, name, value):
    with pytest.raises(
        ValueError if type(value) is int else TypeError, match=f"{name} must be an integer >= 1, found {value!r}"
    ):
        network(**{name: value})
