"""What the commands that draw have in common: labelled rows of images, animations, and where a picture goes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_decgan.cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

INK, PAPER, MUTED = "#16324f", "#ffffff", "#5f7388"
ANIMATIONS = (".gif", ".webp")
_DPI = 120
_ROW_INCHES = 0.62


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that saved a checkpoint; of one that was moved, the folder that it is in.

    Example:
        >>> run_folder(Path("runs/a/checkpoints/last.ckpt")).name, run_folder(Path("runs/a/moved.ckpt")).name
        ('a', 'a')
    """
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def check_picture_name(name: str, path: Path | None, endings: Sequence[str]) -> None:
    """Raises a usage error unless a picture's name has one of the endings that can be written; None passes.

    Example:
        >>> check_picture_name("output", Path("a.jpg"), [".png", ".gif"])
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: output must end in .png or .gif, found a.jpg
    """
    if path is not None and path.suffix.lower() not in endings:
        raise UsageError(f"{name} must end in {' or '.join(endings)}, found {path}")


def show_grid(axes: Any, images: Tensor, row_labels: Sequence[str], column_labels: Sequence[str] = ()) -> None:
    """Shows rows of images in matplotlib's axes, with a label at each row and above each column.

    Args:
        axes: of matplotlib.
        images: (rows, columns, C, H, W) with values in [-1, 1].
        row_labels: one a row.
        column_labels: one a column, or none.
    """
    from lightning_decgan.callbacks.sample_grid import GAP_PIXELS, image_grid

    rows, columns = images.shape[:2]
    grid = image_grid(images.flatten(0, 1), columns).numpy()
    if grid.shape[0] == 1:
        axes.imshow(grid[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        axes.imshow(grid.transpose(1, 2, 0), interpolation="nearest")
    width, height = (grid.shape[2] - GAP_PIXELS) / columns, (grid.shape[1] - GAP_PIXELS) / rows
    places = [GAP_PIXELS / 2 + (column + 0.5) * width for column in range(len(column_labels))]
    axes.set_xticks(places, column_labels, fontsize=8, color=MUTED)
    axes.set_yticks([GAP_PIXELS / 2 + (row + 0.5) * height for row in range(rows)], row_labels, fontsize=8, color=MUTED)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_rows(path: Path, images: Tensor, row_labels: Sequence[str], title: str) -> Path:
    """Writes labelled rows of images as PNG; the file appears whole or not at all.

    Args:
        path: where to; its folder is made.
        images: (rows, columns, C, H, W) with values in [-1, 1].
        row_labels: one a row.
        title: above them.

    Returns:
        The path.

    Example:
        >>> import tempfile, torch
        >>> images = torch.zeros(2, 5, 1, 8, 8)
        >>> draw_rows(Path(tempfile.mkdtemp()) / "rows.png", images, ["worker 0", "worker 1"], "workers").name
        'rows.png'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = images.shape[:2]
    labels_inches = 0.35 + 0.08 * max(map(len, row_labels))
    width, height = max(columns * _ROW_INCHES + labels_inches, 4.0), rows * _ROW_INCHES + 0.6
    figure = Figure(figsize=(width, height), facecolor=PAPER, dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((labels_inches / width, 0.1 / height, 1 - (labels_inches + 0.1) / width, 1 - 0.6 / height))
    show_grid(axes, images, row_labels)
    figure.text(0.5, 1 - 0.25 / height, title, ha="center", va="center", color=INK, fontsize=11)
    return save_figure(figure, path, Title=title)


def save_figure(figure: Figure, path: str | Path, **metadata: str) -> Path:
    """Writes a figure of matplotlib as PNG; the file appears whole or not at all.

    Args:
        figure: with a canvas.
        path: where to; its folder is made.
        **metadata: what the file says about itself: `Title`, `Description`.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> save_figure(Figure(), Path(tempfile.mkdtemp()) / "empty.png", Title="nothing").name
        'empty.png'
    """
    from lightning_decgan.files import write_bytes_atomically

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=PAPER, metadata=metadata)
    return write_bytes_atomically(path, buffer.getvalue())


def save_animation(frames: Sequence[Tensor], path: Path, milliseconds: int) -> Path:
    """Writes frames as an animation that begins again at its end; the file appears whole or not at all.

    Args:
        frames: (C, H, W) each, uint8, all of one size; C is 1 or 3.
        path: ends in .gif or .webp; its folder is made.
        milliseconds: that each frame is shown.

    Returns:
        The path.

    Example:
        >>> import tempfile, torch
        >>> frames = [torch.full((1, 16, 16), value, dtype=torch.uint8) for value in (0, 255)]
        >>> path = save_animation(frames, Path(tempfile.mkdtemp()) / "blink.gif", milliseconds=200)
        >>> from PIL import Image
        >>> Image.open(path).n_frames
        2
    """
    from PIL import Image

    from lightning_decgan.files import write_bytes_atomically

    arrays = [frame.permute(1, 2, 0).contiguous().numpy() for frame in frames]
    images = [Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array) for array in arrays]
    how: dict[str, Any] = {"quality": 90} if path.suffix.lower() == ".webp" else {}
    if path.suffix.lower() == ".webp":
        images = [image.convert("RGB") for image in images]  # the encoder's only mode without transparency
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format=path.suffix[1:].upper(),
        save_all=True,
        append_images=images[1:],
        duration=milliseconds,
        loop=0,
        **how,
    )
    return write_bytes_atomically(path, buffer.getvalue())
