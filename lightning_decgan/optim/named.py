"""From what a user writes to something that makes an optimizer."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer

import lightning_decgan.optim as own


def get_optimizer(optimizer: str | Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """What makes an optimizer: the class of that name here or in `torch.optim`, or the callable itself.

    Args:
        optimizer: `"OptimisticAdam"`, `"RMSprop"`, ..., or a callable `(params, lr=...) -> torch.optim.Optimizer`.

    Raises:
        ValueError: There is no optimizer of that name.
        TypeError: It is neither a name nor a callable.

    Example:
        >>> get_optimizer("RMSprop") is torch.optim.RMSprop
        True
    """
    if isinstance(optimizer, str):
        for home in (own, torch.optim):
            found = getattr(home, optimizer, None)
            if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer:
                return found
        raise ValueError(
            "optimizer must be a class of lightning_decgan.optim or torch.optim, such as 'OptimisticAdam' or 'Adam',"
            f" found {optimizer!r}"
        )
    if not callable(optimizer):
        raise TypeError(f"optimizer must be a name or a callable (params, lr=...), found {type(optimizer).__name__}")
    return optimizer
