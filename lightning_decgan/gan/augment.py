"""Differentiable augmentation: what the discriminator sees of real and generated images, each changed at random.

With little data a discriminator learns the images by heart. Changing what it sees helps if real and generated images
are changed alike, and if the generator's gradient goes through the change. Every sample draws its own change, from the
global random state; nothing here mixes samples, so the discriminator still treats them independently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENTATIONS", "AugmentSpec", "DiffAugment", "get_augment"]

AugmentSpec: TypeAlias = str | Sequence[str] | Callable[[Tensor], Tensor] | None

_SHIFT = 1 / 8
_CUT = 1 / 2


def brightness(images: Tensor) -> Tensor:
    """``x_i + u_i``, ``u_i ~ U[-1/2, 1/2]``: a number added to each image (Zhao et al. 2020)."""
    return images + _uniform(images, -0.5, 0.5)


def saturation(images: Tensor) -> Tensor:
    """``m + u_i (x_i - m)``, ``u_i ~ U[0, 2]``, with ``m`` each pixel's mean over its channels (Zhao et al. 2020)."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * _uniform(images, 0.0, 2.0)


def contrast(images: Tensor) -> Tensor:
    """``m_i + u_i (x_i - m_i)``, ``u_i ~ U[1/2, 3/2]``, with ``m_i`` the mean of the image (Zhao et al. 2020)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * _uniform(images, 0.5, 1.5)


def color(images: Tensor) -> Tensor:
    """``contrast(saturation(brightness(x)))`` (Zhao et al. 2020)."""
    return contrast(saturation(brightness(images)))


def translation(images: Tensor) -> Tensor:
    """``x_i[r - s, c - t]``, ``s, t`` uniform on the whole pixels up to an eighth of the size either way.

    What is uncovered is zero (Zhao et al. 2020).
    """
    rows, columns = _positions(images)
    down, right = (_integers(images, -_span(size), _span(size)) for size in images.shape[2:])
    return _take(images, rows - down, columns - right)


def cutout(images: Tensor) -> Tensor:
    """``x_i (1 - M_i)``, with ``M_i`` one on a rectangle of half the height and width, uniformly placed.

    It may lie partly outside (DeVries & Taylor 2017, arXiv:1708.04552; half the size: Zhao et al. 2020).
    """
    rows, columns = _positions(images)
    inside = []
    for positions, size in zip((rows, columns), images.shape[2:], strict=True):
        length = int(size * _CUT + 0.5)
        start = _integers(images, 0, size - 1 + (1 - length % 2)) - length // 2
        inside.append((positions >= start) & (positions < start + length))
    return images * ~(inside[0] & inside[1]).unsqueeze(1)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
}
"""The changes that can be asked for by name; ``color`` is the last three."""


class DiffAugment:
    r"""Changes :math:`T` of every image that the discriminator sees, applied one after another.

    .. math::
        L_D = E \, [f_D(-D(T(x)))] + E \, [f_D(D(T(G(z))))], \qquad L_G = E \, [f_G(-D(T(G(z))))]

    with a change drawn anew for every image; the gradient of :math:`L_G` goes through :math:`T`.

    Args:
        policy: Names of :data:`AUGMENTATIONS`, separated by commas or in a list, in the order of application.

    Raises:
        ValueError: A name is not known, or there is none.

    Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv:2006.10738), with the
    ranges of its section 4 and of its authors' program.

    Example:
        >>> DiffAugment("translation,cutout")(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, policy: str | Sequence[str] = "color,translation,cutout") -> None:
        given = policy.split(",") if isinstance(policy, str) else [str(name) for name in policy]
        names = [name.strip() for name in given if name.strip()]
        unknown = [name for name in names if name not in AUGMENTATIONS]
        if unknown or not names:
            raise ValueError(f"augment must be names of {', '.join(AUGMENTATIONS)}, found {policy!r}")
        self.policy, self._changes = ",".join(names), [AUGMENTATIONS[name] for name in names]

    def __call__(self, images: Tensor) -> Tensor:
        """The images, ``(n, C, H, W)``, changed; the gradient goes through."""
        for change in self._changes:
            images = change(images)
        return images

    def __repr__(self) -> str:
        return f"DiffAugment({self.policy!r})"


def get_augment(augment: AugmentSpec) -> Callable[[Tensor], Tensor] | None:
    """The function that a policy or a callable stands for; None is no augmentation.

    Raises:
        ValueError: A name in the policy is not known.
        TypeError: It is neither a policy, nor a callable, nor None.

    Example:
        >>> get_augment(["color", "cutout"])
        DiffAugment('color,cutout')
    """
    if augment is None or callable(augment):
        return augment
    if isinstance(augment, str | list | tuple):
        return DiffAugment(augment)
    raise TypeError(f"augment must be a policy such as 'color,translation', or a callable, found {augment!r}")


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One number an image, shaped to multiply it."""
    return low + (high - low) * torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)


def _integers(images: Tensor, lowest: int, highest: int) -> Tensor:
    """One integer an image, the ends included, shaped ``(n, 1)``."""
    return torch.randint(lowest, highest + 1, (len(images), 1, 1), device=images.device)


def _span(size: int) -> int:
    return int(size * _SHIFT + 0.5)


def _positions(images: Tensor) -> tuple[Tensor, Tensor]:
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device).view(1, height, 1)
    return rows, torch.arange(width, device=images.device).view(1, 1, width)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each image's pixels at these rows ``(n, H, 1)`` and columns ``(n, 1, W)``; zero outside."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    samples = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[samples, rows, columns].permute(0, 3, 1, 2)
