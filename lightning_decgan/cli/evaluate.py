"""`decgan evaluate`: how close a checkpoint's samples are to the real images that were held back from training.

By default the scores compare features of a classifier trained on the data's own labels; `--features inception` takes
Inception as torch-fidelity ships it, and only then is a score called FID; `--features MODULE:NAME` one's own. Every
table and file names the network. One process, no workers: with `--per-worker` their weights are taken from the
checkpoint's shards.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_decgan.cli.arguments import check_range, checkpoint_parser, writing
from lightning_decgan.cli.errors import UsageError, one_line
from lightning_decgan.cli.generated import MOST_SAMPLES

if TYPE_CHECKING:
    from lightning_decgan.cli.checkpoint import TrainedModel

BETTER = {
    **dict.fromkeys(("frechet_distance", "kernel_distance", "fid", "kid"), "lower"),
    **dict.fromkeys(("inception_score", "precision", "recall"), "higher"),
}


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan evaluate`."""
    parser = checkpoint_parser(
        "evaluate", "Score a checkpoint's samples against images of its data that were not trained on."
    )
    parser.add_argument("--samples", type=int, default=1024, metavar="N", help="images to generate (default: 1024)")
    parser.add_argument(
        "--part",
        choices=("validation", "test"),
        default="validation",
        help="the real images; test where best.ckpt was chosen by its validation score (default: validation)",
    )
    parser.add_argument("--per-worker", action="store_true", help="score each worker's own generator as well")
    parser.add_argument(
        "--scorer",
        choices=("auto", "torchmetrics", "torch-fidelity"),
        default="auto",
        help="who computes; torch-fidelity adds precision and recall (default: torch-fidelity where it is installed)",
    )
    parser.add_argument(
        "--features",
        default="cnn",
        metavar="cnn|inception|MODULE:NAME",
        help="cnn: a classifier trained on the data's labels (default); inception: the network of the published FID; "
        "MODULE:NAME: one of your own, imported from there",
    )
    parser.add_argument("--weights", type=Path, default=None, metavar="FILE", help="of --features inception")
    parser.add_argument(
        "--kernel-subset-size", type=int, default=None, metavar="N", help="default: 100; for inception 1000"
    )
    parser.add_argument(
        "--memorization", action="store_true", help="compare samples with their nearest training images, and draw them"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=None,
        metavar="OUT.png",
        help="where --memorization draws (default: the run's memorization.png)",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the scores to this file as well")
    parser.add_argument("--data-root", default=None, metavar="DIR", help="where the data is on this machine")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=None,
        help="where trained feature networks and features of real images are kept (default: $DECGAN_CACHE_DIR, else "
        "lightning_decgan/features in the user's cache folder)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
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
    if arguments.kernel_subset_size is not None:
        check_range("kernel-subset-size", arguments.kernel_subset_size, 2, MOST_SAMPLES)
    if arguments.features not in ("cnn", "inception") and ":" not in arguments.features:
        raise UsageError(f"features must be cnn, inception or MODULE:NAME, found {arguments.features!r}")
    if arguments.weights is not None and arguments.features != "inception":
        raise UsageError("weights are those of --features inception: add it, or leave --weights out")
    if arguments.picture is not None and not arguments.memorization:
        raise UsageError("picture is that of --memorization: add it, or leave --picture out")
    from lightning_decgan.cli.checkpoint import load_trained, require_workers
    from lightning_decgan.cli.pictures import check_picture_name
    from lightning_decgan.files import write_json_atomically

    check_picture_name("picture", arguments.picture, (".png",))
    trained = load_trained(arguments.checkpoint, trust_targets=arguments.trust_targets)
    if arguments.per_worker:
        require_workers(trained)
    scorer = choose_scorer(arguments.scorer)
    datamodule, network = _data_and_features(arguments, trained)
    try:
        result = _evaluate(arguments, trained, datamodule, network, scorer)
    except (ValueError, ImportError, FileNotFoundError) as error:  # the last: data whose test part is not here
        raise UsageError(one_line(error)) from error
    if arguments.json is not None:
        with writing("json", arguments.json):
            write_json_atomically(arguments.json, result)
    _print_table(result)
    return 0


def choose_scorer(wanted: str) -> str:
    """The library that makes the scores.

    Args:
        wanted: "auto", or one of `lightning_decgan.metrics.scoring.SCORERS`.

    Returns:
        Its name; for "auto" torch-fidelity where it is installed, else torchmetrics.

    Raises:
        UsageError: if it is not installed or cannot be imported.

    Example:
        >>> choose_scorer("torchmetrics")
        'torchmetrics'
    """
    from lightning_decgan.metrics.extractors import MissingExtraError, require_torch_fidelity, torch_fidelity_version

    if wanted == "auto":
        wanted = "torchmetrics" if torch_fidelity_version() is None else "torch-fidelity"
    if wanted == "torch-fidelity":
        try:
            require_torch_fidelity()
        except MissingExtraError as error:
            raise UsageError(f"scorer torch-fidelity: {one_line(error)}; or use --scorer torchmetrics") from error
    return wanted


def _data_and_features(arguments: argparse.Namespace, trained: TrainedModel) -> tuple[Any, Any]:
    """The DataModule of a checkpoint and the feature network, on the device."""
    import torch
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    from lightning_decgan.data import ImageDataModule
    from lightning_decgan.metrics import import_features, train_classifier_features
    from lightning_decgan.metrics.inception import inception_features

    try:
        device = torch.device(arguments.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(f"device {arguments.device!r} is not to be had here: {one_line(error)}") from error
    data_config = dict(trained.config["data"])
    downloads = bool(data_config.get("download"))
    if downloads:  # training may have fetched the data: here nothing is
        data_config["download"] = False
    if arguments.data_root is not None:
        data_config["root"] = arguments.data_root
    try:
        datamodule = instantiate(data_config, _convert_="all")
        if not isinstance(datamodule, ImageDataModule):
            raise UsageError(f"data must be an ImageDataModule to be scored, found {type(datamodule).__name__}")
        datamodule.setup("fit")
    except HydraException as error:
        raise UsageError(f"data: {one_line(error.__cause__ or error)}") from error
    except (ValueError, OSError) as error:
        hint = "; decgan evaluate itself downloads nothing" if downloads else ""
        raise UsageError(f"data: {one_line(error)}{hint}") from error
    if trained.split not in (None, datamodule.split_digest()) and (
        arguments.part == "validation" or arguments.memorization
    ):
        raise UsageError(
            f"data: the images or their split are not those that {trained.path} was trained on, so images held back"
            " here may have been trained on; give the data of the run (--data-root), or use --part test without"
            " --memorization"
        )
    try:
        if arguments.features == "inception":
            network: Any = inception_features(arguments.weights)
        elif ":" in arguments.features:
            network = import_features(arguments.features)
        else:
            network = train_classifier_features(datamodule, cache_dir=arguments.cache_dir)
    except (ValueError, TypeError, OSError, ImportError) as error:
        hint = "; or add --features inception" if datamodule.num_classes is None and arguments.features == "cnn" else ""
        raise UsageError(f"features: {one_line(error)}{hint}") from error
    trained.model.to(device)
    return datamodule, network.to(device)


def _evaluate(
    arguments: argparse.Namespace, trained: TrainedModel, datamodule: Any, network: Any, scorer: str
) -> dict[str, Any]:
    """Everything that was asked for, as it stands in the JSON."""
    from lightning_decgan.cli.checkpoint import worker_models
    from lightning_decgan.cli.evaluation import class_shares, evaluate, memorization_report
    from lightning_decgan.cli.pictures import run_folder
    from lightning_decgan.metrics import PUBLISHED_INCEPTION, ScoreSettings, real_features
    from lightning_decgan.metrics.extractors import network_digest, torch_fidelity_version
    from lightning_decgan.metrics.real_images import images_of_part

    settings = PUBLISHED_INCEPTION if arguments.features == "inception" else ScoreSettings()
    if arguments.kernel_subset_size is not None:
        settings = replace(settings, kernel_subset_size=arguments.kernel_subset_size)
    settings.check_counts(len(images_of_part(datamodule, arguments.part)), arguments.samples)
    real = real_features(datamodule, network, arguments.part, cache_dir=arguments.cache_dir)
    drawn = {"samples": arguments.samples, "seed": arguments.seed}
    scores, fake = evaluate(trained.model, network, real, scorer=scorer, settings=settings, **drawn)
    result: dict[str, Any] = {
        "checkpoint": str(trained.path),
        "data": datamodule.name,
        "data_sha256": datamodule.fingerprint(),
        "part": arguments.part,
        "real_images": len(real),
        **drawn,
        "features": network.name,
        "features_accuracy": getattr(network, "accuracy", None),
        "features_sha256": network_digest(network),
        "scorer": scorer,
        "scorer_version": torch_fidelity_version() if scorer == "torch-fidelity" else metadata.version("torchmetrics"),
        "settings": asdict(settings),
        "scores": scores,
        "classes": class_shares(fake, network, datamodule.class_names or ()),
    }
    if arguments.memorization:
        picture = arguments.picture or run_folder(trained.path) / "memorization.png"
        with writing("picture", picture):
            result["memorization"] = memorization_report(
                trained.model, datamodule, network, real, fake, picture, part=arguments.part, seed=arguments.seed,
                cache_dir=arguments.cache_dir, source=trained.path.name,
            )  # fmt: skip
    if arguments.per_worker:
        result["workers"] = []
        for worker, model in zip(trained.workers, worker_models(trained), strict=True):
            own, _ = evaluate(model, network, real, scorer=scorer, settings=settings, **drawn)
            result["workers"].append({"worker": worker, "scores": own})
    return result


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    scores, workers = result["scores"], result.get("workers", [])
    table = Table(title=f"{result['samples']} samples of {Path(result['checkpoint']).name}", title_justify="left")
    if workers:
        table.add_column("model")
        for name in scores:
            table.add_column(f"{name}\n{BETTER[name]} is better", justify="right")
        rows = {"consensus": scores} | {f"worker {entry['worker']}": entry["scores"] for entry in workers}
        for model, values in rows.items():
            table.add_row(model, *(f"{values[name]:.5g}" for name in scores))
    else:
        table.add_column("score")
        table.add_column("value", justify="right")
        table.add_column("better is")
        for name, value in scores.items():
            table.add_row(name, f"{value:.5g}", BETTER[name])
    lines = [
        f"features: {result['features']}; against {result['real_images']} {result['part']} images of "
        f"{result['data']}; "
        f"computed by {result['scorer']} {result['scorer_version']}"
    ]
    if result["classes"] is not None:
        lines.append(_classes_line(result["classes"], result["features"]))
    if "memorization" in result:
        lines.append(_memorization_line(result["memorization"]))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200  # of a file or a pipe nobody knows the width, and cut names could not be searched for
    console.print(table)
    for line in lines:
        # below the table and not in it, where a path would be broken to the table's width
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _classes_line(shares: dict[str, float], features: str) -> str:
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return (
        f"classes as {features} sees the samples: from {least}, {100 * shares[least]:.1f} %, to {most}, "
        f"{100 * shares[most]:.1f} %"
    )


def _memorization_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "nearest training images: not compared, the generator has diverged"
    return (
        f"nearest training image: {found['ratio']:.2f} x as far as from held-out images (median), "
        f"z = {found['z']:.1f}; {found['picture']}"
    )
