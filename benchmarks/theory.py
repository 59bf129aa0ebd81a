r"""Does decentralized optimistic descent find a stationary point, how fast, and what do N, t and the graph change?

    python benchmarks/theory.py

Min-max problems with operators of its own at every worker, `F_i(z) = A_i z + b_i`, and noise of its own. What is sought
is a zero of their average `F`; the residual is `|F(mean over workers)|^2`. Where workers are alike:

- **bilinear** `x y`: monotone, nothing strongly; gradient descent-ascent diverges;
- **strongly monotone** `m x^2 / 2 + x y - m y^2 / 2`;
- **weak Minty** the same with m < 0: not monotone, `<F(z), z> = m / (1 + m^2) |F(z)|^2`, the condition under which
  optimistic methods are known to converge when |m| is small against the step;
- **beyond it**: the same with an m too large for the step.

And where they differ, as with shards of different classes: `A_i` and `b_i` are drawn around those of `x y`, which are
their average. Then the mean feels the graph, because each worker's operator is taken where that worker stands.

All this is linear, so every curve has its exact prediction beside it. With `s` all workers' anchors, their last updates
and a constant 1, a step and a round are

    s <- L s + B noise,    s <- V s,   V = W on the anchors, 1 elsewhere

so second moments follow `P <- L P L^T + sigma^2 B B^T` and `P <- V P V^T`; where W is drawn at random, the latter is
averaged over all it may be. The measured side simulates all workers in float64 with the mixing matrices of
`lightning_decgan.topology`, many runs; nothing is fitted. The simulation of DPOSG is the recursion of `OptimisticSGD`
and the gossiper in the exact order, which tests/distributed/test_dposg.py runs with real processes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from recording import RESULTS, markdown_table, save_results

from lightning_decgan.topology import Topology, build_topology

Array = npt.NDArray[np.float64]

STRENGTHS = {"bilinear": 0.0, "strongly monotone": 0.2, "weak Minty": -0.04, "beyond it": -0.25}
"""The m of each problem whose workers are alike."""
METHODS = ("descent-ascent", "extragradient", "optimistic")
START = np.array([1.0, 1.0])
GROUPS = 20
"""Groups of runs with random graphs of their own."""
SPREAD, LARGE_SPREAD = 0.5, 0.7
"""By how much workers differ (see `Problem.different`): so much that graphs matter; so much that t decides."""


def operator(m: float) -> Array:
    """A of `f(x, y) = m x^2 / 2 + x y - m y^2 / 2`: the gradient in x, and minus that in y."""
    return np.array([[m, 1.0], [-1.0, m]])


@dataclass(frozen=True)
class Problem:
    """What every worker's operator is: `F_i(z) = operators[i] @ z + offsets[i]`.

    Attributes:
        operators: of shape (N, 2, 2).
        offsets: of shape (N, 2).
    """

    operators: Array
    offsets: Array

    @classmethod
    def alike(cls, m: float, workers: int) -> Problem:
        """The same operator at every worker."""
        return cls(np.broadcast_to(operator(m), (workers, 2, 2)), np.zeros((workers, 2)))

    @classmethod
    def different(cls, spread: float, workers: int, seed: int = 0) -> Problem:
        """Around `x y`, which is their average; entries differ by `spread` (their standard deviation)."""
        draw = np.random.default_rng(seed)
        operators, offsets = draw.standard_normal((workers, 2, 2)), draw.standard_normal((workers, 2))
        operators, offsets = (spread * (drawn - drawn.mean(0)) for drawn in (operators, offsets))
        return cls(operator(0.0) + operators, offsets)

    @property
    def workers(self) -> int:
        """N."""
        return len(self.operators)

    def at(self, points: Array) -> Array:
        """Every worker's own operator at its own point; points of shape (..., N, 2)."""
        return np.einsum("nij,...nj->...ni", self.operators, points) + self.offsets

    def residual(self, mean: Array) -> Array:
        """`|F(mean)|^2` of the average operator; mean of shape (..., 2)."""
        return np.square(mean @ self.operators.mean(0).T + self.offsets.mean(0)).sum(-1)


