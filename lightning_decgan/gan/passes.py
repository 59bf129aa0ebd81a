r"""From a batch to one scalar whose backward fills the gradients of whoever moves.

There is one pass for each need: the discriminator moves, the generator moves, or both do, at one point. Nothing here
steps an optimizer or knows of an order of play.

**Both, cut.** The graph is cut at the fakes. The generator's loss is first differentiated down to the cut, and what
comes out there (``slope``) is pulled back through the generator by the scalar ``<fake, slope>``, whose gradient is that
of the generator's loss. The objective is ``L_D + <fake, slope> + L_G``, the last at detached logits, for what the loss
may say of the weights themselves: neither player's gradient can leak into the other's through the logits.

**Both, joint.** Where the discriminator treats samples independently and gives one logit a sample, what either loss
sends back to the generated image :math:`i` is a number times the same vector, the gradient :math:`J_i` of its logit
:math:`l_i`:

.. math::
    \partial L_D / \partial x_i = a_i J_i, \quad a_i = \partial L_D / \partial l_i, \qquad
    \partial L_G / \partial x_i = b_i J_i, \quad b_i = \partial L_G / \partial l_i

The discriminator's own backward yields :math:`a_i J_i` on its way; times :math:`b_i / a_i`, sample by sample, it is the
generator's. So one forward and one backward of the discriminator, over real and generated images together, serve both
players; the usual alternating step takes it forward over three batches and back over three.

A slope :math:`a_i` of zero (the hinge beyond its margin, a sigmoid that has saturated) leaves nothing to rescale. There
the backward starts from :math:`2^{-60} |b_i|` instead, and the quotient is a power of two: the generator's gradient is
exact, and what the discriminator's gets too much, :math:`10^{-18}` of a gradient of that size, is far below the
rounding of float32 and float64. Where :math:`b_i` is zero as well it starts from :math:`2^{-120}`, and the quotient is
zero. float16 cannot hold such numbers; with it the cut pass is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from lightning_decgan.gan.checks import scalar
from lightning_decgan.gan.game import Game, Labels, full_precision

__all__ = ["Pass", "both_pass", "discriminator_pass", "generator_pass", "loss_scale"]

_FLOOR = 2.0**-60


@dataclass(frozen=True)
class Pass:
    """What was found on the way, None where it was not needed.

    Attributes:
        objective: the scalar to take backward; its value means nothing.
        discriminator_loss: without the penalty.
        generator_loss: a scalar.
        penalty: a scalar, weighted; part of the objective.
        real_logits: of the real images.
        fake_logits: of the generated images.
    """

    objective: Tensor
    discriminator_loss: Tensor | None = None
    generator_loss: Tensor | None = None
    penalty: Tensor | None = None
    real_logits: Tensor | None = None
    fake_logits: Tensor | None = None


def discriminator_pass(game: Game, real: Tensor, fake: Tensor, labels: Labels | None = None) -> Pass:
    """The discriminator moves.

    Args:
        game: Networks, losses and penalty.
        real: Real images, ``(n, C, H, W)``.
        fake: Generated images of that shape; their graph is not followed.
        labels: The classes of both, where the game is conditional.
    """
    real_labels, fake_labels = labels or (None, None)
    if game.joint:
        real_logits, fake_logits = _judge_together(game, real, fake.detach(), labels).split(len(real))
    else:
        real_logits, fake_logits = game.judge(real, real_labels), game.judge(fake.detach(), fake_labels)
    loss = scalar("discriminator_loss", game.discriminator_loss(real_logits, fake_logits))
    penalty = _penalty(game, real, fake, labels)
    return Pass(loss if penalty is None else loss + penalty, loss, None, penalty, real_logits, fake_logits)


def generator_pass(game: Game, real: Tensor, fake: Tensor, labels: Labels | None = None) -> Pass:
    """The generator moves; ``fake`` comes with the generator's graph, the other arguments are as above."""
    real_labels, fake_labels = labels or (None, None)
    image = fake.detach().requires_grad_()
    real_logits = None
    if game.relative:
        with torch.no_grad():
            real_logits = game.judge(real, real_labels)
    fake_logits = _judge_for_two(game, image, fake_labels)
    loss, wanted = _generator_slopes(game, fake_logits.detach().requires_grad_(), real_logits)
    objective = _pull_back(fake_logits, wanted, image, fake, game.scaler, retain_graph=False) + loss
    return Pass(objective, None, loss, None, real_logits, fake_logits)


def both_pass(game: Game, real: Tensor, fake: Tensor, labels: Labels | None = None) -> Pass:
    """Both players move, each against the other as it is; ``fake`` comes with the generator's graph.

    Raises:
        ValueError: A loss is not a scalar, or the game is ``joint`` and its logits are not one a sample.
    """
    halves = fake.dtype == torch.float16 or _autocast_dtype(fake) == torch.float16
    return _joint(game, real, fake, labels) if game.joint and not halves else _cut(game, real, fake, labels)


def loss_scale(scaler: torch.amp.GradScaler | None, like: Tensor) -> Tensor | None:
    """The factor of a scaler as a tensor: asking for a number would wait for the device."""
    return None if scaler is None else scaler.scale(torch.ones((), device=like.device))


