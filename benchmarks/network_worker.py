"""One worker of `network.py`: a process on a node of the network that trains in every form it is told to, in turn.

It speaks with `network.py` in lines of JSON over its standard input and output, so the network under test carries
nothing but training. Whatever libraries print goes to the standard error.

    network.py -> {"form": ..., "load": ..., "port": ..., ...}        train like this
    worker     -> {"event": "warm", "seconds": 0.8, ...}              warm-up is over; a step takes as long as that
    network.py -> {"steps": 30}                                       so measure that many
    worker     -> {"event": "progress", "step": 7}                    now and then: it lives
    worker     -> {"event": "done", ...} or {"event": "error", ...}
    network.py -> {}                                                  all are done: links may be closed
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import rivals
import torch
import torch.distributed as dist
from communication_floor import Network, all_reduce_seconds, power_sgd_bytes, swap_seconds
from crew import end_with_parent, quiet_lightning
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from network_forms import FORMS, Form, make_settings
from torch.utils.data import DataLoader, DistributedSampler
from workload import Images, make_module, make_objective

from lightning_decgan import DecentralizedGossipStrategy

__all__ = ["StepClock", "floor_seconds", "read_sent_bytes", "serve"]

# Slow networks must end in a large number and not in an error.
_GOSSIP_TIMEOUT = timedelta(seconds=120)
_PROGRESS_SECONDS = 1.0
_MOST_STEPS = 10_000
_CORES = os.sched_getaffinity(0)
# Events of the strategy after which a step is cheaper than it should be.
_LOSSES = ("edge_lost", "worker_lost", "payload_rejected", "isolated")


def read_sent_bytes(interface: str, table: str = "/proc/self/net/dev") -> int:
    """Bytes that an interface of this process's network namespace has sent so far.

    Raises:
        ValueError: there is no such interface.
    """
    for line in Path(table).read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[8])
    raise ValueError(f"{table} has no interface {interface!r}")


class Channel:
    """Lines of JSON to and from `network.py`."""

    def __init__(self) -> None:
        # Keep the pipe for ourselves: whatever else is printed in this process must not get into it.
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, event: str, **values: Any) -> None:
        """Send one event."""
        self._out.write(json.dumps({"event": event, **values}) + "\n")

    def hear(self) -> dict[str, Any] | None:
        """The next command, or `None` when there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None


@dataclass
class StepClock:
    """Counts steps and times those that are measured: after the warm-up, and after one step more.

    At the end of the warm-up all workers ask how many steps to measure, and so wait for each other. The step after it
    is not measured: its exchange had that pause to finish in.

    Args:
        warmup: steps before.
        ask: told the seconds of the last warm-up step, says how many steps to measure.
        sent_bytes: the counter of the network interface.
        progress: told the number of measured steps, once a second.
        seconds: of each measured step, from the end of one to the end of the next.
    """

    warmup: int
    ask: Callable[[float], int]
    sent_bytes: Callable[[], int]
    progress: Callable[[int], None] = lambda step: None
    seconds: list[float] = field(default_factory=list)
    bytes_sent: int = 0
    _step: int = 0
    _wanted: int = 0
    _last: float = 0.0
    _said: float = 0.0

    def step_ended(self) -> bool:
        """Note the end of a step; returns whether to train on."""
        now = time.perf_counter()
        self._step += 1
        if self._step > self.warmup + 1:
            self.seconds.append(now - self._last)
            if len(self.seconds) == self._wanted:
                self.bytes_sent += self.sent_bytes()
                return False
        elif self._step == self.warmup:
            self._wanted = self.ask(now - self._last)
            now = time.perf_counter()
        elif self._step == self.warmup + 1:
            self.bytes_sent = -self.sent_bytes()
        if now - self._said > _PROGRESS_SECONDS:
            self.progress(len(self.seconds))
            self._said = now
        self._last = now
        return True


class _ClockCallback(Callback):
    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self.losses: list[str] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self._clock.step_ended():
            trainer.should_stop = True
            events = getattr(trainer.strategy, "events", [])
            self.losses = [f"{event.kind}: {event.detail}" for event in events if event.kind in _LOSSES]


def floor_seconds(form: Form, network: Network, workers: int, objective: torch.nn.Module) -> float:
    """The least that communication can cost a step of this form on this network; `communication_floor.py` says how."""
    shapes = [tuple(parameter.shape) for parameter in objective.parameters()]
    size_bytes = sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters())
    settings = dict(form.settings)
    if form.kind == "local":
        return 0.0
    if form.kind == "gossip":
        return _gossip_floor_seconds(form, network, workers, objective)
    if form.kind == "decent-dp":  # both of its topologies average pairs
        return swap_seconds(network, 1, size_bytes)
    if settings.get("hook") == "power_sgd":
        parts = power_sgd_bytes(shapes, settings["rank"])
        return sum(all_reduce_seconds(network, workers, part) for part in parts)
    if settings.get("hook") == "bfloat16":
        size_bytes //= 2
    return all_reduce_seconds(network, workers, size_bytes) / form.period


