"""Does a discriminator treat samples independently? Found out by trying, so that nobody has to say it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_decgan.gan.game import Game, Labels, full_precision
from lightning_decgan.gan.sampling import seeded

__all__ = ["treats_samples_independently"]

_PROBED = 16
# Two forwards of one image beside different others may be rounded differently.
_ROUNDING = 1e-3


@torch.compiler.disable
def treats_samples_independently(game: Game, real: Tensor, fake: Tensor, labels: Labels | None = None) -> bool:
    """Whether a logit depends on nothing but its own image, found out by trying.

    The gradient of one logit with respect to all other images must be exactly zero, and the logit must stay the same
    when the others change (statistics without a gradient). Batch normalisation in training and the standard deviation
    of a batch as a feature are found out so. Nothing of the discriminator changes, nor does the random state. A
    discriminator that draws random numbers in a way that depends on other samples counts as dependent.

    Args:
        game: With a discriminator in the mode in which it is to be trained.
        real: Images ``(n, C, H, W)``; the first few are enough.
        fake: Images of the same shape.
        labels: Their classes, where the discriminator is conditional.

    Example:
        >>> from torch import nn
        >>> game = Game()
        >>> game.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0))
        >>> treats_samples_independently(game, torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2))
        True
        >>> game.discriminator = nn.Sequential(nn.BatchNorm2d(1), game.discriminator)
        >>> treats_samples_independently(game, torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2))
        False
    """
    real, fake = real[:_PROBED].detach(), fake[:_PROBED].detach().to(real.dtype)
    arguments = () if labels is None else (torch.cat([labels[0][:_PROBED], labels[1][:_PROBED]]),)
    network = getattr(game.discriminator, "_orig_mod", game.discriminator)

    @torch.compiler.set_stance("force_eager")  # a few images of another shape would have it compiled anew
    def logits(images: Tensor) -> Tensor:
        # Statistics and power iterations are written into copies.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with seeded(0, images.device):
            seen = game.augmented(images)
            return full_precision(torch.func.functional_call(network, buffers, (seen, *arguments)))

    with torch.enable_grad():
        images = torch.cat([real, fake]).requires_grad_()
        found = logits(images)
        if found.ndim == 0 or found.numel() != len(images):
            return False
        (slope,) = torch.autograd.grad(found.flatten()[0], images)
    with torch.no_grad():
        images[1:] = 0.5 * images[1:].roll(1, 0)  # other images, and other statistics of the batch
        after = logits(images)
    moved = (after.flatten()[0] - found.flatten()[0]).abs()
    return bool(slope[0].any()) and not bool(slope[1:].any()) and bool(moved <= _ROUNDING * found.abs().max())
