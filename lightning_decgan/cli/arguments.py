"""What the commands that read a checkpoint or draw have in common on the command line; imports no torch.

argparse answers --help from here, so it must not take the seconds that torch takes to import.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from lightning_decgan.cli.errors import UsageError


def checkpoint_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A command line that begins with a checkpoint: CKPT, --seed and --trust-targets.

    Args:
        command: the word after `decgan`.
        description: what it does.

    Example:
        >>> checkpoint_parser("sample", "Draw images.").parse_args(["a.ckpt"])
        Namespace(checkpoint=PosixPath('a.ckpt'), seed=0, trust_targets=False)
    """
    parser = argparse.ArgumentParser(prog=f"decgan {command}", description=description)
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="a .ckpt file of decgan train")
    parser.add_argument("--seed", type=int, default=0, help="of the latent points (default: 0)")
    parser.add_argument(
        "--trust-targets", action="store_true", help="make any class that the checkpoint names: runs its code"
    )
    return parser


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raises a usage error unless `value` is from `least` to `most`.

    Example:
        >>> check_range("samples", 0, 1, 100)
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: samples must be an integer from 1 to 100, found 0
    """
    if not least <= value <= most:
        raise UsageError(f"{name} must be an integer from {least} to {most}, found {value}")


@contextlib.contextmanager
def writing(name: str, path: Path) -> Iterator[None]:
    """Makes a usage error of whatever keeps a file from being written.

    Args:
        name: the argument that named the file.
        path: the file.

    Example:
        >>> with writing("output", Path("/proc/none.png")):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: output /proc/none.png cannot be written: Permission denied
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{name} {path} cannot be written: {error.strerror or error}") from error
