"""Features of a data set's real images, computed once and kept: what generated images are compared with.

They are kept under a name that depends on the images themselves, their size and split, the part, and the weights of the
feature network. What is read back is compared with the features of the first few images, because a network's code may
have changed and its weights not (a pooling, a preprocessing): a score is never made against features of something else.
What is damaged or no longer true is reported and computed again.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_decgan.data.base import ImageDataModule
from lightning_decgan.metrics.extraction import check_network, extract
from lightning_decgan.metrics.extractors import network_digest
from lightning_decgan.metrics.feature_cache import cache_key, default_cache_dir, exclusive, read_tensors, write_tensors
from lightning_decgan.metrics.features import progress_bar

PARTS = ("train", "validation", "test")

_COMPARED = 4
"""Images whose features are computed again when the others are read from the cache."""
_SAME = 5e-3
"""Relative distance up to which features are the same: more than rounding in TF32, less than another preprocessing."""

FORMAT_VERSION = 1
"""Counts changes of how features are computed or kept, so that an older cache is not taken for this one."""


def real_features(
    datamodule: ImageDataModule,
    network: nn.Module,
    part: str = "validation",
    *,
    cache_dir: str | Path | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> Tensor:
    """The features of a DataModule's training, validation or test images, in the order of the data set.

    Args:
        datamodule: The data; it is set up if it was not. Its ``fingerprint`` covers content, size and split.
        network: The feature network, in evaluation mode, on the device that it is to run on.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        cache_dir: Where features are kept; None: ``$DECGAN_CACHE_DIR``, else ``lightning_decgan/features`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``. A folder that cannot be written costs a warning.
        batch_size: Images at a time.
        progress: Show a bar on standard error if it takes longer than two seconds.

    Returns:
        ``(n, num_features)``, ``float32``, on the CPU.

    Raises:
        TypeError: If ``datamodule`` is not an ImageDataModule, or ``network`` no feature network.
        ValueError: If there is no such part (not all data has a test set), or the images do not suit the network.

    Example:
        >>> import tempfile
        >>> from lightning_decgan.data import DigitsDataModule
        >>> from lightning_decgan.metrics import ClassifierFeatures
        >>> network = ClassifierFeatures(1, 8, 10, num_features=16, name="untrained").freeze()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     features = real_features(DigitsDataModule(), network, cache_dir=folder)
        ...     again = real_features(DigitsDataModule(), network, cache_dir=folder)
        >>> features.shape, torch.equal(features, again)
        (torch.Size([359, 16]), True)
    """
    if not isinstance(datamodule, ImageDataModule):
        raise TypeError(f"datamodule must be an ImageDataModule, found {type(datamodule).__name__}")
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, found {part!r}")
    check_network(network)
    dataset = images_of_part(datamodule, part)
    device = next(network.parameters(), torch.empty(0)).device
    key = cache_key(
        data=datamodule.fingerprint(),
        part=f"test {dataset.fingerprint()}" if part == "test" else part,  # the data's digest is of the other two
        network=network_digest(network),
        device=device.type,
        version=FORMAT_VERSION,
    )
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    path = folder / f"{_file_name(f'{datamodule.name}-{part}-{network.name}')}-{key[:16]}.features.pt"
    shape = (len(dataset), int(network.num_features))  # type: ignore[arg-type]  # check_network has looked
    with exclusive(path):
        features = _load(path, key, shape)
        if features is not None and not _still_true(features, dataset, network, device):
            text = f"cached real features {path} are not what {network.name} computes now; computing them again"
            warnings.warn(text, stacklevel=2)
            features = None
        if features is None:
            loader = DataLoader(dataset, batch_size=batch_size, num_workers=datamodule.num_workers)
            chunks = []
            text = f"features of {shape[0]} {part} images of {datamodule.name}"
            with progress_bar(text, math.ceil(shape[0] / batch_size), progress) as advance:
                for images, *_ in loader:
                    chunks.append(_features_of(network, images.to(device)))
                    advance()
            features = torch.cat(chunks)
            try:
                write_tensors(path, key, "features", {"features": features})
            except OSError as error:
                warnings.warn(f"the real features could not be cached in {folder} ({error})", stacklevel=2)
    return features


def images_of_part(datamodule: ImageDataModule, part: str) -> Any:
    """The training, validation or test images of a DataModule, which is set up if it was not.

    Raises:
        ValueError: The data has no test set of its own.
    """
    datamodule.setup("fit")
    if part != "test":
        return datamodule.train_dataset if part == "train" else datamodule.val_dataset
    datamodule.setup("test")
    if datamodule.test_dataset is None:
        raise ValueError(f"part test is not to be had: {datamodule.name} has no test set of its own; use validation")
    return datamodule.test_dataset


def _load(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    """Cached features, None if they must be computed; a file that cannot be used brings a warning."""
    try:
        features: Tensor = read_tensors(path, key, "features", {"features": shape})["features"]["features"]
        if features.dtype != torch.float32 or not torch.isfinite(features).all():
            raise ValueError("its features are not finite numbers of float32")
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Damaged bytes can raise anything in zip and tensor readers; whichever it is, the features are computed again.
    except Exception as error:
        warnings.warn(f"cached real features {path} are not usable ({error}); computing them again", stacklevel=3)
        return None
    return features


def _still_true(features: Tensor, dataset: Any, network: nn.Module, device: torch.device) -> bool:
    images = torch.stack([dataset[index][0] for index in range(min(_COMPARED, len(features)))])
    found, kept = _features_of(network, images.to(device)), features[: len(images)]
    return bool((found - kept).norm() <= _SAME * kept.norm())


@torch.no_grad()
def _features_of(network: nn.Module, images: Tensor) -> Tensor:
    try:
        return extract(network, images, real=True).cpu()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's own, of a layer for other channels or another size
        raise ValueError(
            f"the feature network {network.name!r} must take images (n, {', '.join(map(str, images.shape[1:]))}):"
            f" {error}"
        ) from error


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
