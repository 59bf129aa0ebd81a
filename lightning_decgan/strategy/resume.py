"""Random numbers and data order across a restart, so that a resumed run repeats the uninterrupted one bit for bit.

Lightning restores weights, optimizers and counters; it neither saves random states nor, in the middle of an epoch, the
place in the data. Here the training loader skips what was already seen and then, before it draws anything for the next
batch, puts the saved random states back. Evaluation is kept from drawing random numbers that training would miss.
"""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

__all__ = [
    "continue_where_it_stopped",
    "get_random_state",
    "keep_random_state",
    "set_random_state",
    "skip_seen_batches",
]


def get_random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators as plain values and tensors (`weights_only` loadable).

    Example:
        >>> state = get_random_state()
        >>> first = torch.rand(2)
        >>> set_random_state(state)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    version, internal, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [
            str(algorithm),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `get_random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def skip_seen_batches(loader: DataLoader, seen: Callable[[], int], then: Callable[[], None]) -> None:
    """Let the loader's next iteration begin after the batches that were trained on before the restart.

    Args:
        loader: changed in place; it stays an instance of its own class.
        seen: how many batches of this epoch are done; asked when the first batch is.
        then: called once, after skipping and before anything is drawn for the next batch.
    """

    def iterate(batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        # A generator: nothing below runs before Lightning asks for the first batch, with its counters restored.
        del loader.__dict__["_iterate"]
        skip = seen()
        if not skip:
            then()
        iterator = batches()
        for _ in range(skip):
            next(iterator)
        if skip:
            then()
        yield from iterator

    _intercept_iteration(loader, iterate)


def continue_where_it_stopped(loader: DataLoader, trainer: Trainer, random_state: dict[str, Any]) -> None:
    """Let a resumed run's training loader, and every generator, give what would have come next."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    skip_seen_batches(loader, lambda: progress.current.ready, lambda: set_random_state(random_state))
    # Lightning warns that such a loader cannot be resumed in the middle of an epoch; this one now can.
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch.*")


def keep_random_state(loader: DataLoader) -> None:
    """Let the loader's iterations begin without advancing the process's random numbers (a DataLoader draws a seed)."""

    def iterate(batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        before = torch.get_rng_state()
        iterator = batches()
        torch.set_rng_state(before)
        return iterator

    _intercept_iteration(loader, iterate)


def _intercept_iteration(loader: DataLoader, iterate: Callable[[Callable[[], Iterator[Any]]], Iterator[Any]]) -> None:
    """Route `iter(loader)` of this one instance through `iterate`; `iter()` looks `__iter__` up on the class."""
    cls = type(loader)
    if not getattr(cls, "_interceptable", False):

        def __iter__(self: Any) -> Iterator[Any]:
            original = functools.partial(cls.__iter__, self)
            return self._iterate(original) if "_iterate" in self.__dict__ else original()

        members = {"__iter__": __iter__, "_interceptable": True, "__module__": cls.__module__}
        loader.__class__ = type(cls.__name__, (cls,), members)
    loader.__dict__["_iterate"] = iterate
