"""Topologies: who meets whom, for every number of workers, against closed forms."""

import copy
import math
import pickle
import subprocess
import sys

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
    RandomMatching,
    RandomRing,
    Ring,
    Topology,
    Torus,
    build_topology,
    check_topology,
    metropolis_weights,
    random_consensus_rate,
)

POWERS = (1, 2, 4, 8, 16)
CASES = [(name, n) for name in TOPOLOGIES for n in range(1, 18) if name != "hypercube" or n in POWERS]
LOOKED_AT = 12  # rounds of a schedule drawn anew


class Star(Topology):
    name = "star"

    def neighbors(self, worker, round=0):
        return tuple(range(1, self.workers)) if worker == 0 else (0,)


class Blinking(Topology):
    """Even edges of a path in even rounds, odd ones in odd rounds."""

    name = "blinking"
    period = 2

    def neighbors(self, worker, round=0):
        other = worker + 1 if (worker + round) % 2 == 0 else worker - 1
        return (other,) if 0 <= other < self.workers else ()


class RandomPairs(RandomMatching):
    """The same draws without the closed form: what the base class makes of a schedule drawn anew."""

    name = "random_pairs"

    def consensus_rate(self):
        return Topology.consensus_rate(self)


def rounds_of(topology):
    return range(topology.period or LOOKED_AT)


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_every_round_of_every_topology_is_symmetric_and_doubly_stochastic(name, workers):
    topology = build_topology(name, workers, seed=3, rounds=2)
    assert (topology.workers, topology.name) == (workers, name)
    everybody = set(range(workers))
    links = [set(topology.links(worker)) for worker in range(workers)]
    for round in rounds_of(topology):
        for worker in range(workers):
            neighbors = topology.neighbors(worker, round)
            assert list(neighbors) == sorted(set(neighbors))
            assert set(neighbors) <= everybody - {worker}
            assert all(worker in topology.neighbors(other, round) for other in neighbors)
            assert set(neighbors) <= links[worker]
            assert topology.degree(worker, round) == len(neighbors)
            weights = topology.weights(worker, round)
            assert tuple(weights) == neighbors
            assert all(topology.weights(other, round)[worker] == weight for other, weight in weights.items())
        matrix = topology.mixing_matrix(round)
        assert matrix.dtype == np.float64
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
        assert matrix.min() >= 0
        graph = topology.graph(round)
        assert sorted(graph) == list(range(workers))
        assert all(graph[i][j]["weight"] == matrix[i, j] for i, j in graph.edges)
        if nx.is_connected(graph):
            np.testing.assert_allclose(matrix, metropolis_weights(graph), atol=1e-15)


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_every_topology_brings_everybody_to_agreement(name, workers):
    topology = build_topology(name, workers)
    rate = topology.consensus_rate()
    assert 0 <= rate < 1
    assert topology.spectral_gap() == pytest.approx(1 - rate, abs=1e-15)
    rounds = topology.rounds_for(1e-2)
    assert (rate, rounds) == (0, 0) if workers == 1 else rounds >= 1
    if topology.period is not None and rounds:
        product = np.eye(workers)
        for round in range(rounds):
            assert np.linalg.norm(product - 1 / workers, 2) > 1e-2
            product = topology.mixing_matrix(round) @ product
        assert np.linalg.norm(product - 1 / workers, 2) <= 1e-2 * (1 + 1e-9)


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_a_schedule_repeats_after_its_period_and_links_are_no_more_than_it_needs(name, workers):
    topology = build_topology(name, workers)
    if topology.period is None:
        return
    for worker in range(workers):
        met = set()
        for round in range(topology.period):
            met |= set(topology.neighbors(worker, round))
            assert topology.neighbors(worker, round) == topology.neighbors(worker, round + 3 * topology.period)
        assert topology.links(worker) == tuple(sorted(met))


@pytest.mark.parametrize(("name", "workers"), [(name, 4) for name in TOPOLOGIES])
def test_topologies_survive_pickling_and_copying(name, workers):
    topology = build_topology(name, workers, seed=5, rounds=3)
    topology.neighbors(0, 7)
    for twin in (pickle.loads(pickle.dumps(topology)), copy.copy(topology), copy.deepcopy(topology)):
        assert twin.describe() == topology.describe()
        assert [twin.neighbors(w, 7) for w in range(workers)] == [topology.neighbors(w, 7) for w in range(workers)]


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [4, 5, 8, 16, 32])
def test_the_gap_of_a_ring(workers):
    expected = 2 / 3 * (1 - math.cos(2 * math.pi / workers))
    # a ring of four has its worst eigenvalue at the other end: -1/3 and 1/3 are equally far from 0
    assert Ring(workers).spectral_gap() == pytest.approx(expected, abs=1e-12)


