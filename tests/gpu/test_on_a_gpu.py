"""What only a GPU can show: mixed precision with its loss scaling, compiled kernels, gossip of tensors that live there.

Workers share one GPU, a process each. Skipped without one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan import DecentralizedGossipStrategy, PowerGossip
from lightning_decgan.gan import DecentralizedGANModule
from lightning_decgan.gan.losses import LOSSES
from lightning_decgan.optim import OptimisticAdam
from tests.accelerators import needs_gpu
from tests.distributed.workers import run_workers
from tests.unit.test_joint_pass import INDEPENDENT, joint_gradients, make_game, plain_gradients
from tests.unit.test_networks import CHANNELS, DISCRIMINATORS, GENERATORS

pytestmark = needs_gpu

FAMILIES = {"dcgan": "dcgan_spectral", "resnet": "resnet_layer", "sagan": "sagan"}
WORKERS, STEPS = 4, 12


def make_gan(family: str, **settings: Any) -> DecentralizedGANModule:
    """Small networks of a family that know three classes."""
    torch.manual_seed(0)
    generator, discriminator = GENERATORS[family](3), DISCRIMINATORS[FAMILIES[family]](3)
    return DecentralizedGANModule(generator, discriminator, loss="hinge", **settings)


def batches(gan: DecentralizedGANModule, count: int) -> DataLoader:
    """As many batches of four images with classes."""
    size: int = gan.discriminator.image_size  # type: ignore[assignment]
    images = torch.rand(4 * count, CHANNELS, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return DataLoader(TensorDataset(images, torch.arange(4 * count) % 3), batch_size=4)


def train(gan: DecentralizedGANModule, steps: int, **arguments: Any) -> Trainer:
    """On this GPU, for so many batches."""
    trainer = Trainer(accelerator="gpu", **{"devices": 1, "max_epochs": 1, "barebones": True} | arguments)
    trainer.fit(gan, batches(gan, steps * trainer.world_size))
    return trainer


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_network_trains_in_every_precision(family: str, precision: str) -> None:
    gan = make_gan(family, terminate_on_nan=False)
    before = copy.deepcopy(gan).state_dict()
    train(gan, 5, precision=precision)
    for name, value in gan.state_dict().items():
        assert value.isfinite().all(), name
    for player in ("generator", "discriminator"):
        moved = [n for n, _ in gan.named_parameters() if n.startswith(player) and not n.endswith("original1")]
        assert any(not torch.equal(before[name], gan.state_dict()[name].cpu()) for name in moved), player


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_players_learn_what_plain_ones_do(family: str, precision: str) -> None:
    # Not Adam, whose first steps are as long where the gradient is nothing but rounding.
    steps = {"optimizer": "SGD", "generator_lr": 0.05, "discriminator_lr": 0.05}
    exact, plain, compiled = (make_gan(family, **steps) for _ in range(3))
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    torch._dynamo.reset()
    compiled.generator.compile()
    compiled.discriminator.compile()
    for gan, its in ((exact, "32"), (plain, precision), (compiled, precision)):
        seed_everything(1, verbose=False)
        train(gan, 1, precision=its)
    assert plain.joint
    assert compiled.joint
    # Rounding to bfloat16 changes a step of a residual network by a third: compiled code may do so as well, not more.
    allowed = 1e-3 * _distance(exact.parameters(), before) + 2 * _distance(plain.parameters(), exact.parameters())
    assert _distance(compiled.parameters(), exact.parameters()) < allowed


def _distance(these: Iterable[Tensor], those: Iterable[Tensor]) -> float:
    gaps = [(one.detach().cpu() - other.detach().cpu()).flatten() for one, other in zip(these, those, strict=True)]
    return float(torch.cat(gaps).norm())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", INDEPENDENT)
def test_one_backward_serves_both_players(name: str, loss: str) -> None:
    game, real, latent = make_game(name, 3, loss=loss)
    game, real, latent = game.cuda(), real.cuda(), latent.cuda()
    expected = plain_gradients(game, real, latent)
    for where, gradient in joint_gradients(game, real, latent).items():
        scale = expected[where].abs().max().item()
        torch.testing.assert_close(gradient, expected[where], rtol=1e-8, atol=1e-10 * scale + 1e-15, msg=where)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_in_one_kernel_steps_as_in_many_and_waits_for_nothing(amsgrad: bool) -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 300, device="cuda", dtype=torch.float64)) for _ in range(2)]
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.5, 0.9), "amsgrad": amsgrad}
    fused, unfused = (OptimisticAdam([w], **settings, fused=f) for w, f in zip(weights, (True, False), strict=True))
    for step in range(20):
        for weight in weights:
            weight.grad = torch.cos(3 * weight.detach() + step)
        unfused.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            fused.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-12)
    unfused.load_state_dict(fused.state_dict())
    assert unfused.state[weights[1]]["step"].item() == 20


FORMS: dict[str, dict[str, Any]] = {
    "in time": {},
    "exact order": {"overlap": False, "topology": "ring"},
    "late": {"max_delay": None},
    "bfloat16": {"compression": "bfloat16"},
    "int8": {"compression": "int8"},
    "PowerGossip": {"compression": PowerGossip(1)},
    "buffers too": {"buffers": "average", "topology": "complete"},
}


def _train_shared(folder: str) -> dict[str, tuple[list[Tensor], list[Tensor], float]]:
    """For every form: both players before and after (the consensus), and how far the workers were from it."""
    found = {}
    for form, settings in FORMS.items():
        gan = make_gan("dcgan")
        strategy = DecentralizedGossipStrategy(**settings, workers_per_device=WORKERS)
        before = [parameter.detach().clone() for parameter in gan.parameters()]
        quiet = {"barebones": False, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = train(gan, STEPS, strategy=strategy, precision="bf16-mixed", enable_checkpointing=False, **quiet)
        assert strategy.totals.rounds >= (1 if form == "late" else STEPS - 1)
        assert not strategy.events
        assert strategy.root_device.type == "cuda"
        trainer.save_checkpoint(Path(folder) / f"{form}.ckpt")
        after = [parameter.detach().cpu().clone() for parameter in gan.parameters()]
        found[form] = before, after, float(strategy.relative_consensus_distance)
    return found


@pytest.mark.processes
def test_workers_that_share_a_gpu_gossip_in_every_form(tmp_path: Path) -> None:
    everybody = run_workers(WORKERS, _train_shared, str(tmp_path), timeout=240.0)
    for form in FORMS:
        before, after, distance = everybody[0][form]
        assert 0 < distance < 0.1, form
        for worker in everybody:
            for mine, its in zip(worker[form][1], after, strict=True):
                assert torch.equal(mine, its), f"{form}: after fit all workers hold the consensus"
        assert max(float((new - old).abs().max()) for new, old in zip(after, before, strict=True)) > 1e-4, form
        saved = torch.load(tmp_path / f"{form}.ckpt", weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in saved.values()), form
