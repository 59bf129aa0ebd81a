"""Is what a swap yields fit to be added? Both ends see both messages, so both judge alike and need not ask each other.

That matters more than the verdict itself: a difference that one end adds and the other does not would move the mean.
So every rule here is a symmetric function of what both ends know.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from lightning_decgan.gossip.header import Header

__all__ = ["Judge"]


class Judge:
    """The verdicts on one edge, and the memory of what was usual there.

    A difference `d = s_neighbour - s_own` is an outlier when `|d|` is more than `FACTOR` times every one of the last
    accepted `MEMORY` distances of this edge *and* more than a tenth of the smaller of the two snapshots' norms: early
    in training distances grow by large factors from nearly nothing, which is no reason for suspicion. Before `LEAST`
    distances are known (at the start, after the graph was knit anew, with neighbours that are met once in a while) only
    the impossible is an outlier: norms `EARLY_FACTOR` apart, of workers that began equal, or a difference that is ten
    times as long as both snapshots together, which no two vectors of these norms have.

    Example:
        >>> mine, its = Header(0, 0, 1.0, void=False), Header(0, 0, 1.0, void=False)
        >>> judge = Judge()
        >>> [judge.verdict(mine, its, distance=0.01) for _ in range(8)] == [None] * 8
        True
        >>> judge.verdict(mine, its, distance=5.0)
        'an outlier: a distance of 5 after 0.01 at most'
        >>> judge.in_a_row
        1
    """

    FACTOR = 100.0
    EARLY_FACTOR = 10_000.0
    MEMORY = 32
    LEAST = 8
    PATIENCE = 3
    """So many rejected in a row, and the edge is given up."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=self.MEMORY)
        self.in_a_row = 0

    def verdict(self, mine: Header, its: Header | None, distance: float) -> str | None:
        """Why the difference must not be added, or `None` if it may.

        Args:
            mine: this worker's header of the swap.
            its: the neighbour's.
            distance: norm of the difference.
        """
        reason = self._reason(mine, its, distance)
        if reason is None:
            self.in_a_row = 0
            self._usual.append(distance)
        else:
            self.in_a_row += 1
        return reason

    def _reason(self, mine: Header, its: Header | None, distance: float) -> str | None:
        if its is None:
            return "a message without a header"
        if not mine.fits(its):
            return f"a message of round {its.number} in round {mine.number}"
        if mine.void or its.void:
            return "parameters that are not finite and were not published"
        if not math.isfinite(distance):
            return "values that are not finite"
        smaller, larger = sorted((mine.norm, its.norm))
        if distance > 10.0 * (smaller + larger):
            return f"an outlier: a distance of {distance:.3g} between norms of {smaller:.3g} and {larger:.3g}"
        if len(self._usual) < self.LEAST and larger > self.EARLY_FACTOR * smaller > 0.0:
            return f"an outlier: a norm of {larger:.3g} beside one of {smaller:.3g}"
        usual = max(self._usual, default=0.0)
        if (
            len(self._usual) >= self.LEAST
            and distance > self.FACTOR * usual
            and distance > 0.1 * min(mine.norm, its.norm)
        ):
            return f"an outlier: a distance of {distance:.3g} after {usual:.3g} at most"
        return None

    def state_dict(self) -> dict[str, Any]:
        """The memory, in plain numbers."""
        return {"usual": list(self._usual), "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._usual = deque(state["usual"], maxlen=self.MEMORY)
        self.in_a_row = state["in_a_row"]
