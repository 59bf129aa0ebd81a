"""Faults on order: a worker is killed, frozen, delayed or sends rubbish at a step that one names beforehand.

Whoever relies on a training that goes on without lost workers wants to see it do so, in their own set-up and before the
real fault comes. Every fault happens to the process that this callback runs in; nothing here reaches another one.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_decgan.callbacks.batches import training_batches
from lightning_decgan.checks import check_integer
from lightning_decgan.gossip import FlatBuffer

__all__ = ["BadParameters", "BadPayload", "Delay", "FaultInjector", "Freeze", "Kill"]

log = logging.getLogger(__name__)

OUTLIER = 1000.0
"""What is added to every number of a payload that is an outlier: finite in half precision too."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a worker when it begins a batch.

    Args:
        worker: its number, from 0.
        step: the batch, counted from 1 since the training began, over epochs and across resumed runs.

    Raises:
        TypeError: one of them is no integer.
        ValueError: worker < 0 or step < 1.
    """

    worker: int
    step: int

    def __post_init__(self) -> None:
        check_integer("worker", self.worker, 0)
        check_integer("step", self.step, 1)
        check_integer("steps", self._steps, 1)

    @property
    def _steps(self) -> int:
        """Batches that it lasts: those that may last longer than one have a field for it."""
        return getattr(self, "steps", 1)

    def happens_at(self, step: int) -> bool:
        """Whether it does at the beginning of this batch."""
        return self.step <= step < self.step + self._steps

    def strike(self, pl_module: LightningModule) -> None:
        """Do it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Kill(Fault):
    """The worker's process ends by SIGKILL: it says goodbye to nobody and writes nothing.

    Args:
        worker: the worker's number.
        step: the batch at whose beginning it happens.
        delay_seconds: how long after that; so a process is killed in the midst of a step.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> Kill(worker=3, step=20, delay_seconds=0.05).happens_at(20)
        True
    """

    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_seconds != 0:
            _positive_seconds("delay_seconds", self.delay_seconds)

    def strike(self, pl_module: LightningModule) -> None:
        """End this process, now or from a thread that waits."""
        if self.delay_seconds:
            timer = threading.Timer(self.delay_seconds, _kill_this_process)
            timer.daemon = True
            timer.start()
        else:
            _kill_this_process()


