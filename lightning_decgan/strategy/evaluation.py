"""The consensus model: the average of all workers, put into the model's own storages and taken off again.

Putting it on is a world collective, so it happens at evaluation, checkpoints and the end of training, never between.
Storages are never replaced: references held by optimizers, EMA copies or compiled code stay valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from lightning_decgan.gossip import world

__all__ = ["Consensus"]


class Consensus:
    """Averages parameters and floating-point buffers; integer buffers stay each worker's own.

    Attributes:
        distance: `sqrt(mean_i |x_i - x_mean|^2)` over parameters when the average was last taken, or `None`.
        relative_distance: the same divided by `|x_mean|`, or `None`.
    """

    def __init__(self) -> None:
        self.distance: float | None = None
        self.relative_distance: float | None = None
        self._live: list[Tensor] = []
        self._own: list[Tensor] = []

    @property
    def is_on(self) -> bool:
        """Whether the model holds the average now."""
        return bool(self._live)

    @torch.no_grad()
    def put_on(self, module: Module) -> None:
        """Replace the model's values by the average; every worker must call this. Does nothing when it is on."""
        if self.is_on:
            return
        parameters = list(module.parameters())
        buffers = [b for b in module.buffers() if b.is_floating_point() or b.is_complex()]
        live = parameters + buffers
        counted = [True] * len(parameters) + [False] * len(buffers)
        # Ordinary tensors, also where Lightning evaluates in inference mode: they are written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            means, self.distance, self.relative_distance = world.average(live, counted)
            self._live, self._own = live, means
            self._exchange()

    @torch.no_grad()
    def take_off(self) -> None:
        """Give every worker its own values back. Does nothing when the average is not on."""
        if self.is_on:
            self._exchange()
        self.forget()

    def forget(self) -> None:
        """Let the model keep the average for good."""
        self._live, self._own = [], []

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """The worker's own values within the block, and afterwards what there was before."""
        if self.is_on:
            self._exchange()
        try:
            yield
        finally:
            if self.is_on:
                self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap the values in the model with those remembered."""
        for live, other in zip(self._live, self._own, strict=True):
            kept = live.detach().clone()
            live.copy_(other)
            other.copy_(kept)


def copy_state_dict(module: Module) -> dict[str, Any]:
    """The module's state dict with tensors that later changes of the module do not touch."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in module.state_dict().items()
    }
