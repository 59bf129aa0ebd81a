"""Workers on threads of one process, over real sockets on 127.0.0.1: who is there, and who says so."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from lightning_decgan.gossip.membership import Answer, Membership
from lightning_decgan.gossip.wire import MESSAGE_BYTES, Address, Kind, MalformedMessage, Message

_TOKEN = bytes(range(16))
_SECOND = timedelta(seconds=1)


def eventually(condition: Callable[[], Any], within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@contextlib.contextmanager
def opened(workers: int, answer_within: timedelta = _SECOND) -> Iterator[list[Membership]]:
    store = dist.HashStore()
    with ThreadPoolExecutor(workers) as pool:
        everyone = list(
            pool.map(lambda w: Membership.open(w, workers, store, "127.0.0.1", answer_within), range(workers))
        )
        try:
            assert workers == 1 or eventually(lambda: all(watchers(membership) for membership in everyone))
            yield everyone
        finally:
            list(pool.map(Membership.close, everyone))


def watchers(membership: Membership) -> list[Any]:
    return [line for line in list(membership._door._board.lines) if line.role == "watcher"]


def ring(everyone: list[Membership]) -> None:
    for membership in everyone:
        membership.watch({(membership.worker + d) % len(everyone) for d in (-1, 1)} - {membership.worker})


def freeze(membership: Membership) -> threading.Event:
    """Its door's thread stands still until the event is set, as the whole process would after SIGSTOP."""
    thaw, frozen = threading.Event(), threading.Event()

    def stand_still() -> None:
        frozen.set()
        thaw.wait(30.0)

    membership._door.post(stand_still)
    assert frozen.wait(5.0)
    return thaw


def break_off(membership: Membership) -> None:
    """Its sockets close without a goodbye, as those of a killed process do."""
    membership._door.post(membership._door._board.stop)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def gather_all(everyone: list[Membership], name: str, timeout: timedelta = _SECOND) -> list[Any]:
    with ThreadPoolExecutor(len(everyone)) as pool:
        return list(pool.map(lambda m: m.gather(name, timeout), everyone))


def test_a_message_survives_the_wire() -> None:
    message = Message(Kind.EDGE, worker=3, neighbor=1, step=2**40, number=5, text=b"timeout")
    wire = message.pack(_TOKEN)
    assert len(wire) == MESSAGE_BYTES
    assert replace(Message.unpack(wire, _TOKEN, workers=4), text=b"timeout") == message


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        Message(Kind.ASK, 1).pack(_TOKEN)[:-1],
        Message(Kind.ASK, 1).pack(bytes(16)),
        b"x" + Message(Kind.ASK, 1).pack(_TOKEN)[1:],
        Message(Kind.ASK, 4).pack(_TOKEN),
        Message(Kind.ASK, 1, step=-1).pack(_TOKEN),
        Message(Kind.LOST, 1).pack(_TOKEN),
        Message(Kind.LOST, 1, 2, number=4).pack(_TOKEN),
        Message(Kind.LOST, 1, 2, text=b"\x1b[31m").pack(_TOKEN),
        Message(Kind.EDGE, 1, 1).pack(_TOKEN),
        Message(99, 1).pack(_TOKEN),  # type: ignore[arg-type]
        os.urandom(MESSAGE_BYTES),
    ],
)
def test_what_no_worker_sends_is_malformed(wire: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Message.unpack(wire, _TOKEN, workers=4)


@pytest.mark.parametrize("published", [b"", b"127.0.0.1", b"127.0.0.1 0", b"127.0.0.1 70000", b"a b 1", b"a;b 1"])
def test_an_address_of_another_form_is_refused(published: bytes) -> None:
    with pytest.raises(ValueError, match="host port"):
        Address.parse(published)


def test_arguments_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match=r"worker must be in 0\.\.1, found 2"):
        Membership.open(2, 2, dist.HashStore(), "127.0.0.1")
    with pytest.raises(ValueError, match="host must be"):
        Membership.open(0, 1, dist.HashStore(), "0.0.0.0")
    with pytest.raises(ValueError, match="answer_within must be positive"):
        Membership.open(0, 1, dist.HashStore(), "127.0.0.1", timedelta(0))
    with opened(2) as (zero, _):
        for wrong in (0, 2, -1):
            with pytest.raises(ValueError, match="neighbor must be"):
                zero.ask(wrong)
        with pytest.raises(ValueError, match="timeout must be positive"):
            zero.gather("name", timedelta(0))


