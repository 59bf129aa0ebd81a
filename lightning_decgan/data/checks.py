"""Checks of arguments that the DataModules share."""

from __future__ import annotations

import operator
from typing import Any


def require_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` as an ``int`` if it is an integer between ``minimum`` and ``maximum``.

    Args:
        name: The argument's name, for the error.
        value: What the caller gave. NumPy integers pass, booleans and floats do not.
        minimum: The smallest value that is allowed.
        maximum: The largest value that is allowed, or ``None``.

    Raises:
        TypeError: If ``value`` is not an integer.
        ValueError: If it is out of range.

    Example:
        >>> require_integer("batch_size", 64, minimum=1)
        64
        >>> require_integer("batch_size", 0, minimum=1)
        Traceback (most recent call last):
        ValueError: batch_size must be an integer >= 1, found 0
    """
    valid = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"{name} must be an integer {valid}, found {value!r}")
    if integer < minimum or (maximum is not None and integer > maximum):
        raise ValueError(f"{name} must be an integer {valid}, found {value!r}")
    return integer
