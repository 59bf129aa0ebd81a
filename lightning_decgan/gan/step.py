"""One training step of a two-player game: both players' gradients, taken at the same point, then both updates.

    fake = G(z),  z ~ N(0, I)                              one forward of the generator
    objective(x, fake)                                     one scalar for both losses                 (passes.py)
    g_D = d L_D / d theta_D,  g_G = d L_G / d theta_G      one backward, both at the point Z_k, before anybody moves
    theta_D, theta_G <- their optimizers' steps

A strategy that counts backward passes (DDP does) sees an ordinary one. :func:`alternating_step` is today's usual order
and :func:`extragradient_step` takes two gradients a step, for comparison. Nothing here knows of Lightning, of workers
or of schedules in time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_decgan.gan.game import Game, Labels
from lightning_decgan.gan.passes import Pass, both_pass, discriminator_pass, generator_pass, loss_scale

__all__ = ["StepReport", "alternating_step", "extragradient_step", "simultaneous_step"]


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
    labels: Labels | None = None,
) -> StepReport:
    """Both players move at once, each against the other as it was: the step of simultaneous (optimistic) descent.

    The losses are evaluated before anybody moves. A player whose optimizer is None rests; one of the two has to move.

    Args:
        game: The networks, losses and penalty.
        real: Real images, ``(n, C, H, W)``.
        latent: Latents, ``(n, latent_dim)``.
        discriminator_optimizer: Holds the discriminator's parameters; None and the discriminator rests in this step.
        generator_optimizer: Holds the generator's parameters; None and the generator rests in this step.
        labels: The classes of the real images and of those to generate, where the game is conditional.

    Returns:
        The losses (the discriminator's without its penalty), the penalty and the mean logits.

    Raises:
        ValueError: Both rest, or generated and real images differ in shape, or a loss is not a scalar.

    Source: the gradients of DPOSG (Liu et al. 2020, arXiv:1910.12999) at one point Z_k; Daskalakis et al. 2018,
    "Training GANs with Optimism" (arXiv:1711.00141).

    Example:
        >>> from lightning_decgan.gan.losses import Wasserstein
        >>> class Plain(Game):
        ...     generator, discriminator = nn.Linear(2, 3), nn.Linear(3, 1)
        ...     discriminator_loss, generator_loss = Wasserstein().discriminator, Wasserstein().generator
        >>> game = Plain()
        >>> players = [torch.optim.SGD(player.parameters(), lr=0.1) for player in (game.discriminator, game.generator)]
        >>> report = simultaneous_step(game, torch.ones(4, 3), torch.ones(4, 2), *players)
        >>> bool(report.generator_loss == -report.fake_logits)
        True
    """
    scale = loss_scale(game.scaler, real)
    report = _fill_gradients(game, real, latent, discriminator_optimizer, generator_optimizer, labels)
    if discriminator_optimizer is not None:
        _clip(game, discriminator_optimizer, game.discriminator_clip_norm)
        discriminator_optimizer.step()
    if generator_optimizer is not None:
        _follow(scale, loss_scale(game.scaler, real), _trained(generator_optimizer))
        _clip(game, generator_optimizer, game.generator_clip_norm)
        generator_optimizer.step()
    return report


def extragradient_step(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
    labels: Labels | None = None,
) -> StepReport:
    r"""Two gradients a step: both players look ahead, take their gradients there, and step from where they were.

    .. math::
        Z_{k+1/2} = Z_k - \eta \, F(Z_k; \xi_k), \qquad Z_{k+1} = Z_k - \eta \, F(Z_{k+1/2}; \xi_k)

    with :math:`F = (\nabla_{\theta_D} L_D, \nabla_{\theta_G} L_G)`, as the optimizers precondition it.

    Both gradients are of the same batch (the authors' re-used mini-batches). Arguments and result are those of
    :func:`simultaneous_step`; the report is of the first gradient.

    Raises:
        TypeError: An optimizer has no method ``extrapolate``, as
            :class:`~lightning_decgan.optim.ExtraAdam` and :class:`~lightning_decgan.optim.ExtraSGD` have.
        ValueError: As :func:`simultaneous_step`, or the losses are scaled (16-bit mixed precision).

    Source: Gidel et al. 2019, "A Variational Inequality Perspective on Generative Adversarial Networks"
    (arXiv:1802.10551), section 4; Korpelevich 1976.
    """
    if game.scaler is not None:
        raise ValueError("extragradient steps need a precision without loss scaling, found 16-bit mixed precision")
    players = [(discriminator_optimizer, game.discriminator_clip_norm), (generator_optimizer, game.generator_clip_norm)]
    for optimizer, _ in players:
        if optimizer is not None and not callable(getattr(optimizer, "extrapolate", None)):
            raise TypeError(
                "extragradient steps need optimizers with a method extrapolate (ExtraAdam, ExtraSGD), found"
                f" {type(optimizer).__name__}"
            )
    report = None
    for move in ("extrapolate", "step"):
        found = _fill_gradients(game, real, latent, discriminator_optimizer, generator_optimizer, labels)
        report = report or found
        for optimizer, norm in players:
            if optimizer is not None:
                _clip(game, optimizer, norm)
                getattr(optimizer, move)()
        torch.clear_autocast_cache()  # or the second forward may see the weights of before
    assert report is not None
    return report


def alternating_step(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
    labels: Labels | None = None,
) -> StepReport:
    r"""The discriminator moves first, then the generator against the discriminator as it has become.

    .. math::
        \theta_D^{k+1} = \theta_D^k - \eta_D \nabla_{\theta_D} L_D(\theta_D^k, \theta_G^k), \qquad
        \theta_G^{k+1} = \theta_G^k - \eta_G \nabla_{\theta_G} L_G(\theta_D^{k+1}, \theta_G^k)

    The same fakes serve both; the discriminator sees them twice, before and after its step. Arguments, result and
    errors are those of :func:`simultaneous_step`; the mean logits are those of before the step where there is one.

    Source: Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1 with k = 1.
    """
    fake = _generate(game, real, latent, discriminator_optimizer, generator_optimizer, labels)
    first, second = None, None
    if discriminator_optimizer is not None:
        first = discriminator_pass(game, real, fake, labels)
        discriminator_optimizer.zero_grad()
        game.manual_backward(first.objective, inputs=_trained(discriminator_optimizer))
        _clip(game, discriminator_optimizer, game.discriminator_clip_norm)
        discriminator_optimizer.step()
        torch.clear_autocast_cache()  # or the second forward may see the weights of before the step
    if generator_optimizer is not None:
        second = generator_pass(game, real, fake, labels)
        generator_optimizer.zero_grad()
        game.manual_backward(second.objective, inputs=_trained(generator_optimizer))
        _clip(game, generator_optimizer, game.generator_clip_norm)
        generator_optimizer.step()
    report = _report(first or second)
    return (
        report if first is None or second is None else replace(report, generator_loss=_detached(second.generator_loss))
    )


def _fill_gradients(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
    labels: Labels | None,
) -> StepReport:
    """The gradients of whoever moves, at the point where both are."""
    fake = _generate(game, real, latent, discriminator_optimizer, generator_optimizer, labels)
    if generator_optimizer is None:
        found = discriminator_pass(game, real, fake, labels)
    elif discriminator_optimizer is None:
        found = generator_pass(game, real, fake, labels)
    else:
        found = both_pass(game, real, fake, labels)
    moving = [optimizer for optimizer in (discriminator_optimizer, generator_optimizer) if optimizer is not None]
    for optimizer in moving:
        optimizer.zero_grad()
    game.manual_backward(found.objective, inputs=[p for optimizer in moving for p in _trained(optimizer)])
    return _report(found)


def _generate(
    game: Game,
    real: Tensor,
    latent: Tensor,
    discriminator_optimizer: Optimizer | None,
    generator_optimizer: Optimizer | None,
    labels: Labels | None,
) -> Tensor:
    """The one forward of the generator in a step, without a graph where the generator rests."""
    if discriminator_optimizer is None and generator_optimizer is None:
        raise ValueError("one of discriminator_optimizer and generator_optimizer must be given, found None for both")
    with torch.set_grad_enabled(generator_optimizer is not None):
        fake = game.generate(latent, None if labels is None else labels[1])
    if fake.shape != real.shape:
        raise ValueError(
            f"generator must make images of the shape of the batch, {tuple(real.shape)}, found {tuple(fake.shape)}"
        )
    return fake


def _follow(before: Tensor | None, after: Tensor | None, parameters: list[nn.Parameter]) -> None:
    """Carry gradients over to a scale that the other player's step has changed.

    Both gradients were made in one backward, but the scaler is updated after each player's step: without this a
    generator would step with half or double its gradient whenever the scale moves.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if before is not None and after is not None and gradients:
        torch._foreach_mul_(gradients, after / before)


def _clip(game: Game, optimizer: Optimizer, norm: float | None) -> None:
    """``g <- g min(1, c / ||g||)`` over all of a player's parameters; a scaler's factor is taken into account.

    Source: Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063), algorithm 1.
    """
    if norm is not None:
        factor = 1.0 if game.scaler is None else game.scaler.get_scale()
        nn.utils.clip_grad_norm_(_trained(optimizer), norm * factor)


def _trained(optimizer: Optimizer) -> list[nn.Parameter]:
    """A player is what its optimizer holds, less what is frozen."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]


def _report(found: Pass | None) -> StepReport:
    assert found is not None
    return StepReport(
        discriminator_loss=_detached(found.discriminator_loss),
        generator_loss=_detached(found.generator_loss),
        penalty=_detached(found.penalty),
        real_logits=None if found.real_logits is None else found.real_logits.detach().mean(),
        fake_logits=None if found.fake_logits is None else found.fake_logits.detach().mean(),
    )


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
