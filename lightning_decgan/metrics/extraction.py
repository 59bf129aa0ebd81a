"""Images in, features out: the one way from images to the features that every score and every comparison rests on.

What a feature network must be is checked here, and what images must be. It never trains, never caches, and never lets a
diverged image pass for a good one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_RANGE_TOLERANCE = 0.01
"""Interpolation and half precision may leave [-1, 1] by this much, as in training; what they do is clamped."""


def check_network(features: Any) -> nn.Module:
    """Return ``features`` if it can serve as a feature network.

    Args:
        features: A module with an integer ``num_features`` and a string ``name``; ``features(images)`` gives
            ``(n, num_features)``. With an attribute ``head``, ``features.head(those)`` gives logits ``(n, classes)``.

    Raises:
        TypeError: If it is not such a module.

    Example:
        >>> check_network(nn.Identity())
        Traceback (most recent call last):
        TypeError: features must be a torch.nn.Module with an integer num_features and a string name, found Identity \
with num_features=None and name=None
    """
    num_features, name = getattr(features, "num_features", None), getattr(features, "name", None)
    if not isinstance(features, nn.Module) or not isinstance(num_features, int) or not isinstance(name, str):
        raise TypeError(
            "features must be a torch.nn.Module with an integer num_features and a string name, "
            f"found {type(features).__name__} with num_features={num_features!r} and name={name!r}"
        )
    return features


def extract(network: nn.Module, images: Tensor, *, real: bool) -> Tensor:
    """Return the features of a batch of images.

    Generated images are clamped to [-1, 1], as they would be shown. An image that is not finite has features that are
    NaN: a diverged generator is a result and not a misuse.

    Args:
        network: See :func:`check_network`; in evaluation mode, on the images' device.
        images: ``(n, c, h, w)``, floating point in [-1, 1].
        real: Whether they are real images, which must be in range.

    Returns:
        ``(n, num_features)``, ``float32``, without a graph.

    Raises:
        TypeError: If images are not a floating-point tensor.
        ValueError: If images have another number of dimensions, real ones are not finite or not in [-1, 1], or the
            network gives another shape than it announces.

    Example:
        >>> from lightning_decgan.metrics import ClassifierFeatures
        >>> network = ClassifierFeatures(channels=1, image_size=8, num_classes=10).freeze()
        >>> images = torch.zeros(3, 1, 8, 8)
        >>> images[1, 0, 4, 4] = float("inf")
        >>> extract(network, images, real=False).isnan().all(dim=1)
        tensor([False,  True, False])
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor in [-1, 1], found {found}")
    if images.ndim != 4:
        raise ValueError(f"images must be (n, c, h, w), found shape {tuple(images.shape)}")
    expected = (len(images), int(network.num_features))  # type: ignore[arg-type]  # checked by check_network
    if len(images) == 0:
        return torch.empty(expected, device=images.device)
    if real:
        low, high = images.min().item(), images.max().item()
        if not (low >= -1.0 - _RANGE_TOLERANCE and high <= 1.0 + _RANGE_TOLERANCE):
            raise ValueError(f"real images must be finite and in [-1, 1], found values from {low:g} to {high:g}")
    with torch.autocast(images.device.type, enabled=False):
        features = network(images.float().clamp(-1.0, 1.0)).detach().float()
    if features.shape != expected:
        raise ValueError(
            f"the feature network {network.name!r} must give {expected} features, found {tuple(features.shape)}"
        )
    # Clamping has hidden infinities, and a network may hide a NaN: such an image has no features.
    diverged = ~torch.isfinite(images).flatten(1).all(dim=1, keepdim=True)
    return features.masked_fill(diverged, float("nan"))
