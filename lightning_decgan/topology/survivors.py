"""Topologies of those who are left: when workers were lost, who talks to whom among the others.

A lost worker takes its edges with it, and what it would have been given stays with its neighbours: no agreement is
needed for that. Only when the survivors fall apart into groups that can no longer hear of each other (`falls_apart`)
do they need new edges, and `reknit` says which, a pure function of who is left, so that all find the same without a
word. Workers keep the numbers that they began with. Nothing here talks, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import networkx as nx

from lightning_decgan.checks import check_integer
from lightning_decgan.topology.base import Topology
from lightning_decgan.topology.given import GraphTopology
from lightning_decgan.topology.graphs import Exponential, Hypercube
from lightning_decgan.topology.power import PowerTopology
from lightning_decgan.topology.registry import build_topology


class Survivors(Topology):
    """A topology of a few, played by some of the workers 0..N-1 under the numbers that they have.

    Member k of `members` plays worker k of `rule`; everybody else has no neighbours and keeps what it has, W[i, i] = 1.
    Rates are those of the rule, so of the members among themselves: that the absent never agree is no news.

    Args:
        rule: of as many workers as there are members.
        members: the numbers of the workers that take part, each once, in the order of their parts.
        workers: N, as many as there are numbers.

    Raises:
        TypeError: rule is not a topology, or a number is not an integer.
        ValueError: no members, a number twice or out of range, or a rule of another number of workers.

    Example:
        >>> from lightning_decgan.topology import Ring
        >>> left = Survivors(Ring(4), members=[0, 2, 3, 5], workers=6)
        >>> left.neighbors(5), left.neighbors(1)
        ((0, 3), ())
        >>> left.spectral_gap() == Ring(4).spectral_gap()
        True
    """

    def __init__(self, rule: Topology, members: Sequence[int], workers: int) -> None:
        super().__init__(workers)
        if not isinstance(rule, Topology):
            raise TypeError(f"rule must be a Topology, found {type(rule).__name__}")
        self.rule = rule
        self.members = _checked_members(members, self.workers)
        if rule.workers != len(self.members):
            raise ValueError(
                f"rule must be a topology of {len(self.members)} workers, one a member, found {rule.name} of "
                f"{rule.workers}"
            )
        self.period = rule.period
        self.name = f"{rule.name} of {len(self.members)} survivors"
        self._parts = {member: part for part, member in enumerate(self.members)}

    def rebuilt_for(self, workers: int) -> Topology:
        """The rule for another number of workers, who then all take part."""
        return self.rule.rebuilt_for(workers)

    def neighbors(self, worker: int, round: int = 0) -> tuple[int, ...]:
        """Whom a worker meets in a round, sorted; nobody, unless it is a member."""
        worker, round = self.checked(worker, round)
        part = self._parts.get(worker)
        return () if part is None else self._members(self.rule.neighbors(part, round))

    def degree(self, worker: int, round: int = 0) -> int:
        """How many neighbours a worker has in a round."""
        worker, round = self.checked(worker, round)
        part = self._parts.get(worker)
        return 0 if part is None else self.rule.degree(part, round)

    def weights(self, worker: int, round: int = 0) -> dict[int, float]:
        """W[worker, j] for each neighbour j of the round, as in the rule; of nobody, unless it is a member."""
        worker, round = self.checked(worker, round)
        part = self._parts.get(worker)
        if part is None:
            return {}
        weights = self.rule.weights(part, round)
        return dict(sorted((self.members[other], weight) for other, weight in weights.items()))

    def links(self, worker: int) -> tuple[int, ...]:
        """Everyone a worker may ever meet, in any round."""
        worker, _ = self.checked(worker, 0)
        part = self._parts.get(worker)
        return () if part is None else self._members(self.rule.links(part))

    def consensus_rate(self) -> float:
        """What a round leaves of the members' disagreement."""
        return self.rule.consensus_rate()

    def rounds_for(self, tolerance: float) -> int:
        """The fewest rounds after which the members' deviation from their mean is at most this fraction of itself."""
        return self.rule.rounds_for(tolerance)

    def describe(self) -> str:
        """One canonical line: the rule's, and who plays it."""
        members = ",".join(map(str, self.members))
        return f"survivors(workers={self.workers}, members={members}, rule={self.rule.describe()})"

    def _members(self, parts: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(self.members[part] for part in parts))


