"""The joint pass over all networks, with classes, augmentation and bfloat16: the gradients of two plain graphs."""

import copy

import pytest
import torch
from torch import Tensor

from lightning_decgan.gan import DecentralizedGANModule
from lightning_decgan.gan.losses import LOSSES
from lightning_decgan.gan.passes import both_pass
from tests.unit.test_networks import CHANNELS, DISCRIMINATORS, GENERATORS, LATENT_DIM, stirred

N = 4
INDEPENDENT = [name for name in DISCRIMINATORS if name != "dcgan"]  # that one has BatchNorm
FAKE_LABELS, REAL_LABELS = torch.tensor([2, 0, 0, 1]), torch.tensor([0, 1, 2, 1])


def make_game(name: str, classes: int | None, **settings: object) -> tuple[DecentralizedGANModule, Tensor, Tensor]:
    """A game whose discriminator treats samples independently, real images and latents; in float64."""
    torch.manual_seed(0)
    family = name.split("_")[0]
    generator, discriminator = stirred(GENERATORS[family](classes)), stirred(DISCRIMINATORS[name](classes))
    game = DecentralizedGANModule(generator, discriminator, joint=True, **settings).double()
    size = discriminator.image_size
    real = torch.rand(N, CHANNELS, size, size, dtype=torch.float64) * 2 - 1
    return game, real, torch.randn(N, LATENT_DIM, dtype=torch.float64)


def joint_gradients(game: DecentralizedGANModule, real: Tensor, latent: Tensor) -> dict[str, Tensor]:
    """What the joint pass leaves in both players."""
    labels = None if game.num_classes is None else (REAL_LABELS.to(real.device), FAKE_LABELS.to(real.device))
    torch.manual_seed(1)  # of the augmentation
    fake = game.generate(latent, None if labels is None else labels[1])
    both_pass(game, real, fake, labels).objective.backward()
    return {name: parameter.grad for name, parameter in game.named_parameters() if parameter.grad is not None}


def plain_gradients(game: DecentralizedGANModule, real: Tensor, latent: Tensor) -> dict[str, Tensor]:
    """Each player's loss on a graph of its own, differentiated by autograd alone."""
    found = {}
    classes, fake_classes = None, ()
    if game.num_classes is not None:
        fake_classes = (FAKE_LABELS.to(real.device),)
        classes = torch.cat([REAL_LABELS.to(real.device), *fake_classes])
    for player in ("discriminator", "generator"):
        own = copy.deepcopy(game)
        torch.manual_seed(1)
        fake = own.generate(latent, *fake_classes)
        real_logits, fake_logits = own.judge(torch.cat([real, fake]), classes).split(N)
        if player == "discriminator":
            loss = own.discriminator_loss(real_logits, fake_logits)
        else:
            loss = own.generator_loss(fake_logits, *([real_logits] if own.relative else []))
        names, parameters = zip(*getattr(own, player).named_parameters(prefix=player), strict=True)
        found |= dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    return found


@pytest.mark.parametrize("augment", [None, "color,translation,cutout"])
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_one_backward_serves_both_players_whatever_the_network(name, classes, augment):
    game, real, latent = make_game(name, classes, augment=augment, loss="hinge")
    expected = plain_gradients(game, real, latent)
    found = joint_gradients(game, real, latent)
    assert found.keys() == expected.keys()
    for where, gradient in found.items():
        scale = expected[where].abs().max().item()
        torch.testing.assert_close(gradient, expected[where], rtol=1e-9, atol=1e-11 * scale + 1e-15, msg=where)
    assert min(expected["generator." + part].abs().max() for part in _names(game.generator)) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_one_backward_serves_both_players_whatever_the_loss_with_classes(loss):
    game, real, latent = make_game("resnet_layer", 3, loss=loss, augment="translation")
    expected = plain_gradients(game, real, latent)
    for where, gradient in joint_gradients(game, real, latent).items():
        scale = expected[where].abs().max().item()
        torch.testing.assert_close(gradient, expected[where], rtol=1e-9, atol=1e-11 * scale + 1e-15, msg=where)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_in_bfloat16_it_rounds_no_more_than_two_graphs_do(name):
    exact, real, latent = make_game(name, None)
    truth = _flat(plain_gradients(exact, real, latent))
    half, real, latent = exact.float(), real.float(), latent.float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = _flat(plain_gradients(half, real, latent)) - truth
        joint = _flat(joint_gradients(half, real, latent)) - truth
    assert joint.norm() < 1.5 * plain.norm() + 1e-6 * truth.norm()
    assert plain.norm() < 0.2 * truth.norm()


@pytest.mark.parametrize(("dtype", "forwards"), [(torch.bfloat16, 1), (torch.float16, 2)])
def test_in_float16_whose_exponents_are_too_few_each_player_has_a_forward_of_its_own(dtype, forwards):
    game, real, latent = make_game("sagan", None)
    game, calls = game.float(), []
    game.discriminator.register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast("cpu", dtype):
        joint_gradients(game, real.float(), latent.float())
    assert len(calls) == forwards


def _names(network: torch.nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])
