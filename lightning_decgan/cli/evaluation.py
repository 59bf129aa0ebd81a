"""What `decgan evaluate` does, for scripts: a model's scores, and its samples beside their nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_decgan.cli.generated import generated_features, generated_images
from lightning_decgan.cli.neighbors import Half, beside_neighbors, describe, draw_neighbors, nearest_rows
from lightning_decgan.metrics import SCORERS, ScoreSettings, check_memorization, real_features
from lightning_decgan.metrics.real_images import images_of_part
from lightning_decgan.metrics.scoring import published_names

if TYPE_CHECKING:
    from lightning_decgan.data import ImageDataModule
    from lightning_decgan.gan import DecentralizedGANModule

PICTURED, NEIGHBORS = 8, 3
"""Images in each half of the picture, and training images beside each."""


def evaluate(
    model: DecentralizedGANModule,
    network: nn.Module,
    real: Tensor,
    *,
    samples: int = 1024,
    seed: int = 0,
    scorer: str = "torchmetrics",
    settings: ScoreSettings | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Scores a model's samples against features of real images.

    Args:
        model: a GAN whose `sample(n)` gives images in [-1, 1].
        network: the feature network, on the model's device.
        real: (n, d), what `lightning_decgan.metrics.real_features` returned for this network.
        samples: images to generate.
        seed: of the latent points.
        scorer: "torchmetrics" or "torch-fidelity".
        settings: None: `ScoreSettings()`.

    Returns:
        `frechet_distance`, `kernel_distance` (with published Inception features `fid`, `kid`), `inception_score` if the
        network has a head, with torch-fidelity `precision` and `recall`; and the samples' features, (samples, d).

    Raises:
        ValueError: if there are too few images for a score.
        MissingExtraError: if the scorer is not installed.
    """
    fake = generated_features(model, network, samples, seed)
    scores = SCORERS[scorer](real, fake, network, settings or ScoreSettings())
    return published_names(scores, network), fake


@torch.no_grad()
def class_shares(fake: Tensor, network: nn.Module, class_names: Sequence[str]) -> dict[str, float] | None:
    """Which share of the samples a classifier takes for which class: a class that is missing shows here.

    Args:
        fake: (n, d), features of samples.
        network: whose they are.
        class_names: of the data.

    Returns:
        A share for each name, 1 in all; None if the network does not tell these classes apart, or features are not
        finite.

    Example:
        >>> network = nn.Module()
        >>> network.head = nn.Identity()
        >>> class_shares(torch.eye(2)[[0, 1, 1, 1]], network, ["cat", "dog"])
        {'cat': 0.25, 'dog': 0.75}
    """
    head = getattr(network, "head", None)
    if head is None or not torch.isfinite(fake).all():
        return None
    logits = head(fake.to(next(network.parameters(), fake).device)).cpu()
    if logits.shape[1] != len(class_names):
        return None
    counts = torch.bincount(logits.argmax(1), minlength=len(class_names))
    return dict(zip(class_names, (counts / len(fake)).tolist(), strict=True))


def memorization_report(
    model: DecentralizedGANModule,
    datamodule: ImageDataModule,
    network: nn.Module,
    real: Tensor,
    fake: Tensor,
    picture: str | Path,
    *,
    part: str = "validation",
    seed: int = 0,
    cache_dir: str | Path | None = None,
    source: str = "",
) -> dict[str, Any] | None:
    """Compares a model's samples with the training images nearest to them, and draws the nearest of all.

    Args:
        model: as it was when `fake` was made.
        datamodule: whose training images are searched.
        network: the feature network.
        real: features of the held-out images, in the order of the data set.
        fake: features of the samples, from `evaluate` with the same `seed`.
        picture: where to draw, ending in .png.
        part: which images are held out, "validation" or "test".
        seed: of the latent points, and of which held-out images are taken.
        cache_dir: of the training images' features.
        source: what the samples are of, for the picture.

    Returns:
        The numbers of `lightning_decgan.metrics.Memorization`, the feature network's name, the picture's path, and the
        samples that it shows; None if images are not finite, the generator having diverged.

    Raises:
        ValueError: if `picture` does not end in .png.
        OSError: if it cannot be written.
    """
    if not torch.isfinite(fake).all():
        return None
    training = real_features(datamodule, network, "train", cache_dir=cache_dir)
    found = check_memorization(fake, training, real, neighbors=min(NEIGHBORS, len(training)), seed=seed)
    own, held_out = (nearest_rows(rows, PICTURED) for rows in (found.distances, found.held_out_distances))
    drawn = generated_images(model, own, len(fake), seed)
    others = images_of_part(datamodule, part)
    kept = torch.stack([others[int(found.held_out_rows[row])][0] for row in held_out])
    left = Half(
        f"the {len(own)} of {len(fake)} samples nearest to training images",
        beside_neighbors(drawn, found.neighbors[own], datamodule.train_dataset),
        found.distances[own],
    )
    right = Half(
        f"the {len(held_out)} nearest of {len(found.held_out_rows)} held-out real images",
        beside_neighbors(kept, found.held_out_neighbors[held_out], datamodule.train_dataset),
        found.held_out_distances[held_out],
    )
    name = str(network.name)
    footing = f"{source}, {datamodule.name}, {found.training_images} training images; distances in features of {name}"
    path = draw_neighbors(picture, left, right, describe(found, name), footing.lstrip(", "))
    pairs = [
        {"sample": row, "training_images": found.neighbors[row].tolist(), "distances": found.distances[row].tolist()}
        for row in own
    ]
    return {"features": name, **found.numbers, "picture": str(path), "nearest": pairs}