def test_small_rings_have_no_double_edges():
    assert Ring(1).neighbors(0) == ()
    assert [Ring(2).neighbors(worker) for worker in range(2)] == [(1,), (0,)]
    assert Ring(2).weights(0) == {1: 0.5}
    assert Ring(3).neighbors(1) == (0, 2)


def test_an_exponential_graph_reaches_powers_of_two_on_both_sides():
    for workers in range(1, 40):
        topology = Exponential(workers)
        steps = [2**k for k in range(10) if 2**k < workers]
        for worker in range(workers):
            expected = {(worker + s) % workers for s in steps} | {(worker - s) % workers for s in steps}
            assert topology.neighbors(worker) == tuple(sorted(expected))


@pytest.mark.parametrize("dimensions", range(1, 7))
def test_one_peer_exponential_is_exact_after_log2_rounds_for_powers_of_two(dimensions):
    topology = OnePeerExponential(2**dimensions)
    product = np.eye(2**dimensions)
    for round in range(dimensions):
        assert all(len(topology.neighbors(worker, round)) == 1 for worker in range(2**dimensions))
        product = topology.mixing_matrix(round) @ product
    np.testing.assert_array_equal(product, np.full_like(product, 2.0**-dimensions))
    assert topology.consensus_rate() == 0.0
    assert topology.rounds_for(1e-12) == topology.period == dimensions


@pytest.mark.parametrize("workers", [3, 5, 6, 7, 12, 33])
def test_one_peer_exponential_connects_everybody_for_every_other_number(workers):
    topology = OnePeerExponential(workers)
    assert topology.period == math.ceil(math.log2(workers))
    union = nx.Graph((i, j) for i in range(workers) for j in topology.links(i))
    assert nx.is_connected(union)
    assert len(union) == workers
    assert topology.consensus_rate() > 0


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 8, 9])
def test_the_expected_matrix_of_a_random_matching(workers):
    """A pair meets with probability 1/(N-1) for even N and 1/N for odd N, and then takes half of each other."""
    topology = RandomMatching(workers, seed=1)
    mean = np.mean([topology.mixing_matrix(round) for round in range(4000)], axis=0)
    meets = 1 / (workers - 1) if workers % 2 == 0 else 1 / workers
    expected = np.full((workers, workers), meets / 2)
    np.fill_diagonal(expected, 1 - meets / 2 * (workers - 1))
    np.testing.assert_allclose(mean, expected, atol=0.03)  # four standard errors
    square = (workers - 2) / (2 * (workers - 1)) if workers % 2 == 0 else 1 / 2
    assert topology.consensus_rate() == pytest.approx(math.sqrt(square), abs=1e-12)
    # W is a projection, so E[W^2] = E[W]
    assert np.linalg.eigvalsh(expected - 1 / workers)[-1] == pytest.approx(square)


@pytest.mark.parametrize("workers", [2, 5, 6])
def test_at_most_one_sits_out_a_random_matching(workers):
    topology = RandomMatching(workers)
    for round in range(30):
        alone = [worker for worker in range(workers) if not topology.neighbors(worker, round)]
        assert len(alone) == workers % 2


def test_the_sampled_rate_of_the_base_class_agrees_with_the_exact_one():
    exact, sampled = RandomMatching(6, seed=2).consensus_rate(), RandomPairs(6, seed=2).consensus_rate()
    assert exact <= sampled == pytest.approx(exact, rel=0.1)
    assert RandomPairs(6, seed=2).rounds_for(1e-2) == math.ceil(math.log(1e-2) / math.log(sampled))


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_rate_of_a_random_ring_agrees_with_its_draws(rounds):
    topology = RandomRing(7, seed=4, rounds_per_draw=rounds)
    powers = [np.linalg.matrix_power(topology.mixing_matrix(draw * rounds), rounds) for draw in range(1500)]
    assert topology.consensus_rate() ** rounds == pytest.approx(random_consensus_rate(powers), rel=0.05)
    shift = [(1 + 2 * math.cos(2 * math.pi * k / 7)) / 3 for k in range(1, 7)]
    mean = sum(value ** (2 * rounds) for value in shift) / 6
    assert topology.consensus_rate() == pytest.approx(mean ** (1 / (2 * rounds)), rel=1e-12)


