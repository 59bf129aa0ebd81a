"""Freed memory is kept for the next step, for modules that do not do so themselves."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_decgan.memory import keep_freed_memory

__all__ = ["KeepMemory"]


class KeepMemory(Callback):
    """Keeps freed memory (:func:`~lightning_decgan.memory.keep_freed_memory`) where a module trains on the CPU.

    :class:`~lightning_decgan.gan.DecentralizedGANModule` does so itself; this is for other modules.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", callbacks=[KeepMemory()])
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for it in every worker."""
        if pl_module.device.type == "cpu":
            keep_freed_memory()
