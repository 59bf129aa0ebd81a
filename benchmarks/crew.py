"""Workers that are started once and go through many trainings in turn: what the benchmarks of quality share.

Nothing here trains: a benchmark says what a run is, and what to make of its workers' answers.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.multiprocessing as mp

__all__ = ["Train", "go_through", "worker_environment"]

Train: TypeAlias = Callable[[str, int], dict[str, Any]]
"""One run on one worker: `(form, seed) -> answer`; it travels to the workers, so it must be picklable."""


def worker_environment(rank: int, workers: int, port: int) -> None:
    """What torchrun would set, by which Lightning knows that the workers are there already."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(workers), LOCAL_WORLD_SIZE=str(workers),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="benchmark",
    )  # fmt: skip
    torch.set_num_threads(1)


def go_through(
    runs: Sequence[tuple[int, str]], train: Train, workers: int
) -> Iterator[tuple[list[dict[str, Any]], float]]:
    """Go through all runs `(seed, form)`; yields each one's answers, by rank, and the minutes that are left.

    Raises:
        ProcessRaisedException: a worker failed; its traceback is in the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").Queue()
    context = mp.start_processes(
        _work, (workers, port, runs, train, results), nprocs=workers, join=False, start_method="spawn"
    )
    started = time.perf_counter()
    for number in range(1, len(runs) + 1):
        answers: list[dict[str, Any]] = []
        while len(answers) < workers:
            try:
                answers.append(results.get(timeout=1.0))
            except queue.Empty:
                context.join(timeout=0)  # raises what a worker raised
        left = (time.perf_counter() - started) / number * (len(runs) - number)
        yield sorted(answers, key=lambda answer: answer["rank"]), left / 60
    while not context.join():
        pass


def _work(rank: int, workers: int, port: int, runs: Sequence[tuple[int, str]], train: Train, results: Any) -> None:
    worker_environment(rank, workers, port)
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for seed, form in runs:
        started = time.perf_counter()
        answer = train(form, seed)
        results.put({"rank": rank, "form": form, "seed": seed, **answer, "seconds": time.perf_counter() - started})
