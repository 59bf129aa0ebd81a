"""`decgan sample`: a grid of images from a checkpoint of `decgan train`.

It needs the file alone: no data, no workers, no strategy. The images come from the averaged generator of the consensus.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_decgan.cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_decgan.gan import DecentralizedGANModule

MOST_IMAGES = 10_000


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan sample`."""
    parser = argparse.ArgumentParser(
        prog="decgan sample", description="Draw a grid of images from a checkpoint of decgan train."
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="a .ckpt file")
    parser.add_argument("-n", "--samples", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the latent points (default: 0)")
    parser.add_argument("-o", "--output", type=Path, default=Path("samples.png"), help="default: samples.png")
    parser.add_argument("--columns", type=int, default=8, help="images in a row (default: 8)")
    parser.add_argument("--no-ema", action="store_true", help="draw from the generator itself, not from its average")
    parser.add_argument(
        "--trust-targets", action="store_true", help="make any class that the checkpoint names: runs its code"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `decgan sample`.

    Args:
        argv: the words after `decgan sample`.

    Returns:
        The exit code.

    Raises:
        UsageError: on bad input.
    """
    arguments = parser().parse_args(argv)
    check_range("samples", arguments.samples, 1, MOST_IMAGES)
    check_range("columns", arguments.columns, 1, MOST_IMAGES)
    check_range("seed", arguments.seed, 0, 2**63 - 1)
    # argparse answers --help without it: torch takes seconds to import
    from lightning_decgan.callbacks.sample_grid import image_grid, save_png
    from lightning_decgan.cli.checkpoint import load_trained

    trained = load_trained(arguments.checkpoint, trust_targets=arguments.trust_targets)
    images = draw(trained.model, arguments.samples, seed=arguments.seed, ema=not arguments.no_ema)
    try:
        path = save_png(image_grid(images, arguments.columns), arguments.output)
    except OSError as error:
        raise UsageError(f"output {arguments.output} cannot be written: {error.strerror or error}") from error
    print(path)
    return 0


def draw(model: DecentralizedGANModule, n: int, *, seed: int = 0, ema: bool = True, batch_size: int = 256) -> Tensor:
    """Draws images a batch at a time.

    Args:
        model: a GAN.
        n: images.
        seed: of the latent points; the same images for every batch size up to rounding is not promised.
        ema: draw from the averaged generator.
        batch_size: images at a time.

    Returns:
        (n, C, H, W) with values in [-1, 1].
    """
    import torch

    from lightning_decgan.callbacks.sample_grid import undisturbed

    with undisturbed(model, seed, model.device):
        return torch.cat([model.sample(min(batch_size, n - first), ema=ema) for first in range(0, n, batch_size)])


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raises a usage error unless `value` is from `least` to `most`.

    Example:
        >>> check_range("samples", 0, 1, 100)
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: samples must be an integer from 1 to 100, found 0
    """
    if not least <= value <= most:
        raise UsageError(f"{name} must be an integer from {least} to {most}, found {value}")
