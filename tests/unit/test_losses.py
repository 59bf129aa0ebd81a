"""The losses against their equations, written out in NumPy."""

import pickle

import numpy as np
import pytest
import torch

from lightning_decgan.gan.losses import LOSSES, Hinge, LossPair, NonSaturating, RelativisticAverage, get_loss

REAL = np.array([-1.7, 0.2, 3.1, 0.9, -0.4])
FAKE = np.array([2.3, -0.6, 0.05, -4.0, 1.2])

EQUATIONS = {
    "non_saturating": (
        lambda r, f: np.mean(np.log1p(np.exp(-r))) + np.mean(np.log1p(np.exp(f))),
        lambda f: -np.mean(np.log(1 / (1 + np.exp(-f)))),
    ),
    "hinge": (
        lambda r, f: np.mean(np.maximum(0, 1 - r)) + np.mean(np.maximum(0, 1 + f)),
        lambda f: -np.mean(f),
    ),
    "wasserstein": (lambda r, f: np.mean(f) - np.mean(r), lambda f: -np.mean(f)),
    "least_squares": (
        lambda r, f: 0.5 * np.mean((r - 1) ** 2) + 0.5 * np.mean(f**2),
        lambda f: 0.5 * np.mean((f - 1) ** 2),
    ),
    "relativistic_average": (
        lambda r, f: np.mean(np.log1p(np.exp(f.mean() - r))) + np.mean(np.log1p(np.exp(f - r.mean()))),
        lambda f, r: np.mean(np.log1p(np.exp(r.mean() - f))) + np.mean(np.log1p(np.exp(r - f.mean()))),
    ),
    "relativistic_average_hinge": (
        lambda r, f: np.mean(np.maximum(0, 1 - r + f.mean())) + np.mean(np.maximum(0, 1 + f - r.mean())),
        lambda f, r: np.mean(np.maximum(0, 1 - f + r.mean())) + np.mean(np.maximum(0, 1 + r - f.mean())),
    ),
}


def others(loss, real):
    """What a relative loss's generator is given besides."""
    return [real] if getattr(loss, "relative", False) else []


def test_every_loss_has_an_equation_here():
    assert set(EQUATIONS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_equation(name):
    discriminator, generator = EQUATIONS[name]
    loss, real, fake = get_loss(name), torch.from_numpy(REAL), torch.from_numpy(FAKE)
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator(REAL, FAKE), abs=1e-14)
    assert loss.generator(fake, *others(loss, real)).item() == pytest.approx(
        generator(FAKE, *others(loss, REAL)), abs=1e-14
    )
    assert loss.discriminator(real, fake).ndim == loss.generator(fake, *others(loss, real)).ndim == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_discriminator_that_is_right_by_more_never_loses_more_and_a_generator_that_fools_gains(name):
    loss = get_loss(name)
    zero, half = torch.zeros(3, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    assert loss.discriminator(half, zero) < loss.discriminator(zero, zero) < loss.discriminator(zero, half)
    assert loss.generator(half, *others(loss, zero)) < loss.generator(zero, *others(loss, zero))


def test_the_non_saturating_loss_is_finite_at_logits_whose_exponential_is_not():
    far = torch.tensor([1e4, -1e4], dtype=torch.float64)
    assert NonSaturating().discriminator(far, far).item() == 1e4
    assert NonSaturating().generator(far).item() == 5e3


def test_patch_logits_count_like_single_ones():
    patches = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(Hinge().generator(patches), Hinge().generator(patches.flatten()))


def test_a_pair_of_functions_and_an_object_are_losses():
    pair = get_loss((lambda real, fake: fake.sum() - real.sum(), torch.neg))
    assert isinstance(pair, LossPair)
    assert pair.discriminator(torch.ones(2), torch.zeros(2)).item() == -2
    mine = Hinge()
    assert get_loss(mine) is mine


def test_a_relativistic_loss_with_another_base_is_refused():
    with pytest.raises(ValueError, match="base must be 'non_saturating' or 'hinge', found 'wasserstein'"):
        RelativisticAverage("wasserstein")


def test_losses_can_be_sent_to_another_process():
    for loss in LOSSES.values():
        assert pickle.loads(pickle.dumps(loss)) == loss


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("hing", ValueError, "loss must be one of non_saturating, hinge, wasserstein, least_squares, .*, found 'hing'"),
        (3, TypeError, "found int"),
        ((len,), TypeError, "two callables"),
        ((len, 3), TypeError, "two callables"),
        (Hinge, TypeError, r"write Hinge\(\)"),
        (len, TypeError, "pair of callables, found builtin_function_or_method"),
    ],
)
def test_what_is_no_loss_is_refused_with_what_would_be_one(wrong, error, message):
    with pytest.raises(error, match=message):
        get_loss(wrong)
