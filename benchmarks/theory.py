r"""Does decentralized optimistic descent find a stationary point, how fast, and what do N, t and the graph change?

    python benchmarks/theory.py

Min-max problems whose operator `F(z) = A z` is linear, with noise of its own at every worker:

- **bilinear** `x y`: monotone, nothing strongly; gradient descent-ascent diverges;
- **strongly monotone** `m x^2 / 2 + x y - m y^2 / 2`;
- **weak Minty** the same with m < 0: not monotone, `<F(z), z> = m / (1 + m^2) |F(z)|^2`, the condition under which
  optimistic methods are known to converge when |m| is small against the step;
- **beyond it**: the same with an m too large for the step.

For linear operators everything can be worked out, so every curve has its prediction beside it. With a symmetric W the
workers' states fall into modes, one for each eigenvalue of W: that of eigenvalue 1 is the mean over workers, in which
the noise is N times smaller and the graph does not appear; the others are the distance to consensus. In a mode of
eigenvalue `l`, with `t` rounds an iteration and step `h`, DPOSG is the linear recursion

    x' = l^t (x - u'),   u' = h (A (x - u) + noise)

so second moments follow `P' = M P M^T + Q`, exactly. The measured side is a simulation of all workers in float64 with
the mixing matrices of `lightning_decgan.topology`; nothing is fitted. The simulation of DPOSG is the recursion of
`OptimisticSGD` and the gossiper in the exact order, which tests/distributed/test_dposg.py runs with real processes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from recording import RESULTS, markdown_table, save_results

from lightning_decgan.topology import Topology, build_topology

Matrix = npt.NDArray[np.float64]

PROBLEMS = {"bilinear": 0.0, "strongly monotone": 0.2, "weak Minty": -0.04, "beyond it": -0.25}
METHODS = ("descent-ascent", "extragradient", "optimistic")
START = np.array([1.0, 1.0])


def operator(m: float) -> Matrix:
    """A of `f(x, y) = m x^2 / 2 + x y - m y^2 / 2`: the gradient in x, and minus that in y."""
    return np.array([[m, 1.0], [-1.0, m]])


@dataclass(frozen=True)
class Method:
    """One iteration in a mode: `state' = by_eigenvalue(l) @ state + noise_in(l) @ noises`; `point` reads z's anchor.

    Attributes:
        transition: the matrix by what `l^t` is.
        noise: how the noises of an iteration enter, by `l^t`.
        noises: noise vectors an iteration.
    """

    transition: Callable[[float], Matrix]
    noise: Callable[[float], Matrix]
    noises: int


def method(name: str, A: Matrix, h: float) -> Method:
    """The method's recursion for the operator A and the step h."""
    one = np.eye(2)
    if name == "descent-ascent":
        return Method(lambda f: f * (one - h * A), lambda f: -f * h * one, 1)
    if name == "extragradient":
        return Method(lambda f: f * (one - h * A + h * h * A @ A), lambda f: f * np.hstack([h * h * A, -h * one]), 2)
    return Method(
        lambda f: np.block([[f * (one - h * A), f * h * A], [h * A, -h * A]]),
        lambda f: np.vstack([-f * h * one, h * one]),
        1,
    )


def predicted_moments(recursion: Method, factor: float, sigma: float, steps: int, start: Matrix) -> list[Matrix]:
    """E[x x^T] of a mode's anchor after each step."""
    M, B = recursion.transition(factor), recursion.noise(factor)
    state = np.concatenate([start, np.zeros(len(M) - 2)])
    P, Q = np.outer(state, state), sigma**2 * B @ B.T
    moments = []
    for _ in range(steps):
        P = M @ P @ M.T + Q
        moments.append(P[:2, :2].copy())
    return moments