def falls_apart(topology: Topology, members: Sequence[int], lost_edges: Collection[tuple[int, int]] = ()) -> bool:
    """Whether the survivors are in groups that never hear of each other, in no round of a period.

    Args:
        topology: of the run, of N workers.
        members: the workers that are left.
        lost_edges: pairs of workers between which nothing travels any more, whichever end comes first.

    Returns:
        False for a single member and for none.

    Raises:
        TypeError: a member is not an integer.
        ValueError: a member twice or out of range.

    Example:
        >>> from lightning_decgan.topology import Ring
        >>> falls_apart(Ring(6), [0, 1, 2, 3, 4])      # a ring without one is a path
        False
        >>> falls_apart(Ring(6), [0, 1, 2, 3, 4], [(2, 3)])
        True
    """
    members = _checked_members(members, topology.workers) if len(members) else ()
    lost: dict[int, set[int]] = {member: set() for member in members}
    for one, other in lost_edges:
        lost.setdefault(one, set()).add(other)
        lost.setdefault(other, set()).add(one)
    # Everybody who can be reached from the first. With sets and not as a graph, because of a schedule drawn anew all
    # pairs are links, and survivors are waiting.
    unheard = set(members)
    reached = [unheard.pop()] if unheard else []
    while reached:
        worker = reached.pop()
        found = unheard.intersection(topology.links(worker)) - lost[worker]
        unheard -= found
        reached.extend(found)
    return bool(unheard)


def reknit(topology: Topology, members: Sequence[int]) -> Survivors:
    """A connected topology among the survivors: the topology's own rule for as many as they are, in their order.

    Where there is no such rule, another one stands in, and `name` tells: for a hypercube of a number that is no power
    of two, the exponential graph; for a given graph or matrix, and for a class that cannot say (`rebuilt_for`), what is
    left of its edges and a ring through the members, with Metropolis weights (the ring alone for a schedule that is
    drawn anew, in which everybody may meet everybody).

    All survivors get the same answer if they ask the same. Ask with the topology that the run began with and everybody
    who is left, not with the answer to an earlier loss: survivors may have heard of two losses in either order.

    Args:
        topology: of N workers.
        members: the workers that are left, at least one; their order does not matter.

    Returns:
        A topology of N workers in which the others have no neighbours.

    Raises:
        TypeError: a member is not an integer.
        ValueError: no members, or one twice or out of range.

    Example:
        >>> from lightning_decgan.topology import Hypercube, Ring
        >>> reknit(Ring(6), [0, 2, 3, 5]).neighbors(0)
        (2, 5)
        >>> reknit(Hypercube(8), [0, 1, 2, 4, 5, 7]).name
        'exponential of 6 survivors'
    """
    members = tuple(sorted(_checked_members(members, topology.workers)))
    return Survivors(_rule(topology, members), members, topology.workers)


def _rule(topology: Topology, members: tuple[int, ...]) -> Topology:
    if isinstance(topology, PowerTopology):
        return PowerTopology(_rule(topology.topology, members), topology.rounds)
    try:
        return build_topology(topology.rebuilt_for(len(members)), len(members))  # which checks a class of one's own
    except ValueError:
        return Exponential(len(members)) if isinstance(topology, Hypercube) else _what_is_left(topology, members)


def _what_is_left(topology: Topology, members: tuple[int, ...]) -> GraphTopology:
    parts = {member: part for part, member in enumerate(members)}
    graph: nx.Graph[int] = nx.empty_graph(len(members))
    graph.add_edges_from((part, part + 1) for part in range(len(members) - 1))
    if len(members) > 2:
        graph.add_edge(len(members) - 1, 0)
    if topology.period is not None:  # all pairs are links of a schedule drawn anew: the ring alone is cheaper
        for member, part in parts.items():
            graph.add_edges_from((part, parts[other]) for other in topology.links(member) if other in parts)
    return GraphTopology(graph)


def _checked_members(members: Sequence[int], workers: int) -> tuple[int, ...]:
    checked = tuple(check_integer("members", member, 0, workers - 1) for member in members)
    if not checked:
        raise ValueError("members must name at least one worker, found none")
    if len(set(checked)) < len(checked):
        raise ValueError(f"members must name every worker once, found {list(checked)}")
    return checked
