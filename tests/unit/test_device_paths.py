"""The paths of GPU tensors, as far as a machine without one can try them: stand-ins for streams, events and NCCL.

The stand-ins note in which order things were asked for and copy at once. What they cannot show is said in
docs/networks.md: nothing here has been timed or run on a GPU.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_decgan import DecentralizedGossipStrategy, PowerGossip
from lightning_decgan.gan.sampling import seeded
from lightning_decgan.gossip import EdgeError, FlatVector, vector
from lightning_decgan.gossip.nccl_edge import NcclEdge, nccl_group


class Notes:
    """What was asked of streams and events, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        note = self.seen.append

        class Stream:
            def __init__(self, name: str = "side", device: Any = None) -> None:
                self.name = name

            def wait_event(self, event: Any) -> None:
                note(f"{self.name} waits for {event.name}")

            def wait_stream(self, other: Any) -> None:
                note(f"{self.name} waits for {other.name}")

            def __enter__(self) -> None:
                note(f"enter {self.name}")

            def __exit__(self, *_: Any) -> None:
                note(f"leave {self.name}")

        class Event:
            made = 0

            def __init__(self, device: Any = None) -> None:
                Event.made += 1
                self.name = f"event {Event.made}"

            def record(self, stream: Any) -> None:
                note(f"{stream.name} records {self.name}")

            def synchronize(self) -> None:
                note(f"host waits for {self.name}")

        monkeypatch.setattr(torch, "Stream", Stream)
        monkeypatch.setattr(torch, "Event", Event)
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: Stream("training"))


def test_device_copies_cross_on_their_own_stream_and_never_overwrite_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = Notes(monkeypatch)
    weight = torch.arange(4.0)
    flat = FlatVector([("weight", weight)])
    flat._device_copies = vector._DeviceCopies(flat)
    snapshot, increments = flat.new_buffer(), flat.new_buffer()

    flat.write(snapshot)
    flat.wait_until_written()
    assert torch.equal(snapshot.sections[0], weight)
    sent, fetched, used = "event 1", "event 2", "event 3"
    assert notes.seen == [
        f"training waits for {sent}", "side waits for training", "enter side", f"side records {sent}", "leave side",
        f"host waits for {sent}", f"host waits for {fetched}",
    ]  # fmt: skip

    notes.seen.clear()
    increments.sections[0].fill_(2.0)
    flat.prefetch(increments)
    flat.add_(increments)
    assert weight.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert notes.seen == [
        f"side waits for {used}", "enter side", f"side records {fetched}", "leave side",
        f"training waits for {fetched}", f"training records {used}",
    ]  # fmt: skip


class FakeGroup:
    """Both ends of a two-rank group: a message is there when both have launched."""

    def __init__(self) -> None:
        self.ends: list[dict[str, Any]] = []
        self.aborted = False
        self.failure: Exception | None = None

    def of(self, rank: int) -> Any:
        group = self

        class End:
            def _start_coalescing(self) -> None:
                self.posted: dict[str, Any] = {"rank": rank}

            def recv(self, tensors: list[Tensor], peer: int, tag: int) -> None:
                assert peer == 1 - rank
                self.posted["in"] = tensors[0]

            def send(self, tensors: list[Tensor], peer: int, tag: int) -> None:
                self.posted["out"] = tensors[0]

            def _end_coalescing(self) -> Any:
                group.ends.append(self.posted)
                if len(group.ends) == 2:
                    one, other = group.ends
                    one["in"].copy_(other["out"])
                    other["in"].copy_(one["out"])
                return self

            def is_completed(self) -> bool:
                return len(group.ends) == 2

            def exception(self) -> Exception | None:
                return group.failure

            def abort(self) -> None:
                group.aborted = True

        return End()


def _edges() -> tuple[NcclEdge, NcclEdge, FakeGroup]:
    group = FakeGroup()
    return NcclEdge(3, 5, group.of(0)), NcclEdge(5, 3, group.of(1)), group


def _message(value: int) -> Tensor:
    return torch.full((8,), value, dtype=torch.uint8)


def test_an_nccl_edge_swaps_once_both_ends_have_launched() -> None:
    low, high, _ = _edges()
    incoming = [_message(0), _message(0)]
    first = low.swap(_message(1), incoming[0], tag=7)
    with pytest.raises(EdgeError, match="worker 3 got no answer from neighbour 5") as caught:
        first.wait(time.monotonic() + 0.01)
    assert caught.value.late
    second = high.swap(_message(2), incoming[1], tag=7)
    for swap in (first, second):
        swap.wait(time.monotonic() + 1.0)
    assert [message[0].item() for message in incoming] == [2, 1]


def test_closing_an_nccl_edge_ends_the_wait_and_refuses_the_next_swap() -> None:
    low, _, group = _edges()
    swap = low.swap(_message(1), _message(0), tag=7)
    low.close()
    assert group.aborted
    with pytest.raises(EdgeError, match="lost its link to neighbour 5"):
        swap.wait(time.monotonic() + 1.0)
    with pytest.raises(EdgeError, match="lost its link to neighbour"):
        low.swap(_message(1), _message(0), tag=7)


def test_an_nccl_swap_that_failed_is_no_swap() -> None:
    low, high, group = _edges()
    swap = low.swap(_message(1), _message(0), tag=7)
    high.swap(_message(2), _message(0), tag=7)
    group.failure = RuntimeError("NCCL error: remote process exited")
    with pytest.raises(EdgeError, match=r"lost its link to neighbour 5 .*remote process exited"):
        swap.wait(time.monotonic() + 1.0)


def test_the_stand_in_is_called_as_torchs_own_groups_are() -> None:
    """pybind writes a method's signature into the first line of its documentation."""
    backend = torch.distributed.Backend if hasattr(torch.distributed.Backend, "_start_coalescing") else None
    backend = backend or torch._C._distributed_c10d.Backend  # type: ignore[attr-defined]
    for name in ("_start_coalescing", "_end_coalescing"):
        signature = getattr(backend, name).__doc__.splitlines()[0]
        assert "," not in signature.split("->")[0], signature


@pytest.mark.skipif(torch.distributed.is_nccl_available(), reason="this torch has NCCL; it is tried on GPUs")
def test_without_nccl_the_error_says_what_runs_everywhere() -> None:
    with pytest.raises(RuntimeError, match="edges='gloo' runs everywhere"):
        nccl_group(torch.distributed.HashStore(), 0, timedelta(seconds=5))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: DecentralizedGossipStrategy(edges="mpi"), ValueError, "edges must be 'gloo' or 'nccl', found 'mpi'"),
        (
            lambda: DecentralizedGossipStrategy(edges="nccl", compression=PowerGossip()),
            ValueError,
            "compression must be None with edges='nccl'",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_when_the_strategy_is_made(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


def test_of_several_gpus_the_one_that_draws_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpus:
        """As torch.cuda: what is seeded is the current device, whatever tensors are made on."""

        def __init__(self) -> None:
            self.current = 0
            self.seeded: list[int | None] = [None, None]

        @contextlib.contextmanager
        def device(self, device: torch.device) -> Iterator[None]:
            before, self.current = self.current, device.index
            yield
            self.current = before

        def manual_seed(self, seed: int) -> None:
            self.seeded[self.current] = seed

    gpus = Gpus()
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpus)
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: contextlib.nullcontext())
    with seeded(5, torch.device("cuda:1")):
        assert torch.default_generator.initial_seed() == 5
        assert gpus.current == 0, "whose business the current device is"
    assert gpus.seeded == [None, 5]
