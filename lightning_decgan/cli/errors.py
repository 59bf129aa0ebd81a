"""The one error of the command line: something the user gave cannot be used.

Whatever raises it says in one line what was given, what was found and what would be valid; `decgan` prints that line
and ends with exit code 2. Errors of any other kind are bugs or accidents and keep their traceback.
"""

from __future__ import annotations

from importlib import metadata


class UsageError(Exception):
    """What the user gave cannot be used; its text is one line that says why.

    Example:
        >>> raise UsageError("samples must be an integer >= 1, found 0")
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: samples must be an integer >= 1, found 0
    """


def one_line(error: BaseException) -> str:
    r"""An exception's text in one line, for logs and for people.

    Example:
        >>> one_line(ValueError("first\n  second "))
        'first second'
        >>> one_line(KeyError("name"))
        "KeyError: 'name'"
        >>> one_line(RuntimeError())
        'RuntimeError'
    """
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    # the text of these says nothing without the type
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError | AssertionError) else text


def torchvision_mismatch(error: RuntimeError) -> str | None:
    """What to do about a torchvision that was built for another torch than the one beside it.

    Args:
        error: raised by an import: that of torchmetrics, and so of Lightning, imports torchvision where there is one.

    Returns:
        One line; None for any other error.

    Example:
        >>> torchvision_mismatch(RuntimeError("out of memory")) is None
        True
    """
    if not str(error).startswith("operator torchvision::"):
        return None
    torchvision, torch = (f"{name} {metadata.version(name)}" for name in ("torchvision", "torch"))
    return f"{torchvision} was not built for {torch} ({error}); install the torchvision that was, or none"
