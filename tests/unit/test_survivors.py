"""Survivors: the same rule among those who are left, connected again, and found by everybody without a word."""

from __future__ import annotations

import copy
import itertools
import pickle

import networkx as nx
import numpy as np
import pytest

from lightning_decgan.topology import (
    TOPOLOGIES,
    Complete,
    GraphTopology,
    Hypercube,
    MatrixTopology,
    OnePeerExponential,
    PowerTopology,
    RandomMatching,
    RandomRing,
    Ring,
    Survivors,
    Topology,
    Torus,
    build_topology,
    falls_apart,
    metropolis_weights,
    reknit,
)

LEFT = [0, 2, 3, 6, 7]  # of eight
CHORDED = nx.cycle_graph(8)
CHORDED.add_edges_from([(0, 4), (2, 6)])


class Star(Topology):
    name = "star"

    def neighbors(self, worker, round=0):
        return tuple(range(1, self.workers)) if worker == 0 else (0,)


class Racks(Topology):
    """A ring through racks; takes more than the number of workers."""

    name = "racks"

    def __init__(self, workers, racks):
        super().__init__(workers)
        self.racks = racks

    def neighbors(self, worker, round=0):
        return Ring(self.workers).neighbors(worker)


class OnlyEven(Topology):
    """Sound for an even number of workers; with an odd one, the last has nobody."""

    name = "only_even"

    def neighbors(self, worker, round=0):
        even = self.workers - self.workers % 2
        return Complete(even).neighbors(worker) if worker < even else ()


class Dice(RandomMatching):
    """A schedule drawn anew that does not say what it is for others."""

    name = "dice"

    def rebuilt_for(self, workers):
        raise ValueError("no")


def union(topology):
    graph = nx.empty_graph(topology.workers)
    graph.add_edges_from((one, other) for one in range(topology.workers) for other in topology.links(one))
    return graph


@pytest.mark.parametrize("name", sorted(set(TOPOLOGIES) - {"hypercube"}))
def test_a_rule_rebuilt_is_the_one_built_for_so_many(name):
    topology = build_topology(name, 8, seed=5, rounds=3)
    for workers in (1, 2, 5, 8, 11):
        rebuilt = topology.rebuilt_for(workers)
        assert rebuilt.describe() == build_topology(name, workers, seed=5, rounds=3).describe()


def test_a_rule_keeps_its_arguments_where_they_still_hold():
    assert Torus(12, (2, 6)).rebuilt_for(12).shape == (2, 6)
    assert Torus(12, (2, 6)).rebuilt_for(9).shape == (3, 3)
    assert RandomMatching(8, seed=9).rebuilt_for(5).seed == 9
    rebuilt = RandomRing(8, seed=9, rounds_per_draw=4).rebuilt_for(5)
    assert (rebuilt.seed, rebuilt.rounds_per_draw, rebuilt.workers) == (9, 4, 5)
    assert Hypercube(8).rebuilt_for(4).describe() == Hypercube(4).describe()
    assert PowerTopology(Ring(8), 3).rebuilt_for(5).describe() == PowerTopology(Ring(5), 3).describe()


@pytest.mark.parametrize(
    ("topology", "names"),
    [
        (Hypercube(8), "power of two"),
        (GraphTopology(CHORDED), "workers must be 8.*found 5"),
        (MatrixTopology(metropolis_weights(CHORDED)), "workers must be 8.*found 5"),
        (Racks(8, racks=2), "define rebuilt_for"),
    ],
)
def test_what_has_no_rule_for_others_says_so(topology, names):
    with pytest.raises(ValueError, match=names):
        topology.rebuilt_for(5)
    assert topology.rebuilt_for(8).describe() == topology.describe()


@pytest.mark.parametrize("workers", [0, -1])
def test_a_rule_is_for_at_least_one(workers):
    for topology in (Ring(3), GraphTopology(nx.path_graph(3)), MatrixTopology(np.full((3, 3), 1 / 3))):
        with pytest.raises(ValueError, match="workers must be an integer >= 1"):
            topology.rebuilt_for(workers)


@pytest.mark.parametrize("rule", [Ring(5), Star(5), Torus(5), OnePeerExponential(5), RandomMatching(5, seed=2)])
@pytest.mark.parametrize("members", [LEFT, [7, 0, 3, 2, 6]])
def test_members_play_the_rule_and_the_absent_keep_what_they_have(rule, members):
    left = Survivors(rule, members, 8)
    assert (left.workers, left.period) == (8, rule.period)
    for round in range(rule.period or 5):
        expected = np.eye(8)
        expected[np.ix_(members, members)] = rule.mixing_matrix(round)
        found = left.mixing_matrix(round)
        np.testing.assert_allclose(found, expected, atol=1e-15)
        np.testing.assert_array_equal(found, found.T)
        for worker in range(8):
            neighbors = left.neighbors(worker, round)
            assert neighbors == tuple(sorted(neighbors)) == tuple(left.weights(worker, round))
            assert left.degree(worker, round) == len(neighbors)
            assert set(neighbors) <= set(left.links(worker)) <= set(members) - {worker}
    assert left.spectral_gap() == rule.spectral_gap() > 0
    assert left.rounds_for(1e-3) == rule.rounds_for(1e-3)
    assert left.rebuilt_for(3).workers == 3
    for there in (pickle.loads(pickle.dumps(left)), copy.deepcopy(left)):
        assert there.describe() == left.describe()
        assert there.weights(members[1], 1) == left.weights(members[1], 1)


