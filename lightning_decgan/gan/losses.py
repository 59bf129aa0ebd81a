"""The two-player losses: what each player minimises, given the discriminator's logits.

A loss is an object with two methods, ``discriminator(real_logits, fake_logits)`` and ``generator(fake_logits)``, each
returning a scalar to be minimised; one with the attribute ``relative`` has ``generator(fake_logits, real_logits)``.
Both see raw logits (no sigmoid is applied anywhere else), so one forward of the discriminator over the fakes serves
both. This module never calls a network and never takes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "LOSSES",
    "GANLoss",
    "Hinge",
    "LeastSquares",
    "LossPair",
    "LossSpec",
    "NonSaturating",
    "RelativisticAverage",
    "Wasserstein",
    "get_loss",
]


@runtime_checkable
class GANLoss(Protocol):
    """What every loss offers, a user's own included.

    Logits are floating-point tensors of shape ``(n,)`` (any shape that the discriminator returns, patches for example);
    both methods return a scalar tensor that is minimised by the player it is named after.
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss: a scalar tensor."""
        ...

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The generator's loss: a scalar tensor."""
        ...


@dataclass(frozen=True)
class NonSaturating:
    r"""The original game with the generator's non-saturating loss.

    .. math::
        L_D = E[\log(1 + e^{-D(x)})] + E[\log(1 + e^{D(G(z))})], \qquad L_G = E[\log(1 + e^{-D(G(z))})]

    Source: Goodfellow et al. 2014, "Generative Adversarial Nets" (arXiv:1406.2661), section 3.

    Example:
        >>> import torch
        >>> print(f"{NonSaturating().generator(torch.zeros(4)).item():.4f}")
        0.6931
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """``E[softplus(-D(x))] + E[softplus(D(G(z)))]``."""
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """``E[softplus(-D(G(z)))]``."""
        return F.softplus(-fake_logits).mean()


@dataclass(frozen=True)
class Hinge:
    r"""The hinge game: the discriminator stops caring about a sample once it is on the right side of the margin 1.

    .. math::
        L_D = E[\max(0, 1 - D(x))] + E[\max(0, 1 + D(G(z)))], \qquad L_G = -E[D(G(z))]

    Source: Lim & Ye 2017, "Geometric GAN" (arXiv:1705.02894); Zhang et al. 2019, "Self-Attention Generative
    Adversarial Networks" (arXiv:1805.08318), equation 4.

    Example:
        >>> import torch
        >>> Hinge().discriminator(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])).item()
        1.5
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """``E[relu(1 - D(x))] + E[relu(1 + D(G(z)))]``."""
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """``-E[D(G(z))]``."""
        return -fake_logits.mean()


@dataclass(frozen=True)
class Wasserstein:
    r"""The critic's estimate of the Wasserstein-1 distance. It needs a Lipschitz critic: a penalty or spectral norm.

    .. math::
        L_D = E[D(G(z))] - E[D(x)], \qquad L_G = -E[D(G(z))]

    Source: Arjovsky, Chintala & Bottou 2017, "Wasserstein GAN" (arXiv:1701.07875), algorithm 1.

    Example:
        >>> import torch
        >>> Wasserstein().discriminator(torch.tensor([3.0]), torch.tensor([1.0])).item()
        -2.0
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """``E[D(G(z))] - E[D(x)]``."""
        return fake_logits.mean() - real_logits.mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """``-E[D(G(z))]``."""
        return -fake_logits.mean()


@dataclass(frozen=True)
class LeastSquares:
    r"""Regression of the logits to 1 (real) and 0 (fake).

    .. math::
        L_D = \tfrac12 E[(D(x) - 1)^2] + \tfrac12 E[D(G(z))^2], \qquad L_G = \tfrac12 E[(D(G(z)) - 1)^2]

    Source: Mao et al. 2017, "Least Squares Generative Adversarial Networks" (arXiv:1611.04076), equation 9.

    Example:
        >>> import torch
        >>> LeastSquares().generator(torch.tensor([0.0, 2.0])).item()
        0.5
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """``E[(D(x) - 1)^2] / 2 + E[D(G(z))^2] / 2``."""
        return 0.5 * (real_logits - 1).square().mean() + 0.5 * fake_logits.square().mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """``E[(D(G(z)) - 1)^2] / 2``."""
        return 0.5 * (fake_logits - 1).square().mean()


