"""Checkpoints of a decentralized run: bit for bit for the same workers, the consensus for everybody else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from lightning_decgan import OuterNesterov, PowerGossip, RandomSubset
from lightning_decgan.strategy import DecentralizedGossipStrategy
from lightning_decgan.strategy.checkpoint import MANIFEST_KEY, CheckpointError
from tests.distributed.models import UsersGAN, make_trainer
from tests.distributed.workers import run_workers

pytestmark = pytest.mark.processes


def _train(
    folder: str, batches: int, ckpt: str | None, settings: dict[str, Any], devices: int = 4, **arguments: Any
) -> dict[str, Any]:
    """Train to a number of batches in all, with a checkpoint at batch 50; returns each worker's own state."""
    seed_everything(1)
    model = UsersGAN()
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=100, save_top_k=-1, filename="{step}")
    strategy: Any = "auto" if devices == 1 else DecentralizedGossipStrategy(**({"evaluate": "local"} | settings))
    trainer = make_trainer(
        strategy, devices, max_steps=2 * batches, max_epochs=-1, callbacks=[saver], enable_checkpointing=True,
        **arguments,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt)
    return {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizers": [
            [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
            for optimizer in trainer.optimizers
        ],
        "batches": trainer.fit_loop.epoch_loop.total_batch_idx + 1,
        "epoch": trainer.current_epoch,
        "random": torch.rand(3),
    }


def _assert_same(first: Any, second: Any) -> None:
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _assert_same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            _assert_same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize(
    ("settings", "per_epoch"),
    [
        ({"topology": "ring", "overlap": True}, 8),  # batch 50 is in the middle of an epoch of 8
        ({"topology": "random_ring", "rounds": 2, "overlap": False, "evaluate": "consensus"}, 8),
        ({"topology": "random_matching", "overlap": True, "gossip_every": 3, "buffers": "average"}, 5),  # 50 ends one
        ({"compression": "int8"}, 8),
        ({"compression": PowerGossip(rank=1)}, 8),
        ({"compression": RandomSubset(fraction=0.2), "topology": "random_matching"}, 8),
        ({"gossip_every": 4, "outer": OuterNesterov(0.7, 0.5)}, 8),
        ({"topology": "ring", "rounds": 3, "merge_rounds": True}, 8),
    ],
    ids=[
        "overlapped",
        "exact, two rounds",
        "local steps, end of an epoch",
        "int8",
        "PowerGossip",
        "random subsets of random neighbours",
        "outer step",
        "merged rounds",
    ],
)
def test_stopping_at_50_and_resuming_equals_100_straight_bit_for_bit(
    tmp_path: Path, settings: dict[str, Any], per_epoch: int
) -> None:
    limits = {"limit_train_batches": per_epoch}
    straight = run_workers(4, _train_named, str(tmp_path / "a"), 100, None, settings, limits)
    run_workers(4, _train_named, str(tmp_path / "b"), 50, None, settings, limits)
    checkpoint = str(tmp_path / "b" / "step=100.ckpt")
    assert sorted(os.listdir(f"{checkpoint}.workers"))[0].startswith("worker-0.")
    resumed = run_workers(4, _train_named, str(tmp_path / "c"), 100, checkpoint, settings, limits)
    for mine, its in zip(straight, resumed, strict=True):
        assert mine["batches"] == its["batches"] == 100
        _assert_same(mine, its)


def _numbers_trained_on(batches: int, folder: str, ckpt: str | None, loader: dict[str, Any]) -> list[Any]:
    """What a worker trains on, batch by batch: indices, random numbers of the data, random numbers of the step."""
    seed_everything(1)
    model = Remembers(loader)
    sampler = loader.get("sampler") != "own order"
    trainer = make_trainer(
        "decentralized_gossip", 2, max_steps=batches, max_epochs=-1, use_distributed_sampler=sampler,
        enable_checkpointing=True, limit_val_batches=0,
        callbacks=[ModelCheckpoint(dirpath=folder, every_n_train_steps=13, save_top_k=-1, filename="{step}")],
    )  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt)
    return model.seen


