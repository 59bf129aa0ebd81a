"""One training step of a two-player game: both players' gradients, taken at the same point, then both updates.

    z ~ N(0, I),  fake = G(z)                      one forward of the generator
    real_logits = D(x),  fake_logits = D(fake)     one forward of the discriminator over the fakes, for both losses
    g_D = d L_D / d theta_D,  g_G = d L_G / d theta_G      both at the point Z_k, before anybody moves
    theta_D, theta_G <- their optimizers' steps

The graph is cut at the fakes. The generator's loss is first differentiated down to the cut, and what comes out there
(``slope``) is pulled back through the generator by the scalar ``<fake, slope>``, whose gradient is exactly that of the
generator's loss. So one single backward, ``L_D + <fake, slope>``, fills the gradients of both players: neither can leak
into the other, and a strategy that counts backward passes (DDP does) sees an ordinary one. :func:`alternating_step` is
today's usual order for comparison. Nothing here knows of Lightning, of workers or of schedules in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Game", "StepReport", "alternating_step", "full_precision", "judge", "simultaneous_step"]


class Game(Protocol):
    """What a step needs to know of a game; :class:`~lightning_decgan.gan.DecentralizedGANModule` is one."""

    @property
    def generator(self) -> nn.Module:
        """Maps latents to images."""
        ...

    @property
    def discriminator(self) -> nn.Module:
        """Maps images to logits."""
        ...

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler that ``manual_backward`` applies, if it does."""
        ...

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """A scalar that the discriminator minimises."""
        ...

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        """A scalar that the generator minimises."""
        ...

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor | None:
        """A scalar added to the discriminator's loss, or None on a step without."""
        ...

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """``loss.backward(*args, **kwargs)``, with whatever the strategy and the precision add to it."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What happened in a step: detached scalars, None for what was not computed (a player that rested)."""

    discriminator_loss: Tensor | None = None
    generator_loss: Tensor | None = None
    penalty: Tensor | None = None
    real_logits: Tensor | None = None
    fake_logits: Tensor | None = None


def simultaneous_step(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
) -> StepReport:
    """Both players move at once, each against the other as it was: the step of simultaneous (optimistic) descent.

    The losses are evaluated before anybody moves. A player whose optimizer is None rests; one of the two has to move.

    Args:
        game: The networks, losses and penalty.
        real: Real images, ``(n, C, H, W)``.
        latent: Latents, ``(n, latent_dim)``.
        discriminator_optimizer: Holds the discriminator's parameters; None and the discriminator rests in this step.
        generator_optimizer: Holds the generator's parameters; None and the generator rests in this step.

    Returns:
        The losses (the discriminator's without its penalty), the penalty and the mean logits.

    Raises:
        ValueError: Both rest, or generated and real images differ in shape, or a loss is not a scalar.

    Source: the gradients of DPOSG (Liu et al. 2020, arXiv:1910.12999) at one point Z_k; Daskalakis et al. 2018,
    "Training GANs with Optimism" (arXiv:1711.00141).

    Example:
        >>> from types import SimpleNamespace
        >>> from lightning_decgan.gan.losses import Wasserstein
        >>> loss = Wasserstein()
        >>> game = SimpleNamespace(
        ...     generator=nn.Linear(2, 3), discriminator=nn.Linear(3, 1), scaler=None, penalty=lambda real, fake: None,
        ...     discriminator_loss=loss.discriminator, generator_loss=loss.generator,
        ...     manual_backward=lambda loss, **kwargs: loss.backward(**kwargs),
        ... )
        >>> players = [torch.optim.SGD(player.parameters(), lr=0.1) for player in (game.discriminator, game.generator)]
        >>> report = simultaneous_step(game, torch.ones(4, 3), torch.ones(4, 2), *players)
        >>> bool(report.generator_loss == -report.fake_logits)
        True
    """
    fake = _generate(game, real, latent, discriminator_optimizer, generator_optimizer)
    image = fake.detach().requires_grad_(generator_optimizer is not None)  # the cut: D's graph begins here
    real_logits, fake_logits = judge(game.discriminator, real if discriminator_optimizer else None, image)

    objective, parameters = [], []
    discriminator_loss, penalty = None, None
    if discriminator_optimizer is not None:
        assert real_logits is not None
        discriminator_loss = _scalar("discriminator_loss", game.discriminator_loss(real_logits, fake_logits))
        penalty = _penalty(game, real, fake)
        objective.append(discriminator_loss if penalty is None else discriminator_loss + penalty)
        parameters += _trained(discriminator_optimizer)
        discriminator_optimizer.zero_grad()
    generator_loss = _scalar("generator_loss", game.generator_loss(fake_logits))
    if generator_optimizer is not None:
        shared = discriminator_optimizer is not None  # the discriminator's backward still needs the same graph
        objective.append(_pull_back(generator_loss, image, fake, game.scaler, retain_graph=shared))
        parameters += _trained(generator_optimizer)
        generator_optimizer.zero_grad()

    game.manual_backward(sum(objective[1:], start=objective[0]), inputs=parameters)

    scale = _scale(game.scaler, generator_loss)
    if discriminator_optimizer is not None:
        discriminator_optimizer.step()
    if generator_optimizer is not None:
        _follow(scale, _scale(game.scaler, generator_loss), _trained(generator_optimizer))
        generator_optimizer.step()
    return _report(discriminator_loss, generator_loss, penalty, real_logits, fake_logits)


