"""Gossip over real sockets equals the matrices that the topologies announce, in float64."""

from __future__ import annotations

import io
import time
from datetime import timedelta

import networkx as nx
import numpy as np
import pytest
import torch
import torch.distributed as dist

from lightning_decgan.gossip import EdgeError, Exchange, FlatVector, Gossiper, Neighborhood, connect_edges
from lightning_decgan.topology import build_topology
from tests.distributed.workers import WorkerFailed, collect, end, run_workers, start_workers

pytestmark = pytest.mark.processes

TIMEOUT = timedelta(seconds=30)
STEPS = 5


def _initial(worker: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(worker)
    return [
        torch.randn(3, 4, generator=generator, dtype=torch.float64),
        torch.randn(7, generator=generator, dtype=torch.float32),
        torch.randn(5, generator=generator, dtype=torch.float64),
    ]


def _gossip(cases: list[tuple[object, int, bool]]) -> list[list[list[torch.Tensor]]]:
    """For each case (topology, rounds, overlap) the tensors after every step."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    worker, workers = dist.get_rank(), dist.get_world_size()
    trajectories = []
    for spec, rounds, overlap in cases:
        topology = build_topology(spec, workers, seed=3, rounds=rounds)
        tensors = _initial(worker)
        vector = FlatVector([(str(i), tensor) for i, tensor in enumerate(tensors)])
        edges = connect_edges(worker, workers, topology.links(worker), TIMEOUT)
        gossiper = Gossiper(
            vector, Exchange(vector, Neighborhood(worker, topology, edges), rounds, TIMEOUT), overlap=overlap
        )
        trajectory = []
        for _ in range(STEPS):
            gossiper.step()
            trajectory.append([tensor.clone() for tensor in tensors])
        gossiper.close()
        trajectories.append(trajectory)
        dist.barrier()
    dist.destroy_process_group()
    return trajectories


SPECS = ["ring", "torus", "complete", "random_matching", "random_ring", "exponential", "one_peer_exponential"]


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_gossip_equals_powers_of_the_mixing_matrix_and_keeps_the_mean(workers: int) -> None:
    cases = [(spec, rounds, False) for spec in SPECS for rounds in (1, 3)]
    found_by_worker = run_workers(workers, _gossip, cases)
    start = [_initial(worker) for worker in range(workers)]
    for case, (spec, rounds, _) in enumerate(cases):
        topology = build_topology(spec, workers, seed=3, rounds=rounds)
        for tensor, tolerance in ((0, 1e-12), (1, 1e-5), (2, 1e-12)):
            x = np.stack([tensors[tensor].double().numpy().ravel() for tensors in start])
            mean = x.mean(axis=0)
            for step in range(STEPS):
                for round in range(step * rounds, (step + 1) * rounds):
                    x = topology.mixing_matrix(round) @ x
                found = np.stack([t[case][step][tensor].double().numpy().ravel() for t in found_by_worker])
                np.testing.assert_allclose(found, x, rtol=0, atol=tolerance, err_msg=f"{spec}, {rounds} rounds")
                np.testing.assert_allclose(found.mean(axis=0), mean, rtol=0, atol=tolerance, err_msg=spec)


def test_overlapped_gossip_without_updates_is_one_step_behind() -> None:
    for worker, (exact, late) in enumerate(run_workers(4, _gossip, [("ring", 2, False), ("ring", 2, True)])):
        for step in range(1, STEPS):
            for mine, its in zip(late[step], exact[step - 1], strict=True):
                assert torch.equal(mine, its)
        for mine, its in zip(late[0], _initial(worker), strict=True):
            assert torch.equal(mine, its)


def test_a_users_own_graph_or_matrix_mixes_as_it_says() -> None:
    specs = [nx.star_graph(4), np.full((5, 5), 0.2)]
    found_by_worker = run_workers(5, _gossip, [(spec, 1, False) for spec in specs])
    for case, spec in enumerate(specs):
        w = build_topology(spec, 5).mixing_matrix()
        x = np.stack([_initial(worker)[0].numpy().ravel() for worker in range(5)])
        for step in range(STEPS):
            x = w @ x
            found = np.stack([t[case][step][0].numpy().ravel() for t in found_by_worker])
            np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


def _last_worker_stays_away(seconds: float) -> str:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    worker = dist.get_rank()
    topology = build_topology("ring", 4)
    if worker == 3:
        return "away"
    try:
        connect_edges(worker, 4, topology.links(worker), timedelta(seconds=seconds))
    except EdgeError as error:
        return str(error)
    return "connected"


def test_a_neighbour_that_cannot_be_reached_is_named_within_the_deadline() -> None:
    answers = run_workers(4, _last_worker_stays_away, 3.0, timeout=60)
    assert "worker 2 could not reach neighbour 3" in answers[2]
    assert "edge 2-3" in answers[2]
    assert "timeout 3 s" in answers[2]


def _one_worker_stops_gossiping(overlap: bool) -> tuple[str, float]:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    worker = dist.get_rank()
    topology = build_topology("ring", 3)
    tensor = torch.zeros(10)
    vector = FlatVector([("x", tensor)])
    edges = connect_edges(worker, 3, topology.links(worker), TIMEOUT)
    gossiper = Gossiper(
        vector, Exchange(vector, Neighborhood(worker, topology, edges), 1, timedelta(seconds=2)), overlap=overlap
    )
    gossiper.step()
    if overlap:
        gossiper.finish()
    if worker == 2:
        time.sleep(6.0)  # alive, but silent
        return "silent", 0.0
    started = time.monotonic()
    try:
        gossiper.step()
        gossiper.finish()
    except EdgeError as error:
        return str(error), time.monotonic() - started
    return "no error", 0.0


@pytest.mark.parametrize("overlap", [False, True])
def test_a_silent_neighbour_ends_the_wait_at_the_deadline_with_its_name(overlap: bool) -> None:
    answers = run_workers(3, _one_worker_stops_gossiping, overlap, timeout=60)
    assert "gossip of step 2: worker 0 got no answer from neighbour 2 after 2" in answers[0][0]
    assert answers[0][1] < 5.0


def _with_other_layouts() -> str:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    worker = dist.get_rank()
    topology = build_topology("ring", 2)
    vector = FlatVector([("x", torch.zeros(10 + worker))])
    edges = connect_edges(worker, 2, topology.links(worker), TIMEOUT)
    gossiper = Gossiper(
        vector, Exchange(vector, Neighborhood(worker, topology, edges), 1, timedelta(seconds=1)), overlap=False
    )
    try:
        gossiper.step()
    except EdgeError as error:
        return str(error)
    return "no error"


def test_messages_of_another_layout_are_never_delivered() -> None:
    for answer in run_workers(2, _with_other_layouts, timeout=60):
        assert "gossip of step 1" in answer


def _until_killed() -> str:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    worker = dist.get_rank()
    topology = build_topology("ring", 3)
    vector = FlatVector([("x", torch.zeros(1000))])
    edges = connect_edges(worker, 3, topology.links(worker), TIMEOUT)
    gossiper = Gossiper(
        vector, Exchange(vector, Neighborhood(worker, topology, edges), 1, timedelta(seconds=5)), overlap=True
    )
    try:
        for _ in range(10**9):
            gossiper.step()
    except EdgeError as error:
        return str(error)
    return "no error"


def test_a_killed_neighbour_ends_the_run_of_the_others_with_its_name() -> None:
    processes, results = start_workers(3, _until_killed)
    try:
        time.sleep(6.0)
        processes[1].kill()
        processes[1].join()
        answers = {}
        for _ in range(2):
            rank, value, error = results.get(timeout=30)
            assert error is None, error
            answers[rank] = torch.load(io.BytesIO(value), weights_only=True)
        assert any("neighbour 1" in answer for answer in answers.values()), answers
    finally:
        end(processes)


def test_the_harness_reports_a_failing_worker() -> None:
    processes, results = start_workers(2, _fails_on_one)
    try:
        with pytest.raises(WorkerFailed, match="on purpose"):
            collect(processes, results)
    finally:
        end(processes)


def _fails_on_one() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("on purpose")
