"""Is a GAN that was trained decentralized as good as one trained centralized? Fashion-MNIST, the same images seen.

    python benchmarks/gan_quality.py                              eleven forms, three seeds
    python benchmarks/gan_quality.py --resume                     what is missing of the same: runs are kept as they end
    python benchmarks/gan_quality.py --forms "ring" --seeds 1 --steps 600
    python benchmarks/gan_quality.py --lr 5e-4 1e-3 2e-3          each form at the rate that suits it
    python benchmarks/gan_quality.py --device cuda:0 --width 64 --batch 64 --name gan_quality_gpu
    sudo .venv/bin/python benchmarks/gan_quality.py --delay-ms 50 --forms "one-peer exponential, late" --seeds 1

Every run is a `Trainer.fit` as users call it, of the same networks from the same weights on the same number of images.
The score is the Frechet distance on the features of a classifier of Fashion-MNIST (not FID: that is on Inception's), of
the averaged generator. While training the consensus of all workers is scored against validation images, which draws the
curves; at the end the consensus, and each worker's own, against the 10,000 test images with as many samples, of latents
that are the same for all. What the tables compare is that last score.

DDP stands for centralized training: the gradients of both players are averaged over all workers before either steps,
which with optimistic Adam is CP-OAdam. "alternating Adam, DDP" is what most people do today.

Where several learning rates are given (`--lr`), each form, DDP too, is first run at all of them on seeds of their own
(`--choosing-seeds`). The rate that ends best on validation images is the form's; what is reported are other seeds, at
that rate alone, on test images: no rate is chosen by a score that stands in the table. Forms may want different rates:
the Adam of a worker divides by the size of its own gradients, whose noise is up to sqrt(N) times that of an average of
N, so the same rate may make smaller steps. The rates fall linearly to zero, as published recipes have them
(`--constant-lr`: they do not).

With `--delay-ms` or `--mbit` the workers sit on an emulated network, and the score is drawn against the seconds that
training took there; with `--device cuda:0` they share one GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from crew import go_through
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from recording import RESULTS, machine_line, markdown_table, save_results
from shaped_network import ShapedNetwork
from torch.optim.lr_scheduler import LinearLR

from lightning_decgan import DecentralizedGossipStrategy, PowerGossip
from lightning_decgan.callbacks import FidelityCallback
from lightning_decgan.data import FashionMNISTDataModule
from lightning_decgan.gan import DCGANDiscriminator, DCGANGenerator, DecentralizedGANModule
from lightning_decgan.metrics import Fidelity, train_classifier_features
from lightning_decgan.metrics.extractors import network_digest
from lightning_decgan.optim import OptimisticAdam

REFERENCE = "DDP, optimistic Adam"
EVALUATIONS = 5
REAL_IMAGES = 5000
"""Of the validation part; scored are as many of them as the workers' batches make up evenly."""
TEST_IMAGES = 10_000
"""Fashion-MNIST's; as many samples of the consensus are scored against them, and sorted into classes."""
_AT_A_TIME = 250
"""It divides TEST_IMAGES."""
_TIMEOUT = timedelta(seconds=120)


_OPTIMISTIC_ADAM = functools.partial(OptimisticAdam, betas=(0.5, 0.9))
_ADAM = functools.partial(torch.optim.Adam, betas=(0.5, 0.9))


@dataclass(frozen=True)
class Form:
    """How workers are kept together, what steps, and who sees what.

    Attributes:
        settings: of the strategy; `None` for DDP.
        optimizer: makes each player's optimizer.
        schedule: the order of play.
        partition: how the data is dealt out to workers.
        classes: whether both networks are told classes; fakes are then asked for in those of the real images.
    """

    settings: dict[str, Any] | None = field(default_factory=dict)
    optimizer: Callable[..., torch.optim.Optimizer] = _OPTIMISTIC_ADAM
    schedule: str = "simultaneous"
    partition: str = "iid"
    classes: bool = False