def alternating_step(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
) -> StepReport:
    """The discriminator moves first, then the generator against the discriminator as it has become.

    The same fakes serve both; the discriminator sees them twice, before and after its step. Arguments, result and
    errors are those of :func:`simultaneous_step`; the mean logits are those of before the step where there is one.

    Source: Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1 with k = 1.
    """
    fake = _generate(game, real, latent, discriminator_optimizer, generator_optimizer)
    discriminator_loss, generator_loss, penalty = None, None, None
    real_logits, fake_logits = None, None
    if discriminator_optimizer is not None:
        real_logits, fake_logits = judge(game.discriminator, real, fake.detach())
        assert real_logits is not None
        discriminator_loss = _scalar("discriminator_loss", game.discriminator_loss(real_logits, fake_logits))
        penalty = _penalty(game, real, fake)
        discriminator_optimizer.zero_grad()
        objective = discriminator_loss if penalty is None else discriminator_loss + penalty
        game.manual_backward(objective, inputs=_trained(discriminator_optimizer))
        discriminator_optimizer.step()
        torch.clear_autocast_cache()  # or the second forward may see the weights of before the step
    if generator_optimizer is not None:
        image = fake.detach().requires_grad_()
        _, new_logits = judge(game.discriminator, None, image)
        fake_logits = new_logits if fake_logits is None else fake_logits
        generator_loss = _scalar("generator_loss", game.generator_loss(new_logits))
        generator_optimizer.zero_grad()
        objective = _pull_back(generator_loss, image, fake, game.scaler, retain_graph=False)
        game.manual_backward(objective, inputs=_trained(generator_optimizer))
        generator_optimizer.step()
    return _report(discriminator_loss, generator_loss, penalty, real_logits, fake_logits)


def judge(discriminator: nn.Module, real: Tensor | None, fake: Tensor) -> tuple[Tensor | None, Tensor]:
    """The discriminator's logits over real and generated images, in full precision: the one place where it is run.

    Real and generated images go through as two batches, never joined: batch normalisation in the discriminator would
    otherwise mix their statistics.

    Args:
        discriminator: Maps images to logits.
        real: Real images, or None where nobody needs their logits.
        fake: Generated images.

    Returns:
        ``(real_logits, fake_logits)``; the first is None if ``real`` is.
    """
    real_logits = None if real is None else full_precision(discriminator(real))
    return real_logits, full_precision(discriminator(fake))


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it has half precision, untouched otherwise (float64 stays).

    Example:
        >>> full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _generate(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
) -> Tensor:
    """The one forward of the generator in a step, without a graph where the generator rests."""
    if discriminator_optimizer is None and generator_optimizer is None:
        raise ValueError("one of discriminator_optimizer and generator_optimizer must be given, found None for both")
    with torch.set_grad_enabled(generator_optimizer is not None):
        fake = game.generator(latent)
    if fake.shape != real.shape:
        raise ValueError(
            f"generator must make images of the shape of the batch, {tuple(real.shape)}, found {tuple(fake.shape)}"
        )
    return fake


def _penalty(game: Game, real: Tensor, fake: Tensor) -> Tensor | None:
    penalty = game.penalty(real, fake.detach())
    return None if penalty is None else _scalar("penalty", penalty)


def _pull_back(
    loss: Tensor, image: Tensor, fake: Tensor, scaler: torch.amp.GradScaler | None, retain_graph: bool
) -> Tensor:
    """A scalar whose gradient with respect to the generator is that of ``loss``; its value means nothing.

    ``image`` is the cut, ``fake`` the generator's side of it. The way from the loss down to the cut is scaled like
    every half-precision backward and then unscaled in full precision, because ``manual_backward`` scales the result
    again.
    """
    (slope,) = torch.autograd.grad(loss if scaler is None else scaler.scale(loss), image, retain_graph=retain_graph)
    slope = full_precision(slope)
    scale = _scale(scaler, loss)
    return (full_precision(fake) * (slope if scale is None else slope / scale)).sum()


def _scale(scaler: torch.amp.GradScaler | None, like: Tensor) -> Tensor | None:
    """The factor of a scaler as a tensor: asking for a number would wait for the device."""
    return None if scaler is None else scaler.scale(torch.ones_like(like, requires_grad=False))


def _follow(before: Tensor | None, after: Tensor | None, parameters: list[nn.Parameter]) -> None:
    """Carry gradients over to a scale that the other player's step has changed.

    Both gradients were made in one backward, but the scaler is updated after each player's step: without this a
    generator would step with half or double its gradient whenever the scale moves.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if before is not None and after is not None and gradients:
        torch._foreach_mul_(gradients, after / before)


def _trained(optimizer: Optimizer) -> list[nn.Parameter]:
    """A player is what its optimizer holds, less what is frozen."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]


def _scalar(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a scalar tensor, found {found}")
    return value


def _report(
    discriminator_loss: Tensor | None,
    generator_loss: Tensor | None,
    penalty: Tensor | None,
    real_logits: Tensor | None,
    fake_logits: Tensor | None,
) -> StepReport:
    return StepReport(
        discriminator_loss=None if discriminator_loss is None else discriminator_loss.detach(),
        generator_loss=None if generator_loss is None else generator_loss.detach(),
        penalty=None if penalty is None else penalty.detach(),
        real_logits=None if real_logits is None else real_logits.detach().mean(),
        fake_logits=None if fake_logits is None else fake_logits.detach().mean(),
    )
