"""W^t as a topology: exact, the same at both ends of an edge, and taken only where it saves."""

from __future__ import annotations

import math
import pickle
import time

import networkx as nx
import numpy as np
import pytest

from lightning_decgan.topology import (
    TOPOLOGIES,
    Complete,
    Exponential,
    GraphTopology,
    Hypercube,
    MatrixTopology,
    OnePeerExponential,
    PowerTopology,
    RandomMatching,
    Ring,
    Survivors,
    Torus,
    build_topology,
    check_topology,
    merges_well,
)

STATIC = [name for name in sorted(TOPOLOGIES) if build_topology(name, 8).period == 1]
KARATE = GraphTopology(nx.karate_club_graph())
NOTHING_KEPT = MatrixTopology((np.ones((3, 3)) - np.eye(3)) / 2)


def powers():
    for name in STATIC:
        for workers in (1, 2, 4, 8, 16) if name == "hypercube" else (1, 2, 3, 5, 8, 13):
            for rounds in (1, 2, 3, 7):
                yield build_topology(name, workers), rounds
    for rounds in (2, 5):
        yield KARATE, rounds
        yield NOTHING_KEPT, rounds
        yield Survivors(Ring(5), [0, 2, 3, 6, 7], 8), rounds


@pytest.mark.parametrize(("topology", "rounds"), list(powers()))
def test_one_exchange_is_t_rounds(topology, rounds):
    power = PowerTopology(topology, rounds)
    matrix = power.mixing_matrix()
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix, np.linalg.matrix_power(topology.mixing_matrix(), rounds), rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
    assert power.consensus_rate() == pytest.approx(topology.consensus_rate() ** rounds, abs=1e-12)
    for worker in range(topology.workers):
        weights = power.weights(worker)
        assert power.neighbors(worker) == tuple(weights) == tuple(sorted(weights)) == power.links(worker)
        assert power.degree(worker) == len(weights)
        assert all(0 < weight <= 1 for weight in weights.values())
    if not isinstance(topology, Survivors):
        check_topology(power)


@pytest.mark.parametrize(("workers", "rounds"), [(8, 2), (9, 3), (64, 10), (101, 4)])
def test_a_ring_has_its_closed_form(workers, rounds):
    weights = PowerTopology(Ring(workers), rounds).weights(5)
    frequencies = 2 * math.pi * np.arange(workers) / workers
    for distance in range(1, workers):
        other = (5 + distance) % workers
        expected = np.mean(((1 + 2 * np.cos(frequencies)) / 3) ** rounds * np.cos(frequencies * distance))
        assert weights.get(other, 0.0) == pytest.approx(expected, abs=1e-14)


def test_an_entry_that_only_rounding_made_is_no_edge():
    # Two sides of 49, each worker with all its weight on the other side, but for one pair that keeps something. Two
    # rounds lead back to one's own side; 49 times 1/49 in float64 is less than 1 and would lead elsewhere.
    side = np.full((49, 49), 1 / 49)
    side[0, 0] /= 2
    matrix = np.block([[np.zeros((49, 49)), side], [side.T, np.zeros((49, 49))]])
    assert 1.0 - math.fsum(matrix[5]) != 0.0
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    topology = MatrixTopology(matrix)
    own_side = [worker for worker in range(49) if worker != 5]
    assert PowerTopology(topology, 2).neighbors(5) == (*own_side, 49)  # 49 keeps what it has from 5 in the first round
    kept = PowerTopology(Ring(200), 60)
    assert min(weight for weight in kept.weights(0).values()) > 1e-15
    assert kept.degree(0) < 120  # (1/3)^60 is not worth a message


def test_both_ends_hold_the_same_bits_for_thousands_of_workers_and_quickly():
    began = time.process_time()
    for topology, rounds in [(Ring(4096), 4), (Torus(4096), 3), (Exponential(4096), 2)]:
        power = PowerTopology(topology, rounds)
        for worker in (0, 1, 2047, 4095):
            other_end = PowerTopology(topology, rounds)
            for other, weight in list(power.weights(worker).items())[:5]:
                assert other_end.weights(other)[worker] == weight
    assert time.process_time() - began < 20


def test_the_power_of_a_power_is_the_power():
    nested = PowerTopology(PowerTopology(Ring(9), 2), 3)
    np.testing.assert_allclose(nested.mixing_matrix(), PowerTopology(Ring(9), 6).mixing_matrix(), atol=1e-15)


def test_a_power_travels_without_its_rows():
    power = PowerTopology(Ring(64), 3)
    small = len(pickle.dumps(power))
    power.mixing_matrix()
    assert len(pickle.dumps(power)) == small
    there = pickle.loads(pickle.dumps(power))
    assert there.describe() == power.describe() == "power(rounds=3, of=ring(workers=64))"
    assert there.weights(7) == power.weights(7)
    assert there.name == "ring^3"


def test_what_is_handed_out_may_be_changed():
    power = PowerTopology(Ring(5), 2)
    power.weights(0).clear()
    assert power.degree(0) == 4


@pytest.mark.parametrize("topology", [OnePeerExponential(8), RandomMatching(8)])
def test_only_a_topology_that_never_changes_has_a_power(topology):
    with pytest.raises(ValueError, match=f"topology must be the same in every round.*{topology.name}"):
        PowerTopology(topology, 2)
    assert not merges_well(topology, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (("ring", 2), TypeError, "topology must be a Topology, found str"),
        ((Ring(4), 0), ValueError, "rounds must be an integer >= 1, found 0"),
        ((Ring(4), 1.5), TypeError, "rounds must be an integer"),
    ],
)
def test_a_power_says_what_is_wrong(arguments, error, names):
    with pytest.raises(error, match=names):
        PowerTopology(*arguments)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("rounds", [2, 3, 10])
def test_rounds_on_a_ring_and_among_all_always_merge(workers, rounds):
    assert merges_well(Ring(workers), rounds)
    assert merges_well(Complete(workers), rounds)
    assert not merges_well(Ring(workers), 1)


@pytest.mark.parametrize("topology", [KARATE, NOTHING_KEPT, Torus(36), Torus(9), Hypercube(8), Exponential(9), Ring(6)])
@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_rounds_merge_where_nobody_sends_more(topology, rounds):
    single = topology.mixing_matrix() - np.diag(np.diag(topology.mixing_matrix()))
    wide = np.linalg.matrix_power(topology.mixing_matrix(), rounds)
    messages = ((wide > 1e-12).sum(axis=1) - (np.diag(wide) > 1e-12)).tolist()
    limits = (rounds * (single > 0).sum(axis=1)).tolist()
    assert merges_well(topology, rounds) == all(m <= limit for m, limit in zip(messages, limits, strict=True))


def test_thousands_are_asked_quickly():
    began = time.process_time()
    assert [merges_well(build_topology(name, 4096), 2) for name in ("ring", "complete", "torus", "hypercube")] == [
        True,
        True,
        False,
        False,
    ]
    assert time.process_time() - began < 20
