"""When the main worker is lost, another writes the logs from there on, into the same files.

Lightning's loggers write on rank 0 alone and choose a version when they first write. So that whoever takes over goes on
in the same folder, all workers agree on the versions when training begins.
"""

from __future__ import annotations

import csv
import logging
import os
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.csv_logs import CSVLogger

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["agree_on_versions", "take_over"]

_log = logging.getLogger("lightning_decgan")


def agree_on_versions(trainer: Trainer) -> None:
    """Give every worker's loggers the versions of worker 0's; every worker must call this."""
    own = [logger.version if hasattr(logger, "_version") else None for logger in trainer.loggers]
    versions = trainer.strategy.broadcast([v if isinstance(v, int | str) else None for v in own])
    for logger, version in zip(trainer.loggers, versions, strict=True):
        if version is not None:
            logger._version = version  # type: ignore[attr-defined]


def take_over(trainer: Trainer) -> None:
    """This worker is the main one now: open its loggers so that they continue what the lost one has written."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            _continue_csv(logger)
    _log.warning("this worker now logs and writes checkpoints")


def _continue_csv(logger: CSVLogger) -> None:
    """Lightning's CSV writer removes a file that is there when it opens; take its rows over first."""
    path = os.path.join(logger.log_dir, "metrics.csv")
    rows: list[dict[str, Any]] = []
    if os.path.isfile(path):
        with open(path, newline="") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    writer = logger.experiment
    writer.metrics = rows + writer.metrics
    writer.save()
