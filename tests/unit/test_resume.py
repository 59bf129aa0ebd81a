"""Random numbers and the place in the data survive a restart."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from lightning_decgan.strategy.resume import (
    get_random_state,
    keep_random_state,
    set_random_state,
    skip_seen_batches,
)


def _draw() -> tuple[float, float, float, float]:
    return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))


@pytest.fixture(autouse=True)
def known_random_numbers() -> Iterator[None]:
    kept = get_random_state()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    yield
    set_random_state(kept)


def test_a_restored_state_repeats_pythons_numpys_and_torchs_numbers() -> None:
    _draw()
    np.random.randn()  # NumPy keeps every second Gaussian for later: part of the state
    state = get_random_state()
    first = [_draw() for _ in range(3)]
    assert _draw() != first[0]
    set_random_state(state)
    assert [_draw() for _ in range(3)] == first


def test_the_state_is_loaded_without_unpickling_anything() -> None:
    file = io.BytesIO()
    torch.save(get_random_state(), file)
    first = _draw()
    set_random_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert _draw() == first


class Numbers(Dataset):
    """Items that draw a random number, as augmentations do."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(()))


def _epoch(loader: DataLoader) -> list:
    return [(indices.tolist(), noise.tolist()) for indices, noise in loader]


def test_a_loader_skips_what_was_seen_and_then_draws_what_would_have_come() -> None:
    loader = DataLoader(Numbers(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5))
    whole, state, iterator = [], {}, iter(loader)
    for step in range(6):
        indices, noise = next(iterator)
        whole.append((indices.tolist(), noise.tolist()))
        if step == 3:
            state = get_random_state()

    torch.manual_seed(99)
    again = DataLoader(Numbers(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5))
    skip_seen_batches(again, lambda: 4, lambda: set_random_state(state))
    assert isinstance(again, DataLoader)
    assert len(again) == 6
    assert _epoch(again) == whole[4:]


def test_only_the_first_iteration_after_a_restart_skips() -> None:
    loader = DataLoader(Numbers(), batch_size=2)
    calls = []
    skip_seen_batches(loader, lambda: 4, lambda: calls.append("random numbers put back"))
    assert [indices for indices, _ in _epoch(loader)] == [[8, 9], [10, 11]]
    assert _epoch(loader)[0][0] == [0, 1]
    assert len(_epoch(loader)) == 6
    assert calls == ["random numbers put back"]


def test_at_the_end_of_an_epoch_nothing_is_skipped_and_the_state_precedes_the_new_order() -> None:
    """A sampler draws its seed from the global numbers when an epoch begins: by then they must be put back."""
    loader = DataLoader(Numbers(), batch_size=2, sampler=RandomSampler(Numbers()))
    state = get_random_state()
    expected = _epoch(loader)
    torch.manual_seed(99)
    again = DataLoader(Numbers(), batch_size=2, sampler=RandomSampler(Numbers()))
    skip_seen_batches(again, lambda: 0, lambda: set_random_state(state))
    assert _epoch(again) == expected


def test_how_much_was_seen_is_asked_when_the_first_batch_is() -> None:
    loader, seen = DataLoader(Numbers(), batch_size=2), [0]
    skip_seen_batches(loader, lambda: seen[0], lambda: None)
    iterator = iter(loader)
    seen[0] = 5  # Lightning restores its counters between making the loader's iterator and the first batch
    assert [indices.tolist() for indices, _ in iterator] == [[10, 11]]


def test_a_loader_for_evaluation_leaves_the_random_numbers_alone() -> None:
    class Fixed(Numbers):
        def __getitem__(self, index: int) -> tuple[int, float]:
            return index, 0.0

    plain, kept = DataLoader(Fixed(), batch_size=2), DataLoader(Fixed(), batch_size=2)
    keep_random_state(kept)
    before = torch.get_rng_state()
    assert [indices.tolist() for indices, _ in kept] == [indices.tolist() for indices, _ in kept]
    assert torch.equal(torch.get_rng_state(), before)
    list(plain)
    assert not torch.equal(torch.get_rng_state(), before), "an ordinary DataLoader draws a seed"


def test_an_iterable_dataset_is_skipped_through_as_well() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(range(6))

    loader = DataLoader(Stream(), batch_size=2)
    skip_seen_batches(loader, lambda: 2, lambda: None)
    assert [batch.tolist() for batch in loader] == [[4, 5]]


def test_a_users_own_loader_class_stays_what_it_is() -> None:
    class Mine(DataLoader):
        def __iter__(self) -> Iterator:
            for batch in super().__iter__():
                yield batch, "mine"

    loader = Mine(Numbers(), batch_size=6)
    keep_random_state(loader)
    keep_random_state(loader)
    assert isinstance(loader, Mine)
    assert [mark for _, mark in loader] == ["mine", "mine"]
