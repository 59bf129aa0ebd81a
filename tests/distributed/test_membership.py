"""Real processes that are killed and frozen: the others know, and meet without them."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_decgan.gossip.membership import Membership
from lightning_decgan.strategy.compat import loopback_store
from tests.distributed.workers import WorkerFailed, end, start_workers

pytestmark = pytest.mark.processes

_WORKERS = 6
_TIMEOUT = timedelta(seconds=3)


# In the workers.


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Membership]:
    """Six workers on a ring that watch their neighbours, over a store that lives in worker 0's process."""
    rank = int(os.environ["RANK"])
    store = loopback_store(int(os.environ["MASTER_PORT"]), _WORKERS, rank, timedelta(seconds=60))
    membership = Membership.open(rank, _WORKERS, store, "127.0.0.1")
    try:
        neighbors = [(rank - 1) % _WORKERS, (rank + 1) % _WORKERS]
        membership.watch(neighbors)
        assert all(membership.ask(neighbor) for neighbor in neighbors)
        _until(lambda: sum(line.role == "watcher" for line in list(membership._door._board.lines)) == 2)
        (folder / f"ready-{rank}").touch()
        yield membership
    finally:
        membership.close()


def _until(condition: Callable[[], Any], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def _see(membership: Membership, members: list[int]) -> None:
    deadline = time.monotonic() + 30.0
    while list(membership.members) != members:
        assert time.monotonic() < deadline, f"{membership.members}, {dict(membership.lost)}, {membership.left}"
        time.sleep(0.001)


def _meet(membership: Membership, name: str) -> list[int]:
    """Gather, write into the store and read what all others wrote."""
    store, members = membership.gather(name, _TIMEOUT)
    store.set(f"from {membership.worker}", name)
    assert all(store.get(f"from {member}") == name.encode() for member in members)
    store.set(f"read by {membership.worker}", "")
    if membership.worker == members[0]:
        store.wait([f"read by {member}" for member in members])  # its server ends with this process
    return list(members)


def _outlive(folder: str, survivors: list[int]) -> dict[str, Any]:
    with _opened(Path(folder)) as membership:
        _see(membership, survivors)
        losses = {worker: loss.seconds for worker, loss in membership.lost.items()}
        first, second = _meet(membership, "first"), _meet(membership, "second")
        return {"losses": losses, "members": [first, second]}


def _outlive_with_children(folder: str, survivors: list[int]) -> dict[str, Any]:
    """Every worker has a forked child, as DataLoader's workers are, which outlives it for a while."""
    with _opened(Path(folder)) as membership:
        child = os.fork()
        if child == 0:
            membership.close()  # which is no goodbye for its parent
            (Path(folder) / f"child-{membership.worker}").write_text(str(os.getpid()))
            time.sleep(20.0)
            os._exit(0)
        _see(membership, survivors)
        losses = {worker: loss.seconds for worker, loss in membership.lost.items()}
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"losses": losses}


def _stay(folder: str, frozen: int) -> dict[str, Any]:
    with _opened(Path(folder)) as membership:
        answers = []
        if membership.worker != frozen:
            _until((Path(folder) / "frozen").exists)
            answers = [membership.ask(frozen) is not None]
            (Path(folder) / f"asked-{membership.worker}").touch()
            _until((Path(folder) / "thawed").exists)
            answers.append(membership.ask(frozen) is not None)
        return {"answers": answers, "version": membership.version, "members": _meet(membership, "after")}


def _gather_without_frozen(folder: str, frozen: int) -> dict[str, Any]:
    with _opened(Path(folder)) as membership:
        if membership.worker == frozen:
            _until(lambda: membership.given_up)
            assert membership.given_up is not None
            return {"reason": membership.given_up.reason}
        _until((Path(folder) / "frozen").exists)
        return {"members": _meet(membership, "without the frozen one")}


def _gather_while_dying(folder: str, survivors: list[int]) -> dict[str, Any]:
    with _opened(Path(folder)) as membership:
        _until((Path(folder) / "go").exists)
        store, members = membership.gather("first", _TIMEOUT)
        _see(membership, survivors)
        with contextlib.suppress(dist.DistError):  # its server may have died with one of the members
            store.set("key", "value")
        return {"first": list(members), "second": _meet(membership, "second")}


# In the test.


@contextlib.contextmanager
def _started(function: Callable[..., Any], folder: Path, *args: Any) -> Iterator[tuple[list, Any]]:
    processes, results = start_workers(_WORKERS, function, str(folder), *args)
    try:
        _until(lambda: len(list(folder.glob("ready-*"))) == _WORKERS or not results.empty())
        yield processes, results
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        end(processes)


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    _until(lambda: all(thread.read_text().rpartition(") ")[2][0] == "T" for thread in threads))


