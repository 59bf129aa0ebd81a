"""Who talks to whom, changing from round to round: one far peer after another, random pairs, random rings.

The random ones draw a round from (seed, round) at O(N) and keep the last few draws, so that every worker finds the same
partners without talking. Nothing here talks, and nothing here imports torch.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Self

import numpy as np

from lightning_decgan.checks import check_integer
from lightning_decgan.topology import mixing
from lightning_decgan.topology.graphs import Shape, dimensions


class OnePeerExponential(Shape):
    """Every worker meets at most one other a round, twice as far away each time; exact after log2(N) rounds.

    In round r, with ``k = r mod ceil(log2 N)``, worker i swaps with ``i XOR 2^k`` where that worker exists and sits the
    round out where it does not. Weights are 1/2, so a swap replaces both by their mean. With N a power of two the
    exact mean of all is there after log2(N) rounds, one message a round; for every other N the union of the rounds is
    connected (clearing bits leads from any worker to worker 0) and the schedule converges.

    It differs from the one-peer exponential graph of Ying et al. 2021, where worker i sends to ``i + 2^k`` modulo N and
    receives from ``i - 2^k``: that graph is directed, its matrix not symmetric. Gossip here adds increments
    ``W[i, j] (s_j - s_i)``, of which the two ends of an edge add opposite amounts; that takes swaps. XOR is the
    symmetric way to the same exactness for powers of two.

    Args:
        workers: N, at least 1.

    Raises:
        TypeError: workers is not an integer.
        ValueError: workers < 1.

    Example:
        >>> topology = OnePeerExponential(8)
        >>> [topology.neighbors(5, round) for round in range(4)]
        [(4,), (7,), (1,), (4,)]
        >>> topology.rounds_for(1e-9)
        3

    Source: after Ying et al., NeurIPS 2021 (arXiv:2110.13363); in this form the "dimension exchange" of
    Cybenko, "Dynamic load balancing for distributed memory multiprocessors", J. Parallel Distrib. Comput. 1989.
    """

    name = "one_peer_exponential"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.period = max(1, dimensions(self.workers))

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round: one other, or nobody."""
        worker, round = self.checked(worker, round)
        other = worker ^ (1 << round % max(1, dimensions(self.workers)))
        return (other,) if other < self.workers else ()


class RandomMatching(Shape):
    """New partners every round: all workers in random pairs, one sits out where N is odd.

    Round r draws a permutation from ``numpy.random.default_rng((seed, r))`` and pairs it off in order; weights are 1/2.
    The rate, a root mean square, is ``sqrt((N - 2) / (2 (N - 1)))`` for even N and ``sqrt(1/2)`` for odd N > 1: one
    message a round halves the squared disagreement, however many workers there are.

    Args:
        workers: N, at least 1.
        seed: at least 0; every worker must have the same.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: workers < 1 or seed < 0.

    Example:
        >>> topology = RandomMatching(6, seed=1)
        >>> partner, = topology.neighbors(0, round=7)
        >>> topology.neighbors(partner, round=7)
        (0,)

    Source: Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", IEEE Trans. Inf. Theory 2006.
    """

    name = "random_matching"
    period = None

    def __init__(self, workers: int, seed: int = 0) -> None:
        super().__init__(workers)
        self.seed = check_integer("seed", seed, 0)

    @classmethod
    def from_settings(cls, workers: int, *, seed: int = 0, rounds: int = 1) -> Self:
        """Make it with the strategy's seed; every round is drawn anew, however many a step makes."""
        del rounds
        return cls(workers, seed=seed)

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round: one other, or nobody."""
        worker, round = self.checked(worker, round)
        order, place = _permutation(self.workers, self.seed, round)
        partner = place[worker] ^ 1  # places 2k and 2k + 1 are a pair
        return (order[partner],) if partner < self.workers else ()

    def consensus_rate(self) -> float:
        """The root mean square of what a round leaves of the disagreement, exact."""
        return mixing.relabelled_consensus_rate(self.mixing_matrix(0))

    def settings(self) -> dict[str, object]:
        """The seed, and a digest of the first draw: another NumPy may draw other numbers from the same seed."""
        return {"seed": self.seed, "first_draw": _first_draw(self.workers, self.seed)}


class RandomRing(Shape):
    """A ring whose workers change places every few rounds: our reading of the random neighbours of Rand-DP-OAdam.

    Draw ``d = round // rounds_per_draw`` puts the workers round a ring in the order of a permutation drawn from
    ``numpy.random.default_rng((seed, d))``; all its rounds use that ring. With as many rounds a draw as gossip has a
    step, the neighbours are new in every step. The weights of a ring, without its ``1 / N^2``.

    Args:
        workers: N, at least 1.
        seed: at least 0; every worker must have the same.
        rounds_per_draw: rounds that a draw lasts, at least 1.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: workers < 1, seed < 0 or rounds_per_draw < 1.

    Example:
        >>> topology = RandomRing(100, seed=3, rounds_per_draw=2)
        >>> topology.neighbors(0, round=4) == topology.neighbors(0, round=5)
        True
        >>> round(topology.consensus_rate(), 2)   # Ring(100) has 0.9987
        0.69

    Source: Liu et al., "A decentralized parallel algorithm for training generative adversarial nets", NeurIPS 2020
    (arXiv:1910.12999), names the method; what exactly is drawn is our choice.
    """

    name = "random_ring"
    period = None

    def __init__(self, workers: int, seed: int = 0, rounds_per_draw: int = 1) -> None:
        super().__init__(workers)
        self.seed = check_integer("seed", seed, 0)
        self.rounds_per_draw = check_integer("rounds_per_draw", rounds_per_draw, 1)

    @classmethod
    def from_settings(cls, workers: int, *, seed: int = 0, rounds: int = 1) -> Self:
        """Make it with the strategy's seed and one draw a step."""
        return cls(workers, seed=seed, rounds_per_draw=rounds)

    def rebuilt_for(self, workers: int) -> Self:
        """The same seed and the same number of rounds a draw, for another number of workers."""
        return self.from_settings(workers, seed=self.seed, rounds=self.rounds_per_draw)

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted."""
        worker, round = self.checked(worker, round)
        order, place = _permutation(self.workers, self.seed, round // self.rounds_per_draw)
        around = {order[place[worker] - 1], order[(place[worker] + 1) % self.workers]}
        return tuple(sorted(around - {worker}))

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        return min(2, self.workers - 1)

    def consensus_rate(self) -> float:
        """The root mean square of what a round leaves of the disagreement, exact, over whole draws."""
        return mixing.relabelled_consensus_rate(self.mixing_matrix(0), self.rounds_per_draw)

    def settings(self) -> dict[str, object]:
        """The arguments, and a digest of the first draw: another NumPy may draw other numbers from the same seed."""
        first_draw = _first_draw(self.workers, self.seed)
        return {"seed": self.seed, "rounds_per_draw": self.rounds_per_draw, "first_draw": first_draw}


@functools.lru_cache(maxsize=16)
def _permutation(workers: int, seed: int, draw: int) -> tuple[list[int], list[int]]:
    """The workers in the order of a draw, and each worker's place in it.

    A cache of the module, not of an object: topologies keep no state, so they pickle small and threads may share
    one.
    """
    order = np.random.default_rng((seed, draw)).permutation(workers)
    return order.tolist(), np.argsort(order).tolist()


def _first_draw(workers: int, seed: int) -> str:
    order, _ = _permutation(workers, seed, 0)
    return hashlib.sha256(np.asarray(order, dtype="<i8").tobytes()).hexdigest()[:12]
