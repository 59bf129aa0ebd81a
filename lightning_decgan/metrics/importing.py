"""A feature network of one's own by its place in Python: `module:name`, as entry points write it.

The module is imported, so it is code that whoever typed its name trusts; nothing here takes such a name from a file.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_decgan.metrics.extraction import check_network
from lightning_decgan.metrics.extractors import ExtractorFeatures


def import_features(place: str) -> nn.Module:
    """Make the feature network that a place in Python names.

    Args:
        place: `module:name`. The module is looked for where Python looks, and in the current folder. The name is that
            of a feature network, of a function or class that makes one without arguments, or of an extractor class of
            torch-fidelity's kind, made with its own name and its default layer for FID.

    Returns:
        The network, in evaluation mode.

    Raises:
        ValueError: If the place is no `module:name`, or cannot be imported.
        TypeError: If what is there is no feature network and makes none.

    Example:
        >>> import_features("my_features")
        Traceback (most recent call last):
        ValueError: features must be module:name, found 'my_features'
    """
    module_name, _, name = place.partition(":")
    if not module_name or not name.isidentifier():
        raise ValueError(f"features must be module:name, found {place!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"features {place!r} cannot be imported: {error}") from error
    if isinstance(found, type) and hasattr(found, "get_default_feature_layer_for_metric"):
        layer = found.get_default_feature_layer_for_metric("fid")
        return ExtractorFeatures(found(name, [layer]), f"{name}-{layer}")
    if callable(found) and not isinstance(found, nn.Module):
        found = _made_by(found, place)
    return check_network(found).eval().requires_grad_(False)


def _made_by(maker: Callable[..., Any], place: str) -> Any:
    """What a function or class makes without arguments; errors from inside it are its own and pass."""
    try:
        with contextlib.suppress(ValueError):  # some classes written in C do not tell what they take
            inspect.signature(maker).bind()
    except TypeError as error:
        raise TypeError(
            f"features {place!r} cannot be called without arguments ({error}): it must be a feature network, or a"
            " function or class that makes one without arguments"
        ) from error
    return maker()
