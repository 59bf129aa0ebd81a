"""The generated images that a checkpoint is judged by: drawn a batch at a time, each batch from a seed of its own.

So they are never all in memory, and any of them can be drawn again by its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_decgan.cli.sample import draw

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_decgan.gan import DecentralizedGANModule

MOST_SAMPLES = 1_000_000
BATCH_SIZE = 256


def generated_batches(model: DecentralizedGANModule, samples: int, seed: int) -> Iterator[Tensor]:
    """Images of a model's averaged generator.

    Args:
        model: a GAN whose `sample(n)` gives images in [-1, 1].
        samples: images in all, at most a million.
        seed: of the latent points.

    Yields:
        (n, C, H, W), at most 256 at a time, on the model's device.
    """
    for number in range(-(-samples // BATCH_SIZE)):
        yield _batch(model, number, samples, seed)


def generated_images(model: DecentralizedGANModule, rows: list[int], samples: int, seed: int) -> Tensor:
    """Some of the images of `generated_batches`, drawn again.

    Args:
        model: the same model.
        rows: numbers of images, counted from 0.
        samples: as it was there.
        seed: as it was there.

    Returns:
        (len(rows), C, H, W) on the CPU.
    """
    import torch

    batches = {number: _batch(model, number, samples, seed).cpu() for number in {row // BATCH_SIZE for row in rows}}
    return torch.stack([batches[row // BATCH_SIZE][row % BATCH_SIZE] for row in rows])


def generated_features(model: DecentralizedGANModule, network: nn.Module, samples: int, seed: int) -> Tensor:
    """Features of the images of `generated_batches`.

    Args:
        model: see there.
        network: a feature network on the same device.
        samples: see there.
        seed: see there.

    Returns:
        (samples, num_features) on the CPU; NaN where an image is not finite.
    """
    import torch

    from lightning_decgan.metrics.extraction import extract

    with torch.no_grad():
        batches = generated_batches(model, samples, seed)
        return torch.cat([extract(network, images, real=False).cpu() for images in batches])


def _batch(model: DecentralizedGANModule, number: int, samples: int, seed: int) -> Tensor:
    count = min(BATCH_SIZE, samples - number * BATCH_SIZE)
    return draw(model, count, seed=seed * MOST_SAMPLES + number, first=number * BATCH_SIZE)
