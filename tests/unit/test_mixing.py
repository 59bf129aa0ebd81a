"""Mixing matrices against closed forms and plain NumPy."""

import math

import networkx as nx
import numpy as np
import pytest

from lightning_decgan.topology import (
    check_graph,
    check_mixing_matrix,
    consensus_rate,
    metropolis_weights,
    random_consensus_rate,
    relabelled_consensus_rate,
    rounds_for,
    rounds_from_rate,
    spectral_gap,
)

PAIR = np.full((2, 2), 0.5)


def ring_matrix(workers):
    shift = np.roll(np.eye(workers), 1, axis=0)
    return (np.eye(workers) + shift + shift.T) / 3


@pytest.mark.parametrize(("workers", "second"), [(4, 1 / 3), (8, 0.805), (16, 0.949), (32, 0.987)])
def test_the_second_eigenvalue_of_a_ring_is_the_one_in_the_literature(workers, second):
    matrix = metropolis_weights(nx.cycle_graph(workers))
    np.testing.assert_allclose(matrix, ring_matrix(workers), atol=1e-15)
    assert consensus_rate([matrix]) == pytest.approx(second, abs=5e-4)
    assert spectral_gap(matrix) == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / workers)), abs=1e-12)


def test_metropolis_weights_of_a_path_are_those_worked_out_by_hand():
    expected = np.array([[2, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 2]]) / 3
    np.testing.assert_allclose(metropolis_weights(nx.path_graph(4)), expected, atol=1e-15)


def test_metropolis_weights_take_no_notice_of_edge_attributes_and_node_order():
    graph = nx.Graph()
    graph.add_nodes_from([2, 0, 1])
    graph.add_edge(2, 1, weight=17.0)
    graph.add_edge(0, 1)
    np.testing.assert_array_equal(metropolis_weights(graph), metropolis_weights(nx.path_graph(3)))


@pytest.mark.parametrize("seed", range(4))
def test_metropolis_weights_of_any_connected_graph_are_symmetric_and_doubly_stochastic(seed):
    graph = nx.connected_watts_strogatz_graph(13, 4, 0.5, seed=seed)
    matrix = metropolis_weights(graph)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-14)
    assert matrix.min() >= 0
    assert consensus_rate([matrix]) < 1
    np.testing.assert_array_equal(matrix - np.diag(np.diag(matrix)) > 0, nx.to_numpy_array(graph) > 0)


def test_the_gap_counts_the_most_negative_eigenvalue_too():
    assert spectral_gap([[0.1, 0.9], [0.9, 0.1]]) == pytest.approx(0.2)  # eigenvalues 1 and -0.8


def test_one_worker_has_gap_one_rate_zero_and_needs_no_round():
    assert spectral_gap([[1.0]]) == 1.0
    assert consensus_rate([[[1.0]]]) == 0.0
    assert rounds_for([[[1.0]]], 1e-9) == 0


def test_a_matrix_that_never_converges_has_gap_zero():
    assert spectral_gap(np.eye(3)) == pytest.approx(0, abs=1e-15)
    assert spectral_gap([[0, 1], [1, 0]]) == pytest.approx(0, abs=1e-15)


def test_the_rate_of_a_schedule_is_the_root_of_what_a_period_leaves():
    schedule = [metropolis_weights(graph) for graph in (nx.path_graph(5), nx.cycle_graph(5), nx.star_graph(4))]
    left = schedule[2] @ schedule[1] @ schedule[0] - 1 / 5
    assert consensus_rate(schedule) == pytest.approx(np.linalg.norm(left, 2) ** (1 / 3), rel=1e-12)


def test_a_schedule_that_is_exact_has_rate_zero_and_not_the_root_of_rounding():
    first, second = np.kron(np.eye(2), PAIR), np.kron(PAIR, np.eye(2))
    assert consensus_rate([first, second]) == 0.0
    assert rounds_for([first, second], 1e-12) == 2


