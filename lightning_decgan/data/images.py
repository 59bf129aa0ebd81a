"""Data sets of images as the DataModules use them: ``(image, label)`` pairs, images in [-1, 1], and images in memory.

Nothing here splits, shuffles or downloads.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

_RESIZE_CHUNK_IMAGES = 4096


def resize_images(images: Tensor, image_size: int) -> Tensor:
    """Resize square images by antialiased bicubic interpolation, keeping dtype and range.

    Args:
        images: ``(n, c, s, s)``, ``uint8`` in 0..255 or floating point in [-1, 1].
        image_size: The new side in pixels.

    Returns:
        ``(n, c, image_size, image_size)`` of the same dtype; bicubic overshoot is clamped to the range.

    Example:
        >>> resize_images(torch.full((2, 1, 8, 8), 0.5), 12).shape
        torch.Size([2, 1, 12, 12])
    """
    if images.shape[-2:] == (image_size, image_size):
        return images
    whole_numbers = images.dtype == torch.uint8
    resized = images.new_empty((*images.shape[:2], image_size, image_size))
    # In pieces: the floating-point copy of a whole data set would be four times its size.
    for piece, target in zip(images.split(_RESIZE_CHUNK_IMAGES), resized.split(_RESIZE_CHUNK_IMAGES), strict=True):
        values = piece.float() if whole_numbers else piece
        values = functional.interpolate(values, size=(image_size, image_size), mode="bicubic", antialias=True)
        target.copy_(values.round_().clamp_(0, 255) if whole_numbers else values.clamp_(-1, 1))
    return resized


@runtime_checkable
class LabelledImages(Protocol):
    """A map-style data set of ``(image, label)`` pairs that can say what is in it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...

    def fingerprint(self) -> str:
        """A hexadecimal digest of all images and labels: equal digests mean equal data."""
        ...


class InMemoryImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels held in memory; ``uint8`` images take a quarter of the space and are scaled when read.

    Args:
        images: ``(n, c, h, w)``: ``uint8`` in 0..255 (read as ``x / 127.5 - 1``) or ``float32`` in [-1, 1].
        labels: ``(n,)`` ``int64``.

    Raises:
        ValueError: If shapes or dtypes are others.

    Example:
        >>> data = InMemoryImages(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([3]))
        >>> image, label = data[0]
        >>> image.max().item(), label.item()
        (1.0, 3)
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"images must be (n, c, h, w) of uint8 or float32, found {tuple(images.shape)} of {images.dtype}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(images)},) of int64, found {tuple(labels.shape)} of {labels.dtype}")
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def _scaled(self, images: Tensor) -> Tensor:
        return images.float().div_(127.5).sub_(1.0) if images.dtype == torch.uint8 else images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._scaled(self.images[index]), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Read a whole batch at once: torch's loader asks for this where it exists."""
        picked = torch.as_tensor(indices, dtype=torch.int64)
        images, labels = self._scaled(self.images[picked]), self.labels[picked]
        return list(zip(images.unbind(), labels.unbind(), strict=True))

    def fingerprint(self) -> str:
        """SHA-256 of shape, dtype, pixels and labels."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def labels_of(images: LabelledImages) -> Tensor:
    """All labels of a data set, from its attribute ``labels`` if it has one, else by reading every image.

    Args:
        images: The data set; its ``labels`` are one integer an image, in order.

    Returns:
        ``(n,)`` ``int64``.

    Example:
        >>> labels_of(InMemoryImages(torch.zeros(2, 1, 8, 8), torch.tensor([3, 1])))
        tensor([3, 1])
        >>> labels_of([(torch.zeros(1, 8, 8), 5), (torch.zeros(1, 8, 8), torch.tensor(2))])
        tensor([5, 2])
    """
    labels = getattr(images, "labels", None)
    if labels is None:
        labels = [int(images[index][1]) for index in range(len(images))]
    return torch.as_tensor(labels, dtype=torch.int64)
