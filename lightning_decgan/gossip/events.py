"""What happened to a worker's neighbourhood: one line each, for the log and for summary.json."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

__all__ = ["EventLog", "GossipEvent"]

_log = logging.getLogger("lightning_decgan")


@dataclass(frozen=True)
class GossipEvent:
    """Something that a worker noticed.

    Attributes:
        kind: `"edge_lost"`, `"worker_lost"`, `"payload_rejected"`, `"not_published"`, `"isolated"`, `"reknit"`,
            `"regrouped"` or `"took_over"`.
        step: the batch of this worker at which it was noticed, counted from 1.
        worker: who noticed.
        neighbor: whom it concerns, if it concerns one.
        detail: the rest, for people.
        time: when, in seconds since the epoch.
    """

    kind: str
    step: int
    worker: int
    neighbor: int | None
    detail: str
    time: float

    def __str__(self) -> str:
        about = "" if self.neighbor is None else f", neighbour {self.neighbor}"
        return f"worker {self.worker}, step {self.step}{about}: {self.kind}: {self.detail}"


class EventLog:
    """The events of one worker: each is logged as a warning when it happens, and the first 1,000 of each kind are kept.

    Example:
        >>> log = EventLog(worker=2)
        >>> log.add("edge_lost", step=7, neighbor=3, detail="no answer")
        >>> print(log.events[0])
        worker 2, step 7, neighbour 3: edge_lost: no answer
    """

    LIMIT = 1_000
    _LOGGED = 100

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.counts: dict[str, int] = {}
        self.events: list[GossipEvent] = []
        self._told: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def add(self, kind: str, step: int, neighbor: int | None, detail: str) -> None:
        """Count an event; log it and keep it while there are not too many of its kind."""
        event = GossipEvent(kind, step, self.worker, neighbor, detail, time.time())
        with self._lock:
            count = self.counts[kind] = self.counts.get(kind, 0) + 1
            if count <= self.LIMIT:
                self.events.append(event)
        if count <= self._LOGGED:
            last = f" (more of {kind!r} are counted, not logged)" if count == self._LOGGED else ""
            _log.warning("%s%s", event, last)

    def once(self, kind: str, step: int, neighbor: int, detail: str) -> None:
        """Add an event unless there is one of this kind about this worker."""
        if (kind, neighbor) not in self._told:
            self._told.add((kind, neighbor))
            self.add(kind, step, neighbor, detail)