@dataclass(frozen=True)
class RelativisticAverage:
    r"""Each kind of images is judged against the average of the other: is this one more real than those?

    With :math:`\tilde D(x) = D(x) - E[D(G(z))]`, :math:`\tilde D(G(z)) = D(G(z)) - E[D(x)]` and the discriminator's
    loss :math:`L(\text{real}, \text{fake})` of the base,

    .. math::
        L_D = L(\tilde D(x), \tilde D(G(z))), \qquad L_G = L(\tilde D(G(z)), \tilde D(x))

    Args:
        base: ``"non_saturating"`` (RaSGAN) or ``"hinge"`` (RaHingeGAN).

    Raises:
        ValueError: The base is neither.

    Source: Jolicoeur-Martineau 2019, "The Relativistic Discriminator: a Key Element Missing from Standard GAN"
    (arXiv:1807.00734), section 4.2.

    Example:
        >>> import torch
        >>> loss = RelativisticAverage("hinge")
        >>> real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
        >>> loss.discriminator(real, fake).item(), loss.generator(fake, real).item()
        (1.0, 4.0)
    """

    base: str = "non_saturating"
    relative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.base not in ("non_saturating", "hinge"):
            raise ValueError(f"base must be 'non_saturating' or 'hinge', found {self.base!r}")

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """``L(D(x) - E[D(G(z))], D(G(z)) - E[D(x)])``."""
        return LOSSES[self.base].discriminator(real_logits - fake_logits.mean(), fake_logits - real_logits.mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor) -> Tensor:
        """``L(D(G(z)) - E[D(x)], D(x) - E[D(G(z))])``."""
        return self.discriminator(fake_logits, real_logits)


@dataclass(frozen=True)
class LossPair:
    """Two functions as one loss, for a game that is written down in two lines.

    Args:
        discriminator: ``(real_logits, fake_logits) -> scalar``, minimised by the discriminator.
        generator: ``(fake_logits) -> scalar``, minimised by the generator.

    Example:
        >>> import torch
        >>> game = LossPair(lambda real, fake: (fake - real).mean(), lambda fake: -fake.mean())
        >>> game.generator(torch.tensor([1.0, 3.0])).item()
        -2.0
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LossSpec: TypeAlias = (
    str
    | GANLoss
    | RelativisticAverage
    | LossPair
    | tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]
)

LOSSES: dict[str, GANLoss | RelativisticAverage] = {
    "non_saturating": NonSaturating(),
    "hinge": Hinge(),
    "wasserstein": Wasserstein(),
    "least_squares": LeastSquares(),
    "relativistic_average": RelativisticAverage(),
    "relativistic_average_hinge": RelativisticAverage("hinge"),
}
"""The losses that can be asked for by name."""


def get_loss(loss: LossSpec) -> GANLoss | RelativisticAverage | LossPair:
    """The loss that a name, an object or a pair of functions stands for.

    Args:
        loss: A key of :data:`LOSSES`; or an object with the methods ``discriminator(real_logits, fake_logits)`` and
            ``generator(fake_logits)`` (see :class:`GANLoss`); or a pair ``(discriminator, generator)`` of callables
            with these arguments.

    Returns:
        An object with these two methods.

    Raises:
        ValueError: The name is not in :data:`LOSSES`.
        TypeError: It is none of the three.

    Example:
        >>> get_loss("hinge")
        Hinge()
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, found {loss!r}")
        return LOSSES[loss]
    if isinstance(loss, tuple | list):
        if len(loss) != 2 or not all(callable(function) for function in loss):
            raise TypeError(f"loss as a pair must be two callables (discriminator, generator), found {loss!r}")
        return LossPair(*loss)
    if isinstance(loss, type):
        raise TypeError(f"loss must be an instance, found the class {loss.__name__}: write {loss.__name__}()")
    if callable(getattr(loss, "discriminator", None)) and callable(getattr(loss, "generator", None)):
        return loss
    raise TypeError(
        "loss must be a name, an object with the methods discriminator(real_logits, fake_logits) and "
        f"generator(fake_logits), or a pair of callables, found {type(loss).__name__}"
    )
