"""Gradient penalties: terms of the discriminator's loss that keep its slope in check.

A penalty is a function ``(discriminator, real, fake) -> scalar`` whose graph can be differentiated with respect to the
discriminator's parameters (``create_graph``). It runs the discriminator by itself, once, without autocast and without
compilation, because half-precision slopes underflow and compiled graphs cannot be differentiated twice. It never
weights itself (the caller multiplies) and never sends a gradient into the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.checks import number, scalar
from lightning_decgan.gan.game import full_precision

__all__ = [
    "PENALTIES",
    "Critic",
    "LazyPenalty",
    "Penalty",
    "PenaltySpec",
    "dragan",
    "get_penalty",
    "lazy_penalties",
    "r1",
    "wgan_gp",
]

Critic: TypeAlias = Callable[[Tensor], Tensor]
"""Images to logits: a discriminator, or one that augments or knows the images' classes."""
Penalty: TypeAlias = Callable[[Critic, Tensor, Tensor], Tensor]
PenaltySpec: TypeAlias = str | Penalty | None


def r1(discriminator: Critic, real: Tensor, fake: Tensor | None = None) -> Tensor:
    r"""The R1 penalty: the discriminator's slope at the real images.

    .. math::
        R_1 = \tfrac12 \, E_x \, \|\nabla_x D(x)\|^2

    Multiplied by its weight (the paper's :math:`\gamma`) it makes the game locally convergent. With batch normalisation
    the gradient of one logit reaches other samples too, and the penalty is no longer that of the paper.

    Args:
        discriminator: Maps images to logits.
        real: Real images, ``(n, C, H, W)``, floating point.
        fake: Not used; there so that every penalty has the same arguments.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters.

    Source: Mescheder, Geiger & Nowozin 2018, "Which Training Methods for GANs do actually Converge?"
    (arXiv:1801.04406), equation 9.

    Example:
        >>> from torch import nn
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> _ = nn.init.constant_(linear[1].weight, 2.0)
        >>> r1(linear, torch.zeros(3, 1, 2, 2)).item()
        8.0
    """
    return 0.5 * _slope(discriminator, real).square().sum(1).mean()


def wgan_gp(discriminator: Critic, real: Tensor, fake: Tensor) -> Tensor:
    r"""The gradient penalty of WGAN-GP: the slope is pulled to 1 between real and generated images.

    .. math::
        P = E_{\hat x} \, (\|\nabla_{\hat x} D(\hat x)\|_2 - 1)^2, \qquad
        \hat x = \epsilon x + (1 - \epsilon) G(z), \quad \epsilon \sim U[0, 1] \text{ per sample}

    Args:
        discriminator: The critic; without batch normalisation (paper, section 4).
        real: Real images, ``(n, C, H, W)``, floating point.
        fake: Generated images of the same shape.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: The two batches differ in shape.

    Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (arXiv:1704.00028), equation 3.

    Example:
        >>> from torch import nn
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> _ = nn.init.constant_(linear[1].weight, 2.0)
        >>> wgan_gp(linear, torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)).item()
        9.0
    """
    if fake.shape != real.shape:
        raise ValueError(f"fake must have the shape of real, {tuple(real.shape)}, found {tuple(fake.shape)}")
    epsilon = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device, dtype=real.dtype)
    between = epsilon * real + (1 - epsilon) * fake.detach().to(real.dtype)
    return (_slope(discriminator, between).norm(dim=1) - 1).square().mean()


def dragan(discriminator: Critic, real: Tensor, fake: Tensor | None = None) -> Tensor:
    r"""The DRAGAN penalty: the slope is pulled to 1 around the real images, wherever the generator is.

    .. math::
        P = E_{x, \delta} \, (\|\nabla D(x + \delta)\|_2 - 1)^2, \qquad
        \delta = \tfrac12 \, \alpha \, \mathrm{std}(x) \, \epsilon, \quad
        \alpha \sim U[0, 1] \text{ per sample}, \quad \epsilon \sim U[0, 1] \text{ per pixel}

    with the standard deviation over the whole batch, as in the authors' program (the paper writes Gaussian noise).

    Args:
        discriminator: The critic; without batch normalisation.
        real: Real images, ``(n, C, H, W)``, floating point.
        fake: Not used; there so that every penalty has the same arguments.

    Returns:
        A scalar that can be differentiated with respect to the discriminator's parameters.

    Source: Kodali et al. 2017, "On Convergence and Stability of GANs" (arXiv:1705.07215), section 2.3.

    Example:
        >>> from torch import nn
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> _ = nn.init.constant_(linear[1].weight, 2.0)
        >>> dragan(linear, torch.zeros(3, 1, 2, 2)).item()
        9.0
    """
    alpha = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device, dtype=real.dtype)
    around = real + 0.5 * alpha * real.std() * torch.rand_like(real)
    return (_slope(discriminator, around).norm(dim=1) - 1).square().mean()


