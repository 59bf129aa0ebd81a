"""What makes a graph or a mixing matrix fit for gossip, and errors that name what is not.

Two things are asked for. The two ends of an edge must add opposite amounts, so that the mean over workers never moves:
graphs are undirected, matrices symmetric. And disagreement must shrink: graphs are connected, matrices not periodic.
Nothing here repairs what is more than rounding, and nothing here talks.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-6
"""What counts as rounding in a given matrix: float32 entries pass, a weight that was mistyped does not."""

Matrix = npt.NDArray[np.float64]


def check_graph(graph: nx.Graph[int]) -> None:
    """Raise unless workers can gossip over a graph: undirected, simple, connected, nodes 0..N-1.

    Args:
        graph: the graph to check; attributes of nodes and edges are not looked at.

    Raises:
        TypeError: not a ``networkx.Graph``.
        ValueError: directed, a multigraph, empty, other nodes than 0..N-1, self loops, or not connected.

    Example:
        >>> check_graph(nx.path_graph(3))
        >>> check_graph(nx.Graph([(0, 1), (2, 3)]))
        Traceback (most recent call last):
        ...
        ValueError: graph must be connected, found 2 components: {0, 1}, {2, 3}
    """
    if not isinstance(graph, nx.Graph):
        raise TypeError(f"graph must be a networkx.Graph, found {type(graph).__name__}")
    if graph.is_directed():
        raise ValueError(
            "graph must be undirected, found a directed graph: the two ends of an edge swap, so that the mean over "
            "workers never moves; graph.to_undirected() would do"
        )
    if graph.is_multigraph():
        raise ValueError(
            "graph must not have parallel edges, found a multigraph: two workers swap once a round; "
            "networkx.Graph(graph) would do"
        )
    workers = graph.number_of_nodes()
    if workers == 0:
        raise ValueError("graph must have at least one node, found none")
    if set(graph.nodes) != set(range(workers)):
        strange = next(node for node in graph.nodes if node not in range(workers))
        raise ValueError(
            f"graph must have the nodes 0..{workers - 1}, one a worker, found node {strange!r}; "
            "networkx.convert_node_labels_to_integers(graph) would do"
        )
    loops = sorted(nx.nodes_with_selfloops(graph))
    if loops:
        raise ValueError(
            f"graph must not have self loops, found one at node {loops[0]}: what a worker keeps of itself follows "
            "from the weights of its edges; graph.remove_edges_from(list(networkx.selfloop_edges(graph))) would do"
        )
    check_connected("graph", graph)


def check_mixing_matrix(matrix: npt.ArrayLike, workers: int | None = None) -> Matrix:
    """Raise unless gossip with this matrix keeps the mean and converges to it; return it free of rounding.

    Rounding up to `TOLERANCE` is forgiven and repaired: entries of at most that size become 0, W becomes (W + W^T) / 2
    so that both ends of an edge hold the same number bit for bit, and the diagonal takes what the rows lack.

    Args:
        matrix: array-like of shape (N, N); a torch tensor on the CPU is one.
        workers: the N that is wanted; None takes any.

    Returns:
        W, float64, shape (N, N), a new array.

    Raises:
        TypeError: not readable as real numbers.
        ValueError: not two-dimensional and square, of the wrong size, with NaN, infinite or negative entries, not
            symmetric, rows that do not sum to 1, not connected, or periodic (an eigenvalue of -1).

    Example:
        >>> check_mixing_matrix([[0.5, 0.5], [0.5, 0.5]]).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
        >>> check_mixing_matrix([[0.9, 0.2], [0.2, 0.8]])
        Traceback (most recent call last):
        ...
        ValueError: matrix must have rows that sum to 1, found row 0 with the sum 1.1
    """
    array = square_array("matrix", matrix)
    size = array.shape[0]
    if workers is not None and size != workers:
        raise ValueError(f"matrix must have one row and one column for each of {workers} workers, found {array.shape}")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"matrix must have finite entries, found {array[row, column]} at [{row}, {column}]")
    if array.min() < -TOLERANCE:
        row, column = np.unravel_index(array.argmin(), array.shape)
        raise ValueError(f"matrix must not have negative entries, found {array[row, column]:g} at [{row}, {column}]")
    difference = np.abs(array - array.T)
    if difference.max() > TOLERANCE:
        row, column = np.unravel_index(difference.argmax(), array.shape)
        raise ValueError(
            f"matrix must be symmetric, found [{row}, {column}] = {array[row, column]:g} and [{column}, {row}] = "
            f"{array[column, row]:g}, a difference of {difference[row, column]:g}"
        )
    sums = array.sum(axis=1)
    worst = int(np.abs(sums - 1.0).argmax())
    if abs(sums[worst] - 1.0) > TOLERANCE:
        raise ValueError(f"matrix must have rows that sum to 1, found row {worst} with the sum {sums[worst]:g}")
    clean: Matrix = (array + array.T) / 2
    clean[np.abs(clean) <= TOLERANCE] = 0.0
    np.fill_diagonal(clean, 0.0)
    graph: nx.Graph[int] = nx.from_numpy_array(clean)
    check_connected("matrix", graph)
    kept = 1.0 - clean.sum(axis=1)
    if size > 1 and kept.max() <= TOLERANCE and nx.is_bipartite(graph):
        raise ValueError(
            "matrix must not be periodic, found the eigenvalue -1: two groups of workers would trade places in every "
            "round and never agree; keep something of oneself, for instance (W + I) / 2"
        )
    np.fill_diagonal(clean, np.maximum(kept, 0.0))
    return clean


def square_array(name: str, matrix: npt.ArrayLike) -> Matrix:
    """Return an array-like as a square float64 array, or raise TypeError (not real numbers), ValueError (not square).

    Example:
        >>> square_array("matrix", [[1]]).tolist()
        [[1.0]]
    """
    try:
        found = np.asarray(matrix)
        if found.dtype.kind not in "buif":
            raise TypeError(f"entries of type {found.dtype}")
        array = found.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises all three, for CUDA, bfloat16, gradients
        raise TypeError(
            f"{name} must be readable as a NumPy array of real numbers, found {type(matrix).__name__}: {error}"
        ) from error
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(f"{name} must be two-dimensional and square, found the shape {array.shape}")
    return array


def check_connected(name: str, graph: nx.Graph[int]) -> None:
    """Raise ValueError, with the components, unless a graph of at least one node is connected.

    Example:
        >>> check_connected("graph", nx.cycle_graph(3))
    """
    components = sorted((sorted(component) for component in nx.connected_components(graph)), key=lambda c: c[0])
    if len(components) > 1:
        listed = ", ".join(
            "{" + ", ".join(map(str, c[:6])) + (", ..." if len(c) > 6 else "") + "}" for c in components[:4]
        )
        more = f" and {len(components) - 4} more" if len(components) > 4 else ""
        raise ValueError(f"{name} must be connected, found {len(components)} components: {listed}{more}")