def stationary_moment(recursion: Method, factor: float, sigma: float) -> Matrix:
    """E[x x^T] of a mode's anchor in the long run; infinite where the recursion does not contract."""
    M, B = recursion.transition(factor), recursion.noise(factor)
    if max(abs(np.linalg.eigvals(M))) >= 1:
        return np.full((2, 2), np.inf)
    n = len(M)
    Q = sigma**2 * B @ B.T
    return np.linalg.solve(np.eye(n * n) - np.kron(M, M), Q.ravel()).reshape(n, n)[:2, :2]


def simulate(
    name: str, A: Matrix, h: float, topology: Topology, rounds: int, sigma: float, steps: int, runs: int, seed: int
) -> tuple[Matrix, Matrix]:
    """All workers, many runs: |F(mean)|^2 and the mean squared distance to consensus, by step, averaged over runs."""
    workers, draw = topology.workers, np.random.default_rng(seed)
    x = np.broadcast_to(START, (runs, workers, 2)).copy()
    u = np.zeros_like(x)
    residuals, distances = np.empty(steps), np.empty(steps)
    period = topology.period
    mixing = [topology.mixing_matrix(round) for round in range(period)] if period else None

    def noise() -> Matrix:
        return sigma * draw.standard_normal(x.shape)

    for step in range(steps):
        if name == "optimistic":
            u = h * ((x - u) @ A.T + noise())
            x = x - u
        elif name == "extragradient":
            ahead = x - h * (x @ A.T + noise())
            x = x - h * (ahead @ A.T + noise())
        else:
            x = x - h * (x @ A.T + noise())
        for round in range(step * rounds, (step + 1) * rounds):
            W = topology.mixing_matrix(round) if mixing is None else mixing[round % len(mixing)]
            x = W @ x
        mean = x.mean(1, keepdims=True)
        residuals[step] = np.square(mean @ A.T).sum(-1).mean()
        distances[step] = np.square(x - mean).sum(-1).mean()
    return residuals, distances


