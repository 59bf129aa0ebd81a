"""Layers that torch refuses to pickle reach spawned workers all the same, and workers outlive one that dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from lightning_decgan.gan.networks import DCGANDiscriminator
from lightning_decgan.strategy import children
from lightning_decgan.strategy.children import ChildObserver
from lightning_decgan.strategy.exit_code import WORKER_LOST
from lightning_decgan.strategy.launcher import ScriptLauncher, SpawnLauncher, let_parametrized_layers_travel


def _through_a_process_boundary(module: nn.Module) -> nn.Module:
    let_parametrized_layers_travel(module)
    return ForkingPickler.loads(ForkingPickler.dumps(module))


class Twice(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def _own(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, "weight", Twice())
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(spectral_norm(nn.Linear(4, 3)), nn.ReLU(), _own(nn.Linear(3, 2))),
        lambda: nn.Sequential(nn.Flatten(), spectral_norm(_own(nn.Linear(4, 3)))),
    ],
    ids=["two layers", "two on one layer"],
)
def test_a_parametrized_module_computes_and_learns_as_before(make) -> None:
    module = make()
    there = _through_a_process_boundary(module)
    x = torch.randn(5, 4)
    assert torch.equal(module.eval()(x), there.eval()(x))
    assert [name for name, _ in there.named_parameters()] == [name for name, _ in module.named_parameters()]
    there.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in there.parameters())
    there.load_state_dict(module.state_dict())


def test_the_spectrally_normalized_dcgan_travels() -> None:
    discriminator = DCGANDiscriminator(spectral_norm=True).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(_through_a_process_boundary(discriminator)(images), discriminator(images))


# ---- workers that are scripts ----


def _shell(command: str) -> subprocess.Popen:
    return subprocess.Popen(["/bin/sh", "-c", command])


def _observe_in_training(*commands: str) -> tuple[ChildObserver, list[subprocess.Popen]]:
    processes: list[subprocess.Popen] = []
    observer = ChildObserver(processes)
    observer.survivors_go_on = True  # before there is anybody who could die, or this process would be ended too
    processes += [_shell(command) for command in commands]
    return observer, processes


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Instead of changing the exit code of the tests' own process."""
    calls: list[bool] = []
    monkeypatch.setattr(children, "tell_loss", lambda: calls.append(True))
    return calls


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals to the tests' own process, which do not arrive."""
    calls: list[tuple[int, int]] = []
    kill = os.kill

    def kill_others(process: int, number: int) -> None:
        if process == os.getpid():
            calls.append((process, number))
        else:
            kill(process, number)

    monkeypatch.setattr(os, "kill", kill_others)
    return calls


def test_the_others_go_on_when_a_child_dies_in_training(told, caplog) -> None:
    observer, processes = _observe_in_training("exit 0", "kill -KILL $$", "exec sleep 60", "exit 3")
    try:
        for place in (0, 1, 3):
            processes[place].wait()
        assert observer.look()
        assert observer.lost == {2: -signal.SIGKILL, 4: 3}
        assert observer.look()
        assert processes[2].poll() is None
        messages = [record.getMessage() for record in caplog.records]
        assert messages == [
            "The worker with local rank 2 was ended by SIGKILL. The others go on without it.",
            "The worker with local rank 4 ended with exit code 3. The others go on without it.",
        ]
        assert len(told) == 2
        observer.survivors_go_on = False  # those who died in training end nobody afterwards
        assert observer.look()
    finally:
        processes[2].kill()
        processes[2].wait()


def test_a_child_that_fails_outside_training_ends_everybody(told, sent, caplog, monkeypatch) -> None:
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.1)
    processes = [_shell("exec sleep 60"), _shell("exit 3")]
    observer = ChildObserver(processes)
    processes[1].wait()
    assert not observer.look()
    assert processes[0].poll() is None  # it may still say why, and so may this process
    assert not observer.look()
    assert processes[0].wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while not sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sent == [(os.getpid(), signal.SIGKILL)]
    assert len(caplog.records) == 1
    assert "local rank 2 ended with exit code 3" in caplog.text
    assert observer.lost == {}
    assert not told


def test_a_death_in_training_counts_as_one_however_late_it_is_noticed(told, sent) -> None:
    observer, (process,) = _observe_in_training("exit 3")
    process.wait()
    observer.survivors_go_on = False
    assert observer.lost == {1: 3}
    assert not sent


def test_a_survivor_that_tells_of_a_loss_is_not_another_loss(told, sent) -> None:
    processes = [_shell(f"exit {WORKER_LOST}"), _shell("exit 0")]
    for process in processes:
        process.wait()
    observer = ChildObserver(processes)
    assert not observer.look()
    assert observer.lost == {}
    assert not sent
    assert not told


