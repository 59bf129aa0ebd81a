"""Lightning's checkpoint hooks for workers that each have a model of their own.

A mixin of the strategy: when a checkpoint is taken, saved, loaded and removed. What is written, and how it is checked
when it is read, is in `checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_decgan.gossip import world
from lightning_decgan.strategy import checkpoint as checkpoints
from lightning_decgan.strategy.evaluation import Consensus, copy_state_dict

if TYPE_CHECKING:
    from lightning_decgan.gossip import Gossiper
    from lightning_decgan.strategy import resume

__all__ = ["ConsensusCheckpoints"]

_T = TypeVar("_T")


class ConsensusCheckpoints(DDPStrategy):
    """The consensus as an ordinary checkpoint, and a shard a worker beside it."""

    _gossiper: Gossiper | None
    _consensus: Consensus
    _data_order: resume.DataOrder | None
    _restored: dict[str, Any] | None
    _dumped: dict[str, Any] | None
    _random_state_before_evaluation: dict[str, Any] | None

    @property
    def worker(self) -> int:
        """This worker's number, which stays when others are lost."""
        raise NotImplementedError

    @property
    def _is_fitting(self) -> bool:
        raise NotImplementedError

    @property
    def _tidies_up(self) -> bool:
        """Whether this worker is the one of its machine that removes files."""
        raise NotImplementedError

    def _together(self, work: Callable[[], _T]) -> _T:
        """Do something that takes everybody, anew if somebody is lost meanwhile."""
        raise NotImplementedError

    def _put_consensus_on(self) -> None:
        """Have the model hold the average of all workers."""
        module, was_on = self.lightning_module, self._consensus.is_on
        assert module is not None

        def put_on() -> None:
            # Anew after a loss: some have the average by then and others do not, and it counts one that is gone.
            if not was_on:
                self._consensus.take_off()
            self._consensus.put_on(module)

        self._together(put_on)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self._gossiper is None:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        if self.lightning_module.trainer.interrupted and self.world_size > 1:
            # An error on one worker: a collective would wait for workers that are somewhere else, or gone.
            raise checkpoints.CheckpointError("no checkpoint can be taken after an error: the workers have parted")
        was_on = self._consensus.is_on
        self._put_consensus_on()
        try:
            self._dumped = copy_state_dict(self.lightning_module)
        finally:
            if not was_on:
                self._consensus.take_off()
        return self._dumped

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        manifest = None
        if self._gossiper is not None and "optimizer_states" in checkpoint:
            manifest = checkpoints.write_shards(
                filepath, self.worker, lambda: self._shard(checkpoint), checkpoint["state_dict"], self._gather
            )
            checkpoint[checkpoints.MANIFEST_KEY] = manifest
        save = partial(super().save_checkpoint, checkpoint, filepath, storage_options)
        if manifest is None:
            save()
        else:
            self._together(partial(self._save_and_wait, save))
            # The new checkpoint is there: the shards of an older one of this name may go.
            if self._tidies_up:
                checkpoints.remove_shards(filepath, keep=manifest)
        self._dumped = None

    def _save_and_wait(self, save: Callable[[], None]) -> None:
        """Worker 0 writes the file; should it be lost over that, the next one has its rank and does."""
        save()
        world.wait_for_everybody()

    def _gather(self, payload: bytes) -> list[bytes]:
        return self._together(partial(world.gather_bytes, payload))

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        with checkpoints.nothing_unpickled(checkpoint_path):
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only=True)
        manifest = checkpoints.verify(checkpoint_path, checkpoint)
        self._restored = None
        if manifest is None or not self._is_fitting:
            return checkpoint
        if manifest["workers"] != self.world_size:
            rank_zero_info(
                f"The checkpoint was saved by {manifest['workers']} workers and is resumed by {self.world_size}: all"
                " start from its consensus, with worker 0's optimizer state."
            )
            return checkpoint
        shard = checkpoints.read_shard(checkpoint_path, manifest, self.global_rank)
        self._restored = shard
        return checkpoint | shard["checkpoint"]

    @override
    def remove_checkpoint(self, filepath: str | Path) -> None:
        super().remove_checkpoint(filepath)
        if self._tidies_up:
            checkpoints.remove_shards(filepath)

    def _shard(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What this worker, and no other, needs to go on."""
        assert self.lightning_module is not None
        assert self._gossiper is not None
        assert self._data_order is not None
        with self._consensus.lifted():
            own = copy_state_dict(self.lightning_module)
        # What Lightning, callbacks and user code put into this worker's copy of the checkpoint is this worker's own;
        # only the weights, wherever a callback has moved them to, are the consensus and become the worker's.
        kept = {key: own if value is self._dumped else value for key, value in checkpoint.items()}
        if not any(value is own for value in kept.values()):  # user code has put a selection of the weights there
            kept["state_dict"] = {name: own.get(name, value) for name, value in checkpoint["state_dict"].items()}
        return {
            "worker": self.worker,
            "checkpoint": kept,
            "gossip": self._gossiper.state_dict(),
            "data_order": self._data_order.state_dict(self._random_state_before_evaluation),
        }
