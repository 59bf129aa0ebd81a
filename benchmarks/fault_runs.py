"""What the processes of `faults.py` do: train through the strategy, or gossip without training, while faults happen.

Times are seconds of the system's monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import networkx as nx
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan import DecentralizedGossipStrategy, FaultInjector
from lightning_decgan.callbacks import BadParameters, Kill
from lightning_decgan.gossip import (
    EventLog,
    Exchange,
    FlatBuffer,
    FlatVector,
    Gossiper,
    Membership,
    Mender,
    Neighborhood,
    connect_edges,
)
from lightning_decgan.gossip.meeting import meet
from lightning_decgan.strategy.compat import unused_port
from lightning_decgan.topology import GraphTopology

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["lightning.pytorch", "lightning_decgan.strategy.gossip_strategy"])
WORKERS = 8
VALIDATION_BATCHES = 2
"""Of each worker, when all are there."""


def ring_with_chords() -> nx.Graph:
    """Eight workers, each with its two neighbours and the one opposite."""
    return nx.circulant_graph(WORKERS, [1, WORKERS // 2])


def run(function: Callable[..., Any], *args: Any, workers: int = WORKERS, seconds: float = 180.0) -> dict[int, Any]:
    """`function(*args)` in N processes with the environment of torchrun; returns the survivors' answers by worker."""
    results = _CONTEXT.Queue()
    port = unused_port()
    processes = [
        _CONTEXT.Process(target=_main, args=(results, worker, workers, port, function, args))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    try:
        while True:
            ended = [not process.is_alive() for process in processes]
            try:
                worker, answer, error = results.get(timeout=0.2)
            except queue.Empty:
                if all(ended):
                    return answers
                if time.monotonic() > deadline:
                    missing = [worker for worker, gone in enumerate(ended) if not gone]
                    raise TimeoutError(f"workers {missing} did not end within {seconds:g} s") from None
                continue
            answers[worker] = answer if error is None else {"error": error}
    finally:
        for process in processes:
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()


def _main(results: Any, worker: int, workers: int, port: int, function: Callable[..., Any], args: tuple) -> None:
    os.environ.update(
        RANK=str(worker), LOCAL_RANK=str(worker), GROUP_RANK="0", WORLD_SIZE=str(workers),
        LOCAL_WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
        TORCHELASTIC_RUN_ID="faults",
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        results.put((worker, function(*args), None))
    except BaseException:
        results.put((worker, None, traceback.format_exc()))
    results.close()
    results.join_thread()


# ---- training ----


class Steps(LightningModule):
    """A small model whose step is a sleep, as when another device computes."""

    def __init__(self, seconds: float, batches: int) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
        self.seconds, self.batches, self.validated = seconds, batches, 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(self.seconds)
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated = batch_idx + 1
        self.log("validation_loss", self.net(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def _data(self, batches: int) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(WORKERS * batches, 64)))

    def train_dataloader(self) -> DataLoader:
        return self._data(self.batches)

    def val_dataloader(self) -> DataLoader:
        return self._data(VALIDATION_BATCHES)


class Record(Callback):
    """When every batch ended, and, in a file that outlives the process, when a fault began."""

    def __init__(self, faults: tuple, folder: str) -> None:
        self.ends: list[float] = []
        self.faults, self.folder = faults, folder

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        for fault in self.faults:
            if fault.worker == trainer.strategy.worker and fault.step == len(self.ends) + 1:
                moment = time.monotonic() + getattr(fault, "delay_seconds", 0.0)
                Path(self.folder, f"fault-{fault.worker}").write_text(repr(moment))

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.monotonic())


def train(faults: tuple, settings: dict[str, Any], folder: str, batches: int, step_seconds: float) -> dict[str, Any]:
    """Two epochs with a validation and a checkpoint after each; what a survivor saw."""
    record = Record(faults, folder)
    strategy = DecentralizedGossipStrategy(topology=ring_with_chords(), **settings)
    trainer = Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=WORKERS,
        max_epochs=2,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record, FaultInjector(*faults), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        logger=CSVLogger(folder, name="log", version="", flush_logs_every_n_steps=5),
    )
    model = Steps(step_seconds, batches)
    trainer.fit(model)
    offset = time.time() - time.monotonic()
    return {
        "ends": record.ends,
        "batches": batches,
        "events": [(event.kind, event.neighbor, event.time - offset, event.detail) for event in strategy.events],
        "lost": strategy.lost_workers,
        "rank": trainer.global_rank,
        "world": trainer.world_size,
        "validated": model.validated,
        "validation_loss": float(trainer.callback_metrics["validation_loss"]),
        "checkpoints": sorted(path.name for path in Path(folder).glob("*.ckpt")),
    }


