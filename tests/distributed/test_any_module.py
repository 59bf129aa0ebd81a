"""The strategy trains any LightningModule: one gossip a stepped batch, of what the optimizers hold and nothing else."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_decgan.strategy import DecentralizedGossipStrategy
from tests.distributed import users_modules as users
from tests.distributed.models import UsersGAN, make_trainer
from tests.distributed.workers import run_workers

pytestmark = pytest.mark.processes

ONE_LINEAR_BYTES = 4 * (4 * 3 + 3)


@dataclass
class Case:
    """A module, its Trainer, and what must come of it on each of two workers.

    Attributes:
        swaps: gossips expected, one swap each with the only neighbour.
        message_bytes: size of a message, all gossips of the run having the same.
        still: parameters that must not change, by prefix of their names.
    """

    make: Callable[[], Any]
    swaps: int
    message_bytes: int
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list] = list
    still: tuple[str, ...] = ("nothing",)


CASES = {
    "automatic, one optimizer": Case(users.Regression, 6, ONE_LINEAR_BYTES),
    "accumulate_grad_batches=3, of 7 batches": Case(
        users.SevenBatches, 3, ONE_LINEAR_BYTES, trainer={"accumulate_grad_batches": 3}
    ),
    "gradient clipping": Case(users.Regression, 6, ONE_LINEAR_BYTES, trainer={"gradient_clip_val": 0.1}),
    "LBFGS": Case(users.WithLBFGS, 6, ONE_LINEAR_BYTES),
    "manual, three optimizers": Case(users.ThreeOptimizers, 6, 4 * (4 * 5 + 5 + 5 * 3 + 3 + 3)),
    "a GAN with n_critic": Case(
        # A Wasserstein critic's last bias cancels out of its loss; the EMA copy is in no optimizer.
        lambda: UsersGAN(n_critic=3), 16, 4 * (4 * 24 + 24 + 2 * 24 + 24 * 16 + 16 + 16 * 24 + 24 + 24 + 1),
        trainer={"limit_train_batches": 16, "limit_val_batches": 0}, still=("discriminator.2.bias",),
    ),
    "accumulation in a manual module": Case(users.AccumulatesItself, 6, ONE_LINEAR_BYTES),
    "frozen parameters": Case(users.FrozenBackbone, 6, 4 * (50 * 3 + 3), still=("backbone",)),
    "one parameter under two names": Case(users.Tied, 6, 4 * (4 * 4 + 4 + 4)),
    "unused parameters": Case(users.Unused, 6, ONE_LINEAR_BYTES + 4 * 7, still=("spare",)),
    # 3 bfloat16 in 6 bytes, 15 float64 in 120, 15 float32 in 60; each dtype begins at a multiple of 64.
    "float64, float32 and bfloat16": Case(users.ThreeDtypes, 6, 64 + 128 + 60),
    "BatchNorm": Case(users.BatchNorm, 6, 4 * (4 * 5 + 5 + 10 + 5 * 3 + 3)),
    "old spectral_norm": Case(users.OldSpectralNorm, 6, 4 * (4 * 5 + 5 + 5 * 3 + 3)),
    "parametrizations": Case(users.Parametrized, 6, 4 * (4 * 5 + 5 + 3 + 5 * 3 + 3)),
    "bf16-mixed": Case(users.Regression, 6, ONE_LINEAR_BYTES, trainer={"precision": "bf16-mixed"}),
    "torch.compile": Case(users.compiled, 6, ONE_LINEAR_BYTES),
    "one worker steps no optimizer in some batches": Case(users.SometimesIdle, 6, ONE_LINEAR_BYTES),
}  # fmt: skip


def _fit(case: Case) -> dict[str, Any]:
    seed_everything(1)
    model = case.make()
    strategy = DecentralizedGossipStrategy(overlap=False, evaluate="local")
    trainer = make_trainer(strategy, 2, **({"max_epochs": 1, "callbacks": case.callbacks()} | case.trainer))
    start = {
        name.removeprefix("_orig_mod."): p.detach().clone()  # what torch.compile puts round a module
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    trainer.fit(model)
    module = users.own_module(trainer)
    now = {name: p.detach().clone() for name, p in module.named_parameters(remove_duplicate=False)}
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    report = strategy.last_report
    return {
        "still": [name for name, value in now.items() if torch.equal(value, start[name])],
        "gossiped": [name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in held],
        "parameters": now,
        "buffers": {name: b.clone() for name, b in module.named_buffers()},
        "steps": strategy.totals.steps,
        "swaps": strategy.totals.swaps,
        "bytes_sent": strategy.totals.bytes_sent,
        "bytes_received": strategy.totals.bytes_received,
        "last_step": None if report is None else report.step,
        "learning_rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
        "epochs": trainer.current_epoch,
        "closures": getattr(module, "closures", 0),
    }


def _fit_all(names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = _fit((CASES | MORE_CASES)[name])
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    return found


@pytest.fixture(scope="module")
def fitted() -> list[dict[str, Any]]:
    """Every case, in one pair of processes: what each of the two workers found."""
    return run_workers(2, _fit_all, [*CASES, *MORE_CASES], timeout=280)


def _on_the_wire(size: int) -> int:
    """A message is padded to a multiple of 64 bytes and ends in a header of 64 bytes."""
    return -(-size // 64) * 64 + 64


@pytest.mark.parametrize("name", CASES)
def test_every_stepped_batch_gossips_once_and_only_what_the_optimizers_hold(fitted: list, name: str) -> None:
    case, workers = CASES[name], [worker[name] for worker in fitted]
    for worker in workers:
        assert "error" not in worker, worker["error"]
        assert worker["still"] == [n for n in worker["parameters"] if n.startswith(case.still)]
        assert worker["steps"] == worker["swaps"] == worker["last_step"] == case.swaps
        assert worker["bytes_sent"] == worker["bytes_received"] == case.swaps * _on_the_wire(case.message_bytes)
    # Two workers in exact order mix to the mean of both: what gossips agrees after every batch, though the data differ.
    for parameter in workers[0]["gossiped"]:
        tolerance = 1e-2 if workers[0]["parameters"][parameter].dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(
            workers[0]["parameters"][parameter], workers[1]["parameters"][parameter], rtol=0, atol=tolerance
        )


MORE_CASES = {
    "a callback unfreezes": Case(
        users.FrozenBackbone, 0, 0, trainer={"max_epochs": 4}, callbacks=lambda: [users.Unfreeze()]
    ),
    "ema": Case(UsersGAN, 0, 0, trainer={"limit_val_batches": 0}),
    "step schedule": Case(users.Schedules, 0, 0),
    "epoch schedule": Case(users.EpochSchedule, 0, 0, trainer={"max_epochs": 2}),
    "plateau": Case(users.Plateau, 0, 0, trainer={"max_epochs": 3}),
    "early stopping": Case(
        users.Plateau, 0, 0, trainer={"max_epochs": 6}, callbacks=lambda: [users.stop_early()]
    ),
}  # fmt: skip


def _found(fitted: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    workers = [worker[name] for worker in fitted]
    for worker in workers:
        assert "error" not in worker, worker["error"]
    return workers


def test_a_closure_is_called_several_times_and_gossips_once(fitted: list) -> None:
    for worker in _found(fitted, "LBFGS"):
        assert worker["closures"] > 2 * worker["swaps"]


def test_parameters_that_a_callback_hands_to_the_optimizer_gossip_from_then_on(fitted: list) -> None:
    head, whole = 4 * (50 * 3 + 3), 4 * (50 * 3 + 3 + 50 * 4 + 50)
    workers = _found(fitted, "a callback unfreezes")
    for worker in workers:
        assert worker["still"] == []
        assert worker["swaps"] == 24
        assert worker["bytes_sent"] == 12 * _on_the_wire(head) + 12 * _on_the_wire(whole)
    for name in ("backbone.weight", "net.weight"):
        torch.testing.assert_close(workers[0]["parameters"][name], workers[1]["parameters"][name], rtol=0, atol=1e-6)


def _resume_unfrozen(folder: str) -> dict[str, Any]:
    """Four epochs straight, and two runs of which the second resumes after the backbone has joined."""
    bytes_sent, weights = [], []
    for epochs, checkpoint in ((4, None), (3, None), (4, f"{folder}/epoch=2-step=18.ckpt")):
        seed_everything(1)
        model = users.FrozenBackbone()
        saver = ModelCheckpoint(dirpath=folder, save_top_k=-1)
        strategy = DecentralizedGossipStrategy(evaluate="local")
        trainer = make_trainer(
            strategy, 2, max_epochs=epochs, callbacks=[users.Unfreeze(), saver], enable_checkpointing=True
        )
        trainer.fit(model, ckpt_path=checkpoint)
        bytes_sent.append(strategy.totals.bytes_sent)
        weights.append(model.backbone.weight.detach().clone())
    return {"bytes": bytes_sent, "weights": weights}


def test_a_run_resumes_after_a_callback_has_unfrozen_parameters(tmp_path: Path) -> None:
    for worker in run_workers(2, _resume_unfrozen, str(tmp_path)):
        straight, _, resumed = worker["weights"]
        assert torch.equal(straight, resumed)
        assert worker["bytes"][0] == worker["bytes"][2] > worker["bytes"][1]


def test_ema_copies_and_buffers_stay_local(fitted: list) -> None:
    first, second = _found(fitted, "ema")
    assert not any(name.startswith("ema.") for name in first["gossiped"])
    assert not torch.equal(first["buffers"]["generator.1.running_mean"], second["buffers"]["generator.1.running_mean"])
    # Its input, the generator, agrees after every batch; what the copy averages was taken before the gossip.
    assert not torch.equal(first["parameters"]["ema.0.weight"], second["parameters"]["ema.0.weight"])


def test_schedules_run_per_step_per_epoch_and_on_a_workers_own_metric(fitted: list) -> None:
    for worker in _found(fitted, "step schedule"):
        assert worker["learning_rates"] == pytest.approx([0.1 * 0.9**6])
    for worker in _found(fitted, "epoch schedule"):
        assert worker["learning_rates"] == pytest.approx([0.1 * 0.5**2])
    first, second = _found(fitted, "plateau")
    assert first["learning_rates"] == pytest.approx([0.1])
    assert second["learning_rates"] == pytest.approx([0.1 * 0.1**2])


def test_early_stopping_on_one_worker_stops_both_in_the_same_epoch(fitted: list) -> None:
    assert [(worker["epochs"], worker["swaps"]) for worker in _found(fitted, "early stopping")] == [(2, 12)] * 2


def _until_none(on_loss: Literal["continue", "raise"]) -> tuple[str, float]:
    seed_everything(1)
    started = time.monotonic()
    try:
        make_trainer(DecentralizedGossipStrategy(on_loss=on_loss), 2, max_epochs=1).fit(users.SometimesNone())
    except RuntimeError as error:
        return str(error), time.monotonic() - started
    return "no error", time.monotonic() - started


@pytest.mark.parametrize(
    ("on_loss", "expected"),
    [("continue", "no error"), ("raise", r"worker 0 lost its link to neighbour 1|worker 1 was lost")],
)
def test_nobody_waits_for_a_worker_that_lightning_stops(on_loss: str, expected: str) -> None:
    """Lightning forbids `None` from an automatic training_step among several workers."""
    neighbor, worker = run_workers(2, _until_none, on_loss)
    assert "returning None in distributed training is not supported" in worker[0]
    assert re.search(expected, neighbor[0]), neighbor[0]
    assert neighbor[1] < 25.0, "the deadline is 30 seconds"


def _fit_with_nan() -> tuple[str, bool]:
    seed_everything(1)
    model = users.Regression()
    with torch.no_grad():
        model.net.bias[1] = float("nan")
    try:
        make_trainer("decentralized_gossip", 2, max_epochs=1).fit(model)
    except ValueError as error:
        return str(error), dist.is_initialized()
    return "no error", True


def test_weights_that_are_not_finite_are_refused_with_their_name_before_any_process_group() -> None:
    for message, process_group in run_workers(2, _fit_with_nan):
        assert message.startswith("parameter 'net.bias' holds 1 values that are NaN or infinite")
        assert not process_group


class _Anything:
    pass


def _broadcast() -> dict[str, Any]:
    seed_everything(1)
    trainer = make_trainer("decentralized_gossip", 2, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(users.Regression())
    strategy, rank = trainer.strategy, trainer.global_rank
    mine = rank == 0
    found = {
        "none": strategy.broadcast(None if mine else 1),
        "text": strategy.broadcast("from zero" if mine else "from one"),
        "tensor": strategy.broadcast(torch.arange(3.0) if mine else torch.zeros(7)),
        "dict": strategy.broadcast({"a": [1, (2.5, True)], "b": torch.ones(2)} if mine else None),
        "from one": strategy.broadcast(f"of {rank}", src=1),
    }
    path = strategy.broadcast(Path("/somewhere/zero") if mine else Path("/elsewhere"))
    found["path"] = [type(path).__name__, str(path)]
    try:
        strategy.broadcast(_Anything() if mine else None)
    except TypeError as error:
        found["object"] = str(error)
    found["after"] = strategy.broadcast("still talking" if mine else "")
    return found


def test_broadcast_sends_plain_values_and_refuses_what_would_have_to_be_unpickled_on_every_worker() -> None:
    workers = run_workers(2, _broadcast)
    for worker in workers:
        assert worker["none"] is None
        assert worker["text"] == "from zero"
        assert torch.equal(worker["tensor"], torch.arange(3.0))
        assert worker["dict"]["a"] == [1, (2.5, True)]
        assert torch.equal(worker["dict"]["b"], torch.ones(2))
        assert worker["from one"] == "of 1"
        assert worker["path"] == ["PosixPath", "/somewhere/zero"]
        assert worker["after"] == "still talking"
    assert "found _Anything" in workers[0]["object"]
    assert "found something else on worker 0" in workers[1]["object"]
