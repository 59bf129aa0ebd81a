"""`decgan curves`: losses, scores and the workers' agreement over a run's steps, in one picture.

It reads what the run's CSV logger wrote, also while the run goes on. `decgan train` draws it at the end of every run.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_decgan.cli.arguments import writing
from lightning_decgan.cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = Path("csv") / "metrics.csv"
Series: TypeAlias = tuple[list[int], list[float]]
"""Batches of training, and the values logged after them."""

_SMOOTHED_SHARE = 0.05
"""A noisy curve is drawn pale, with its running mean over this share of its points on top."""

_LEAST_POINTS_TO_SMOOTH = 60

_LARGE_FALL = 30
"""A distance that falls by more than this factor is drawn on a logarithmic scale."""


def parser() -> argparse.ArgumentParser:
    """The command line of `decgan curves`."""
    parser = argparse.ArgumentParser(
        prog="decgan curves", description="Draw the losses, scores and distances that a run has logged."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run of decgan train")
    parser.add_argument("-o", "--output", type=Path, default=None, help="a .png (default: RUN/curves.png)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `decgan curves`.

    Args:
        argv: the words after `decgan curves`.

    Returns:
        The exit code.

    Raises:
        UsageError: on bad input.
    """
    arguments = parser().parse_args(argv)
    from lightning_decgan.cli.pictures import check_picture_name

    check_picture_name("output", arguments.output, (".png",))
    series = read_metrics(arguments.run / METRICS)
    path = arguments.output or arguments.run / "curves.png"
    with writing("output", path):
        draw_curves(series, path, title=arguments.run.resolve().name)
    print(path)
    return 0


def read_metrics(path: Path) -> dict[str, Series]:
    """What a CSVLogger has written so far.

    Args:
        path: `metrics.csv`.

    Returns:
        By name: the number of batches after which a value was logged, and the values that are finite.

    Raises:
        UsageError: if there is no such file, or nothing in it.

    Example:
        >>> read_metrics(Path("/nowhere/csv/metrics.csv"))
        Traceback (most recent call last):
        lightning_decgan.cli.errors.UsageError: run has no /nowhere/csv/metrics.csv; the logger csv writes it (it is \
among those of logger=default)
    """
    if not path.is_file():
        raise UsageError(f"run has no {path}; the logger csv writes it (it is among those of logger=default)")
    series: dict[str, Series] = {}
    with path.open(newline="") as file:
        # of a run that goes on the last line may be half written, and half a number is a number too
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            step = _number(row.get("step"))
            if step is None:
                continue
            for name, text in row.items():
                value = None if name in ("step", "epoch", None) else _number(text)
                if value is not None:
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(int(step) + 1)  # Lightning's step is the index of the batch
                    values.append(value)
    if not series:
        raise UsageError(f"{path} holds no metrics yet")
    return series


def panels_of(series: dict[str, Series]) -> list[tuple[str, dict[str, Series]]]:
    """Which curves stand together: losses, logits, each score, the workers' distances.

    Args:
        series: of `read_metrics`.

    Returns:
        (title, curves by label) of each panel that has any.

    Example:
        >>> logged = {"d_loss": ([1], [0.5]), "fidelity/digits_cnn/frechet_distance": ([1], [9.0])}
        >>> [(title, list(curves)) for title, curves in panels_of(logged)]
        [('losses', ['d_loss']), ('frechet_distance (features: digits_cnn)', ['frechet_distance'])]
    """
    panels: list[tuple[str, dict[str, Series]]] = [
        ("losses", {name: series[name] for name in ("d_loss", "g_loss", "penalty") if name in series}),
        ("mean logits", {name: series[name] for name in ("d_real", "d_fake") if name in series}),
    ]
    for name in sorted(series):
        if name.startswith("fidelity/"):
            features, _, score = name.removeprefix("fidelity/").rpartition("/")
            panels.append((f"{score} (features: {features})", {score: series[name]}))
    distance = "gossip/relative_consensus_distance"
    if distance in series:
        panels.append(("distance of the workers from their mean, relative", {"consensus distance": series[distance]}))
    return [(title, curves) for title, curves in panels if curves]


def draw_curves(series: dict[str, Series], path: Path, title: str = "") -> Path:
    """Draws all panels into one PNG, which appears whole or not at all.

    Args:
        series: of `read_metrics`.
        path: where to; its folder is made.
        title: above the panels.

    Returns:
        The path.

    Raises:
        UsageError: if nothing in `series` has a panel.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "curves.png"
        >>> draw_curves({"d_loss": ([1, 2], [0.7, 0.6])}, path).stat().st_size > 1000
        True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lightning_decgan.cli.pictures import INK, PAPER, save_figure

    panels = panels_of(series)
    if not panels:
        raise UsageError(f"none of the metrics logged has a curve: {', '.join(sorted(series))}")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows + 0.4), facecolor=PAPER, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, curves) in zip(axes.flat, panels, strict=False):
        _panel(axis, name, curves)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, color=INK)
    return save_figure(figure, path, Title=title)


def _panel(axis: Axes, title: str, curves: dict[str, Series]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from lightning_decgan.cli.pictures import INK, MUTED

    for number, (name, (steps, values)) in enumerate(curves.items()):
        how: dict[str, Any] = {"color": f"C{number}", "label": name}
        if len(values) < _LEAST_POINTS_TO_SMOOTH:
            axis.plot(steps, values, marker="o", markersize=3, **how)
        else:
            axis.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axis.plot(steps, running_mean(values, int(_SMOOTHED_SHARE * len(values))), **how)
    everything = [value for _, values in curves.values() for value in values]
    if "distance" in title and 0 < _LARGE_FALL * min(everything) < max(everything):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(left=0)
    axis.set_title(title, fontsize=10, color=INK)
    axis.set_xlabel("step", fontsize=8, color=MUTED)
    axis.tick_params(labelsize=8, colors=MUTED)
    axis.grid(alpha=0.25)
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of the last `width` values at each place; of fewer at the beginning.

    Example:
        >>> running_mean([1.0, 3.0, 5.0], 2)
        [1.0, 2.0, 4.0]
    """
    import numpy as np

    # each window is summed by itself: in a running sum one huge value would drown all after it
    sums = np.convolve(values, np.ones(width))[: len(values)]
    means: list[float] = (sums / np.minimum(np.arange(1, len(values) + 1), width)).tolist()
    return means


def _number(text: str | None) -> float | None:
    """The number in a cell, None of an empty one and of NaN."""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