def test_a_worker_that_never_opens_is_named_and_nothing_leaks() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    before = descriptors(), threading.active_count()
    with pytest.raises(TimeoutError, match="door of worker 1"):
        Membership.open(0, 2, store, "127.0.0.1")
    assert (descriptors(), threading.active_count()) == before


def test_alone_there_is_nobody_to_lose() -> None:
    with opened(1) as (only,):
        only.watch([])
        store, members = only.gather("first", _SECOND)
        store.set("key", b"value")
        assert (store.get("key"), members, only.version) == (b"value", (0,), 0)


def test_asking_tells_progress_and_waiting() -> None:
    with opened(2) as (zero, one):
        one.progress = 2**40
        assert zero.ask(1) == Answer(progress=2**40, waiting=False)
        one.waiting = True
        assert zero.ask(1) == Answer(progress=2**40, waiting=True)


def test_a_death_is_noticed_at_once_and_told_to_everybody() -> None:
    with opened(6) as everyone:
        ring(everyone)
        assert all(m.ask((m.worker + 1) % 6) for m in everyone)
        calls = threading.Event()
        everyone[5].on_change(calls.set)
        everyone[1].step = everyone[3].step = 17
        break_off(everyone[2])
        others = [m for m in everyone if m.worker != 2]
        assert eventually(lambda: all(2 in m.lost for m in others))
        for m in others:
            loss = m.lost[2]
            assert m.members == (0, 1, 3, 4, 5)
            assert (loss.reason, loss.step, loss.seen_by in (1, 3)) == ("process ended", 17, True)
            assert abs(loss.seconds - time.monotonic()) < 5.0
        assert calls.wait(5.0)


def test_neighbours_that_die_together_are_all_noticed() -> None:
    """Nobody who lives watched worker 2: whoever tells of 1 finds out."""
    with opened(6) as everyone:
        ring(everyone)
        assert all(m.ask((m.worker + 1) % 6) for m in everyone)
        for worker in (1, 2, 3):
            break_off(everyone[worker])
        assert eventually(lambda: all(everyone[w].members == (0, 4, 5) for w in (0, 4, 5)))


def test_everybody_has_a_living_watcher_though_nobody_asked_to_watch() -> None:
    """1 is told of the deaths of 0 and 2 while it lives, and dies afterwards, unwatched by any neighbour."""
    with opened(6) as everyone:
        break_off(everyone[0])
        break_off(everyone[2])
        assert eventually(lambda: all(everyone[w].members == (1, 3, 4, 5) for w in (1, 3, 4, 5)))
        break_off(everyone[1])
        assert eventually(lambda: all(everyone[w].members == (3, 4, 5) for w in (3, 4, 5)))
        for worker in (3, 4):
            break_off(everyone[worker])
        assert eventually(lambda: everyone[5].members == (5,))


def test_a_goodbye_is_no_death() -> None:
    with opened(4) as everyone:
        ring(everyone)
        assert all(m.ask((m.worker + 1) % 4) for m in everyone)
        everyone[1].close()
        everyone[1].close()
        others = [m for m in everyone if m.worker != 1]
        assert eventually(lambda: all(m.members == (0, 2, 3) for m in others))
        assert [(m.left, dict(m.lost), m.version) for m in others] == [(frozenset({1}), {}, 1)] * 3
        assert {members for _, members in gather_all(others, "without 1")} == {(0, 2, 3)}


def test_a_frozen_worker_does_not_answer_and_is_not_called_dead() -> None:
    with opened(3, timedelta(seconds=0.2)) as everyone:
        ring(everyone)
        assert everyone[0].ask(1)
        thaw = freeze(everyone[1])
        assert everyone[0].ask(1) is None
        assert everyone[2].ask(1) is None
        assert everyone[0].ask(2) is not None
        thaw.set()
        assert eventually(lambda: everyone[0].ask(1) is not None)
        assert [m.version for m in everyone] == [0, 0, 0]