def test_a_random_ring_is_one_ring_and_keeps_its_draw():
    topology = RandomRing(9, seed=1, rounds_per_draw=4)
    draws = []
    for round in range(12):
        graph = topology.graph(round)
        assert nx.is_connected(graph)
        assert {degree for _, degree in graph.degree} == {2}
        draws.append(sorted(map(sorted, graph.edges)))
    assert draws[0] == draws[1] == draws[3] != draws[4]
    assert draws[4] == draws[7] != draws[8]


@pytest.mark.parametrize("kind", [RandomMatching, RandomRing])
def test_random_topologies_follow_the_seed_and_the_round_alone(kind):
    def schedule(topology, rounds):
        return {round: [topology.neighbors(worker, round) for worker in range(10)] for round in rounds}

    first = schedule(kind(10, seed=1), range(40))
    assert schedule(kind(10, seed=1), reversed(range(40))) == first
    assert schedule(kind(10, seed=2), range(40)) != first
    assert len({str(partners) for partners in first.values()}) > 30


def test_random_draws_are_the_same_in_another_process():
    code = (
        "from lightning_decgan.topology import *; t = RandomMatching(8, seed=9); print(t.describe(), t.neighbors(3, 5))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    topology = RandomMatching(8, seed=9)
    assert found == f"{topology.describe()} {topology.neighbors(3, 5)}"


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (4, 4), (3, 5), (5, 7)])
def test_the_eigenvalues_of_a_torus_are_sums_of_cosines(rows, columns):
    angles = [(2 * math.pi * i / rows, 2 * math.pi * j / columns) for i in range(rows) for j in range(columns)]
    values = sorted(abs(1 + 2 * math.cos(a) + 2 * math.cos(b)) / 5 for a, b in angles)
    topology = Torus(rows * columns, (rows, columns))
    assert topology.consensus_rate() == pytest.approx(values[-2], abs=1e-12)
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, columns, periodic=True))
    assert {frozenset(edge) for edge in topology.graph().edges} == {frozenset(edge) for edge in grid.edges}


def test_a_torus_is_as_square_as_can_be_and_a_ring_for_primes():
    assert {n: Torus(n).shape for n in (1, 2, 12, 16, 18, 13)} == {
        1: (1, 1), 2: (1, 2), 12: (3, 4), 16: (4, 4), 18: (3, 6), 13: (1, 13),
    }  # fmt: skip
    np.testing.assert_array_equal(Torus(13).mixing_matrix(), Ring(13).mixing_matrix())
    np.testing.assert_array_equal(Torus(13, [13, 1]).mixing_matrix(), Ring(13).mixing_matrix())


def test_a_torus_two_wide_has_single_edges():
    assert Torus(6, (2, 3)).neighbors(0) == (1, 2, 3)
    assert Torus(4).neighbors(0) == (1, 2)
    assert Torus(4).weights(0) == {1: 1 / 3, 2: 1 / 3}


@pytest.mark.parametrize("dimensions", range(1, 6))
def test_a_hypercube_has_log2_neighbours_and_the_gap_of_its_dimension(dimensions):
    topology = Hypercube(2**dimensions)
    assert all(topology.degree(worker) == dimensions for worker in range(2**dimensions))
    cube = nx.convert_node_labels_to_integers(nx.hypercube_graph(dimensions), ordering="sorted")
    assert {frozenset(edge) for edge in topology.graph().edges} == {frozenset(edge) for edge in cube.edges}
    assert topology.spectral_gap() == pytest.approx(2 / (1 + dimensions))


@pytest.mark.parametrize("workers", [2, 3, 8, 17])
def test_complete_is_the_exact_mean_in_one_round(workers):
    np.testing.assert_allclose(Complete(workers).mixing_matrix(), np.full((workers, workers), 1 / workers), atol=1e-15)
    assert Complete(workers).rounds_for(1e-12) == 1
    assert Complete(workers).spectral_gap() == pytest.approx(1, abs=1e-14)


# --- graphs and matrices of the user ---------------------------------------------------------------------------------


