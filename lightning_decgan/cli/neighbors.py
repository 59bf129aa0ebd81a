"""A picture of generated images beside the training images nearest to them, and of held-out real images beside theirs.

The samples shown are those nearest to training images: whoever finds no copy among them finds none anywhere. The right
half shows how near real images that were never trained on come, which is what "near" has to be compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lightning_decgan.callbacks.sample_grid import GAP_PIXELS
from lightning_decgan.cli.pictures import INK, MUTED, PAPER, save_figure, show_grid
from lightning_decgan.metrics.memorization import Memorization

_CELL_INCHES = 0.62
_DPI = 120


@dataclass(frozen=True)
class Half:
    """One half of the picture.

    Attributes:
        title: above it.
        images: (rows, 1 + k, C, H, W) in [-1, 1]: an image and its k nearest training images.
        distances: (rows, k).
    """

    title: str
    images: Tensor
    distances: Tensor


def nearest_rows(distances: Tensor, count: int) -> list[int]:
    """The rows with the smallest first distance, nearest first.

    Example:
        >>> nearest_rows(torch.tensor([[3.0], [1.0], [2.0]]), 2)
        [1, 2]
    """
    return [int(row) for row in distances[:, 0].argsort(stable=True)[:count]]


def beside_neighbors(images: Tensor, neighbors: Tensor, training: Any) -> Tensor:
    """Images with their nearest training images behind them.

    Args:
        images: (rows, C, H, W).
        neighbors: (rows, k), indices of training images.
        training: a data set of (image, label).

    Returns:
        (rows, 1 + k, C, H, W).
    """
    found = [torch.stack([training[int(index)][0] for index in row]) for row in neighbors]
    return torch.cat([images[:, None].float().cpu(), torch.stack(found).float()], dim=1)


def draw_neighbors(path: str | Path, left: Half, right: Half, heading: str, footing: str) -> Path:
    """Writes the picture as PNG; the file appears whole or not at all.

    Args:
        path: where to, ending in .png; its folder is made.
        left: the generated images.
        right: the held-out images; as many columns.
        heading: above both halves, in two lines if there is a colon in it.
        footing: below both, and in the file's metadata.

    Returns:
        The path.

    Raises:
        ValueError: if the path ends otherwise.

    Example:
        >>> import tempfile
        >>> half = Half("nothing", torch.zeros(2, 3, 1, 8, 8), torch.zeros(2, 2))
        >>> draw_neighbors(Path(tempfile.mkdtemp()) / "n.png", half, half, "a heading", "a footing").suffix
        '.png'
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"the picture's name must end in .png, found {path}")
    rows, columns = max(len(left.images), len(right.images)), left.images.shape[1]
    width, height = 2 * columns * _CELL_INCHES + 2.4, rows * _CELL_INCHES + 1.9
    figure = Figure(figsize=(width, height), facecolor=PAPER, dpi=_DPI)
    FigureCanvasAgg(figure)
    margins = {"left": 0.8 / width, "right": 1 - 0.15 / width, "bottom": 0.55 / height, "top": 1 - 1.2 / height}
    panels = figure.subplots(1, 2, squeeze=False, gridspec_kw={**margins, "wspace": 1.6 / width})
    for axes, half in zip(panels.flat, (left, right), strict=True):
        _panel(axes, half)
    lines = heading.replace(": ", "\n", 1)
    figure.text(0.5, 1 - 0.38 / height, lines, ha="center", va="center", color=INK, fontsize=11)
    figure.text(0.5, 0.25 / height, footing, ha="center", va="center", color=MUTED, fontsize=8)
    return save_figure(figure, path, Title=heading, Description=footing)


def describe(found: Memorization, features_name: str) -> str:
    """The comparison in one line.

    Example:
        >>> features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        >>> from lightning_decgan.metrics import check_memorization
        >>> describe(check_memorization(features[:10], features[:20], features[20:]), "digits_cnn")
        'features of digits_cnn: 0.00 x as far as held-out images (median), nearer with probability 1.00, z = -4.0'
    """
    numbers = found.numbers
    return (
        f"features of {features_name}: {numbers['ratio']:.2f} x as far as held-out images (median), nearer with "
        f"probability {numbers['nearer']:.2f}, z = {numbers['z']:.1f}"
    )


def _panel(axes: Any, half: Half) -> None:
    columns = half.images.shape[1]
    ordinals = ["nearest", "2nd", "3rd"] + [f"{number}th" for number in range(4, columns)]
    distances = [f"{distance:.3g}" for distance in half.distances[:, 0].tolist()]
    show_grid(axes, half.images, distances, ["image", *ordinals[: columns - 1]])
    # a line between an image and what it is compared with
    left, right = axes.get_xlim()
    first_edge = left + (right - left - GAP_PIXELS) / columns + GAP_PIXELS / 2
    axes.axvline(first_edge, color=INK, linewidth=1.5)
    axes.set_title(half.title, fontsize=9, color=INK)
