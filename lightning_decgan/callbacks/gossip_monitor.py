"""What the gossip of a run does, in the logger and on the progress bar: distances, bytes, milliseconds waited.

It reads the strategy's own counters, so it costs nothing and no message between workers. It
never changes the training, and under a strategy that does not gossip it says so once and does nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_decgan.callbacks.batches import training_batches
from lightning_decgan.checks import check_integer


class GossipMonitor(Callback):
    """Logs how far the workers are apart and what their gossip costs.

    Each `every_n_steps` batches, of worker 0 (no communication):

    - `gossip/neighbor_distance`: the distance to the models of the neighbours at the last finished swap,
    - `gossip/megabytes_sent`: sent by this worker since the run's start (10^6 bytes),
    - `gossip/wait_ms`: milliseconds that a batch waited for its neighbours, on average since the last time.

    At every evaluation on the consensus, where all workers meet anyway:

    - `gossip/consensus_distance`: sqrt(mean_i |x_i - mean|^2), the root mean square distance of a worker's parameters
      from their mean,
    - `gossip/relative_consensus_distance`: the same, divided by the mean's norm.

    Args:
        every_n_steps: training batches between two measurements.

    Raises:
        TypeError: if `every_n_steps` is no integer.
        ValueError: if it is below 1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GossipMonitor(every_n_steps=100)], accelerator="cpu", logger=False)
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        self.every_n_steps = check_integer("every_n_steps", every_n_steps, 1)
        self._active = False
        self._neighbor_distance: float | None = None
        self._counting = False
        self._logged_steps = 0
        self._logged_wait_seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Warns when there is nothing to show."""
        strategy: Any = trainer.strategy
        self._active = hasattr(strategy, "last_report") and hasattr(strategy, "totals")
        if not self._active and trainer.is_global_zero:
            warnings.warn(
                f"GossipMonitor has nothing to show: the strategy {type(strategy).__name__} does not gossip",
                stacklevel=2,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts waiting anew."""
        self._counting = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Counts waiting from the first batch: by then a resumed run's totals are those of before the restart."""
        if self._active and not self._counting:
            totals = _gossip(trainer).totals
            self._logged_steps, self._logged_wait_seconds = totals.steps, totals.wait_seconds
            self._counting = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs worker 0's counters."""
        if not self._active:
            return
        report = _gossip(trainer).last_report
        # a worker that sat a round out met nobody; what it saw the last time stands
        if report is not None and report.neighbor_distance is not None:
            self._neighbor_distance = report.neighbor_distance
        step = training_batches(trainer)
        if step % self.every_n_steps:
            return
        metrics = self._metrics(trainer)
        on_the_bar = ("gossip/neighbor_distance", "gossip/wait_ms")
        shown: dict[str, Any] = {name: metrics[name] for name in on_the_bar if name in metrics}
        pl_module.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False, batch_size=1)
        # straight to the loggers, as a value logged through the module would show only in the batches in which
        # log_every_n_steps falls due; the step is Lightning's: the index of the batch
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step - 1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how far the workers were from their mean when the consensus was taken."""
        if not self._active:
            return
        strategy = _gossip(trainer)
        if strategy.evaluate != "consensus":  # no consensus was taken: the distance would be of another moment
            return
        distances = {
            "gossip/consensus_distance": strategy.consensus_distance,
            "gossip/relative_consensus_distance": strategy.relative_consensus_distance,
        }
        for name, value in distances.items():
            if value is not None:
                pl_module.log(
                    name,
                    value,
                    prog_bar="relative" in name,
                    on_step=False,
                    on_epoch=True,
                    batch_size=1,
                    # equal on all workers; this tells Lightning so, at a moment when they meet anyway
                    sync_dist=True,
                )

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        totals = _gossip(trainer).totals
        steps = totals.steps - self._logged_steps
        metrics = {
            "gossip/megabytes_sent": totals.bytes_sent / 1e6,
            "gossip/wait_ms": 1e3 * (totals.wait_seconds - self._logged_wait_seconds) / max(steps, 1),
        }
        if self._neighbor_distance is not None:
            metrics["gossip/neighbor_distance"] = self._neighbor_distance
        self._logged_steps, self._logged_wait_seconds = totals.steps, totals.wait_seconds
        return metrics


def _gossip(trainer: Trainer) -> Any:
    """The strategy; `setup` has looked whether it has the attributes of one that gossips."""
    return trainer.strategy
