"""`decgan interpolate`: walks through the latent space of a checkpoint's generator.

A `.png` shows each walk as a row of images from one latent point to another. A `.gif` or `.webp` moves: every image of
a grid walks through several points and comes back to the first. A generator that has learned the data rather than a few
images changes smoothly on the way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_decgan.cli.arguments import check_range, checkpoint_parser, writing

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_decgan.gan import DecentralizedGANModule

MOST_FRAMES = 1000
MOST_WALKS = 256


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan interpolate`."""
    parser = checkpoint_parser("interpolate", "Draw walks between latent points, as a strip or as an animation.")
    parser.add_argument("--walks", type=int, default=8, metavar="N", help="side by side (default: 8)")
    parser.add_argument(
        "--points", type=int, default=None, metavar="N", help="latent points of a walk (default: 2; of animations 5)"
    )
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="from a point to the next (default: 9)")
    parser.add_argument(
        "-o", "--output", type=Path, default=None, help="a .png, .gif or .webp (default: the run's interpolation.png)"
    )
    parser.add_argument("--milliseconds", type=int, default=80, help="that an animation shows a frame (default: 80)")
    parser.add_argument("--no-ema", action="store_true", help="draw from the generator itself, not from its average")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `decgan interpolate`.

    Args:
        argv: the words after `decgan interpolate`.

    Returns:
        The exit code.

    Raises:
        UsageError: on bad input.
    """
    arguments = parser().parse_args(argv)
    # argparse answers --help without these: torch takes seconds to import
    from lightning_decgan.callbacks.sample_grid import image_grid, save_png
    from lightning_decgan.cli.checkpoint import load_trained
    from lightning_decgan.cli.pictures import ANIMATIONS, check_picture_name, run_folder, save_animation

    check_picture_name("output", arguments.output, (".png", *ANIMATIONS))
    moves = arguments.output is not None and arguments.output.suffix.lower() in ANIMATIONS
    points = arguments.points if arguments.points is not None else 5 if moves else 2
    check_range("walks", arguments.walks, 1, MOST_WALKS)
    check_range("points", points, 2, MOST_FRAMES)
    check_range("steps", arguments.steps, 1, MOST_FRAMES)
    check_range("points * steps", points * arguments.steps, 2, MOST_FRAMES)
    check_range("milliseconds", arguments.milliseconds, 10, 10_000)
    check_range("seed", arguments.seed, 0, 2**63 - 1)
    trained = load_trained(arguments.checkpoint, trust_targets=arguments.trust_targets)
    path = arguments.output or run_folder(trained.path) / "interpolation.png"
    latents = walk(_anchors(trained.model, arguments.walks, points, arguments.seed), arguments.steps, closed=moves)
    images = _images(trained.model, latents, ema=not arguments.no_ema)
    with writing("output", path):
        if moves:
            columns = next(n for n in range(1, arguments.walks + 1) if n * n >= arguments.walks)
            save_animation([image_grid(frame, columns) for frame in images], path, arguments.milliseconds)
        else:
            save_png(image_grid(images.transpose(0, 1).flatten(0, 1), len(images)), path)
    print(path)
    return 0


def slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    r"""Spherical linear interpolation between latents.

    .. math:: \frac{\sin((1-f)\,\omega)}{\sin\omega}\, a + \frac{\sin(f\,\omega)}{\sin\omega}\, b,
        \qquad \cos\omega = \frac{\langle a, b\rangle}{|a||b|}

    Gaussian latents of many dimensions lie near a sphere; the straight line between two of them passes through lengths
    that the generator has hardly ever met.

    Args:
        start: (n, d), a.
        end: (n, d), b.
        fraction: f, from 0 (a) to 1 (b).

    Returns:
        (n, d). Where the two are parallel: on the straight line between them.

    Source: White 2016, "Sampling Generative Networks" (arXiv:1609.04468), section 2.1.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> [round(value, 3) for value in slerp(a, b, 0.5)[0].tolist()]
        [0.707, 0.707]
    """
    import torch

    a, b = start.double(), end.double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).unsqueeze(-1)
    angle = cosine.arccos()
    sine = angle.sin()
    flat = sine < 1e-6
    safe = torch.where(flat, torch.ones_like(sine), sine)
    curved = (((1 - fraction) * angle).sin() * a + (fraction * angle).sin() * b) / safe
    return torch.where(flat, (1 - fraction) * a + fraction * b, curved).to(start.dtype)


def walk(points: Tensor, steps: int, *, closed: bool) -> Tensor:
    """Latents on the way from point to point.

    Args:
        points: (points, n, d): n walks side by side.
        steps: from a point to the next.
        closed: from the last point back to the first, which is not repeated; else the last point ends the walk.

    Returns:
        (frames, n, d); frames are `points * steps` of a closed walk, else `(points - 1) * steps + 1`.

    Example:
        >>> import torch
        >>> points = torch.randn(3, 2, 16)
        >>> walk(points, 4, closed=True).shape, walk(points, 4, closed=False).shape
        (torch.Size([12, 2, 16]), torch.Size([9, 2, 16]))
    """
    import torch

    ends = torch.cat([points[1:], points[:1]]) if closed else points[1:]
    pairs = zip(points, ends, strict=False)
    frames = [slerp(start, end, step / steps) for start, end in pairs for step in range(steps)]
    return torch.stack(frames if closed else [*frames, points[-1]])


def _anchors(model: DecentralizedGANModule, walks: int, points: int, seed: int) -> Tensor:
    from lightning_decgan.callbacks.sample_grid import undisturbed

    with undisturbed(model, seed, model.device):
        return model.sample_latent(points * walks).unflatten(0, (points, walks))


def _images(model: DecentralizedGANModule, latents: Tensor, *, ema: bool) -> Tensor:
    """(frames, walks, C, H, W); of a conditional GAN each walk keeps its class."""
    import torch

    return torch.stack([model.render(frame, ema=ema).cpu() for frame in latents])
