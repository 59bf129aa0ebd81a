"""From a configuration to objects: the Trainer, the module and the data of a run, each from its `_target_`.

Bad input ends here, in one line that names the section, before any worker is started. Nothing is trained or written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_decgan.cli.errors import UsageError, one_line

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from torch.nn import Module


def make_run(config: DictConfig) -> tuple[Trainer, Any, Any]:
    """Makes what a configuration names.

    Args:
        config: with the keys `data`, `model`, `callbacks`, `logger`, `strategy`, `trainer`, `ckpt_path`.

    Returns:
        The Trainer, the LightningModule and the LightningDataModule.

    Raises:
        UsageError: if something cannot be made with the values given; it names the section.
    """
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    from lightning_decgan.cli.checkpoint import EmbedConfig, embedded_config
    from lightning_decgan.gan import DecentralizedGANModule
    from lightning_decgan.gan.checks import check_classes, check_images

    if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
        raise UsageError(f"ckpt_path must be a checkpoint to resume from, found {config.ckpt_path!r}, which is no file")
    datamodule = make(config, "data")
    model = make(config, "model")
    if isinstance(model, DecentralizedGANModule):
        try:
            check_images(model.generator, model.discriminator, datamodule)
            if not getattr(datamodule, "download", False):  # what is yet to be fetched does not know its classes
                check_classes(model.num_classes, datamodule)
        except ValueError as error:
            raise UsageError(f"model and data do not fit: {one_line(error)}") from error
        try:
            model.configure_optimizers()  # what refuses these networks, or its arguments, would do so in every worker
        except (ValueError, TypeError) as error:
            raise UsageError(f"model.optimizer or model.lr_scheduler: {one_line(error)}") from error
    if config.ckpt_path is not None and getattr(model, "strict_loading", True):
        check_weights(model, config.ckpt_path)
    named = {name: make(config, f"callbacks.{name}") for name, entry in config.callbacks.items() if entry is not None}
    callbacks = [*named.values(), EmbedConfig(embedded_config(config))]
    loggers = [make(config, f"logger.{name}") for name, entry in config.logger.items() if entry is not None]
    strategy = config.strategy if isinstance(config.strategy, str) else make(config, "strategy")
    trainer = make(
        config,
        "trainer",
        strategy=strategy,
        callbacks=callbacks,
        # The workers are started here, on this machine, whatever batch system has started this process.
        **({} if config.trainer.get("plugins") else {"plugins": [LightningEnvironment()]}),
        # an empty list would let Lightning choose a logger and a folder of its own
        logger=loggers or False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise UsageError(
            "strategy must start its workers with start_method=spawn or fork, found one that runs this command again, "
            "which would begin another run in another folder"
        )
    check_amount(config, trainer.num_devices * trainer.num_nodes, named)
    return trainer, model, datamodule


def check_amount(config: DictConfig, workers: int, callbacks: dict[str, Callback]) -> None:
    """Compares how many images there are with what the workers' batches and the scores need.

    A copy of the data reads it, so that what travels to the workers stays as small as it was.

    Args:
        config: the whole configuration.
        workers: that there will be.
        callbacks: of the run, by their names in the configuration.

    Raises:
        UsageError: if there are too few; it names the settings.
    """
    from lightning_decgan.callbacks import FidelityCallback
    from lightning_decgan.data import ImageDataModule

    data = make(config, "data")
    if not isinstance(data, ImageDataModule) or getattr(data, "download", False):  # yet to be fetched
        return
    try:
        data.setup("fit")
        data.check_workers(workers)
    except (ValueError, OSError) as error:
        raise UsageError(f"data: {one_line(error)}") from error
    for name, callback in callbacks.items():
        if isinstance(callback, FidelityCallback):
            try:
                callback.check_real_images(len(data.val_dataset))
            except ValueError as error:
                raise UsageError(f"callbacks.{name}: {one_line(error)} (data.validation_fraction)") from error


def check_weights(model: Module, path: str) -> None:
    """Compares the weights of a checkpoint that is to be resumed with a module's.

    Args:
        model: of the configuration.
        path: of the checkpoint.

    Raises:
        UsageError: if it is no checkpoint of plain tensors and values, or is of other networks.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = {name: tuple(value.shape) for name, value in content["state_dict"].items()}
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise UsageError(
            f"ckpt_path {path} cannot be read as a checkpoint: {one_line(error).split('. ')[0]}"
        ) from error
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    other = [name for name in mine.keys() | found.keys() if mine.get(name) != found.get(name)]
    if other:
        name = min(other)
        raise UsageError(
            f"ckpt_path {path} is of other networks than this run's: {name} is {found.get(name, 'missing')} there and"
            f" {mine.get(name, 'missing')} here; repeat the options of that run, which its config.yaml lists"
        )


def make(config: DictConfig, key: str, **arguments: Any) -> Any:
    """The object that a section of the configuration describes.

    Args:
        config: the whole configuration.
        key: of the section: "model", "callbacks.sample_grid".
        **arguments: more arguments for the class.

    Returns:
        The object.

    Raises:
        UsageError: if the section has no `_target_`, the class does not exist, or it refuses its arguments.

    Example:
        >>> config = OmegaConf.create({"delay": {"_target_": "datetime.timedelta", "seconds": "soon"}})
        >>> make(config, "delay")
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: delay: unsupported type for timedelta seconds component: str
    """
    section = OmegaConf.select(config, key)
    if not isinstance(section, DictConfig) or "_target_" not in section:
        raise UsageError(f"{key} must say what to make by a _target_, found {section}")
    try:
        return instantiate(section, _convert_="all", **arguments)
    except InstantiationException as error:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        cause = error.__cause__
        # Hydra wraps whatever a constructor raises; only a refusal of arguments is bad input
        refusals = (ValueError, TypeError, OSError, ImportError, HydraException, MisconfigurationException)
        if cause is not None and not isinstance(cause, refusals):
            raise
        where = re.search(r"full_key: (\S+)", str(error))
        path = where[1] if where and where[1].startswith(key) else key
        raise UsageError(f"{path}: {one_line(cause if cause is not None else error)}") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"{key}: {one_line(error)}") from error
