"""Tables and plots of quality_of_gossip.py: every form beside DDP, over several seeds.

Nothing here trains. A run is a dictionary `{"form", "seed", "history", "late_steps"}`; what counts is the last entry
of its history. `late_steps` counts its gossips by how many steps late they were: `{"0": 1270, "1": 10}`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quality_tasks import Metric, Task
from recording import markdown_table

__all__ = ["REFERENCE", "compare", "draw", "section", "table", "write_report"]

REFERENCE = "DDP"


def final(runs: Sequence[dict[str, Any]], form: str, key: str) -> list[float]:
    """A figure at the end of every run of a form, one for each seed."""
    return [run["history"][-1][key] for run in runs if run["form"] == form]


def compare(values: Sequence[float], reference: Sequence[float], lower_is_better: bool) -> tuple[float, str]:
    """How much worse a form is than DDP.

    Args:
        values: of the form, one for each seed.
        reference: of DDP.
        lower_is_better: which way is better.

    Returns:
        The difference of means in standard deviations of DDP's seeds, positive where the form is worse (not a number if
        DDP's seeds do not differ), and a verdict: `"within"` when the mean is not worse than DDP's worst seed,
        `"better"` when it is better than DDP's best, `"diverged"` when a value is not finite, else `"worse by ..."`,
        the difference of means in the figure's own unit.

    Example:
        >>> compare([2.5, 2.5], [1.0, 2.0, 3.0], lower_is_better=True)
        (0.5, 'within')
        >>> compare([0.5, 0.4], [0.7, 0.8, 0.9], lower_is_better=False)[1]
        'worse by 0.35'
    """
    if not all(math.isfinite(value) for value in values):
        return math.inf, "diverged"
    sign = 1.0 if lower_is_better else -1.0
    mean, theirs = statistics.mean(values), [sign * value for value in reference]
    worse = sign * mean - statistics.mean(theirs)
    spread = statistics.stdev(theirs) if len(theirs) > 1 else 0.0
    in_spreads = worse / spread if spread else math.nan
    if sign * mean > max(theirs):
        return in_spreads, f"worse by {worse:.2g}"
    return in_spreads, "better" if sign * mean < min(theirs) else "within"


def table(runs: Sequence[dict[str, Any]], task: Task) -> str:
    """One line a form, in the order in which they were first run: means and spreads over seeds, beside DDP's."""
    heading = ["form"]
    for metric in task.metrics:
        heading += [metric.heading, "difference", "verdict"]
    rows = []
    for form in dict.fromkeys(run["form"] for run in runs):
        cells = [form]
        for metric in task.metrics:
            values = final(runs, form, metric.key)
            cells.append(_mean_and_spread(values))
            if form == REFERENCE:
                cells += ["", ""]
                continue
            in_spreads, verdict = compare(values, final(runs, REFERENCE, metric.key), metric.lower_is_better)
            cells += ["" if math.isnan(in_spreads) else f"{in_spreads:+.1f}", verdict]
        distances = [entry["distance"] for run in runs if run["form"] == form for entry in run["history"]]
        cells.append(f"{100 * statistics.mean(distances):.2g} %")
        entries = [entry for run in runs if run["form"] == form for entry in run["history"]]
        apart = [entry["neighbors"] for entry in entries if "neighbors" in entry]  # older results have none
        cells.append(f"{100 * statistics.mean(apart):.2g} %" if apart else "")
        cells.append(lateness([run["late_steps"] for run in runs if run["form"] == form]))
        rows.append(cells)
    return markdown_table([*heading, "distance", "neighbours", "steps late"], rows)


def lateness(counts: Sequence[dict[str, int]]) -> str:
    """Mean and largest number of steps by which gossips were late, empty if there were none.

    Example:
        >>> lateness([{"0": 3}, {"4": 1}])
        '1.0 (4)'
    """
    pairs = [(int(steps), count) for run in counts for steps, count in run.items()]
    total = sum(count for _, count in pairs)
    return f"{sum(steps * count for steps, count in pairs) / total:.1f} ({max(pairs)[0]})" if total else ""


