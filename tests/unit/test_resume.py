"""Random numbers and the place in the data survive a restart."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from lightning_decgan.strategy.resume import (
    DataOrder,
    get_random_state,
    keep_random_state,
    set_random_state,
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


def _stop_and_resume(make: Callable[[], DataLoader], batches: int) -> tuple[list, list]:
    """The batches of two epochs, straight and with a restart after some; other random numbers in between."""
    whole: list = []
    loader = make()
    order = DataOrder(lambda: 0)
    order.follow(loader)
    saved = {}
    for _ in range(2):
        # As Lightning does, which knows the length: the iterator is dropped, not run to its end.
        for indices, noise in itertools.islice(loader, len(loader)):
            whole.append((indices.tolist(), noise.tolist(), _draw()))
            if len(whole) == batches:
                saved = order.state_dict()
    torch.manual_seed(99)
    random.seed(99)
    again = make()
    resumed = DataOrder(lambda: batches % len(again))
    resumed.load_state_dict(saved)
    resumed.follow(again)
    continued: list = []
    while len(continued) < len(whole) - batches:
        left = len(again) - (batches + len(continued)) % len(again)
        continued += [(indices.tolist(), noise.tolist(), _draw()) for indices, noise in itertools.islice(again, left)]
    return whole[batches:], continued


@pytest.mark.parametrize("batches", [4, 6, 8, 11])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Numbers(), batch_size=2, shuffle=True),
        lambda: DataLoader(Numbers(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5)),
        lambda: DataLoader(Numbers(), batch_size=2, sampler=SubsetRandomSampler(range(12))),
        lambda: DataLoader(Numbers(), batch_size=2, shuffle=True, num_workers=1),
    ],
    ids=["global numbers", "a generator of its own", "a random sampler", "a loader process"],
)
def test_a_resumed_epoch_goes_on_with_the_batch_that_would_have_come(
    make: Callable[[], DataLoader], batches: int
) -> None:
    straight, continued = _stop_and_resume(make, batches)
    assert len(straight) == 12 - batches
    assert continued == straight


def test_only_the_first_iteration_after_a_restart_skips() -> None:
    loader, seen = DataLoader(Numbers(), batch_size=2), [0]
    order = DataOrder(lambda: seen[0])
    order.follow(loader)
    next(iter(loader))
    order.load_state_dict(order.state_dict())
    iterator = iter(loader)
    seen[0] = 4  # Lightning restores its counters between making the loader's iterator and the first batch
    assert [indices.tolist() for indices, _ in iterator] == [[8, 9], [10, 11]]
    assert len(_epoch(loader)) == 6
    assert isinstance(loader, DataLoader)


def test_a_loader_that_restores_its_own_position_is_not_moved_twice() -> None:
    class Stateful(DataLoader):
        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: dict) -> None:
            pass

    loader = Stateful(Numbers(), batch_size=2)
    order = DataOrder(lambda: 4)
    order.follow(loader)
    next(iter(loader))
    order.load_state_dict(order.state_dict())
    assert len(_epoch(loader)) == 6


def test_with_several_loaders_nothing_is_skipped() -> None:
    loaders = [DataLoader(Numbers(), batch_size=size) for size in (2, 6)]
    order = DataOrder(lambda: 4)
    for loader in loaders:
        order.follow(loader)
    next(iter(loaders[0]))
    order.load_state_dict(order.state_dict())
    assert [len(_epoch(loader)) for loader in loaders] == [6, 2]


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