def _quiet_trainer(strategy: DecentralizedGossipStrategy, fault: Any) -> Trainer:
    """One epoch in which something happens, and nothing is written."""
    return Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=WORKERS,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FaultInjector(fault)],
    )


def train_again(victim: int) -> dict[str, Any]:
    """A worker is lost, the run ends, and the same trainer trains on with those who are left."""
    strategy = DecentralizedGossipStrategy(topology=ring_with_chords())
    trainer = _quiet_trainer(strategy, Kill(victim, step=10))
    model, worlds, swaps = Steps(seconds=0.01, batches=30), [], []
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(model)
        worlds.append(trainer.world_size)
        swaps.append(strategy.totals.swaps)
    return {"worlds": worlds, "swaps": swaps, "weight": model.net[0].weight.detach().double().sum().item()}


def own_parameters_go_bad() -> dict[str, Any]:
    """Worker 3's parameters turn into NaN: it publishes nothing from then on, and the others give it up."""
    strategy = DecentralizedGossipStrategy(topology=ring_with_chords())
    trainer = _quiet_trainer(strategy, BadParameters(3, step=10))
    model = Steps(seconds=0.02, batches=60)
    trainer.fit(model)
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    return {"lost": strategy.lost_workers, "finite": finite}


# ---- gossip without training ----


class Node:
    """One worker that gossips a small vector, with everything that the strategy would give it."""

    def __init__(self, topology: Any, max_delay: int | None, timeout_seconds: float = 10.0, size: int = 1000) -> None:
        self.worker, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        store = dist.distributed_c10d._get_default_store()
        self.x = torch.randn(size, generator=torch.Generator().manual_seed(self.worker), dtype=torch.float64)
        rule = GraphTopology(topology) if isinstance(topology, nx.Graph) else topology
        self.membership = Membership.open(self.worker, workers, store, "127.0.0.1")
        edges = connect_edges(self.worker, workers, rule.links(self.worker), timedelta(seconds=30))
        self.membership.watch(rule.links(self.worker))
        self.events = EventLog(self.worker)
        neighborhood = Neighborhood(self.worker, rule, edges, self.membership, self.events, "continue")
        vector = FlatVector([("x", self.x)])
        exchange = Exchange(vector, neighborhood, timeout=timedelta(seconds=timeout_seconds))
        self.gossiper = Gossiper(vector, exchange, max_delay=max_delay)
        self.mender = Mender(neighborhood, self.membership, rule, lambda: self.gossiper.totals.steps)
        self._meetings = 0
        dist.barrier()

    def step(self, pause: float = 0.002) -> None:
        """A batch without training."""
        time.sleep(pause)
        self.gossiper.step()

    def level(self) -> tuple[int, ...]:
        """Meet the others and land everything; returns who is there."""
        self._meetings += 1
        ten_seconds, a_minute = timedelta(seconds=10), timedelta(seconds=60)
        name = f"meeting {self._meetings}"
        store, members = meet(name, self.membership, self.mender, self.gossiper, ten_seconds, a_minute)
        self.gossiper.finish()
        store.set(f"landed/{self.worker}", "")
        if self.worker == members[0]:  # the store ends with its host, who must not be the first to leave
            store.wait([f"landed/{member}" for member in members])
        return members

    def close(self) -> None:
        self.mender.close()
        self.membership.close()
        self.mender.join()
        self.gossiper.close()


