"""Tensors of any dtype and shape as one flat buffer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_decgan.gossip import FlatVector, describe_tensors

DTYPES = [torch.float16, torch.float64, torch.bfloat16, torch.float32, torch.complex64, torch.complex128]


def _mixed() -> list[tuple[str, Tensor]]:
    torch.manual_seed(0)
    return [
        (f"{dtype}/{place}", torch.randn(shape, dtype=dtype))
        for place in range(2)
        for dtype, shape in zip(DTYPES, [(3,), (2, 3), (5, 1), (), (1, 2, 2), (7,)], strict=True)
    ]


def test_what_is_written_comes_back_bit_for_bit_in_every_dtype() -> None:
    named = _mixed()
    vector = FlatVector(named)
    buffer = vector.write(vector.new_buffer())
    for (name, tensor), view in zip(named, buffer.views, strict=True):
        assert view.dtype == tensor.dtype
        assert view.shape == tensor.shape
        assert torch.equal(view, tensor), name


def test_every_section_begins_at_a_multiple_of_64_bytes_and_padding_stays_zero() -> None:
    vector = FlatVector(_mixed())
    buffer = vector.write(vector.new_buffer())
    start = buffer.bytes.data_ptr()
    covered = np.zeros(vector.size_bytes, dtype=bool)
    for section in buffer.sections:
        offset = section.data_ptr() - start
        assert offset % 64 == 0
        covered[offset : offset + section.numel() * section.element_size()] = True
    assert buffer.bytes.numel() == vector.size_bytes
    assert not buffer.bytes.numpy()[~covered].any()
    elements = {dtype: sum(t.numel() for _, t in _mixed() if t.dtype == dtype) for dtype in DTYPES}
    assert covered.sum() == sum(count * dtype.itemsize for dtype, count in elements.items())


def test_adding_changes_the_tensors_in_their_own_storages() -> None:
    named = _mixed()
    before = [(tensor.clone(), tensor.data_ptr()) for _, tensor in named]
    vector = FlatVector(named)
    vector.add_(vector.write(vector.new_buffer()))
    for (_, tensor), (old, address) in zip(named, before, strict=True):
        assert torch.equal(tensor, old + old)
        assert tensor.data_ptr() == address


def test_non_contiguous_expanded_and_0_dim_tensors() -> None:
    transposed = torch.arange(6.0).view(2, 3).t()
    strided = torch.arange(10.0)[::2]
    scalar = torch.tensor(4.0)
    channels_last = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    named = [("t", transposed), ("s", strided), ("0", scalar), ("c", channels_last)]
    expected = [tensor.clone() * 3 for _, tensor in named]
    vector = FlatVector(named)
    buffer = vector.write(vector.new_buffer())
    assert buffer.sections[0].tolist() == [
        value for _, tensor in named for value in tensor.contiguous().flatten().tolist()
    ]
    vector.add_(buffer.add_(vector.write(vector.new_buffer())))
    for (name, tensor), its in zip(named, expected, strict=True):
        assert torch.equal(tensor, its), name


def test_parameters_are_written_without_a_graph() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    vector = FlatVector([("p", parameter)])
    buffer = vector.write(vector.new_buffer())
    vector.add_(buffer)
    assert not buffer.bytes.requires_grad
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.tolist() == [2.0] * 3


def test_an_empty_vector_has_no_bytes_and_a_tensor_without_elements_is_carried() -> None:
    nothing = FlatVector([])
    assert nothing.size_bytes == 0
    buffer = nothing.write(nothing.new_buffer())
    nothing.add_(buffer)
    assert buffer.norm() == 0.0
    hollow = FlatVector([("hollow", torch.zeros(0, 4)), ("full", torch.ones(2))])
    assert [tuple(view.shape) for view in hollow.write(hollow.new_buffer()).views] == [(0, 4), (2,)]


def test_the_gossiped_point_is_the_tensor_plus_its_lookahead() -> None:
    first, second = torch.ones(2), torch.ones(3, dtype=torch.float64)
    update = torch.tensor([0.25, -0.5])
    vector = FlatVector([("first", first), ("second", second)], lambda tensor: update if tensor is first else None)
    buffer = vector.write(vector.new_buffer())
    assert buffer.views[0].tolist() == [1.25, 0.5]
    assert buffer.views[1].tolist() == [1.0] * 3
    assert first.tolist() == [1.0, 1.0], "writing leaves the live tensor alone"
    assert update.tolist() == [0.25, -0.5]


@pytest.mark.parametrize(
    "other",
    [
        lambda a, b: [("b", b), ("a", a)],
        lambda a, b: [("a", a), ("c", b)],
        lambda a, b: [("a", a), ("b", b.view(3, 2))],
        lambda a, b: [("a", a), ("b", b.double())],
        lambda a, b: [("a", a)],
        lambda a, b: [("a", a), ("b", b), ("c", torch.zeros(1))],
    ],
    ids=["order", "name", "shape", "dtype", "fewer", "more"],
)
def test_the_tag_tells_layouts_apart(other: Callable) -> None:
    a, b = torch.zeros(4), torch.zeros(2, 3)
    tag = FlatVector([("a", a), ("b", b)]).tag
    assert 0 <= tag < 2**31
    assert FlatVector([("a", torch.ones(4)), ("b", torch.ones(2, 3))]).tag == tag, "values do not matter"
    assert FlatVector(other(a, b)).tag != tag


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_integers_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"tensor 'steps' has dtype {dtype}; only floating-point and complex"):
        FlatVector([("steps", torch.zeros(2, dtype=dtype))])


def test_a_name_or_a_tensor_that_occurs_twice_is_refused() -> None:
    shared = torch.zeros(2)
    for named in ([("a", shared), ("b", shared)], [("a", shared), ("a", torch.zeros(2))]):
        with pytest.raises(ValueError, match="must occur once"):
            FlatVector(named)


def _pair(dtype: torch.dtype) -> tuple:
    torch.manual_seed(1)
    vectors = [FlatVector([("x", torch.randn(50, dtype=dtype))]) for _ in range(2)]
    return tuple(vector.write(vector.new_buffer()) for vector in vectors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_ends_of_an_edge_compute_increments_that_are_exact_negatives(dtype: torch.dtype) -> None:
    mine, its = _pair(dtype)
    my_increment, its_increment = (FlatVector([("x", torch.zeros(50, dtype=dtype))]).new_buffer() for _ in range(2))
    my_increment.add_(_pair(dtype)[1].sub_(mine), alpha=1 / 3)
    its_increment.add_(_pair(dtype)[0].sub_(its), alpha=1 / 3)
    assert torch.equal(my_increment.sections[0], -its_increment.sections[0])
    assert torch.any(my_increment.sections[0] != 0)
    expected = (its.sections[0] - mine.sections[0]) * (1 / 3)
    torch.testing.assert_close(my_increment.sections[0], expected)


def test_the_norm_is_euclidean_over_all_dtypes_and_complex_parts() -> None:
    real, imaginary = torch.tensor([1.0, 2.0]), torch.tensor([2.0 + 2.0j], dtype=torch.complex64)
    vector = FlatVector([("r", real), ("c", imaginary)])
    assert vector.write(vector.new_buffer()).norm() == pytest.approx(13**0.5)


def test_copies_are_independent_of_their_source() -> None:
    vector = FlatVector([("x", torch.ones(3))])
    source = vector.write(vector.new_buffer())
    copy = vector.new_buffer().copy_(source)
    source.sections[0].zero_()
    assert copy.sections[0].tolist() == [1.0] * 3


def test_tensors_are_described_by_name_shape_and_dtype() -> None:
    assert describe_tensors([("a.b", torch.zeros((), dtype=torch.bfloat16))], "buffer") == [
        "buffer a.b: shape (), bfloat16"
    ]
