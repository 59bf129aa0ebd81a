"""What every network of this package is from outside: a generator of images, a discriminator of images.

A generator maps latents, and labels where it is class-conditional, to images in [-1, 1]; a discriminator maps images,
and labels, to one logit each. A subclass says which layers; the checks of what comes in, the way of the labels and the
attributes that the GAN module reads are here. Nothing here samples, trains or reads data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.networks.conditional import LabelledSequential, ProjectionHead

__all__ = ["ImageDiscriminator", "ImageGenerator", "check_labels", "one_of"]


class ImageGenerator(nn.Module):
    """Latents ``(n, latent_dim)`` and labels ``(n,)`` to images ``(n, channels, image_size, image_size)`` in [-1, 1].

    A subclass sets ``layers``.

    Args:
        latent_dim: Length of a latent vector.
        channels: Channels of an image.
        image_size: Height and width of an image.
        num_classes: Classes of the labels; None: unconditional, called without labels.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is below 1.

    Example:
        >>> class Flat(ImageGenerator):
        ...     def __init__(self):
        ...         super().__init__(latent_dim=2, channels=1, image_size=4, num_classes=None)
        ...         self.layers = LabelledSequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)), nn.Tanh())
        >>> Flat()(torch.zeros(3, 2)).shape
        torch.Size([3, 1, 4, 4])
        >>> Flat()(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        Traceback (most recent call last):
        ...
        ValueError: labels must be None for an unconditional Flat (num_classes=None), found shape (3,)
    """

    layers: LabelledSequential

    def __init__(self, latent_dim: int, channels: int, image_size: int, num_classes: int | None) -> None:
        super().__init__()
        self.latent_dim = check_integer("latent_dim", latent_dim, 1)
        self.channels = check_integer("channels", channels, 1)
        self.image_size = check_integer("image_size", image_size, 1)
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 1)

    @override
    def forward(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images from latents ``(n, latent_dim)`` and int64 labels ``(n,)`` in 0..num_classes-1.

        Raises:
            ValueError: Latents or labels have another shape, labels are missing, out of range, or not asked for.
            TypeError: Labels are not int64.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_dim:
            raise ValueError(f"latent must be (n, {self.latent_dim}), found {tuple(latent.shape)}")
        check_labels(self, labels, len(latent), self.num_classes)
        return self.layers(latent, labels)


class ImageDiscriminator(nn.Module):
    """Images ``(n, channels, image_size, image_size)`` and labels ``(n,)`` to logits ``(n,)``; above 0 means real.

    A subclass sets ``layers``, which turn images into feature vectors, and ``head``, which turns these into logits.

    Args:
        channels: Channels of an image.
        image_size: Height and width of an image.
        num_classes: Classes of the labels; None: unconditional, called without labels.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is below 1.

    Example:
        >>> class Flat(ImageDiscriminator):
        ...     def __init__(self):
        ...         super().__init__(channels=1, image_size=4, num_classes=10)
        ...         self.layers, self.head = nn.Sequential(nn.Flatten()), ProjectionHead(16, num_classes=10)
        >>> Flat()(torch.zeros(3, 1, 4, 4), torch.tensor([0, 9, 5])).shape
        torch.Size([3])
        >>> Flat()(torch.zeros(3, 1, 4, 4))
        Traceback (most recent call last):
        ...
        ValueError: labels must be given to Flat, which is conditional on 10 classes, found None
    """

    layers: nn.Sequential
    head: ProjectionHead

    def __init__(self, channels: int, image_size: int, num_classes: int | None) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1)
        self.image_size = check_integer("image_size", image_size, 1)
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 1)

    @override
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of images and int64 labels ``(n,)`` in 0..num_classes-1.

        Raises:
            ValueError: Images or labels have another shape, labels are missing, out of range, or not asked for.
            TypeError: Labels are not int64.
        """
        # Networks that pool over the whole map would take images of any size without a word.
        if images.ndim != 4 or images.shape[1:] != (self.channels, self.image_size, self.image_size):
            valid = f"(n, {self.channels}, {self.image_size}, {self.image_size})"
            raise ValueError(f"images must be {valid}, found {tuple(images.shape)}")
        check_labels(self, labels, len(images), self.num_classes)
        return self.head(self.layers(images), labels)


def check_labels(network: nn.Module, labels: Tensor | None, n: int, num_classes: int | None) -> None:
    """Labels are there where a network wants some, and are what an embedding of ``num_classes`` rows takes.

    The range is looked at on the CPU only, outside of compiled code: elsewhere looking would make the host wait for the
    device.

    Args:
        network: Whose error it would be.
        labels: What it was called with.
        n: How many samples came with them.
        num_classes: The network's classes, None where it is unconditional.

    Raises:
        ValueError: Labels are missing, not asked for, of another shape than ``(n,)`` or out of range.
        TypeError: Labels are not int64.

    Example:
        >>> check_labels(nn.Identity(), torch.tensor([0, 3]), n=2, num_classes=3)
        Traceback (most recent call last):
        ...
        ValueError: labels must be from 0 to 2, found 0 to 3
    """
    name = type(network).__name__
    if num_classes is None:
        if labels is not None:
            raise ValueError(
                f"labels must be None for an unconditional {name} (num_classes=None), found shape {tuple(labels.shape)}"
            )
        return
    if labels is None:
        raise ValueError(f"labels must be given to {name}, which is conditional on {num_classes} classes, found None")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, found {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"labels must be ({n},), one for each sample, found {tuple(labels.shape)}")
    if labels.device.type == "cpu" and n and not torch.compiler.is_compiling():
        smallest, largest = (int(end) for end in labels.aminmax())
        if smallest < 0 or largest >= num_classes:
            raise ValueError(f"labels must be from 0 to {num_classes - 1}, found {smallest} to {largest}")


def one_of(name: str, value: object, valid: Sequence[object]) -> None:
    """``value`` is one of ``valid``, of the same type.

    Raises:
        ValueError: It is not.

    Example:
        >>> one_of("image_size", 28, (32, 48, 64))
        Traceback (most recent call last):
        ...
        ValueError: image_size must be one of 32, 48, 64, found 28
    """
    if not any(value == option and type(value) is type(option) for option in valid):
        options = ", ".join(str(option) for option in valid)
        raise ValueError(f"{name} must be one of {options}, found {value!r}")
