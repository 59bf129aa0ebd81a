"""`decgan sample`: images from a checkpoint of `decgan train`, as a grid, class by class, or worker by worker.

It needs the file alone (for `--per-worker` also the shards beside it): no data, no workers, no strategy. The images
come from the averaged generator of the consensus.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_decgan.cli.arguments import check_range, checkpoint_parser, writing
from lightning_decgan.cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_decgan.cli.checkpoint import TrainedModel
    from lightning_decgan.gan import DecentralizedGANModule

MOST_IMAGES = 10_000
_SAMPLES = 64


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan sample`."""
    parser = checkpoint_parser("sample", "Draw images from a checkpoint of decgan train, into the run's folder.")
    parser.add_argument("-n", "--samples", type=int, default=None, metavar="N", help=f"images (default: {_SAMPLES})")
    parser.add_argument(
        "-o", "--output", type=Path, default=None, help="a .png (default: samples.png, classes.png or workers.png)"
    )
    parser.add_argument("--columns", type=int, default=8, help="images in a row (default: 8)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--by-class", action="store_true", help="a row for each class of a conditional GAN")
    what.add_argument(
        "--per-worker", action="store_true", help="a row for each worker's own generator, below the consensus"
    )
    parser.add_argument("--no-ema", action="store_true", help="draw from the generator itself, not from its average")
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
    if arguments.samples is not None:
        check_range("samples", arguments.samples, 1, MOST_IMAGES)
        if arguments.by_class or arguments.per_worker:
            raise UsageError("samples belong to a plain grid: rows of classes or workers are as long as --columns says")
    check_range("columns", arguments.columns, 1, MOST_IMAGES)
    check_range("seed", arguments.seed, 0, 2**63 - 1)
    # argparse answers --help without it: torch takes seconds to import
    from lightning_decgan.cli.checkpoint import load_trained
    from lightning_decgan.cli.pictures import check_picture_name, run_folder

    check_picture_name("output", arguments.output, (".png",))
    trained = load_trained(arguments.checkpoint, trust_targets=arguments.trust_targets)
    name = "classes.png" if arguments.by_class else "workers.png" if arguments.per_worker else "samples.png"
    path = arguments.output or run_folder(trained.path) / name
    draw_picture = _classes if arguments.by_class else _workers if arguments.per_worker else _grid
    with writing("output", path):
        draw_picture(trained, arguments, path)
    print(path)
    return 0


def draw(
    model: DecentralizedGANModule,
    n: int,
    *,
    seed: int = 0,
    ema: bool = True,
    labels: int | None = None,
    first: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Draws images a batch at a time.

    Args:
        model: a GAN.
        n: images.
        seed: of the latent points; the same images for every batch size up to rounding is not promised.
        ema: draw from the averaged generator.
        labels: the class of all images, of a conditional GAN; None: all classes in turn.
        first: number of the first image, from which the classes' turn follows.
        batch_size: images at a time.

    Returns:
        (n, C, H, W) with values in [-1, 1].
    """
    import torch

    from lightning_decgan.callbacks.sample_grid import undisturbed

    images = []
    with undisturbed(model, seed, model.device):
        for done in range(0, n, batch_size):
            size = min(batch_size, n - done)
            wanted = model.classes_in_turn(size, first + done) if labels is None else labels
            images.append(model.sample(size, ema=ema, labels=wanted))
    return torch.cat(images)


def distance_from(consensus: Tensor, own: Tensor) -> float:
    """How far a worker's images are from the consensus's of the same latents: 0 the same, 1 as far as other samples.

    The root mean square of pixel differences, divided by that between the consensus's images of different latents.

    Args:
        consensus: (n, C, H, W).
        own: (n, C, H, W), of the same latents.

    Returns:
        The ratio; NaN if the consensus draws one image only.

    Example:
        >>> import torch
        >>> images = torch.randn(8, 1, 4, 4)
        >>> distance_from(images, images), round(distance_from(images, images.roll(1, 0)), 6)
        (0.0, 1.0)
    """
    between = (consensus - consensus.roll(1, 0)).double().square().mean().sqrt()
    return float((consensus - own).double().square().mean().sqrt() / between) if between > 0 else float("nan")


def class_names(trained: TrainedModel, classes: int) -> list[str]:
    """What the data of a checkpoint calls its classes, where a DataModule of this package says so without its files."""
    from hydra.utils import get_class

    target = str(trained.config["data"]["_target_"])
    names = getattr(get_class(target), "class_names", None) if target.startswith("lightning_decgan.") else None
    if isinstance(names, tuple) and len(names) == classes:
        return [str(name) for name in names]
    return [f"class {label}" for label in range(classes)]


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"seed": arguments.seed, "ema": not arguments.no_ema}


def _grid(trained: TrainedModel, arguments: argparse.Namespace, path: Path) -> None:
    from lightning_decgan.callbacks.sample_grid import image_grid, save_png

    images = draw(trained.model, arguments.samples or _SAMPLES, **_how(arguments))
    save_png(image_grid(images, arguments.columns), path)


def _classes(trained: TrainedModel, arguments: argparse.Namespace, path: Path) -> None:
    import torch

    from lightning_decgan.cli.pictures import draw_rows

    classes = trained.model.num_classes
    if classes is None:
        raise UsageError(f"by-class needs a conditional GAN, found one without classes in {trained.path}")
    how = _how(arguments)
    # the same latents in every row: what changes down a column is the class alone
    rows = [draw(trained.model, arguments.columns, labels=label, **how) for label in range(classes)]
    draw_rows(path, torch.stack(rows), class_names(trained, classes), "class by class")


def _workers(trained: TrainedModel, arguments: argparse.Namespace, path: Path) -> None:
    import torch

    from lightning_decgan.cli.checkpoint import worker_models
    from lightning_decgan.cli.pictures import draw_rows

    how = _how(arguments)
    consensus = draw(trained.model, arguments.columns, **how)
    rows = [consensus, *(draw(model, arguments.columns, **how) for model in worker_models(trained))]
    distances = [distance_from(consensus, own) for own in rows[1:]]
    labels = ["consensus", *(f"worker {number}" for number in trained.workers)]
    draw_rows(path, torch.stack(rows), labels, "the same latents, worker by worker")
    for number, distance in zip(trained.workers, distances, strict=True):
        print(f"worker {number}: {distance:.3f} x as far from the consensus as two of its samples are from each other")
