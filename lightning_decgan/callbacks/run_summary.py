"""One small JSON file that says what a run was and what came of it.

Who trained how long on how many images, how fast, how much the workers sent, how far apart they ended, and how good the
samples are. Works with any strategy; what does not apply is null. It is written while the run goes on ("running"), at
the end ("finished") and on an exception ("failed"), each time whole; only rank 0 writes.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_decgan.callbacks.batches import training_batches
from lightning_decgan.callbacks.class_histogram import ClassHistogram
from lightning_decgan.callbacks.fidelity import FidelityCallback, images_of
from lightning_decgan.callbacks.sample_grid import SampleGrid
from lightning_decgan.files import write_json_atomically

REFRESH_SECONDS = 10.0
"""Seconds between two writings while training: a run whose workers are killed leaves at most so much untold."""

PACKAGES = ("lightning_decgan", "torch", "lightning", "torchmetrics")


class RunSummary(Callback):
    """Writes `summary.json`.

    Fields: `status` ("running", "finished", "failed"), `error` (null or one line), `workers`, `strategy`, `topology`,
    `spectral_gap`, `rounds`, `overlap`, `max_delay`, `compression`, `steps` (batches a worker trained on),
    `images_seen` (all workers together), `seconds` (training and validating), `validation_seconds`,
    `images_per_second` (all workers, without validation), `bytes_sent_per_worker` (one number a worker, since the first
    start), `wait_seconds_per_worker`, `late_steps_per_worker`, `rejected_per_worker` (payloads not added),
    `lost_workers`, `events` (who noticed what at which step: losses, rejected payloads, graphs knit anew; see
    `gossip.GossipEvent`), `consensus_distance`, `relative_consensus_distance`, `features` (the feature network's name),
    `scores_before`, `scores`, `last_sample_grid`, `data` (what each worker trains on, see `ClassHistogram.facts`),
    `versions`. Steps, images and seconds go on counting across a resume. What a lost worker saw is not in the sums.

    Args:
        path: the file to write.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RunSummary("run/summary.json")], accelerator="cpu", logger=False)
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._began = False
        self._written = 0.0
        self._spectral_gap: float | None = None
        self._images = 0.0
        self._workers: int | None = None
        self._batches_of_unknown_size = 0
        self._earlier_seconds = 0.0
        self._earlier_validation_seconds = 0.0
        self._validation_seconds = 0.0
        self._started: float | None = None
        self._ended: float | None = None
        self._validation_started: float | None = None
        self._per_worker: dict[str, list[float]] | None = None
        self._events: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run adds to."""
        return {
            "images": self._images,
            "workers": self._workers,
            "seconds": self._seconds(),
            "validation_seconds": self._earlier_validation_seconds + self._validation_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from an earlier run's counts."""
        self._images = float(state_dict["images"])
        self._workers = state_dict.get("workers")
        self._earlier_seconds = float(state_dict["seconds"])
        self._earlier_validation_seconds = float(state_dict["validation_seconds"])
        self._validation_seconds, self._started = 0.0, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves a file that says the run began, in case that its end is never reached."""
        self._began = True
        # Another fit with this very callback goes on counting where the last one ended.
        self._earlier_seconds, self._started, self._ended = self._seconds(), None, None
        self._per_worker = self._events = None
        self._write(trainer, "running")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        # Of a run that more or fewer workers go on with: what all have seen stays what it was.
        self._images *= (self._workers or trainer.world_size) / trainer.world_size
        self._workers = trainer.world_size
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts this worker's images."""
        try:
            self._images += len(images_of(batch))
        except TypeError:
            self._batches_of_unknown_size += 1
        if time.perf_counter() - self._written > REFRESH_SECONDS:
            self._write(trainer, "running")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of validation (not for the sanity check, which is before training)."""
        if self._started is not None:
            self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of validation."""
        if self._validation_started is not None:
            self._validation_seconds += time.perf_counter() - self._validation_started
            self._validation_started = None
            self._write(trainer, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock and gathers the workers' counts: training is over, everybody meets here."""
        self._ended = time.perf_counter()
        totals = getattr(trainer.strategy, "totals", None)
        counts = [
            self._images,
            float(totals.bytes_sent) if totals is not None else 0.0,
            float(totals.wait_seconds) if totals is not None else 0.0,
            float(totals.late_steps) if totals is not None else 0.0,
            float(totals.rejected) if totals is not None else 0.0,
        ]
        # float32 would lose bytes above 16 million; MPS has no float64
        dtype = torch.float32 if pl_module.device.type == "mps" else torch.float64
        table = torch.zeros(trainer.world_size, len(counts), dtype=dtype)
        table[trainer.global_rank] = torch.tensor(counts, dtype=dtype)
        # everybody fills a row of its own, so the sum is what all have to say
        everybody = trainer.strategy.reduce(table.to(pl_module.device), reduce_op="sum")
        names = ("images", "bytes_sent", "wait_seconds", "late_steps", "rejected")
        self._per_worker = dict(zip(names, (column.tolist() for column in everybody.cpu().unbind(1)), strict=True))
        if hasattr(trainer.strategy, "gather_events"):
            self._events = trainer.strategy.gather_events()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished run."""
        self._write(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the failed run with what this worker knows; the others may be gone."""
        if self._began:
            self._ended = time.perf_counter()
            self._write(trainer, "failed", cause_of(exception))
        else:
            # This process only started the workers (spawn, fork), in which Lightning calls no hook when they fail: what
            # worker 0 wrote while it ran is all there is.
            mark_failed(self.path, cause_of(exception))

    def _seconds(self) -> float:
        if self._started is None:
            return self._earlier_seconds
        return self._earlier_seconds + (self._ended or time.perf_counter()) - self._started

    def _write(self, trainer: Trainer, status: str, error: str | None = None) -> None:
        self._written = time.perf_counter()
        if trainer.is_global_zero:
            write_json_atomically(self.path, {"status": status, "error": error, **self.summary(trainer)})

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The fields of the file but `status` and `error`, as they are now.

        Args:
            trainer: the Trainer this callback belongs to.

        Returns:
            Names and plain values; see the class.
        """
        strategy = trainer.strategy
        topology = getattr(strategy, "topology", None)
        gossips = hasattr(strategy, "totals")
        compression = getattr(strategy, "compression", None)
        if gossips and topology is not None and self._spectral_gap is None:
            self._spectral_gap = float(topology.spectral_gap())  # once: of thousands of workers it takes its time
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by one of Trainer's parts
        fidelity = next((callback for callback in callbacks if isinstance(callback, FidelityCallback)), None)
        grid = next((callback for callback in callbacks if isinstance(callback, SampleGrid)), None)
        histogram = next((callback for callback in callbacks if isinstance(callback, ClassHistogram)), None)
        per_worker = self._per_worker
        images = sum(per_worker["images"]) if per_worker else self._images * trainer.world_size
        known = self._batches_of_unknown_size == 0
        seconds = self._seconds()
        validation_seconds = self._earlier_validation_seconds + self._validation_seconds
        training_seconds = seconds - validation_seconds
        return {
            "workers": trainer.world_size,
            "strategy": type(strategy).__name__,
            "topology": getattr(topology, "name", None),
            "spectral_gap": self._spectral_gap,
            "rounds": getattr(strategy, "rounds", None),
            "overlap": getattr(strategy, "overlap", None),
            "max_delay": getattr(strategy, "max_delay", None),
            "compression": None if compression is None else str(compression),
            "steps": training_batches(trainer),
            "images_seen": round(images) if known else None,
            "seconds": round(seconds, 3),
            "validation_seconds": round(validation_seconds, 3),
            "images_per_second": round(images / training_seconds, 1) if known and training_seconds > 0 else None,
            "bytes_sent_per_worker": [int(n) for n in per_worker["bytes_sent"]] if gossips and per_worker else None,
            "wait_seconds_per_worker": (
                [round(n, 3) for n in per_worker["wait_seconds"]] if gossips and per_worker else None
            ),
            "late_steps_per_worker": [int(n) for n in per_worker["late_steps"]] if gossips and per_worker else None,
            "rejected_per_worker": [int(n) for n in per_worker["rejected"]] if gossips and per_worker else None,
            "lost_workers": list(getattr(strategy, "lost_workers", ())),
            "events": [vars(event) for event in getattr(strategy, "events", ())]
            if self._events is None
            else self._events,
            "consensus_distance": getattr(strategy, "consensus_distance", None),
            "relative_consensus_distance": getattr(strategy, "relative_consensus_distance", None),
            "features": fidelity.features_name if fidelity else None,
            "scores_before": fidelity.scores_before if fidelity else None,
            "scores": fidelity.scores if fidelity else None,
            "last_sample_grid": str(grid.last_path) if grid and grid.last_path else None,
            "data": histogram.facts if histogram else None,
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def mark_failed(path: Path, error: str) -> None:
    """Makes a summary say that its run failed, where no worker could: the one who writes it may have been killed.

    Args:
        path: of the summary; nothing happens if it already tells how the run ended.
        error: one line that says why.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "summary.json"
        >>> _ = write_json_atomically(path, {"status": "running", "error": None})
        >>> mark_failed(path, "killed")
        >>> json.loads(path.read_text())
        {'status': 'failed', 'error': 'killed'}
    """
    summary = json.loads(path.read_text()) if path.is_file() else {"status": "running"}
    if summary["status"] == "running":
        write_json_atomically(path, summary | {"status": "failed", "error": error})


def cause_of(error: BaseException) -> str:
    r"""An exception in one line; of one that a worker raised in its process, the worker's own last line.

    Example:
        >>> cause_of(ValueError("rounds must be >= 1"))
        'ValueError: rounds must be >= 1'
        >>> cause_of(RuntimeError("-- Process 1 terminated: --\nTraceback ...\nKeyError: 'x'"))
        "KeyError: 'x'"
        >>> cause_of(KeyboardInterrupt())
        'KeyboardInterrupt'
    """
    lines = str(error).strip().splitlines()
    if len(lines) > 1:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
