"""What the strategy promises about communication: no world collective while training, one message per neighbour."""

from __future__ import annotations

import collections
import functools
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, seed_everything

from lightning_decgan.gossip.edge import GlooEdge
from lightning_decgan.strategy import DecentralizedGossipStrategy
from tests.distributed.models import UsersGAN, make_trainer
from tests.distributed.workers import run_workers

pytestmark = pytest.mark.processes

COLLECTIVES = [
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_reduce",
    "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier", "broadcast", "broadcast_object_list",
    "gather", "gather_object", "irecv", "isend", "monitored_barrier", "recv", "reduce", "reduce_scatter",
    "reduce_scatter_tensor", "scatter", "scatter_object_list", "send",
]  # fmt: skip


class CountCalls(Callback):
    """Counts calls of torch.distributed between the first batch's start and the last batch's end."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.training = False

    def install(self) -> None:
        for name in COLLECTIVES:
            original = getattr(dist, name)

            @functools.wraps(original)
            def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                if self.training:
                    self.counts[_name] += 1
                return _original(*args, **kwargs)

            for module in (dist, dist.distributed_c10d):
                setattr(module, name, counted)
        swap = GlooEdge.swap

        def counted_swap(edge: GlooEdge, *args: Any) -> Any:
            self.counts[f"swap with {edge.neighbor}"] += 1
            return swap(edge, *args)

        GlooEdge.swap = counted_swap  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self.training = True

    def on_train_end(self, *_: Any) -> None:
        self.training = False


def _count(strategy: str, overlap: bool) -> dict[str, int]:
    seed_everything(1)
    counter = CountCalls()
    counter.install()
    chosen: Any = DecentralizedGossipStrategy(topology="ring", overlap=overlap) if strategy == "gossip" else strategy
    model = UsersGAN(penalty=False)
    # 8 batches an epoch; evaluation, which may talk to everybody, is switched off.
    trainer = make_trainer(chosen, 4, max_epochs=-1, max_steps=200, limit_val_batches=0, callbacks=[counter])
    trainer.fit(model)
    assert trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 100
    return dict(counter.counts)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_hundred_gan_batches_take_no_world_collective_and_a_hundred_swaps_per_neighbour(overlap: bool) -> None:
    for worker, counts in enumerate(run_workers(4, _count, "gossip", overlap)):
        neighbors = {(worker - 1) % 4, (worker + 1) % 4}
        assert counts == {f"swap with {neighbor}": 100 for neighbor in neighbors}


def test_the_count_sees_lightnings_own_broadcasts() -> None:
    """The same count under DDP is not empty: Lightning's SIGTERM flag is broadcast before every batch."""
    for counts in run_workers(2, _count_ddp):
        assert counts["broadcast"] >= 99


def _count_ddp() -> dict[str, int]:
    seed_everything(1)
    counter = CountCalls()
    counter.install()
    trainer = make_trainer("ddp_find_unused_parameters_true", 2, max_steps=200, max_epochs=-1, limit_val_batches=0,
                           callbacks=[counter])  # fmt: skip
    trainer.fit(UsersGAN(penalty=False, toggle=False))
    return dict(counter.counts)


def _fit_and_describe(settings: dict[str, Any]) -> dict[str, Any]:
    seed_everything(1)
    model = UsersGAN()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    strategy = DecentralizedGossipStrategy(**{"topology": "ring", "evaluate": "local"} | settings)
    trainer = make_trainer(strategy, 4, max_epochs=2)
    trainer.fit(model)
    now = dict(model.named_parameters())
    return {
        "changed": {name: not torch.equal(start[name], now[name]) for name in start},
        "moved": [name for name in addresses if addresses[name] != now[name].data_ptr()],
        "parameters": {name: p.detach().clone() for name, p in now.items()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "swaps": strategy.totals.swaps,
        "noise": torch.rand(4),
    }


def test_both_players_change_on_every_worker_in_their_own_storages_with_their_own_noise() -> None:
    found = run_workers(4, _fit_and_describe, {})
    for worker in found:
        # A Wasserstein critic's last bias cancels out of its loss.
        assert [name for name, changed in worker["changed"].items() if not changed] == ["discriminator.2.bias"]
        assert worker["moved"] == []
    assert len({tuple(worker["noise"].tolist()) for worker in found}) == 4
    weights = [worker["parameters"]["generator.0.weight"] for worker in found]
    assert not torch.equal(weights[0], weights[1]), "each worker keeps its own copy"


@pytest.mark.parametrize(("buffers", "equal"), [("local", False), ("average", True)])
def test_complete_gossip_in_exact_order_ends_in_agreement_also_on_buffers_if_asked(buffers: str, equal: bool) -> None:
    found = run_workers(4, _fit_and_describe, {"topology": "complete", "overlap": False, "buffers": buffers})
    for name in ("generator.0.weight", "discriminator.2.bias"):
        for worker in found[1:]:
            torch.testing.assert_close(worker["parameters"][name], found[0]["parameters"][name], rtol=0, atol=1e-6)
    means = [worker["buffers"]["generator.1.running_mean"] for worker in found]
    assert torch.allclose(means[0], means[1], rtol=0, atol=1e-6) is equal


def test_gossip_every_skips_batches() -> None:
    found = run_workers(4, _fit_and_describe, {"gossip_every": 4, "overlap": False})
    assert [worker["swaps"] for worker in found] == [16 // 4 * 2] * 4


def test_the_same_seed_gives_the_same_bits() -> None:
    settings = {"topology": "random_matching", "rounds": 2, "seed": 5}
    first, second = (run_workers(4, _fit_and_describe, settings) for _ in range(2))
    for mine, its in zip(first, second, strict=True):
        for name, parameter in mine["parameters"].items():
            assert torch.equal(parameter, its["parameters"][name])


def _fit_mismatched(what: str) -> str:
    seed_everything(1)
    model = UsersGAN()
    settings: dict[str, Any] = {}
    if os.environ["RANK"] == "2":
        if what == "shape":
            model.extra = torch.nn.Linear(3, 5)
        else:
            settings = {"topology": "complete"}
    elif what == "shape":
        model.extra = torch.nn.Linear(3, 4)
    try:
        make_trainer(DecentralizedGossipStrategy(**settings), 4, max_epochs=1).fit(model)
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("what", "has", "lacks"),
    [
        ("shape", "parameter extra.weight: shape (5, 3), float32", "parameter extra.weight: shape (4, 3), float32"),
        ("topology", "topology: complete", "topology: one_peer_exponential"),
    ],
)
def test_workers_that_run_different_things_are_told_which_and_what(what: str, has: str, lacks: str) -> None:
    for message in run_workers(4, _fit_mismatched, what):
        assert f"worker 2 has: {has}" in message
        assert f"worker 2 lacks: {lacks}" in message
        assert "worker 1 " not in message
        assert "worker 3 " not in message
