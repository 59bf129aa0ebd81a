"""Faults happen to the worker and at the batch that were named, and to nothing else."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

import lightning_decgan
from lightning_decgan.callbacks import (
    BadParameters,
    BadPayload,
    Delay,
    FaultInjector,
    Freeze,
    Kill,
    StopAfterBatches,
    training_batches,
)
from lightning_decgan.gossip import FlatVector


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.other = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), lr=0.01)


class Diary(Callback):
    """What each batch began with; on disk too, for a process that will not be there to tell."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.tampers: list[Any] = []
        self.finite: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.tampers.append(getattr(trainer.strategy, "tamper", None))
        self.finite.append(all(bool(p.isfinite().all()) for p in pl_module.parameters()))
        self._write()

    def on_train_batch_end(self, *_: Any) -> None:
        self._write(".")

    def _write(self, text: str = "x") -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(text)


def _trainer(*callbacks: Callback, steps: int = 6, **settings: Any) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False} | settings
    return Trainer(
        max_epochs=-1,
        callbacks=[*callbacks, StopAfterBatches(steps)],
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def _data() -> DataLoader:
    return DataLoader(torch.ones(4, 2), batch_size=1)  # epochs of four batches


def _fit(injector: FaultInjector, *others: Callback, steps: int = 6, **attributes: Any) -> Trainer:
    trainer = _trainer(injector, *others, steps=steps)
    for name, value in attributes.items():
        setattr(trainer.strategy, name, value)
    trainer.fit(Line(), _data())
    return trainer


def _fit_elsewhere(injector: FaultInjector, diary: Diary) -> mp.Process:
    process = mp.get_context("fork").Process(target=_fit_alone, args=(injector, diary), daemon=True)
    process.start()
    return process


def _fit_alone(injector: FaultInjector, diary: Diary) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    _fit(injector, diary)


def test_faults_of_other_workers_do_not_happen_here() -> None:
    others = (Kill(1, 1), Freeze(1, 1, 60.0), Delay(1, 1, 60.0, steps=9), BadParameters(1, 1), BadPayload(1, 1))
    trainer = _trainer(FaultInjector(*others), diary := Diary())
    injector = trainer.callbacks[0]
    # a Trainer of one has no worker 1: without its own check, everything is asked but nothing happens
    injector.on_fit_start = lambda *_: None
    trainer.fit(Line(), _data())
    assert training_batches(trainer) == 6
    assert all(diary.finite)
    assert not hasattr(trainer.strategy, "tamper")


def test_a_worker_has_the_number_that_it_began_with() -> None:
    # rank 0 of those who are left, but worker 2 of those who began
    strategy = SimpleNamespace(worker=2)
    trainer: Any = SimpleNamespace(
        strategy=strategy,
        global_rank=0,
        fit_loop=_trainer().fit_loop,
    )
    module = Line()
    FaultInjector(BadParameters(0, 1)).on_train_batch_start(trainer, module, None, 0)
    assert module.layer.weight.isfinite().all()
    FaultInjector(BadParameters(2, 1)).on_train_batch_start(trainer, module, None, 0)
    assert not module.layer.weight.isfinite().all()


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_killed_worker_does_not_finish_its_batch(tmp_path: Path, step: int) -> None:
    process = _fit_elsewhere(FaultInjector(Kill(0, step)), Diary(tmp_path / "diary"))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    diary = (tmp_path / "diary").read_text() if step > 1 else ""
    assert diary == "x." * (step - 1)  # the diary's line comes after the injector


class SlowLine(Line):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 2:
            time.sleep(60)
        return super().training_step(batch, batch_idx)


def _fit_slowly(path: Path) -> None:
    torch.set_num_threads(1)
    _trainer(FaultInjector(Kill(0, 3, delay_seconds=0.2)), Diary(path)).fit(SlowLine(), _data())


def test_a_worker_is_killed_in_the_midst_of_a_step(tmp_path: Path) -> None:
    process = mp.get_context("fork").Process(target=_fit_slowly, args=(tmp_path / "diary",), daemon=True)
    process.start()
    process.join(50)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "diary").read_text() == "x.x.x"