def test_a_graph_keeps_its_edges_and_later_changes_do_not_reach_it():
    graph = nx.karate_club_graph()
    topology = GraphTopology(graph)
    before = topology.describe()
    np.testing.assert_allclose(topology.mixing_matrix(), metropolis_weights(graph), atol=1e-15)
    graph.remove_edge(0, 1)
    assert topology.describe() == before != GraphTopology(graph).describe()


def test_the_line_of_a_graph_does_not_depend_on_the_order_of_its_edges():
    edges = [(0, 1), (1, 2), (2, 3), (3, 0)]
    lines = {GraphTopology(nx.Graph(order)).describe() for order in (edges, edges[::-1], [(b, a) for a, b in edges])}
    assert len(lines) == 1
    assert "workers=4" in lines.pop()


@pytest.mark.parametrize("kind", ["array", "list", "float32", "tensor", "bfloat16 tensor"])
def test_a_matrix_may_be_any_array_of_numbers(kind):
    matrix = np.array([[0.75, 0.25, 0.0], [0.25, 0.25, 0.5], [0.0, 0.5, 0.5]])
    if "tensor" in kind:
        torch = pytest.importorskip("torch")
        given = torch.tensor(matrix, dtype=torch.bfloat16 if "bf" in kind else torch.float64)
    else:
        given = {"array": matrix, "list": matrix.tolist(), "float32": matrix.astype(np.float32)}[kind]
    if kind == "bfloat16 tensor":
        with pytest.raises(TypeError, match="matrix must be readable as a NumPy array of real numbers, found Tensor"):
            MatrixTopology(given)
        return
    topology = MatrixTopology(given)
    np.testing.assert_array_equal(topology.mixing_matrix(), matrix)
    assert topology.neighbors(1) == (0, 2)
    assert topology.weights(2) == {1: 0.5}
    assert topology.describe() == MatrixTopology(matrix).describe()


def test_another_matrix_has_another_line():
    assert MatrixTopology([[0.5, 0.5], [0.5, 0.5]]).describe() != MatrixTopology([[0.6, 0.4], [0.4, 0.6]]).describe()


def test_both_ends_of_an_edge_of_a_rounded_matrix_hold_the_same_float():
    matrix = np.random.default_rng(0).uniform(0.01, 0.1, (6, 6))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    matrix += np.random.default_rng(1).uniform(-1e-8, 1e-8, (6, 6))
    topology = MatrixTopology(matrix)
    assert all(topology.weights(i)[j] == topology.weights(j)[i] for i in range(6) for j in topology.neighbors(i))


# --- lines for the checksum ------------------------------------------------------------------------------------------


def test_equal_lines_mean_equal_schedules():
    topologies = [
        *(kind(8) for kind in TOPOLOGIES.values()),
        Ring(9),
        RandomMatching(8, seed=1),
        RandomRing(8, seed=1),
        RandomRing(8, rounds_per_draw=2),
        Torus(8, (1, 8)),
        Torus(8, (4, 2)),
        Star(8),
        Blinking(8),
        GraphTopology(nx.star_graph(7)),
        MatrixTopology(Ring(8).mixing_matrix()),
    ]
    lines = [topology.describe() for topology in topologies]
    assert len(set(lines)) == len(lines)
    assert all("\n" not in line and line.startswith(t.name) for line, t in zip(lines, topologies, strict=True))
    assert Torus(8).describe() == Torus(8, (2, 4)).describe()


def test_a_topology_of_ones_own_is_told_apart_by_what_it_does():
    class Other(Star):
        def neighbors(self, worker, round=0):
            hub = self.workers - 1
            return tuple(range(hub)) if worker == hub else (hub,)

    assert Star(5).describe() == Star(5).describe() != Other(5).describe()


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TOPOLOGIES.values()))
def test_workers_must_be_a_positive_integer(kind):
    for workers in (0, -1):
        with pytest.raises(ValueError, match=f"workers must be an integer >= 1, found {workers}"):
            kind(workers)
    for workers in (True, 2.0, "4", None):
        with pytest.raises(TypeError, match="workers must be an integer >= 1, found"):
            kind(workers)
    assert kind(np.int64(4)).workers == 4


