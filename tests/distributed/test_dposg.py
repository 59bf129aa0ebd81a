"""The strategy trains by the equations of docs/algorithm.md, over real processes, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan.optim import OptimisticSGD
from lightning_decgan.strategy import DecentralizedGossipStrategy
from lightning_decgan.topology import build_topology
from tests.accelerators import needs_gpu
from tests.distributed.workers import run_workers

pytestmark = pytest.mark.processes

WORKERS, SIZE, STEPS, LR = 4, 3, 60, 0.1


def _game(worker: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Worker's own bilinear game f_i(x, y) = x^T A_i y + b_i^T x - c_i^T y, with A_i near the identity."""
    rng = np.random.default_rng(worker)
    a = np.eye(SIZE) + 0.3 * rng.standard_normal((SIZE, SIZE))
    return a, rng.standard_normal(SIZE), rng.standard_normal(SIZE)


def _start() -> np.ndarray:
    return np.random.default_rng(99).standard_normal(2 * SIZE)


def _gradient(z: np.ndarray, worker: int) -> np.ndarray:
    """What both players descend along: x minimizes f_i, y maximizes it."""
    a, b, c = _game(worker)
    x, y = z[:SIZE], z[SIZE:]
    return np.concatenate([a @ y + b, -(a.T @ x - c)])


class BilinearGame(LightningModule):
    """Two players, two optimizers, both gradients at the same point."""

    def __init__(self, optimizer: type[torch.optim.Optimizer]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.x = nn.Parameter(torch.from_numpy(_start()[:SIZE].copy()))
        self.y = nn.Parameter(torch.from_numpy(_start()[SIZE:].copy()))
        self.optimizer = optimizer
        self.trajectory: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        a, b, c = (torch.from_numpy(part).to(self.device) for part in _game(self.global_rank))
        f = self.x @ a @ self.y + b @ self.x - c @ self.y
        gx, gy = torch.autograd.grad(f, [self.x, self.y])
        self.x.grad, self.y.grad = gx, -gy
        for optimizer in self.optimizers():
            optimizer.step()

    def on_train_batch_end(self, *_: Any) -> None:
        self.trajectory.append(torch.cat([self.x.detach(), self.y.detach()]).cpu())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer([self.x], lr=LR), self.optimizer([self.y], lr=LR)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.zeros(WORKERS * STEPS, 1)), batch_size=1)


def _trainer(strategy: Any, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": WORKERS, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(strategy=strategy, **(defaults | arguments))


def _play(cases: list[tuple[str, str, int, bool, bool]], shared_gpu: bool = False) -> list[Tensor]:
    trajectories = []
    place: dict[str, Any] = {"accelerator": "gpu", "devices": 1} if shared_gpu else {}
    for optimizer, topology, rounds, overlap, merge in cases:
        game = BilinearGame({"optimistic": OptimisticSGD, "plain": torch.optim.SGD}[optimizer])
        settings: dict[str, Any] = {"topology": topology, "rounds": rounds, "overlap": overlap, "merge_rounds": merge}
        settings["workers_per_device"] = WORKERS if shared_gpu else 1
        _trainer(DecentralizedGossipStrategy(**settings), **place).fit(game)
        trajectories.append(torch.stack(game.trajectory))
    return trajectories


def _reference(topology: str, rounds: int, overlap: bool, steps: int) -> np.ndarray:
    """The equations as they stand: Z_k, u_k, X_k; returns the live point after every step, Z_{k+1}: (steps, N, n)."""
    schedule = build_topology(topology, WORKERS, rounds=rounds)
    x = np.stack([_start()] * WORKERS)
    mixed, u, live = x, np.zeros_like(x), []
    for k in range(steps):
        z = (x if overlap else mixed) - u
        u = LR * np.stack([_gradient(z[worker], worker) for worker in range(WORKERS)])
        x = mixed - u
        mixed = x
        for round in range(k * rounds, (k + 1) * rounds):
            mixed = schedule.mixing_matrix(round) @ mixed
        live.append((x if overlap else mixed) - u)
    return np.stack(live)


def _solution() -> np.ndarray:
    games = [_game(worker) for worker in range(WORKERS)]
    a, b, c = (np.mean([game[part] for game in games], axis=0) for part in range(3))
    return np.concatenate([np.linalg.solve(a.T, c), np.linalg.solve(a, -b)])


@pytest.mark.parametrize("place", ["cpu", pytest.param("gpu", marks=needs_gpu)])
def test_dposg_equals_the_equations_at_every_step_and_plain_descent_ascent_diverges(place: str) -> None:
    cases = [
        ("optimistic", topology, rounds, overlap, merge)
        for topology, rounds, merge in (
            ("ring", 1, False),
            ("ring", 3, False),
            ("ring", 3, True),
            ("random_matching", 1, False),
            ("random_matching", 3, False),
        )
        for overlap in (False, True)
    ]
    cases.append(("plain", "ring", 1, False, False))
    found = run_workers(WORKERS, _play, cases, place == "gpu", timeout=240.0)
    for case, (optimizer, topology, rounds, overlap, _) in enumerate(cases):
        trajectory = np.stack([worker[case].numpy() for worker in found], axis=1)
        assert trajectory.shape == (STEPS, WORKERS, 2 * SIZE)
        if optimizer == "optimistic":
            expected = _reference(topology, rounds, overlap, STEPS)
            np.testing.assert_allclose(trajectory, expected, rtol=0, atol=1e-10, err_msg=str(cases[case]))
        distance = np.linalg.norm(trajectory.mean(axis=1) - _solution(), axis=1)
        if optimizer == "plain":
            assert distance[-1] > 1.3 * distance[0]
        else:
            assert distance[-1] < 0.75 * distance[0]


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(WORKERS * 50 * 4, 10, generator=generator)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), batch_size=4, shuffle=True)


def _parameters_after_50_steps() -> dict[str, list[Tensor]]:
    parameters = {}
    for name in ("gossip", "ddp"):
        seed_everything(7)
        strategy: Any = "ddp"
        if name == "gossip":
            strategy = DecentralizedGossipStrategy(topology="complete", rounds=1, overlap=False)
        model = Classifier()
        trainer = _trainer(strategy)
        trainer.fit(model)
        assert trainer.global_step == 50
        parameters[name] = [p.detach().clone() for p in model.parameters()]
    return parameters


def test_complete_gossip_in_exact_order_equals_ddp() -> None:
    for parameters in run_workers(WORKERS, _parameters_after_50_steps):
        start = [p.detach() for p in _fresh_classifier().parameters()]
        for gossip, ddp, before in zip(parameters["gossip"], parameters["ddp"], start, strict=True):
            torch.testing.assert_close(gossip, ddp, rtol=0, atol=1e-6)
            assert (ddp - before).abs().max() > 0.01


def _fresh_classifier() -> Classifier:
    seed_everything(7)
    return Classifier()