@dataclass(frozen=True)
class Recursion:
    """A method's step on all workers' states at once, for the moments.

    The state is the anchors (2N), the last updates (2N, of the optimistic method), and a 1.

    Attributes:
        transition: L.
        noise: B, its columns for noises of standard deviation 1.
    """

    transition: Array
    noise: Array

    @classmethod
    def of(cls, name: str, problem: Problem, h: float) -> Recursion:
        """The step of size `h` of the method `name`."""
        n = 2 * problem.workers
        D, c, one = np.zeros((n, n)), problem.offsets.reshape(n, 1), np.eye(n)
        for worker, A in enumerate(problem.operators):
            D[2 * worker : 2 * worker + 2, 2 * worker : 2 * worker + 2] = A
        if name == "optimistic":
            # u' = h (D (x - u) + c + noise), x' = x - u'
            L = np.block([[one - h * D, h * D, -h * c], [h * D, -h * D, h * c]])
            B = np.vstack([-h * one, h * one])
        elif name == "extragradient":
            # x' = x - h (D (x - h (D x + c + noise)) + c + noise')
            L = np.hstack([one - h * D + h * h * D @ D, h * h * D @ c - h * c])
            B = np.hstack([h * h * D, -h * one])
        else:
            L, B = np.hstack([one - h * D, -h * c]), -h * one
        constant = np.eye(1, L.shape[1], L.shape[1] - 1)
        return cls(np.vstack([L, constant]), np.vstack([B, np.zeros((1, B.shape[1]))]))

    def lift(self, W: Array) -> Array:
        """V: the mixing matrix on the anchors, nothing elsewhere."""
        V = np.eye(len(self.transition))
        V[: 2 * len(W), : 2 * len(W)] = np.kron(W, np.eye(2))
        return V


