"""What is done about a loss, on a thread of its own: break the waits for the lost, and knit a graph that fell apart.

Training and gossip go on meanwhile with what is left. Everybody sees the same losses and asks the same question of the
same graph, so everybody comes to the same meeting; the new graph is the topology's own rule on the survivors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from lightning_decgan.gossip.edge import Edge, EdgeError, connect_edges
from lightning_decgan.gossip.membership import Membership
from lightning_decgan.gossip.neighborhood import Neighborhood
from lightning_decgan.topology import Topology, falls_apart, reknit

__all__ = ["Mender"]

_log = logging.getLogger("lightning_decgan")


class Mender:
    """Follows a membership and keeps a neighbourhood connected.

    Args:
        neighborhood: what is mended.
        membership: who is still there.
        rule: the topology that the run began with; its rule makes the graph of the survivors.
        step: tells which batch this worker is at, for the log.
        connect_timeout: deadline for connecting one edge.
        nccl_device: see `connect_edges`.
    """

    def __init__(
        self,
        neighborhood: Neighborhood,
        membership: Membership,
        rule: Topology,
        step: Callable[[], int],
        connect_timeout: timedelta = timedelta(seconds=10),
        nccl_device: torch.device | None = None,
    ) -> None:
        self._neighborhood, self._membership, self._rule = neighborhood, membership, rule
        self._step, self._connect_timeout, self._nccl_device = step, connect_timeout, nccl_device
        self._topology = neighborhood.topology  # of the newest generation, adopted or not
        self._attempts = 0
        self._changed, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._resting = self._closing = False
        self._thread = threading.Thread(target=self._run, name="gossip mender", daemon=True)
        self._thread.start()
        membership.on_change(self._notice)

    def wait_until_mended(self, timeout: timedelta) -> None:
        """Wait until the graph that is being knit, if one is, can be adopted.

        Raises:
            TimeoutError: it took longer.
        """
        if not self._idle.wait(timeout.total_seconds()):
            raise TimeoutError(f"the survivors could not link up again within {timeout.total_seconds():g} s")

    def rest(self) -> None:
        """Knit no more, for gossip is about to end; the lost are still not waited for."""
        self._resting = True

    def close(self) -> None:
        """Stop following; a meeting under way ends when the membership closes, so close that next, and then `join`."""
        self._closing = True
        self._changed.set()

    def join(self) -> None:
        """Wait for the thread to end, which takes no longer than connecting an edge.

        Still in torch's C++ code when the interpreter ends, it would take the process down with it (SIGABRT).
        """
        self._thread.join(self._connect_timeout.total_seconds() + 1.0)

    def _notice(self) -> None:
        self._idle.clear()
        self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._closing:
                self._idle.set()
                return
            try:
                self._mend()
            except Exception:  # whatever it was: gossip goes on with the edges that are left
                self._neighborhood.give_up_mending()
                if not self._closing:
                    _log.exception("worker %d could not knit the survivors' graph anew", self._membership.worker)
            if not self._changed.is_set():
                self._idle.set()

    def _mend(self) -> None:
        self._neighborhood.abandon_the_lost()
        while not (self._closing or self._resting) and self._fallen_apart():
            self._neighborhood.mending = True
            met = self._membership.gather_while(self._fallen_apart, f"graph {self._attempts}", self._connect_timeout)
            if met is None:
                break  # somebody else was lost, and what is left hangs together
            (store, members), self._attempts = met, self._attempts + 1
            topology = reknit(self._rule, members)
            edges = self._connect(topology, store)
            # Everybody has the same answers before anybody goes on with them: either all adopt this graph or none.
            store.set(f"linked/{self._membership.worker}", "no" if edges is None else "yes")
            _, still = self._membership.gather(f"graph {self._attempts - 1} linked", self._connect_timeout)
            if still != members or any(store.get(f"linked/{member}") != b"yes" for member in members):
                for edge in (edges or {}).values():
                    edge.close()
                continue
            assert edges is not None
            self._adopt(topology, edges, members)
            return
        self._neighborhood.give_up_mending()

    def _fallen_apart(self) -> bool:
        return falls_apart(self._topology, self._membership.members, self._membership.lost_edges)

    def _connect(self, topology: Topology, store: dist.Store) -> Mapping[int, Edge] | None:
        worker = self._membership.worker
        store = dist.PrefixStore("gossip", store)
        try:
            return connect_edges(
                worker, topology.workers, topology.links(worker), self._connect_timeout, store, self._nccl_device
            )
        except EdgeError as error:
            _log.warning("%s; trying again", error)
            return None

    def _adopt(self, topology: Topology, edges: Mapping[int, Edge], members: tuple[int, ...]) -> None:
        self._membership.forgive_edges()
        self._topology = topology
        self._neighborhood.prepare(topology, edges)
        self._neighborhood.events.add(
            "reknit",
            self._step(),
            None,
            f"the graph of the survivors {list(members)} had fallen apart; it is now {topology.name} with a spectral"
            f" gap of {topology.spectral_gap():.4f}",
        )
