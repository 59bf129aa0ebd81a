"""Random numbers and data order across a restart, so that a resumed run repeats the uninterrupted one bit for bit.

Lightning restores weights, optimizers and counters; it neither saves random states nor, in the middle of an epoch, the
place in the data. `DataOrder` does. Evaluation is kept from drawing random numbers that training would miss.
"""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.types import _Stateful
from torch.utils.data import DataLoader

__all__ = ["DataOrder", "get_random_state", "keep_random_state", "set_random_state"]


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


class DataOrder:
    """Where a worker is in its training data, so that a resumed run goes on with the batch that would have come next.

    An epoch's order, and the seeds of loader processes, are drawn when its iteration begins. So the random states of
    that moment are remembered: a resumed run puts them back, begins the epoch again, skips what was trained on, and
    then puts back the states of the moment of saving.

    Exact for one training loader. With several, or with `persistent_workers=True` (whose random numbers run on from
    epoch to epoch in processes that are gone), or where a dataset without a length draws random numbers in this
    process, an epoch is not resumed in its middle; Lightning's warning about that is left alone.

    Args:
        seen: how many batches of the present epoch are done.
    """

    def __init__(self, seen: Callable[[], int]) -> None:
        self._seen = seen
        self._loaders: list[DataLoader] = []
        self._epoch_start: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None

    def follow(self, loader: DataLoader) -> None:
        """Remember where this loader's epochs begin; it is changed in place and stays an instance of its class."""
        self._loaders.append(loader)
        _intercept_iteration(loader, functools.partial(self._iterate, loader))
        if self._restored is not None and not loader.persistent_workers and not isinstance(loader, _Stateful):
            # Lightning warns that such a loader cannot be resumed in the middle of an epoch; this one now can.
            warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch.*")

    def state_dict(self, now: dict[str, Any] | None = None) -> dict[str, Any]:
        """What a resumed run needs; `now` are the random states to go on with, by default the present ones."""
        return {"now": (now or get_random_state()) | self._generators(), "epoch_start": self._epoch_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next first batch, once."""
        self._restored = state

    def _iterate(self, loader: DataLoader, batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        # A generator: nothing below runs before Lightning asks for the first batch, with its counters restored.
        restored, self._restored = self._restored, None
        skip = 0
        if restored is not None:
            # A loader that restores its own position has done so by now.
            alone = len(self._loaders) == 1 and not isinstance(loader, _Stateful)
            skip = self._seen() if alone and restored["epoch_start"] is not None else 0
            self._restore(restored["epoch_start"] if skip else restored["now"])
        self._epoch_start = get_random_state() | self._generators()
        iterator = batches()
        for _ in range(skip):
            next(iterator, None)
        if restored is not None and skip:
            self._restore(restored["now"])
        yield from iterator

    def _generators(self) -> dict[str, Any]:
        generators = (loader.generator for loader in self._loaders)
        return {"loaders": [None if generator is None else generator.get_state() for generator in generators]}

    def _restore(self, state: dict[str, Any]) -> None:
        set_random_state(state)
        for loader, generator_state in zip(self._loaders, state["loaders"], strict=False):
            if loader.generator is not None and generator_state is not None:
                loader.generator.set_state(generator_state)


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
