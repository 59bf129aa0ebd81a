"""Pictures of topologies: who meets whom, and how much of each other they take.

Draws on a canvas of its own: no window, no pyplot, no global state, so it works in a worker, a notebook and a test. One
panel for a topology that never changes, one panel a round for a schedule. It never computes more than it shows.
"""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from lightning_decgan.cli.pictures import INK, MUTED, PAPER
from lightning_decgan.topology import GraphTopology, Hypercube, MatrixTopology, Topology, Torus

LARGEST_PICTURE_WORKERS = 512
"""The largest N that is drawn; more would be a grey disc that takes minutes."""

MOST_PANELS = 4
"""Rounds of a schedule that are drawn unless more are asked for."""

_SHADES = LinearSegmentedColormap.from_list("weights", ["#b9d3ea", "#2a7fba", "#0b2f57"])

Positions = dict[int, tuple[float, float]]


def plot_topology(topology: Topology, path: str | Path, rounds: int | None = None) -> Path:
    """Draw a topology with the weights of its edges into a file.

    Weights stand on the edges where there is room, as fractions where they are 1/n; where there is not, one weight
    shared by all stands above the panel and different ones become shades with a scale.

    Args:
        topology: of at most 512 workers.
        path: of the picture; the ending says the format (.png, .svg, .pdf). An existing file is replaced.
        rounds: panels to draw, rounds 0..rounds-1; None draws one for a topology that never changes, else one a round
            of the period, four at most.

    Returns:
        The path.

    Raises:
        ValueError: more than 512 workers, rounds outside 1..12, or an ending that matplotlib does not know.
        FileNotFoundError: the folder of the path does not exist.

    Example:
        >>> import tempfile
        >>> from lightning_decgan.topology import Ring
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_topology(Ring(5), Path(folder) / "ring.png").stat().st_size > 5_000
        True
    """
    path = Path(path)
    if topology.workers > LARGEST_PICTURE_WORKERS:
        raise ValueError(f"workers must be at most {LARGEST_PICTURE_WORKERS} for a picture, found {topology.workers}")
    if rounds is None:
        rounds = MOST_PANELS if topology.period is None else min(MOST_PANELS, topology.period)
    if not 1 <= rounds <= 12:
        raise ValueError(f"rounds must be in 1..12 for a picture, found {rounds}")
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"path must end in one of {', '.join(f'.{name}' for name in sorted(formats))}, found {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must lie in a folder that exists, found {path.parent}")

    graphs = [topology.graph(round) for round in range(rounds)]
    weights = [edge[2] for graph in graphs for edge in _edges(graph)]
    shared = _shared(weights)
    columns = min(rounds, 4)
    rows = math.ceil(rounds / columns)
    side_inches = 5.2 if rounds == 1 else 3.5
    shaded = bool(weights) and shared is None
    width, height = max(columns * side_inches, 5.2), rows * side_inches + 1.0
    figure = Figure(figsize=(width, height), facecolor=PAPER, dpi=150)
    FigureCanvasAgg(figure)
    right = 1 - (0.9 / width if shaded else 0.02)
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": 0.02,
            "right": right,
            "bottom": 0.02,
            "top": 1 - 1.0 / height,
            "wspace": 0.06,
            "hspace": 0.15,
        },
    )
    scale = Normalize(0.0, max(weights, default=1.0))
    positions = layout(topology)
    for round, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if round < rounds:
            _panel(axes, topology, graphs[round], positions, scale, shared)
            if rounds > 1 or topology.period != 1:
                axes.set_title(f"round {round}", color=INK, fontsize=11, pad=4)
    if shaded:
        scale_axes = figure.add_axes((right + 0.12 / width, 0.15, 0.14 / width, 0.55))
        bar = figure.colorbar(ScalarMappable(scale, _SHADES), cax=scale_axes)
        bar.set_label("weight W[i, j]", color=MUTED, fontsize=9)
        bar.ax.tick_params(labelsize=8, colors=MUTED)
        bar.outline.set_visible(False)
    idle = topology.workers > 1 and any(degree == 0 for graph in graphs for _, degree in graph.degree)
    _heading(figure, topology, shared, idle, height)
    figure.savefig(path, facecolor=PAPER)
    return path