def _cut(game: Game, real: Tensor, fake: Tensor, labels: Labels | None) -> Pass:
    real_labels, fake_labels = labels or (None, None)
    image = fake.detach().requires_grad_()  # the cut: D's graph begins here
    real_logits, fake_logits = game.judge(real, real_labels), _judge_for_two(game, image, fake_labels)
    discriminator_loss = scalar("discriminator_loss", game.discriminator_loss(real_logits, fake_logits))
    penalty = _penalty(game, real, fake, labels)
    generator_loss, wanted = _generator_slopes(game, fake_logits.detach().requires_grad_(), real_logits)
    # The discriminator's backward still needs the same graph.
    pulled = _pull_back(fake_logits, wanted, image, fake, game.scaler, retain_graph=True)
    objective = discriminator_loss + pulled + generator_loss
    objective = objective if penalty is None else objective + penalty
    return Pass(objective, discriminator_loss, generator_loss, penalty, real_logits, fake_logits)


def _joint(game: Game, real: Tensor, fake: Tensor, labels: Labels | None) -> Pass:
    logits = _judge_together(game, real, fake, labels)
    if logits.numel() != 2 * len(real):
        raise ValueError(
            "a joint game needs one logit a sample, because one number rescales the gradient of one image; found logits"
            f" of shape {tuple(logits.shape)} for {2 * len(real)} images"
        )
    real_logits, fake_logits = logits.detach().split(len(real))
    # Each loss has leaves of its own: one differentiation of the sum then tells the slopes of both.
    real_points, fake_points, generator_points = (
        leaf.detach().requires_grad_() for leaf in (real_logits, fake_logits, fake_logits)
    )
    discriminator_loss = scalar("discriminator_loss", game.discriminator_loss(real_points, fake_points))
    generator_loss = _generator_loss(game, generator_points, real_logits)
    losses = discriminator_loss + generator_loss
    real_slopes, slopes, wanted = torch.autograd.grad(
        losses, [real_points, fake_points, generator_points], retain_graph=True, materialize_grads=True
    )

    # Never zero, so that the quotient needs no case of its own where neither player learns from an image.
    floor = (_FLOOR * wanted.abs()).clamp_min_(_FLOOR**2)
    starts = torch.where(slopes.abs() < floor, floor, slopes)
    factors = (wanted / starts).view(-1, *[1] * (fake.ndim - 1))
    fake.register_hook(lambda slope: (slope * factors).to(slope.dtype))
    # The losses themselves once more, for what they may depend on besides the logits (a term of the user's on weights).
    objective = (logits * torch.cat([real_slopes, starts])).sum() + losses
    penalty = _penalty(game, real, fake, labels)
    objective = objective if penalty is None else objective + penalty
    return Pass(objective, discriminator_loss, generator_loss, penalty, real_logits, fake_logits)


def _judge_for_two(game: Game, image: Tensor, labels: Tensor | None) -> Tensor:
    """Logits whose graph is walked twice, once for each player.

    A compiled discriminator would else lend the memory of its graph to its first backward, and refuse the second.
    """
    with functorch_config.patch(donated_buffer=False):
        return game.judge(image, labels)


def _judge_together(game: Game, real: Tensor, fake: Tensor, labels: Labels | None) -> Tensor:
    """The logits of the real images, then those of the generated ones, from one forward."""
    both = None if labels is None else torch.cat(labels)
    return game.judge(torch.cat([real, fake.to(real.dtype)]), both)


def _generator_loss(game: Game, fake_points: Tensor, real_logits: Tensor | None) -> Tensor:
    others = [real_logits.detach()] if game.relative and real_logits is not None else []
    return scalar("generator_loss", game.generator_loss(fake_points, *others))


def _generator_slopes(game: Game, fake_points: Tensor, real_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """The generator's loss and its slopes at logits that are leaves of the graph; the loss keeps what else it knows."""
    loss = _generator_loss(game, fake_points, real_logits)
    (slopes,) = torch.autograd.grad(loss, fake_points, retain_graph=True, materialize_grads=True)
    return loss, slopes


def _penalty(game: Game, real: Tensor, fake: Tensor, labels: Labels | None) -> Tensor | None:
    penalty = game.penalty(real, fake.detach(), *([] if labels is None else labels[:1]))
    return None if penalty is None else scalar("penalty", penalty)


def _pull_back(
    logits: Tensor,
    slopes: Tensor,
    image: Tensor,
    fake: Tensor,
    scaler: torch.amp.GradScaler | None,
    retain_graph: bool,
) -> Tensor:
    """A scalar whose gradient with respect to the generator is that of a loss of these slopes; its value means nothing.

    ``image`` is the cut, ``fake`` the generator's side of it. The way from the logits down to the cut is scaled like
    every half-precision backward and then unscaled in full precision, because ``manual_backward`` scales the result
    again.
    """
    scaled = slopes if scaler is None else scaler.scale(slopes)
    (slope,) = torch.autograd.grad(logits, image, scaled, retain_graph=retain_graph)
    slope = full_precision(slope)
    scale = loss_scale(scaler, logits)
    return (full_precision(fake) * (slope if scale is None else slope / scale)).sum()


def _autocast_dtype(like: Tensor) -> torch.dtype | None:
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