@torch.compiler.disable
def _slope(discriminator: Critic, images: Tensor) -> Tensor:
    """The gradient of each logit with respect to its own image, one row per image, itself differentiable."""
    images = images.detach().requires_grad_()
    autocast_off = torch.autocast(images.device.type, enabled=False)
    with torch.enable_grad(), autocast_off, torch.compiler.set_stance("force_eager"):
        logits = discriminator(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return full_precision(gradient).flatten(1)


PENALTIES: dict[str, Penalty] = {"r1": r1, "wgan_gp": wgan_gp, "dragan": dragan}
"""The penalties that can be asked for by name."""


def get_penalty(penalty: PenaltySpec) -> Penalty | None:
    """The penalty that a name or a callable stands for; None is no penalty.

    Args:
        penalty: A key of :data:`PENALTIES`, or a callable ``(discriminator, real, fake) -> scalar``, or None.

    Returns:
        The function, or None.

    Raises:
        ValueError: The name is not in :data:`PENALTIES`.
        TypeError: It is neither a name nor a callable.

    Example:
        >>> get_penalty("r1") is r1
        True
    """
    if penalty is None:
        return None
    if isinstance(penalty, str):
        if penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)} or None, found {penalty!r}")
        return PENALTIES[penalty]
    if not callable(penalty):
        raise TypeError(
            "penalty must be a name, None or a callable (discriminator, real, fake) -> scalar, "
            f"found {type(penalty).__name__}"
        )
    return penalty


@dataclass(frozen=True)
class LazyPenalty:
    r"""A penalty with its weight and its interval (lazy regularization).

    .. math::
        L_D^{(k)} + [\, n \mid k \,] \; n \, w \, P

    On each n-th step of the discriminator the penalty counts n times as much, so its mean over steps stays.

    Args:
        penalty: A key of :data:`PENALTIES`, or a callable ``(discriminator, real, fake) -> scalar``.
        weight: Its factor, >= 0 (the papers' gamma and lambda).
        every_steps: n.

    Raises:
        ValueError: A setting is out of range, or the name is not known.
        TypeError: The penalty is neither a name nor a callable.

    Source: Karras et al. 2020 (arXiv:1912.04958), appendix B.

    Example:
        >>> lazy = LazyPenalty("r1", weight=0.1, every_steps=16)
        >>> [step for step in range(40) if lazy.is_due(step)]
        [0, 16, 32]
    """

    penalty: PenaltySpec
    weight: float = 10.0
    every_steps: int = 1

    def __post_init__(self) -> None:
        if get_penalty(self.penalty) is None:
            raise TypeError("penalty must be a name or a callable, found None")
        number("weight", self.weight, ">= 0", lambda weight: weight >= 0)
        check_integer("every_steps", self.every_steps, 1)

    def is_due(self, step: int) -> bool:
        """Whether the discriminator's step of this number, from 0, is one with this penalty."""
        return self.weight > 0 and step % self.every_steps == 0

    def __call__(self, discriminator: Critic, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty, weighted.

        Raises:
            ValueError: It is no scalar.
        """
        penalty = get_penalty(self.penalty)
        assert penalty is not None
        return self.weight * self.every_steps * scalar("penalty", penalty(discriminator, real, fake))


def lazy_penalties(
    penalty: PenaltySpec | Sequence[LazyPenalty], weight: float, every_steps: int
) -> tuple[LazyPenalty, ...]:
    """What a user gave as a penalty, as a tuple of none, one or several.

    Args:
        penalty: None, a name, a callable, or one or a list of :class:`LazyPenalty`.
        weight: Of a name or a callable.
        every_steps: Of a name or a callable.

    Raises:
        TypeError: A list holds something else.

    Example:
        >>> [lazy.every_steps for lazy in lazy_penalties("r1", weight=1.0, every_steps=4)]
        [4]
    """
    if penalty is None:
        return ()
    if isinstance(penalty, LazyPenalty):  # it brings a weight and an interval
        return (penalty,)
    if isinstance(penalty, Sequence) and not isinstance(penalty, str):
        for one in penalty:
            if not isinstance(one, LazyPenalty):
                raise TypeError(f"penalty as a list must hold LazyPenalty objects, found {type(one).__name__}")
        return tuple(penalty)
    return (LazyPenalty(penalty, weight, every_steps),)
