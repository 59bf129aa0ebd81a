"""When snapshots are taken, exchanged and added: whole networks of workers simulated in memory, in float64."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_decgan.gossip import EdgeError, Exchange, FlatVector, Gossiper, Neighborhood, Swap
from lightning_decgan.topology import Topology, build_topology

SIZE = 5


class Network:
    """Mailboxes between simulated workers; also counts what was sent."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.mail: dict[tuple[int, int, int], list[Tensor]] = {}
        self.sent: list[tuple[int, int, int]] = []

    def edges(self, worker: int, topology: Topology) -> dict[int, SimulatedEdge]:
        return {neighbor: SimulatedEdge(self, worker, neighbor) for neighbor in topology.links(worker)}


class SimulatedEdge:
    """The members that the gossiper needs of a link."""

    def __init__(self, network: Network, worker: int, neighbor: int) -> None:
        self.network, self.worker, self.neighbor = network, worker, neighbor

    def expect(self, incoming: Tensor, tag: int) -> None:
        """Everything arrives in a mailbox anyway."""

    def swap(self, outgoing: Tensor, incoming: Tensor, tag: int) -> Swap:
        with self.network.changed:
            self.network.mail.setdefault((self.worker, self.neighbor, tag), []).append(outgoing.clone())
            self.network.sent.append((self.worker, self.neighbor, outgoing.numel()))
            self.network.changed.notify_all()
        return SimulatedSwap(self, incoming, (self.neighbor, self.worker, tag))

    def close(self, reason: str = "") -> None:
        """Nothing to close."""


class SimulatedSwap:
    def __init__(self, edge: SimulatedEdge, incoming: Tensor, address: tuple[int, int, int]) -> None:
        self.edge, self.incoming, self.address = edge, incoming, address

    def wait(self, deadline: float) -> None:
        network = self.edge.network
        with network.changed:
            if not network.changed.wait_for(
                lambda: bool(network.mail.get(self.address)), timeout=deadline - time.monotonic()
            ):
                worker, neighbor = self.edge.worker, self.edge.neighbor
                raise EdgeError(f"worker {worker} got no answer from neighbour {neighbor}", worker, neighbor)
            self.incoming.copy_(network.mail[self.address].pop(0))