FORMS: dict[str, Form] = {
    REFERENCE: Form(None),
    "ring": Form({"topology": "ring"}),
    "ring, 3 rounds": Form({"topology": "ring", "rounds": 3}),
    "ring, exact order": Form({"topology": "ring", "overlap": False}),
    "random neighbours": Form({"topology": "random_matching"}),
    "one-peer exponential": Form({"topology": "one_peer_exponential"}),
    "ring, plain Adam": Form({"topology": "ring"}, _ADAM),
    "alternating Adam, DDP": Form(None, _ADAM, "alternating"),
    "ring, by label": Form({"topology": "ring"}, partition="by_label"),
    "complete, by label": Form({"topology": "complete"}, partition="by_label"),
    "ring, by label, told": Form({"topology": "ring"}, partition="by_label", classes=True),
    "DDP, told": Form(None, classes=True),
    "one-peer exponential, late": Form({"topology": "one_peer_exponential", "max_delay": None}),
    "one-peer exponential, PowerGossip": Form({"topology": "one_peer_exponential", "compression": PowerGossip(1)}),
}
WHEN_ASKED = ("DDP, told", "one-peer exponential, late", "one-peer exponential, PowerGossip")
"""Forms that are run only when they are named: a reference for conditional forms, and what slow networks need."""


@dataclass(frozen=True)
class Plan:
    """What every worker goes through, in order."""

    forms: tuple[str, ...]
    choosing: range
    reported: range
    workers: int
    steps: int
    batch: int
    width: int
    lrs: tuple[float, ...]
    constant_lr: bool
    device: str
    features: torch.nn.Module
    samples: int

    def choosing_runs(self) -> list[tuple[int, str]]:
        """(seed, form at a rate): seeds outermost, so that whatever else the machine does falls on all alike."""
        return [(seed, at(form, lr)) for seed in self.choosing for form in self.forms for lr in self.lrs]

    def reported_runs(self, rates: Mapping[str, float]) -> list[tuple[int, str]]:
        """The same, of the seeds that are reported, each form at its own rate."""
        return [(seed, at(form, rates[form])) for seed in self.reported for form in self.forms]

    @property
    def validation_batches(self) -> int:
        """Of each worker."""
        return REAL_IMAGES // (self.batch * self.workers)


def at(form: str, lr: float) -> str:
    """The name of a form at a learning rate."""
    return f"{form} @ {lr:g}"


def make_module(plan: Plan, form: Form, lr: float) -> DecentralizedGANModule:
    """The GAN of the benchmark: a DCGAN with a spectrally normalized discriminator and the hinge loss."""
    classes = 10 if form.classes else None
    falling = functools.partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=plan.steps)
    return DecentralizedGANModule(
        DCGANGenerator(image_size=28, width=plan.width, num_classes=classes),
        DCGANDiscriminator(image_size=28, width=plan.width, spectral_norm=True, num_classes=classes),
        loss="hinge",
        optimizer=form.optimizer,
        generator_lr=lr,
        discriminator_lr=lr,
        lr_scheduler=None if plan.constant_lr else falling,
        generated_labels="batch",
        schedule=form.schedule,
        ema_decay=0.995,
        terminate_on_nan=False,  # a form that diverges is a result
    )


@functools.cache
def scores_on_test_images(features: torch.nn.Module, device: torch.device) -> Fidelity:
    """The scores of a worker by itself; it keeps what it knows of the test images from run to run."""
    fidelity = Fidelity(
        features, kernel_subsets=1, kernel_subset_size=16, reset_real_features=False, sync_on_compute=False
    ).to(device)
    data = FashionMNISTDataModule(batch_size=_AT_A_TIME)
    data.setup("test")
    for batch in data.test_dataloader():
        fidelity.update(batch[0].to(device), real=True)
    return fidelity


