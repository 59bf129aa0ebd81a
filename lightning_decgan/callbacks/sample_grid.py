"""Pictures of what a generator makes while it trains: a PNG grid in a folder, and the same image in TensorBoard.

Works with any LightningModule that has `sample(n)`, or with a function that draws from it. Only the process of rank 0
draws, and it never calls a collective, so nobody waits for it at a barrier. It never changes the training: random
number generators and the train/eval modes of the module are left as they were.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from lightning_decgan.callbacks.batches import training_batches
from lightning_decgan.checks import check_integer
from lightning_decgan.files import write_bytes_atomically
from lightning_decgan.gan.sampling import Sampling, evaluating, seeded

VISIBLE_SIDE_PIXELS = 48
"""Images smaller than this are enlarged by a whole factor until they are at least this big."""

Sampler: TypeAlias = Callable[[LightningModule, int], Tensor]
"""`sample(pl_module, n) -> (n, C, H, W)` with values in [-1, 1]."""

GAP_PIXELS = 2
GAP_VALUE = 96


def image_grid(images: Tensor, columns: int = 8) -> Tensor:
    """Lays images out in rows, small ones enlarged with nearest neighbours so that their pixels are seen.

    Args:
        images: (n, C, H, W) with values in [-1, 1]; values outside are clamped. C is 1 (grey) or 3 (RGB).
        columns: images in a row; the last row is filled up with background.

    Returns:
        (C, height, width) of dtype uint8 on the CPU.

    Raises:
        TypeError: if `columns` is no integer.
        ValueError: if `images` has another shape or no image, or `columns` is below 1.

    Example:
        >>> image_grid(torch.zeros(6, 1, 8, 8), columns=3).shape  # 8 pixels become 48; gaps of 2
        torch.Size([1, 102, 152])
    """
    columns = check_integer("columns", columns, 1)
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images must have the shape (n, 1 or 3, height, width), found {tuple(images.shape)}")
    count, channels, height, width = images.shape
    factor = math.ceil(VISIBLE_SIDE_PIXELS / max(height, width))
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    height, width = height * factor, width * factor
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    shape = (channels, rows * (height + GAP_PIXELS) + GAP_PIXELS, columns * (width + GAP_PIXELS) + GAP_PIXELS)
    grid = torch.full(shape, GAP_VALUE, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        top = GAP_PIXELS + (index // columns) * (height + GAP_PIXELS)
        left = GAP_PIXELS + (index % columns) * (width + GAP_PIXELS)
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_png(image: Tensor, path: str | Path) -> Path:
    """Writes a (C, H, W) uint8 image as PNG; the file appears whole or not at all.

    Args:
        image: (1 or 3, H, W), uint8.
        path: where to; its folder is made.

    Returns:
        The path written.

    Example:
        >>> import tempfile
        >>> path = save_png(image_grid(torch.zeros(1, 3, 48, 48)), Path(tempfile.mkdtemp()) / "grid.png")
        >>> Image.open(path).size
        (52, 52)
    """
    array = image.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if image.shape[0] == 1 else array).save(buffer, format="PNG")
    return write_bytes_atomically(path, buffer.getvalue())


@contextmanager
def undisturbed(module: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, and random numbers of `seed`; afterwards everything is as it was.

    Args:
        module: the module whose train/eval modes are kept, each submodule's own.
        seed: of the random numbers drawn inside.
        device: on which random numbers are drawn, besides the CPU.

    Example:
        >>> layer = nn.Dropout()
        >>> state = torch.get_rng_state()
        >>> with undisturbed(layer, seed=0, device=torch.device("cpu")):
        ...     assert not layer.training
        ...     _ = torch.randn(3)
        >>> layer.training, bool((torch.get_rng_state() == state).all())
        (True, True)
    """
    with torch.no_grad(), seeded(seed, device), evaluating(module):
        yield


