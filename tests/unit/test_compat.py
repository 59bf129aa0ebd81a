"""Lightning's private spots are where this package expects them; these tests fail when Lightning moves them."""

from __future__ import annotations

import inspect
import random
import signal
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_decgan.strategy.compat import (
    deal_validation_anew,
    disarm_world_broadcasts,
    loopback_store,
    unused_port,
)
from tests.distributed.workers import free_port


def _trainer() -> Trainer:
    return Trainer(accelerator="cpu", devices=1, barebones=True)


def test_lightning_still_has_both_broadcasts_and_still_calls_the_first_before_every_batch() -> None:
    loop = training_epoch_loop._TrainingEpochLoop
    assert "torch.distributed.broadcast" in inspect.getsource(loop._broadcast_sigterm_tensor)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(loop.advance), (
        "Lightning no longer calls _broadcast_sigterm_tensor in advance(): find what does, and disarm that"
    )
    assert "dist.broadcast" in inspect.getsource(_SignalConnector._sigterm_notifier_fn)
    assert "self._sigterm_notifier_fn" in inspect.getsource(_SignalConnector.register_signal_handlers)


def test_lightning_still_makes_validation_loaders_once_and_keeps_them_where_they_are_looked_for() -> None:
    trainer = _trainer()
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop._combined_loader = object()
    deal_validation_anew(trainer)
    assert loop._combined_loader is None
    assert "if self._combined_loader is not None and trainer_fn == TrainerFn.FITTING" in inspect.getsource(
        loop.setup_data
    )
    del loop._combined_loader
    with pytest.raises(RuntimeError, match=r"has no val_loop\._combined_loader"):
        deal_validation_anew(trainer)


def test_no_other_place_of_the_training_loop_talks_to_the_world() -> None:
    """One broadcast and the barrier that follows a SIGTERM: whatever else appears has to be looked at."""
    source = inspect.getsource(training_epoch_loop)
    assert source.count("torch.distributed.broadcast(") == 1
    assert source.count("torch.distributed.barrier(") == 1


def test_disarmed_a_trainer_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(*_: object, **__: object) -> None:
        raise AssertionError("a world collective")

    trainer = _trainer()
    disarm_world_broadcasts(trainer)
    monkeypatch.setattr(dist, "broadcast", broadcast)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    assert trainer.received_sigterm
    with pytest.raises(SIGTERMException):
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


def test_other_trainers_keep_lightnings_own() -> None:
    disarmed, ordinary = _trainer(), _trainer()
    disarm_world_broadcasts(disarmed)
    own = ordinary.fit_loop.epoch_loop._broadcast_sigterm_tensor
    assert own.__func__ is training_epoch_loop._TrainingEpochLoop._broadcast_sigterm_tensor


@pytest.mark.parametrize("method", ["_broadcast_sigterm_tensor", "_sigterm_notifier_fn"])
def test_a_lightning_without_them_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    owner = training_epoch_loop._TrainingEpochLoop if "broadcast" in method else _SignalConnector
    trainer = _trainer()
    monkeypatch.delattr(owner, method)
    with pytest.raises(RuntimeError, match=f"this version of Lightning has no {owner.__name__}.{method}"):
        disarm_world_broadcasts(trainer)


def test_the_stores_rendezvous_listens_on_loopback_alone() -> None:
    port = free_port()
    store = loopback_store(port, 2, 0, timedelta(seconds=10))
    other = loopback_store(port, 2, 1, timedelta(seconds=10))
    other.set("key", "value")
    assert store.get("key") == b"value"
    with open("/proc/net/tcp") as v4, open("/proc/net/tcp6") as v6:
        lines = [line.split() for line in (*v4.readlines(), *v6.readlines())]
    listening = [line[1] for line in lines if len(line) > 3 and line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_an_unused_port_is_one_that_no_connection_takes_and_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert 1024 < unused_port() < lowest
    with socket.create_server(("127.0.0.1", 0)) as server:
        in_use, held, other = server.getsockname()[1], free_port(), unused_port()
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [in_use, held, other])
        assert unused_port() == other
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [in_use, held])
        with pytest.raises(OSError, match="between 20000 and 31999 were tried and all are in use; set MASTER_PORT"):
            unused_port()
