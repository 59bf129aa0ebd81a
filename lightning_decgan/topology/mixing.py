"""How much: mixing matrices and how fast they bring workers to agreement.

A mixing matrix ``W`` of N workers is N x N, symmetric, doubly stochastic, and row ``i`` says what worker ``i`` takes of
everybody in a round of gossip: ``x_i <- sum_j W[i, j] x_j``. ``J`` is the matrix of all 1/N, the exact average, and
what a round leaves of the disagreement is ``W - J``. Pure NumPy and networkx: nothing here talks or knows torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import networkx as nx
import numpy as np
import numpy.typing as npt

from lightning_decgan.checks import check_integer
from lightning_decgan.topology.checks import Matrix, check_graph, square_array

SMALLEST_TOLERANCE = 1e-12
"""The smallest tolerance that `rounds_for` accepts; below it float64 rounding would decide the answer."""


def metropolis_weights(graph: nx.Graph[int]) -> Matrix:
    """The Metropolis mixing matrix of a graph, doubly stochastic without anybody knowing the whole graph.

    ``W[i, j] = 1 / (1 + max(degree_i, degree_j))`` on the edges, ``W[i, i] = 1 - sum_j W[i, j]``.

    Args:
        graph: undirected and connected, with the nodes 0..N-1; edge attributes are not used.

    Returns:
        W, float64, shape (N, N).

    Raises:
        TypeError: not a graph.
        ValueError: not a graph that workers can gossip over (`check_graph`).

    Example:
        >>> metropolis_weights(nx.cycle_graph(3)).round(3).tolist()
        [[0.333, 0.333, 0.333], [0.333, 0.333, 0.333], [0.333, 0.333, 0.333]]

    Source: Xiao, Boyd, Lall, "A scheme for robust distributed sensor fusion based on average consensus", IPSN 2005.
    """
    check_graph(graph)
    workers = graph.number_of_nodes()
    adjacency: Matrix = np.zeros((workers, workers))
    for worker, other in graph.edges:
        adjacency[worker, other] = adjacency[other, worker] = 1.0
    degrees = adjacency.sum(axis=1)
    weights = adjacency / (1.0 + np.maximum(degrees[:, None], degrees[None, :]))
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def consensus_rate(matrices: Sequence[npt.ArrayLike]) -> float:
    """What a round leaves of the disagreement, on average over a schedule that repeats.

    ``rate = ||W_{p-1} ... W_1 W_0 - J||_2 ** (1 / p)``; for one matrix that is ``max(|lambda_2|, |lambda_N|)``.

    Args:
        matrices: W_0 ... W_{p-1}, symmetric and doubly stochastic, each (N, N), in the order in which they are used.

    Returns:
        A number in [0, 1]: 0 is the exact mean after one period, 1 never converges.

    Raises:
        ValueError: no matrix, one that is not square, or of different sizes.

    Example:
        >>> round(consensus_rate([metropolis_weights(nx.cycle_graph(8))]), 3)
        0.805

    Source: Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", IEEE Trans. Inf. Theory 2006.
    """
    remainders = _remainders(matrices)
    product = remainders[0]
    for remainder in remainders[1:]:
        product = remainder @ product
    # A schedule that is exact cancels to rounding, and the p-th root of 1e-17 would pass for a rate. The rounding of
    # each matrix reaches the product through all the others.
    norms = [_norm(remainder) for remainder in remainders]
    reached = sum(math.prod(norms[:i] + norms[i + 1 :]) for i in range(len(norms)))
    norm = _norm(product)
    noise = len(product) * float(np.finfo(np.float64).eps) * reached
    return 0.0 if norm <= noise else norm ** (1.0 / len(remainders))


def spectral_gap(matrix: npt.ArrayLike) -> float:
    """One minus the rate of a matrix: ``1 - max(|lambda_2|, |lambda_N|)``; the wider, the faster workers agree.

    Args:
        matrix: W, symmetric and doubly stochastic, shape (N, N).

    Returns:
        A number in [0, 1]; 1 for a single worker, 0 for a matrix that never converges.

    Raises:
        ValueError: not square.

    Example:
        >>> round(spectral_gap(metropolis_weights(nx.cycle_graph(4))), 6)
        0.666667
    """
    return 1.0 - consensus_rate([matrix])


def random_consensus_rate(draws: Iterable[npt.ArrayLike]) -> float:
    """The root mean square of what a round leaves of the disagreement, when every round is drawn independently.

    ``rate = sqrt(lambda_max(E[W^2] - J))``, with the mean over the draws in place of E.

    Args:
        draws: mixing matrices, each (N, N), one an independent draw.

    Returns:
        A number in [0, 1]. The largest eigenvalue of a sample mean is a little too large: more draws, less so.

    Raises:
        ValueError: no matrix, one that is not square, or of different sizes.

    Example:
        >>> random_consensus_rate([np.full((4, 4), 0.25)])
        0.0

    Source: Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", IEEE Trans. Inf. Theory 2006.
    """
    square: Matrix | None = None
    count = 0
    for draw in draws:  # one at a time: many draws of a large matrix would not fit in memory
        (remainder,) = _remainders([draw])
        if square is not None and square.shape != remainder.shape:
            raise ValueError(f"draws must all have one shape, found {square.shape} and {remainder.shape}")
        square = remainder @ remainder if square is None else square + remainder @ remainder
        count += 1
    if square is None:
        raise ValueError("draws must hold at least one matrix, found none")
    square /= count
    largest = float(np.linalg.eigvalsh(square)[-1])
    return 0.0 if largest <= len(square) * np.finfo(np.float64).eps else math.sqrt(largest)


def relabelled_consensus_rate(matrix: npt.ArrayLike, rounds: int = 1) -> float:
    """The exact rate of a schedule that deals the places of one matrix to the workers anew every few rounds.

    With every relabelling equally likely, E[W^(2d)] treats all workers alike, so on the disagreement it is a number,
    the mean of lambda^(2d) over the N - 1 eigenvalues of W there: ``rate = (sum lambda^(2d) / (N - 1)) ** (1 / (2d))``.

    Args:
        matrix: W of one draw, shape (N, N).
        rounds: d, the rounds that a draw lasts.

    Returns:
        The root mean square of what is left after a draw, as a factor a round, in [0, 1].

    Raises:
        ValueError: not square, or rounds < 1.

    Example:
        >>> pairs = np.kron(np.eye(3), np.full((2, 2), 0.5))        # six workers in pairs: sqrt((N - 2) / (2 (N - 1)))
        >>> abs(relabelled_consensus_rate(pairs) - (4 / 10) ** 0.5) < 1e-12
        True
    """
    check_integer("rounds", rounds, 1)
    remainder = _remainders([matrix])[0]
    eigenvalues = np.abs(np.linalg.eigvalsh(remainder))
    largest = float(eigenvalues.max())
    if largest <= len(remainder) * np.finfo(np.float64).eps:
        return 0.0
    mean = float(np.sum((eigenvalues / largest) ** (2 * rounds))) / (len(remainder) - 1)
    return largest * float(mean ** (1.0 / (2 * rounds)))


def rounds_for(matrices: Sequence[npt.ArrayLike], tolerance: float) -> int:
    """The fewest rounds after which a repeating schedule, begun at round 0, is within a tolerance of the mean.

    The smallest n with ``||W_{n-1} ... W_1 W_0 - J||_2 <= tolerance``: whatever the workers start from, the 2-norm of
    their deviation from the mean is then at most that fraction of what it was.

    Args:
        matrices: W_0 ... W_{p-1}, one period of the schedule, each (N, N).
        tolerance: the fraction, in [1e-12, 1).

    Returns:
        n; 0 for a single worker.

    Raises:
        ValueError: tolerance out of its range, or a schedule that never gets there.

    Example:
        >>> rounds_for([metropolis_weights(nx.cycle_graph(8))], 1e-2)
        22
    """
    tolerance = check_tolerance(tolerance)
    remainders = _remainders(matrices)
    if len(remainders[0]) == 1:
        return 0
    if len(remainders) == 1:
        return rounds_from_rate(consensus_rate(matrices), tolerance)
    bound = tolerance * (1 + 1e-9)
    period = remainders[0]
    for remainder in remainders[1:]:
        period = remainder @ period
    # The norm never grows with the rounds, so whole periods are found by doubling and halving, not one by one.
    powers = [period]
    while _norm(powers[-1]) > bound:
        if len(powers) > 50:
            raise ValueError("matrices must reach consensus, found a schedule that does not (is its union connected?)")
        powers.append(powers[-1] @ powers[-1])
    left = np.eye(len(period)) - 1.0 / len(period)
    rounds = 0
    for exponent in reversed(range(len(powers) - 1)):
        candidate = powers[exponent] @ left
        if _norm(candidate) > bound:
            left = candidate
            rounds += len(remainders) * 2**exponent
    for remainder in remainders:
        left = remainder @ left
        rounds += 1
        if _norm(left) <= bound:
            break
    return rounds


def rounds_from_rate(rate: float, tolerance: float) -> int:
    """The fewest rounds n with ``rate ** n <= tolerance``.

    Args:
        rate: what a round leaves of the disagreement, in [0, 1).
        tolerance: the fraction to reach, in [1e-12, 1).

    Returns:
        n, at least 1.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> rounds_from_rate(0.5, 1e-2)
        7
    """
    tolerance = check_tolerance(tolerance)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate must be in [0, 1) for workers to agree some day, found {rate!r}")
    return 1 if rate <= tolerance else math.ceil(math.log(tolerance) / math.log(rate) - 1e-9)


def check_tolerance(tolerance: float) -> float:
    """Return the tolerance, or raise ValueError (TypeError) unless it is a number in [1e-12, 1).

    Example:
        >>> check_tolerance(0.01)
        0.01
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float, np.floating)):
        raise TypeError(f"tolerance must be a number, found {tolerance!r}")
    if not SMALLEST_TOLERANCE <= tolerance < 1.0:
        raise ValueError(f"tolerance must be in [{SMALLEST_TOLERANCE:g}, 1), found {tolerance!r}")
    return float(tolerance)


def _remainders(matrices: Sequence[npt.ArrayLike]) -> list[Matrix]:
    """W - J of each: since W J = J W = J, products of these are products of the W, less J, without its rounding."""
    arrays = [square_array("matrix", matrix) for matrix in matrices]
    if not arrays:
        raise ValueError("matrices must hold at least one matrix, found none")
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"matrices must all have one shape, found {sorted(shapes)}")
    return [array - 1.0 / len(array) for array in arrays]


def _norm(matrix: Matrix) -> float:
    """The 2-norm, from the eigenvalues of M^T M: as exact for the largest singular value, and several times faster."""
    return math.sqrt(max(float(np.linalg.eigvalsh(matrix.T @ matrix)[-1]), 0.0))