def _state(process: mp.Process) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_frozen_worker_stands_still_and_then_goes_on(tmp_path: Path) -> None:
    process = _fit_elsewhere(FaultInjector(Freeze(0, 5, seconds=2.0)), Diary(tmp_path / "diary"))
    deadline = time.monotonic() + 60
    while (state := _state(process)) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state == "T"
    stopped = time.monotonic()
    assert (tmp_path / "diary").read_text() == "x." * 4
    process.join(60)
    assert process.exitcode == 0
    assert time.monotonic() - stopped > 0.5
    assert (tmp_path / "diary").read_text() == "x." * 6


def test_a_freeze_shorter_than_stopping_takes_does_not_last_for_ever(tmp_path: Path) -> None:
    faults = (Freeze(0, step, seconds=0.001) for step in range(1, 7))
    process = _fit_elsewhere(FaultInjector(*faults), Diary(tmp_path / "diary"))
    process.join(60)
    assert process.exitcode == 0


def test_a_delay_is_as_long_as_asked_and_lasts_for_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    diary = Diary()
    slept: list[tuple[int, float]] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append((len(diary.tampers) + 1, seconds)))
    _fit(FaultInjector(Delay(0, 3, seconds=0.3, steps=2)), diary)
    assert slept == [(3, 0.3), (4, 0.3)]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_bad_parameters_are_the_first_trainable_one_in_place(value: str) -> None:
    module = Line()
    module.layer.weight.requires_grad_(False)
    storage = module.layer.bias.data_ptr()
    FaultInjector(fault := BadParameters(0, 1, value))
    fault.strike(module)
    assert module.layer.bias.data_ptr() == storage
    expected = torch.tensor([float(value)])
    torch.testing.assert_close(module.layer.bias.detach(), expected, equal_nan=True)
    assert module.layer.weight.isfinite().all()
    assert module.other.weight.isfinite().all()


def test_bad_parameters_come_at_their_batch() -> None:
    diary = Diary()
    _fit(FaultInjector(BadParameters(0, 5)), diary)
    assert diary.finite == [True] * 4 + [False] * 2


def test_bad_parameters_need_a_parameter() -> None:
    with pytest.raises(RuntimeError, match="trainable parameter, found none in Line"):
        BadParameters(0, 1).strike(Line().requires_grad_(False))


def test_a_payload_is_bad_for_its_steps_and_no_longer() -> None:
    diary = Diary()
    trainer = _fit(FaultInjector(BadPayload(0, 2, "nan"), bad := BadPayload(0, 4, "inf", steps=2)), diary, tamper=None)
    assert [tamper is not None for tamper in diary.tampers] == [False, True, False, True, True, False]
    assert diary.tampers[3].__self__ is bad
    assert trainer.strategy.tamper is None


def test_a_payload_is_honest_again_after_training() -> None:
    trainer = _fit(FaultInjector(BadPayload(0, 5, steps=10)), diary := Diary(), tamper=None)
    assert diary.tampers[-1] is not None
    assert trainer.strategy.tamper is None


def test_what_somebody_else_tampers_with_is_left_alone() -> None:
    trainer = _fit(FaultInjector(Delay(0, 1, 0.001)), diary := Diary(), tamper="theirs")
    assert set(diary.tampers) == {"theirs"}
    assert trainer.strategy.tamper == "theirs"