def test_a_fast_but_inexact_schedule_is_not_taken_for_an_exact_one():
    matrix = np.full((3, 3), 1 / 3) + 1e-2 * (np.eye(3) - 1 / 3)
    assert consensus_rate([matrix] * 12) == pytest.approx(1e-2, rel=1e-9)  # 1e-24 a period


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-6])
@pytest.mark.parametrize("graphs", [[nx.cycle_graph(9)], [nx.path_graph(6), nx.star_graph(5)]], ids=["static", "two"])
def test_rounds_for_is_the_first_round_that_is_close_enough(graphs, tolerance):
    schedule = [metropolis_weights(graph) for graph in graphs]
    workers = len(schedule[0])
    rounds, product = 0, np.eye(workers)
    while np.linalg.norm(product - 1 / workers, 2) > tolerance:
        product = schedule[rounds % len(schedule)] @ product
        rounds += 1
    assert rounds_for(schedule, tolerance) == rounds


def test_rounds_for_is_quick_where_hundreds_of_thousands_are_needed():
    expected = math.ceil(math.log(1e-2) / math.log((1 + 2 * math.cos(2 * math.pi / 300)) / 3))
    assert expected > 30_000
    assert rounds_for([ring_matrix(300)], 1e-2) == expected
    assert rounds_for([ring_matrix(300)] * 2, 1e-2) == expected


def test_rounds_for_refuses_a_schedule_that_never_connects_everybody():
    with pytest.raises(ValueError, match="must reach consensus"):
        rounds_for([np.eye(3), np.eye(3)], 1e-2)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        rounds_for([np.eye(3)], 1e-2)


def test_rounds_from_a_rate_are_the_fewest():
    assert rounds_from_rate(0.5, 0.25) == 2
    assert rounds_from_rate(0.1, 1e-2) == 2
    assert rounds_from_rate(0.5, 0.24) == 3
    assert rounds_from_rate(0.0, 1e-9) == 1


def test_the_rate_of_random_draws_is_that_of_the_mean_square():
    draws = [np.kron(np.eye(2), PAIR), np.kron(PAIR, np.eye(2)), np.eye(4)]
    square = sum(draw @ draw for draw in draws) / 3 - 1 / 4
    assert random_consensus_rate(iter(draws)) == pytest.approx(math.sqrt(np.linalg.eigvalsh(square)[-1]))


def test_the_rate_of_a_relabelled_matrix_is_the_mean_over_all_relabellings():
    from itertools import permutations

    matrix = metropolis_weights(nx.path_graph(4))
    for rounds in (1, 2, 3):
        power = np.linalg.matrix_power(matrix, rounds)
        draws = [power[np.ix_(order, order)] for order in permutations(range(4))]
        assert relabelled_consensus_rate(matrix, rounds) ** rounds == pytest.approx(random_consensus_rate(draws))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "workers", "message"),
    [
        (np.ones((2, 3)) / 3, None, r"square, found the shape \(2, 3\)"),
        ([0.5, 0.5], None, r"two-dimensional and square, found the shape \(2,\)"),
        (np.zeros((0, 0)), None, r"found the shape \(0, 0\)"),
        (PAIR, 3, r"each of 3 workers, found \(2, 2\)"),
        ([[np.nan, 0.5], [0.5, 0.5]], None, r"finite entries, found nan at \[0, 0\]"),
        ([[0.5, 0.5], [np.inf, 0.5]], None, r"finite entries, found inf at \[1, 0\]"),
        ([[1.2, -0.2], [-0.2, 1.2]], None, r"negative entries, found -0\.2 at \[0, 1\]"),
        (
            [[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]],
            None,
            r"symmetric, found \[0, 2\] = 0\.2 and \[2, 0\] = 0\.1, a difference of 0\.1",
        ),
        ([[0.5, 0.4], [0.4, 0.6]], None, r"rows that sum to 1, found row 0 with the sum 0\.9"),
        (np.kron(np.eye(2), PAIR), None, r"connected, found 2 components: \{0, 1\}, \{2, 3\}"),
        (np.eye(9), None, r"found 9 components: \{0\}, \{1\}, \{2\}, \{3\} and 5 more"),
        ([[0, 1], [1, 0]], None, r"periodic, found the eigenvalue -1"),
        ((np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)) / 2, None, "periodic"),
    ],
)
def test_a_matrix_that_gossip_cannot_use_is_refused_with_what_was_found(matrix, workers, message):
    with pytest.raises(ValueError, match=message):
        check_mixing_matrix(matrix, workers)


