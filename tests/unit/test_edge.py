"""Links: what those who swap and wait are told when another thread closes one, whenever it does."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_decgan.gossip.edge import Edge, EdgeError, connect_edges

TIMEOUT = timedelta(seconds=20)


def _connect() -> tuple[Edge, Edge]:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as threads:
        ends = threads.map(lambda worker: connect_edges(worker, 2, [1 - worker], TIMEOUT, store), range(2))
        low, high = ends
    return low[1], high[0]


def _message(value: int) -> Tensor:
    return torch.full((1000,), value, dtype=torch.uint8)


def test_both_ends_of_a_swap_get_the_others_message() -> None:
    low, high = _connect()
    incoming = [_message(0), _message(0)]
    swaps = [low.swap(_message(1), incoming[0], tag=3), high.swap(_message(2), incoming[1], tag=3)]
    for swap in swaps:
        swap.wait(time.monotonic() + 5.0)
    assert [int(message[0]) for message in incoming] == [2, 1]
    low.close()
    high.close()


def test_who_waits_and_who_swaps_next_are_told_why_the_link_was_closed() -> None:
    low, high = _connect()
    swap = low.swap(_message(1), _message(0), tag=3)
    low.close("worker 1 was lost: its process ended")
    low.close("a second time")
    for action in (lambda: swap.wait(time.monotonic() + 5.0), lambda: low.swap(_message(1), _message(0), tag=4)):
        with pytest.raises(EdgeError, match=r"worker 0 lost its link to neighbour 1.*worker 1 was lost: its") as caught:
            action()
        assert not caught.value.late
    high.close()


def test_whenever_a_link_is_closed_nobody_waits_for_a_deadline() -> None:
    """The close falls between, beside and inside swaps; with what was posted afterwards, nobody would come."""
    drawn = random.Random(5)
    for _ in range(40):
        low, high = _connect()
        closing = threading.Timer(drawn.uniform(0.0, 0.002), low.close, ["worker 1 was lost"])
        answers = ThreadPoolExecutor(1)
        other = answers.submit(_swap_for_ever, high)
        started = time.monotonic()
        closing.start()
        assert "worker 1 was lost" in _swap_for_ever(low)
        assert time.monotonic() - started < 5.0, "the deadline is 20 seconds"
        closing.join()
        high.close("the other end has closed")
        assert "worker 1 lost its link to neighbour 0" in other.result(timeout=5.0)
        answers.shutdown()


def _swap_for_ever(edge: Edge) -> str:
    outgoing, incoming = _message(1), _message(0)
    for number in range(1_000_000):
        try:
            edge.swap(outgoing, incoming, number).wait(time.monotonic() + TIMEOUT.total_seconds())
            edge.expect(incoming, number + 1)
        except EdgeError as error:
            return str(error)
    return "nothing happened"
