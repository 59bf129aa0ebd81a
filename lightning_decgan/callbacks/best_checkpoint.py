"""The checkpoint with the best score so far, of a run that measures scores. It measures nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_decgan.callbacks.fidelity import FidelityCallback

HIGHER_IS_BETTER = {"frechet_distance": False, "kernel_distance": False, "inception_score": True}


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint whose score is the best so far, as `best.ckpt`; a better one takes its place.

    It watches a score of the Trainer's `FidelityCallback`; without one it keeps nothing, so a run may leave the scores
    out and this callback in.

    Args:
        dirpath: folder of the checkpoint; default: as for `ModelCheckpoint`.
        score: `"frechet_distance"`, `"kernel_distance"` or `"inception_score"`.
        filename: without its ending.
        **settings: more of `ModelCheckpoint`.

    Raises:
        ValueError: if there is no such score.

    Example:
        >>> best = BestCheckpoint("run/checkpoints")
        >>> best.monitor, best.mode, best.filename
        ('frechet_distance', 'min', 'best')
        >>> BestCheckpoint(score="fid")
        Traceback (most recent call last):
        ValueError: score must be one of frechet_distance, kernel_distance, inception_score, found 'fid'
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        score: str = "frechet_distance",
        filename: str = "best",
        **settings: Any,
    ) -> None:
        if score not in HIGHER_IS_BETTER:
            raise ValueError(f"score must be one of {', '.join(HIGHER_IS_BETTER)}, found {score!r}")
        how: dict[str, Any] = {"monitor": score, "mode": "max" if HIGHER_IS_BETTER[score] else "min"}
        super().__init__(dirpath, filename, **{"enable_version_counter": False, **how, **settings})

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by one of Trainer's parts
        if not any(isinstance(callback, FidelityCallback) for callback in callbacks):
            self.save_top_k = 0
