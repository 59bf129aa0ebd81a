"""benchmarks/theory.py: its recursions against each other and against the optimizers that they stand for."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import theory
from theory import Problem

from lightning_decgan.optim import ExtraSGD, OptimisticSGD
from lightning_decgan.topology import Topology, build_topology

STEP = 0.2
TOPOLOGIES = ["ring", "one_peer_exponential", "random_matching", "random_ring"]


def predicted(name: str, problem: Problem, topology: Topology, rounds: int, sigma: float, steps: int) -> np.ndarray:
    """Residual and distance by step, of shape (2, steps)."""
    return np.array(list(itertools.islice(theory.predict(name, problem, STEP, topology, rounds, sigma), steps))).T


@pytest.mark.parametrize("name", theory.METHODS)
@pytest.mark.parametrize("m", theory.STRENGTHS.values(), ids=theory.STRENGTHS)
def test_one_worker_without_noise_takes_the_steps_of_the_optimizer(name: str, m: float) -> None:
    A = torch.from_numpy(theory.operator(m))
    z = torch.nn.Parameter(torch.tensor(theory.START))
    make = {"descent-ascent": torch.optim.SGD, "extragradient": ExtraSGD, "optimistic": OptimisticSGD}[name]
    optimizer = make([z], lr=STEP)
    residuals, _ = theory.simulate(name, Problem.alike(m, 1), STEP, [build_topology("ring", 1)], 1, 0.0, 20, 1, 0)
    for residual in residuals:
        for move in ("extrapolate", "step") if name == "extragradient" else ("step",):
            z.grad = A @ z.detach()
            getattr(optimizer, move)()
        ahead = optimizer.lookahead(z) if name == "optimistic" else None
        anchor = z.detach() if ahead is None else z.detach() + ahead
        assert float((A @ anchor).square().sum()) == pytest.approx(residual, rel=1e-12)


@pytest.mark.parametrize("name", theory.METHODS)
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES[:2])
def test_without_noise_the_prediction_is_the_simulation(name: str, rounds: int, topology: str) -> None:
    problem, graph = Problem.different(0.4, 4), build_topology(topology, 4)
    simulated = theory.simulate(name, problem, STEP, [graph], rounds, 0.0, 50, 1, 0)
    np.testing.assert_allclose(predicted(name, problem, graph, rounds, 0.0, 50), simulated, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_with_noise_the_prediction_is_the_average_over_runs(topology: str, rounds: int) -> None:
    problem, graph = Problem.different(0.3, 6), build_topology(topology, 6, rounds=rounds)
    exact = predicted("optimistic", problem, graph, rounds, 0.1, 600)[:, 100:].mean(1)
    graphs = [build_topology(topology, 6, seed=seed, rounds=rounds) for seed in range(5)]
    simulated = theory.simulate("optimistic", problem, STEP, graphs, rounds, 0.1, 600, 100, 0)
    np.testing.assert_allclose([series[100:].mean() for series in simulated], exact, rtol=0.1, atol=1e-12)


def test_workers_that_differ_average_to_the_bilinear_problem() -> None:
    problem = Problem.different(0.7, 8)
    np.testing.assert_allclose(problem.operators.mean(0), theory.operator(0.0), atol=1e-12)
    np.testing.assert_allclose(problem.residual(np.zeros(2)), 0.0, atol=1e-24)
    assert problem.operators.std(0).min() > 0.3


def test_where_workers_differ_much_several_rounds_decide_whether_it_converges() -> None:
    problem, ring = Problem.different(theory.LARGE_SPREAD, 8), build_topology("ring", 8)
    radii = [theory.spectral_radius(problem, 0.1, ring, rounds) for rounds in (1, 2, 3)]
    assert radii[0] > 1 > radii[1] > radii[2]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_residual_of_workers_that_are_alike_tends_to_the_stationary_one(workers: int) -> None:
    problem, ring = Problem.alike(0.3, workers), build_topology("ring", workers)
    last = predicted("optimistic", problem, ring, 1, 0.1, 400)[0, -1]
    assert last == pytest.approx(theory.stationary_residual(problem, STEP, 0.1), rel=1e-9)
    assert theory.stationary_residual(Problem.alike(-0.5, workers), STEP, 0.1) == np.inf


def test_a_batch_that_grows_with_the_accuracy_reaches_it() -> None:
    problem = Problem.alike(0.3, 1)
    first = theory.iterations_until(problem, STEP, 0.0, 0.1)
    squares = predicted("optimistic", problem, build_topology("ring", 1), 1, 0.0, first)[0]
    assert squares[-1] <= 0.01 < squares[-2]


@pytest.mark.parametrize("name", ["random_matching", "random_ring"])
def test_what_a_random_topology_draws_is_among_all_draws_and_all_are_drawn_alike(name: str) -> None:
    topology = build_topology(name, 6)
    known = {matrix.tobytes(): 0 for matrix in theory.all_draws(topology)}
    for round in range(3000):
        known[topology.mixing_matrix(round).tobytes()] += 1
    expected = 3000 / len(known)
    assert sum((count - expected) ** 2 / expected for count in known.values()) < 2 * len(known), "chi squared"


def test_a_random_topology_whose_draws_are_not_known_has_no_prediction() -> None:
    with pytest.raises(ValueError, match="even number"):
        predicted("optimistic", Problem.alike(0.0, 5), build_topology("random_matching", 5), 1, 0.0, 1)