def mean_after(case: str, seed: int) -> dict[str, Any]:
    """Gossip through a fault, meet, gossip on, meet again: the survivors' vectors at both meetings."""
    node = Node(ring_with_chords(), max_delay=None if case in ("freeze", "late") else 0)
    torch.manual_seed(100 * seed + node.worker)
    draw = random.Random(seed)
    victims = {"kill": [draw.randrange(8)], "kill 0": [0], "kill three": draw.sample(range(8), 3)}.get(case, [])
    moments = {victim: 40 + 25 * place + draw.randrange(20) for place, victim in enumerate(victims)}
    bad = _tampering(draw.choice(["nan", "inf", "outlier"])) if case == "rubbish" and node.worker == 3 else None
    for step in range(200):
        if step == moments.get(node.worker):
            threading.Timer(0.0007 * draw.randrange(4), os.kill, (os.getpid(), signal.SIGKILL)).start()
        if case == "freeze" and node.worker == 2 and step == 60:
            time.sleep(1.0)
        if case == "late" and step % 17 == node.worker:
            time.sleep(0.05)
        node.gossiper.tamper = bad if bad is not None and step % 4 == 0 and step > 20 else None
        # As training would, so that the second half of the gossip has something to do.
        node.x.add_(torch.randn(len(node.x), dtype=node.x.dtype), alpha=0.1)
        node.step()
    members = node.level()
    first = node.x.clone()
    for step in range(100):
        node.gossiper.tamper = bad if bad is not None and step % 4 == 0 else None
        node.step()
    node.level()
    node.close()
    return {"members": members, "first": first.tolist(), "last": node.x.tolist()}


def _tampering(kind: str) -> Callable[[FlatBuffer], None]:
    value = {"nan": float("nan"), "inf": float("inf"), "outlier": 1e3}[kind]

    def tamper(buffer: FlatBuffer) -> None:
        buffer.sections[0].add_(value)

    return tamper


def rubbish(payloads: int, seed: int) -> dict[str, Any]:
    """Every worker of a ring of four publishes rubbish now and then; what was rejected, and are all sound?"""
    node = Node(nx.cycle_graph(4), max_delay=0)
    draw = random.Random(1000 * seed + node.worker)
    sent, largest = 0, float(node.x.abs().max())
    tampers = {kind: _tampering(kind) for kind in ("nan", "inf", "outlier")}
    for step in range(10**9):
        # Never two in a row by the same worker, so that no edge sees three in a row of both its ends.
        spoil = step > 20 and step % 4 == node.worker and draw.random() < 0.9
        node.gossiper.tamper = tampers[draw.choice(list(tampers))] if spoil else None
        sent += 2 * spoil
        node.x.add_(torch.randn(len(node.x), dtype=node.x.dtype), alpha=1e-3)
        node.step(pause=0.0)
        done = torch.tensor([float(sent)])
        if step % 200 == 199:
            dist.all_reduce(done)
            if done >= payloads:
                break
    node.level()
    added = not bool(torch.isfinite(node.x).all()) or float(node.x.abs().max()) > 100 * largest
    answer = {
        "sent": sent,
        "rejected": node.gossiper.totals.rejected,
        "added": added,
        "edges": len(node.gossiper.exchange.neighborhood.edges),
    }
    node.close()
    return answer


def soak(rounds: int, every: int, seed: int) -> dict[str, Any]:
    """A fault every few rounds: delays, short freezes, rubbish; and what the process holds on to along the way."""
    node = Node(ring_with_chords(), max_delay=None)
    draw = random.Random(seed)  # the same at all workers
    held = []
    for step in range(rounds):
        node.gossiper.tamper = None
        if step % every == every - 1:
            victim, kind = draw.randrange(WORKERS), draw.choice(["delay", "freeze", "nan", "outlier"])
            if victim == node.worker and kind == "delay":
                time.sleep(0.02)
            elif victim == node.worker and kind == "freeze":
                freeze(0.05)
            elif victim == node.worker:
                node.gossiper.tamper = _tampering(kind)
        node.step(pause=0.0)
        while node.gossiper._pending is not None and not node.gossiper._pending.done():
            time.sleep(0.0005)  # so that every step is a round
        # In the middle of each twentieth: whoever is through first opens connections for the meeting at the end.
        if step % (rounds // 20) == rounds // 40:
            gc.collect()
            held.append(holdings())
    node.gossiper.tamper = None  # the last round was one with a fault; gossip goes on while others come
    edges = len(node.gossiper.exchange.neighborhood.edges)  # before the others close theirs at the end
    node.level()
    answer = {
        "held": held,
        "rounds": node.gossiper.totals.rounds,
        "edges": edges,
        "rejected": node.gossiper.totals.rejected,
    }
    node.close()
    return answer


def freeze(seconds: float) -> None:
    """This process stands still, all of its threads."""
    helper = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    helper.wait()


def holdings() -> dict[str, int]:
    """Threads, open files and resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
    }