def test_a_frozen_worker_delays_no_rumour() -> None:
    with opened(4, timedelta(seconds=5)) as everyone:
        thaw = freeze(everyone[1])
        everyone[0].report_worker(3, "silent", 5)
        assert eventually(lambda: 3 in everyone[2].lost, within=1.0)
        thaw.set()
        assert eventually(lambda: 3 in everyone[1].lost)


def test_the_end_of_a_connection_alone_is_no_death() -> None:
    with opened(2) as (zero, one):
        zero.watch([1])
        (first,) = watchers(one)
        one._door.post(lambda: one._door._board.drop(first))
        assert eventually(lambda: watchers(one) and first not in watchers(one))
        assert zero.ask(1) is not None
        assert zero.version == 0
        break_off(one)
        assert eventually(lambda: 1 in zero.lost)


def test_a_worker_that_was_given_up_learns_it_and_accuses_nobody() -> None:
    with opened(4) as everyone:
        thaw = freeze(everyone[3])
        everyone[0].report_worker(3, "gave no answer for 30 s\x00\n", 9)
        assert eventually(lambda: all(3 in everyone[w].lost for w in (1, 2)))
        thaw.set()
        assert eventually(lambda: everyone[3].given_up is not None)
        given_up = everyone[3].given_up
        assert given_up is not None
        assert (given_up.worker, given_up.seen_by, given_up.reason) == (3, 0, "gave no answer for 30 s??")
        everyone[3].report_worker(1, "late", 1)
        everyone[3].report_edge(2, "late", 1)
        assert 1 not in everyone[3].lost
        with pytest.raises(RuntimeError, match="worker 3 was given up by worker 0"):
            everyone[3].gather("any", _SECOND)
        assert everyone[0].members == everyone[1].members == (0, 1, 2)


def test_a_worker_that_was_not_told_hears_it_when_it_asks() -> None:
    with opened(3) as everyone:
        everyone[0]._door._run_errands = lambda parcel, workers: None  # type: ignore[method-assign]
        everyone[0].report_worker(2, "silent", 4)
        assert 2 in everyone[0].lost
        assert everyone[2].ask(0) is None
        assert everyone[2].given_up is not None


def test_the_accusations_of_a_lost_worker_are_ignored() -> None:
    with opened(3) as everyone:
        everyone[0].report_worker(2, "silent", 4)
        everyone[0].receive(Message(Kind.LOST, worker=2, neighbor=1, number=2, text=b"late"))
        everyone[0].receive(Message(Kind.EDGE, worker=2, neighbor=1, text=b"late"))
        assert set(everyone[0].lost) == {2}
        assert not everyone[0].lost_edges


def test_a_lost_edge_is_known_to_all_until_it_is_forgiven() -> None:
    with opened(4) as everyone:
        everyone[2].report_edge(1, "timeout", 7)
        assert eventually(lambda: all(m.lost_edges == {(1, 2)} for m in everyone))
        assert [m.members for m in everyone] == [(0, 1, 2, 3)] * 4
        for m in everyone:
            m.forgive_edges()
        assert [(m.lost_edges, m.version) for m in everyone] == [(frozenset(), 2)] * 4
        # One that was still on its way does not come back; a new loss of the same link does.
        everyone[0].receive(Message(Kind.EDGE, worker=2, neighbor=1, step=7, number=0, text=b"timeout"))
        assert not everyone[0].lost_edges
        everyone[1].report_edge(2, "timeout", 9)
        assert eventually(lambda: all(m.lost_edges == {(1, 2)} for m in everyone))
        everyone[0].report_worker(2, "silent", 10)
        assert eventually(lambda: not any(m.lost_edges for m in everyone if m.worker != 2))


def test_rubbish_is_not_listened_to() -> None:
    with opened(2) as (zero, one):
        address = zero.address(0).sockaddr
        for rubbish in (b"GET / HTTP/1.1\r\n" * 20, os.urandom(5000), Message(Kind.ASK, 1).pack(bytes(16))):
            with socket.create_connection(address, timeout=5.0) as stranger:
                stranger.sendall(rubbish)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
        # A stranger who says nothing at all, and one who resets the connection.
        quiet = socket.create_connection(address)
        resetting = socket.create_connection(address)
        resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        resetting.close()
        assert one.ask(0) is not None
        assert zero.version == one.version == 0
        quiet.close()