@pytest.mark.parametrize("matrix", ["ring", [["a", "b"], ["c", "d"]], [[1j]], None, [[0.5, 0.5], [1.0]]])
def test_what_is_not_numbers_is_not_a_matrix(matrix):
    with pytest.raises(TypeError, match="matrix must be readable as a NumPy array of real numbers"):
        check_mixing_matrix(matrix)


def test_a_ring_of_odd_length_without_self_weights_is_not_periodic():
    matrix = (np.roll(np.eye(5), 1, 0) + np.roll(np.eye(5), -1, 0)) / 2
    np.testing.assert_allclose(check_mixing_matrix(matrix), matrix, atol=1e-15)


def test_rounding_of_float32_is_repaired_and_the_given_array_is_left_alone():
    given = ring_matrix(7).astype(np.float32)
    given[0, 1] += 1e-7
    given[0, 3] = -3e-8
    before = given.copy()
    clean = check_mixing_matrix(given)
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(clean, clean.T)
    np.testing.assert_allclose(clean.sum(axis=1), 1, atol=1e-15)
    assert clean[0, 3] == 0
    np.testing.assert_allclose(clean, ring_matrix(7), atol=2e-7)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph([(0, 1), (1, 0)]), "undirected, found a directed graph"),
        (nx.MultiGraph([(0, 1), (0, 1)]), "parallel edges, found a multigraph"),
        (nx.Graph(), "at least one node, found none"),
        (nx.Graph([(1, 2)]), r"nodes 0\.\.1, one a worker, found node 2"),
        (nx.Graph([("a", "b")]), "found node 'a'; networkx.convert_node_labels_to_integers"),
        (nx.Graph([(0, 1), (1, 1)]), "self loops, found one at node 1"),
        (nx.Graph([(0, 1), (2, 3)]), r"connected, found 2 components: \{0, 1\}, \{2, 3\}"),
    ],
)
def test_a_graph_that_gossip_cannot_use_is_refused_with_what_was_found(graph, message):
    with pytest.raises(ValueError, match=message):
        check_graph(graph)
    with pytest.raises(ValueError, match=message):
        metropolis_weights(graph)


def test_what_is_not_a_graph_is_refused():
    with pytest.raises(TypeError, match=r"graph must be a networkx\.Graph, found list"):
        check_graph([(0, 1)])


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, -1e-2, float("nan"), 1e-13])
def test_a_tolerance_out_of_range_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"tolerance must be in \[1e-12, 1\), found"):
        rounds_for([PAIR], tolerance)


@pytest.mark.parametrize("tolerance", ["0.1", None, True])
def test_a_tolerance_that_is_no_number_is_refused(tolerance):
    with pytest.raises(TypeError, match="tolerance must be a number, found"):
        rounds_for([PAIR], tolerance)


def test_schedules_must_hold_matrices_of_one_shape():
    with pytest.raises(ValueError, match="at least one matrix"):
        consensus_rate([])
    with pytest.raises(ValueError, match="at least one matrix"):
        random_consensus_rate([])
    with pytest.raises(ValueError, match="one shape"):
        consensus_rate([PAIR, np.eye(3)])
    with pytest.raises(ValueError, match="one shape"):
        random_consensus_rate([PAIR, np.eye(3)])
    with pytest.raises(ValueError, match="rounds must be an integer >= 1, found 0"):
        relabelled_consensus_rate(PAIR, 0)
