"""Real worker processes for tests: started quickly, watched, and never left behind."""

from __future__ import annotations

import collections
import io
import multiprocessing
import os
import queue
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
# Imported once in the fork server, so that a worker starts in milliseconds and not in the seconds that torch takes.
_CONTEXT.set_forkserver_preload(
    ["lightning.pytorch", "lightning_decgan.strategy.gossip_strategy", "lightning_decgan.gan"]
)
_held_ports: collections.deque[socket.socket] = collections.deque()


class WorkerFailed(AssertionError):
    """A worker raised, ended early or did not finish in time."""


def free_port() -> int:
    """A port of 127.0.0.1 that stays free until somebody listens there.

    Seconds pass until the first worker does, and other tests run beside. The port is therefore kept bound: only who
    sets SO_REUSEADDR, as every server does, can bind it too, and the system gives it to no connection (Linux).
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held_ports.append(holder)
    if len(_held_ports) > 32:
        _held_ports.popleft().close()
    return int(holder.getsockname()[1])


def start_workers(workers: int, function: Callable[..., Any], *args: Any) -> tuple[list, Any]:
    """Start `function(*args)` in N processes that see the environment torchrun would give them."""
    results = _CONTEXT.Queue()
    port = free_port()
    processes = [
        _CONTEXT.Process(
            target=_main, args=(results, rank, workers, port, list(sys.path), function, args), daemon=False
        )
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    return processes, results


def run_workers(workers: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """What `function(*args)` returns in each of N processes, by rank; raises `WorkerFailed` with the traceback."""
    processes, results = start_workers(workers, function, *args)
    try:
        return collect(processes, results, timeout)
    finally:
        end(processes)


def collect(processes: list, results: Any, timeout: float = 120.0) -> list[Any]:
    values: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(values) < len(processes):
        try:
            rank, value, error = results.get(timeout=0.2)
        except queue.Empty:
            dead = [r for r, p in enumerate(processes) if p.exitcode not in (None, 0) and r not in values]
            if dead and results.empty():
                raise WorkerFailed(f"worker {dead[0]} ended with {processes[dead[0]].exitcode}") from None
            if time.monotonic() > deadline:
                missing = sorted(set(range(len(processes))) - set(values))
                raise WorkerFailed(f"workers {missing} did not finish within {timeout} s") from None
            continue
        if error is not None:
            raise WorkerFailed(f"worker {rank}:\n{error}")
        values[rank] = torch.load(io.BytesIO(value), weights_only=True)
    return [values[rank] for rank in range(len(processes))]


def end(processes: list) -> None:
    """No process outlives its test."""
    for process in processes:
        process.join(timeout=5.0)
        if process.is_alive():
            process.kill()
            process.join()


def _main(
    results: Any, rank: int, workers: int, port: int, path: list[str], function: Callable[..., Any], args: tuple
) -> None:
    sys.path[:] = path
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(workers), LOCAL_WORLD_SIZE=str(workers),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
        # What torch's elastic agent sets, by which Lightning knows that the workers are there already.
        TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        # As bytes: a tensor in a queue would be shared memory that ends with this process.
        value = io.BytesIO()
        torch.save(function(*args), value)
        results.put((rank, value.getvalue(), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    results.close()
    results.join_thread()
