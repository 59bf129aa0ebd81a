"""What a step of gossip costs a worker among N real processes: processor time, memory, wall time. No Lightning.

Every measurement has N fresh processes, forked from a server that has imported torch already, which link up over gloo
as the strategy does and then do nothing but gossip. Nothing here draws or decides what is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import resource
import socket
import statistics
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightning_decgan.gossip import Exchange, FlatBuffer, FlatVector, Gossiper, Neighborhood, connect_edges
from lightning_decgan.topology import build_topology

__all__ = ["CountingVector", "WorkerFailed", "measure", "measure_worker"]

WARMUP_STEPS = 5
TIMEOUT = timedelta(seconds=120)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["__main__", "torch", "lightning_decgan.gossip"])


class WorkerFailed(RuntimeError):
    """A worker of a measurement raised or ended early; the message holds its traceback."""


class CountingVector(FlatVector):
    """A flat vector that knows how many bytes of buffers were made for it.

    Example:
        >>> vector = CountingVector([("x", torch.zeros(16))])
        >>> buffer = vector.new_buffer()
        >>> vector.buffer_bytes == buffer.message.numel()
        True
    """

    buffer_bytes = 0

    def new_buffer(self) -> FlatBuffer:
        buffer = super().new_buffer()
        self.buffer_bytes += buffer.message.numel()
        return buffer


def resident_bytes() -> int:
    """The memory of this process that is in RAM, shared pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def processor_seconds() -> float:
    """Processor time of all threads of this process so far, in user and system mode."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_worker(
    worker: int, workers: int, topology_name: str, parameters: int, steps: int, store: dist.Store
) -> dict[str, Any]:
    """One worker's part: link up, gossip, and say what it cost.

    Args:
        worker: this worker's number.
        workers: N.
        topology_name: of a registered topology.
        parameters: elements of the gossiped vector, float32.
        steps: steps that are measured, after a few that are not.
        store: where the workers meet.

    Returns:
        `cpu_ms` and `wall_ms` a step, `neighbors` a round (mean), `links`, `buffer_bytes` (what the gossip holds), and
        `grown_bytes`, by how much the process has grown since before it linked up.
    """
    topology = build_topology(topology_name, workers)
    vector = CountingVector([("parameters", torch.randn(parameters))])
    before_bytes = resident_bytes()
    edges = connect_edges(worker, workers, topology.links(worker), TIMEOUT, store)
    gossiper = Gossiper(vector, Exchange(vector, Neighborhood(worker, topology, edges), timeout=TIMEOUT))
    for _ in range(WARMUP_STEPS):
        gossiper.step()
    cpu, wall = processor_seconds(), time.perf_counter()
    for _ in range(steps):
        gossiper.step()
    cpu, wall = processor_seconds() - cpu, time.perf_counter() - wall
    gossiper.finish()
    grown_bytes = resident_bytes() - before_bytes
    gossiper.close()
    rounds = range(WARMUP_STEPS, WARMUP_STEPS + steps)
    return {
        "cpu_ms": 1e3 * cpu / steps,
        "wall_ms": 1e3 * wall / steps,
        "neighbors": statistics.mean(topology.degree(worker, round) for round in rounds),
        "links": len(topology.links(worker)),
        "buffer_bytes": vector.buffer_bytes,
        "grown_bytes": grown_bytes,
        "resident_bytes": before_bytes + grown_bytes,
    }


def measure(workers: int, topology_name: str, parameters: int, steps: int) -> dict[str, Any]:
    """Medians over the workers of what `measure_worker` returns, with `workers` and `topology`.

    Raises:
        WorkerFailed: a worker raised, or ended without an answer.
    """
    # On this machine only, and at a port that the system has chosen and nobody can take in between.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2 * workers)
    port = listener.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    answers: Any = _CONTEXT.Queue()
    processes = [
        _CONTEXT.Process(
            target=_main, args=(answers, list(sys.path), port, rank, workers, topology_name, parameters, steps)
        )
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        found = _collect(processes, answers)
    finally:
        for process in processes:
            process.join(timeout=10.0)
            if process.is_alive():
                process.kill()
        del store
    medians = {key: statistics.median(answer[key] for answer in found) for key in found[0]}
    return {"workers": workers, "topology": topology_name, **medians}


def _collect(processes: list[Any], answers: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < len(processes):
        try:
            answer, error = answers.get(timeout=1.0)
        except queue.Empty:
            ended = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if ended and answers.empty():
                raise WorkerFailed(f"a worker ended with exit code {ended[0]}") from None
            continue
        if error is not None:
            raise WorkerFailed(error)
        found.append(answer)
    return found


def _main(answers: Any, path: list[str], port: int, worker: int, *arguments: Any) -> None:
    sys.path[:] = path
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # edges then listen to this machine only
    torch.set_num_threads(1)
    workers, topology_name, parameters, steps = arguments
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        answers.put((measure_worker(worker, workers, topology_name, parameters, steps, store), None))
    except BaseException:
        answers.put((None, traceback.format_exc()))
