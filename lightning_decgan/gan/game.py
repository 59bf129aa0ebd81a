"""What a training step needs to know of a two-player game, and nothing of how the game is trained.

The passes (`passes.py`) ask a game for its networks, losses and penalties, and for leave to run the discriminator once
over everything. A game never steps an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Game", "Labels", "full_precision"]

Labels = tuple[Tensor, Tensor]
"""The classes ``(n,)`` of the real images and those that the generator was asked for."""


class Game:
    """Two networks, what each minimises, and how they are to be trained; subclass it for a plain loop.

    :class:`~lightning_decgan.gan.DecentralizedGANModule` is one.

    Attributes:
        generator: Maps latents, and labels if it is conditional, to images.
        discriminator: Maps images, and labels if it is conditional, to logits.
        augment: What real and generated images go through before the discriminator sees them; None leaves them.
        relative: Whether the generator's loss needs the real logits as well.
        joint: Whether the discriminator may see real and generated images in one batch: it treats samples
            independently (:func:`~lightning_decgan.gan.independence.treats_samples_independently` finds out).
        scaler: The loss scaler that ``manual_backward`` applies, if it does.
        discriminator_clip_norm: Largest Euclidean norm of the discriminator's gradient; a longer one is shortened.
        generator_clip_norm: The same for the generator.

    Example: the game ``min_G max_D``, with the Wasserstein loss.
        >>> class Wasserstein(Game):
        ...     generator, discriminator = nn.Linear(2, 3), nn.Linear(3, 1)
        ...     def discriminator_loss(self, real_logits, fake_logits):
        ...         return (fake_logits - real_logits).mean()
        ...     def generator_loss(self, fake_logits):
        ...         return -fake_logits.mean()
        >>> Wasserstein().judge(torch.zeros(4, 3)).shape
        torch.Size([4, 1])
    """

    generator: nn.Module
    discriminator: nn.Module
    augment: Callable[[Tensor], Tensor] | None
    relative: bool = False
    joint: bool = False
    discriminator_clip_norm: float | None = None
    generator_clip_norm: float | None = None

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler that ``manual_backward`` applies, if it does."""
        return None

    def generate(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images from latents, by the generator in training."""
        return self.generator(latent) if labels is None else self.generator(latent, labels)

    def judge(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The discriminator's logits, in full precision: the one place where it is run."""
        images = self.augmented(images)
        return full_precision(self.discriminator(images) if labels is None else self.discriminator(images, labels))

    def augmented(self, images: Tensor) -> Tensor:
        """The images as the discriminator sees them."""
        # No default on the class: it would hide an augmentation that a torch module has registered as its part.
        augment = getattr(self, "augment", None)
        return images if augment is None else augment(images)

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """A scalar that the discriminator minimises."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its discriminator minimises")

    def generator_loss(self, fake_logits: Tensor, *real_logits: Tensor) -> Tensor:
        """A scalar that the generator minimises; the real logits are given where the game is ``relative``.

        It follows the logits, and what else it says of the generator's own weights.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its generator minimises")

    def penalty(self, real: Tensor, fake: Tensor, *labels: Tensor) -> Tensor | None:
        """A scalar added to the discriminator's loss, or None on a step without.

        Args:
            real: Real images.
            fake: Generated images, without a graph.
            labels: The real images' classes, where the game is conditional.
        """
        return None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """``loss.backward(*args, **kwargs)``, with whatever the strategy and the precision add to it."""
        loss.backward(*args, **kwargs)


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it has half precision, untouched otherwise (float64 stays).

    Example:
        >>> full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
