"""benchmarks/theory.py: its recursions against each other and against the optimizers that they stand for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import theory

from lightning_decgan.optim import ExtraSGD, OptimisticSGD
from lightning_decgan.topology import build_topology

STEP = 0.2


@pytest.mark.parametrize("name", theory.METHODS)
@pytest.mark.parametrize("problem", theory.PROBLEMS.values(), ids=theory.PROBLEMS)
def test_one_worker_without_noise_takes_the_steps_of_the_optimizer(name: str, problem: float) -> None:
    A = theory.operator(problem)
    z = torch.nn.Parameter(torch.tensor(theory.START))
    make = {"descent-ascent": torch.optim.SGD, "extragradient": ExtraSGD, "optimistic": OptimisticSGD}[name]
    optimizer = make([z], lr=STEP)
    residuals, _ = theory.simulate(name, A, STEP, build_topology("ring", 1), 1, 0.0, 20, 1, 0)
    for residual in residuals:
        for move in ("extrapolate", "step") if name == "extragradient" else ("step",):
            z.grad = torch.from_numpy(A) @ z.detach()
            getattr(optimizer, move)()
        ahead = optimizer.lookahead(z) if name == "optimistic" else None
        anchor = z.detach() if ahead is None else z.detach() + ahead
        assert float((torch.from_numpy(A) @ anchor).square().sum()) == pytest.approx(residual, rel=1e-12)


@pytest.mark.parametrize("name", theory.METHODS)
def test_the_predicted_moments_tend_to_the_stationary_one(name: str) -> None:
    A = theory.operator(0.3)
    recursion = theory.method(name, A, STEP)
    last = theory.predicted_moments(recursion, 0.8, 0.1, 400, theory.START)[-1]
    np.testing.assert_allclose(last, theory.stationary_moment(recursion, 0.8, 0.1), rtol=1e-9, atol=1e-15)


def test_what_does_not_contract_has_no_stationary_moment() -> None:
    recursion = theory.method("descent-ascent", theory.operator(0.0), STEP)
    assert np.isinf(theory.stationary_moment(recursion, 1.0, 0.1)).all()


def test_simulated_residual_and_distance_follow_the_prediction() -> None:
    A, topology = theory.operator(0.3), build_topology("ring", 5)
    recursion = theory.method("optimistic", A, STEP)
    residuals, distances = theory.simulate("optimistic", A, STEP, topology, 2, 0.1, 300, 100, 0)
    mean = theory.stationary_moment(recursion, 1.0, 0.1 / 5**0.5)
    assert residuals[100:].mean() == pytest.approx(np.trace(A @ mean @ A.T), rel=0.1)
    assert distances[100:].mean() == pytest.approx(theory.consensus_moment(topology, recursion, 2, 0.1), rel=0.1)


def test_a_batch_that_grows_with_the_accuracy_reaches_it() -> None:
    A = theory.operator(0.3)
    recursion = theory.method("optimistic", A, STEP)
    first = theory.iterations_until(recursion, A, 0.0, 0.1)
    moments = theory.predicted_moments(recursion, 1.0, 0.0, first, theory.START)
    squares = [np.trace(A @ P @ A.T) for P in moments]
    assert squares[-1] <= 0.01 < squares[-2]
