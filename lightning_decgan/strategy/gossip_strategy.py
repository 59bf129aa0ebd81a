"""`DecentralizedGossipStrategy`: Lightning's grammar for neighbour gossip.

One method per phase of Lightning's life cycle, each of which says when something happens; what happens is in `gossip/`.
No mathematics here, and nothing that touches a socket. The way of a batch is `training_step` or `optimizer_step`, then
`_batch_has_stepped`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric_rank_zero_only
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_decgan.gossip import (
    Exchange,
    FlatBuffer,
    FlatVector,
    Gossiper,
    GossipEvent,
    GossipReport,
    GossipTotals,
    Neighborhood,
    OuterNesterov,
    describe_tensors,
    world,
)
from lightning_decgan.gossip.compression import Compression, build_compression
from lightning_decgan.strategy import resume
from lightning_decgan.strategy.assembly import Assembly, check_nccl_device, door_host
from lightning_decgan.strategy.checkpointing import ConsensusCheckpoints
from lightning_decgan.strategy.compat import choose_main_port, deal_validation_anew, disarm_world_broadcasts
from lightning_decgan.strategy.evaluation import Consensus
from lightning_decgan.strategy.exit_code import tell_loss
from lightning_decgan.strategy.launcher import ScriptLauncher, SpawnLauncher
from lightning_decgan.strategy.layout import Layout, gossiped_tensors
from lightning_decgan.strategy.settings import check_settings
from lightning_decgan.strategy.start import (
    check_finite,
    draw_own_random_numbers,
    init_loopback_group,
    stays_on_this_machine,
)
from lightning_decgan.strategy.takeover import agree_on_versions, take_over
from lightning_decgan.topology import PowerTopology, Topology, build_topology, merges_well, reknit

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["DecentralizedGossipStrategy"]

_T = TypeVar("_T")


class DecentralizedGossipStrategy(ConsensusCheckpoints):
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
        max_delay: steps that an overlapped exchange may be late before a step waits for it; `None`: no step ever waits.
        compression: what a swap carries: `None` (everything, in full precision), `"bfloat16"`, `"int8"`,
            `PowerGossip(rank)`, `RandomSubset(fraction)`, or an object of your own (`gossip.compression.Compression`).
        gossip_every: batches between gossips.
        outer: `OuterNesterov(lr, momentum)` puts an outer momentum step on what changed between two gossips.
        merge_rounds: swap once with the neighbourhood of W^t instead of t times with that of W; exact in both forms.
            `None` does so where it takes no more messages (a ring, for example).
        buffers: `"local"`, or `"average"` to gossip floating-point buffers (BatchNorm statistics) as well.
        evaluate: validate with the average of all workers, `"consensus"`, or with each worker's own model, `"local"`.
        seed: of random topologies; all workers draw the same without talking.
        timeout: deadline of one gossip round; a neighbour that misses it is given up (see `on_loss`).
        edges: `"gloo"` sends from host memory, where tensors of a GPU cross over on a stream of their own; `"nccl"`,
            with a GPU for each worker, sends from there.
        workers_per_device: workers that share each device of the Trainer, to try many workers on one GPU or CPU: with 4
            and `Trainer(accelerator="gpu", devices=1)` four workers train on one GPU.
        on_loss: `"continue"` without a worker or link that is lost, or `"raise"` an error that names it.
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin: as for `DDPStrategy`.
        process_group_backend: of the default group, which serves evaluation and users' own collectives.
        world_timeout: deadline of that group's collectives.
        start_method: `"popen"`, `"spawn"`, `"fork"` or `"forkserver"`.

    Raises:
        ValueError, TypeError: when made, or when the Trainer is made: a setting is not valid, or the topology does not
            exist for this number of workers. No process has been started by then.
        EdgeError: while training, when the others have given up this very worker, or, with `on_loss="raise"`, when a
            neighbour is lost.

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
        topology: Any = "one_peer_exponential",
        rounds: int = 1,
        overlap: bool = True,
        max_delay: int | None = 0,
        compression: str | Compression | None = None,
        gossip_every: int = 1,
        outer: OuterNesterov | None = None,
        merge_rounds: bool | None = None,
        buffers: Literal["local", "average"] = "local",
        evaluate: Literal["consensus", "local"] = "consensus",
        seed: int = 0,
        timeout: timedelta = timedelta(seconds=30),
        on_loss: Literal["continue", "raise"] = "continue",
        edges: Literal["gloo", "nccl"] = "gloo",
        workers_per_device: int = 1,
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
            max_delay=max_delay,
            gossip_every=gossip_every,
            outer=outer,
            merge_rounds=merge_rounds,
            on_loss=on_loss,
            edges=edges,
            workers_per_device=workers_per_device,
            buffers=buffers,
            evaluate=evaluate,
            seed=seed,
            timeout=timeout,
            world_timeout=world_timeout,
            start_method=start_method,
        )
        if workers_per_device > 1 and "nccl" in (edges, process_group_backend):
            name = "edges" if edges == "nccl" else "process_group_backend"
            raise ValueError(
                f"{name} must be 'gloo' with workers_per_device > 1, because NCCL refuses two workers on one GPU; found"
                " 'nccl'"
            )
        self.workers_per_device = workers_per_device  # before the devices, which it multiplies
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
        if max_delay != 0 and not overlap:
            raise ValueError(
                f"max_delay must be 0 with overlap=False, whose steps wait for their exchange; found {max_delay}"
            )
        self.rounds, self.overlap, self.gossip_every = rounds, overlap, gossip_every
        self.max_delay, self.outer, self.on_loss, self.merge_rounds = max_delay, outer, on_loss, merge_rounds
        self.compression, self.edges = build_compression(compression), edges
        if edges == "nccl" and compression is not None:
            raise ValueError(
                "compression must be None with edges='nccl': codecs work in host memory, and between GPUs that NCCL"
                f" joins bytes are cheap; found {compression!r}"
            )
        self.buffers, self.evaluate, self.seed = buffers, evaluate, seed
        self.gossip_timeout, self._world_timeout = timeout, world_timeout
        self.tamper: Callable[[FlatBuffer], None] | None = None
        """What a `FaultInjector` does to the snapshots that this worker publishes."""
        self._topology_spec = topology
        self._topology: Topology | None = None
        self._merges = False
        self._gossiper: Gossiper | None = None
        self._layout: Layout | None = None
        self._worker: int | None = None
        self._deal_validation_anew = False
        self._neighborhood: Neighborhood | None = None
        self._assembly: Assembly | None = None
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
    @override
    def worker(self) -> int:
        """This worker's number in gossip; it stays, while `global_rank` moves up when lower workers are lost."""
        return self.global_rank if self._worker is None else self._worker

    @property
    def events(self) -> list[GossipEvent]:
        """What this worker noticed of losses, rejected payloads and their mending; the first 1,000 of each kind."""
        return self._neighborhood.events.events if self._neighborhood else []

    @property
    def lost_workers(self) -> tuple[int, ...]:
        """The numbers of the workers that were lost while training."""
        return () if self._assembly is None else self._assembly.lost

    def gather_events(self) -> list[dict[str, Any]]:
        """Everybody's events in the order of their time, as plain values; every worker must call this."""
        everybodys = self._together(
            lambda: world.gather_bytes(json.dumps([vars(event) for event in self.events]).encode())
        )
        return sorted((event for one in everybodys for event in json.loads(one)), key=lambda event: event["time"])

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

    @property
    @override
    def parallel_devices(self) -> list[torch.device] | None:
        """The device of each worker of this machine; the Trainer sets it to those that it was given."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        self._parallel_devices = devices and [device for device in devices for _ in range(self.workers_per_device)]

    @override
    def _get_process_group_backend(self) -> str:
        # NCCL, which Lightning would take for GPUs, refuses two workers on one.
        return "gloo" if self.workers_per_device > 1 else super()._get_process_group_backend()

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
        merges = merges_well(self._topology, self.rounds) if self.merge_rounds is None else self.merge_rounds
        self._merges = merges and self.rounds > 1
        self._exchanged_topology()  # refuses a schedule that cannot be merged, as long as no process was started
        assert self.cluster_environment is not None
        choose_main_port(self.cluster_environment)
        if self._start_method == "popen":
            self._launcher = ScriptLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        else:
            self._launcher = SpawnLauncher(self, start_method=self._start_method)

    def _exchanged_topology(self) -> Topology:
        """Who swaps with whom in a round of an exchange: where t rounds are merged, the neighbourhood of W^t."""
        return PowerTopology(self.topology, self.rounds) if self._merges else self.topology

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
            self._worker = self.global_rank
            self._neighborhood = self._link_up()
            self._layout = Layout(module, self.buffers, self.edges == "nccl", self._make_exchange)
            self._gossiper = Gossiper(
                *self._layout.lay_out(self.optimizers),
                overlap=self.overlap,
                every=self.gossip_every,
                max_delay=self.max_delay,
            )

    def _link_up(self) -> Neighborhood:
        environment = self.cluster_environment
        assert environment is not None
        if self.world_size != self.topology.workers:  # an earlier fit of this process has lost workers
            assert self._assembly is not None
            self._topology = reknit(self.topology, self._assembly.members).rule
        topology = self._exchanged_topology()
        if self.world_size == 1:
            return Neighborhood(self.worker, topology, {}, on_loss=self.on_loss)
        local = stays_on_this_machine(environment, self.num_nodes)
        self._assembly = Assembly.link_up(
            self.worker,
            topology,
            door_host(environment.main_address, local),
            self.on_loss,
            timeout=self.gossip_timeout,
            world_timeout=self._world_timeout,
            backend=self._process_group_backend or "gloo",
            device=self.root_device,
            on_regroup=self._take_rank,
            nccl_device=check_nccl_device(self.edges, self.root_device),
        )
        self._survivors_go_on(self.on_loss == "continue")
        return self._assembly.neighborhood

    def _survivors_go_on(self, value: bool) -> None:
        """Tell the launcher, which by itself ends everybody when one worker fails."""
        if isinstance(self._launcher, ScriptLauncher | SpawnLauncher):
            self._launcher.survivors_go_on = value

    def _take_rank(self, rank: int) -> None:
        """The default group was made anew: Lightning has to know this worker by its rank there."""
        for decorator in (rank_zero_only, fabric_rank_zero_only):
            decorator.rank = rank  # type: ignore[attr-defined]
        assert self.lightning_module is not None
        self._deal_validation_anew = True
        if rank == 0 and self.worker != 0:
            assert self._assembly is not None
            self._assembly.events.once(
                "took_over", self._assembly.step, self.worker, "logs and checkpoints are mine now"
            )
            take_over(self.lightning_module.trainer)

    @property
    @override
    def global_rank(self) -> int:
        return super().global_rank if self._assembly is None else self._assembly.rank

    @property
    @override
    def world_size(self) -> int:
        return super().world_size if self._assembly is None else len(self._assembly.members)

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        # Of those who are there: data that is dealt out after a loss has no share for a lost worker.
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @override
    def on_train_start(self) -> None:
        assert self.lightning_module is not None
        agree_on_versions(self.lightning_module.trainer)
        if self._restored is not None:
            assert self._gossiper is not None
            assert self._layout is not None
            self._layout.follow(
                self.optimizers, self._gossiper
            )  # a callback may just have handed them what was unfrozen once
            self._gossiper.load_state_dict(self._restored["gossip"])

    # ---- the way of a batch ----

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().training_step(*args, **kwargs)
        assert self.lightning_module is not None
        if self._deal_validation_anew:  # not at the loss itself, which may be noticed in the midst of a validation
            deal_validation_anew(self.lightning_module.trainer)
            self._deal_validation_anew = False
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
        gossiper, layout = self._gossiper, self._layout
        if gossiper is None or layout is None:
            return
        layout.follow(self.optimizers, gossiper)
        gossiper.tamper = self.tamper
        gossiper.step()
        if self._assembly is not None:
            self._assembly.batch_has_stepped(gossiper.totals.steps)

    # ---- evaluation ----

    @override
    def on_validation_start(self) -> None:
        if self._is_fitting:
            assert self.lightning_module is not None
            self._random_state_before_evaluation = resume.get_random_state()
            if self.evaluate == "consensus":
                self._put_consensus_on()
            else:
                self._together(lambda: None)  # each evaluates its own model, but all have gossiped equally often

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
        if self._assembly is not None:
            self._assembly.part()
        if self.evaluate == "consensus":
            self._put_consensus_on()
        else:
            self._together(lambda: None)
        if self.lost_workers:
            tell_loss()

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

    # ---- rare, whole-world moments ----

    def leave(self) -> None:
        """Stop gossiping and tell the others that this worker leaves; they do not wait for it."""
        if self._assembly is not None:
            self._assembly.close()
        if self._gossiper is not None:
            self._gossiper.close()

    @override
    def _together(self, work: Callable[[], _T]) -> _T:
        if self._assembly is None or self._gossiper is None:
            return work()
        return self._assembly.together(self._gossiper, work)

    @override
    def broadcast(self, obj: _T, src: int = 0) -> _T:
        return self._together(lambda: world.broadcast_value(obj, src))

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self._together(partial(super().barrier, *args, **kwargs))

    @override
    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Tensor:
        # Of a copy each time: the sum is made in place, also by one that is cut short.
        reduce, is_tensor = super().reduce, isinstance(tensor, Tensor)
        return self._together(lambda: reduce(tensor.clone() if is_tensor else tensor, *args, **kwargs))

    @override
    def all_gather(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._together(partial(super().all_gather, *args, **kwargs))

    @override
    def teardown(self) -> None:
        self._survivors_go_on(False)
        self.leave()
        self._restored = None
        super().teardown()

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        """The names are registered by `autoload`, which also works without an import in the user's code."""

    # ---- what gossips ----

    @property
    @override
    def _tidies_up(self) -> bool:
        if self._assembly is None:
            return self.local_rank == 0
        node = range(self.node_rank * self.num_processes, (self.node_rank + 1) * self.num_processes)
        return self.worker == min(member for member in self._assembly.members if member in node)

    @property
    @override
    def _is_fitting(self) -> bool:
        return self.lightning_module is not None and self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def _make_exchange(self, vector: FlatVector) -> Exchange:
        assert self._neighborhood is not None
        return Exchange(
            vector,
            self._neighborhood,
            1 if self._merges else self.rounds,
            self.gossip_timeout,
            self.compression,
            self.outer,
            self.seed,
        )

    def _description(self) -> list[str]:
        """What has to be the same on all workers, as lines of text."""
        assert self.lightning_module is not None
        module = self.lightning_module
        return [
            *describe_tensors(module.named_parameters(), "parameter"),
            *describe_tensors(module.named_buffers(), "buffer"),
            *(f"gossips {name}" for name in gossiped_tensors(module, self.optimizers, self.buffers)),
            f"topology: {self.topology.describe()}, exchanged: {self._exchanged_topology().describe()}",
            f"rounds: {self.rounds}, overlap: {self.overlap}, gossip_every: {self.gossip_every}, edges: {self.edges}",
            f"max_delay: {self.max_delay}, compression: {self.compression}, outer: {self.outer}",
            f"on_loss: {self.on_loss}, seed: {self.seed}",
            f"buffers: {self.buffers}, evaluate: {self.evaluate}",
        ]
