"""A checkpoint's files: whole or not at all, checked before use, and gone when the checkpoint is. One worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_decgan.strategy.checkpoint import (
    MANIFEST_KEY,
    CheckpointError,
    digest,
    read_shard,
    remove_shards,
    verify,
    write_shards,
)


def _save(path: Path, value: float) -> dict[str, Any]:
    """Save as the strategy does: the shard, the file that lists it, then what is no longer listed goes."""
    consensus = {"weight": torch.full((3,), value)}
    manifest = write_shards(path, 0, lambda: {"own": torch.full((5,), value), "step": 7}, consensus)
    torch.save({"state_dict": consensus, MANIFEST_KEY: manifest}, path)
    remove_shards(path, keep=manifest)
    return manifest


def _load(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True)
    manifest = verify(path, checkpoint)
    assert manifest is not None
    return read_shard(path, manifest, 0)


def _shards(path: Path) -> list[str]:
    return sorted(os.listdir(f"{path}.workers"))


def test_a_shard_comes_back_and_is_named_by_its_own_sum(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    manifest = _save(path, 1.0)
    (entry,) = manifest["shards"]
    assert _shards(path) == [entry["file"]] == [f"worker-0.{entry['sha256'][:16]}.pt"]
    assert (tmp_path / "x.ckpt.workers" / entry["file"]).stat().st_size == entry["bytes"]
    shard = _load(path)
    assert torch.equal(shard["own"], torch.ones(5))
    assert shard["step"] == 7


def test_saving_again_under_the_same_name_leaves_no_stale_shard(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    _save(path, 1.0)
    old = _shards(path)
    (tmp_path / "x.ckpt.workers" / "worker-9.0123456789abcdef.pt").write_bytes(b"left by a run of ten workers")
    _save(path, 2.0)
    assert len(_shards(path)) == 1
    assert _shards(path) != old
    assert float(_load(path)["own"][0]) == 2.0


class _FullDisk:
    """A file that takes some bytes and then no more."""

    def __init__(self, file: Any, room_bytes: int) -> None:
        self.file, self.room_bytes = file, room_bytes

    def write(self, data: bytes) -> int:
        self.room_bytes -= len(data)
        if self.room_bytes < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("room_bytes", [0, 500])
def test_a_write_that_fails_leaves_no_file_and_the_older_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    path = tmp_path / "x.ckpt"
    _save(path, 1.0)
    before = _shards(path)
    ordinary = LocalFileSystem.open
    monkeypatch.setattr(
        LocalFileSystem,
        "open",
        lambda self, name, mode="rb", **more: (
            _FullDisk(ordinary(self, name, mode, **more), room_bytes)
            if "w" in mode
            else ordinary(self, name, mode, **more)
        ),
    )
    with pytest.raises(CheckpointError, match=r"x\.ckpt was not written: worker 0: .*"):
        write_shards(path, 0, lambda: {"own": torch.zeros(1000)}, {"weight": torch.zeros(3)})
    monkeypatch.undo()
    assert _shards(path) == before
    assert float(_load(path)["own"][0]) == 1.0


def test_what_cannot_be_stored_is_an_error_of_the_checkpoint_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match="was not written: worker 0"):
        write_shards(path, 0, lambda: {"own": (number for number in range(3))}, {})
    assert _shards(path) == []


def test_a_crash_between_the_shards_and_the_file_leaves_the_older_checkpoint_resumable(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    _save(path, 1.0)
    write_shards(path, 0, lambda: {"own": torch.full((5,), 2.0)}, {"weight": torch.full((3,), 2.0)})
    assert float(_load(path)["own"][0]) == 1.0
    _save(path, 3.0)
    assert float(_load(path)["own"][0]) == 3.0
    assert len(_shards(path)) == 1


def test_a_linked_checkpoint_finds_the_shards_of_what_it_links_to(tmp_path: Path) -> None:
    path, link = tmp_path / "step=10.ckpt", tmp_path / "last.ckpt"
    _save(path, 4.0)
    link.symlink_to(path.name)
    assert float(_load(link)["own"][0]) == 4.0


def test_a_moved_checkpoint_takes_its_shards_along_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    _save(path, 5.0)
    (tmp_path / "elsewhere").mkdir()
    path.rename(tmp_path / "elsewhere" / "y.ckpt")
    (tmp_path / "x.ckpt.workers").rename(tmp_path / "elsewhere" / "y.ckpt.workers")
    assert float(_load(tmp_path / "elsewhere" / "y.ckpt")["own"][0]) == 5.0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("missing", "worker 0: its shard .* is missing"),
        ("truncated", r"has \d+ bytes instead of \d+"),
        ("altered", "has been altered: SHA-256 [0-9a-f]{64} instead of [0-9a-f]{64}"),
    ],
)
def test_a_damaged_shard_is_refused_before_it_is_read(tmp_path: Path, damage: str, reason: str) -> None:
    path = tmp_path / "x.ckpt"
    _save(path, 1.0)
    (shard,) = (tmp_path / "x.ckpt.workers").iterdir()
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[:-1])
    else:
        content[-1] ^= 1
        shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        _load(path)
    assert "load_from_checkpoint" in str(caught.value), "the error says what can still be done"


def test_a_manifest_cannot_lead_out_of_the_checkpoints_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    manifest = _save(path, 1.0)
    secret = tmp_path / "secret.pt"
    torch.save({"own": torch.zeros(1)}, secret)
    manifest["shards"][0]["file"] = f"../{secret.name}"
    with pytest.raises(CheckpointError, match="is missing"):
        read_shard(path, manifest, 0)


def test_an_altered_consensus_or_an_unknown_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    _save(path, 1.0)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["weight"][1] += 1e-6
    with pytest.raises(CheckpointError, match="has been altered: the SHA-256 of its weights"):
        verify(path, checkpoint)
    checkpoint[MANIFEST_KEY]["format"] = 99
    with pytest.raises(CheckpointError, match="shards of format 99; this version reads 1"):
        verify(path, checkpoint)


def test_a_checkpoint_of_another_strategy_has_no_manifest_and_is_fine(tmp_path: Path) -> None:
    assert verify(tmp_path / "x.ckpt", {"state_dict": {}}) is None


def test_removing_a_checkpoint_removes_its_shards_and_nothing_else(tmp_path: Path) -> None:
    for name in ("x.ckpt", "y.ckpt"):
        _save(tmp_path / name, 1.0)
    remove_shards(tmp_path / "x.ckpt")
    remove_shards(tmp_path / "x.ckpt")
    remove_shards(tmp_path / "never-saved.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["x.ckpt", "y.ckpt", "y.ckpt.workers"]


def test_the_sum_depends_on_names_dtypes_shapes_and_every_bit_but_not_on_order_or_layout() -> None:
    weight = torch.arange(6.0).view(2, 3)
    reference = digest({"a": weight, "b": torch.zeros(0)})
    assert digest({"b": torch.zeros(0), "a": weight}) == reference
    assert digest({"a": weight.t().contiguous().t(), "b": torch.zeros(0), "note": "no tensor"}) == reference
    others = [
        {"c": weight, "b": torch.zeros(0)},
        {"a": weight.double(), "b": torch.zeros(0)},
        {"a": weight.view(3, 2), "b": torch.zeros(0)},
        {"a": weight.clone().index_fill_(0, torch.tensor([0]), -0.0), "b": torch.zeros(0)},
        {"a": weight},
    ]
    assert len({reference, *map(digest, others)}) == 6
    for dtype in (torch.bfloat16, torch.complex64, torch.bool, torch.int8):
        assert len(digest({"x": torch.ones((), dtype=dtype)})) == 64