@torch.no_grad()
def score_on_test_images(features: torch.nn.Module, module: DecentralizedGANModule) -> float:
    """Of the averaged generator that this worker has; the latents are the same for whoever asks."""
    fidelity = scores_on_test_images(features, module.device)
    for first in range(0, TEST_IMAGES, _AT_A_TIME):
        fidelity.update(module.sample(_AT_A_TIME, seed=10_000 + first), real=False)
    score = float(fidelity.compute()["frechet_distance"])
    fidelity.reset()
    return score


class Recorder(Callback):
    """Notes scores by step and by second, each worker's own score at the end, and a grid of its samples.

    Attributes:
        history: at every evaluation `{"step", "seconds", "score", "distance"}`, of the consensus.
        own_score: of this worker's own averaged generator when training had ended, on test images.
        grid: samples of this worker's own averaged generator, of latents that are the same for all.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.history: list[dict[str, float]] = []
        self.own_score = float("nan")
        self.grid: list[Any] = []
        self._trained_seconds, self._started = 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        # DDP by itself would draw the same latents on every worker.
        step = module.batches_seen
        torch.manual_seed((self.seed * trainer.world_size + trainer.global_rank) * 1_000_000 + step)
        self._started = _now(module.device)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._trained_seconds += _now(module.device) - self._started

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        score = trainer.callback_metrics[f"fidelity/{self.plan.features.name}/frechet_distance"]
        distance = getattr(trainer.strategy, "relative_consensus_distance", None)
        self.history.append(
            {
                "step": module.batches_seen,
                "seconds": self._trained_seconds,
                "score": float(score),
                "distance": distance or 0.0,
            }
        )

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Before the strategy puts the consensus on: this worker's own generator.
        self.own_score = score_on_test_images(self.plan.features, module)
        self.grid = module.sample(40, seed=1).clamp(-1, 1).mul(127.5).add(127.5).byte().tolist()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(plan: Plan, form: Form, lr: float, seed: int) -> dict[str, Any]:
    """One run of one form, on this worker."""
    os.environ["PL_GLOBAL_SEED"] = str(seed)  # Lightning's sampler takes the order of the data from it
    torch.manual_seed(seed)
    place: dict[str, Any] = {
        "parallel_devices": [torch.device(plan.device)] * plan.workers,
        "process_group_backend": "gloo",
    }
    strategy: DDPStrategy = (
        # Alternating steps leave one player without a gradient in each of their backwards.
        DDPStrategy(find_unused_parameters=form.schedule == "alternating", **place)
        if form.settings is None
        else DecentralizedGossipStrategy(**form.settings, seed=seed, timeout=_TIMEOUT, **place)
    )
    recorder = Recorder(plan, seed)
    fidelity = FidelityCallback(
        plan.features, samples=plan.samples, kernel_subsets=1, kernel_subset_size=16, reset_real_features=False
    )
    trainer = Trainer(
        strategy=strategy,
        max_steps=2 * plan.steps,  # Lightning counts optimizer steps
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=plan.steps // EVALUATIONS,
        num_sanity_val_steps=0,
        limit_val_batches=plan.validation_batches,
        callbacks=[fidelity, recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = make_module(plan, form, lr)
    data = FashionMNISTDataModule(batch_size=plan.batch, partition=form.partition)
    trainer.fit(module, datamodule=data)
    module.to(plan.device)  # from here on every worker has the consensus
    return {
        "history": recorder.history,
        "own_score": recorder.own_score,
        "score": score_on_test_images(plan.features, module) if trainer.global_rank == 0 else None,
        "classes": classes_drawn(plan, module, trainer.global_rank).tolist(),
        "grid": recorder.grid,
    }


@torch.no_grad()
def classes_drawn(plan: Plan, module: DecentralizedGANModule, worker: int) -> torch.Tensor:
    """How many samples of each class, as the feature network sees them: a worker's share of all samples."""
    counts = torch.zeros(10, dtype=torch.int64)
    for first in range(worker * _AT_A_TIME, TEST_IMAGES, plan.workers * _AT_A_TIME):
        images = module.sample(_AT_A_TIME, seed=20_000 + first)
        counts += torch.bincount(plan.features.head(plan.features(images)).argmax(1), minlength=10).cpu()
    return counts