def test_the_observer_looks_by_itself_until_all_have_ended(told) -> None:
    observer, _ = _observe_in_training("exit 0", "sleep 0.2; exit 4")
    observer.start()
    observer.join(30)
    assert not observer.is_alive()
    assert observer.lost == {2: 4}


SCRIPT = """
import os, signal, sys, time
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning_decgan.strategy.launcher import ScriptLauncher

launcher = ScriptLauncher(LightningEnvironment(), num_processes=int(sys.argv[2]), num_nodes=1)


def function(when):
    place = int(os.environ["LOCAL_RANK"])
    launcher.survivors_go_on = when == "training"
    if place == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if place == 2:
        sys.exit({code})
    deadline = time.monotonic() + 60
    while len(launcher.lost_children) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.survivors_go_on = False
    for process in launcher.procs:
        process.wait()
    time.sleep(1)  # two looks of the observer
    print("finished without", launcher.lost_children)


launcher.launch(function, sys.argv[1])
"""


def _run_script(folder: Path, when: str, processes: int) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT.format(code=WORKER_LOST))
    variables = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MASTER_PORT")}
    return subprocess.run(
        [sys.executable, folder / "script.py", when, str(processes)],
        env=variables | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.processes
def test_a_script_outlives_a_worker_and_its_exit_code_tells(tmp_path: Path) -> None:
    ended = _run_script(tmp_path, "training", 3)
    assert ended.stdout.splitlines()[-1] == "finished without {1: -9}", ended.stderr
    assert "local rank 1 was ended by SIGKILL" in ended.stderr
    assert ended.returncode == WORKER_LOST


@pytest.mark.processes
def test_a_script_ends_with_a_worker_that_dies_before_training(tmp_path: Path) -> None:
    ended = _run_script(tmp_path, "start", 2)
    assert ended.returncode == -signal.SIGKILL
    assert "local rank 1 was ended by SIGKILL, and the others cannot go on without it" in ended.stderr
    assert "finished" not in ended.stdout


# ---- workers that are spawned ----


class Strategy:
    """What a launcher asks of a strategy."""

    def __init__(self, workers: int) -> None:
        self.num_processes, self.node_rank = workers, 1
        self.lost_workers: list[int] = []
        self.cluster_environment = LightningEnvironment()
        self.accelerator = CPUAccelerator()


def _launch(function: Callable, workers: int, *args: Any, start_method: str = "fork") -> tuple[Any, SpawnLauncher]:
    strategy = Strategy(workers)
    launcher = SpawnLauncher(strategy, start_method=start_method)
    return launcher.launch(function, strategy, launcher, *args), launcher


def _place() -> int:
    return int(os.environ["LOCAL_RANK"])


def _everybody_returns(strategy: Strategy, launcher: SpawnLauncher) -> torch.Tensor:
    return torch.full((100_000,), float(_place()))  # more than a pipe holds


@pytest.mark.processes
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_results_come_from_worker_0(start_method: str, told) -> None:
    result, launcher = _launch(_everybody_returns, 2, start_method=start_method)
    assert torch.equal(result, torch.zeros(100_000))
    assert launcher.lost_children == {}
    assert not told
    ForkingPickler.dumps(launcher)  # as a second launch, of a test after a fit, will


def _two_die(strategy: Strategy, launcher: SpawnLauncher, barrier: Any) -> int:
    launcher.survivors_go_on = True
    barrier.wait(60)
    if _place() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if _place() == 1:
        raise KeyError("what worker 1 said")
    launcher.survivors_go_on = False
    return _place()


@pytest.mark.processes
def test_results_come_from_the_lowest_survivor(told, caplog, tmp_path: Path, monkeypatch) -> None:
    file = logging.FileHandler(tmp_path / "log")
    monkeypatch.setattr(logging.getLogger(SpawnLauncher.__module__), "handlers", [file])
    result, launcher = _launch(_two_die, 4, mp.get_context("fork").Barrier(4))
    assert result == 2
    assert launcher.lost_children == {0: -signal.SIGKILL, 1: 1}
    assert "local rank 0 was ended by SIGKILL" in caplog.text
    assert len(told) == 2
    file.close()
    assert "KeyError: 'what worker 1 said'" in (tmp_path / "log").read_text()


def _dies_where_it_should_deliver(strategy: Strategy, launcher: SpawnLauncher) -> Any:
    launcher.survivors_go_on = True
    return _DeadlyToPickle() if _place() == 0 else _place()


class _DeadlyToPickle:
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_the_next_one_delivers_when_one_dies_delivering(told) -> None:
    result, launcher = _launch(_dies_where_it_should_deliver, 3)
    assert result == 1
    assert launcher.lost_children == {0: -signal.SIGKILL}


def _fits_without_worker_0(trainer: Trainer) -> int:
    launcher = trainer.strategy.launcher
    launcher.survivors_go_on = True
    if _place() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    trainer.state.status = TrainerStatus.FINISHED
    trainer.lightning_module.layer.weight.data.fill_(_place())
    trainer.checkpoint_callback.best_model_path = f"{_place()}.ckpt"
    return _place()


@pytest.mark.processes
def test_a_trainer_gets_the_model_of_the_lowest_survivor(told, tmp_path: Path) -> None:
    strategy = DDPStrategy(start_method="fork")
    trainer = Trainer(strategy=strategy, accelerator="cpu", devices=3, logger=False, default_root_dir=tmp_path)
    strategy._launcher = SpawnLauncher(strategy, start_method="fork")
    strategy._lightning_module = BoringModel()
    trainer.state.fn = TrainerFn.FITTING
    assert strategy.launcher.launch(_fits_without_worker_0, trainer, trainer=trainer) == 1
    assert bool((trainer.lightning_module.layer.weight == 1).all())
    assert trainer.checkpoint_callback.best_model_path == "1.ckpt"
    assert trainer.state.status == TrainerStatus.FINISHED
    with pytest.raises(NotImplementedError, match=r"trainer\.fit\(\) must be called once"):
        strategy.launcher.launch(_fits_without_worker_0, trainer, trainer=trainer)


def _one_raises_before_training(strategy: Strategy, launcher: SpawnLauncher) -> None:
    if _place() == 1:
        raise KeyError("what worker 1 said")
    signal.pause()


@pytest.mark.processes
def test_an_error_before_training_ends_all_and_is_raised(told) -> None:
    with pytest.raises(mp.ProcessRaisedException, match="what worker 1 said") as raised:
        _launch(_one_raises_before_training, 3)
    assert raised.value.error_index == 1
    assert not told


def _one_dies_after_training(strategy: Strategy, launcher: SpawnLauncher) -> None:
    launcher.survivors_go_on = True
    launcher.survivors_go_on = False
    if _place() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_a_death_after_training_is_an_error_too(told) -> None:
    with pytest.raises(mp.ProcessExitedException, match="process 1 terminated with signal SIGKILL"):
        _launch(_one_dies_after_training, 3)


def _all_raise(strategy: Strategy, launcher: SpawnLauncher, barrier: Any) -> None:
    launcher.survivors_go_on = True
    barrier.wait(60)
    while _place() != 1 and os.path.exists(os.environ["FIRST_IS_RUNNING"]):
        time.sleep(0.01)
    raise KeyError(f"what worker {_place()} said")


@pytest.mark.processes
def test_the_first_error_is_raised_when_nobody_is_left(told, tmp_path: Path, monkeypatch) -> None:
    running = tmp_path / "running"
    running.touch()
    monkeypatch.setenv("FIRST_IS_RUNNING", str(running))
    monkeypatch.setattr(children, "_tell", lambda *_: running.unlink(missing_ok=True))
    with pytest.raises(mp.ProcessRaisedException, match="what worker 1 said"):
        _launch(_all_raise, 3, mp.get_context("fork").Barrier(3))


def _one_freezes(strategy: Strategy, launcher: SpawnLauncher) -> int:
    launcher.survivors_go_on = True
    if _place() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    strategy.lost_workers = [3]  # of the second machine of three workers each, the first
    launcher.survivors_go_on = False
    return _place()


@pytest.mark.processes
def test_nobody_waits_for_a_worker_that_was_lost_and_never_ends(told, monkeypatch) -> None:
    monkeypatch.setattr(children, "PATIENCE_SECONDS", 0.2)
    result, launcher = _launch(_one_freezes, 3)
    assert result == 1
    assert launcher.lost_children == {0: -signal.SIGKILL}


def _one_is_cut_off(strategy: Strategy, launcher: SpawnLauncher, event: Any) -> int:
    if _place() == 0:
        strategy.lost_workers = [4, 5, 6, 7]
    else:
        event.wait(60)
    return _place()


@pytest.mark.processes
def test_a_worker_that_lost_all_others_does_not_decide_about_them(told, monkeypatch) -> None:
    monkeypatch.setattr(children, "PATIENCE_SECONDS", 0.1)
    event = mp.get_context("fork").Event()
    timer = threading.Timer(1.0, event.set)
    timer.start()
    result, launcher = _launch(_one_is_cut_off, 4, event)
    assert result == 0
    assert launcher.lost_children == {}


def _all_leave(strategy: Strategy, launcher: SpawnLauncher) -> None:
    sys.exit()


@pytest.mark.processes
def test_nobody_waits_for_results_that_nobody_has(told) -> None:
    with pytest.raises(RuntimeError, match="deliver their results"):
        _launch(_all_leave, 2)


def test_survivors_go_on_only_where_there_are_workers_to_end() -> None:
    spawn = SpawnLauncher(Strategy(2))
    script = ScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    for launcher in (spawn, script):
        launcher.survivors_go_on = True  # in a process that started nobody
        assert not launcher.survivors_go_on
        assert launcher.lost_children == {}
