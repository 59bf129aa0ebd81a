"""What a swap carries: the mean stays, consensus is reached, runs resume, and the bytes are what they should be."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_decgan.gossip.compression import (
    BFloat16,
    Codec,
    Compression,
    Int8,
    PowerGossip,
    RandomSubset,
    build_compression,
)
from lightning_decgan.gossip.compression.power import orthonormal_rows
from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

ALL = [
    BFloat16(),
    Int8(),
    Int8(block=7),
    PowerGossip(),
    PowerGossip(rank=2, iterations=2),
    PowerGossip(rank=3, iterations=3),
    RandomSubset(),
    RandomSubset(fraction=1),
]
WITH_MEMORY = [Int8(), PowerGossip(), PowerGossip(rank=2, iterations=2)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operations wait long for threads of which other tests keep the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _vector(dtype: torch.dtype = torch.float32, *shapes: tuple[int, ...]) -> FlatVector:
    shapes = shapes or ((40, 6, 5), (700,), (), (8, 90), (2, 2), (0, 3))
    return FlatVector([(f"{place}", torch.zeros(shape, dtype=dtype)) for place, shape in enumerate(shapes)])


def _random(vector: FlatVector, seed: int, size: float = 1.0) -> FlatBuffer:
    buffer, generator = vector.new_buffer(), torch.Generator().manual_seed(seed)
    for section in buffer.sections:
        section.copy_(torch.randn(section.shape, generator=generator, dtype=section.dtype) * size)
    return buffer


@dataclass
class Link:
    """Both ends of one edge, without a network between them."""

    compression: Compression
    vector: FlatVector
    edge: tuple[int, int] = (1, 3)
    seed: int = 0
    ends: list[Codec] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = [self.compression.codec(self.vector, self.edge, worker, self.seed) for worker in self.edge]
        assert self.ends[0].message_bytes == self.ends[1].message_bytes
        self.messages = [[torch.zeros(size, dtype=torch.uint8) for size in end.message_bytes] for end in self.ends]

    def swap(self, number: int, low: FlatBuffer, high: FlatBuffer) -> tuple[FlatBuffer, FlatBuffer]:
        """One round; returns the differences of the lower and the higher worker."""
        (mine, its), snapshots = self.messages, (low, high)
        for turn in range(len(mine)):
            for end, snapshot, sent, received in zip(self.ends, snapshots, (mine, its), (its, mine), strict=True):
                sent[turn].random_(generator=torch.Generator().manual_seed(number))  # nothing old may be relied upon
                end.encode(turn, number, snapshot, sent, received)
        differences = (_random(self.vector, 98), _random(self.vector, 99))
        for end, snapshot, sent, received, difference in zip(
            self.ends, snapshots, (mine, its), (its, mine), differences, strict=True
        ):
            end.decode(number, snapshot, sent, received, difference)
        return differences


def _opposite(low: FlatBuffer, high: FlatBuffer) -> bool:
    return all(torch.equal(mine, -its) for mine, its in zip(low.sections, high.sections, strict=True))


def _is_finite(buffer: FlatBuffer) -> bool:
    return all(bool(torch.isfinite(section).all()) for section in buffer.sections)


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(mine, its) for mine, its in zip(first, second, strict=True))


# What holds for every compression.


@pytest.mark.parametrize("dtype", [*DTYPES, None], ids=str)
@pytest.mark.parametrize("compression", ALL, ids=str)
def test_the_two_ends_decode_exact_negatives(compression: Compression, dtype: torch.dtype | None) -> None:
    if dtype is None:
        vector = FlatVector([(f"{one}", torch.zeros(30, 20, dtype=one)) for one in DTYPES])
    else:
        vector = _vector(dtype)
    link = Link(compression, vector)
    low, high = _random(vector, 0), _random(vector, 1)
    for number in range(5):
        mine, its = link.swap(number, low, high)
        assert _opposite(mine, its)
        assert _is_finite(mine)
        assert any(section.any() for section in mine.sections)
        for one, difference in ((low, mine), (high, its)):
            for section, change in zip(one.sections, difference.sections, strict=True):
                section.add_(change, alpha=1 / 3)


@pytest.mark.parametrize("compression", ALL, ids=str)
def test_equal_workers_stay_where_they_are(compression: Compression) -> None:
    vector = _vector()
    link = Link(compression, vector)
    for number in range(3):
        for difference in link.swap(number, _random(vector, number), _random(vector, number)):
            assert not any(section.any() for section in difference.sections)


class Ring:
    """Four workers on a ring with weights 1/3, in float64."""

    def __init__(self, compression: Compression, seed: int = 0) -> None:
        self.vector = _vector(torch.float64, (10, 12), (6, 20), (50,))
        self.edges = [(0, 1), (1, 2), (2, 3), (0, 3)]
        self.links = [Link(compression, self.vector, edge, seed) for edge in self.edges]
        self.workers = [_random(self.vector, seed) for seed in range(4)]

    def gossip(self, number: int) -> None:
        snapshots = [self.vector.new_buffer().copy_(worker) for worker in self.workers]
        for (low, high), link in zip(self.edges, self.links, strict=True):
            differences = link.swap(number, snapshots[low], snapshots[high])
            for worker, difference in zip((low, high), differences, strict=True):
                self.workers[worker].sections[0].add_(difference.sections[0], alpha=1 / 3)

    def points(self) -> Tensor:
        return torch.stack([worker.sections[0] for worker in self.workers])

    def distance(self) -> float:
        points = self.points()
        return float((points - points.mean(0)).norm())


@pytest.mark.parametrize(
    ("compression", "rounds", "floor"),
    [
        (BFloat16(), 30, 1e-2),
        (Int8(), 30, 1e-12),
        (Int8(block=32), 30, 1e-12),
        (PowerGossip(), 450, 1e-9),
        (PowerGossip(rank=4), 150, 1e-9),
        (PowerGossip(rank=2, iterations=2), 150, 1e-9),
        (RandomSubset(fraction=0.1), 600, 1e-9),
        (RandomSubset(fraction=0.5), 100, 1e-9),
    ],
    ids=str,
)
def test_four_workers_on_a_ring_agree_on_their_mean(compression: Compression, rounds: int, floor: float) -> None:
    ring = Ring(compression)
    mean, start = ring.points().mean(0), ring.distance()
    for number in range(rounds):
        ring.gossip(number)
    assert ring.distance() < floor * start
    torch.testing.assert_close(ring.points().mean(0), mean, rtol=0, atol=1e-13)


@pytest.mark.parametrize("compression", ALL, ids=str)
def test_a_run_resumed_from_a_file_goes_on_bit_for_bit(compression: Compression) -> None:
    whole, resumed = Ring(compression), Ring(compression)
    for number in range(3):
        whole.gossip(number)
    file = io.BytesIO()
    torch.save([[end.state_dict() for end in link.ends] for link in whole.links], file)
    file.seek(0)
    for link, states in zip(resumed.links, torch.load(file, weights_only=True), strict=True):
        for end, state in zip(link.ends, states, strict=True):
            end.load_state_dict(state)
    for mine, its in zip(resumed.workers, whole.workers, strict=True):
        mine.copy_(its)
    for number in range(3, 7):
        whole.gossip(number)
        resumed.gossip(number)
    assert torch.equal(whole.points(), resumed.points())


def _frozen(state: Any) -> Any:
    """The values of a state, apart from its memory."""
    if isinstance(state, dict):
        return {key: _frozen(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_frozen(value) for value in state]
    return state.tolist() if isinstance(state, Tensor) else state


@pytest.mark.parametrize("compression", WITH_MEMORY, ids=str)
def test_what_was_saved_does_not_change_when_the_run_goes_on(compression: Compression) -> None:
    vector = _vector()
    link = Link(compression, vector)
    link.swap(0, _random(vector, 0), _random(vector, 1))
    saved = link.ends[0].state_dict()
    frozen = _frozen(saved)
    fresh = compression.codec(vector, (1, 3), 1, 0)
    fresh.load_state_dict(saved)
    link.swap(1, _random(vector, 2), _random(vector, 3))
    assert _frozen(saved) == frozen
    assert _frozen(fresh.state_dict()) == frozen
    assert _frozen(link.ends[0].state_dict()) != frozen


@pytest.mark.parametrize("compression", ALL, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sick", [0, 1])
def test_what_is_not_finite_is_seen_at_both_ends_and_gone_after_a_reset(
    compression: Compression, value: float, sick: int
) -> None:
    vector = _vector()
    link, fresh = Link(compression, vector), Link(compression, vector)
    link.swap(0, _random(vector, 0), _random(vector, 1))
    pair = [_random(vector, 2), _random(vector, 3)]
    for view in pair[sick].views:  # in every run of 50, so that a random subset meets one
        view.view(-1)[::50] = value
    for difference in link.swap(1, *pair):
        assert not _is_finite(difference)
    for end in link.ends:
        end.reset()
    for number in range(2, 5):
        low, high = _random(vector, 2 * number), _random(vector, 2 * number + 1)
        after = link.swap(number, low, high)
        assert _is_finite(after[0])
        assert _opposite(*after)
        for mine, its in zip(after, fresh.swap(number, low, high), strict=True):
            assert _same(mine.sections, its.sections), "a reset is a fresh start"


@pytest.mark.parametrize("compression", ALL, ids=str)
def test_settings_travel_to_other_processes_and_seeds_matter_where_something_is_drawn(compression: Compression) -> None:
    assert pickle.loads(pickle.dumps(compression)) == compression
    vector = _vector()

    def first(edge: tuple[int, int], seed: int) -> Tensor:
        return Link(compression, vector, edge, seed).swap(0, _random(vector, 0), _random(vector, 1))[0].bytes

    assert torch.equal(first((0, 1), 0), first((0, 1), 0))
    if not isinstance(compression, BFloat16) and compression != RandomSubset(fraction=1):
        assert not torch.equal(first((0, 1), 0), first((0, 1), 1))
        assert not torch.equal(first((0, 1), 0), first((0, 2), 0))


@pytest.mark.parametrize("compression", ALL, ids=str)
def test_a_vector_of_nothing_can_be_swapped(compression: Compression) -> None:
    for vector in (FlatVector([]), FlatVector([("hollow", torch.zeros(0, 4))])):
        link = Link(compression, vector)
        link.swap(0, vector.new_buffer(), vector.new_buffer())
        assert set(link.ends[0].message_bytes) == {0}


@pytest.mark.parametrize(
    ("compression", "dtype", "expected"),
    [
        (BFloat16(), torch.float32, (2 * 10_400,)),
        (BFloat16(), torch.float64, (2 * 10_400,)),
        (BFloat16(), torch.float16, (2 * 10_400,)),
        (BFloat16(), torch.complex64, (4 * 10_400,)),
        # Codes, up to a multiple of 64 bytes, and the scales of ceil(10400 / 256) blocks.
        (Int8(), torch.float32, (10_432 + 4 * 41,)),
        (Int8(block=100), torch.float64, (10_432 + 4 * 104,)),
        # Parts begin at multiples of 64 bytes: 100 float32 take 448, 300 take 1216.
        (PowerGossip(), torch.float32, (448 + 4 * 400,)),
        (PowerGossip(rank=3, iterations=2), torch.float32, (1216 + 4 * 400, 4 * 300)),
        (PowerGossip(rank=60), torch.float32, (4 * 10_400,)),  # factors would be larger than the matrix
        (RandomSubset(fraction=0.25), torch.float32, (4 * 2_600,)),
    ],
    ids=str,
)
def test_messages_have_the_bytes_that_arithmetic_says(
    compression: Compression, dtype: torch.dtype, expected: tuple[int, ...]
) -> None:
    vector = _vector(dtype, (100, 100), (2, 2), (396,))  # one matrix worth factoring, and 400 other numbers
    assert compression.codec(vector, (0, 1), 0, 0).message_bytes == expected


@pytest.mark.parametrize("compression", WITH_MEMORY, ids=str)
@pytest.mark.parametrize("state", [{"other": 1}, {}, "of another model"], ids=str)
def test_a_state_of_something_else_is_refused(compression: Compression, state: Any) -> None:
    if isinstance(state, str):
        other = Link(compression, _vector(torch.float32, (30, 30)))
        other.swap(0, *(other.vector.new_buffer() for _ in range(2)))
        state = other.ends[0].state_dict()
    with pytest.raises(ValueError, match="the state in the checkpoint belongs to another compression"):
        compression.codec(_vector(), (0, 1), 0, 0).load_state_dict(state)


@pytest.mark.parametrize("compression", [BFloat16(), RandomSubset()], ids=str)
def test_a_codec_without_memory_refuses_the_memory_of_another(compression: Compression) -> None:
    codec = compression.codec(_vector(), (0, 1), 0, 0)
    codec.load_state_dict({})
    with pytest.raises(ValueError, match=r"another compression \(it holds own, theirs\)"):
        codec.load_state_dict({"own": [], "theirs": []})


# What users write.


def test_compressions_are_built_from_names_and_objects() -> None:
    assert build_compression(None) is None
    assert build_compression("bfloat16") == BFloat16()
    assert build_compression("int8") == Int8(block=256)
    for compression in ALL:
        assert build_compression(compression) is compression


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: build_compression("int4"), ValueError, "compression must be None, 'bfloat16', 'int8' .* found 'int4'"),
        (lambda: build_compression(8), TypeError, r"compression must be None, a name .* found 8 \(int\)"),
        (lambda: build_compression(PowerGossip), TypeError, r"write PowerGossip\(\) to make one"),
        (lambda: Int8(block=0), ValueError, r"Int8\(block=...\) must be an integer from 1 to 16384, found 0"),
        (lambda: Int8(block=16385), ValueError, r"Int8\(block=...\) must be an integer from 1 to 16384"),
        (lambda: Int8(block=2.5), TypeError, r"found 2.5 \(float\)"),  # type: ignore[arg-type]
        (lambda: PowerGossip(rank=0), ValueError, r"PowerGossip\(rank=...\) must be an integer >= 1"),
        (lambda: PowerGossip(rank="2"), TypeError, r"found '2' \(str\)"),  # type: ignore[arg-type]
        (lambda: PowerGossip(iterations=-1), ValueError, r"PowerGossip\(iterations=...\) .* found -1"),
        (lambda: PowerGossip(iterations=True), TypeError, r"found True \(bool\)"),
        (lambda: RandomSubset(fraction=0), ValueError, r"RandomSubset\(fraction=...\) .* found 0"),
        (lambda: RandomSubset(fraction=1.01), ValueError, "above 0 and at most 1, found 1.01"),
        (lambda: RandomSubset(fraction=float("nan")), ValueError, "found nan"),
        (lambda: RandomSubset(fraction="half"), TypeError, r"found 'half' \(str\)"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


# bfloat16.


@pytest.mark.parametrize("dtype", DTYPES)
def test_bfloat16_is_the_difference_of_the_rounded_parameters(dtype: torch.dtype) -> None:
    vector = _vector(dtype)
    low, high = _random(vector, 0), _random(vector, 1)
    (difference, _) = Link(BFloat16(), vector).swap(0, low, high)

    def rounded(section: Tensor) -> Tensor:
        real = torch.view_as_real(section) if dtype.is_complex else section
        real = real if real.dtype == torch.float16 else real.to(torch.bfloat16).to(real.dtype)
        return torch.view_as_complex(real) if dtype.is_complex else real

    assert torch.equal(difference.sections[0], rounded(high.sections[0]) - rounded(low.sections[0]))


def test_bfloat16_of_a_long_vector_is_decoded_to_its_end() -> None:
    vector = _vector(torch.float32, (300_001,))
    low, high = _random(vector, 0), _random(vector, 1)
    expected = high.sections[0].bfloat16().float() - low.sections[0].bfloat16().float()
    assert torch.equal(Link(BFloat16(), vector).swap(0, low, high)[0].sections[0], expected)


# int8.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex128])
@pytest.mark.parametrize("block", [1, 7, 256, 16384])
def test_int8_closes_in_on_what_stands_still_by_a_factor_of_127_a_round(dtype: torch.dtype, block: int) -> None:
    vector = _vector(dtype, (70_000,), (3,))  # more than one chunk
    low, high = _random(vector, 0), _random(vector, 1, size=1e-3)
    link, true = Link(Int8(block), vector), high.sections[0] - low.sections[0]
    error = float(low.sections[0].abs().max() + high.sections[0].abs().max())
    rounding = 4 * torch.finfo(dtype).eps * error
    for number in range(4):
        difference, _ = link.swap(number, low, high)
        error /= 126.9
        assert float((difference.sections[0] - true).abs().max()) < 2 * error + rounding


def test_int8_rounds_without_bias_and_never_by_more_than_one_code() -> None:
    vector = _vector(torch.float64, (512,))
    low, high, rounds = vector.new_buffer(), _random(vector, 0), 1_000
    total = torch.zeros(512, dtype=torch.float64)
    blocks = high.sections[0].view(2, 256)
    scale = (blocks.abs().amax(1, keepdim=True) / 126.99).expand(2, 256).reshape(512)
    link = Link(Int8(), vector)
    for number in range(rounds):
        error = link.swap(number, low, high)[0].sections[0] - high.sections[0]
        assert bool((error.abs() <= scale * (1 + 1e-6)).all())
        total += error
        for end in link.ends:
            end.reset()
    # Uniform rounding has a standard deviation of at most half a code: five of its mean's, over 512 numbers.
    assert bool((total / rounds < 5 * 0.5 * scale / rounds**0.5).all())
    assert abs(float((total / scale).mean())) < 5 * 0.5 * (rounds / 512) ** 0.5


def test_int8_follows_small_steps_that_eight_bits_of_the_parameters_would_drown() -> None:
    vector = _vector(torch.float64, (1000,))
    low, high, link = _random(vector, 0), _random(vector, 1), Link(Int8(), vector)
    for number in range(50):
        high.sections[0].add_(_random(vector, 2 + number, size=1e-5).sections[0])
        difference, _ = link.swap(number, low, high)
    error = (difference.sections[0] - (high.sections[0] - low.sections[0])).abs().max()
    assert float(error) < 1e-6, "a fiftieth of a step; whole parameters would be coded to 0.03"


def test_int8_takes_its_memory_at_the_first_round_of_an_edge() -> None:
    vector = _vector(torch.float16, (1000,))
    link = Link(Int8(), vector)
    assert link.ends[0].state_dict() == {"own": [], "theirs": []}
    link.swap(0, _random(vector, 0), _random(vector, 1))
    mine, its = (end.state_dict() for end in link.ends)
    assert [(one.dtype, one.numel()) for one in mine["own"] + mine["theirs"]] == [(torch.float32, 1000)] * 2
    assert _same(mine["own"], its["theirs"])
    assert _same(mine["theirs"], its["own"])


def test_int8_carries_numbers_from_the_smallest_to_the_largest() -> None:
    vector = _vector(torch.float32, (512,))
    low, high = vector.new_buffer(), vector.new_buffer()
    high.sections[0][:256], high.sections[0][256:] = 1e-44, 3e38
    difference, _ = Link(Int8(), vector).swap(0, low, high)
    assert _is_finite(difference)
    assert float(difference.sections[0][:256].abs().max()) < 1e-29
    torch.testing.assert_close(difference.sections[0][256:], high.sections[0][256:], rtol=0.01, atol=0)


# PowerGossip.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_power_gossip_removes_a_difference_of_its_rank_in_two_rounds(dtype: torch.dtype, rank: int) -> None:
    vector = _vector(dtype, (20, 30), (60, 4, 5), (5, 64))
    low, high, generator = vector.new_buffer(), vector.new_buffer(), torch.Generator().manual_seed(0)
    for view in high.views:
        rows, columns = view.shape[0], view.numel() // view.shape[0]
        left, right = (torch.randn(size, generator=generator) for size in ((rows, rank), (rank, columns)))
        view.copy_((left.double() @ right.double()).view(view.shape))
    link, start = Link(PowerGossip(rank), vector), float(high.sections[0].abs().max())
    for number in range(2):
        differences = link.swap(number, low, high)
        for worker, difference in zip((low, high), differences, strict=True):
            worker.sections[0].add_(difference.sections[0], alpha=0.5)
    assert float((high.sections[0] - low.sections[0]).abs().max()) < 100 * torch.finfo(dtype).eps * start


@pytest.mark.parametrize(("rank", "iterations"), [(1, 1), (1, 2), (3, 1), (2, 3)])
def test_power_gossip_agrees_with_numpy(rank: int, iterations: int) -> None:
    shapes = [(12, 3, 7), (30, 8), (9, 40)]
    vector = _vector(torch.float64, *shapes)
    link = Link(PowerGossip(rank, iterations), vector)
    state = link.ends[0].state_dict()
    bases = [basis.numpy().T for basis in state["bases"][0]]
    matrices = [(shape[0], int(np.prod(shape[1:]))) for shape in shapes]
    right = [len(basis) == columns for basis, (_, columns) in zip(bases, matrices, strict=True)]
    for number in range(4):
        low, high = _random(vector, 2 * number), _random(vector, 2 * number + 1)
        found, _ = link.swap(number, low, high)
        for place, (rows, columns) in enumerate(matrices):
            difference = (high.views[place] - low.views[place]).numpy().reshape(rows, columns)
            for _ in range(iterations):
                # Vogels et al., Algorithm 1: multiply by the normalised image of the step before, from either side.
                image = difference @ bases[place] if right[place] else difference.T @ bases[place]
                approximation = image @ bases[place].T if right[place] else bases[place] @ image.T
                bases[place], right[place] = np.linalg.svd(image, full_matrices=False)[0], not right[place]
                # Any orthonormal basis of the same space gives the same approximation.
            np.testing.assert_allclose(found.views[place].numpy().reshape(rows, columns), approximation, atol=1e-12)


def test_power_gossip_finds_the_largest_singular_direction_of_a_difference_that_stands_still() -> None:
    vector = _vector(torch.float64, (50, 40))
    low, high, link = vector.new_buffer(), _random(vector, 0), Link(PowerGossip(), vector)
    left, sizes, right = np.linalg.svd(high.views[0].numpy())
    left[:, 0] *= 5  # make the first direction stand out, so that few rounds suffice
    high.views[0].copy_(torch.from_numpy(left[:, :40] * sizes @ right))
    for number in range(30):
        difference, _ = link.swap(number, low, high)
    best = sizes[0] * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(difference.views[0].numpy(), best, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_power_gossip_sends_small_tensors_as_they_are(dtype: torch.dtype) -> None:
    vector = _vector(dtype, (30, 30), (5,), (), (1, 100), (2, 1))
    low, high = _random(vector, 0), _random(vector, 1)
    difference, _ = Link(PowerGossip(iterations=2), vector).swap(0, low, high)
    for place in range(1, 5):
        assert torch.equal(difference.views[place], high.views[place] - low.views[place])
    assert not torch.equal(difference.views[0], high.views[0] - low.views[0])


def test_power_gossip_starts_at_once_after_a_time_without_any_difference() -> None:
    vector = _vector(torch.float32, (30, 30))
    link = Link(PowerGossip(rank=2), vector)
    for number in range(5):
        link.swap(number, _random(vector, 7), _random(vector, 7))
    for end in link.ends:
        (basis,) = end.state_dict()["bases"][0]
        torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    low, high = _random(vector, 0), _random(vector, 1)
    difference, _ = link.swap(5, low, high)
    true = high.sections[0] - low.sections[0]
    assert 0 < float((true - difference.sections[0]).norm()) < float(true.norm()), "a projection, and not of nothing"


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(
    "kind", ["random", "one direction", "nearly one direction", "one row not zero", "tiny", "large"]
)
def test_bases_are_orthonormal_whatever_they_are_made_of(kind: str, rank: int) -> None:
    rows = torch.randn(rank, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = {
        "random": rows,
        "one direction": rows[:1].repeat(rank, 1),
        "nearly one direction": rows[:1] + 1e-9 * rows,
        "one row not zero": torch.cat([torch.zeros(rank - 1, 9, dtype=torch.float64), rows[:1]]),
        "tiny": rows * 1e-40,
        "large": rows * 1e38,
    }[kind]
    basis = orthonormal_rows(rows)
    torch.testing.assert_close(basis @ basis.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-14)
    if kind in ("random", "tiny", "large"):
        torch.testing.assert_close(rows @ basis.T @ basis, rows, rtol=1e-12, atol=0)


def test_power_gossip_messages_of_even_and_odd_rounds_are_nearly_equally_long() -> None:
    shapes = [(64, 1000), (64, 900), (500, 10), (100, 400), (400, 100), (300, 30)]
    (size,) = PowerGossip().codec(_vector(torch.float32, *shapes), (0, 1), 0, 0).message_bytes
    assert size < 1.02 * 4 * sum(rows + columns for rows, columns in shapes) / 2


# Random subset.


@pytest.mark.parametrize(("count", "fraction"), [(10, 0.3), (7, 0.05), (100, 0.123), (70_001, 0.3), (400_000, 0.05)])
def test_every_coordinate_has_the_same_chance_and_it_is_the_fraction(count: int, fraction: float) -> None:
    vector = _vector(torch.float32, (count,))
    low, high, rounds = vector.new_buffer(), vector.new_buffer(), 2_000 if count < 1000 else 200
    high.sections[0].fill_(1.0)
    link, hits = Link(RandomSubset(fraction), vector), torch.zeros(count, dtype=torch.float64)
    for number in range(rounds):
        difference, _ = link.swap(number, low, high)
        hits += difference.sections[0]
    deviation = (fraction * (1 - fraction) / rounds) ** 0.5
    assert float((hits / rounds - fraction).abs().max()) < 7 * deviation  # of 30,000 runs the farthest
    assert float((hits / rounds).mean()) == pytest.approx(fraction, abs=5 * deviation / min(count, 100) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_random_subset_is_exact_where_it_is_drawn_and_zero_elsewhere(dtype: torch.dtype) -> None:
    vector = _vector(dtype, (70_000,), (30,))
    low, high = _random(vector, 0), _random(vector, 1)
    true = high.sections[0] - low.sections[0]
    link, patterns = Link(RandomSubset(0.25), vector), []
    for number in (0, 1, 1_000_000):
        difference = link.swap(number, low, high)[0].sections[0]
        drawn = difference != 0
        assert torch.equal(difference[drawn], true[drawn])
        assert float(drawn.double().mean()) == pytest.approx(0.25, abs=0.005)
        patterns.append(drawn)
    assert not torch.equal(patterns[0], patterns[1])
    assert torch.equal(link.swap(0, low, high)[0].sections[0] != 0, patterns[0]), "the round's number decides"


def test_the_whole_as_a_subset_is_no_compression() -> None:
    vector = _vector(torch.float32, (70_001,))
    low, high = _random(vector, 0), _random(vector, 1)
    difference, _ = Link(RandomSubset(fraction=1.0), vector).swap(0, low, high)
    assert torch.equal(difference.sections[0], high.sections[0] - low.sections[0])
