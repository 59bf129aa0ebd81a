"""Bad settings are refused when the strategy or the Trainer is made, before any process or process group."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import StrategyRegistry

from lightning_decgan.strategy import DecentralizedGossipStrategy
from lightning_decgan.strategy import gossip_strategy as strategy_module
from lightning_decgan.strategy.assembly import door_host
from lightning_decgan.topology import Ring, Topology


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    yield
    assert not dist.is_initialized()


def _trainer(devices: int = 4, strategy: Any = None, **settings: Any) -> Trainer:
    if strategy is None:
        strategy = DecentralizedGossipStrategy(**settings)
    return Trainer(strategy=strategy, accelerator="cpu", devices=devices, barebones=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rounds": 0}, ValueError, "rounds must be an integer >= 1, found 0"),
        ({"rounds": -2}, ValueError, "rounds must be an integer >= 1, found -2"),
        ({"rounds": True}, TypeError, "rounds must be an integer >= 1, found True"),
        ({"rounds": 1.5}, TypeError, "rounds must be an integer >= 1, found 1.5"),
        ({"rounds": "2"}, TypeError, "rounds must be an integer >= 1, found '2'"),
        ({"gossip_every": -1}, ValueError, "gossip_every must be an integer >= 1, found -1"),
        ({"gossip_every": 0}, ValueError, "gossip_every must be an integer >= 1, found 0"),
        ({"gossip_every": None}, TypeError, "gossip_every must be an integer >= 1, found None"),
        ({"workers_per_device": 0}, ValueError, "workers_per_device must be an integer >= 1, found 0"),
        ({"workers_per_device": 2, "edges": "nccl"}, ValueError, "edges must be 'gloo' with workers_per_device > 1"),
        (
            {"workers_per_device": 2, "process_group_backend": "nccl"},
            ValueError,
            "process_group_backend must be 'gloo'",
        ),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, found -1"),
        ({"seed": 0.5}, TypeError, "seed must be an integer >= 0, found 0.5"),
        ({"buffers": "x"}, ValueError, "buffers must be 'local' or 'average', found 'x'"),
        ({"buffers": None}, ValueError, "buffers must be 'local' or 'average', found None"),
        ({"evaluate": "x"}, ValueError, "evaluate must be 'consensus' or 'local', found 'x'"),
        ({"overlap": "yes"}, TypeError, "overlap must be True or False, found 'yes'"),
        ({"overlap": 1}, TypeError, "overlap must be True or False, found 1"),
        ({"timeout": 3}, TypeError, "timeout must be a datetime.timedelta such as"),
        ({"timeout": timedelta(0)}, ValueError, "timeout must be longer than zero, found 0:00:00"),
        ({"timeout": timedelta(seconds=-5)}, ValueError, "timeout must be longer than zero"),
        ({"world_timeout": 3}, TypeError, "world_timeout must be a datetime.timedelta such as"),
        ({"start_method": "thread"}, ValueError, "start_method must be 'popen' or 'spawn' or 'fork' or 'forkserver'"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_what_was_found_and_what_would_be_valid(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        DecentralizedGossipStrategy(**settings)
    assert str(caught.value).startswith(message)


def test_workers_share_devices_and_the_topology_is_of_all_of_them() -> None:
    strategy = DecentralizedGossipStrategy("ring", workers_per_device=3)
    trainer = _trainer(2, strategy)
    assert trainer.strategy.topology.workers == trainer.num_devices == 6
    assert strategy._get_process_group_backend() == "gloo"


def test_an_argument_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="topologie"):
        DecentralizedGossipStrategy(topologie="ring")  # type: ignore[call-arg]


_NAN = np.full((4, 4), 0.25)
_NAN[1, 2] = np.nan
_LOPSIDED = np.full((4, 4), 0.25)
_LOPSIDED[0] = [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("topology", "devices", "message"),
    [
        ("rign", 4, "found 'rign'; did you mean 'ring'?"),
        ("hypercube", 6, "workers must be a power of two for a hypercube, found 6; the nearest are 4 and 8"),
        (np.full((3, 3), 1 / 3), 4, "matrix must have one row and one column for each of 4 workers, found (3, 3)"),
        (np.full((4, 4), 0.3), 4, "matrix must have rows that sum to 1, found row 0 with the sum 1.2"),
        (_LOPSIDED, 4, "matrix must be symmetric, found [0, 1] = 0.5 and [1, 0] = 0.25"),
        (_NAN, 4, "matrix must have finite entries, found nan at [1, 2]"),
        (np.kron(np.eye(2), np.full((2, 2), 0.5)), 4, "matrix must be connected, found 2 components: {0, 1}, {2, 3}"),
        (np.array([[1.2, -0.2], [-0.2, 1.2]]), 2, "matrix must not have negative entries, found -0.2 at [0, 1]"),
        (nx.Graph([(0, 1), (2, 3)]), 4, "graph must be connected, found 2 components: {0, 1}, {2, 3}"),
        (
            nx.relabel_nodes(nx.path_graph(4), {0: "a"}),
            4,
            "graph must have the nodes 0..3, one a worker",
        ),
        (nx.cycle_graph(5), 4, "topology must be for 4 workers, as many as take part, found graph of 5"),
        (Ring(5), 4, "topology must be for 4 workers, as many as take part, found ring of 5"),
    ],
    ids=[
        "unknown name",
        "hypercube of 6",
        "wrong size",
        "row sums",
        "asymmetric",
        "NaN",
        "disconnected matrix",
        "negative",
        "disconnected graph",
        "node names",
        "graph of 5",
        "ring of 5",
    ],
)
def test_a_topology_that_gossip_cannot_use_is_refused_when_the_trainer_is_made(
    topology: Any, devices: int, message: str
) -> None:
    strategy = DecentralizedGossipStrategy(topology=topology)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        _trainer(devices, strategy)
    assert message in str(caught.value)


@pytest.mark.parametrize("topology", [3, None, lambda workers: "ring"], ids=["number", "None", "callable"])
def test_what_describes_no_topology_is_refused_by_its_type(topology: Any) -> None:
    strategy = DecentralizedGossipStrategy(topology=topology)
    with pytest.raises(TypeError, match="topology must"):
        _trainer(4, strategy)


def test_synchronized_batchnorm_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"sync_batchnorm=True.*world collective in every forward.*buffers='average'"):
        Trainer(strategy="decentralized_gossip", accelerator="cpu", devices=2, sync_batchnorm=True, logger=False)


@pytest.mark.parametrize(
    ("topology", "name"),
    [
        ("exponential", "exponential"),
        (Ring, "ring"),
        (lambda workers: Ring(workers), "ring"),
        (nx.complete_graph(4), "graph"),
        (np.full((4, 4), 0.25), "matrix"),
        (Ring(4), "ring"),
    ],
    ids=["name", "class", "callable", "graph", "matrix", "topology"],
)
def test_a_topology_is_bound_to_the_trainers_workers(topology: Any, name: str) -> None:
    strategy = _trainer(4, topology=topology).strategy
    assert isinstance(strategy.topology, Topology)
    assert (strategy.topology.name, strategy.topology.workers) == (name, 4)


def test_the_workers_of_all_nodes_count() -> None:
    strategy = DecentralizedGossipStrategy()
    Trainer(strategy=strategy, accelerator="cpu", devices=3, num_nodes=2, barebones=True)
    assert strategy.topology.workers == 6


def test_before_a_trainer_exists_there_is_no_topology_and_nothing_was_measured() -> None:
    strategy = DecentralizedGossipStrategy()
    with pytest.raises(RuntimeError, match="when the strategy is given to a Trainer"):
        _ = strategy.topology
    assert strategy.last_report is None
    assert strategy.consensus_distance is None
    assert strategy.relative_consensus_distance is None
    assert vars(strategy.totals) == dict.fromkeys(vars(strategy.totals), 0)


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("decentralized_gossip", "ScriptLauncher"),
        ("decentralized_gossip_spawn", "SpawnLauncher"),
        ("decentralized_gossip_fork", "SpawnLauncher"),
        ("decentralized_gossip_notebook", "SpawnLauncher"),
    ],
)
def test_a_trainer_can_be_made_with_every_registered_name(name: str, launcher: str) -> None:
    trainer = _trainer(2, name)
    assert isinstance(trainer.strategy, DecentralizedGossipStrategy)
    assert type(trainer.strategy.launcher).__name__ == launcher
    assert trainer.strategy.topology.name == "one_peer_exponential"
    assert name in StrategyRegistry


def test_every_worker_gets_a_shard_of_its_own() -> None:
    strategy = _trainer(4).strategy
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 4, "rank": 0}
    assert strategy.handles_gradient_accumulation is False


def test_the_strategy_says_nothing_of_gradients_to_a_ddp_wrapper() -> None:
    assert "DistributedDataParallel" not in vars(strategy_module)


def test_a_name_under_which_a_machine_means_only_itself_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Debian's /etc/hosts gives a machine's own name the address 127.0.1.1."""
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda probe, address: connect(probe, ("127.0.0.1", address[1])))
    assert door_host("node-0", on_one_machine=False) == "127.0.0.1"
    assert "'node-0' means 127.0.0.1 on this machine" in caplog.text
    caplog.clear()
    assert door_host("127.0.0.1", on_one_machine=False) == "127.0.0.1"
    assert caplog.text == ""
