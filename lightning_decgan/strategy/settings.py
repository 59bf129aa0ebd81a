"""Checks of the strategy's settings: an error at once that names the argument, what was found, what would be valid."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning_decgan.checks import check_integer
from lightning_decgan.gossip import OuterNesterov

__all__ = ["check_settings"]

_CHOICES = {
    "buffers": ("local", "average"),
    "evaluate": ("consensus", "local"),
    "on_loss": ("continue", "raise"),
    "edges": ("gloo", "nccl"),
    "start_method": ("popen", "spawn", "fork", "forkserver"),
}
_LEAST = {"rounds": 1, "gossip_every": 1, "workers_per_device": 1, "seed": 0}


def check_settings(**settings: Any) -> None:
    """Check the settings that are given, by name.

    Raises:
        TypeError: a setting is of the wrong type.
        ValueError: a setting is out of its range or not one of its choices.

    Example:
        >>> check_settings(rounds=0)
        Traceback (most recent call last):
        ...
        ValueError: rounds must be an integer >= 1, found 0
    """
    for name, found in settings.items():
        if name in _LEAST:
            check_integer(name, found, _LEAST[name])
        elif name in _CHOICES:
            if found not in _CHOICES[name]:
                valid = " or ".join(repr(choice) for choice in _CHOICES[name])
                raise ValueError(f"{name} must be {valid}, found {found!r}")
        elif name.endswith("timeout"):
            if not isinstance(found, timedelta):
                raise TypeError(f"{name} must be a datetime.timedelta such as timedelta(seconds=30), found {found!r}")
            if found <= timedelta(0):
                raise ValueError(f"{name} must be longer than zero, found {found}")
        elif name == "overlap" and not isinstance(found, bool):
            raise TypeError(f"overlap must be True or False, found {found!r}")
        elif name == "merge_rounds" and not (found is None or isinstance(found, bool)):
            raise TypeError(f"merge_rounds must be None, True or False, found {found!r}")
        elif name == "max_delay" and found is not None:
            check_integer("max_delay, if not None,", found, 0)
        elif name == "outer" and not (found is None or isinstance(found, OuterNesterov)):
            raise TypeError(f"outer must be None or OuterNesterov(lr, momentum), found {found!r}")
