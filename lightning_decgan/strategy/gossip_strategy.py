"""`DecentralizedGossipStrategy`: Lightning's grammar for neighbour gossip.

One method per phase of Lightning's life cycle, each of which says when something happens; what happens is in `gossip/`.
No mathematics here, and nothing that touches a socket. The way of a batch is `training_step` or `optimizer_step`, then
`_batch_has_stepped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_decgan.gossip import (
    Edge,
    Exchange,
    FlatVector,
    Gossiper,
    GossipReport,
    GossipTotals,
    connect_edges,
    describe_tensors,
    world,
)
from lightning_decgan.strategy import checkpoint as checkpoints
from lightning_decgan.strategy import resume
from lightning_decgan.strategy.compat import choose_main_port, disarm_world_broadcasts
from lightning_decgan.strategy.evaluation import Consensus, copy_state_dict
from lightning_decgan.strategy.launcher import SpawnLauncher
from lightning_decgan.strategy.layout import gossiped_tensors, gossiped_vector
from lightning_decgan.strategy.settings import check_settings
from lightning_decgan.strategy.start import (
    check_finite,
    draw_own_random_numbers,
    init_loopback_group,
    stays_on_this_machine,
)
from lightning_decgan.topology import Topology, build_topology

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["DecentralizedGossipStrategy"]

_T = TypeVar("_T")
# Connecting an edge has been seen to take 5 s on an idle machine, so a short gossip deadline does not apply to it.
_CONNECT_TIMEOUT = timedelta(seconds=30)


class DecentralizedGossipStrategy(DDPStrategy):
    r"""Trains any LightningModule decentralized: neighbour gossip of parameters instead of an all-reduce of gradients.

    Every worker keeps its own copy of the model and trains on its own shard of the data. When a batch has stepped,
    worker i swaps a snapshot of its parameters with its neighbours and moves towards them, :math:`x_i \leftarrow \sum_j
    W_{ij} x_j`, with a doubly stochastic mixing matrix W, t rounds an iteration. With the optimizers of
    `lightning_decgan.optim` this is DPOSG; with any other it is decentralized SGD. Between two evaluations a worker
    talks to its neighbours only. Workers start from worker 0's weights and draw different random numbers.

    Args:
        topology: who talks to whom: a name (`"ring"`, `"exponential"`, `"one_peer_exponential"`, `"random_matching"`,
            `"random_ring"`, `"torus"`, `"hypercube"`, `"complete"`), a `Topology`, a callable that takes the number of
            workers, a `networkx.Graph` on the nodes 0 to N - 1, or a symmetric doubly stochastic (N, N) matrix.
        rounds: t, gossip rounds per gossip.
        overlap: let the exchange run while the next batch is computed. `False` is the paper's exact order.
        gossip_every: batches between gossips.
        buffers: `"local"`, or `"average"` to gossip floating-point buffers (BatchNorm statistics) as well.
        evaluate: validate with the average of all workers, `"consensus"`, or with each worker's own model, `"local"`.
        seed: of random topologies; all workers draw the same without talking.
        timeout: deadline of one gossip round; a neighbour that misses it ends the run with an error naming the edge.
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin: as for `DDPStrategy`.
        process_group_backend: of the default group, which serves evaluation and users' own collectives.
        world_timeout: deadline of that group's collectives.
        start_method: `"popen"`, `"spawn"`, `"fork"` or `"forkserver"`.

    Raises:
        ValueError, TypeError: when made, or when the Trainer is made: a setting is not valid, or the topology does not
            exist for this number of workers. No process has been started by then.
        EdgeError: while training, when a neighbour cannot be reached or does not answer before the deadline.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> strategy = DecentralizedGossipStrategy(topology="complete", rounds=2)
        >>> trainer = Trainer(strategy=strategy, accelerator="cpu", devices=4, logger=False, barebones=True)
        >>> trainer.strategy.topology.workers
        4

    Source: Liu et al., "A Decentralized Parallel Algorithm for Training Generative Adversarial Nets", NeurIPS 2020,
    arXiv:1910.12999; the choices that are ours are listed in docs/algorithm.md.
    """

    strategy_name = "decentralized_gossip"

    def __init__(
        self,
        topology: Any = "ring",
        rounds: int = 1,
        overlap: bool = True,
        gossip_every: int = 1,
        buffers: Literal["local", "average"] = "local",
        evaluate: Literal["consensus", "local"] = "consensus",
        seed: int = 0,
        timeout: timedelta = timedelta(seconds=30),
        *,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        world_timeout: timedelta = default_pg_timeout,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
    ) -> None:
        check_settings(
            rounds=rounds,
            overlap=overlap,
            gossip_every=gossip_every,
            buffers=buffers,
            evaluate=evaluate,
            seed=seed,
            timeout=timeout,
            world_timeout=world_timeout,
            start_method=start_method,
        )
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=world_timeout,
            start_method=start_method,
        )
        self.rounds, self.overlap, self.gossip_every = rounds, overlap, gossip_every
        self.buffers, self.evaluate, self.seed = buffers, evaluate, seed
        self.gossip_timeout, self._world_timeout = timeout, world_timeout
        self.measure_neighbor_distance_every_steps = 0
        self._topology_spec = topology
        self._topology: Topology | None = None
        self._gossiper: Gossiper | None = None
        self._gossiped: list[int] = []
        self._edges: Mapping[int, Edge] = {}
        self._has_fitted = False
        self._consensus = Consensus()
        self._data_order: resume.DataOrder | None = None  # made where training is set up: it is not picklable
        self._restored: dict[str, Any] | None = None
        self._dumped: dict[str, Any] | None = None
        self._random_state_before_evaluation: dict[str, Any] | None = None

    # ---- what monitors read ----

    @property
    def topology(self) -> Topology:
        """The topology of this run's workers; it exists as soon as a Trainer has been made."""
        if self._topology is None:
            raise RuntimeError("the topology is bound to a number of workers when the strategy is given to a Trainer")
        return self._topology

    @property
    def last_report(self) -> GossipReport | None:
        """What the last finished gossip of this worker cost and saw."""
        return self._gossiper.last_report if self._gossiper else None

    @property
    def totals(self) -> GossipTotals:
        """Sums over this worker's finished gossips."""
        return self._gossiper.totals if self._gossiper else GossipTotals()

    @property
    def consensus_distance(self) -> float | None:
        """`sqrt(mean_i |x_i - x_mean|^2)` when the average was last taken."""
        return self._consensus.distance

    @property
    def relative_consensus_distance(self) -> float | None:
        """The consensus distance divided by the norm of the average."""
        return self._consensus.relative_distance

    # ---- before any process ----

    @override
    def _configure_launcher(self) -> None:
        # Lightning calls this at the end of Trainer's construction: the first moment at which N is known, the last at
        # which no process and no process group exists.
        if self._layer_sync is not None:
            raise ValueError(
                "Trainer(sync_batchnorm=True) is not possible with decentralized gossip: it needs a world collective in"
                " every forward, and workers do not move in step. Leave it out; DecentralizedGossipStrategy("
                "buffers='average') gossips the running statistics."
            )
        workers = self.num_nodes * self.num_processes
        self._topology = build_topology(self._topology_spec, workers, seed=self.seed, rounds=self.rounds)
        assert self.cluster_environment is not None
        choose_main_port(self.cluster_environment)
        if self._start_method in ("spawn", "forkserver"):
            self._launcher = SpawnLauncher(self, start_method=self._start_method)
        else:
            super()._configure_launcher()

    # ---- start ----

    @override
    def setup_environment(self) -> None:
        assert self.lightning_module is not None
        check_finite(self.lightning_module)
        disarm_world_broadcasts(self.lightning_module.trainer)
        super().setup_environment()

    @override
    def setup_distributed(self) -> None:
        environment = self.cluster_environment
        assert environment is not None
        if not stays_on_this_machine(environment, self.num_nodes):
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._process_group_backend = self._get_process_group_backend()
        init_loopback_group(environment, self._process_group_backend, self._world_timeout, self.root_device)

    @override
    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        fitting = trainer.state.fn == TrainerFn.FITTING
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if fitting:
            self.setup_optimizers(trainer)
        world.compare_workers(self._description())
        module = self.lightning_module
        assert module is not None
        if fitting or self.evaluate == "consensus" or not self._has_fitted:
            tensors = [*module.parameters(), *module.buffers()]
            if self._restored is not None:  # every worker has its own values back; the rest is worker 0's all the same
                restored = {id(value) for value in module.state_dict(keep_vars=True).values()}
                tensors = [tensor for tensor in tensors if id(tensor) not in restored]
            world.broadcast_from_zero(tensors)
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)
            draw_own_random_numbers(self.global_rank)
            progress = trainer.fit_loop.epoch_loop.batch_progress
            self._data_order = resume.DataOrder(lambda: progress.current.ready)
            if self._restored is not None:
                self._data_order.load_state_dict(self._restored["data_order"])
            self._has_fitted = True
            self._consensus = Consensus()
            timeout = max(self.gossip_timeout, _CONNECT_TIMEOUT)
            neighbors = self.topology.links(self.global_rank)
            self._edges = connect_edges(self.global_rank, self.world_size, neighbors, timeout)
            vector, exchange = self._layout()
            self._gossiper = Gossiper(vector, exchange, overlap=self.overlap, every=self.gossip_every)

    @override
    def on_train_start(self) -> None:
        if self._restored is not None:
            assert self._gossiper is not None
            self._follow_optimizers(self._gossiper)  # a callback may just have handed them what was unfrozen once
            self._gossiper.load_state_dict(self._restored["gossip"])

    # ---- the way of a batch ----

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().training_step(*args, **kwargs)
        assert self.lightning_module is not None
        # Manual optimization: all optimizers of the batch have stepped by now, however many there are.
        if not self.lightning_module.automatic_optimization:
            self._batch_has_stepped()
        return output

    @override
    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,
        **kwargs: Any,
    ) -> Any:
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        assert self.lightning_module is not None
        # Automatic optimization: the training step ran inside this call's closure. Also when a scaler skipped the step:
        # the neighbours do not know of it and wait.
        if self.lightning_module.automatic_optimization:
            self._batch_has_stepped()
        return output

    def _batch_has_stepped(self) -> None:
        gossiper = self._gossiper
        if gossiper is None:
            return
        self._follow_optimizers(gossiper)
        gossiper.measure_distance_every = self.measure_neighbor_distance_every_steps
        gossiper.step()

    # ---- evaluation ----

    @override
    def on_validation_start(self) -> None:
        if self._is_fitting:
            assert self.lightning_module is not None
            self._random_state_before_evaluation = resume.get_random_state()
            if self._gossiper is not None:
                self._gossiper.settle()  # an error that ends the run names its edge here, before the world waits
            if self.evaluate == "consensus":
                self._consensus.put_on(self.lightning_module)

    @override
    def on_validation_end(self) -> None:
        if self._is_fitting:
            self._consensus.take_off()
            if self._random_state_before_evaluation is not None:
                resume.set_random_state(self._random_state_before_evaluation)
                self._random_state_before_evaluation = None

    @override
    def on_train_end(self) -> None:
        assert self.lightning_module is not None
        if self._gossiper is not None:
            self._gossiper.settle()
        if self.evaluate == "consensus":
            self._consensus.put_on(self.lightning_module)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        if self._is_fitting and isinstance(dataloader, DataLoader):
            assert self.lightning_module is not None
            trainer = self.lightning_module.trainer
            if not trainer.training:
                resume.keep_random_state(dataloader)
            elif self._data_order is not None:
                self._data_order.follow(dataloader)
        return dataloader

    # ---- checkpoints ----

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self._gossiper is None:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        if self.lightning_module.trainer.interrupted and self.world_size > 1:
            # An error on one worker: a collective would wait for workers that are somewhere else, or gone.
            raise checkpoints.CheckpointError("no checkpoint can be taken after an error: the workers have parted")
        self._gossiper.settle()
        with self._consensus.worn(self.lightning_module):
            self._dumped = copy_state_dict(self.lightning_module)
        return self._dumped

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        manifest = None
        if self._gossiper is not None and "optimizer_states" in checkpoint:
            manifest = checkpoints.write_shards(
                filepath, self.global_rank, lambda: self._shard(checkpoint), checkpoint["state_dict"]
            )
            checkpoint[checkpoints.MANIFEST_KEY] = manifest
        super().save_checkpoint(checkpoint, filepath, storage_options)
        if manifest is not None:
            self.barrier("the new checkpoint is there: the shards of an older one of this name may go")
            if self.local_rank == 0:
                checkpoints.remove_shards(filepath, keep=manifest)
        self._dumped = None

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        with checkpoints.nothing_unpickled(checkpoint_path):
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only=True)
        manifest = checkpoints.verify(checkpoint_path, checkpoint)
        self._restored = None
        if manifest is None or not self._is_fitting:
            return checkpoint
        if manifest["workers"] != self.world_size:
            rank_zero_info(
                f"The checkpoint was saved by {manifest['workers']} workers and is resumed by {self.world_size}: all"
                " start from its consensus, with worker 0's optimizer state."
            )
            return checkpoint
        shard = checkpoints.read_shard(checkpoint_path, manifest, self.global_rank)
        self._restored = shard
        return checkpoint | shard["checkpoint"]

    @override
    def remove_checkpoint(self, filepath: str | Path) -> None:
        super().remove_checkpoint(filepath)
        if self.local_rank == 0:
            checkpoints.remove_shards(filepath)

    def _shard(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What this worker, and no other, needs to go on."""
        assert self.lightning_module is not None
        assert self._gossiper is not None
        assert self._data_order is not None
        with self._consensus.lifted():
            own = copy_state_dict(self.lightning_module)
        # What Lightning, callbacks and user code put into this worker's copy of the checkpoint is this worker's own;
        # only the weights, wherever a callback has moved them to, are the consensus and become the worker's.
        kept = {key: own if value is self._dumped else value for key, value in checkpoint.items()}
        if not any(value is own for value in kept.values()):  # user code has put a selection of the weights there
            kept["state_dict"] = {name: own.get(name, value) for name, value in checkpoint["state_dict"].items()}
        return {
            "worker": self.global_rank,
            "checkpoint": kept,
            "gossip": self._gossiper.state_dict(),
            "data_order": self._data_order.state_dict(self._random_state_before_evaluation),
        }

    # ---- rare, whole-world moments ----

    @override
    def broadcast(self, obj: _T, src: int = 0) -> _T:
        return world.broadcast_value(obj, src)

    @override
    def teardown(self) -> None:
        if self._gossiper is not None:
            self._gossiper.close()
        self._edges = {}
        self._restored = None
        super().teardown()

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        """The names are registered by `autoload`, which also works without an import in the user's code."""

    # ---- what gossips ----

    @property
    def _is_fitting(self) -> bool:
        return self.lightning_module is not None and self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def _follow_optimizers(self, gossiper: Gossiper) -> None:
        """Gossip what the optimizers and the module hold now: callbacks unfreeze, user code rebinds buffers."""
        if self._signature() == self._gossiped:
            return
        assert self.lightning_module is not None
        named = gossiped_tensors(self.lightning_module, self.optimizers, self.buffers)
        if describe_tensors(named.items(), "tensor") == list(gossiper.vector.layout):
            gossiper.vector.rebind(list(named.values()))
            self._gossiped = self._signature()
        else:
            gossiper.relayout(*self._layout())

    def _signature(self) -> list[int]:
        """Which tensors gossip, cheaply enough to ask after every batch."""
        held = [id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        if self.buffers == "average":
            assert self.lightning_module is not None
            held += [id(buffer) for buffer in self.lightning_module.buffers()]
        return held

    def _layout(self) -> tuple[FlatVector, Exchange]:
        assert self.lightning_module is not None
        self._gossiped = self._signature()
        vector = gossiped_vector(
            gossiped_tensors(self.lightning_module, self.optimizers, self.buffers), self.optimizers
        )
        exchange = Exchange(vector, self.topology, self._edges, self.global_rank, self.rounds, self.gossip_timeout)
        return vector, exchange

    def _description(self) -> list[str]:
        """What has to be the same on all workers, as lines of text."""
        assert self.lightning_module is not None
        module = self.lightning_module
        return [
            *describe_tensors(module.named_parameters(), "parameter"),
            *describe_tensors(module.named_buffers(), "buffer"),
            *(f"gossips {name}" for name in gossiped_tensors(module, self.optimizers, self.buffers)),
            f"topology: {self.topology.describe()}",
            f"rounds: {self.rounds}, overlap: {self.overlap}, gossip_every: {self.gossip_every}",
            f"buffers: {self.buffers}, evaluate: {self.evaluate}",
        ]
