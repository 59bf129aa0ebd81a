"""The private spots of Lightning and torch that this package has to touch, all in one place, each with its test.

Lightning starts every training batch with a world-wide broadcast of a SIGTERM flag, and sends another from inside the
signal handler. Over a slow network the first costs more than the training step; after a death the second never returns.
Here both become local: every worker acts on the signal that it has received itself, as the launcher forwards it to all.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["choose_main_port", "deal_validation_anew", "disarm_world_broadcasts", "loopback_store", "unused_port"]

# Below the ephemeral ports of Linux (32768 and up) and above the usual servers.
_SERVER_PORTS = range(20_000, 32_000)


def disarm_world_broadcasts(trainer: Trainer) -> None:
    """Replace Lightning's two SIGTERM broadcasts by local checks, for this trainer only.

    Raises:
        RuntimeError: Lightning no longer has these methods; this version of it has not been tested.
    """
    epoch_loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
    for owner, method in ((epoch_loop, "_broadcast_sigterm_tensor"), (connector, "_sigterm_notifier_fn")):
        if not hasattr(owner, method):
            raise RuntimeError(
                f"this version of Lightning has no {type(owner).__name__}.{method}; install a version that"
                " lightning_decgan supports (see its pyproject.toml)"
            )

    def stop_if_terminated() -> None:
        if trainer.received_sigterm:
            raise SIGTERMException

    def note_sigterm(signum: int, _: FrameType | None) -> None:
        launcher = trainer.strategy.launcher
        if not connector.received_sigterm and launcher is not None:
            launcher.kill(signum)
        connector.received_sigterm = True

    # On the instances: other trainers of this process keep what they have.
    setattr(epoch_loop, "_broadcast_sigterm_tensor", stop_if_terminated)  # noqa: B010
    setattr(connector, "_sigterm_notifier_fn", note_sigterm)  # noqa: B010


def deal_validation_anew(trainer: Trainer) -> None:
    """Have the next validation of a running fit make its loaders anew, for the workers that there are then.

    Lightning makes them once, and the images of a lost worker would be left out from then on.

    Raises:
        RuntimeError: Lightning keeps them elsewhere; this version of it has not been tested.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    if not hasattr(loop, "_combined_loader"):
        raise RuntimeError(
            "this version of Lightning has no val_loop._combined_loader; install a version that lightning_decgan"
            " supports (see its pyproject.toml)"
        )
    loop._combined_loader = None


def choose_main_port(environment: ClusterEnvironment) -> None:
    """Let the workers of one machine meet at a port that no outgoing connection can take in the meantime.

    Lightning asks the system for a free port and gives it back; seconds pass until the first worker listens there, and
    such a port lies where the system finds ports for connections (two runs at a time then clash now and then).
    """
    if (
        isinstance(environment, LightningEnvironment)
        and environment._main_port == -1
        and "MASTER_PORT" not in os.environ
    ):
        environment._main_port = unused_port()


def unused_port() -> int:
    """A TCP port on which nothing listens and which the system gives to no outgoing connection; chosen at random.

    Raises:
        OSError: fifty were tried and all were in use.
    """
    for port in random.SystemRandom().sample(_SERVER_PORTS, 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(
        f"50 ports between {_SERVER_PORTS.start} and {_SERVER_PORTS.stop - 1} were tried and all are in use; set"
        " MASTER_PORT to a free one"
    )


def loopback_store(port: int, workers: int, rank: int, timeout: timedelta) -> dist.TCPStore:
    """The rendezvous of workers on one machine, listening on 127.0.0.1 alone.

    torch's own store listens on all interfaces and asks nobody who they are.
    """
    if rank != 0:
        return dist.TCPStore("127.0.0.1", port, workers, is_master=False, timeout=timeout)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(workers * 8)
    # The store takes the descriptor over; detach, so that it is not closed twice.
    return dist.TCPStore(
        "127.0.0.1", port, workers, is_master=True, timeout=timeout, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
