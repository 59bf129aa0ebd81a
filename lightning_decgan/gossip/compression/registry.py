"""From what a user writes to a compression."""

from __future__ import annotations

from typing import cast

from lightning_decgan.gossip.compression.base import Compression
from lightning_decgan.gossip.compression.casting import BFloat16
from lightning_decgan.gossip.compression.quantizing import Int8

__all__ = ["build_compression"]

_NAMES: dict[str, type[BFloat16] | type[Int8]] = {"bfloat16": BFloat16, "int8": Int8}


def build_compression(spec: object) -> Compression | None:
    """Make the compression that a user asked for.

    Args:
        spec: `None` (messages are the parameters themselves), "bfloat16", "int8", or an object with a `codec` method
            such as `PowerGossip(rank=1)`, `RandomSubset(fraction=0.1)` or one's own (see `Compression`).

    Raises:
        ValueError: the name is not known.
        TypeError: it is none of these.

    Example:
        >>> build_compression("int8")
        Int8(block=256)
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        if spec not in _NAMES:
            raise ValueError(
                f"compression must be None, {', '.join(repr(name) for name in _NAMES)} or an object such as"
                f" PowerGossip(rank=1) or RandomSubset(fraction=0.1), found {spec!r}"
            )
        return _NAMES[spec]()
    if isinstance(spec, type) or not callable(getattr(spec, "codec", None)):
        hint = f"; write {spec.__name__}() to make one" if isinstance(spec, type) and hasattr(spec, "codec") else ""
        raise TypeError(
            f"compression must be None, a name or an object with a method `codec`, found {spec!r}"
            f" ({type(spec).__name__}){hint}"
        )
    return cast(Compression, spec)