@pytest.mark.parametrize(
    "topology",
    [
        *(kind(4) for kind in TOPOLOGIES.values()),
        GraphTopology(nx.path_graph(4)),
        MatrixTopology(np.full((4, 4), 0.25)),
    ],
    ids=lambda topology: topology.name,
)
def test_worker_and_round_are_checked(topology):
    for method in (topology.neighbors, topology.weights):
        for worker in (4, -1):
            with pytest.raises(ValueError, match=rf"worker must be an integer from 0 to 3, found {worker}"):
                method(worker)
        with pytest.raises(TypeError, match=r"worker must be an integer from 0 to 3, found 1\.0 \(float\)"):
            method(1.0)
        with pytest.raises(ValueError, match="round must be an integer >= 0, found -1"):
            method(0, -1)
        with pytest.raises(TypeError, match=r"round must be an integer >= 0, found True \(bool\)"):
            method(0, True)
    with pytest.raises(ValueError, match="worker must be"):
        topology.links(4)
    with pytest.raises(ValueError, match="round must be"):
        topology.graph(-1)
    with pytest.raises(ValueError, match="tolerance must be"):
        topology.rounds_for(0)


@pytest.mark.parametrize(("workers", "below", "above"), [(3, 2, 4), (6, 4, 8), (33, 32, 64)])
def test_a_hypercube_that_does_not_exist_names_the_nearest(workers, below, above):
    with pytest.raises(ValueError, match=f"found {workers}; the nearest are {below} and {above}"):
        Hypercube(workers)


def test_a_torus_shape_that_does_not_fit_names_those_that_do():
    with pytest.raises(ValueError, match=r"hold 12 workers, found 3 x 5 = 15; .*\(1, 12\), \(2, 6\), \(3, 4\)"):
        Torus(12, (3, 5))
    with pytest.raises(ValueError, match="shape rows must be an integer >= 1, found 0"):
        Torus(12, (0, 12))
    for shape in ((12,), "34", 12):
        with pytest.raises(TypeError, match=r"shape must be a pair \(rows, columns\)"):
            Torus(12, shape)


@pytest.mark.parametrize("kind", [RandomMatching, RandomRing])
def test_seeds_are_not_negative(kind):
    with pytest.raises(ValueError, match="seed must be an integer >= 0, found -1"):
        kind(4, seed=-1)
    with pytest.raises(TypeError, match="seed must be an integer >= 0, found None"):
        kind(4, seed=None)


def test_a_draw_lasts_at_least_a_round():
    with pytest.raises(ValueError, match="rounds_per_draw must be an integer >= 1, found 0"):
        RandomRing(4, rounds_per_draw=0)


def test_a_matrix_that_would_not_fit_in_memory_is_not_begun():
    with pytest.raises(ValueError, match=r"at most 8192 .* found 1000000, whose matrix takes 7450\.6 GiB"):
        Ring(1_000_000).mixing_matrix()
    assert Ring(1_000_000).weights(0) == {1: 1 / 3, 999_999: 1 / 3}


# --- build_topology --------------------------------------------------------------------------------------------------


def test_settings_reach_the_random_topologies_made_by_name():
    assert build_topology("random_matching", 6, seed=7).describe() == RandomMatching(6, seed=7).describe()
    ring = build_topology("random_ring", 6, seed=7, rounds=3)
    assert ring.describe() == RandomRing(6, seed=7, rounds_per_draw=3).describe()


def test_a_topology_may_be_given_in_every_form():
    ready = Torus(6, (2, 3))
    assert build_topology(ready, 6) is ready
    assert build_topology(Ring, 6).describe() == Ring(6).describe()
    assert build_topology(lambda workers: RandomRing(workers, seed=3), 6).describe() == RandomRing(6, seed=3).describe()
    assert build_topology(nx.cycle_graph(6), 6).neighbors(0) == (1, 5)
    assert build_topology(Ring(6).mixing_matrix(), 6).neighbors(0) == (1, 5)
    assert build_topology(Ring(6).mixing_matrix().tolist(), 6).name == "matrix"
    assert build_topology(Star(6), 6).neighbors(3) == (0,)
    assert build_topology(Blinking, 6).period == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rign", "ring"), ("Ring", "ring"), ("one-peer-exponential", "one_peer_exponential"), ("hypercub", "hypercube")],
)
def test_an_unknown_name_lists_the_names_and_the_closest(name, hint):
    with pytest.raises(ValueError, match=f"one of complete, .*, torus, found '{name}'; did you mean '{hint}'"):
        build_topology(name, 4)


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(ValueError, match=r"found 'qqqq'$"):
        build_topology("qqqq", 4)


