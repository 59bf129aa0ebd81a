"""Does a discriminator treat samples independently? Networks that do, others that do not, and what trying leaves."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lightning_decgan.gan import DCGANDiscriminator, DecentralizedGANModule
from lightning_decgan.gan.game import Game
from lightning_decgan.gan.independence import treats_samples_independently
from lightning_decgan.gan.networks import DCGANGenerator


class BatchDeviation(nn.Module):
    """The standard deviation over the batch as one more feature, as progressive growing has it."""

    def __init__(self, detached):
        super().__init__()
        self.detached = detached

    def forward(self, features):
        deviation = features.std(0).mean()
        return features + (deviation.detach() if self.detached else deviation)


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 1), nn.Flatten(0))


CASES = [
    ("linear", flat(), True),
    ("one column", nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), True),
    ("dcgan", DCGANDiscriminator(width=2), True),
    ("spectral norm", DCGANDiscriminator(width=2, spectral_norm=True), True),
    ("dropout", flat(nn.Dropout(0.5)), True),
    ("layer norm", flat(nn.LayerNorm(64)), True),
    ("batch norm", DCGANDiscriminator(width=2, norm=True), False),
    ("batch norm in evaluation", DCGANDiscriminator(width=2, norm=True).eval(), True),
    ("deviation of the batch", flat(BatchDeviation(detached=False)), False),
    ("deviation without a gradient", flat(BatchDeviation(detached=True)), False),
    ("patches", nn.Conv2d(1, 1, 3), False),
    ("one logit for all", nn.Sequential(nn.Flatten(0), nn.Linear(8 * 64, 1)), False),
]


@pytest.mark.parametrize(("network", "alone"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_it_is_found_out(network, alone):
    game = Game()
    game.discriminator = network
    torch.manual_seed(0)
    assert treats_samples_independently(game, torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)) is alone


def test_an_augmentation_that_mixes_samples_counts_too():
    game = Game()
    game.discriminator = flat()
    game.augment = lambda images: 0.7 * images + 0.3 * images.flip(0)
    assert not treats_samples_independently(game, torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8))


def test_trying_leaves_the_network_and_the_random_state_as_they_were():
    game = Game()
    game.discriminator = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), spectral_norm(nn.Linear(64, 1)))
    before = {name: value.clone() for name, value in game.discriminator.state_dict().items()}
    state = torch.get_rng_state()
    treats_samples_independently(game, torch.zeros(4, 1, 8, 8) + 1, torch.randn(4, 1, 8, 8))
    torch.random.set_rng_state(state)
    expected = torch.rand(3)
    torch.random.set_rng_state(state)
    images = torch.zeros(4, 1, 8, 8) + 1
    treats_samples_independently(game, images, images)
    assert torch.equal(torch.rand(3), expected)
    after = game.discriminator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in game.discriminator.parameters())


@pytest.mark.parametrize(("norm", "joint"), [(False, True), (True, False)])
def test_the_module_finds_out_by_itself(norm, joint):
    gan = DecentralizedGANModule(DCGANGenerator(latent_dim=4, width=2), DCGANDiscriminator(width=2, norm=norm))
    assert gan._may_be_joint(torch.randn(4, 1, 8, 8), torch.randn(4, 4), None) is joint
