"""From what the workers measured to numbers, a table, a file and a picture. No torch, no network."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from network_forms import DDP, FORMS, NETWORKS, NO_COMMUNICATION

__all__ = ["draw", "load_results", "merge_run", "save_results", "summarise", "table", "with_ratios"]

_COLOURS = {"rival": "#4878a8", "own": "#d9722e"}
_LEFT = 0.7  # where bars begin: one of exactly 1 must be seen


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One form's numbers from what its workers measured.

    The time of a step is the mean over workers of what that step took at each; median, quartiles and mean are over
    steps. Bytes are means over workers.

    Example:
        >>> worker = {"bytes_a_step": 5.0, "floor_seconds": 0.01}
        >>> row = summarise([{**worker, "seconds": [0.1, 0.2, 0.3]}, {**worker, "seconds": [0.3, 0.4, 0.5]}])
        >>> round(row["median_ms"]), round(row["mean_ms"]), row["steps"], row["bytes_a_step"]
        (300, 300, 3, 5.0)
    """
    steps_ms = [1e3 * statistics.mean(step) for step in zip(*(each["seconds"] for each in results), strict=True)]
    low, median, high = statistics.quantiles(steps_ms, n=4, method="inclusive")
    row = {
        "steps": len(steps_ms),
        "median_ms": median,
        "lower_quartile_ms": low,
        "upper_quartile_ms": high,
        "mean_ms": statistics.mean(steps_ms),
        "bytes_a_step": statistics.mean(each["bytes_a_step"] for each in results),
        "floor_ms": 1e3 * results[0]["floor_seconds"],
        "steps_ms": [round(milliseconds, 3) for milliseconds in steps_ms],
    }
    for name in ("gossips_a_step", "reported_bytes_a_step"):
        if name in results[0]:
            row[name] = statistics.mean(each[name] for each in results)
    return row