def explanation(runs: Sequence[dict[str, Any]], task: Task) -> str:
    """What the columns of `table` mean."""
    seeds = len({run["seed"] for run in runs})
    return (
        f"Mean ± standard deviation over {seeds} seeds. Difference: to DDP's mean, in standard deviations of DDP's"
        " seeds, + is worse. Verdict: within = the mean is not worse than DDP's worst seed. Distance: of the workers"
        " from their average, relative to its norm, mean over the run's evaluations. Neighbours: how far apart two were"
        " when they swapped while training, relative to the norm; of compressed forms, how large what they swapped was."
        " Steps late: mean (largest). " + task.note
    )


def section(kept: dict[str, Any], task: Task) -> str:
    """A task in Markdown: its table and what the columns mean.

    Args:
        kept: what `save_results` wrote of the task.
        task: which one.
    """
    machine, settings, runs = kept["machine"], kept["settings"], kept["results"]
    return (
        f"## {task.title}\n\n`{kept['command']}`: {settings['workers']} workers, {settings['steps']} steps;"
        f" {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}\n\n"
        f"{table(runs, task)}\n\n{explanation(runs, task)}\n"
    )


def write_report(folder: Path, tasks: Mapping[str, Task]) -> Path:
    """Write `quality.md`: every task of which the folder holds results, whenever they were made."""
    path = folder / "quality.md"
    files = {name: folder / f"quality_{name}.json" for name in tasks}
    sections = [section(json.loads(file.read_text()), tasks[name]) for name, file in files.items() if file.exists()]
    path.write_text("\n".join([_PREFACE, *sections]))
    return path


_PREFACE = """# What each form of gossip costs in quality

"one peer" is the default topology, one-peer exponential; "N late": exchanges are held back by N steps. While workers
come to an evaluation late forms go on gossiping, which brings them together: how far apart they are while training is
in the column "neighbours".
"""


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def _shown(runs: Sequence[dict[str, Any]], metric: Metric) -> tuple[float, float]:
    """What a panel shows: means within ten of DDP's ranges; the others, so far off, are written as numbers."""
    reference = final(runs, REFERENCE, metric.key)
    margin = 10 * (max(reference) - min(reference)) or abs(reference[0])
    return min(reference) - margin, max(reference) + margin


def draw(runs: Sequence[dict[str, Any]], task: Task, path: Path) -> Path:
    """A panel for each figure of merit and one for the distance: a dot a seed, a bar at the mean, DDP's range grey."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    forms = list(dict.fromkeys(run["form"] for run in runs))
    panels = [*task.metrics, Metric("distance", "relative distance to consensus")]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 + 3.2 * len(panels), 1.2 + 0.27 * len(forms)), sharey=True)
    for axis, metric in zip(axes, panels, strict=True):
        for place, form in enumerate(forms):
            values = final(runs, form, metric.key)
            if metric.key == "distance":
                if form == REFERENCE:
                    continue  # always zero: it has no place on a logarithmic axis
                values = [statistics.mean(e["distance"] for e in run["history"]) for run in runs if run["form"] == form]
            colour = "black" if form == REFERENCE else "tab:blue"
            low, high = (-math.inf, math.inf) if metric.key == "distance" else _shown(runs, metric)
            if not low <= (mean := statistics.mean(values)) <= high:
                text, where, side = (f"◂ {mean:.3g}", 0.02, "left") if mean < low else (f"{mean:.3g} ▸", 0.98, "right")
                axis.text(where, place, text, transform=axis.get_yaxis_transform(), ha=side, va="center", fontsize=8)
                continue
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
            axis.plot([mean], [place], "|", color=colour, markersize=13, markeredgewidth=2)
        if metric.key == "distance":
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
        else:
            reference = final(runs, REFERENCE, metric.key)
            axis.axvspan(min(reference), max(reference), color="0.88", zorder=0)
        axis.set_xlabel(metric.heading)
        axis.grid(axis="x", color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(forms)), forms)
    axes[0].set_ylim(len(forms) - 0.4, -0.6)
    figure.suptitle(f"{task.title}: every form after the same steps (grey: DDP's range)", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
