"""What every part of the package asks of an integer that somebody typed. Imports nothing of the package."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["check_integer"]


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an argument as an int, or say what is wrong with it.

    Args:
        name: of the argument, for the error.
        value: what was given; NumPy integers pass, booleans and floats do not.
        least: the smallest value that is valid.
        most: the largest; None is no limit.

    Raises:
        TypeError: not an integer.
        ValueError: out of range.

    Example:
        >>> check_integer("batch_size", 64, 1)
        64
        >>> check_integer("rounds", 0, 1)
        Traceback (most recent call last):
        ...
        ValueError: rounds must be an integer >= 1, found 0
        >>> check_integer("channels", 2.5, 1, 3)
        Traceback (most recent call last):
        ...
        TypeError: channels must be an integer from 1 to 3, found 2.5 (float)
    """
    valid = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be {valid}, found {value!r} ({type(value).__name__})")
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} must be {valid}, found {number}")
    return number
