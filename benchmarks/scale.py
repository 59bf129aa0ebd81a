"""How gossip scales: a worker's cost a step among N real processes, and consensus among up to 1,024 simulated ones.

    python benchmarks/scale.py
    python benchmarks/scale.py --processes 2 4 8 --simulated            only real processes
    python benchmarks/scale.py --processes --simulated 16 64            only simulated workers

The cost has to follow the number of neighbours and not N; the complete graph is there as the counter-example. N
processes share the cores of one machine, so what counts is each worker's own processor time. The simulated workers run
the same gossiper on links inside one process; how fast they agree is held against what the topology's spectrum says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recording import RESULTS, describe_machine, markdown_table, save_results
from scale_processes import measure
from scale_simulated import NOTHING, simulate

from lightning_decgan.topology import Topology, build_topology

PROCESS_TOPOLOGIES = ("ring", "one_peer_exponential", "exponential", "complete")
SIMULATED_TOPOLOGIES = (
    "ring", "torus", "random_ring", "exponential", "hypercube", "random_matching", "one_peer_exponential", "complete"
)  # fmt: skip
LARGEST_SIMULATED_COMPLETE = 64
COLOURS = {name: f"C{place}" for place, name in enumerate(SIMULATED_TOPOLOGIES)}


def cost_by_neighbors(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The line `cpu_ms = fixed + each * neighbors` that fits best, by relative least squares over all rows.

    Example:
        >>> fixed, each = cost_by_neighbors([{"neighbors": n, "cpu_ms": 1.0 + 0.5 * n} for n in (1, 2, 7)])
        >>> round(fixed, 6), round(each, 6)
        (1.0, 0.5)
    """
    cost = np.array([row["cpu_ms"] for row in rows])
    neighbors = np.array([row["neighbors"] for row in rows])
    # Relative: 31 neighbours would otherwise decide alone where the line lies.
    terms = np.stack([1 / cost, neighbors / cost], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(terms, np.ones(len(cost)), rcond=None)
    return float(fixed), float(each)


def measured_rate(history: dict[str, list[float]], topology: Topology) -> float:
    """What a round left of the disagreement, seen in a simulation, as `Topology.consensus_rate` means it.

    From the slowest start: over one period of a schedule, over all rounds of a graph that never changes. For one drawn
    anew, the root mean square of what single rounds left, from the random start. 0 when only rounding is left.

    Example: each round halves the distance.
        >>> measured_rate({"slowest": [1.0, 0.5, 0.25]}, build_topology("ring", 4))
        0.5
    """
    distances = np.array(history["random" if topology.period is None else "slowest"])
    if topology.period is None:
        left = distances[1:] / distances[:-1]
        return float(np.sqrt(np.mean(left[distances[1:] > NOTHING] ** 2)))
    rounds = int(np.flatnonzero(distances > NOTHING)[-1]) if topology.period == 1 else topology.period
    rounds = min(max(rounds, 1), len(distances) - 1)
    return 0.0 if distances[rounds] < NOTHING else float(distances[rounds] ** (1 / rounds))


def measure_processes(counts: Sequence[int], parameters: int, steps: int) -> list[dict[str, Any]]:
    """Every topology at every N, smallest N first."""
    rows = []
    for workers in counts:
        for name in PROCESS_TOPOLOGIES:
            row = measure(workers, name, parameters, steps)
            rows.append(row)
            _say(f"{workers} processes, {name}: {row['cpu_ms']:.2f} ms of processor time a step")
    return rows


def measure_simulated(counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Every topology at every N, smallest N first."""
    rows = []
    for workers in counts:
        for name in SIMULATED_TOPOLOGIES:
            if name == "complete" and workers > LARGEST_SIMULATED_COMPLETE:
                continue  # one round says all, and takes N^2 swaps
            if name == "hypercube" and workers & (workers - 1):
                continue  # exists for powers of two only
            topology, started = build_topology(name, workers, seed=0), time.perf_counter()
            history = simulate(topology, rounds)
            row = {
                "workers": workers,
                "topology": name,
                "neighbors": float(np.mean([topology.degree(0, round) for round in range(topology.period or rounds)])),
                "predicted_rate": topology.consensus_rate(),
                "measured_rate": measured_rate(history, topology),
                "period": topology.period,
                **history,
            }
            rows.append(row)
            seconds = time.perf_counter() - started
            _say(f"{workers} simulated, {name}: {len(history['random']) - 1} rounds, {seconds:.0f} s")
    return rows


def process_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a topology and N."""
    fixed, each = cost_by_neighbors(rows)
    lines = [
        [
            row["topology"],
            str(row["workers"]),
            f"{row['neighbors']:.1f}",
            f"{row['links']:.0f}",
            f"{row['cpu_ms']:.2f}",
            f"{fixed + each * row['neighbors']:.2f}",
            f"{row['wall_ms']:.1f}",
            f"{row['buffer_bytes'] / 2**20:.1f}",
            f"{row['grown_bytes'] / 2**20:.1f}",
        ]
        for row in sorted(rows, key=lambda row: (PROCESS_TOPOLOGIES.index(row["topology"]), row["workers"]))
    ]
    heading = ["topology", "N", "neighbours", "links", "CPU ms", "by neighbours", "wall ms", "buffers MiB", "grown MiB"]
    return (
        markdown_table(heading, lines) + f"\n\nMedians over the workers. CPU ms: processor time of one worker a step;"
        f" by neighbours: {fixed:.2f} + {each:.2f} x neighbours a round, the line that fits all rows best. Buffers:"
        " held by the gossip of one worker; grown: by how much its process has grown, threads and sockets included."
    )


def simulated_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a topology and N."""
    lines = [
        [
            row["topology"],
            str(row["workers"]),
            f"{row['neighbors']:.1f}",
            f"{row['predicted_rate']:.6f}",
            f"{row['measured_rate']:.6f}",
            f"{row['random'][min(10, len(row['random']) - 1)]:.2g}",
            f"{row['mean_moved'][0]:.0e}",
        ]
        for row in sorted(rows, key=lambda row: (SIMULATED_TOPOLOGIES.index(row["topology"]), row["workers"]))
    ]
    heading = ["topology", "N", "neighbours", "predicted rate", "measured rate", "left after 10", "mean moved"]
    return (
        markdown_table(heading, lines)
        + "\n\nRate: what a round leaves of the disagreement, from where it is slowest (one period of a schedule; for"
        " random ones in the mean square, from a random start). Left after 10: the fraction of the distance to"
        " consensus after 10 rounds, from a random start."
    )


def draw_processes(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Processor time and memory of a worker against N; dashed what the number of neighbours alone would say."""
    plt = _pyplot()
    fixed, each = cost_by_neighbors(rows)
    figure, (time_axis, memory_axis) = plt.subplots(1, 2, figsize=(9, 3.8))
    for name in PROCESS_TOPOLOGIES:
        mine = sorted((row for row in rows if row["topology"] == name), key=lambda row: row["workers"])
        counts = [row["workers"] for row in mine]
        time_axis.plot(counts, [row["cpu_ms"] for row in mine], "o-", color=COLOURS[name], label=name, markersize=4)
        by_neighbors = [fixed + each * row["neighbors"] for row in mine]
        time_axis.plot(counts, by_neighbors, "--", color=COLOURS[name], linewidth=1)
        buffers = [row["buffer_bytes"] / 2**20 for row in mine]
        memory_axis.plot(counts, buffers, "o-", color=COLOURS[name], label=name, markersize=4)
    time_axis.set(
        title=f"processor time (dashed: {fixed:.2f} + {each:.2f} x neighbours)", ylabel="ms a worker and step"
    )
    memory_axis.set(title="buffers of the gossip", ylabel="MiB a worker")
    for axis in (time_axis, memory_axis):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xlabel("workers (processes)")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(color="0.92")
        axis.title.set_fontsize(10)
    time_axis.legend(fontsize=8)
    return _save(figure, path)


def draw_simulated(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Distance to consensus by round, a panel for each N: points measured, dashed the spectral prediction."""
    plt = _pyplot()
    counts = sorted({row["workers"] for row in rows})
    figure, axes = plt.subplots(1, len(counts), figsize=(1.2 + 3.4 * len(counts), 4.0), sharey=True, squeeze=False)
    for axis, workers in zip(axes[0], counts, strict=True):
        for row in (row for row in rows if row["workers"] == workers):
            colour = COLOURS[row["topology"]]
            distances = np.array(row["random" if row["period"] is None else "slowest"])
            seen = np.flatnonzero(distances > NOTHING)
            axis.plot(seen, distances[seen], "o", color=colour, markersize=3, label=row["topology"])
            rounds = np.arange(len(distances))
            if row["predicted_rate"] > 0.0:
                axis.plot(rounds, row["predicted_rate"] ** rounds, "--", color=colour, linewidth=1)
            else:  # the exact mean after a period: down it goes
                axis.plot(
                    [row["period"] - 1, row["period"]], [distances[row["period"] - 1], NOTHING], "--", color=colour
                )
        axis.set(title=f"{workers} workers", xlabel="round", yscale="log", ylim=(NOTHING, 3.0))
        axis.grid(color="0.92")
    axes[0][0].set_ylabel("distance to consensus, of that at the start")
    axes[0][-1].legend(
        *axes[0][0].get_legend_handles_labels(), fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return _save(figure, path)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    _pyplot().close(figure)
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4, 8, 16, 32], help="numbers of real processes")
    parser.add_argument("--parameters", type=int, default=100_000, help="float32 elements of each process's model")
    parser.add_argument("--steps", type=int, default=40, help="that are measured, of each process")
    parser.add_argument(
        "--simulated", type=int, nargs="*", default=[16, 64, 256, 1024], help="numbers of simulated ones"
    )
    parser.add_argument("--rounds", type=int, default=40, help="of simulated gossip")
    found = parser.parse_args(arguments)
    for name, values, least in (
        ("--processes", found.processes, 2),
        ("--simulated", found.simulated, 2),
        ("--parameters", [found.parameters], 1),
        ("--steps", [found.steps], 1),
        ("--rounds", [found.rounds], 1),
    ):
        if any(value < least for value in values):
            parser.error(f"{name} must be at least {least}, found {min(values)}")
    return found


def main() -> None:
    """Measure what was asked for, print the tables, keep results and plots."""
    arguments = parse()
    print(f"{describe_machine()}\n")
    if arguments.processes:
        rows = measure_processes(sorted(arguments.processes), arguments.parameters, arguments.steps)
        settings = {"parameters": arguments.parameters, "steps": arguments.steps}
        path = save_results("scale_processes", settings, rows)
        picture = draw_processes(rows, RESULTS / "scale_processes.png")
        print(f"## {arguments.parameters} parameters, {arguments.steps} steps\n\n{process_table(rows)}")
        print(f"\n{path} and {picture}\n")
    if arguments.simulated:
        rows = measure_simulated(sorted(arguments.simulated), arguments.rounds)
        path = save_results("scale_simulated", {"rounds": arguments.rounds}, rows)
        picture = draw_simulated(rows, RESULTS / "scale_simulated.png")
        print(f"## Simulated workers\n\n{simulated_table(rows)}\n\n{path} and {picture}")


if __name__ == "__main__":
    main()
