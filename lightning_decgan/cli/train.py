"""`decgan train`: from a configuration to a trained GAN and a folder that says all about it.

A Hydra application over conf/. Everything is made from `_target_` entries, in this process and before any worker is
started, so that bad input ends the run at once; the strategy then starts the workers. It holds no training logic:
`train` is a Trainer, a DataModule, a LightningModule and callbacks, as anybody could write them down.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_decgan.cli.build import make_run
from lightning_decgan.cli.config import CONFIG_NAME, config_dir
from lightning_decgan.cli.curves import METRICS, draw_curves, read_metrics
from lightning_decgan.cli.errors import UsageError, one_line, torchvision_mismatch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

# a.b=1, but not +a.b=1 or ~a.b or hydra.x=1 or group/option=x
_DOTTED_OVERRIDE = re.compile(r"^(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")


class BadInput(UsageError, CompactHydraException):
    """A usage error that Hydra prints as one line, without a traceback."""


def main(argv: Sequence[str]) -> int:
    """Runs `decgan train`.

    Args:
        argv: Hydra's command line: overrides, `-m`, `--help`, `--config-dir` and so on.

    Returns:
        The exit code: 0 done, 1 a run failed or the configuration does not exist, 2 bad input.
    """
    application = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=CONFIG_NAME)(job)
    with _argv(["decgan train", *allow_new_keys(argv)]):
        try:
            application()
        except SystemExit as end:
            # Hydra has printed the error by now and ends with 1 whatever it was
            if isinstance(end.__context__, UsageError):
                return 2
            return end.code if isinstance(end.code, int) else 1
        except UsageError:
            # only with HYDRA_FULL_ERROR, which asks for all there is to see
            traceback.print_exc()
            return 2
    return 0


def allow_new_keys(argv: Sequence[str]) -> list[str]:
    """Lets an override name an argument that the configuration files leave at its default.

    The files do not repeat the defaults of the classes they name, and Hydra would ask for a plus sign to set what they
    do not repeat. A name that does not exist is refused by the class.

    Args:
        argv: Hydra's command line.

    Returns:
        The same with `++` before overrides of nested keys.

    Example:
        >>> allow_new_keys(["-m", "strategy.rounds=1,3", "topology=ring", "hydra.job.chdir=true", "~logger.csv"])
        ['-m', '++strategy.rounds=1,3', 'topology=ring', 'hydra.job.chdir=true', '~logger.csv']
    """
    return [f"++{word}" if _DOTTED_OVERRIDE.match(word) else word for word in argv]


def job(config: DictConfig) -> float | None:
    """One run of the Hydra application: trains and prints where the results are.

    Args:
        config: composed by Hydra.

    Returns:
        The last Frechet distance, for Hydra's sweepers to minimize, or None without scores.

    Raises:
        BadInput: if the configuration cannot be used, or torchvision beside this torch.
    """
    log.info("run folder: %s", config.run_dir)
    try:
        _quiet_lightning()
        summary = train(config)
    except UsageError as error:
        raise BadInput(str(error)) from error
    except RuntimeError as error:
        advice = torchvision_mismatch(error)
        if advice is None:
            raise
        raise BadInput(advice) from error
    scores = (summary or {}).get("scores") or {}
    return scores.get("frechet_distance")


def train(config: DictConfig) -> dict[str, Any] | None:
    """Trains as a configuration says; results go to the folder `config.run_dir`.

    Args:
        config: as `lightning_decgan.cli.config.compose` or Hydra makes it.

    Returns:
        The content of `summary.json`; None if the configuration has no `RunSummary`.

    Raises:
        UsageError: if a value of the configuration cannot be used, before any worker is started.
    """
    try:
        resolved = OmegaConf.to_yaml(config, resolve=True)
        run_dir = Path(config.run_dir)
    except OmegaConfBaseException as error:
        raise UsageError(one_line(error)) from error
    from lightning.pytorch import seed_everything

    from lightning_decgan.callbacks.run_summary import cause_of
    from lightning_decgan.files import write_bytes_atomically
    from lightning_decgan.strategy.launcher import let_parametrized_layers_travel

    write_bytes_atomically(run_dir / "config.yaml", resolved.encode())
    with _environment(), _workers_end_with_this_process():
        seed_everything(config.seed, workers=True, verbose=False)
        trainer, model, datamodule = make_run(config)
        # The gossip strategy's launcher does so too; those of Lightning, which strategy=ddp has, do not.
        let_parametrized_layers_travel(model)
        try:
            trainer.fit(model, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
        except BaseException as error:
            # Lightning turns Ctrl-C into an exit
            interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
            log.error("training failed: %s", "interrupted" if interrupted else cause_of(error))
            if interrupted:
                raise KeyboardInterrupt from error
            raise
    with suppress(UsageError):  # a run that has logged nothing has no curves
        draw_curves(read_metrics(run_dir / METRICS), run_dir / "curves.png", title=run_dir.resolve().name)
    summary_path = _summary_path(trainer)
    summary = json.loads(summary_path.read_text()) if summary_path is not None and summary_path.is_file() else None
    for line in report(summary, summary_path, run_dir):
        print(line, flush=True)
    return summary


def report(summary: dict[str, Any] | None, summary_path: Path | None, run_dir: Path) -> list[str]:
    """What is printed at the end of a run.

    Args:
        summary: content of `summary.json`, if there is one.
        summary_path: where it is.
        run_dir: folder of the run.

    Returns:
        Lines.

    Example:
        >>> summary = {"workers": 1, "topology": None, "steps": 8, "seconds": 2.0, "images_per_second": 64.0,
        ...     "scores": {"frechet_distance": 2.5}, "scores_before": {"frechet_distance": 80.0},
        ...     "features": "digits_cnn", "last_sample_grid": "run/samples/step-000008-model.png"}
        >>> for line in report(summary, Path("run/summary.json"), Path("run")):
        ...     print(line)
        trained 8 steps in 2.0 s with 1 worker, 64.0 images a second
        frechet_distance (features: digits_cnn): 80 before, 2.5 after
        samples:    run/samples/step-000008-model.png
        summary:    run/summary.json
    """
    if summary is None:
        return [f"results:    {run_dir}"]
    workers = f"{summary['workers']} worker{'s' if summary['workers'] != 1 else ''}"
    topology = f" on the topology {summary['topology']}" if summary["topology"] else ""
    rate = f", {summary['images_per_second']} images a second" if summary["images_per_second"] else ""
    lines = [f"trained {summary['steps']} steps in {summary['seconds']:.1f} s with {workers}{topology}{rate}"]
    for name, after in (summary["scores"] or {}).items():
        before = (summary["scores_before"] or {}).get(name)
        values = f"{_number(before)} before, {_number(after)} after"
        lines.append(f"{name} (features: {summary['features']}): {values}")
    if summary["last_sample_grid"]:
        lines.append(f"samples:    {summary['last_sample_grid']}")
    for name, file in (("checkpoint", "last.ckpt"), ("best", "best.ckpt")):
        checkpoint = run_dir / "checkpoints" / file
        if checkpoint.is_file():
            lines.append(f"{name + ':':<11} {checkpoint}")
    if (run_dir / "curves.png").is_file():
        lines.append(f"curves:     {run_dir / 'curves.png'}")
    lines.append(f"summary:    {summary_path}")
    return lines


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _summary_path(trainer: Trainer) -> Path | None:
    from lightning_decgan.callbacks import RunSummary

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by one of Trainer's parts
    return next((callback.path for callback in callbacks if isinstance(callback, RunSummary)), None)


@contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    # Hydra reads its command line from sys.argv and from nowhere else
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _quiet_lightning() -> None:
    """Leaves Lightning's warnings and errors, to Hydra's log file too, and drops notes and advertisements."""
    import lightning.pytorch as pl

    logger = logging.getLogger(pl.__name__)
    logger.setLevel(logging.WARNING)
    if logging.getLogger().hasHandlers():
        logger.handlers.clear()
        logger.propagate = True


@contextmanager
def _workers_end_with_this_process() -> Iterator[None]:
    """Ends the workers when this process has to stop before they have; they would train on, and it would wait for them.

    A batch system's SIGTERM becomes an exit, which like Ctrl-C comes by the `finally` here.
    """

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    others = set(multiprocessing.active_children())
    # Python lets only a process's main thread handle signals
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if in_main_thread else None
    try:
        yield
    finally:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def _environment() -> Iterator[None]:
    """Undoes what a run leaves in the environment: the next run of a sweep must not take its port or seed from it."""
    before = dict(os.environ)
    start_method = multiprocessing.get_start_method(allow_none=True)
    if start_method is not None and start_method not in multiprocessing.get_all_start_methods():
        # In a process of Hydra's joblib launcher it is "loky", which processes started from there have never heard of
        multiprocessing.set_start_method("spawn", force=True)
    # Workers inherit this: warnings of Lightning about torch, which no user can do anything about
    quiet = "ignore::FutureWarning:lightning.pytorch.utilities._pytree"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [quiet, before.get("PYTHONWARNINGS")]))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        if multiprocessing.get_start_method(allow_none=True) != start_method:
            multiprocessing.set_start_method(start_method, force=True)