def answer(plan: Plan, run: str, seed: int) -> dict[str, Any]:
    """What a worker says of its part of a run."""
    form, lr = run.split(" @ ")
    return {**train(plan, FORMS[form], float(lr), seed), "form": form, "lr": float(lr)}


def measure(
    plan: Plan, runs: Sequence[tuple[int, str]], network: ShapedNetwork | None = None
) -> Iterator[dict[str, Any]]:
    """All runs in order, each when it has ended; raises what a worker raised."""
    for number, (answers, minutes_left) in enumerate(
        go_through(runs, functools.partial(answer, plan), plan.workers, network), start=1
    ):
        run = {
            **{key: value for key, value in answers[0].items() if key not in ("rank", "grid")},
            "own_scores": [one["own_score"] for one in answers],
            "classes": [sum(counts) / TEST_IMAGES for counts in zip(*(one["classes"] for one in answers), strict=True)],
            "grids": [one["grid"] for one in answers],
        }
        own, name = run["own_scores"], at(run["form"], run["lr"])
        print(
            f"{number}/{len(runs)} seed {run['seed']}, {name}: validation {validation_score(run):.2f}, test"
            f" {run['score']:.2f}, workers {min(own):.2f} to {max(own):.2f}"
            f" ({run['seconds']:.0f} s; about {minutes_left:.0f} min left)",
            file=sys.stderr,
            flush=True,
        )
        yield run


