"""The penalties against closed forms: linear and quadratic discriminators, whose slopes are known."""

import pytest
import torch
from torch import nn

from lightning_decgan.gan.networks import DCGANDiscriminator
from lightning_decgan.gan.penalties import PENALTIES, LazyPenalty, dragan, get_penalty, lazy_penalties, r1, wgan_gp

SHAPE = (5, 2, 3, 3)


def linear(weight):
    layer = nn.Linear(weight.numel(), 1).double()
    layer.weight.data.copy_(weight[None])
    return nn.Sequential(nn.Flatten(), layer)


class Quadratic(nn.Module):
    """D(x) = a / 2 * |x|^2, so the slope at x is a * x."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, images):
        return 0.5 * self.a * images.flatten(1).square().sum(1)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight_and_its_gradient_is_the_weight(images):
    weight = torch.randn(18, dtype=torch.float64)
    discriminator = linear(weight)
    value = r1(discriminator, *images)
    assert value.item() == pytest.approx(0.5 * weight.square().sum().item(), abs=1e-12)
    value.backward()
    torch.testing.assert_close(discriminator[1].weight.grad[0], weight, rtol=0, atol=1e-12)


def test_r1_of_a_quadratic_discriminator_is_half_a_squared_times_the_mean_squared_norm_of_the_real_images(images):
    real, fake = images
    discriminator = Quadratic(1.5)
    value = r1(discriminator, real, fake)
    moment = real.flatten(1).square().sum(1).mean().item()
    assert value.item() == pytest.approx(0.5 * 1.5**2 * moment, rel=1e-13)
    value.backward()
    assert discriminator.a.grad.item() == pytest.approx(1.5 * moment, rel=1e-13)


def test_wgan_gp_of_a_linear_critic_is_the_squared_distance_of_its_norm_from_one(images):
    weight = torch.randn(18, dtype=torch.float64)
    critic, norm = linear(weight), weight.norm()
    value = wgan_gp(critic, *images)
    assert value.item() == pytest.approx((norm.item() - 1) ** 2, abs=1e-12)
    value.backward()
    torch.testing.assert_close(critic[1].weight.grad[0], 2 * (norm - 1) * weight / norm, rtol=0, atol=1e-12)


def test_wgan_gp_looks_between_the_two_images_at_a_place_drawn_per_sample(images):
    real, fake = images
    torch.manual_seed(7)
    value = wgan_gp(Quadratic(2.0), real, fake)
    torch.manual_seed(7)
    epsilon = torch.rand(len(real), 1, 1, 1, dtype=torch.float64)
    between = epsilon * real + (1 - epsilon) * fake
    norms = 2.0 * between.flatten(1).norm(dim=1)
    assert value.item() == pytest.approx((norms - 1).square().mean().item(), rel=1e-13)
    assert epsilon.unique().numel() == len(real)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_reaches_neither_the_images_nor_whatever_made_them(name, images):
    real, fake = (image.requires_grad_() for image in images)
    get_penalty(name)(Quadratic(1.0), real, fake * 2).backward()
    assert real.grad is None
    assert fake.grad is None


def test_the_value_of_a_penalty_can_be_had_where_gradients_are_switched_off(images):
    with torch.no_grad():
        value = r1(Quadratic(1.0), *images)
    assert torch.equal(value, r1(Quadratic(1.0), *images).detach())
    assert not value.requires_grad


@pytest.mark.parametrize("name", PENALTIES)
def test_autocast_does_not_coarsen_a_penalty(name):
    torch.manual_seed(0)
    discriminator = DCGANDiscriminator(width=4)
    real, fake = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    torch.manual_seed(1)
    exact = get_penalty(name)(discriminator, real, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = get_penalty(name)(discriminator, real, fake.bfloat16().float())
        same = get_penalty("r1")(discriminator, real, fake)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=1e-2, atol=1e-4)
    assert torch.equal(same, r1(discriminator, real, fake))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_discriminator_is_penalised_all_the_same(in_place):
    torch.manual_seed(0)
    discriminator = DCGANDiscriminator(width=4)
    real = torch.randn(4, 1, 8, 8)
    expected = r1(discriminator, real)
    if in_place:
        discriminator.compile(backend="aot_eager")
        compiled = discriminator
    else:
        compiled = torch.compile(discriminator, backend="aot_eager")
    compiled(real).sum().backward()  # compiled by now
    value = r1(compiled, real)
    value.backward()  # a compiled graph could not be differentiated twice
    torch.testing.assert_close(value, expected)


def test_dragan_of_a_quadratic_critic_is_taken_around_the_real_images(images):
    real, fake = images
    torch.manual_seed(3)
    found = dragan(Quadratic(1.5), real, fake).item()
    torch.manual_seed(3)
    alpha = torch.rand(len(real), 1, 1, 1, dtype=torch.float64)
    perturbed = real + 0.5 * real.std() * torch.rand(SHAPE, dtype=torch.float64)
    around = real + alpha * (perturbed - real)  # a point between an image and its neighbour, as the authors draw it
    assert found == pytest.approx((1.5 * around.flatten(1).norm(dim=1) - 1).square().mean().item(), rel=1e-13)
    assert found != pytest.approx((1.5 * real.flatten(1).norm(dim=1) - 1).square().mean().item(), rel=1e-3)


def test_a_lazy_penalty_is_weighted_by_its_interval_and_names_what_is_wrong(images):
    discriminator = Quadratic(1.5)
    lazy = LazyPenalty("r1", weight=0.5, every_steps=4)
    assert lazy(discriminator, *images).item() == pytest.approx(2 * r1(discriminator, *images).item(), rel=1e-13)
    assert not LazyPenalty(r1, weight=0).is_due(0)
    with pytest.raises(ValueError, match="weight must be a finite number >= 0, found -1"):
        LazyPenalty("r1", weight=-1)
    with pytest.raises(ValueError, match="every_steps must be an integer >= 1, found 0"):
        LazyPenalty("r1", every_steps=0)
    with pytest.raises(ValueError, match="penalty must be one of r1, wgan_gp, dragan"):
        LazyPenalty("r2")


def test_a_callable_is_a_penalty_and_none_is_none():
    assert get_penalty(r1) is r1
    assert get_penalty(None) is None


def test_what_is_no_penalty_is_refused_with_what_would_be_one():
    with pytest.raises(ValueError, match="penalty must be one of r1, wgan_gp, dragan or None, found 'r2'"):
        get_penalty("r2")
    with pytest.raises(TypeError, match=r"penalty must be a name, None or a callable .*, found float"):
        get_penalty(1.0)


def test_wgan_gp_refuses_batches_of_two_shapes(images):
    real, fake = images
    with pytest.raises(ValueError, match=r"fake must have the shape of real, \(5, 2, 3, 3\), found \(4, 2, 3, 3\)"):
        wgan_gp(Quadratic(1.0), real, fake[:4])


def test_a_single_lazy_penalty_keeps_its_own_weight_and_interval():
    lazy = LazyPenalty("r1", weight=0.1, every_steps=16)
    assert lazy_penalties(lazy, weight=10.0, every_steps=1) == (lazy,)


@pytest.mark.parametrize(("returned", "found"), [(torch.ones(5), r"\(5,\)"), (0.5, "float")])
def test_a_penalty_that_is_no_scalar_is_named(images, returned, found):
    with pytest.raises(ValueError, match=f"penalty must return a scalar tensor, found {found}"):
        LazyPenalty(lambda discriminator, real, fake: returned)(Quadratic(1.0), *images)


def test_slopes_of_half_precision_weights_are_compared_with_one_in_single_precision(images):
    real = images[0].bfloat16()
    critic = Quadratic(1.5).bfloat16()
    found = wgan_gp(critic, real, real)
    slopes = (critic.a * real).float().flatten(1)  # each as bfloat16 has it; their norm and its distance from 1 are not
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((slopes.norm(dim=1) - 1).square().mean().item(), rel=1e-2)