def test_strangers_cannot_use_up_the_descriptors() -> None:
    with opened(2) as (zero, one):
        before = descriptors()
        strangers = [socket.create_connection(zero.address(0).sockaddr) for _ in range(200)]
        assert one.ask(0) is not None
        assert eventually(lambda: descriptors() - before <= 200 + 80)
        for stranger in strangers:
            stranger.close()
        assert eventually(lambda: descriptors() <= before)


def test_gathering_gives_all_the_same_members_and_one_store() -> None:
    with opened(5) as everyone:
        for name in ("group 1", "group 2"):
            met = gather_all(everyone, name)
            assert {members for _, members in met} == {(0, 1, 2, 3, 4)}
            for worker, (store, _) in enumerate(met):
                store.set(f"from {worker}", name)
            assert all(store.get(f"from {w}") == name.encode() for store, _ in met for w in range(5))
        with pytest.raises(ValueError, match="new for each gathering, found 'group 2'"):
            everyone[0].gather("group 2", _SECOND)


def test_a_store_listens_on_the_loopback_alone() -> None:
    with opened(1) as (only,):
        only.gather("group", _SECOND)
        ours = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        }
        listening = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for row in map(str.split, Path(table).read_text().splitlines()[1:]):
                if row[3] == "0A" and f"socket:[{row[9]}]" in ours:
                    listening.add(row[1].split(":")[0])
        assert listening == {"0100007F"}


def test_who_is_silent_is_given_up_and_the_others_meet() -> None:
    with opened(4, timedelta(seconds=0.2)) as everyone:
        thaw = freeze(everyone[0])  # the host of the first attempt
        met = gather_all(everyone[1:], "group", timedelta(seconds=0.5))
        assert {members for _, members in met} == {(1, 2, 3)}
        met[2][0].set("key", "value")
        assert met[0][0].get("key") == b"value"
        assert everyone[3].lost[0].reason == "silent"
        thaw.set()
        assert eventually(lambda: everyone[0].given_up is not None)


def test_a_guest_that_is_silent_is_given_up() -> None:
    with opened(4, timedelta(seconds=0.2)) as everyone:
        thaw = freeze(everyone[2])
        met = gather_all([everyone[w] for w in (0, 1, 3)], "group", timedelta(seconds=0.4))
        assert {members for _, members in met} == {(0, 1, 3)}
        thaw.set()


def test_who_answers_but_does_not_come_is_named() -> None:
    with opened(3) as everyone, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(everyone[w].gather, "group", timedelta(seconds=0.1)) for w in (0, 2)]
        for call in calls:
            with pytest.raises(TimeoutError, match="'group': worker 1 did not come within 1 s"):
                call.result()


def test_a_host_that_answers_but_does_not_come_is_named() -> None:
    with opened(2) as (_, one), pytest.raises(TimeoutError, match="worker 0 did not come"):
        one.gather("group", timedelta(seconds=0.1))


def test_late_comers_are_waited_for() -> None:
    with opened(3) as everyone, ThreadPoolExecutor(3) as pool:
        early = [pool.submit(everyone[w].gather, "group", timedelta(seconds=0.2)) for w in (0, 1)]
        time.sleep(0.7)  # more than three timeouts
        late = pool.submit(everyone[2].gather, "group", timedelta(seconds=0.2))
        assert {call.result()[1] for call in [*early, late]} == {(0, 1, 2)}


def test_views_that_differ_become_one_while_gathering() -> None:
    """Whoever noticed told only some before it died."""
    with opened(6) as everyone:
        for noticed_by, lost in ((2, 5), (3, 0)):
            everyone[noticed_by].receive(Message(Kind.LOST, 1, lost, number=1, text=b"silent"))
        met = gather_all(everyone[1:5], "group")
        assert {members for _, members in met} == {(1, 2, 3, 4)}