def _gossip_floor_seconds(form: Form, network: Network, workers: int, objective: torch.nn.Module) -> float:
    from lightning_decgan.gossip import FlatVector
    from lightning_decgan.topology import build_topology

    settings = make_settings(form.settings)
    every = settings.get("gossip_every", 1)
    if every > _MOST_STEPS:
        return 0.0
    topology = build_topology(settings.get("topology", "ring"), workers)
    rounds = range(64)  # more than any schedule's period here
    neighbors = sum(len(topology.weights(0, number)) for number in rounds) / len(rounds)
    vector = FlatVector(list(objective.named_parameters()))
    messages: tuple[int, ...] = (vector.size_bytes,)
    if settings.get("compression") is not None:
        from lightning_decgan.gossip.compression import build_compression

        compression = build_compression(settings["compression"])
        assert compression is not None
        messages = compression.codec(vector, edge=(0, 1), worker=0, seed=0).message_bytes
    return swap_seconds(network, neighbors, sum(messages), len(messages)) / every


def _train_with_lightning(form: Form, command: dict[str, Any], images: Images, clock: StepClock) -> dict[str, Any]:
    strategy: DDPStrategy
    if form.kind == "lightning-ddp":
        strategy = DDPStrategy(process_group_backend="gloo", timeout=rivals.TIMEOUT)
    else:
        settings = make_settings(form.settings)
        known = inspect.signature(DecentralizedGossipStrategy).parameters
        if unknown := [name for name in settings if name not in known]:
            raise TypeError(f"this version of DecentralizedGossipStrategy has no argument {', '.join(unknown)}")
        strategy = DecentralizedGossipStrategy(
            **settings, evaluate="local", timeout=_GOSSIP_TIMEOUT, world_timeout=rivals.TIMEOUT
        )
    callback = _ClockCallback(clock)
    trainer = Trainer(
        strategy=strategy, accelerator="cpu", devices=1, num_nodes=command["workers"], max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback],
    )  # fmt: skip
    trainer.fit(make_module(command["load"], command["width"]), DataLoader(images, batch_size=command["batch"]))
    if callback.losses:
        raise RuntimeError(f"not all workers took part until the end; {callback.losses[0]}")
    if not isinstance(strategy, DecentralizedGossipStrategy):
        return {}
    totals = strategy.totals
    return {
        "gossips_a_step": totals.rounds / max(strategy.rounds * totals.steps, 1),
        "reported_bytes_a_step": totals.bytes_sent / max(totals.steps, 1),
    }


def _share_cores(rank: int, exclusively: bool) -> None:
    """Under a load that keeps the cores busy, every worker computes on one core, and every core has as many workers.

    Left to the scheduler, workers that do not wait for each other run in pairs, one pair after the other: the same work
    in the same time, but each step alone on its core, and a median of half of what a step of four costs.
    """
    cores = sorted(_CORES)
    mine = {cores[rank % len(cores)]} if exclusively else _CORES
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), mine)


def _run(command: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Train in one form and measure it."""
    form, interface = FORMS[command["form"]], command["interface"]
    _share_cores(int(os.environ["RANK"]), exclusively=command["load"] == "cpu")
    os.environ["MASTER_PORT"] = str(command["port"])
    torch.manual_seed(0)

    def ask(step_seconds: float) -> int:
        channel.say("warm", seconds=step_seconds, floor_seconds=floor)
        answer = channel.hear()
        if answer is None:
            raise SystemExit(1)
        return int(answer["steps"])

    clock = StepClock(
        warmup=command["warmup"],
        ask=ask,
        sent_bytes=lambda: read_sent_bytes(interface),
        progress=lambda step: channel.say("progress", step=step),
    )
    workers, rank, batch = command["workers"], int(os.environ["RANK"]), command["batch"]
    images = Images(workers * batch * _MOST_STEPS)
    objective = make_objective(command["load"], command["width"])
    floor = floor_seconds(form, Network(**command["network"]), workers, objective)
    values: dict[str, Any] = {
        "parameter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters()),
    }
    if form.loop == "Lightning":
        values |= _train_with_lightning(form, command, images, clock)
    else:
        sampler: DistributedSampler[Any] = DistributedSampler(images, workers, rank, shuffle=False)
        batches = DataLoader(images, batch_size=batch, sampler=sampler)
        rivals.train(form.kind, dict(form.settings), objective, batches, clock.step_ended)
    # All workers send through the one loopback interface of a machine, but each has an eth0 of its own.
    senders = workers if interface == "lo" else 1
    return values | {
        "seconds": clock.seconds,
        "bytes_a_step": clock.bytes_sent / senders / len(clock.seconds),
        "floor_seconds": floor,
    }


def serve() -> None:
    """Do what is asked for until the standard input ends."""
    end_with_parent()
    channel = Channel()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet_lightning()
    channel.say("ready")
    while (command := channel.hear()) is not None:
        print(f"---- {command['form']}", file=sys.stderr, flush=True)
        try:
            values = _run(command, channel)
        except Exception as error:
            traceback.print_exc()
            channel.say("error", kind=type(error).__name__, message=str(error))
        else:
            channel.say("done", **values)
            channel.hear()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            gc.collect()


if __name__ == "__main__":
    serve()
