"""Whole-world moments of a world of one: everything is its own value. Several workers: tests/distributed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_decgan.gossip import world


def test_the_average_of_one_worker_is_its_own_value_in_a_new_tensor_at_distance_zero() -> None:
    tensors = [
        torch.randn(3, 2),
        torch.randn(4, dtype=torch.float64),
        torch.randn(2, dtype=torch.complex64),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.zeros(0, 3),
        torch.arange(6.0).view(2, 3).t(),
    ]
    means, distance, relative = world.average(tensors, [True] * len(tensors))
    for tensor, mean in zip(tensors, means, strict=True):
        assert torch.equal(mean, tensor)
        assert mean.dtype == tensor.dtype
        assert mean.numel() == 0 or mean.data_ptr() != tensor.data_ptr()
    assert distance == relative == 0.0


def test_the_average_goes_through_large_tensors_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_CHUNK_ELEMENTS", 7)
    tensor = torch.randn(5, 9)
    (mean,), distance, _ = world.average([tensor], [True])
    assert torch.equal(mean, tensor)
    assert distance == 0.0


def test_a_model_of_zeros_has_no_relative_distance_to_divide_by() -> None:
    assert world.average([torch.zeros(3)], [True])[1:] == (0.0, 0.0)


@pytest.mark.parametrize("value", [None, "text", 3, {"a": (1, 2.0)}, Path("/x")])
def test_broadcasting_alone_returns_the_very_value(value: object) -> None:
    assert world.broadcast_value(value) is value


def test_gathering_and_comparing_alone() -> None:
    assert world.gather_bytes(b"mine") == [b"mine"]
    assert world.gather_bytes(b"") == [b""]
    assert world.all_equal(b"whatever")
    world.compare_workers(["parameter weight: shape (2,), float32"])
    tensor = torch.ones(2)
    world.broadcast_from_zero([tensor])
    assert tensor.tolist() == [1.0, 1.0]