def _start(workers: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((workers, SIZE))


def _pull(x: np.ndarray, worker: int) -> np.ndarray:
    """The update of a step: towards a point of the worker's own."""
    return 0.1 * (x - worker)


def _simulate(
    spec: Any,
    workers: int,
    steps: int,
    *,
    rounds: int = 1,
    every: int = 1,
    overlap: bool = True,
    each: Callable[[Gossiper, Tensor, int], None] | None = None,
    timeout_seconds: float = 20.0,
    update: bool = True,
) -> tuple[np.ndarray, list[Gossiper], Network]:
    """Train in one thread per worker; returns the live points after every step, (steps, workers, SIZE)."""  # fmt: skip
    topology, network = build_topology(spec, workers, seed=2, rounds=rounds), Network()
    trajectory = np.zeros((steps, workers, SIZE))
    gossipers: list[Any] = [None] * workers
    errors: list[BaseException] = []

    def train(worker: int) -> None:
        x = torch.from_numpy(_start(workers)[worker].copy())
        vector = FlatVector([("x", x)])
        neighborhood = Neighborhood(worker, topology, network.edges(worker, topology))
        exchange = Exchange(vector, neighborhood, rounds, timedelta(seconds=timeout_seconds))
        gossiper = gossipers[worker] = Gossiper(vector, exchange, overlap=overlap, every=every)
        try:
            for step in range(steps):
                if update:
                    x.sub_(torch.from_numpy(_pull(x.numpy().copy(), worker)))
                gossiper.step()
                trajectory[step, worker] = x.numpy()
                if each is not None:
                    each(gossiper, x, worker)
        except BaseException as error:
            errors.append(error)
        finally:
            gossiper.close()

    threads = [threading.Thread(target=train, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return trajectory, gossipers, network


def _expected(spec: Any, workers: int, steps: int, rounds: int, every: int, overlap: bool) -> np.ndarray:
    """The same with matrices: x + (W_r ... W_1 - I) s, a snapshot's increments landing at once or a step later."""
    topology = build_topology(spec, workers, seed=2, rounds=rounds)
    x, due, gossips, trajectory = _start(workers), np.zeros((workers, SIZE)), 0, []
    for step in range(1, steps + 1):
        x = x - np.stack([_pull(x[worker], worker) for worker in range(workers)])
        if overlap:
            x, due = x + due, np.zeros((workers, SIZE))
        if step % every == 0:
            mixed = x
            for round in range(gossips * rounds, (gossips + 1) * rounds):
                mixed = topology.mixing_matrix(round) @ mixed
            due, gossips = mixed - x, gossips + 1
            if not overlap:
                x = x + due
        trajectory.append(x)
    return np.stack(trajectory)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("spec", "workers", "rounds", "every"),
    [("ring", 5, 1, 1), ("random_matching", 4, 3, 1), ("complete", 3, 1, 2), ("one_peer_exponential", 5, 2, 3)],
)
def test_workers_follow_the_matrices(spec: str, workers: int, rounds: int, every: int, overlap: bool) -> None:
    found, _, _ = _simulate(spec, workers, 9, rounds=rounds, every=every, overlap=overlap)
    np.testing.assert_allclose(found, _expected(spec, workers, 9, rounds, every, overlap), rtol=0, atol=1e-12)


@pytest.mark.parametrize("overlap", [True, False])
def test_gossip_alone_keeps_the_mean_and_reaches_it(overlap: bool) -> None:
    found, _, _ = _simulate("ring", 5, 60, overlap=overlap, update=False)
    np.testing.assert_allclose(found.mean(axis=1), np.broadcast_to(_start(5).mean(axis=0), (60, SIZE)), atol=1e-13)
    assert np.abs(found[-1] - _start(5).mean(axis=0)).max() < (1e-4 if not overlap else 1e-2)


def test_one_message_goes_to_each_neighbour_each_round_and_is_counted() -> None:
    _, gossipers, network = _simulate("ring", 4, 7, rounds=2, overlap=False)
    for worker, gossiper in enumerate(gossipers):
        mine = [bytes_sent for sender, _, bytes_sent in network.sent if sender == worker]
        totals = gossiper.totals
        assert len(mine) == totals.swaps == 7 * 2 * 2
        message = 64 + 64  # 40 bytes, padded, and a header
        assert sum(mine) == totals.bytes_sent == totals.bytes_received == 7 * 2 * 2 * message
        assert (totals.steps, totals.rounds) == (7, 14)
        assert gossiper.last_report.step == 7
        assert gossiper.last_report.exchange_seconds >= 0.0
        assert totals.wait_seconds >= gossiper.last_report.wait_seconds >= 0.0


def test_an_overlapped_gossip_is_reported_when_it_is_finished() -> None:
    reports: dict[int, list] = {0: [], 1: []}
    _simulate("ring", 2, 3, each=lambda gossiper, _, worker: reports[worker].append(gossiper.last_report))
    for seen in reports.values():
        assert [None if report is None else report.step for report in seen] == [None, 1, 2]


def test_the_neighbour_distance_is_that_of_the_snapshots() -> None:
    lazy = [[0.75, 0.25], [0.25, 0.75]]  # halves the distance of two workers
    distances: dict[int, list] = {0: [], 1: []}

    def ask(gossiper: Gossiper, _: Tensor, worker: int) -> None:
        assert gossiper.last_report is not None
        distances[worker].append(gossiper.last_report.neighbor_distance)

    _simulate(lazy, 2, 5, overlap=False, each=ask, update=False)
    first = np.linalg.norm(_start(2)[0] - _start(2)[1])
    for seen in distances.values():
        assert seen == pytest.approx([first / 2**step for step in range(5)])


def test_a_worker_alone_gossips_with_nobody() -> None:
    found, (gossiper,), network = _simulate("ring", 1, 3, update=False)
    assert np.array_equal(found, np.broadcast_to(_start(1), (3, 1, SIZE)))
    assert network.sent == []
    assert (gossiper.totals.steps, gossiper.totals.swaps) == (3, 0)
    assert gossiper.last_report is None


@pytest.mark.parametrize("overlap", [True, False])
def test_a_silent_neighbour_is_named_with_the_step(overlap: bool) -> None:
    topology, network = build_topology("ring", 2), Network()
    vector = FlatVector([("x", torch.ones(SIZE))])
    exchange = Exchange(vector, Neighborhood(0, topology, network.edges(0, topology)), 1, timedelta(seconds=0.2))
    gossiper = Gossiper(vector, exchange, overlap=overlap)
    act = gossiper.finish if overlap else gossiper.step
    if overlap:
        gossiper.step()
    with pytest.raises(EdgeError, match="gossip of step 1: worker 0 got no answer from neighbour 1") as caught:
        act()
    assert (caught.value.worker, caught.value.neighbor) == (0, 1)
    gossiper.close()


def test_messages_of_another_layout_are_not_taken() -> None:
    """Two layouts have two tags, so they wait in vain instead of mixing what does not belong together."""
    topology, network = build_topology("ring", 2), Network()
    gossipers = []
    for worker in range(2):
        vector = FlatVector([(f"x{worker}", torch.full((SIZE,), float(worker)))])
        exchange = Exchange(
            vector, Neighborhood(worker, topology, network.edges(worker, topology)), 1, timedelta(seconds=0.3)
        )
        gossipers.append(Gossiper(vector, exchange))
        gossipers[-1].step()
    for worker, gossiper in enumerate(gossipers):
        with pytest.raises(EdgeError):
            gossiper.finish()
        assert gossiper.vector.tensors[0].tolist() == [float(worker)] * SIZE
        gossiper.close()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_saving_changes_nothing_and_a_restored_gossiper_goes_on_as_if_never_stopped(overlap: bool, every: int) -> None:
    """All workers stop after step 5 and go on with new objects; the trajectory is the uninterrupted one bit for bit."""
    straight, _, _ = _simulate("random_matching", 4, 11, rounds=2, every=every, overlap=overlap)
    kept: dict[int, tuple[dict, Tensor]] = {}

    def save_at_5(gossiper: Gossiper, x: Tensor, worker: int) -> None:
        if gossiper.totals.steps == 5:
            kept[worker] = (gossiper.state_dict(), x.clone())

    saving, _, _ = _simulate("random_matching", 4, 11, rounds=2, every=every, overlap=overlap, each=save_at_5)
    assert np.array_equal(straight, saving)

    topology, network = build_topology("random_matching", 4, seed=2, rounds=2), Network()
    resumed = np.zeros((6, 4, SIZE))

    def go_on(worker: int) -> None:
        state, saved = kept[worker]
        x = saved.clone()
        vector = FlatVector([("x", x)])
        exchange = Exchange(
            vector, Neighborhood(worker, topology, network.edges(worker, topology)), 2, timedelta(seconds=20)
        )
        gossiper = Gossiper(vector, exchange, overlap=overlap, every=every)
        gossiper.load_state_dict(state)
        for step in range(6):
            x.sub_(torch.from_numpy(_pull(x.numpy().copy(), worker)))
            gossiper.step()
            resumed[step, worker] = x.numpy()
        assert gossiper.totals.steps == 11
        gossiper.close()

    threads = [threading.Thread(target=go_on, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert np.array_equal(resumed, straight[5:])


def test_a_state_of_other_tensors_is_refused() -> None:
    def alone(name: str) -> Gossiper:
        vector = FlatVector([(name, torch.zeros(SIZE))])
        return Gossiper(
            vector, Exchange(vector, Neighborhood(0, build_topology("ring", 1), {}), 1, timedelta(seconds=1))
        )

    with pytest.raises(ValueError, match="belongs to parameters with other names, shapes, dtypes or order"):
        alone("x").load_state_dict(alone("y").state_dict())
    state = alone("x").state_dict()
    state["increments"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"holds 3 bytes of increments; this model needs {SIZE * 4}"):
        alone("x").load_state_dict(state)


def test_another_layout_is_taken_up_after_what_is_in_flight_has_landed() -> None:
    """Two workers gossip x, then x and y together: nothing of x's exchange is lost, and y joins from there."""
    topology, network = build_topology("ring", 2), Network()
    ends = {}

    def train(worker: int) -> None:
        x, y = torch.full((SIZE,), float(worker)), torch.full((3,), 10.0 * worker)

        def layout(*named: tuple[str, Tensor]) -> tuple[FlatVector, Exchange]:
            vector = FlatVector(named)
            edges = network.edges(worker, topology)
            return vector, Exchange(vector, Neighborhood(worker, topology, edges), 1, timedelta(seconds=20))

        gossiper = Gossiper(*layout(("x", x)))
        gossiper.step()
        assert x.tolist() == [float(worker)] * SIZE
        gossiper.relayout(*layout(("x", x), ("y", y)))
        assert x.tolist() == [0.5] * SIZE
        gossiper.step()
        gossiper.finish()
        ends[worker] = (x, y, gossiper.totals.bytes_sent)
        gossiper.close()

    threads = [threading.Thread(target=train, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for x, y, bytes_sent in ends.values():
        assert x.tolist() == [0.5] * SIZE
        assert y.tolist() == [5.0] * 3
        assert bytes_sent == 2 * (64 + 64)  # 20 and 32 bytes, each in 64, and a header