def by_iteration(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The residual of the mean by iteration, measured and predicted, of every method on every problem."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    topology = build_topology("ring", arguments.workers)
    for problem, m in PROBLEMS.items():
        A = operator(m)
        found[problem] = {}
        for name in METHODS:
            recursion = method(name, A, arguments.step)
            measured, _ = simulate(
                name, A, arguments.step, topology, 1, arguments.sigma, arguments.steps, arguments.runs, 0
            )
            moments = predicted_moments(
                recursion, 1.0, arguments.sigma / arguments.workers**0.5, arguments.steps, START
            )
            predicted = [float(np.trace(A @ P @ A.T)) for P in moments]
            found[problem][name] = {"measured": measured.tolist(), "predicted": predicted}
        print(f"residual by iteration: {problem}", file=sys.stderr, flush=True)
    return found


def by_workers(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Where the residual ends, by N: noise over N, whatever the graph."""
    A, rows = operator(PROBLEMS["bilinear"]), []
    recursion = method("optimistic", A, arguments.step)
    for workers in (1, 2, 4, 8, 16, 32):
        topology = build_topology("ring", workers)
        steps = 2 * arguments.steps
        measured, _ = simulate("optimistic", A, arguments.step, topology, 1, arguments.sigma, steps, arguments.runs, 1)
        P = stationary_moment(recursion, 1.0, arguments.sigma / workers**0.5)
        rows.append(
            {
                "workers": workers,
                "measured": float(measured[-steps // 4 :].mean()),
                "predicted": float(np.trace(A @ P @ A.T)),
            }
        )
    print("residual by number of workers", file=sys.stderr, flush=True)
    return rows


def by_rounds(arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """The distance to consensus in the long run, by graph and t."""
    A, rows = operator(PROBLEMS["bilinear"]), []
    recursion = method("optimistic", A, arguments.step)
    for name in ("ring", "exponential", "one_peer_exponential", "random_matching"):
        topology = build_topology(name, arguments.workers)
        for rounds in (1, 2, 3, 5):
            _, distances = simulate(
                "optimistic", A, arguments.step, topology, rounds, arguments.sigma, arguments.steps, arguments.runs, 2
            )
            predicted = float("nan")  # where W changes from round to round, the modes do not stay apart
            if topology.period == 1:
                predicted = consensus_moment(topology, recursion, rounds, arguments.sigma)
            rows.append(
                {
                    "topology": name,
                    "rounds": rounds,
                    "rate": topology.consensus_rate() ** rounds,
                    "measured": float(distances[-arguments.steps // 2 :].mean()),
                    "predicted": predicted,
                }
            )
        print(f"distance to consensus: {name}", file=sys.stderr, flush=True)
    return rows


def consensus_moment(topology: Topology, recursion: Method, rounds: int, sigma: float) -> float:
    """Mean squared distance to consensus in the long run: the sum over the modes other than the mean."""
    eigenvalues = np.sort(np.linalg.eigvalsh(topology.mixing_matrix(0)))[:-1]
    moments = [stationary_moment(recursion, float(value) ** rounds, sigma) for value in eigenvalues]
    return sum(float(np.trace(moment)) for moment in moments) / topology.workers


def by_gap(arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """The distance to consensus in the long run against the spectral gap, t = 1, sixteen workers."""
    A, rows = operator(PROBLEMS["bilinear"]), []
    recursion = method("optimistic", A, arguments.step)
    for name in ("ring", "torus", "exponential"):
        topology = build_topology(name, 16)
        _, distances = simulate(
            "optimistic", A, arguments.step, topology, 1, arguments.sigma, arguments.steps, arguments.runs, 3
        )
        rows.append(
            {
                "topology": name,
                "gap": topology.spectral_gap(),
                "measured": float(distances[-arguments.steps // 2 :].mean()),
                "predicted": consensus_moment(topology, recursion, 1, arguments.sigma),
            }
        )
    print("distance to consensus by spectral gap", file=sys.stderr, flush=True)
    return rows


def by_accuracy(arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """What it takes until the squared residual is epsilon^2: images a worker and step, and steps.

    On the bilinear problem a step of size h contracts by h^2 and adds noise of h^2: where it ends does not depend on
    h, so no smaller step helps. Averaging b samples a step does, and so do N workers: an accuracy needs a batch that
    grows as 1 / (N epsilon^2).
    """
    rows: list[dict[str, float | str]] = []
    for problem in ("bilinear", "strongly monotone", "weak Minty"):
        A = operator(PROBLEMS[problem])
        recursion = method("optimistic", A, arguments.step)
        for workers in (1, 8):
            P = stationary_moment(recursion, 1.0, arguments.sigma / workers**0.5)
            for epsilon in (0.1, 0.05, 0.025, 0.0125):
                batch = max(1, math.ceil(2 * float(np.trace(A @ P @ A.T)) / epsilon**2))
                sigma = arguments.sigma / batch**0.5
                predicted = iterations_until(recursion, A, sigma / workers**0.5, epsilon)
                measured, _ = simulate(
                    "optimistic", A, arguments.step, build_topology("ring", workers), 1, sigma,
                    int(1.3 * predicted) + 10, arguments.runs, 4,
                )  # fmt: skip
                below = np.flatnonzero(measured <= epsilon**2)
                rows.append(
                    {
                        "problem": problem,
                        "workers": workers,
                        "epsilon": epsilon,
                        "batch": batch,
                        "measured": float(below[0] + 1) if len(below) else float("nan"),
                        "predicted": float(predicted),
                    }
                )
        print(f"what an accuracy takes: {problem}", file=sys.stderr, flush=True)
    return rows


def iterations_until(recursion: Method, A: Matrix, sigma: float, epsilon: float, most: int = 2_000_000) -> int:
    """The first iteration after which E|F(mean)|^2 is at most epsilon^2."""
    M, B = recursion.transition(1.0), recursion.noise(1.0)
    state = np.concatenate([START, np.zeros(len(M) - 2)])
    P, Q = np.outer(state, state), sigma**2 * B @ B.T
    for iteration in range(1, most):
        P = M @ P @ M.T + Q
        if float(np.trace(A @ P[:2, :2] @ A.T)) <= epsilon**2:
            return iteration
    raise RuntimeError(f"no accuracy of {epsilon} within {most} iterations")


def draw(results: dict[str, object], path: Path) -> None:
    """One picture of everything: lines are measured, dots predicted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 4, figsize=(20, 9))
    iterations: dict[str, dict[str, dict[str, list[float]]]] = results["by_iteration"]  # type: ignore[assignment]
    colors = dict(zip(METHODS, ("tab:red", "tab:green", "tab:blue"), strict=True))
    for panel, (problem, methods) in zip(panels[0], iterations.items(), strict=True):
        for name, curves in methods.items():
            ks = np.arange(1, len(curves["measured"]) + 1)
            panel.loglog(ks, curves["measured"], color=colors[name], label=name, linewidth=2)
            some = np.unique(np.geomspace(1, len(ks), 25).astype(int)) - 1
            panel.loglog(ks[some], np.array(curves["predicted"])[some], "o", color=colors[name], markersize=4)
        panel.set(title=f"{problem}, m = {PROBLEMS[problem]:g}", xlabel="iteration", ylabel=r"$|F(\bar x)|^2$")
        panel.set_ylim(1e-7, 1e3)
        panel.grid(alpha=0.3)
    panels[0, 0].legend()
    workers: list[dict[str, float]] = results["by_workers"]  # type: ignore[assignment]
    panel = panels[1, 1]
    ns = [row["workers"] for row in workers]
    panel.loglog(ns, [row["measured"] for row in workers], color="tab:blue", linewidth=2)
    panel.loglog(ns, [row["predicted"] for row in workers], "o", color="tab:blue")
    panel.set(title="bilinear: where it ends, by N", xlabel="workers", ylabel=r"$|F(\bar x)|^2$")
    panel.grid(alpha=0.3)
    panel = panels[1, 2]
    rows: list[dict[str, float | str]] = results["by_rounds"]  # type: ignore[assignment]
    for name in dict.fromkeys(row["topology"] for row in rows):
        mine = [row for row in rows if row["topology"] == name]
        (line,) = panel.semilogy([r["rounds"] for r in mine], [r["measured"] for r in mine], label=str(name))
        panel.semilogy([r["rounds"] for r in mine], [r["predicted"] for r in mine], "o", color=line.get_color())
    panel.set(title="bilinear: distance to consensus", xlabel="rounds an iteration, t", ylabel="mean squared distance")
    panel.set_ylim(1e-11, 1e-3)  # one-peer exponential agrees exactly after log2 N rounds
    panel.legend()
    panel.grid(alpha=0.3)
    accuracies: list[dict[str, float | str]] = results["by_accuracy"]  # type: ignore[assignment]
    panel = panels[1, 0]
    for problem, workers_ in dict.fromkeys((row["problem"], row["workers"]) for row in accuracies):
        mine = [row for row in accuracies if (row["problem"], row["workers"]) == (problem, workers_)]
        epsilons = [row["epsilon"] for row in mine]
        samples = {kind: [row["batch"] * row[kind] for row in mine] for kind in ("measured", "predicted")}  # type: ignore[operator]
        (line,) = panel.loglog(epsilons, samples["measured"], label=f"{problem}, N = {workers_}")
        panel.loglog(epsilons, samples["predicted"], "o", color=line.get_color())
    panel.set(title="samples a worker needs for an accuracy", xlabel=r"$\epsilon$", ylabel="batch x steps")
    panel.legend()
    panel.grid(alpha=0.3)
    gaps: list[dict[str, float | str]] = results["by_gap"]  # type: ignore[assignment]
    panel = panels[1, 3]
    gaps = sorted(gaps, key=lambda row: row["gap"])
    panel.loglog([row["gap"] for row in gaps], [row["measured"] for row in gaps], color="tab:blue")
    panel.loglog([row["gap"] for row in gaps], [row["predicted"] for row in gaps], "o", color="tab:blue")
    for row in gaps:
        panel.annotate(str(row["topology"]), (row["gap"], row["measured"]), textcoords="offset points", xytext=(5, 5))
    panel.set(title="16 workers, t = 1", xlabel="spectral gap", ylabel="mean squared distance to consensus")
    panel.grid(alpha=0.3)
    figure.suptitle("Decentralized optimistic descent: measured (lines) and predicted (dots)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(results: dict[str, object], steps: int) -> str:
    """The figures as tables."""
    iterations: dict[str, dict[str, dict[str, list[float]]]] = results["by_iteration"]  # type: ignore[assignment]
    first = [
        [problem, name, f"{curves['measured'][steps // 10 - 1]:.3g}", f"{curves['predicted'][steps // 10 - 1]:.3g}",
         f"{curves['measured'][-1]:.3g}", f"{curves['predicted'][-1]:.3g}"]
        for problem, methods in iterations.items()
        for name, curves in methods.items()
    ]  # fmt: skip
    workers: list[dict[str, float]] = results["by_workers"]  # type: ignore[assignment]
    second = [[f"{row['workers']:g}", f"{row['measured']:.4g}", f"{row['predicted']:.4g}"] for row in workers]
    rows: list[dict[str, float | str]] = results["by_rounds"]  # type: ignore[assignment]
    third = [
        [str(row["topology"]), str(row["rounds"]), f"{row['rate']:.3f}", f"{row['measured']:.3g}",
         "" if row["predicted"] != row["predicted"] else f"{row['predicted']:.3g}"]
        for row in rows
    ]  # fmt: skip
    accuracies: list[dict[str, float | str]] = results["by_accuracy"]  # type: ignore[assignment]
    fourth = [
        [str(row["problem"]), str(row["workers"]), f"{row['epsilon']:g}", str(row["batch"]),
         f"{row['measured']:.0f}", f"{row['predicted']:.0f}"]
        for row in accuracies
    ]  # fmt: skip
    gaps: list[dict[str, float | str]] = results["by_gap"]  # type: ignore[assignment]
    fifth = [
        [str(row["topology"]), f"{row['gap']:.3f}", f"{row['measured']:.3g}", f"{row['predicted']:.3g}"] for row in gaps
    ]
    heading = ["problem", "method", f"after {steps // 10}", "predicted", f"after {steps}", "predicted"]
    return "\n\n".join(
        [
            "### Squared residual of the mean",
            markdown_table(heading, first),
            "### Where it ends on the bilinear problem, by number of workers",
            markdown_table(["workers", "measured", "predicted"], second),
            "### Mean squared distance to consensus on the bilinear problem, by graph and t",
            markdown_table(["topology", "t", "rate^t", "measured", "predicted"], third),
            "### The same by spectral gap, 16 workers, t = 1",
            markdown_table(["topology", "gap", "measured", "predicted"], fifth),
            "### Steps until the squared residual is epsilon^2, with a batch whose noise leaves half of that",
            markdown_table(["problem", "workers", "epsilon", "batch", "measured", "predicted"], fourth),
        ]
    )


def main() -> None:
    """Simulate, predict, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--step", type=float, default=0.1, help="the step size")
    parser.add_argument("--sigma", type=float, default=0.05, help="standard deviation of the noise in a coordinate")
    parser.add_argument("--runs", type=int, default=200, help="averaged over")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with np.errstate(over="ignore", invalid="ignore"):
        results: dict[str, object] = {
            "by_iteration": by_iteration(arguments),
            "by_workers": by_workers(arguments),
            "by_rounds": by_rounds(arguments),
            "by_gap": by_gap(arguments),
            "by_accuracy": by_accuracy(arguments),
        }
    tables = report(results, arguments.steps)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    thinned = {**results, "by_iteration": "every curve is a recursion; run the command"}
    path = save_results("theory", settings, thinned, arguments.output)
    draw(results, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(f"`python benchmarks/theory.py`; settings {settings}\n\n{tables}\n")
    print(f"{tables}\n\n{path}")


if __name__ == "__main__":
    main()
