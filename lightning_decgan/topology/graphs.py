"""Who talks to whom, the same in every round: the shapes that have a name, for any N for which the shape exists.

Each class says whom a worker meets and how many they are, at a cost of O(degree); weights, matrices and rates come from
`Topology`. Nothing here talks, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_decgan.checks import check_integer
from lightning_decgan.topology.base import Topology


class Shape(Topology):
    """A topology that its arguments determine, so that they describe it."""

    def settings(self) -> dict[str, object]:
        """The arguments besides the number of workers."""
        return {}

    def describe(self) -> str:
        """One canonical line: the name and the arguments."""
        values = {"workers": self.workers, **self.settings()}
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in values.items())})"


def dimensions(workers: int) -> int:
    """The bits needed to number the workers, ceil(log2 N), and 0 for one.

    Example:
        >>> [dimensions(workers) for workers in (1, 2, 3, 8, 9)]
        [0, 1, 2, 3, 4]
    """
    return (workers - 1).bit_length()


class Ring(Shape):
    """Every worker meets the one before and the one after, in every round.

    One worker meets nobody, two share one edge, and from three up all weights are 1/3. The cheapest topology that never
    changes and the slowest to agree: the gap is ``(2/3) (1 - cos(2 pi / N))``, about ``13 / N^2``, from four up.

    Args:
        workers: N, at least 1.

    Raises:
        TypeError: workers is not an integer.
        ValueError: workers < 1.

    Example:
        >>> Ring(5).neighbors(0)
        (1, 4)
        >>> round(Ring(8).spectral_gap(), 3)
        0.195

    Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS 2017.
    """

    name = "ring"

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        return tuple(sorted({(worker - 1) % self.workers, (worker + 1) % self.workers} - {worker}))

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return min(2, self.workers - 1)


class Exponential(Shape):
    """Every worker meets those 1, 2, 4, 8 ... places away, on both sides, in every round.

    Worker i meets ``i + 2^k`` and ``i - 2^k`` modulo N for all ``2^k < N``: about 2 log2(N) neighbours, and a gap that
    shrinks only with log N.

    Args:
        workers: N, at least 1.

    Raises:
        TypeError: workers is not an integer.
        ValueError: workers < 1.

    Example:
        >>> Exponential(16).neighbors(0)
        (1, 2, 4, 8, 12, 14, 15)

    Source: Ying et al., "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021
    (arXiv:2110.13363), whose graph is directed (i sends to i + 2^k only); this is its symmetric form, because both ends
    of an edge must add opposite amounts.
    """

    name = "exponential"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        steps = [2**exponent for exponent in range(dimensions(self.workers))]
        self._offsets = tuple(sorted({sign * step % self.workers for step in steps for sign in (1, -1)}))

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        return tuple(sorted((worker + offset) % self.workers for offset in self._offsets))

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return len(self._offsets)


class Torus(Shape):
    """Workers on a grid whose edges are joined, each meeting the next in its row and in its column, in every round.

    Worker ``r * columns + c`` sits at row r, column c and has four neighbours, fewer where a side is one or two long: a
    side of two gives one edge, not a double one. The gap shrinks with 1/N, where a ring's shrinks with 1/N^2.

    Args:
        workers: N, at least 1.
        shape: (rows, columns) with rows x columns = N; None takes the most square, which for a prime N is 1 x N, a
            ring.

    Raises:
        TypeError: an argument is not an integer, or shape not a pair.
        ValueError: workers < 1, or a shape that does not hold N workers.

    Example:
        >>> Torus(12).shape
        (3, 4)
        >>> Torus(12).neighbors(0)
        (1, 3, 4, 8)

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging", Systems & Control Letters 2004.
    """

    name = "torus"

    def __init__(self, workers: int, shape: Sequence[int] | None = None) -> None:
        super().__init__(workers)
        fitting = [(d, self.workers // d) for d in range(1, int(self.workers**0.5) + 1) if self.workers % d == 0]
        if shape is None:
            self.shape = fitting[-1]
            return
        if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence) or len(shape) != 2:
            raise TypeError(f"shape must be a pair (rows, columns) or None, found {shape!r}")
        self.shape = (check_integer("shape rows", shape[0], 1), check_integer("shape columns", shape[1], 1))
        if self.shape[0] * self.shape[1] != self.workers:
            raise ValueError(
                f"shape must hold {self.workers} workers, found {self.shape[0]} x {self.shape[1]} = "
                f"{self.shape[0] * self.shape[1]}; what fits, either way round: {', '.join(map(str, fitting))}"
            )

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        rows, columns = self.shape
        row, column = divmod(worker, columns)
        beside = {row * columns + (column + step) % columns for step in (1, -1)}
        above = {(row + step) % rows * columns + column for step in (1, -1)}
        return tuple(sorted((beside | above) - {worker}))

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return sum(min(2, side - 1) for side in self.shape)

    def settings(self) -> dict[str, object]:
        """The shape."""
        return {"shape": f"{self.shape[0]}x{self.shape[1]}"}


class Hypercube(Shape):
    """Every worker meets those whose number differs from its own in one bit: log2(N) neighbours, in every round.

    The gap is ``2 / (1 + log2 N)``. The same edges taken one bit a round are `OnePeerExponential`, which is exact after
    log2(N) rounds and sends one message in each.

    Args:
        workers: N, a power of two.

    Raises:
        TypeError: workers is not an integer.
        ValueError: workers is not a power of two.

    Example:
        >>> Hypercube(8).neighbors(5)
        (1, 4, 7)
        >>> Hypercube(6)
        Traceback (most recent call last):
        ...
        ValueError: workers must be a power of two for a hypercube, found 6; the nearest are 4 and 8

    Source: Cybenko, "Dynamic load balancing for distributed memory multiprocessors", J. Parallel Distrib. Comput. 1989.
    """

    name = "hypercube"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        above = 1 << dimensions(self.workers)
        if above != self.workers:
            raise ValueError(
                f"workers must be a power of two for a hypercube, found {self.workers}; "
                f"the nearest are {above // 2} and {above}"
            )

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        return tuple(sorted(worker ^ (1 << bit) for bit in range(dimensions(self.workers))))

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return dimensions(self.workers)


class Complete(Shape):
    """Everybody meets everybody, in every round: the exact mean at once, for N - 1 messages a worker.

    All weights are 1/N. It is what all-reduce does, and the yardstick for the others.

    Args:
        workers: N, at least 1.

    Raises:
        TypeError: workers is not an integer.
        ValueError: workers < 1.

    Example:
        >>> Complete(4).weights(0)
        {1: 0.25, 2: 0.25, 3: 0.25}
    """

    name = "complete"

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, _ = self.checked(worker, round)
        return tuple(other for other in range(self.workers) if other != worker)

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return self.workers - 1
