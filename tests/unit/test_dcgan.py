"""The DCGAN networks: shapes, initial weights, gradients, and what they refuse."""

import itertools
import math

import pytest
import torch
from torch import nn

from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator
from lightning_decgan.gan.networks.dcgan import pyramid

SIZES = [8, 9, 12, 13, 15, 16, 17, 20, 28, 31, 32, 33, 47, 48, 63, 64]


@pytest.mark.parametrize("size", SIZES)
def test_a_generator_makes_what_a_discriminator_reads(size):
    generator = DCGANGenerator(latent_dim=5, channels=2, image_size=size, width=2)
    discriminator = DCGANDiscriminator(channels=2, image_size=size, width=2)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, 2, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3,)


def test_every_size_from_8_to_64_halves_down_to_a_base_of_4_to_7():
    for size in range(8, 65):
        sizes = pyramid(size)
        assert sizes[0] == size
        assert all(below == above // 2 for above, below in itertools.pairwise(sizes))
        assert 4 <= sizes[-1] <= 7


@pytest.mark.parametrize("size", [8, 13, 28])
def test_every_pixel_of_a_fake_depends_on_the_latent_and_moves_the_logit(size):
    torch.manual_seed(0)
    generator = DCGANGenerator(latent_dim=8, image_size=size, width=4).double()
    discriminator = DCGANDiscriminator(image_size=size, width=4).double()
    latents = torch.randn(6, 8, dtype=torch.float64)
    images = generator(latents)
    assert images.std(0).min() > 0
    leaf = images.detach().requires_grad_()
    discriminator(leaf).sum().backward()
    assert (leaf.grad != 0).all()


@pytest.mark.parametrize("norm", [False, True])
def test_the_gradient_reaches_every_parameter_of_both(norm):
    torch.manual_seed(0)
    generator = DCGANGenerator(image_size=12, width=4, norm=norm)
    discriminator = DCGANDiscriminator(image_size=12, width=4, norm=norm)
    discriminator(generator(torch.randn(4, 64))).square().sum().backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    for network in (DCGANGenerator(image_size=32), DCGANDiscriminator(image_size=32)):
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                error = 0.02 / math.sqrt(2 * layer.weight.numel())  # of a standard deviation estimated from n numbers
                assert abs(layer.weight.std().item() - 0.02) < 5 * error
                assert abs(layer.weight.mean().item()) < 5 * 0.02 / math.sqrt(layer.weight.numel())
                assert layer.bias is None or not layer.bias.any()


def test_the_number_of_parameters_is_that_of_the_layers_in_the_docstring():
    def size(network):
        return sum(parameter.numel() for parameter in network.parameters())

    width, latent = 32, 64
    linear, up, image = latent * 64 * 16 + 128, 64 * 32 * 16 + 64, 32 * 9 + 1
    assert size(DCGANGenerator(latent_dim=latent, width=width)) == linear + up + image
    image, down, linear = 9 * 32 + 32, 32 * 64 * 16 + 64, 64 * 16 + 1
    assert size(DCGANDiscriminator(width=width)) == image + down + linear


def test_spectral_norm_makes_the_largest_singular_value_of_every_layer_one():
    torch.manual_seed(0)
    discriminator = DCGANDiscriminator(image_size=16, width=4, spectral_norm=True).double()
    with torch.no_grad():
        for _ in range(200):
            discriminator(torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    discriminator.eval()
    layers = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_batch_normalisation_is_there_only_where_asked_for():
    def norms(network):
        return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())

    assert norms(DCGANGenerator(image_size=28)) == 3
    assert norms(DCGANGenerator(image_size=28, norm=False)) == 0
    assert norms(DCGANDiscriminator(image_size=28)) == 0
    assert norms(DCGANDiscriminator(image_size=28, norm=True)) == 2


@pytest.mark.parametrize("size", [7, 65, 0, -8, 8.0, True, "8"])
def test_a_size_out_of_range_is_refused(size):
    for network in (DCGANGenerator, DCGANDiscriminator):
        with pytest.raises(
            ValueError if type(size) is int else TypeError,
            match=f"image_size must be an integer from 8 to 64, found {size!r}",
        ):
            network(image_size=size)


@pytest.mark.parametrize("name", ["latent_dim", "channels", "width"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_below_one_are_refused(name, value):
    with pytest.raises(
        ValueError if type(value) is int else TypeError, match=f"{name} must be an integer >= 1, found {value!r}"
    ):
        DCGANGenerator(**{name: value})
    if name != "latent_dim":
        with pytest.raises(
            ValueError if type(value) is int else TypeError, match=f"{name} must be an integer >= 1, found {value!r}"
        ):
            DCGANDiscriminator(**{name: value})