@pytest.mark.parametrize("spec", [Ring(5), lambda workers: Ring(5), nx.cycle_graph(5)])
def test_a_topology_of_another_number_of_workers_is_refused(spec):
    with pytest.raises(ValueError, match=r"topology must be for 4 workers, as many as take part, found \w+ of 5"):
        build_topology(spec, 4)


@pytest.mark.parametrize("spec", [None, 3, 2.5, b"ring", {"ring": 1}, object()])
def test_what_is_no_topology_is_refused_with_what_would_be(spec):
    with pytest.raises(TypeError, match=r"topology must be a name, a Topology, a callable .* found"):
        build_topology(spec, 4)


def test_bad_matrices_graphs_and_callables_are_refused():
    with pytest.raises(ValueError, match=r"each of 4 workers, found \(3, 3\)"):
        build_topology(np.full((3, 3), 1 / 3), 4)
    with pytest.raises(ValueError, match="must be symmetric"):
        build_topology([[0.5, 0.5], [0.4, 0.6]], 2)
    with pytest.raises(ValueError, match="graph must be connected"):
        build_topology(nx.empty_graph(4), 4)
    with pytest.raises(TypeError, match="must return a Topology when called with 4, found str"):
        build_topology(lambda workers: "ring", 4)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be an integer >= 1, found 0"),
        ({"workers": True}, TypeError, "workers must be an integer >= 1, found True"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, found -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer >= 0, found 1.5"),
        ({"rounds": 0}, ValueError, "rounds must be an integer >= 1, found 0"),
        ({"rounds": "2"}, TypeError, "rounds must be an integer >= 1, found '2'"),
    ],
)
def test_settings_are_checked_for_every_topology(settings, error, message):
    with pytest.raises(error, match=message):
        build_topology("ring", **{"workers": 4, **settings})


def broken(**methods):
    return type("Broken", (Star,), {"name": "broken", **methods})(4)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        (broken(neighbors=lambda s, w, round=0: (1, 2, 3) if w == 0 else ()), "worker 0 meets 1, but 1 does not"),
        (broken(neighbors=lambda s, w, round=0: (w ^ 1,)), r"connected, found 2 components: \{0, 1\}, \{2, 3\}"),
        (broken(neighbors=lambda s, w, round=0: (w,)), r"others than the worker itself, found in round 0 for worker 0"),
        (broken(neighbors=lambda s, w, round=0: (w + 1,)), r"neighbours in 0\.\.3, .* for worker 3: \(4,\)"),
        (broken(neighbors=lambda s, w, round=0: (3, 2, 1) if w == 0 else (0,)), r"sorted and once, .*: \(3, 2, 1\)"),
        (broken(links=lambda s, w: ()), r"must know all neighbours as links, .* worker 0: \(1, 2, 3\)"),
        (broken(weights=lambda s, w, round=0: {}), r"must weigh each neighbour, .* worker 0: weights of \(\)"),
        (broken(weights=lambda s, w, round=0: dict.fromkeys(s.neighbors(w), 0.5)), "sum of at most 1"),
        (broken(weights=lambda s, w, round=0: dict.fromkeys(s.neighbors(w), -0.1)), "positive weights"),
        (broken(weights=lambda s, w, round=0: dict.fromkeys(s.neighbors(w), math.nan)), "positive weights"),
        (broken(weights=lambda s, w, round=0: dict.fromkeys(s.neighbors(w), 0.1 + w / 50)), "same weight at both ends"),
        (broken(period=0), "period must be an integer >= 1, found 0"),
    ],
)  # fmt: skip
def test_a_topology_of_ones_own_that_would_hang_or_lose_the_mean_is_refused(topology, message):
    with pytest.raises(ValueError, match=message):
        check_topology(topology)
    with pytest.raises(ValueError, match=message):
        build_topology(topology, 4)


def test_a_topology_of_ones_own_that_trades_places_for_ever_is_refused():
    class Swap(Ring):
        def weights(self, worker, round=0):
            return {1 - worker: 1.0}

    with pytest.raises(ValueError, match="periodic"):
        build_topology(Swap, 2)


def test_the_package_needs_no_torch():
    code = "import sys; import lightning_decgan.topology; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"