def test_who_is_left_is_part_of_the_description():
    descriptions = {Survivors(Ring(3), members, 5).describe() for members in itertools.permutations(range(5), 3)}
    descriptions |= {Survivors(Ring(3), range(3), 6).describe(), Survivors(Complete(3), range(3), 5).describe()}
    assert len(descriptions) == 62


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (("ring", [0, 1], 4), TypeError, "rule must be a Topology, found str"),
        ((Ring(2), [0, 1, 2], 4), ValueError, "rule must be a topology of 3 workers"),
        ((Ring(2), [0, 4], 4), ValueError, r"members must be an integer from 0 to 3, found 4"),
        ((Ring(2), [1, 1], 4), ValueError, r"members must name every worker once, found \[1, 1\]"),
        ((Ring(2), [0, 1.5], 4), TypeError, "members must be an integer"),
        ((Ring(1), [], 4), ValueError, "at least one worker"),
    ],
)
def test_survivors_say_what_is_wrong(arguments, error, names):
    with pytest.raises(error, match=names):
        Survivors(*arguments)


@pytest.mark.parametrize("topology", [Ring(7), Star(7), Torus(7), OnePeerExponential(7), RandomMatching(7)])
def test_falling_apart_is_what_networkx_calls_disconnected(topology):
    generator = np.random.default_rng(0)
    answers = set()
    everything = union(topology)
    for members in itertools.chain.from_iterable(itertools.combinations(range(7), n) for n in range(2, 8)):
        edges = sorted(tuple(sorted(edge)) for edge in everything.edges)
        lost = [edges[k] for k in generator.choice(len(edges), size=generator.integers(len(edges)), replace=False)]
        graph = everything.subgraph(members).copy()
        graph.remove_edges_from(lost)
        found = falls_apart(topology, members, lost)
        assert found == (not nx.is_connected(graph))
        assert found == falls_apart(topology, members[::-1], [(high, low) for low, high in lost])
        answers.add(found)
    assert answers == {True, False}


def test_one_survivor_and_none_do_not_fall_apart():
    assert not falls_apart(Ring(4), [2], [(1, 2), (2, 3)])
    assert not falls_apart(Ring(4), [])
    with pytest.raises(ValueError, match="members"):
        falls_apart(Ring(4), [1, 4])


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
@pytest.mark.parametrize("lost", [(3,), (0, 5), (1, 2, 4, 7), (0, 1, 2, 3, 4, 5, 6)])
def test_reknit_survivors_agree_among_themselves(name, lost):
    topology = build_topology(name, 8, seed=4)
    members = [worker for worker in range(8) if worker not in lost]
    left = reknit(topology, members)
    assert left.workers == 8
    assert not falls_apart(left, members)
    assert all(left.links(worker) == () for worker in lost)
    assert left.spectral_gap() > 0
    assert left.describe() == reknit(topology, members[::-1]).describe()
    if name != "hypercube" or len(members) in (1, 4):
        assert left.rule.describe() == build_topology(name, len(members), seed=4).describe()


def test_a_hypercube_that_lost_one_becomes_the_exponential_graph_and_its_name_tells():
    left = reknit(Hypercube(8), range(7))
    assert left.name == "exponential of 7 survivors"
    assert left.rule.describe() == build_topology("exponential", 7).describe()
    assert reknit(PowerTopology(Hypercube(8), 2), range(7)).name == "exponential^2 of 7 survivors"


@pytest.mark.parametrize("given", [GraphTopology(CHORDED), MatrixTopology(metropolis_weights(CHORDED))])
def test_what_is_left_of_a_given_graph_is_joined_by_a_ring(given):
    left = reknit(given, LEFT)
    parts = {frozenset(edge) for edge in left.graph().edges}
    ring = {frozenset(edge) for edge in zip(LEFT, LEFT[1:] + LEFT[:1], strict=True)}
    assert parts == ring | {frozenset(edge) for edge in CHORDED.subgraph(LEFT).edges}
    assert frozenset((2, 6)) in parts - ring
    graph = nx.convert_node_labels_to_integers(left.graph().subgraph(LEFT), ordering="sorted")
    np.testing.assert_allclose(left.mixing_matrix()[np.ix_(LEFT, LEFT)], metropolis_weights(graph), atol=1e-15)
    assert reknit(given, [5]).links(5) == ()
    assert reknit(given, [1, 5]).weights(1) == {5: 0.5}


def test_a_class_of_ones_own_keeps_its_rule_or_what_is_left_of_its_edges():
    star = reknit(Star(6), [1, 2, 4, 5])
    assert star.neighbors(1) == (2, 4, 5)
    assert star.name == "star of 4 survivors"
    assert reknit(Racks(6, racks=2), [0, 1, 3, 5]).neighbors(0) == (1, 5)
    assert reknit(Racks(6, racks=2), [0, 1, 3, 5]).name == "graph of 4 survivors"
    assert reknit(OnlyEven(6), [0, 1, 3, 4, 5]).name == "graph of 5 survivors"  # its rule would leave one alone
    assert reknit(OnlyEven(6), [0, 1, 3, 4]).name == "only_even of 4 survivors"
    assert reknit(Dice(6), [0, 2, 3, 5]).neighbors(0) == (2, 5)


def test_survivors_of_survivors_are_connected_too():
    for first in (reknit(Ring(8), range(7)), reknit(Hypercube(8), range(7)), reknit(GraphTopology(CHORDED), range(7))):
        second = reknit(first, [0, 2, 4, 5, 6])
        assert second.workers == 8
        assert not falls_apart(second, [0, 2, 4, 5, 6])
        assert second.links(7) == second.links(1) == ()


def test_reknitting_needs_somebody():
    with pytest.raises(ValueError, match="at least one worker"):
        reknit(Ring(4), [])
