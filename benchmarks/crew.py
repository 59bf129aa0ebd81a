"""Workers that are started once and go through many trainings in turn: what the benchmarks of quality share.

Nothing here trains: a benchmark says what a run is, and what to make of its workers' answers.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.multiprocessing as mp
from shaped_network import ShapedNetwork

from lightning_decgan.strategy.compat import unused_port

__all__ = ["Place", "Train", "end_with_parent", "go_through", "quiet_lightning", "worker_environment"]

Train: TypeAlias = Callable[[str, int], dict[str, Any]]
"""One run on one worker: `(form, seed) -> answer`; it travels to the workers, so it must be picklable."""


_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Place:
    """Where the workers meet: this machine's loopback, or the nodes of an emulated network, a worker each.

    Attributes:
        port: of the process group.
        address: of worker 0.
        namespaces: of the nodes, empty on loopback.
        interface: of the nodes.
    """

    port: int
    address: str = "127.0.0.1"
    namespaces: tuple[str, ...] = ()
    interface: str = "lo"

    @classmethod
    def on(cls, network: ShapedNetwork | None, workers: int) -> Place:
        """A port that is free now, on a network or on loopback."""
        if network is not None:
            nodes = tuple(network.namespace(node) for node in range(workers))
            return cls(_PORT_IN_A_NAMESPACE, network.address(0), nodes, network.interface)
        return cls(unused_port())

    def enter(self, worker: int) -> None:
        """Move this process, which must not have started threads yet, to its node."""
        if self.namespaces:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(self.namespaces[worker]) as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter {self.namespaces[worker]}")
            os.environ["GLOO_SOCKET_IFNAME"] = self.interface


_PORT_IN_A_NAMESPACE = 29_500


def worker_environment(rank: int, workers: int, port: int, address: str = "127.0.0.1") -> None:
    """What torchrun would set, by which Lightning knows that the workers are there already."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(workers), LOCAL_WORLD_SIZE=str(workers),
        MASTER_ADDR=address, MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="benchmark",
    )  # fmt: skip
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """Be killed when the benchmark is: otherwise workers whose answers nobody reads would train on. Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def quiet_lightning() -> None:
    """Only its errors: every run would say again what it found on the machine."""
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def go_through(
    runs: Sequence[tuple[int, str]], train: Train, workers: int, network: ShapedNetwork | None = None
) -> Iterator[tuple[list[dict[str, Any]], float]]:
    """Go through all runs `(seed, form)`; yields each one's answers, by rank, and the minutes that are left.

    Args:
        runs: in this order.
        train: what a worker does for each.
        workers: how many.
        network: where they run; None: over loopback.

    Raises:
        ProcessRaisedException: a worker failed; its traceback is in the message.
    """
    results = mp.get_context("spawn").Queue()
    place = Place.on(network, workers)
    context = mp.start_processes(
        _work, (workers, place, runs, train, results), nprocs=workers, join=False, start_method="spawn"
    )
    started = time.perf_counter()
    answers: list[list[dict[str, Any]]] = [[] for _ in runs]  # a quick worker may be a run ahead of the others
    for number in range(len(runs)):
        while len(answers[number]) < workers:
            try:
                of, answer = results.get(timeout=1.0)
                answers[of].append(answer)
            except queue.Empty:
                context.join(timeout=0)  # raises what a worker raised
        left = (time.perf_counter() - started) / (number + 1) * (len(runs) - number - 1)
        yield sorted(answers[number], key=lambda answer: answer["rank"]), left / 60
    while not context.join():
        pass


def _work(rank: int, workers: int, place: Place, runs: Sequence[tuple[int, str]], train: Train, results: Any) -> None:
    end_with_parent()
    place.enter(rank)
    worker_environment(rank, workers, place.port, place.address)
    quiet_lightning()
    for number, (seed, form) in enumerate(runs):
        started = time.perf_counter()
        answer = {"rank": rank, "form": form, "seed": seed, **train(form, seed)}
        results.put((number, {**answer, "seconds": time.perf_counter() - started}))
