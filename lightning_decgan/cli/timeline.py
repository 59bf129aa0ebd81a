"""`decgan timeline`: the sample grids of a run, one after another, as an animation: how its images came to be.

It reads pictures that the run has drawn, `samples/step-*-consensus.png`; it needs no checkpoint and draws no sample.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_decgan.cli.arguments import check_range, writing
from lightning_decgan.cli.errors import UsageError, one_line

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"step-(\d+)-(consensus|model|worker-0)\.png")
_LAST_FRAMES = 5
"""How often the last grid is repeated, so that it is seen."""


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan timeline`."""
    parser = argparse.ArgumentParser(
        prog="decgan timeline", description="Make an animation of the sample grids that a run has drawn."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run of decgan train")
    parser.add_argument("-o", "--output", type=Path, default=None, help="a .gif or .webp (default: RUN/timeline.webp)")
    parser.add_argument("--milliseconds", type=int, default=400, help="that a grid is shown (default: 400)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `decgan timeline`.

    Args:
        argv: the words after `decgan timeline`.

    Returns:
        The exit code.

    Raises:
        UsageError: on bad input.
    """
    arguments = parser().parse_args(argv)
    check_range("milliseconds", arguments.milliseconds, 10, 10_000)
    from lightning_decgan.cli.pictures import ANIMATIONS, check_picture_name, save_animation

    check_picture_name("output", arguments.output, ANIMATIONS)
    path = arguments.output or arguments.run / "timeline.webp"
    grids = sample_grids(arguments.run)
    frames = [_frame(grid) for grid in grids]
    odd = next((grid for grid, frame in zip(grids, frames, strict=True) if frame.shape != frames[0].shape), None)
    if odd is not None:
        raise UsageError(f"run {arguments.run} has grids of different sizes: {grids[0].name} and {odd.name}")
    with writing("output", path):
        save_animation([*frames, *frames[-1:] * _LAST_FRAMES], path, arguments.milliseconds)
    print(path)
    return 0


def sample_grids(run: Path) -> list[Path]:
    """The grids that a run has drawn of its consensus (or of its model, where there is one only), by step.

    Args:
        run: the folder of a run.

    Returns:
        Paths, at least one.

    Raises:
        UsageError: if there are none.

    Example:
        >>> sample_grids(Path("/nowhere"))
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: run /nowhere has no sample grids: there is no \
/nowhere/samples/step-*.png; the callback SampleGrid draws them
    """
    named = [(path, match) for path in (run / "samples").glob("step-*.png") if (match := _NAME.fullmatch(path.name))]
    for shown in ("consensus", "model", "worker-0"):
        found = sorted((int(match[1]), path) for path, match in named if match[2] == shown)
        if found:
            return [path for _, path in found]
    raise UsageError(
        f"run {run} has no sample grids: there is no {run / 'samples' / 'step-*.png'}; the callback SampleGrid draws "
        "them"
    )


def _frame(path: Path) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            array = np.array(image if image.mode == "L" else image.convert("RGB"))
    except OSError as error:
        raise UsageError(f"{path} is no picture that can be read: {one_line(error)}") from error
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