def kept_runs(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a file of results; none where there is no file.

    Raises:
        ValueError: they are of other settings, so that the two cannot stand in one table.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    found = content["settings"]
    other = [name for name, value in settings.items() if found.get(name) != value]
    if other:
        found = ", ".join(f"{name} {found.get(name)}" for name in other)
        raise ValueError(f"--resume: {path} holds runs with {found}; use the same settings, or another --name")
    return list(content["results"])


def validation_score(run: Mapping[str, Any]) -> float:
    """Of the consensus at the end, on validation images."""
    return float(run["history"][-1]["score"])


def best_rate(runs: Sequence[dict[str, Any]]) -> float:
    """The rate at which runs of one form end best, on average, on validation images; diverged ones come last."""
    rates = list(dict.fromkeys(run["lr"] for run in runs))
    scores = {lr: statistics.mean(validation_score(run) for run in runs if run["lr"] == lr) for lr in rates}
    return min(rates, key=lambda lr: (math.isnan(scores[lr]), scores[lr]))


def table_of_rates(runs: Sequence[dict[str, Any]], rates: Mapping[str, float]) -> str:
    """How each form ended on validation images at every rate; the one it is reported at is bold."""
    lrs = list(dict.fromkeys(run["lr"] for run in runs))
    rows = []
    for form in dict.fromkeys(run["form"] for run in runs):
        cells = {
            lr: _spread([validation_score(run) for run in runs if (run["form"], run["lr"]) == (form, lr)]) for lr in lrs
        }
        cells[rates[form]] = f"**{cells[rates[form]]}**"
        rows.append([form, *cells.values()])
    return markdown_table(["validation", *(f"{lr:g}" for lr in lrs)], rows)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One line a form: means and spreads over seeds on test images, and how far the means are from DDP's."""
    reference = [run["score"] for run in runs if run["form"] == REFERENCE]
    rows = []
    for form in dict.fromkeys(run["form"] for run in runs):
        mine = [run for run in runs if run["form"] == form]
        scores = [run["score"] for run in mine]
        worst = [max(run["own_scores"]) for run in mine]
        rows.append(
            [
                form,
                ", ".join(f"{lr:g}" for lr in dict.fromkeys(run["lr"] for run in mine)),
                str(len(mine)),
                _spread(scores),
                _against(reference, scores) if form != REFERENCE else "",
                _spread(worst),
                _against(reference, worst),
                f"{statistics.mean(run['history'][-1]['distance'] for run in mine):.2%}",
                f"{min(min(run['classes']) for run in mine):.1%}",
                f"{statistics.mean(run['history'][-1]['seconds'] for run in mine):.0f}",
            ]
        )
    heading = ["form", "rate", "seeds", "consensus", "to DDP", "worst worker", "to DDP", "distance", "rarest class"]
    return markdown_table([*heading, "seconds"], rows)


def _against(reference: Sequence[float], scores: Sequence[float]) -> str:
    """The difference of two means and its standard error, both in parts of the first mean."""
    mean = statistics.mean(reference)
    variances = [statistics.variance(values) / len(values) if len(values) > 1 else 0 for values in (reference, scores)]
    return f"{statistics.mean(scores) / mean - 1:+.1%} ± {math.sqrt(sum(variances)) / mean:.1%}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def draw(runs: Sequence[dict[str, Any]], path: Path, images_a_step: int, features: str) -> None:
    """The score against images seen and against seconds of training: means, and from the best to the worst seed."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, (by_images, by_seconds) = plt.subplots(1, 2, figsize=(14, 5.5), sharey=True)
    for form in dict.fromkeys(run["form"] for run in runs):
        mine = [run["history"] for run in runs if run["form"] == form]
        values = np.array([[entry["score"] for entry in history] for history in mine])
        style = {"color": "black", "linewidth": 3} if form == REFERENCE else {}
        for axis, places in (
            (by_images, [entry["step"] * images_a_step for entry in mine[0]]),
            (by_seconds, np.mean([[entry["seconds"] for entry in history] for history in mine], axis=0)),
        ):
            (line,) = axis.plot(places, values.mean(0), label=form, marker="o", markersize=3, **style)
            axis.fill_between(places, values.min(0), values.max(0), alpha=0.12, color=line.get_color())
    by_images.set(xlabel="images seen by all workers", ylabel=f"Frechet distance, {features} features")
    by_seconds.set(xlabel="seconds of training")
    for axis in (by_images, by_seconds):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    by_images.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_samples(run: dict[str, Any], path: Path) -> None:
    """What a run drew: each row is a worker's own generator, all from the same latents."""
    import numpy as np
    from PIL import Image

    workers = [np.hstack(np.array(grid, dtype=np.uint8)[:, 0]) for grid in run["grids"]]
    name = run["form"].replace(", ", "_").replace(" ", "_")
    Image.fromarray(np.vstack(workers)).save(path.with_name(f"{path.stem}_{name}_{run['lr']:g}.png"))


def main() -> None:
    """Run everything that was asked for, print the table, keep results and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), help=f"'{REFERENCE}' is always among them")
    parser.add_argument("--seeds", type=int, default=3, help="how many are reported")
    parser.add_argument("--choosing-seeds", type=int, default=2, help="how many choose among several --lr, before them")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000, help=f"batches of a worker; a multiple of {EVALUATIONS}")
    parser.add_argument("--batch", type=int, default=16, help="images of a worker and step")
    parser.add_argument("--width", type=int, default=16, help="of both networks")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3], help="learning rates of both players")
    parser.add_argument("--constant-lr", action="store_true", help="do not let the learning rates fall to zero")
    parser.add_argument("--samples", type=int, default=5000, help="generated for a score while training")
    parser.add_argument("--device", default="cpu", help="of all workers: cpu, cuda:0, cuda:1, ...")
    parser.add_argument("--delay-ms", type=float, default=None, help="one way, of an emulated network (needs root)")
    parser.add_argument("--mbit", type=float, default=None, help="of each worker's link there")
    parser.add_argument("--name", default="gan_quality", help="of the files of results")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the file of results holds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results and plots")
    arguments = parser.parse_args()
    if arguments.steps < EVALUATIONS or arguments.steps % EVALUATIONS:
        parser.error(f"--steps must be a positive multiple of {EVALUATIONS}, found {arguments.steps}")
    if min(arguments.seeds, arguments.choosing_seeds) < 1:
        parser.error(
            f"--seeds and --choosing-seeds must be at least 1, found {arguments.seeds} and {arguments.choosing_seeds}"
        )
    if torch.device(arguments.device).type == "cuda" and torch.device(arguments.device).index is None:
        parser.error(f"--device must say which GPU, such as cuda:0, found {arguments.device}")
    if not 1 <= arguments.batch <= REAL_IMAGES // arguments.workers:
        parser.error(f"--batch must be from 1 to {REAL_IMAGES // arguments.workers}, found {arguments.batch}")
    features = train_classifier_features(FashionMNISTDataModule())
    forms = arguments.forms or [form for form in FORMS if form not in WHEN_ASKED]
    forms = (REFERENCE, *(form for form in forms if form != REFERENCE))
    of_runs = ("forms", "seeds", "first_seed", "choosing_seeds", "lr")  # every run says its own
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "resume", *of_runs)}
    settings |= {"scored": "test", "features": features.name, "features_accuracy": features.accuracy}
    settings["features_sha256"] = network_digest(features)
    path = arguments.output / f"{arguments.name}.json"
    try:
        runs = kept_runs(path, settings) if arguments.resume else []
    except ValueError as error:
        parser.error(str(error))
    same = ("workers", "steps", "batch", "width", "constant_lr", "device", "samples")
    how = {name: getattr(arguments, name) for name in same}
    first = arguments.first_seed
    reported_from = first + (arguments.choosing_seeds if len(arguments.lr) > 1 else 0)
    plan = Plan(
        forms=forms,
        choosing=range(first, reported_from),
        reported=range(reported_from, reported_from + arguments.seeds),
        lrs=tuple(arguments.lr),
        features=features,
        **how,
    )
    slow = arguments.delay_ms is not None or arguments.mbit is not None
    network = ShapedNetwork(plan.workers, arguments.mbit, arguments.delay_ms or 0.0) if slow else None
    where = f"; {arguments.delay_ms or 0:g} ms one way, {arguments.mbit or 'no limit of'} Mbit/s" if slow else ""

    def go_on(todo: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        """The runs that were asked for: those that are kept, and the others once they have been made."""
        done = {(run["seed"], at(run["form"], run["lr"])) for run in runs}
        missing = [one for one in todo if one not in done]
        for run in measure(plan, missing, network) if missing else ():
            runs.append({key: value for key, value in run.items() if key != "grids"})
            save_results(arguments.name, settings, runs, arguments.output)
            if run["seed"] == plan.reported[0]:
                draw_samples(run, path)
        return [run for run in runs if (run["seed"], at(run["form"], run["lr"])) in set(todo)]

    with network if network is not None else contextlib.nullcontext():
        tried = go_on(plan.choosing_runs())
        rates = (
            {form: best_rate([run for run in tried if run["form"] == form]) for form in plan.forms}
            if tried
            else dict.fromkeys(plan.forms, plan.lrs[0])
        )
        reported = go_on(plan.reported_runs(rates))
    draw(reported, path.with_suffix(".png"), arguments.batch * arguments.workers, features.name)
    falling = "constant" if arguments.constant_lr else "falling to zero"
    text = (
        f"Fashion-MNIST, {arguments.workers} workers, {arguments.steps} steps of {arguments.batch} images each{where};"
        f" learning rates {falling}; Frechet distance on {features.name} features, test images; {machine_line()}"
        f"\n\n{table(reported)}\n"
    )
    if tried:
        text += f"\nThe rates were chosen on seeds {first} to {reported_from - 1}:\n\n{table_of_rates(tried, rates)}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
