"""Workers under DDP draw latents of their own, each the same ones in every run."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_decgan import DecentralizedGossipStrategy
from lightning_decgan.callbacks import OwnRandomNumbers


@pytest.fixture(autouse=True)
def undisturbed():
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def numbers(worker, strategy, seed=3):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    OwnRandomNumbers().on_train_start(SimpleNamespace(global_rank=worker, strategy=strategy), None)
    return torch.rand(()).item(), np.random.rand(), random.random()


def test_workers_under_ddp_get_numbers_of_their_own_the_same_in_every_run():
    drawn = [numbers(worker, DDPStrategy()) for worker in range(4)]
    assert [len(set(kind)) for kind in zip(*drawn, strict=True)] == [4, 4, 4]
    assert drawn == [numbers(worker, DDPStrategy()) for worker in range(4)]
    assert drawn[1] != numbers(1, DDPStrategy(), seed=4)
    torch.manual_seed(3)
    assert drawn[0][0] == torch.rand(()).item()


def test_gossip_has_done_so_already():
    assert numbers(1, DecentralizedGossipStrategy()) == numbers(0, DecentralizedGossipStrategy())
