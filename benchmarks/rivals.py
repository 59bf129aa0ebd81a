"""The other ways of training, as their users run them: plain torch loops, without Lightning.

All take the same model, data and optimizers. One wrapper goes round both players, whose gradients come from one forward
and one backward (`workload.GanObjective`): DistributedDataParallel and decent-dp both count forwards.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

__all__ = ["RIVALS", "NotInstalled", "train"]

TIMEOUT = timedelta(minutes=10)
# The first steps of PowerSGD all-reduce whole gradients; torch asks for at least two of them.
FIRST_POWER_SGD_STEP = 2


def _nothing() -> None:
    pass


@dataclass
class Loop:
    """What differs between the loops.

    Attributes:
        model: called with the images, gives the objective.
        optimizers: stepped by the loop.
        after_step: called after every step.
        finish: called after the last: waits for what is still under way.
    """

    model: nn.Module
    optimizers: list[Optimizer]
    after_step: Callable[[], None] = _nothing
    finish: Callable[[], None] = _nothing


class NotInstalled(RuntimeError):
    """decent-dp is not there; the message says how to get it."""


def train(
    kind: str, settings: dict[str, Any], objective: Any, batches: Iterable[Tensor], step_ended: Callable[[], bool]
) -> None:
    """Train until `step_ended`, which is called after every step, returns `False`.

    Args:
        kind: a key of `RIVALS`.
        settings: of that rival.
        objective: from `workload.make_objective`.
        batches: images.
        step_ended: told of every step's end.
    """
    dist.init_process_group("gloo", timeout=TIMEOUT)
    loop = RIVALS[kind](objective, **settings)
    for images in batches:
        for optimizer in loop.optimizers:
            optimizer.zero_grad()
        loop.model(images).backward()
        for optimizer in loop.optimizers:
            optimizer.step()
        loop.after_step()
        if not step_ended():
            break
    loop.finish()


def _local(objective: Any) -> Loop:
    """No communication at all."""
    return Loop(objective, _optimizers(objective))


def _ddp(objective: Any, hook: str | None = None, rank: int = 1) -> Loop:
    """DistributedDataParallel with all its defaults: it also broadcasts BatchNorm's buffers before every forward.

    With PowerSGD all gradients are one bucket. Under gloo, torch's hook starts the all-reduces of several buckets in an
    order that differs between workers, and the processes are ended with "collective mismatch".
    """
    model = DistributedDataParallel(objective, bucket_cap_mb=1000 if hook == "power_sgd" else None)
    if hook == "bfloat16":
        # By the hook's own name DistributedDataParallel refuses it without NCCL; gloo can all the same.
        model.register_comm_hook(None, lambda state, bucket: default_hooks.bf16_compress_hook(state, bucket))
    elif hook == "power_sgd":
        state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=rank, start_powerSGD_iter=FIRST_POWER_SGD_STEP
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook is not None:
        raise ValueError(f"hook must be 'bfloat16', 'power_sgd' or None, found {hook!r}")
    return Loop(model, _optimizers(objective))


def _averaging(objective: Any, period: int) -> Loop:
    """Local SGD: all parameters are averaged over all workers every few steps."""
    averager = PeriodicModelAverager(period=period)
    parameters = list(objective.parameters())
    average = functools.partial(averager.average_parameters, parameters)
    return Loop(objective, _optimizers(objective), after_step=average)


def _decent_dp(objective: Any, topology: str) -> Loop:
    """decent-dp makes and steps the optimizers itself, while the backward runs."""
    wrapper = _import_decent_dp().DecentralizedDataParallel

    def make_optimizer(named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        return objective.make_optimizer([parameter for _, parameter in named])

    model = wrapper(objective, make_optimizer, topology=topology)

    def wait_for_last_exchange() -> None:
        for work in model._comm_ops:  # it has no public way to wait without an average over all workers
            if work is not None:
                work.wait()

    return Loop(model, [], finish=wait_for_last_exchange)


def _optimizers(objective: Any) -> list[Optimizer]:
    return [objective.make_optimizer(player.parameters()) for player in objective.players]


RIVALS: dict[str, Callable[..., Loop]] = {
    "local": _local,
    "ddp": _ddp,
    "averaging": _averaging,
    "decent-dp": _decent_dp,
}


def _import_decent_dp() -> Any:
    try:
        module = importlib.import_module("decent_dp.ddp")
        importlib.import_module("loguru").logger.remove()
    except ImportError as error:
        raise NotInstalled(
            f"not installed ({error}): pip install --no-deps --target FOLDER decent-dp loguru, then --decent-dp FOLDER"
        ) from error
    return module
