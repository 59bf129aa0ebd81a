"""The workers that are still there, as a whole: who they are, and how they meet when a moment concerns all of them.

Between such moments nobody talks to everybody. Each begins with a roll call; when somebody has been lost since the last
one, the default process group is made anew of the survivors, and the lowest of them becomes the main one: it logs and
writes checkpoints from then on. The numbers by which workers know each other in gossip never change.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist

from lightning_decgan.gossip import (
    EdgeError,
    EventLog,
    Gossiper,
    Membership,
    Mender,
    Neighborhood,
    connect_edges,
)
from lightning_decgan.gossip.meeting import confirm, meet
from lightning_decgan.topology import Topology

__all__ = ["Assembly", "check_nccl_device", "door_host"]

_log = logging.getLogger("lightning_decgan")

_T = TypeVar("_T")

_served: list[dist.Store] = []
"""Where default groups met that were made anew: such a group outlives the fit, and may be used to link up again."""

# Connecting an edge has been seen to take 5 s on an idle machine, so a short gossip deadline does not apply to it.
_CONNECT_TIMEOUT = timedelta(seconds=30)

_ANSWER_AT_LEAST_WITHIN, _ANSWER_WITHIN = timedelta(seconds=1), timedelta(seconds=10)
"""How soon a worker that lives answers: a third of the gossip deadline, but no less and no more than this."""


class Assembly:
    """What one worker knows of all others.

    Args:
        membership: who is still there.
        neighborhood: with whom this worker gossips.
        rule: the topology that the run began with.
        timeout: after which a worker that does not answer is given up.
        world_timeout: deadline of a meeting, and of the default group's collectives.
        backend: of the default group.
        device: of this worker.
        on_regroup: called with this worker's new rank when the default group has been made anew.
        nccl_device: the GPU from which edges send by NCCL, if they do.
    """

    def __init__(
        self,
        membership: Membership,
        neighborhood: Neighborhood,
        rule: Topology,
        *,
        timeout: timedelta,
        world_timeout: timedelta,
        backend: str,
        device: torch.device,
        on_regroup: Callable[[int], None],
        nccl_device: torch.device | None = None,
    ) -> None:
        self.membership, self.neighborhood = membership, neighborhood
        self.members = membership.members
        self.step = 0
        self._timeout, self._world_timeout = timeout, world_timeout
        self._backend, self._device, self._on_regroup = backend, device, on_regroup
        self._meetings = self._works = 0
        self._is_open = True
        self._lost: set[int] = set()
        self._has_met = True
        self.mender = Mender(neighborhood, membership, rule, lambda: self.step, nccl_device=nccl_device)

    @classmethod
    def link_up(
        cls,
        worker: int,
        rule: Topology,
        host: str,
        on_loss: Literal["continue", "raise"],
        *,
        timeout: timedelta,
        world_timeout: timedelta,
        backend: str,
        device: torch.device,
        on_regroup: Callable[[int], None],
        nccl_device: torch.device | None = None,
    ) -> Assembly:
        """Connect to the neighbours, and open the door at which everybody can ask whether this worker is alive.

        Every worker must call this, and the default group must exist. `worker` is this worker's number, `host` the
        address of its door (see `door_host`), `on_loss` whether to go on without a neighbour that is lost; the other
        arguments are those of the class.

        Raises:
            EdgeError: a neighbour did not connect in time.
            TimeoutError: somebody opened no door in time.
        """
        store, neighbors = dist.distributed_c10d._get_default_store(), rule.links(worker)
        # A question waits behind what the network has yet to carry: on a slow one longer than a connection takes.
        # Much less than the deadline, or those who wait for the one who asks would give that one up.
        answer_within = min(max(timeout / 3, _ANSWER_AT_LEAST_WITHIN), _ANSWER_WITHIN)
        membership = Membership.open(worker, rule.workers, store, host, answer_within)
        edges = connect_edges(worker, rule.workers, neighbors, max(timeout, _CONNECT_TIMEOUT), nccl_device=nccl_device)
        membership.watch(neighbors)
        neighborhood = Neighborhood(worker, rule, edges, membership, EventLog(worker), on_loss)
        return cls(
            membership,
            neighborhood,
            rule,
            timeout=timeout,
            world_timeout=world_timeout,
            backend=backend,
            device=device,
            on_regroup=on_regroup,
            nccl_device=nccl_device,
        )

    @property
    def rank(self) -> int:
        """This worker's rank in the default group."""
        return self.members.index(self.membership.worker)

    @property
    def lost(self) -> tuple[int, ...]:
        """The workers that were lost while training."""
        return tuple(sorted(self._lost))

    @property
    def events(self) -> EventLog:
        """What this worker noticed."""
        return self.neighborhood.events

    def batch_has_stepped(self, step: int) -> None:
        """The next moment that concerns everybody will need a roll call.

        Raises:
            EdgeError: this worker was given up by the others, or somebody was lost and that is fatal in this run.
        """
        self.step = self.membership.step = step
        self._has_met = False
        worker, given_up = self.membership.worker, self.membership.given_up
        if given_up is not None:
            raise EdgeError(
                f"worker {worker} was given up by the others: {given_up.reason} (noticed by worker {given_up.seen_by}"
                f" at its step {given_up.step}). They go on without it; this worker ends here.",
                worker,
                given_up.seen_by,
            )
        self.check_losses()

    def check_losses(self) -> None:
        """Note who was lost since the last call.

        Raises:
            EdgeError: somebody was lost and that is fatal in this run.
        """
        for worker, text in self.membership.departures.items():
            self._lost.add(worker)
            if self.neighborhood.on_loss == "raise":
                raise EdgeError(
                    f"step {self.step}: worker {worker} was lost: {text}; DecentralizedGossipStrategy("
                    "on_loss='continue') would go on without it",
                    self.membership.worker,
                    worker,
                )
            self.events.once("worker_lost", self.step, worker, text)

    def meet(self, gossiper: Gossiper) -> None:
        """Call the roll, unless that was done since the last batch; afterwards collectives reach everybody.

        Args:
            gossiper: is brought to the same number of gossips on every worker, so that nothing is left half swapped.

        Raises:
            TimeoutError: a worker is alive but did not come within the world timeout.
            EdgeError: somebody was lost and that is fatal in this run.
        """
        if self._has_met or len(self.members) == 1 == len(self.membership.members):
            return
        self._meetings += 1
        store, members = meet(
            f"moment {self._meetings}", self.membership, self.mender, gossiper, self._timeout, self._world_timeout
        )
        self.check_losses()
        if members != self.members:
            self._regroup(store, members)
        self._has_met = True

    def together(self, gossiper: Gossiper, work: Callable[[], _T]) -> _T:
        """Do something that takes everybody, and do it anew among the survivors if somebody is lost meanwhile.

        Afterwards all who return have seen the same workers take part: a worker that died before it could say that it
        has done its share may have left some of the others with a result and some without one.

        Args:
            gossiper: see `meet`.
            work: collectives of the default group; may be called again, with another group, and must then have the
                same effect.

        Returns:
            What `work` returned.

        Raises:
            TimeoutError, EdgeError: as `meet`.
            RuntimeError: what `work` raised, if nobody was lost.
        """
        self.meet(gossiper)
        while self._is_open and len(self.members) > 1:
            result, failure = None, None
            try:
                result = work()
            except (RuntimeError, dist.DistError) as error:
                # Whoever waits for this worker in a collective learns from its sockets that it waits in vain. They stay
                # open as long as a traceback holds the frames that hold the group.
                failure = error.with_traceback(None)
                failure.__context__ = failure.__cause__ = None
                dist.destroy_process_group()
            self._works += 1
            name = f"work {self._works}"
            store, members = confirm(name, self.membership, self._timeout, self._world_timeout)
            if members == self.members:
                if failure is not None:
                    raise failure
                return cast(_T, result)
            self.check_losses()
            self._regroup(store, members)
        return work()

    def part(self) -> None:
        """Training is over for this worker: whoever leaves from now on is no loss, and no graph has to be mended."""
        self.mender.rest()

    def close(self) -> None:
        """Leave: the others are told that this is no accident."""
        self._is_open = False
        self.mender.close()
        self.membership.close()
        self.mender.join()
        self._has_met = True  # nobody is to be waited for any more

    def _regroup(self, store: dist.Store, members: tuple[int, ...]) -> None:
        lost = sorted(set(self.members) - set(members))
        self.members = members
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group(
            self._backend,
            store=dist.PrefixStore("world", store),
            rank=self.rank,
            world_size=len(members),
            timeout=self._world_timeout,
            device_id=None if self._device.type == "cpu" else self._device,
        )
        if self.membership.hosted_store is not None:
            _served.append(self.membership.hosted_store)
        self.events.add("regrouped", self.step, None, f"the workers are now {list(members)}; lost: {lost}")
        self._on_regroup(self.rank)


def check_nccl_device(edges: Literal["gloo", "nccl"], device: torch.device) -> torch.device | None:
    """The GPU from which edges send, or `None` where they send from host memory.

    Raises:
        ValueError: there is no GPU to send from.
    """
    if edges == "gloo":
        return None
    if device.type != "cuda":
        raise ValueError(f"edges='nccl' needs a GPU for each worker, found {device}; edges='gloo' does not")
    return device


def door_host(main_address: str, on_one_machine: bool) -> str:
    """The address at which this worker can be asked whether it is alive: loopback, unless the run spans machines."""
    if on_one_machine:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((main_address, 9))  # sends nothing: asks the system which of its addresses leads there
        found = str(probe.getsockname()[0])
    if found.startswith("127.") and not main_address.startswith(("127.", "localhost")):
        # Debian gives a machine's own name an address that only the machine itself can reach.
        _log.warning(
            "MASTER_ADDR %r means %s on this machine, where no other machine can reach this worker: it would be taken"
            " for dead. Name the main machine by its IP address.",
            main_address,
            found,
        )
    return found
