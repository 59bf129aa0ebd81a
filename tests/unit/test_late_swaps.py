"""Late swaps: what a step waits for and what it does not, and that everything is the same only later."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import numpy as np
import pytest
import torch

from lightning_decgan.gossip import EventLog, Exchange, FlatVector, Gossiper, Neighborhood
from lightning_decgan.gossip.edge import EdgeError
from lightning_decgan.topology import build_topology
from tests.unit.test_gossiper import Network


def _gossiper(network: Network, worker: int, workers: int, max_delay: int | None, spec: str = "ring") -> Gossiper:
    topology = build_topology(spec, workers)
    vector = FlatVector([("x", torch.full((3,), float(worker), dtype=torch.float64))])
    neighborhood = Neighborhood(worker, topology, network.edges(worker, topology))
    return Gossiper(vector, Exchange(vector, neighborhood, timeout=timedelta(seconds=20)), max_delay=max_delay)


def _value(gossiper: Gossiper) -> float:
    return float(gossiper.vector.tensors[0][0])


def test_a_step_goes_on_while_a_swap_may_be_late_and_waits_when_it_may_not() -> None:
    network = Network()
    mine, its = (_gossiper(network, worker, 2, max_delay=2) for worker in range(2))
    for _ in range(3):  # begins at the first, is due at the second, may be late at the second and third
        mine.step()
    assert _value(mine) == 0.0
    assert mine.totals.rounds == 0
    waiting = threading.Thread(target=mine.step)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive(), "the fourth step waits"
    its.step()
    waiting.join(10)
    assert not waiting.is_alive()
    assert _value(mine) == 0.5
    assert mine.last_report is not None
    assert mine.last_report.late_steps == 2
    its.step()
    for gossiper in (mine, its):
        gossiper.close()


def test_no_step_ever_waits_with_none() -> None:
    network = Network()
    mine, its = (_gossiper(network, worker, 2, max_delay=None) for worker in range(2))
    started = time.monotonic()
    for _ in range(1000):
        mine.step()
    assert time.monotonic() - started < 5.0
    assert mine.exchange.neighborhood.number == 1, "the next begins when the last has landed"
    its.step()
    mine.settle()
    its.settle()
    mine.step()
    its.step()
    assert (_value(mine), _value(its)) == (0.5, 0.5)
    assert mine.totals.late_steps == 1000 - 1
    for gossiper in (mine, its):
        gossiper.close()


def test_workers_of_different_speeds_land_the_product_of_the_matrices_and_the_mean_stays() -> None:
    network, counts = Network(), [40, 25, 33, 18, 29]
    gossipers = [_gossiper(network, worker, 5, max_delay=None) for worker in range(5)]
    numbers = [0] * 5
    meet = threading.Barrier(5)

    def train(worker: int) -> None:
        gossiper = gossipers[worker]
        for _ in range(counts[worker]):
            gossiper.step()
            time.sleep(0.001)
        arrived.add(worker)
        gossiper.keep_company(until=lambda: len(arrived) == 5)
        meet.wait(20)
        numbers[worker] = gossiper.exchange.neighborhood.number
        meet.wait(20)
        gossiper.catch_up((0, max(numbers)))
        gossiper.close()

    arrived: set[int] = set()
    threads = [threading.Thread(target=train, args=(worker,)) for worker in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    begun = {gossiper.exchange.neighborhood.number for gossiper in gossipers}
    assert len(begun) == 1, "all came to the same number"
    expected = np.linalg.matrix_power(build_topology("ring", 5).mixing_matrix(), begun.pop()) @ np.arange(5.0)
    found = np.array([_value(gossiper) for gossiper in gossipers])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert found.mean() == pytest.approx(2.0, abs=1e-12)


def test_a_lost_edge_gives_its_weight_back_to_both_ends() -> None:
    """Worker 2 of a ring of three never comes: the other two go on with each other, and their mean stays."""
    network, topology, ends = Network(), build_topology("ring", 3), {}

    def train(worker: int) -> None:
        x = torch.full((2,), float(worker), dtype=torch.float64)
        vector, events = FlatVector([("x", x)]), EventLog(worker)
        edges = network.edges(worker, topology)
        neighborhood = Neighborhood(worker, topology, edges, events=events, on_loss="continue")
        gossiper = Gossiper(vector, Exchange(vector, neighborhood, timeout=timedelta(seconds=0.3)), overlap=False)
        for _ in range(3):
            gossiper.step()
        ends[worker] = (x.clone(), neighborhood.weights(0), [event.kind for event in events.events])
        gossiper.close()

    threads = [threading.Thread(target=train, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for worker, (x, weights, kinds) in ends.items():
        assert list(weights) == [1 - worker]
        assert kinds == ["edge_lost"]
        expected = 0.5 + (worker - 0.5) * (1 - 2 / 3) ** 3
        assert x.tolist() == pytest.approx([expected] * 2, abs=1e-12)


def test_a_loss_is_an_error_where_that_is_wanted() -> None:
    network, topology = Network(), build_topology("ring", 2)
    vector = FlatVector([("x", torch.zeros(2))])
    neighborhood = Neighborhood(0, topology, network.edges(0, topology), on_loss="raise")
    gossiper = Gossiper(vector, Exchange(vector, neighborhood, timeout=timedelta(seconds=0.1)), overlap=False)
    with pytest.raises(EdgeError, match="gossip of step 1: worker 0 got no answer from neighbour 1"):
        gossiper.step()
    gossiper.close()