def layout(topology: Topology) -> Positions:
    """Where the workers stand: a circle, or what shows the shape better (a grid, a cube, springs).

    Args:
        topology: of any class.

    Returns:
        (x, y) of each worker, within [-1, 1].

    Example:
        >>> from lightning_decgan.topology import Ring
        >>> layout(Ring(4))[1]
        (1.0, 0.0)
    """
    workers = topology.workers
    if isinstance(topology, Torus) and min(topology.shape) > 1:
        columns = topology.shape[1]
        places = [(float(worker % columns), -float(worker // columns)) for worker in range(workers)]
    elif isinstance(topology, Hypercube) and 4 <= workers <= 16:
        cube = [(1.0, 0.0), (0.0, 1.0), (0.44, 0.36)]
        # Seen along its longest diagonals, the cube of four dimensions falls on two octagons, no corner on another.
        tesseract = [(math.cos(math.pi * (k + 0.5) / 4), math.sin(math.pi * (k + 0.5) / 4)) for k in range(4)]
        axes = tesseract if workers == 16 else cube
        places = [
            tuple(sum(axis[d] for bit, axis in enumerate(axes) if worker >> bit & 1) for d in (0, 1))  # type: ignore[misc]
            for worker in range(workers)
        ]
    elif isinstance(topology, (GraphTopology, MatrixTopology)) and workers > 2:
        graph = topology.graph()
        if workers <= 128:
            found = nx.kamada_kawai_layout(graph, weight=None)
        else:
            found = nx.spring_layout(graph, seed=0, weight=None)
        places = [(float(found[worker][0]), float(found[worker][1])) for worker in range(workers)]
    else:
        angles = [math.pi / 2 - 2 * math.pi * worker / workers for worker in range(workers)]
        places = [(round(math.cos(angle), 12) + 0.0, round(math.sin(angle), 12) + 0.0) for angle in angles]
        return dict(enumerate(places)) if workers > 1 else {0: (0.0, 0.0)}
    points = np.asarray(places)
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    points = points / max(float(np.abs(points).max()), 1e-9)
    return {worker: (float(x), float(y)) for worker, (x, y) in enumerate(points)}


def _panel(
    axes: Axes, topology: Topology, graph: nx.Graph[int], positions: Positions, scale: Normalize, shared: float | None
) -> None:
    workers = topology.workers
    size = max(14.0, min(430.0, 430.0 * (10 / max(workers, 10)) ** 1.1))
    edges = _edges(graph)
    width = 2.4 if len(edges) <= 40 else max(0.25, 2.4 * (40 / len(edges)) ** 0.6)
    segments, colors, widths = [], [], []
    for worker, other, weight in edges:
        strength = weight / float(scale.vmax or 1.0)
        for segment in _segments(topology, worker, other, positions):
            segments.append(segment)
            colors.append(_SHADES(0.62 if shared is not None else scale(weight)))
            widths.append(width * (0.45 + 0.8 * strength))
    axes.add_collection(LineCollection(segments, colors=colors, linewidths=widths, zorder=1, capstyle="round"))
    if len(edges) <= 20:
        outline = [patheffects.withStroke(linewidth=3.5, foreground=PAPER)]
        for (x, y), label in _labels(topology, edges, positions):
            axes.text(x, y, label, ha="center", va="center", color=INK, fontsize=8.5, zorder=2, path_effects=outline)
    points = np.asarray([positions[worker] for worker in range(workers)])
    alone = [graph.degree[worker] == 0 for worker in range(workers)]
    faces = [PAPER if lonely else INK for lonely in alone]
    axes.scatter(points[:, 0], points[:, 1], s=size, c=faces, edgecolors=INK, linewidths=1.3, zorder=3)
    if workers <= 64:
        for worker in range(workers):
            color = INK if alone[worker] else PAPER
            font = min(10.0, 0.48 * math.sqrt(size))
            axes.text(*positions[worker], str(worker), ha="center", va="center", color=color, fontsize=font, zorder=4)
    axes.set_xlim(-1.24, 1.24)
    axes.set_ylim(-1.24, 1.24)
    axes.set_aspect("equal")


def _edges(graph: nx.Graph[int]) -> list[tuple[int, int, float]]:
    """The edges of a round with their weights."""
    return [(worker, other, float(graph[worker][other]["weight"])) for worker, other in graph.edges]


def _segments(
    topology: Topology, worker: int, other: int, positions: Positions
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The lines of an edge: one, or two stubs where a torus joins its far sides."""
    (x0, y0), (x1, y1) = positions[worker], positions[other]
    if isinstance(topology, Torus) and min(topology.shape) > 1:
        columns = topology.shape[1]
        apart = (other % columns - worker % columns, worker // columns - other // columns)
        if max(map(abs, apart)) > 1:
            length = 0.55 * (2 / max(max(topology.shape) - 1, 1))
            length = min(length, 0.2)
            dx, dy = (length * float(np.sign(step)) for step in apart)
            return [((x0, y0), (x0 - dx, y0 - dy)), ((x1, y1), (x1 + dx, y1 + dy))]
    return [((x0, y0), (x1, y1))]


def _labels(
    topology: Topology, edges: list[tuple[int, int, float]], positions: Positions
) -> list[tuple[tuple[float, float], str]]:
    """Where the weights stand: on their edge, as near its middle as other edges, labels and workers leave room."""
    lines = {edge: _segments(topology, edge[0], edge[1], positions) for edge in edges}
    along = np.linspace(0.0, 1.0, 33)[:, None]
    dots = {
        edge: np.concatenate([np.asarray(a) + along * (np.asarray(b) - np.asarray(a)) for a, b in segments])
        for edge, segments in lines.items()
    }
    placed: list[tuple[tuple[float, float], str]] = []
    for edge, segments in lines.items():
        if len(segments) > 1:  # stubs are too short for a number
            continue
        start, end = np.asarray(segments[0][0]), np.asarray(segments[0][1])
        others = [dots[other] for other in edges if other != edge]
        others += [np.asarray([place]) for place in positions.values()]
        others += [np.asarray([place]) for place, _ in placed]
        crowd = np.concatenate(others)
        best, best_room = start, -1.0
        for at in (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73):
            point = start + at * (end - start)
            room = min(float(np.linalg.norm(crowd - point, axis=1).min()), 0.16)
            if room > best_room + 1e-9:
                best, best_room = point, room
        placed.append(((float(best[0]), float(best[1])), _fraction(edge[2])))
    return placed


def _heading(figure: Figure, topology: Topology, shared: float | None, idle: bool, height_inches: float) -> None:
    workers = "1 worker" if topology.workers == 1 else f"{topology.workers} workers"
    facts = [f"spectral gap {topology.spectral_gap():.3f}", f"rounds to 1e-2: {topology.rounds_for(1e-2)}"]
    if shared is not None:
        facts.append(f"every edge {_fraction(shared)}")
    if idle:
        facts.append("hollow: sits the round out")
    title = f"{topology.name.replace('_', ' ')}, {workers}"
    figure.text(0.5, 1 - 0.32 / height_inches, title, ha="center", va="center", color=INK, fontsize=14, weight="bold")
    line = "  ·  ".join(facts)
    figure.text(0.5, 1 - 0.61 / height_inches, line, ha="center", va="center", color=MUTED, fontsize=9.5)


def _shared(weights: list[float]) -> float | None:
    """The one weight that all edges have, or None."""
    return weights[0] if weights and max(weights) - min(weights) < 1e-9 else None


def _fraction(weight: float) -> str:
    """1/n where the weight is that, else three digits."""
    whole = round(1 / weight)
    return f"1/{whole}" if abs(weight * whole - 1) < 1e-9 else f"{weight:.3g}"
