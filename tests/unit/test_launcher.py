"""Layers that torch refuses to pickle reach spawned workers all the same."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from lightning_decgan.gan.networks import DCGANDiscriminator
from lightning_decgan.strategy.launcher import let_parametrized_layers_travel


def _through_a_process_boundary(module: nn.Module) -> nn.Module:
    let_parametrized_layers_travel(module)
    return ForkingPickler.loads(ForkingPickler.dumps(module))


class Twice(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def _own(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, "weight", Twice())
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(spectral_norm(nn.Linear(4, 3)), nn.ReLU(), _own(nn.Linear(3, 2))),
        lambda: nn.Sequential(nn.Flatten(), spectral_norm(_own(nn.Linear(4, 3)))),
    ],
    ids=["two layers", "two on one layer"],
)
def test_a_parametrized_module_computes_and_learns_as_before(make) -> None:
    module = make()
    there = _through_a_process_boundary(module)
    x = torch.randn(5, 4)
    assert torch.equal(module.eval()(x), there.eval()(x))
    assert [name for name, _ in there.named_parameters()] == [name for name, _ in module.named_parameters()]
    there.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in there.parameters())
    there.load_state_dict(module.state_dict())


def test_the_spectrally_normalized_dcgan_travels() -> None:
    discriminator = DCGANDiscriminator(spectral_norm=True).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(_through_a_process_boundary(discriminator)(images), discriminator(images))