def _collect(results: Any, ranks: list[int]) -> dict[int, Any]:
    values: dict[int, Any] = {}
    deadline = time.monotonic() + 90.0
    while set(values) != set(ranks):
        try:
            rank, value, error = results.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            raise WorkerFailed(f"of {ranks} only {sorted(values)} finished") from None
        if error is not None:
            raise WorkerFailed(f"worker {rank}:\n{error}")
        values[rank] = torch.load(io.BytesIO(value), weights_only=True)
    return values


@pytest.mark.parametrize("victims", [[2], [0], [1, 2, 3], [0, 1, 2], [0, 2, 4]])
def test_who_is_killed_is_known_within_a_second_and_the_others_meet(tmp_path: Path, victims: list[int]) -> None:
    survivors = [rank for rank in range(_WORKERS) if rank not in victims]
    with _started(_outlive, tmp_path, survivors) as (processes, results):
        killed = {}
        for victim in victims:
            killed[victim] = time.monotonic()
            os.kill(processes[victim].pid, signal.SIGKILL)
        values = _collect(results, survivors)
    for value in values.values():
        assert value["members"] == [survivors, survivors]
        for victim in victims:
            assert 0.0 <= value["losses"][victim] - killed[victim] < 1.0


def test_the_forked_child_of_a_killed_worker_does_not_hide_its_death(tmp_path: Path) -> None:
    survivors = [0, 1, 2, 4, 5]
    with _started(_outlive_with_children, tmp_path, survivors) as (processes, results):
        children = [tmp_path / f"child-{rank}" for rank in range(_WORKERS)]
        _until(lambda: all(child.exists() and child.read_text() for child in children))
        time.sleep(0.2)  # a goodbye would have come by now
        killed = time.monotonic()
        os.kill(processes[3].pid, signal.SIGKILL)
        try:
            values = _collect(results, survivors)
        finally:
            os.kill(int(children[3].read_text()), signal.SIGKILL)
    seconds = {rank: value["losses"][3] - killed for rank, value in values.items()}
    assert all(0.0 <= after < 1.0 for after in seconds.values()), seconds


@pytest.mark.parametrize("frozen", [0, 3])
def test_a_worker_frozen_for_a_while_is_not_lost(tmp_path: Path, frozen: int) -> None:
    with _started(_stay, tmp_path, frozen) as (processes, results):
        _freeze(processes[frozen].pid)
        (tmp_path / "frozen").touch()
        time.sleep(1.5)
        _until(lambda: len(list(tmp_path.glob("asked-*"))) == _WORKERS - 1)
        os.kill(processes[frozen].pid, signal.SIGCONT)
        (tmp_path / "thawed").touch()
        values = _collect(results, list(range(_WORKERS)))
    for rank, value in values.items():
        assert value["version"] == 0
        assert value["members"] == list(range(_WORKERS))
        assert value["answers"] == ([] if rank == frozen else [False, True])


@pytest.mark.parametrize("frozen", [0, 3])
def test_a_worker_that_stays_frozen_is_gathered_without_and_learns_it(tmp_path: Path, frozen: int) -> None:
    others = [rank for rank in range(_WORKERS) if rank != frozen]
    with _started(_gather_without_frozen, tmp_path, frozen) as (processes, results):
        _freeze(processes[frozen].pid)
        (tmp_path / "frozen").touch()
        values = _collect(results, others)
        os.kill(processes[frozen].pid, signal.SIGCONT)
        woken = _collect(results, [frozen])
    assert all(value["members"] == others for value in values.values())
    assert woken[frozen]["reason"] == "silent"


@pytest.mark.parametrize("seed", range(10))
def test_whoever_is_killed_while_they_gather_no_two_get_different_members(tmp_path: Path, seed: int) -> None:
    random_source = random.Random(seed)
    victims = [0] if seed < 3 else random_source.sample(range(_WORKERS), random_source.choice((1, 2)))
    survivors = [rank for rank in range(_WORKERS) if rank not in victims]
    with _started(_gather_while_dying, tmp_path, survivors) as (processes, results):
        (tmp_path / "go").touch()
        for victim in victims:
            time.sleep(random_source.uniform(0.0, 0.08))
            os.kill(processes[victim].pid, signal.SIGKILL)
        values = _collect(results, survivors)
    firsts = {tuple(value["first"]) for value in values.values()}
    assert len(firsts) == 1
    assert set(survivors) <= set(firsts.pop())
    assert all(value["second"] == survivors for value in values.values())