class Numbers(Dataset):
    """Augmented data: an index and a random number."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.rand(())


class Remembers(LightningModule):
    """Writes down what it is trained on."""

    def __init__(self, loader: dict[str, Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.loader, self.seen = loader, []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        indices, noise = batch
        self.seen.append((indices.tolist(), noise.tolist(), float(torch.rand(()))))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        arguments = dict(self.loader)
        if arguments.get("sampler") == "subset":
            arguments["sampler"] = SubsetRandomSampler(range(64))
        elif arguments.pop("sampler", None) == "own order":
            arguments["shuffle"] = True
        return DataLoader(Numbers(), batch_size=4, **arguments)


@pytest.mark.parametrize(
    "loader",
    [{"shuffle": True}, {"shuffle": True, "num_workers": 1}, {"sampler": "subset"}, {"sampler": "own order"}],
    ids=["shuffled", "loader process", "a random sampler", "not distributed"],
)
def test_a_run_resumed_in_the_middle_of_a_later_epoch_sees_the_same_data(
    tmp_path: Path, loader: dict[str, Any]
) -> None:
    """8 or 16 batches an epoch, 13 before the stop."""
    straight = run_workers(2, _numbers_trained_on, 29, str(tmp_path / "a"), None, loader)
    run_workers(2, _numbers_trained_on, 13, str(tmp_path / "b"), None, loader)
    checkpoint = str(tmp_path / "b" / "step=13.ckpt")
    resumed = run_workers(2, _numbers_trained_on, 29, str(tmp_path / "c"), checkpoint, loader)
    for mine, its in zip(straight, resumed, strict=True):
        assert len(its) == 16
        assert mine[13:] == its


def _train_named(folder: str, batches: int, ckpt: str | None, settings: dict[str, Any], limits: dict) -> dict[str, Any]:
    return _train(folder, batches, ckpt, settings, **limits)


def _save(folder: str, devices: int) -> dict[str, Tensor]:
    return _train(folder, 50, None, {}, devices=devices)["model"]


def _start_from(checkpoint: str, folder: str, devices: int) -> dict[str, Any]:
    """Resume for zero further batches: what a resumed run starts from."""
    return _train(folder, 50, checkpoint, {}, devices=devices)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_another_number_of_workers_starts_from_the_consensus(tmp_path: Path, before: int, after: int) -> None:
    own = run_workers(before, _save, str(tmp_path / "a"), before)
    checkpoint = tmp_path / "a" / "step=100.ckpt"
    weight = "generator.0.weight"
    mean = torch.stack([worker[weight].double() for worker in own]).mean(dim=0)
    consensus = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.testing.assert_close(consensus[weight].double(), mean, rtol=0, atol=1e-7)
    assert not torch.equal(consensus[weight], own[0][weight])
    for worker in run_workers(after, _start_from, str(checkpoint), str(tmp_path / "b"), after):
        assert worker["batches"] == 50
        for name, value in consensus.items():
            assert torch.equal(worker["model"][name], value), name


def test_the_checkpoint_is_an_ordinary_one(tmp_path: Path) -> None:
    run_workers(4, _save, str(tmp_path / "a"), 4)
    checkpoint = tmp_path / "a" / "step=100.ckpt"
    consensus = torch.load(checkpoint, weights_only=True)["state_dict"]
    loaded = UsersGAN.load_from_checkpoint(checkpoint, weights_only=True)
    _assert_same(dict(loaded.state_dict()), dict(consensus))
    (resumed,) = run_workers(1, _train_alone, str(checkpoint), str(tmp_path / "alone"))
    assert resumed["batches"] == 60
    assert not torch.equal(resumed["model"]["generator.0.weight"], consensus["generator.0.weight"])
    for values in run_workers(4, _test_from, str(checkpoint)):
        with torch.no_grad():
            expected = float(loaded.eval()(torch.linspace(-1, 1, 32).view(8, 4)).mean())
        assert values["fake_mean"] == pytest.approx(expected, abs=1e-6)


def _train_alone(checkpoint: str, folder: str) -> dict[str, Any]:
    return _train(folder, 60, checkpoint, {}, devices=1)


def _test_from(checkpoint: str) -> dict[str, float]:
    model = UsersGAN()
    model.test_step = model.validation_step  # type: ignore[method-assign]
    trainer = make_trainer("decentralized_gossip", 4)
    (values,) = trainer.test(model, dataloaders=model.val_dataloader(), ckpt_path=checkpoint, verbose=False)
    return values


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "consensus altered"])
def test_a_damaged_checkpoint_is_refused_by_all_workers_with_the_reason(tmp_path: Path, damage: str) -> None:
    run_workers(4, _save, str(tmp_path / "a"), 4)
    checkpoint = tmp_path / "a" / "step=100.ckpt"
    shard = next(Path(f"{checkpoint}.workers").glob("worker-2.*.pt"))
    content = bytearray(shard.read_bytes())
    expected = {"missing": "is missing", "truncated": "bytes instead of", "altered": "has been altered: SHA-256"}
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[:-10])
    elif damage == "altered":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    else:
        stored = torch.load(checkpoint, weights_only=True)
        stored["state_dict"]["generator.0.weight"][0, 0] += 1.0
        torch.save(stored, checkpoint)
    for message in run_workers(4, _resume_error, str(checkpoint), str(tmp_path / "b")):
        if damage == "consensus altered":
            assert "has been altered: the SHA-256 of its weights" in message
        else:
            assert "worker 2: its shard" in message
            assert expected[damage] in message


class PullsItsOwnWay(Remembers):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.weight - self.global_rank - 1).square().sum()


def _average_weights(folder: str, batches: int, ckpt: str | None) -> list[Any]:
    seed_everything(1)
    model, averaging = PullsItsOwnWay({"shuffle": True}), EMAWeightAveraging(decay=0.5)
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    trainer = make_trainer("decentralized_gossip", 2, max_steps=batches, max_epochs=-1, limit_val_batches=0,
                           enable_checkpointing=True, callbacks=[averaging, saver])  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt)
    return [model.weight.detach().clone()]


def test_weights_that_a_callback_averages_are_resumed_as_each_workers_own(tmp_path: Path) -> None:
    straight = run_workers(2, _average_weights, str(tmp_path / "a"), 12, None)
    run_workers(2, _average_weights, str(tmp_path / "b"), 6, None)
    resumed = run_workers(2, _average_weights, str(tmp_path / "c"), 12, str(tmp_path / "b" / "step=6.ckpt"))
    _assert_same(straight, resumed)


class HoldsAPath(UsersGAN):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["where"] = Path("somewhere")


def _resume_with_a_path(folder: str) -> str:
    seed_everything(1)
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=16, filename="{step}")
    make_trainer("decentralized_gossip", 2, max_steps=16, max_epochs=-1, callbacks=[saver],
                 enable_checkpointing=True).fit(HoldsAPath())  # fmt: skip
    try:
        make_trainer("decentralized_gossip", 2, max_steps=32, max_epochs=-1).fit(
            HoldsAPath(), ckpt_path=f"{folder}/step=16.ckpt", weights_only=False
        )
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_nothing_in_a_checkpoint_is_unpickled_even_if_asked(tmp_path: Path) -> None:
    for message in run_workers(2, _resume_with_a_path, str(tmp_path)):
        assert "would have to be unpickled, which this strategy never does" in message


def _resume_error(checkpoint: str, folder: str) -> str:
    try:
        _train(folder, 60, checkpoint, {})
    except CheckpointError as error:
        return str(error)
    return "no error"


def _keep_last(folder: str) -> list[str]:
    seed_everything(1)
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=16, save_top_k=1, filename="{step}", save_last=True)
    trainer = make_trainer("decentralized_gossip", 2, max_steps=48, max_epochs=-1, callbacks=[saver],
                           enable_checkpointing=True)  # fmt: skip
    trainer.fit(UsersGAN())
    trainer.strategy.barrier()
    return sorted(os.listdir(folder))


def test_removed_checkpoints_take_their_shards_along_and_replaced_ones_leave_none(tmp_path: Path) -> None:
    for names in run_workers(2, _keep_last, str(tmp_path / "a")):
        assert names == ["last.ckpt", "last.ckpt.workers", "step=48.ckpt", "step=48.ckpt.workers"]
    for checkpoint in (tmp_path / "a").glob("*.ckpt"):
        listed = {entry["file"] for entry in torch.load(checkpoint, weights_only=True)[MANIFEST_KEY]["shards"]}
        assert set(os.listdir(f"{checkpoint}.workers")) == listed