def perfect_matchings(workers: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """All ways to pair up an even number of workers.

    Example:
        >>> len(list(perfect_matchings(range(8))))
        105
    """
    if not workers:
        yield []
        return
    first, *others = workers
    for partner in others:
        rest = [worker for worker in others if worker != partner]
        yield from ([(first, partner), *pairs] for pairs in perfect_matchings(rest))


def all_draws(topology: Topology) -> list[Array]:
    """The mixing matrices among which a random topology chooses with equal chances.

    Raises:
        ValueError: it is neither of the random topologies whose draws are known here, or pairs an odd number.
    """
    workers = topology.workers
    if topology.name == "random_matching" and workers % 2 == 0:
        matrices = []
        for pairs in perfect_matchings(range(workers)):
            W = np.zeros((workers, workers))
            for pair in pairs:
                W[np.ix_(pair, pair)] = 0.5
            matrices.append(W)
        return matrices
    if topology.name == "random_ring":
        ring = build_topology("ring", workers).mixing_matrix(0)
        places = (np.array([0, *rest]) for rest in itertools.permutations(range(1, workers)))
        return [ring[np.ix_(order, order)] for order in places if workers < 3 or order[1] < order[-1]]
    raise ValueError(
        f"all draws are known of random_ring and, for an even number of workers, random_matching, found {topology!r}"
    )


def moment_mixing(recursion: Recursion, topology: Topology, rounds: int) -> Callable[[Array, int], Array]:
    """`(P, step) -> P` after the rounds of that step: exact, over all that a random topology may draw."""
    if topology.period is not None:
        matrices = [recursion.lift(topology.mixing_matrix(round)) for round in range(topology.period)]

        def mix(P: Array, step: int) -> Array:
            for round in range(step * rounds, (step + 1) * rounds):
                V = matrices[round % len(matrices)]
                P = V @ P @ V.T
            return P

        return mix

    # E[W P W^T] = E[W x W] P, and E[W] beside it. A random ring keeps its draw for the rounds of a step.
    draws, kept = all_draws(topology), topology.name == "random_ring"
    powers = [np.linalg.matrix_power(W, rounds) for W in draws] if kept else draws
    twice = sum(np.kron(W, W) for W in powers) / len(powers)
    once = sum(powers) / len(powers)
    if not kept:
        twice, once = np.linalg.matrix_power(twice, rounds), np.linalg.matrix_power(once, rounds)
    workers, anchors = topology.workers, 2 * topology.workers
    pairs = twice.reshape((workers,) * 4)
    lifted = recursion.lift(once)

    def mix_on_average(P: Array, step: int) -> Array:
        mixed = lifted @ P @ lifted.T  # right but for the anchors' own block
        blocks = P[:anchors, :anchors].reshape(workers, 2, workers, 2)
        mixed[:anchors, :anchors] = np.einsum("ikjl,jalb->iakb", pairs, blocks, optimize=True).reshape(anchors, anchors)
        return mixed

    return mix_on_average


def predict(
    name: str, problem: Problem, h: float, topology: Topology, rounds: int, sigma: float
) -> Iterator[tuple[float, float]]:
    """E|F(mean)|^2 and the mean squared distance to consensus after step 1, 2, ..., without end."""
    recursion = Recursion.of(name, problem, h)
    mix = moment_mixing(recursion, topology, rounds)
    n, size = 2 * problem.workers, len(recursion.transition)
    average = np.kron(np.ones((1, problem.workers)) / problem.workers, np.eye(2))
    residual = np.hstack([problem.operators.mean(0) @ average, np.zeros((2, size - n))])
    residual[:, -1] = problem.offsets.mean(0)
    state = np.zeros(size)
    state[:n], state[-1] = np.tile(START, problem.workers), 1.0
    P, Q = np.outer(state, state), sigma**2 * recursion.noise @ recursion.noise.T
    step = 0
    while True:
        P = mix(recursion.transition @ P @ recursion.transition.T + Q, step)
        anchors = P[:n, :n]
        spread = np.trace(anchors) / problem.workers - np.trace(average @ anchors @ average.T)
        yield float(np.trace(residual @ P @ residual.T)), max(float(spread), 0.0)
        step += 1


def simulate(
    name: str,
    problem: Problem,
    h: float,
    topologies: Sequence[Topology],
    rounds: int,
    sigma: float,
    steps: int,
    runs: int,
    seed: int,
) -> tuple[Array, Array]:
    """All workers, many runs: |F(mean)|^2 and the mean squared distance to consensus, by step, averaged over runs.

    `topologies` has one for each of equal groups of runs: random graphs of their own.
    """
    draw, workers = np.random.default_rng(seed), problem.workers
    x = np.broadcast_to(START, (len(topologies), -(-runs // len(topologies)), workers, 2)).copy()
    u = np.zeros_like(x)
    residuals, distances = np.empty(steps), np.empty(steps)
    known: dict[int, Array] = {}

    def gradient(at: Array) -> Array:
        return problem.at(at) + sigma * draw.standard_normal(at.shape)

    def mixing(round: int) -> Array:
        period = topologies[0].period
        if period is None:
            return np.stack([topology.mixing_matrix(round) for topology in topologies])[:, None]
        if round % period not in known:
            known[round % period] = topologies[0].mixing_matrix(round)
        return known[round % period]

    for step in range(steps):
        if name == "optimistic":
            u = h * gradient(x - u)
            x = x - u
        elif name == "extragradient":
            x = x - h * gradient(x - h * gradient(x))
        else:
            x = x - h * gradient(x)
        for round in range(step * rounds, (step + 1) * rounds):
            x = mixing(round) @ x
        mean = x.mean(-2)
        residuals[step] = problem.residual(mean).mean()
        distances[step] = np.square(x - mean[..., None, :]).sum(-1).mean()
    return residuals, distances


Rows = list[dict[str, Any]]


def curves(
    name: str, problem: Problem, graph: str, rounds: int, arguments: argparse.Namespace, seed: int
) -> dict[str, dict[str, list[float]]]:
    """Residual and distance by iteration, measured and predicted."""
    h, sigma, steps = arguments.step, arguments.sigma, arguments.steps
    groups = GROUPS if graph.startswith("random") else 1
    topologies = [build_topology(graph, problem.workers, seed=group, rounds=rounds) for group in range(groups)]
    measured = simulate(name, problem, h, topologies, rounds, sigma, steps, arguments.runs, seed)
    predicted = zip(*itertools.islice(predict(name, problem, h, topologies[0], rounds, sigma), steps), strict=True)
    return {
        kind: {"measured": found.tolist(), "predicted": list(exact)}
        for kind, found, exact in zip(("residual", "distance"), measured, predicted, strict=True)
    }


def ends(found: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Means over the second half, measured and predicted."""
    return {
        f"{kind}_{side}": float(np.mean(values[len(values) // 2 :]))
        for kind, sides in found.items()
        for side, values in sides.items()
    }


def by_iteration(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The residual of the mean by iteration of every method on every problem whose workers are alike."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for problem, m in STRENGTHS.items():
        alike = Problem.alike(m, arguments.workers)
        found[problem] = {name: curves(name, alike, "ring", 1, arguments, 0)["residual"] for name in METHODS}
        _say(f"residual by iteration: {problem}")
    return found


def by_workers(arguments: argparse.Namespace) -> Rows:
    """Where the residual ends, by N: noise over N, whatever the graph."""
    rows = []
    for workers in (1, 2, 4, 8, 16, 32):
        found = curves("optimistic", Problem.alike(0.0, workers), "ring", 1, arguments, 1)
        rows.append({"workers": workers, **ends(found)})
    _say("residual by number of workers")
    return rows


def by_rounds(arguments: argparse.Namespace) -> Rows:
    """Workers that differ: where residual and distance end, by graph and t."""
    problem, rows = Problem.different(SPREAD, arguments.workers), []
    for name in ("ring", "random_ring", "exponential", "one_peer_exponential", "random_matching"):
        for rounds in (1, 2, 3, 5):
            found = curves("optimistic", problem, name, rounds, arguments, 2)
            rate = build_topology(name, arguments.workers, rounds=rounds).consensus_rate() ** rounds
            rows.append({"topology": name, "rounds": rounds, "rate": rate, **ends(found)})
        _say(f"workers that differ: {name}")
    return rows


def by_rounds_and_iteration(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Workers that differ so much that one round an iteration on a ring is not enough: the residual by iteration."""
    problem, topology = Problem.different(LARGE_SPREAD, arguments.workers), build_topology("ring", arguments.workers)
    found = {}
    for rounds in (1, 2, 3, 5):
        label = f"t = {rounds}, spectral radius {spectral_radius(problem, arguments.step, topology, rounds):.4f}"
        found[label] = curves("optimistic", problem, "ring", rounds, arguments, 5)["residual"]
    _say("workers that differ much, on a ring")
    return found


def spectral_radius(problem: Problem, h: float, topology: Topology, rounds: int) -> float:
    """Of an iteration of the optimistic method on a fixed graph: above 1 the expected state diverges."""
    recursion = Recursion.of("optimistic", problem, h)
    V = np.linalg.matrix_power(recursion.lift(topology.mixing_matrix(0)), rounds)
    return float(max(abs(np.linalg.eigvals((V @ recursion.transition)[:-1, :-1]))))


def by_gap(arguments: argparse.Namespace) -> Rows:
    """Sixteen workers that differ: where residual and distance end against the spectral gap."""
    problem, rows = Problem.different(SPREAD, 16), []
    for name in ("ring", "torus", "exponential", "complete"):
        found = curves("optimistic", problem, name, 1, arguments, 3)
        rows.append({"topology": name, "gap": build_topology(name, 16).spectral_gap(), **ends(found)})
    _say("workers that differ, by spectral gap")
    return rows


def by_accuracy(arguments: argparse.Namespace) -> Rows:
    """What it takes until the squared residual is epsilon^2: images a worker and step, and steps.

    On the bilinear problem a step of size h contracts by h^2 and adds noise of h^2: where it ends does not depend on
    h, so no smaller step helps. Averaging b samples a step does, and so do N workers: an accuracy needs a batch that
    grows as 1 / (N epsilon^2).
    """
    rows: Rows = []
    h = arguments.step
    for name in ("bilinear", "strongly monotone", "weak Minty"):
        for workers in (1, 8):
            problem, topology = Problem.alike(STRENGTHS[name], workers), build_topology("ring", workers)
            left = stationary_residual(problem, h, arguments.sigma)
            if math.isinf(left):
                _say(f"{name}: steps of {h} do not converge, so they reach no accuracy")
                continue
            for epsilon in (0.1, 0.05, 0.025, 0.0125):
                batch = max(1, math.ceil(2 * left / epsilon**2))
                sigma = arguments.sigma / batch**0.5
                predicted = iterations_until(problem, h, sigma, epsilon)
                measured, _ = simulate(
                    "optimistic", problem, h, [topology], 1, sigma, int(1.3 * predicted) + 10, arguments.runs, 4
                )
                below = np.flatnonzero(measured <= epsilon**2)
                rows.append(
                    {
                        "problem": name,
                        "workers": workers,
                        "epsilon": epsilon,
                        "batch": batch,
                        "measured": float(below[0] + 1) if len(below) else float("nan"),
                        "predicted": float(predicted),
                    }
                )
        _say(f"what an accuracy takes: {name}")
    return rows


def stationary_residual(problem: Problem, h: float, sigma: float) -> float:
    """E|F(mean)|^2 of the optimistic method in the long run, of workers that are alike; infinite without contraction.

    Their mean is a single worker whose noise is N times smaller.
    """
    alone = Problem(problem.operators[:1], problem.offsets[:1])
    recursion = Recursion.of("optimistic", alone, h)
    M, B = recursion.transition[:-1, :-1], recursion.noise[:-1]
    if max(abs(np.linalg.eigvals(M))) >= 1:
        return math.inf
    Q = sigma**2 / problem.workers * B @ B.T
    P = np.linalg.solve(np.eye(M.size) - np.kron(M, M), Q.ravel()).reshape(M.shape)
    return float(np.trace(alone.operators[0] @ P[:2, :2] @ alone.operators[0].T))


def iterations_until(problem: Problem, h: float, sigma: float, epsilon: float, most: int = 2_000_000) -> int:
    """The first iteration of workers that are alike after which E|F(mean)|^2 is at most epsilon^2.

    Raises:
        RuntimeError: there is none among the first `most`.
    """
    alone = Problem(problem.operators[:1], problem.offsets[:1])
    predicted = predict("optimistic", alone, h, build_topology("ring", 1), 1, sigma / problem.workers**0.5)
    for iteration, (residual, _) in enumerate(itertools.islice(predicted, most), start=1):
        if residual <= epsilon**2:
            return iteration
    raise RuntimeError(f"no accuracy of {epsilon} within {most} iterations")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def draw(results: dict[str, Any], path: Path) -> None:
    """One picture of everything: lines are measured, dots predicted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(3, 3, figsize=(17, 14))
    iterations, at = results["by_iteration"], iter(panels.flat)
    for problem, methods in iterations.items():
        panel = next(at)
        _plot_curves(panel, methods, dict(zip(METHODS, ("tab:red", "tab:green", "tab:blue"), strict=True)))
        panel.set(title=f"workers alike, {problem}, m = {STRENGTHS[problem]:g}", ylim=(1e-5, 1e3))
    panel = next(at)
    _plot_ends(panel, [{**row, "of": "optimistic"} for row in results["by_workers"]], "workers", "residual", log=True)
    panel.set(title="workers alike, bilinear: where it ends", xlabel="workers, N", ylabel=_RESIDUAL)
    panel = next(at)
    for of in dict.fromkeys((row["problem"], row["workers"]) for row in results["by_accuracy"]):
        mine = [row for row in results["by_accuracy"] if (row["problem"], row["workers"]) == of]
        epsilons = [row["epsilon"] for row in mine]
        (line,) = panel.loglog(epsilons, [r["batch"] * r["measured"] for r in mine], label=f"{of[0]}, N = {of[1]}")
        panel.loglog(epsilons, [r["batch"] * r["predicted"] for r in mine], "o", color=line.get_color())
    panel.set(title="workers alike: samples a worker needs", xlabel=r"accuracy $\epsilon$", ylabel="batch x steps")
    panel.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons], minor=False)
    panel.set_xticks([], minor=True)
    panel = next(at)
    _plot_curves(panel, results["by_rounds_and_iteration"], {})
    panel.set(title="workers differ much: a ring with t rounds an iteration")
    panel = next(at)
    _plot_ends(panel, [{**row, "of": row["topology"]} for row in results["by_rounds"]], "rounds", "residual", log=False)
    panel.set(title="workers differ: where it ends", xlabel="rounds an iteration, t", ylabel=_RESIDUAL)
    panel = next(at)
    gaps = sorted(results["by_gap"], key=lambda row: row["gap"])
    for kind, color in (("residual", "tab:blue"), ("distance", "tab:orange")):
        _plot_ends(panel, [{**row, "of": kind} for row in gaps], "gap", kind, log=False, color=color)
    panel.set_xticks(
        [row["gap"] for row in gaps], [f"{row['topology']} {row['gap']:.2f}" for row in gaps], rotation=25, ha="right"
    )
    panel.set(
        title="16 workers differ, t = 1: where it ends", xlabel="spectral gap", ylabel="squared residual, distance"
    )
    panel.set_ylim(1e-4, None)  # on the complete graph there is no distance
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle("Decentralized optimistic descent: measured (lines) and predicted (dots)")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=100)
    plt.close(figure)


_RESIDUAL = r"$|F(\bar x)|^2$"


def _plot_curves(panel: Any, methods: dict[str, dict[str, list[float]]], colors: dict[str, str]) -> None:
    """By iteration, both scales logarithmic."""
    for name, sides in methods.items():
        steps = np.arange(1, len(sides["measured"]) + 1)
        (line,) = panel.loglog(steps, sides["measured"], label=name, linewidth=2, color=colors.get(name))
        some = np.unique(np.geomspace(1, len(steps), 25).astype(int)) - 1
        panel.loglog(steps[some], np.array(sides["predicted"])[some], "o", color=line.get_color(), markersize=4)
    panel.set(xlabel="iteration", ylabel=_RESIDUAL)


def _plot_ends(panel: Any, rows: Rows, by: str, kind: str, log: bool, color: str | None = None) -> None:
    """A line for each `row["of"]`."""
    for name in dict.fromkeys(row["of"] for row in rows):
        mine = [row for row in rows if row["of"] == name]
        plot = panel.loglog if log else panel.semilogy
        (line,) = plot([row[by] for row in mine], [row[f"{kind}_measured"] for row in mine], label=name, color=color)
        plot([row[by] for row in mine], [row[f"{kind}_predicted"] for row in mine], "o", color=line.get_color())


def report(results: dict[str, Any], steps: int) -> str:
    """The figures as tables."""
    both = ["measured", "predicted"]
    first = [
        [problem, name, *(f"{curves[side][at - 1]:.3g}" for at in (steps // 10, steps) for side in both)]
        for problem, methods in results["by_iteration"].items()
        for name, curves in methods.items()
    ]
    second = [[f"{row['workers']:g}", *_figures(row, "residual")] for row in results["by_workers"]]
    third = [
        [
            row["topology"],
            str(row["rounds"]),
            f"{row['rate']:.3f}",
            *_figures(row, "residual"),
            *_figures(row, "distance"),
        ]
        for row in results["by_rounds"]
    ]
    fourth = [
        [row["topology"], f"{row['gap']:.3f}", *_figures(row, "residual"), *_figures(row, "distance")]
        for row in results["by_gap"]
    ]
    last = [
        [label, *(f"{curves[side][at - 1]:.3g}" for at in (steps // 10, steps) for side in both)]
        for label, curves in results["by_rounds_and_iteration"].items()
    ]
    fifth = [
        [row["problem"], str(row["workers"]), f"{row['epsilon']:g}", str(row["batch"]), f"{row['measured']:.0f}",
         f"{row['predicted']:.0f}"]
        for row in results["by_accuracy"]
    ]  # fmt: skip
    ends_heading = ["residual", "predicted", "distance", "predicted"]
    times_heading = [f"after {steps // 10}", "predicted", f"after {steps}", "predicted"]
    return "\n\n".join(
        [
            "### Workers alike: squared residual of the mean",
            markdown_table(["problem", "method", *times_heading], first),
            "### Workers alike, bilinear: where the squared residual ends, by number of workers",
            markdown_table(["workers", *both], second),
            "### Workers differ: where squared residual and squared distance to consensus end, by graph and t",
            markdown_table(["topology", "t", "rate^t", *ends_heading], third),
            "### Workers differ much: squared residual on a ring with t rounds an iteration",
            markdown_table(["rounds", *times_heading], last),
            "### Workers differ: by spectral gap, 16 workers, t = 1",
            markdown_table(["topology", "gap", *ends_heading], fourth),
            "### Workers alike: steps until the squared residual is epsilon^2, half of it left to noise",
            markdown_table(["problem", "workers", "epsilon", "batch", *both], fifth),
        ]
    )


def _figures(row: dict[str, Any], kind: str) -> list[str]:
    return [f"{row[f'{kind}_{side}']:.3g}" for side in ("measured", "predicted")]


def main() -> None:
    """Simulate, predict, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=8, help="an even number from 4 to 10")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--step", type=float, default=0.1, help="the step size")
    parser.add_argument("--sigma", type=float, default=0.05, help="standard deviation of the noise in a coordinate")
    parser.add_argument("--runs", type=int, default=200, help="averaged over")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results and the plot")
    arguments = parser.parse_args()
    if arguments.workers not in (4, 6, 8, 10):  # a prediction is averaged over all of (N - 1)! / 2 rings
        parser.error(f"--workers must be an even number from 4 to 10, found {arguments.workers}")
    with np.errstate(over="ignore", invalid="ignore"):
        results: dict[str, Any] = {"by_iteration": by_iteration(arguments), "by_workers": by_workers(arguments)}
        results |= {"by_rounds": by_rounds(arguments), "by_rounds_and_iteration": by_rounds_and_iteration(arguments)}
        results |= {"by_gap": by_gap(arguments), "by_accuracy": by_accuracy(arguments)}
    tables = report(results, arguments.steps)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    kept = {name: values for name, values in results.items() if not name.endswith("iteration")}
    path = save_results("theory", settings, kept, arguments.output)
    draw(results, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(f"`python benchmarks/theory.py`; settings {settings}\n\n{tables}\n")
    print(f"{tables}\n\n{path}")


if __name__ == "__main__":
    main()
