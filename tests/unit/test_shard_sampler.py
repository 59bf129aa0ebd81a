"""A worker's way through its shard: equally long for all, fair over epochs, the same after a restart."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from lightning_decgan.data import ShardSampler

SHARDS = [np.arange(0, 17), np.arange(17, 20), np.arange(20, 21), np.arange(21, 30)]  # a mean of 7.5 images


def epochs(worker, numbers, seed=0):
    sampler = ShardSampler(SHARDS, worker, seed)
    order = []
    for number in numbers:
        sampler.set_epoch(number)
        order.append(list(sampler))
    return order


@pytest.mark.parametrize("worker", range(4))
def test_an_epoch_has_the_mean_length_and_images_of_the_workers_own_shard(worker):
    for order in epochs(worker, range(5)):
        assert len(order) == len(ShardSampler(SHARDS, worker)) == 8
        assert set(order) <= set(SHARDS[worker].tolist())


@pytest.mark.parametrize("worker", range(4))
def test_no_image_of_a_shard_is_ever_more_than_one_ahead_of_another(worker):
    seen = Counter(dict.fromkeys(SHARDS[worker].tolist(), 0))
    for index in itertools.chain(*epochs(worker, range(40))):
        seen[index] += 1
        assert max(seen.values()) - min(seen.values()) <= 1


def test_each_pass_and_each_worker_has_an_order_of_its_own():
    first, second, third = (order[:8] for order in epochs(0, [0, 1, 2]))
    assert len({*map(tuple, (first, second, third))}) == 3
    one, other = (ShardSampler([np.arange(50)] * 2, worker) for worker in range(2))
    assert list(one) != list(other)
    assert sorted(one) == sorted(other) == list(range(50))
    assert list(one) != sorted(one)


def test_the_order_depends_on_seed_and_epoch_alone():
    assert epochs(0, [3, 0, 3])[0] == epochs(0, [3])[0]
    assert epochs(0, [2], seed=1) != epochs(0, [2], seed=2)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    straight = epochs(3, range(6))
    assert epochs(3, [4, 5]) == straight[4:], "a run resumed in epoch 4 has not gone through the first four"
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_lightning_takes_it_for_sharded():
    sampler = ShardSampler(SHARDS, 1, seed=4)
    assert isinstance(sampler, DistributedSampler)
    assert (sampler.num_replicas, sampler.rank, sampler.seed) == (4, 1, 4)


def test_who_does_not_exist_or_has_nothing_cannot_draw():
    with pytest.raises(ValueError, match="worker must be from 0 to 3, found 4"):
        ShardSampler(SHARDS, 4)
    with pytest.raises(ValueError, match=r"at least one image each, found none for workers \[1\]"):
        ShardSampler([np.arange(3), np.arange(0)], 0)