@dataclass(frozen=True)
class Freeze(Fault):
    """The worker's process stands still, all of its threads, as on a machine that was suspended; then it goes on.

    Args:
        worker: the worker's number.
        step: the batch at whose beginning it happens.
        seconds: how long.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> Freeze(worker=1, step=5, seconds=3)
        Freeze(worker=1, step=5, seconds=3)
    """

    seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive_seconds("seconds", self.seconds)

    def strike(self, pl_module: LightningModule) -> None:
        """Stop this process and have another one wake it."""
        # It calls again and again, as its first call may come before this process has stopped, and ends by itself when
        # this process is no more.
        script = 'sleep "$1"; while kill -CONT "$2" 2>/dev/null; do sleep 0.1; done'
        alarm = subprocess.Popen(  # noqa: S603  # a constant script and two numbers
            ["/bin/sh", "-c", script, "sh", f"{self.seconds:.3f}", str(os.getpid())],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.kill(os.getpid(), signal.SIGSTOP)
        alarm.kill()
        alarm.wait()


@dataclass(frozen=True)
class Delay(Fault):
    """The worker sleeps at the beginning of batches, as on a machine that is slower; its other threads go on.

    Args:
        worker: the worker's number.
        step: the first batch at whose beginning it sleeps.
        seconds: how long, each time.
        steps: batches in a row that are delayed.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> slow = Delay(worker=1, step=5, seconds=0.2, steps=10)
        >>> [slow.happens_at(step) for step in (4, 5, 14, 15)]
        [False, True, True, False]
    """

    seconds: float
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive_seconds("seconds", self.seconds)

    def strike(self, pl_module: LightningModule) -> None:
        """Sleep."""
        time.sleep(self.seconds)


@dataclass(frozen=True)
class BadParameters(Fault):
    """The worker's first trainable parameter turns to NaN or infinity, as after a division by zero.

    The loss of that batch and the worker's other parameters follow.

    Args:
        worker: the worker's number.
        step: the batch at whose beginning it happens.
        value: `"nan"` or `"inf"`.

    Raises:
        ValueError: a number is out of range, or another value.

    Example:
        >>> BadParameters(worker=0, step=1, value="none")
        Traceback (most recent call last):
        ...
        ValueError: value must be one of 'nan', 'inf', found 'none'
    """

    value: Literal["nan", "inf"] = "nan"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("value", self.value, ("nan", "inf"))

    def strike(self, pl_module: LightningModule) -> None:
        """Overwrite the parameter in place."""
        parameter = next((parameter for parameter in pl_module.parameters() if parameter.requires_grad), None)
        if parameter is None:
            raise RuntimeError(f"{self} needs a trainable parameter, found none in {type(pl_module).__name__}")
        with torch.no_grad():
            parameter.fill_(float(self.value))


@dataclass(frozen=True)
class BadPayload(Fault):
    """What the worker sends to its neighbours is rubbish; its own parameters are not touched.

    It is the snapshots taken at the end of the batches `step` to `step + steps - 1`, under a strategy that gossips.

    Args:
        worker: the worker's number.
        step: the first batch.
        kind: `"nan"` and `"inf"` replace a single number, the one hardest to find; `"outlier"` adds 1,000 to each.
        steps: batches in a row.

    Raises:
        ValueError: a number is out of range, or another kind.

    Example:
        >>> from lightning_decgan.gossip import FlatVector
        >>> snapshot = FlatVector([("weight", torch.zeros(3))]).new_buffer()
        >>> BadPayload(worker=0, step=1, kind="nan").tamper(snapshot)
        >>> snapshot.views[0]
        tensor([0., nan, 0.])
    """

    kind: Literal["nan", "inf", "outlier"] = "nan"
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("kind", self.kind, ("nan", "inf", "outlier"))

    def tamper(self, snapshot: FlatBuffer) -> None:
        """Spoil a snapshot that is about to be sent."""
        filled = [section for section in snapshot.sections if section.numel()]
        if self.kind == "outlier":
            for section in filled:
                section.add_(OUTLIER)
        elif filled:
            filled[-1][filled[-1].numel() // 2] = float(self.kind)

    def strike(self, pl_module: LightningModule) -> None:
        """Hand `tamper` to the strategy, which applies it to every snapshot before it sends it."""
        pl_module.trainer.strategy.tamper = self.tamper  # type: ignore[attr-defined]


class FaultInjector(Callback):
    """Lets faults happen to workers at the steps that are named, to try out what a set-up does about them.

    A fault happens when its worker begins the batch, before the training step: in Lightning's order,
    `on_train_batch_start` of this callback. Workers are called by the numbers that they began with. A run that resumes
    from a checkpoint taken before a fault meets it again. All faults but `BadPayload` work under any strategy.

    Args:
        *faults: `Kill`, `Freeze`, `Delay`, `BadParameters` and `BadPayload`, in the order in which they happen if they
            happen at once. Of several payload faults at once, the last counts.

    Raises:
        TypeError: when made, something else than a fault.
        ValueError: when training begins, a worker that does not exist, or `BadPayload` under a strategy that does not
            gossip.

    Example:
        >>> faults = FaultInjector(Kill(worker=3, step=20), Freeze(worker=1, step=40, seconds=3.0))
        >>> trainer = Trainer(callbacks=[faults], accelerator="cpu", logger=False)
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        for fault in faults:
            if not isinstance(fault, Fault):
                raise TypeError(
                    f"faults must be Kill, Freeze, Delay, BadParameters or BadPayload objects, found {fault!r}"
                )
        self.faults = faults

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the faults against the workers that there are."""
        strategy = trainer.strategy
        for fault in self.faults:
            if fault.worker >= trainer.world_size:
                raise ValueError(f"worker must be in 0..{trainer.world_size - 1} for this Trainer, found {fault}")
            if isinstance(fault, BadPayload) and not hasattr(strategy, "tamper"):
                raise ValueError(
                    f"BadPayload needs a strategy that gossips, such as 'decentralized_gossip', found "
                    f"{type(strategy).__name__}"
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lets happen what happens to this worker at this batch."""
        step = training_batches(trainer) + 1
        own = self._own_faults(trainer)
        _send_honestly(trainer, own)
        for fault in own:
            if fault.happens_at(step):
                log.warning("Injected in batch %d: %s", step, fault)
                fault.strike(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the strategy send honest payloads again."""
        _send_honestly(trainer, self._own_faults(trainer))

    def _own_faults(self, trainer: Trainer) -> list[Fault]:
        worker = getattr(trainer.strategy, "worker", trainer.global_rank)
        return [fault for fault in self.faults if fault.worker == worker]


def _send_honestly(trainer: Trainer, faults: list[Fault]) -> None:
    if any(isinstance(fault, BadPayload) for fault in faults):  # else it is not ours to take away
        trainer.strategy.tamper = None  # type: ignore[attr-defined]


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _positive_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number of seconds > 0, found {value!r}")


def _one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, found {value!r}")
