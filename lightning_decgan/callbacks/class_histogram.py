"""What each worker trains on: a table of images by class and worker, in the log and for the run's summary.

Workers compute the same partition without talking; that they did is checked here, once, before the first batch. It
never changes the training.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_decgan.data import ImageDataModule

MOST_COLUMNS = 20
"""Classes of which a table still shows every count."""


class ClassHistogram(Callback):
    """Logs the class histogram of each worker's training images when `fit` starts, as worker 0 gathers them.

    With `partition="iid"` all workers draw from all images, and each worker's row says how many there are. The workers
    meet for it once, at the start of `fit`.

    Raises:
        ValueError: when `fit` starts, on all workers alike, if workers with a partition deal out other labels, or in
            another way: their shards would overlap. The message names them.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ClassHistogram()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] | None = None
        """`name`, `partition`, `alpha`, `partition_seed`, `class_names`, `class_histogram_per_worker` (N rows of
        counts); None before `fit`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers, checks and logs."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by one of Trainer's parts
        if not isinstance(datamodule, ImageDataModule):
            if trainer.is_global_zero:
                found = "no DataModule" if datamodule is None else type(datamodule).__name__
                warnings.warn(
                    f"ClassHistogram has nothing to show: it reads an ImageDataModule, found {found}", stacklevel=2
                )
            return
        classes = datamodule.num_classes or 1
        digests, widths = _gather(trainer, [datamodule.partition_digest(), classes]).unbind(1)
        strangers = torch.nonzero(digests != digests[0]).flatten().tolist()
        if strangers and datamodule.partition != "iid":
            raise ValueError(
                f"workers {strangers} have other training labels, or another partition, alpha or seed, than worker 0 "
                f"(partition={datamodule.partition!r}): their shards would overlap. Give all workers the same files "
                f"and settings, or partition='iid'"
            )
        row = datamodule.class_histograms(trainer.world_size)[trainer.global_rank]
        table = _gather(trainer, row + [0] * (int(widths.max()) - classes)).tolist()
        self.facts = {
            "name": datamodule.name,
            "partition": datamodule.partition,
            "alpha": datamodule.alpha if datamodule.partition == "dirichlet" else None,
            "partition_seed": None if datamodule.partition == "iid" else datamodule.partition_seed,
            "class_names": None if datamodule.class_names is None else list(datamodule.class_names),
            "class_histogram_per_worker": table,
        }
        title = f"{datamodule.name}, partition={datamodule.partition}: training images of each worker"
        rank_zero_info("\n".join([title, *histogram_table(table, datamodule.class_names)]))


def histogram_table(rows: Sequence[Sequence[int]], class_names: Sequence[str] | None) -> list[str]:
    """Lay class histograms out as lines of text.

    Args:
        rows: one histogram a worker.
        class_names: a name a class; None: there are no labels.

    Returns:
        A header and one line a worker. With more than 20 classes a line says how many of them a worker has, and the
        largest.

    Example:
        >>> for line in histogram_table([[12, 0, 3], [0, 15, 0]], ["coat", "bag", "shirt"]):
        ...     print(line)
        worker  images  coat  bag  shirt
             0      15    12    .      3
             1      15     .   15      .
    """
    cells = [["worker", "images"]] + [[str(worker), str(sum(row))] for worker, row in enumerate(rows)]
    names = [] if class_names is None else list(class_names)
    if 0 < len(names) <= MOST_COLUMNS:
        cells[0] += names
        for line, row in zip(cells[1:], rows, strict=True):
            line += [str(count) if count else "." for count in row]
    elif names:
        cells[0] += ["classes", "largest class"]
        for line, row in zip(cells[1:], rows, strict=True):
            largest = max(range(len(row)), key=row.__getitem__)
            line += [str(sum(count > 0 for count in row)), f"{names[largest]} ({row[largest]})"]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _gather(trainer: Trainer, values: list[int]) -> Tensor:
    """One row of equally many integers from each worker."""
    table = torch.zeros(trainer.world_size, len(values), dtype=torch.int64)
    table[trainer.global_rank] = torch.tensor(values)
    # everybody fills a row of its own, so the sum is what all have to say
    return trainer.strategy.reduce(table.to(trainer.strategy.root_device), reduce_op="sum").cpu()
