"""Stop a training that has failed: losses or weights that are not finite. Nothing here trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_decgan.gan.step import StepReport

__all__ = ["LOOK_EVERY", "LossWatch", "check_finite"]


LOOK_EVERY = 50
"""Batches between two looks where looking waits for the device."""


class LossWatch:
    """Remembers the last finite losses, and raises at one that is not.

    On the CPU it looks at every batch. Elsewhere, where looking waits for the device, it does so at each 50th and
    whenever :meth:`look` is called, as before a checkpoint is written.

    Example:
        >>> watch = LossWatch()
        >>> watch.note(1, StepReport(discriminator_loss=torch.tensor(0.5), generator_loss=torch.tensor(0.7)))
        >>> watch.note(2, StepReport(discriminator_loss=torch.tensor(0.5), generator_loss=torch.tensor(torch.nan)))
        Traceback (most recent call last):
        ...
        FloatingPointError: the generator's loss is nan after batch 2; last finite losses: discriminator 0.5, ...
    """

    def __init__(self) -> None:
        self._newest: tuple[int, StepReport] | None = None
        self._batch = 0
        self._last: dict[str, float] = {}

    def note(self, batch: int, report: StepReport) -> None:
        """Take the losses of a batch, and look at them if it is time to.

        Raises:
            FloatingPointError: One is not finite.
        """
        self._newest = batch, report
        loss = report.discriminator_loss if report.generator_loss is None else report.generator_loss
        if loss is None or loss.device.type == "cpu" or batch % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        """Look at the losses that were noted last.

        Raises:
            FloatingPointError: One is not finite.
        """
        if self._newest is None:
            return
        (batch, report), self._newest = self._newest, None
        losses = {
            "discriminator": report.discriminator_loss,
            "generator": report.generator_loss,
            "penalty": report.penalty,
        }
        values = {name: float(loss) for name, loss in losses.items() if loss is not None}
        for name, value in values.items():
            if not math.isfinite(value):
                what = "penalty" if name == "penalty" else f"{name}'s loss"
                before = ", ".join(f"{name} {value:.4g}" for name, value in self._last.items()) or "none"
                raise FloatingPointError(
                    f"the {what} is {value} after batch {batch}; last finite losses: {before} (batch {self._batch})."
                    " Checkpoints of before are kept. Lower learning rates, a penalty, spectral normalization or"
                    " clipping may help; DecentralizedGANModule(terminate_on_nan=False) would go on"
                )
        self._batch, self._last = batch, values


def check_finite(state_dict: Mapping[str, Any]) -> None:
    """Refuse weights that are about to be saved and are not finite, as a step can make them of finite losses.

    Raises:
        FloatingPointError: A floating-point tensor holds NaN or infinity; the text names it.

    Example:
        >>> check_finite({"generator.weight": torch.tensor([1.0, torch.inf])})
        Traceback (most recent call last):
        ...
        FloatingPointError: generator.weight holds values that are not finite: this checkpoint is not written, ...
    """
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"{name} holds values that are not finite: this checkpoint is not written, and those of before are"
                " kept; DecentralizedGANModule(terminate_on_nan=False) would go on"
            )