@pytest.mark.parametrize("kind", ["nan", "inf", "outlier"])
def test_a_bad_payload_spoils_every_kind_of_snapshot(kind: str) -> None:
    parameters = [
        ("half", torch.ones(5, dtype=torch.float16)),
        ("single", torch.ones(7)),
        ("empty", torch.ones(0, dtype=torch.float64)),
    ]
    vector = FlatVector(parameters)
    snapshot = vector.write(vector.new_buffer())
    BadPayload(0, 1, kind).tamper(snapshot)
    half, single, _ = snapshot.views
    if kind == "outlier":
        assert half.tolist() == [1001.0] * 5
        assert single.tolist() == [1001.0] * 7
    else:
        assert half.isfinite().all()
        assert (~single.isfinite()).sum() == 1
        assert single.isnan().any() == (kind == "nan")
    assert all(bool((tensor == 1).all()) for _, tensor in parameters)
    BadPayload(0, 1, kind).tamper(FlatVector([]).new_buffer())


def test_batches_are_counted_over_resumed_runs(tmp_path: Path) -> None:
    first = _fit(FaultInjector(), steps=5)
    first.save_checkpoint(tmp_path / "checkpoint.ckpt")
    diary = Diary()
    trainer = _trainer(FaultInjector(Kill(0, 3), BadPayload(0, 7)), diary, steps=9)
    trainer.strategy.tamper = None
    trainer.fit(Line(), _data(), ckpt_path=tmp_path / "checkpoint.ckpt")
    assert [tamper is not None for tamper in diary.tampers] == [False, True, False, False]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Kill(-1, 1), "worker must be an integer >= 0, found -1"),
        (lambda: Kill(0, 0), "step must be an integer >= 1, found 0"),
        (lambda: Kill(0, 1, -0.1), "delay_seconds must be a number of seconds > 0, found -0.1"),
        (lambda: Freeze(0, 1, 0), "seconds must be a number of seconds > 0, found 0"),
        (lambda: Freeze(0, 1, float("inf")), "seconds must be .* found inf"),
        (lambda: Delay(0, 1, float("nan")), "seconds must be .* found nan"),
        (lambda: Delay(0, 1, True), "seconds must be .* found True"),
        (lambda: Delay(0, 1, 0.1, steps=0), "steps must be an integer >= 1, found 0"),
        (lambda: BadPayload(0, 1, steps=0), "steps must be an integer >= 1, found 0"),
        (lambda: BadPayload(0, 1, "garbage"), "kind must be one of 'nan', 'inf', 'outlier', found 'garbage'"),
        (lambda: BadParameters(0, 1, "1"), "value must be one of 'nan', 'inf', found '1'"),
    ],
)
def test_a_fault_says_what_is_wrong(make: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        make()


def test_only_faults_can_be_injected() -> None:
    with pytest.raises(TypeError, match=r"step must be an integer >= 1, found 1\.5"):
        Kill(0, 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"faults must be Kill, .* found 'kill'"):
        FaultInjector(Kill(0, 1), "kill")


def test_a_worker_that_does_not_exist_is_an_error_before_training() -> None:
    with pytest.raises(ValueError, match=r"worker must be in 0\.\.0 for this Trainer, found Kill\(worker=1, step=1"):
        _fit(FaultInjector(Kill(1, 1)))


def test_a_bad_payload_needs_a_strategy_that_sends_one() -> None:
    with pytest.raises(ValueError, match=r"BadPayload needs a strategy that gossips.*SingleDeviceStrategy"):
        _fit(FaultInjector(BadPayload(0, 1)))


def test_faults_cannot_be_changed_and_travel_to_workers() -> None:
    faults = (Kill(0, 1, 0.5), Freeze(1, 2, 3.0), Delay(2, 3, 0.1, 4), BadParameters(3, 4, "inf"), BadPayload(4, 5))
    assert pickle.loads(pickle.dumps(FaultInjector(*faults))).faults == faults
    for fault in faults:
        with pytest.raises(dataclasses.FrozenInstanceError):
            fault.step = 7  # type: ignore[misc]


def test_the_injector_is_public() -> None:
    assert lightning_decgan.FaultInjector is FaultInjector
    assert "FaultInjector" in lightning_decgan.__all__
