"""What `decgan train` writes into its checkpoints beyond Lightning's own, and how a model is made of it again.

A checkpoint carries the configuration of its model and data as YAML text, so that it can be moved to another machine
and sampled there. That text names classes, and naming a class is asking to run code: only classes of this package and
of torch.optim are made, unless the user says that the file can be trusted. Nothing is ever unpickled.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml  # type: ignore[import-untyped]
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lightning_decgan.cli.errors import UsageError, one_line
from lightning_decgan.data import ImageDataModule
from lightning_decgan.gan import DecentralizedGANModule
from lightning_decgan.strategy import checkpoint as checkpoints

KEY = "decgan"
SPLIT_KEY = "decgan_split"
TRUSTED_PACKAGES = ("lightning_decgan.gan", "lightning_decgan.optim", "lightning_decgan.data", "torch.optim")


def embedded_config(config: DictConfig) -> str:
    """The part of a configuration that a checkpoint needs, as plain YAML without interpolations.

    Args:
        config: with the keys `model` and `data`.

    Returns:
        YAML text.

    Example:
        >>> config = OmegaConf.create({"size": 8, "model": {"image_size": "${size}"}, "data": {}, "steps": 3})
        >>> print(embedded_config(config), end="")
        model:
          image_size: 8
        data: {}
    """
    parts = {key: OmegaConf.to_container(config[key], resolve=True) for key in ("model", "data")}
    return yaml.safe_dump(parts, sort_keys=False)


class EmbedConfig(Callback):
    """Writes the configuration into every checkpoint, and the digest of which images were held back from training.

    Args:
        text: what `embedded_config` returned.

    Example:
        >>> checkpoint = {}
        >>> EmbedConfig("model: {}").on_save_checkpoint(None, None, checkpoint)
        >>> checkpoint
        {'decgan': 'model: {}'}
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds both."""
        checkpoint[KEY] = self.text
        split = _split_of(trainer)
        if split is not None:
            checkpoint[SPLIT_KEY] = split

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Says so where a resumed run holds other images back than the run that it goes on with."""
        if checkpoint.get(SPLIT_KEY, split := _split_of(trainer)) != split:
            rank_zero_warn(
                "the data is not what it was when the checkpoint was saved (files, labels, validation_fraction or"
                " seed): other images are held back now, so some of the validation images have been trained on"
            )


def _split_of(trainer: Trainer | None) -> str | None:
    data = getattr(trainer, "datamodule", None)
    return data.split_digest() if isinstance(data, ImageDataModule) else None


@dataclass(frozen=True)
class TrainedModel:
    """A model made of a checkpoint.

    Attributes:
        model: with the checkpoint's weights (the consensus), in eval mode, on the CPU.
        config: `{"model": ..., "data": ...}` as it was trained.
        path: of the checkpoint.
        shards: of a decentralized run: how to find each worker's own state, by rank; else empty.
        split: `ImageDataModule.split_digest` of the data that it was trained on; None where nobody knows.

    Example:
        >>> TrainedModel(None, {}, Path("x.ckpt"), [{"worker": 1}, {"worker": 3}]).workers
        [1, 3]
    """

    model: DecentralizedGANModule
    config: dict[str, Any]
    path: Path
    shards: list[dict[str, Any]] = field(default_factory=list)
    split: str | None = None

    @property
    def workers(self) -> list[int]:
        """The number of each shard's worker; after a loss they are not 0, 1, 2 and so on."""
        return [int(entry.get("worker", rank)) for rank, entry in enumerate(self.shards)]


