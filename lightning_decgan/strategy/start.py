"""What happens before the first batch: sane weights, random numbers of one's own, a private rendezvous.

Nothing here is called again once training has begun.
"""

from __future__ import annotations

import os
import random
import socket
from datetime import timedelta

import numpy as np
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch import LightningModule
from torch.nn import UninitializedParameter

from lightning_decgan.strategy.compat import loopback_store

__all__ = ["check_finite", "draw_own_random_numbers", "init_loopback_group", "stays_on_this_machine"]


def check_finite(module: LightningModule) -> None:
    """Refuse a model that would poison its neighbours from the first gossip on.

    Raises:
        ValueError: a parameter holds values that are NaN or infinite.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
            continue
        count = int((~torch.isfinite(parameter)).sum())
        if count:
            raise ValueError(
                f"parameter '{name}' holds {count} values that are NaN or infinite; gossip would spread them to every"
                " worker. All weights must be finite before training."
            )


def draw_own_random_numbers(worker: int) -> None:
    """Give every worker random numbers of its own: with one seed for all, every GAN would see the same noise."""
    if worker:
        seed = int(np.random.SeedSequence((torch.initial_seed() % 2**64, worker)).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


def stays_on_this_machine(environment: ClusterEnvironment, nodes: int) -> bool:
    """Whether Lightning itself starts the workers (no torchrun, no SLURM) and all of them here."""
    return (
        nodes == 1
        and isinstance(environment, LightningEnvironment)
        and environment.main_address in ("127.0.0.1", "localhost")
    )


def init_loopback_group(
    environment: ClusterEnvironment, backend: str, timeout: timedelta, device: torch.device
) -> None:
    """Make the default process group of workers on one machine, where nothing listens to other machines."""
    if torch.distributed.is_initialized():
        return
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    store = loopback_store(environment.main_port, environment.world_size(), environment.global_rank(), timeout)
    _init_dist_connection(
        environment, backend, timeout=timeout, store=store, device_id=None if device.type == "cpu" else device
    )
