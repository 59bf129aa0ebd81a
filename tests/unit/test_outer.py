"""The outer step against its equations in NumPy, alone and in a whole network of simulated workers."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from lightning_decgan.gossip import Exchange, FlatVector, Gossiper, Neighborhood, OuterNesterov
from lightning_decgan.topology import build_topology
from tests.unit.test_gossiper import Network


def _train(settings: OuterNesterov, every: int, steps: int, overlap: bool) -> np.ndarray:
    """Four workers on a ring, each pulled towards its own number; the live points at the end."""
    topology, network, ends = build_topology("ring", 4), Network(), np.zeros((4, 3))

    def train(worker: int) -> None:
        x = torch.linspace(1.0, 2.0, 3, dtype=torch.float64)
        vector = FlatVector([("x", x)])
        neighborhood = Neighborhood(worker, topology, network.edges(worker, topology))
        exchange = Exchange(vector, neighborhood, timeout=timedelta(seconds=20), outer=settings)
        gossiper = Gossiper(vector, exchange, overlap=overlap, every=every)
        for _ in range(steps):
            x.sub_(0.1 * (x - worker))
            gossiper.step()
        gossiper.finish()
        ends[worker] = x.numpy()
        gossiper.close()

    threads = [threading.Thread(target=train, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ends


def _expected(settings: OuterNesterov, every: int, steps: int, overlap: bool) -> np.ndarray:
    w, own = build_topology("ring", 4).mixing_matrix(), np.arange(4.0)[:, None]
    x = np.tile(np.linspace(1.0, 2.0, 3), (4, 1))
    phi, v, due = x.copy(), np.zeros_like(x), np.zeros_like(x)
    for step in range(1, steps + 1):
        x = x - 0.1 * (x - own) + due
        due = np.zeros_like(x)
        if step % every == 0:
            d = w @ x - phi
            v = settings.momentum * v + d
            phi = phi + settings.lr * (settings.momentum * v + d)
            due = phi - x
        if not overlap:
            x, due = x + due, np.zeros_like(x)
    return x + due


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("settings", [OuterNesterov(), OuterNesterov(lr=1.0, momentum=0.0), OuterNesterov(0.4, 0.9)])
def test_the_outer_step_follows_its_equations(settings: OuterNesterov, overlap: bool) -> None:
    found, expected = _train(settings, 4, 30, overlap), _expected(settings, 4, 30, overlap)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_snapshot_that_is_not_finite_leaves_the_outer_state_alone() -> None:
    vector = FlatVector([("x", torch.ones(3))])
    state = OuterNesterov().begin(vector)
    snapshot, increments = vector.new_buffer(), vector.new_buffer()
    snapshot.sections[0].fill_(float("nan"))
    state.step(snapshot, increments)
    assert state.point.sections[0].tolist() == [1.0] * 3
    assert state.velocity.sections[0].tolist() == [0.0] * 3


def test_a_restored_state_goes_on_where_it_was() -> None:
    vector = FlatVector([("x", torch.zeros(3, dtype=torch.float64))])
    straight, saved = OuterNesterov().begin(vector), OuterNesterov().begin(vector)
    restored = OuterNesterov().begin(vector)
    snapshot, ends = vector.new_buffer(), []
    snapshot.sections[0].copy_(torch.tensor([1.0, 2.0, 3.0]))
    for state in (straight, saved):
        state.step(snapshot, vector.new_buffer())
    restored.load_state_dict(saved.state_dict())
    for state in (straight, restored):
        increments = vector.new_buffer()
        state.step(snapshot, increments)
        ends.append(increments.sections[0].clone())
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="the outer point in the checkpoint has 8 bytes, not 24"):
        OuterNesterov().begin(vector).load_state_dict(
            OuterNesterov().begin(FlatVector([("x", torch.zeros(1, dtype=torch.float64))])).state_dict()
        )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"lr": 0.0}, ValueError, r"lr of OuterNesterov must be in \(0, 2\], found 0.0"),
        ({"lr": "fast"}, TypeError, "lr of OuterNesterov must be a number, found 'fast'"),
        ({"momentum": 1.0}, ValueError, r"momentum of OuterNesterov must be in \[0, 1\), found 1.0"),
        ({"momentum": True}, TypeError, "momentum of OuterNesterov must be a number, found True"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        OuterNesterov(**arguments)