def load_trained(path: str | Path, *, trust_targets: bool = False) -> TrainedModel:
    """Makes the model of a checkpoint that `decgan train` wrote.

    Args:
        path: a `.ckpt` file.
        trust_targets: make classes of any package that the checkpoint names.

    Returns:
        The model and its configuration.

    Raises:
        UsageError: if there is no such file, it is no such checkpoint, it has been altered, it names classes that are
            not trusted, or its weights do not fit its configuration.

    Example:
        >>> load_trained("/nowhere/last.ckpt")
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: checkpoint /nowhere/last.ckpt does not exist
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"checkpoint {path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise UsageError(
            f"{path} cannot be read as a checkpoint of plain tensors and values: {one_line(error).split('. ')[0]}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(KEY), str) or "state_dict" not in content:
        raise UsageError(
            f"{path} carries no configuration under {KEY!r}: it was not written by decgan train; "
            "load it in Python with load_from_checkpoint"
        )
    try:
        manifest = checkpoints.verify(path, content)
        shards = [] if manifest is None else [dict(entry) for entry in manifest["shards"]]
    except (checkpoints.CheckpointError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(one_line(error)) from error
    config = parse_config(content[KEY], path)
    if not trust_targets:
        check_targets(config, path)
    try:
        model = instantiate(OmegaConf.create(config["model"]), _convert_="all")
        model.load_state_dict(content["state_dict"])
    except (HydraException, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(f"no model can be made of {path}: {one_line(error)}") from error
    return TrainedModel(cast(DecentralizedGANModule, model.eval()), config, path, shards, content.get(SPLIT_KEY))


def require_workers(trained: TrainedModel) -> None:
    """Raises a usage error unless the checkpoint knows the workers that trained it.

    Example:
        >>> require_workers(TrainedModel(None, {}, Path("x.ckpt")))
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: x.ckpt knows no workers: it was not saved by a decentralized run of \
decgan train; leave out --per-worker
    """
    if not trained.shards:
        raise UsageError(
            f"{trained.path} knows no workers: it was not saved by a decentralized run of decgan train; "
            "leave out --per-worker"
        )


def worker_weights(trained: TrainedModel) -> Iterator[dict[str, Tensor]]:
    """Each worker's own weights, in the order of the ranks, one at a time in memory.

    Args:
        trained: of a checkpoint that a decentralized run saved; its shards lie in `x.ckpt.workers/` beside it.

    Yields:
        A state dict of the model.

    Raises:
        UsageError: if the checkpoint has no shards, or one of them is missing, altered or without weights.
    """
    require_workers(trained)
    for worker, entry in zip(trained.workers, trained.shards, strict=True):
        try:
            state = checkpoints.open_shard(trained.path, entry)["checkpoint"]["state_dict"]
        except (checkpoints.CheckpointError, OSError, LookupError, TypeError, RuntimeError) as error:
            reason = one_line(error)
            raise UsageError(f"worker {worker} of {trained.path} cannot be read: {reason}") from error
        yield state


def worker_models(trained: TrainedModel) -> Iterator[DecentralizedGANModule]:
    """The model with each worker's own weights, in the order of the ranks: one and the same model, loaded anew.

    Args:
        trained: as for `worker_weights`; its model has the last worker's weights in the end.

    Yields:
        `trained.model`.

    Raises:
        UsageError: as `worker_weights`, and if the weights of a worker do not fit the model.
    """
    for worker, weights in zip(trained.workers, worker_weights(trained), strict=True):
        try:
            trained.model.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(f"worker {worker} of {trained.path} has other weights: {one_line(error)}") from error
        yield trained.model


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """The configuration that a checkpoint carries.

    Args:
        text: YAML.
        path: of the checkpoint, for the error.

    Returns:
        `{"model": ..., "data": ...}`.

    Raises:
        UsageError: if it is no YAML, has not these keys, or holds interpolations, which could read this machine's
            environment.
    """
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"the configuration in {path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("model", "data")):
        raise UsageError(f"the configuration in {path} must have the sections 'model' and 'data'")
    for where, value in _leaves(config):
        if isinstance(value, str) and "${" in value:
            raise UsageError(f"the configuration in {path} must be resolved, found {value!r} at {where}")
    return config


def check_targets(config: dict[str, Any], path: Path) -> None:
    """Lets a checkpoint name only classes and functions that this package or torch.optim defines.

    Args:
        config: a configuration with `_target_` entries at any depth.
        path: of the checkpoint, for the error.

    Raises:
        UsageError: naming the entry, and how to make it all the same.

    Example:
        >>> check_targets({"model": {"_target_": "os.system", "_args_": ["ls"]}}, Path("x.ckpt"))
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: x.ckpt asks to call 'os.system' at model._target_; only classes of \
lightning_decgan.gan, lightning_decgan.optim, lightning_decgan.data, torch.optim are made of a checkpoint. If you \
trust where the file comes from, add --trust-targets
    """
    for where, value in _leaves(config):
        if where.rpartition(".")[2] == "_target_" and not _trusted(value):
            raise UsageError(
                f"{path} asks to call {value!r} at {where}; only classes of {', '.join(TRUSTED_PACKAGES)} are made of "
                "a checkpoint. If you trust where the file comes from, add --trust-targets"
            )


def _trusted(target: Any) -> bool:
    if not isinstance(target, str) or not target.startswith(tuple(f"{package}." for package in TRUSTED_PACKAGES)):
        return False
    try:
        found = get_object(target)
    except Exception:  # importing whatever a file names may fail in any way
        return False
    # A name below a trusted package can lead out of it again, through what its modules have imported or through a
    # class's methods (lightning_decgan.gan.module.torch.load), so it counts where the thing itself was defined.
    if not (inspect.isclass(found) or inspect.isfunction(found)) or "." in found.__qualname__:
        return False
    return any(f"{found.__module__}.".startswith(f"{package}.") for package in TRUSTED_PACKAGES)


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            # a key is text from the file as well: what it says may be an interpolation too
            yield f"{where}.<key>".lstrip("."), key
            yield from _leaves(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{where}[{index}]")
    else:
        yield where, value