def test_mutual_accusations_end_in_one_view() -> None:
    """0 and 1 gave up each other, and the others heard one of them first."""
    with opened(6) as everyone:
        for worker, lost in ((0, 1), (2, 1), (3, 1), (1, 0), (4, 0), (5, 0)):
            everyone[worker].receive(Message(Kind.LOST, 2 if worker != 2 else 3, lost, number=1 - lost, text=b"late"))
        met = gather_all(everyone[2:], "group")
        assert {members for _, members in met} == {(2, 3, 4, 5)}


def test_the_host_dies_after_one_guest_was_told_that_it_committed() -> None:
    """Worker 2 was promised the outcome and asks the others: 1 has returned, so 2 returns the same."""
    with opened(3, timedelta(seconds=0.3)) as everyone, ThreadPoolExecutor(3) as pool:
        told = threading.Event()
        calls = []
        answer = everyone[0]._desk.answer

        def dying(message: Message) -> Message:
            reply = answer(message)
            if told.is_set() or (message.worker == 2 and reply.step == 3):
                raise OSError("dead")
            if message.worker == 1 and reply.step == 3:
                told.set()
                break_off(everyone[0])
            return reply

        everyone[0]._desk.answer = dying  # type: ignore[method-assign]
        calls = [pool.submit(m.gather, "group", _SECOND) for m in everyone]
        assert calls[1].result()[1] == (0, 1, 2)
        assert calls[2].result()[1] == (0, 1, 2)
        assert everyone[2].members == (1, 2)
        met = gather_all(everyone[1:], "group again")
        assert {members for _, members in met} == {(1, 2)}


@pytest.mark.parametrize("seed", range(10))
def test_whoever_dies_while_they_gather_no_two_get_different_members(seed: int) -> None:
    workers, random_source = 6, random.Random(seed)
    victims = random_source.sample(range(workers), random_source.choice((1, 2)))
    with opened(workers, timedelta(seconds=0.5)) as everyone, ThreadPoolExecutor(workers) as pool:
        ring(everyone)
        calls = [pool.submit(m.gather, "group", _SECOND) for m in everyone]
        for victim in victims:
            time.sleep(random_source.uniform(0.0, 0.08))
            break_off(everyone[victim])
        survivors = [w for w in range(workers) if w not in victims]
        met = [calls[w].result() for w in survivors]
        assert len({members for _, members in met}) == 1
        assert set(survivors) <= set(met[0][1])
        # If the group was made before they died, the next has none of them.
        assert eventually(lambda: all(list(everyone[w].members) == survivors for w in survivors))
        again = gather_all([everyone[w] for w in survivors], "group again")
        assert {members for _, members in again} == {tuple(survivors)}
        again[0][0].set("key", "value")
        assert all(store.get("key") == b"value" for store, _ in again)


def test_sixty_four_workers_in_one_process() -> None:
    with opened(64, timedelta(seconds=5)) as everyone:
        ring(everyone)
        break_off(everyone[10])
        assert eventually(lambda: all(10 in m.lost for m in everyone if m.worker != 10))
        met = gather_all([m for m in everyone if m.worker != 10], "group", timedelta(seconds=60))
        assert {members for _, members in met} == {tuple(w for w in range(64) if w != 10)}


def test_nothing_is_left_behind() -> None:
    def once() -> None:
        with opened(5) as everyone:
            ring(everyone)
            break_off(everyone[1])
            assert eventually(lambda: all(1 in m.lost for m in everyone if m.worker != 1))
            gather_all([m for m in everyone if m.worker != 1], "group")
            everyone[0].report_edge(2, "timeout", 1)

    once()
    before = descriptors(), threading.active_count()
    for _ in range(5):
        once()
    assert eventually(lambda: (descriptors(), threading.active_count()) == before), (descriptors(), before)


def test_one_store_serves_two_runs_of_the_same_workers() -> None:
    store = dist.HashStore()
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            zero, one = pool.map(lambda w: Membership.open(w, 2, store, "127.0.0.1"), range(2))
            assert zero.ask(1) is not None
            assert one.ask(0) is not None
            zero.close()
            one.close()


def test_a_failing_callback_does_not_make_a_worker_deaf() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with opened(3) as everyone:
        everyone[1].on_change(fail)
        everyone[0].report_edge(2, "timeout", 1)
        assert eventually(lambda: everyone[1].lost_edges == {(0, 2)})
        assert everyone[0].ask(1) is not None
