"""Two context managers for whoever samples from a network in the middle of its training.

One puts the network into evaluation mode and back, the other makes random numbers from a seed without a trace in the
global random state. Nothing here generates images or keeps anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "seeded"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; each submodule is put back into the mode that it was in.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` within the block, and the global state as it was after it.

    Args:
        seed: None changes nothing: random numbers come from the global state.
        device: The device on which random numbers are drawn, besides the CPU. Other devices are left alone.

    Example:
        >>> with seeded(0, torch.device("cpu")):
        ...     first = torch.rand(3)
        >>> with seeded(0, torch.device("cpu")):
        ...     bool((torch.rand(3) == first).all())
        True
    """
    if seed is None:
        yield
    elif device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(devices=[device], device_type=device.type), device:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every device
            getattr(torch, device.type).manual_seed(seed)
            yield