def check_sampler(caller: str, pl_module: LightningModule, sample: Sampler | None) -> None:
    """Raises unless there is something to draw images from.

    Args:
        caller: the callback that is going to draw, for the error.
        pl_module: the module in training.
        sample: the function given by the user, if one was.

    Raises:
        TypeError: naming the callback, and what would be valid.

    Example:
        >>> check_sampler("SampleGrid", LightningModule(), None)
        Traceback (most recent call last):
        TypeError: SampleGrid needs a module with a method sample(n), found LightningModule without one; give \
SampleGrid(sample=...) a function sample(pl_module, n) -> images in [-1, 1]
    """
    if sample is None and not callable(getattr(pl_module, "sample", None)):
        raise TypeError(
            f"{caller} needs a module with a method sample(n), found {type(pl_module).__name__} without one; "
            f"give {caller}(sample=...) a function sample(pl_module, n) -> images in [-1, 1]"
        )


def draw(pl_module: LightningModule, n: int, sample: Sampler | None, first: int = 0) -> Tensor:
    """Images of a module, from number `first` on: from the function given, otherwise from its own method `sample`.

    The number matters to a conditional `DecentralizedGANModule` only, whose images take the classes in turn.
    """
    if sample is not None:
        return sample(pl_module, n)
    own: Any = pl_module.sample
    labels = pl_module.classes_in_turn(n, first) if isinstance(pl_module, Sampling) else None
    return own(n) if labels is None else own(n, labels=labels)


class SampleGrid(Callback):
    """Draws a grid of generated images at every validation and, if wished, each n batches of training.

    The same `seed` is used for every grid, so that the same latent points are seen getting better. Under a
    decentralized strategy the validation's grids show the consensus and the training's grids worker 0's own model; the
    file names say which: `step-000400-consensus.png`, `step-000400-worker-0.png` (any other strategy: `-model.png`).
    Steps are training batches. In TensorBoard the images stand under `samples/consensus` and so on.

    Drawing between batches makes rank 0 late for its neighbours, so `every_n_steps` is 0, never, by default.
    Models whose parameters are spread over processes (FSDP) cannot be sampled by one process alone; leave them out.

    Args:
        every_n_steps: training batches between two grids; 0: only at validation (and before training, when Lightning's
            sanity check runs).
        samples: images in a grid.
        columns: images in a row.
        seed: of the latent points.
        sample: `sample(pl_module, n) -> (n, C, H, W)` with values in [-1, 1]; default: `pl_module.sample(n)`.
        dirpath: folder of the pictures; default: `samples` in the logger's folder or the Trainer's default_root_dir.

    Raises:
        ValueError: on a number out of its range.
        TypeError: on a number that is no integer, or when training starts with a module that has no method
            `sample`, and no `sample` was given.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SampleGrid(samples=16, columns=4)], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        samples: int = 64,
        columns: int = 8,
        seed: int = 0,
        sample: Sampler | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.every_n_steps = check_integer("every_n_steps", every_n_steps, 0)
        self.samples = check_integer("samples", samples, 1)
        self.columns = check_integer("columns", columns, 1)
        self.seed = check_integer("seed", seed, 0)
        if sample is not None and not callable(sample):
            raise TypeError(f"sample must be callable as sample(pl_module, n), found {sample!r}")
        self.sample = sample
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.last_path: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is something to draw from, and settles the folder (rank 0 tells it to everybody)."""
        check_sampler("SampleGrid", pl_module, self.sample)
        if self.dirpath is None:
            # trainer.log_dir is a broadcast: all ranks must come by here, so it cannot wait for the first grid
            self.dirpath = Path(trainer.log_dir or trainer.default_root_dir) / "samples"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Draws the worker's own model each `every_n_steps` batches."""
        if self.every_n_steps and training_batches(trainer) % self.every_n_steps == 0:
            self._draw(trainer, pl_module, training=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the model that was validated; in Lightning's sanity check: the model before training."""
        self._draw(trainer, pl_module, training=False)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, *, training: bool) -> None:
        if not trainer.is_global_zero:
            return
        with undisturbed(pl_module, self.seed, pl_module.device):
            images = draw(pl_module, self.samples, self.sample)
        grid = image_grid(images, self.columns)
        step = training_batches(trainer)
        shown = _shown_model(trainer, training=training)
        assert self.dirpath is not None
        self.last_path = save_png(grid, self.dirpath / f"step-{step:06d}-{shown}.png")
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if callable(add_image):
                add_image(f"samples/{shown}", grid, step)


def _shown_model(trainer: Trainer, *, training: bool) -> str:
    evaluates = getattr(trainer.strategy, "evaluate", None)
    if evaluates is None:
        return "model"
    return "consensus" if evaluates == "consensus" and not training else "worker-0"