def with_ratios(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run with `to_none`, `ddp_to_this` and `periodic`.

    `to_none` divides by the same loop (plain or Lightning) without communication, both of its turns together.
    `ddp_to_this` says how many times as long DDP's step takes. Both divide medians; where a form communicates only
    every few steps (`periodic`), `to_none` divides means, and `ddp_to_this` its mean.
    """
    steps_ms: dict[str, list[float]] = {}
    for row in run["rows"]:
        steps_ms.setdefault(row["form"], []).extend(row.get("steps_ms", []))
    rows = []
    for row in run["rows"]:
        form, row = FORMS.get(row["form"]), dict(row)
        row["periodic"] = form is not None and form.period > 1
        if "error" not in row:
            typical = statistics.mean if row["periodic"] else statistics.median
            own = row["mean_ms"] if row["periodic"] else row["median_ms"]
            if form is not None and (base := steps_ms.get(NO_COMMUNICATION[form.loop])):
                row["to_none"] = own / typical(base)
            if ddp := steps_ms.get(DDP):
                row["ddp_to_this"] = statistics.median(ddp) / own
        rows.append(row)
    return rows


def table(run: dict[str, Any]) -> str:
    """One run as a Markdown table."""
    machine = run["machine"]
    lines = [
        f"### {_network_title(run)}, {run['workers']} workers, {run['load']} load",
        "",
        f"{run.get('parameter_bytes', 0) / 1e6:.1f} MB of parameters, {run['batch']} images a worker and step;"
        f" {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {run['started'][:10]}.",
        "",
        "| form | steps | median ms | quartiles ms | mean ms | to no communication | DDP takes | sent a step, MB"
        " | floor, ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in with_ratios(run):
        name = row["form"] + (" (again)" if row.get("again") else "")
        if "error" in row:
            lines.append(f"| {name} | | {row['error'][:150].replace('|', '/')} | | | | | | |")
            continue
        mark = "*" if row["periodic"] else ""
        to_none = f"{row['to_none']:.2f}{mark}" if "to_none" in row else ""
        ddp = f"{row['ddp_to_this']:.2f} x{mark}" if "ddp_to_this" in row else ""
        lines.append(
            f"| {name} | {row['steps']} | {row['median_ms']:.1f} |"
            f" {row['lower_quartile_ms']:.1f} - {row['upper_quartile_ms']:.1f} | {row['mean_ms']:.1f} | {to_none} |"
            f" {ddp} | {row['bytes_a_step'] / 1e6:.3f} | {row['floor_ms']:.1f} |"
        )
    return "\n".join([*lines, "", "\\* of means, since most steps of this form have no communication.", ""])


def load_results(path: Path) -> dict[str, Any]:
    """What was measured so far; empty where there is no such file.

    Raises:
        ValueError: the file is none of ours.
    """
    if not path.exists():
        return {"format": 1, "runs": []}
    results = json.loads(path.read_text())
    if not isinstance(results, dict) or results.get("format") != 1:
        raise ValueError(f'{path} is not a result file of network.py: it has no "format": 1')
    return results


def merge_run(results: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Put a run in the place of an older one of the same network, number of workers and load."""
    runs = [other for other in results["runs"] if _key(other) != _key(run)]
    order = list(NETWORKS)
    runs = sorted([*runs, run], key=lambda each: (each["workers"], each["load"], order.index(each["network"])))
    return {**results, "runs": runs}


def save_results(results: dict[str, Any], folder: Path) -> None:
    """Write `network.json`, `network.md`, and a picture for each number of workers and load."""
    temporary = folder / "network.json.part"
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(folder / "network.json")
    (folder / "network.md").write_text("\n".join(table(run) for run in results["runs"]))
    for workers, load in sorted({(run["workers"], run["load"]) for run in results["runs"]}):
        runs = [run for run in results["runs"] if (run["workers"], run["load"]) == (workers, load)]
        draw(runs, folder / f"network_{workers}_workers_{load}.png")


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """One panel a network: how many times as long as without communication each form's step takes.

    Forms that were measured on less than half of the networks stand in the table alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [[row for row in with_ratios(run) if "to_none" in row and not row.get("again")] for run in runs]
    measured = Counter(row["form"] for rows in shown for row in rows)
    names = [form for form in FORMS if 2 * measured[form] >= len(shown) and form not in NO_COMMUNICATION.values()]
    columns = min(3, len(runs))
    lines = -(-len(runs) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 + 3.6 * columns, 1.3 + lines * (0.7 + 0.24 * len(names))), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    most = max((row["to_none"] for rows in shown for row in rows), default=1.0)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis, run, rows in zip(axes.flat, runs, shown, strict=False):
        by_name = {row["form"]: row for row in rows}
        for place, name in enumerate(names):
            if name not in by_name:
                axis.text(1.03, place, "not measured", va="center", fontsize=7, color="#777777")
                continue
            row, colour = by_name[name], _COLOURS["own" if FORMS[name].own else "rival"]
            milliseconds = row["mean_ms"] if row["periodic"] else row["median_ms"]
            axis.barh(place, max(row["to_none"] - _LEFT, 0), left=_LEFT, color=colour, height=0.72)
            axis.text(row["to_none"] * 1.04, place, f"{row['to_none']:.2f} x  ({milliseconds:.0f} ms)", va="center",
                      fontsize=7)  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlim(_LEFT, max(2.0, most) * 3.2)
        axis.axvline(1, color="#333333", linewidth=1)
        axis.set_title(_network_title(run), fontsize=10)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    for row_of_axes in axes:
        row_of_axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0][0].invert_yaxis()
    workers, load = runs[0]["workers"], runs[0]["load"]
    figure.suptitle(f"Time of a training step: {workers} workers, {load} load", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("times as long as the same loop without communication (logarithmic)", fontsize=9)
    figure.legend(
        handles=[Patch(color=_COLOURS["rival"], label="others"), Patch(color=_COLOURS["own"], label="this strategy")],
        loc="outside upper right", fontsize=8, frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _network_title(run: dict[str, Any]) -> str:
    if run["network"] == "loopback":
        return "loopback"
    rate = {None: "no rate limit", 1000: "1 Gbit/s"}.get(run["mbit"], f"{run['mbit'] or 0:g} Mbit/s")
    return f"{rate}, {run['delay_ms']:g} ms one way"


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["network"], run["workers"], run["load"]
