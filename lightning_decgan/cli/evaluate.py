"""`decgan evaluate`: how close a checkpoint's samples are to the real images that were held back from training.

The scores compare features of a classifier trained on the data's own labels, and every table names that network: these
are not FID values of Inception and do not compare with any. One process, no workers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_decgan.cli.errors import UsageError, one_line
from lightning_decgan.cli.sample import check_range, draw

if TYPE_CHECKING:
    from torch import nn

    from lightning_decgan.gan import DecentralizedGANModule

MOST_SAMPLES = 1_000_000
BATCH_SIZE = 256
BETTER = {"frechet_distance": "lower", "kernel_distance": "lower", "inception_score": "higher"}


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan evaluate`."""
    parser = argparse.ArgumentParser(
        prog="decgan evaluate", description="Score a checkpoint's samples against the validation images of its data."
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="a .ckpt file of decgan train")
    parser.add_argument("--samples", type=int, default=1024, metavar="N", help="images to generate (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the latent points (default: 0)")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the scores to this file as well")
    parser.add_argument("--data-root", default=None, metavar="DIR", help="where the data is on this machine")
    parser.add_argument("--cache-dir", type=Path, default=None, help="where trained feature networks are kept")
    parser.add_argument(
        "--trust-targets", action="store_true", help="make any class that the checkpoint names: runs its code"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `decgan evaluate`.

    Args:
        argv: the words after `decgan evaluate`.

    Returns:
        The exit code.

    Raises:
        UsageError: on bad input.
    """
    arguments = parser().parse_args(argv)
    check_range("samples", arguments.samples, 2, MOST_SAMPLES)
    check_range("seed", arguments.seed, 0, 2**31)
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    from lightning_decgan.callbacks.files import write_json_atomically
    from lightning_decgan.cli.checkpoint import load_trained
    from lightning_decgan.metrics import train_classifier_features

    trained = load_trained(arguments.checkpoint, trust_targets=arguments.trust_targets)
    data_config = dict(trained.config["data"])
    if arguments.data_root is not None:
        data_config["root"] = arguments.data_root
    try:
        datamodule = instantiate(data_config, _convert_="all")
        features = train_classifier_features(datamodule, cache_dir=arguments.cache_dir)
    except HydraException as error:
        raise UsageError(f"data: {one_line(error.__cause__ or error)}") from error
    except (ValueError, OSError) as error:
        raise UsageError(f"data: {one_line(error)}") from error
    try:
        scores = evaluate(trained.model, datamodule, features, samples=arguments.samples, seed=arguments.seed)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    result = {
        "checkpoint": str(trained.path),
        "data": datamodule.name,
        "real_images": len(datamodule.val_dataset),
        "samples": arguments.samples,
        "seed": arguments.seed,
        "features": features.name,
        "scores": scores,
    }
    if arguments.json is not None:
        try:
            write_json_atomically(arguments.json, result)
        except OSError as error:
            raise UsageError(f"json {arguments.json} cannot be written: {error.strerror or error}") from error
    _print_table(result)
    return 0


def evaluate(
    model: DecentralizedGANModule, datamodule: Any, features: nn.Module, *, samples: int = 1024, seed: int = 0
) -> dict[str, float]:
    """Scores a model's samples against a DataModule's validation images.

    Args:
        model: a GAN whose `sample(n)` gives images in [-1, 1].
        datamodule: set up, with a `val_dataloader` of batches (images, labels).
        features: a network `images -> (n, num_features)`.
        samples: images to generate.
        seed: of the latent points.

    Returns:
        `frechet_distance`, `kernel_distance`, `inception_score`.

    Raises:
        ValueError: if there are too few images for a score.
    """
    from lightning_decgan.callbacks.fidelity import images_of
    from lightning_decgan.metrics import Fidelity

    fidelity = Fidelity(features)
    for batch in datamodule.val_dataloader():
        fidelity.update(images_of(batch), real=True)
    # a batch at a time, with a seed of its own each, so that the images are never all in memory
    for index, first in enumerate(range(0, samples, BATCH_SIZE)):
        count = min(BATCH_SIZE, samples - first)
        fidelity.update(draw(model, count, seed=seed * MOST_SAMPLES + index), real=False)
    return {name: float(value) for name, value in fidelity.compute().items()}


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['samples']} samples of {Path(result['checkpoint']).name}", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("better is")
    for name, value in result["scores"].items():
        table.add_row(name, f"{value:.5g}", BETTER.get(name, ""))
    table.caption = f"features: {result['features']}; against {result['real_images']} images of {result['data']}"
    table.caption_justify = "left"
    Console().print(table)
