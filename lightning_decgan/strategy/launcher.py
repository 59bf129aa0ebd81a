"""Starting workers, as scripts or as spawned processes, in such a way that survivors outlive one that dies.

`ScriptLauncher` and `SpawnLauncher` are Lightning's, but for who is ended when a worker died (`children.py`). A spawned
worker also gets modules that torch refuses to pickle: a parametrized layer
(`torch.nn.utils.parametrizations.spectral_norm`) has a class of its own that cannot be pickled, so plain `ddp_spawn`
cannot train a GAN with spectral normalization. Here such layers are taken apart and put together again on their way
into the workers. Pickles go to child processes of this machine, never over a network.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, MutableSequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import torch.multiprocessing as mp
import torch.nn.utils.parametrize as parametrize
from lightning.fabric.strategies.launchers.multiprocessing import (
    _check_bad_cuda_fork,
    _check_missing_main_guard,
    _disable_module_memory_sharing,
)
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import (
    _GlobalStateSnapshot,
    _MultiProcessingLauncher,
    _WorkerOutput,
)
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import Module
from typing_extensions import override

from lightning_decgan.strategy.children import ChildObserver, SpawnedWorkers, bring_home, end_after_parent

__all__ = ["ScriptLauncher", "SpawnLauncher", "let_parametrized_layers_travel"]

log = logging.getLogger(__name__)


class ScriptLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of a script's other processes, which lets them live on when one of them died in training."""

    _observer: ChildObserver | None = None

    @property
    def survivors_go_on(self) -> bool:
        """Whether a child that fails ends nobody but itself: the strategy sets it while training goes on.

        Only the process that started the others has somebody to end; setting it elsewhere does nothing.
        """
        return self._observer is not None and self._observer.survivors_go_on

    @survivors_go_on.setter
    def survivors_go_on(self, value: bool) -> None:
        if self._observer is not None:
            self._observer.survivors_go_on = value

    @property
    def lost_children(self) -> dict[int, int]:
        """Exit codes (negative: signals) of the children that died in training, by local rank."""
        return {} if self._observer is None else dict(self._observer.lost)

    @override
    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            self._observer = ChildObserver(self.procs)
            self._observer.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except Exception:
            if self.survivors_go_on and trainer is not None:
                self._see_the_survivors_through(trainer)
            raise

    def _see_the_survivors_through(self, trainer: Trainer) -> None:
        """This process has failed in training; the shell that waits for it should wait for those who go on."""
        assert self._observer is not None
        log.exception("The main worker failed. The others go on without it, and this process waits for them to end.")
        leave = getattr(trainer.strategy, "leave", None)
        if leave is not None:
            leave()
        self._observer.join()


class SpawnLauncher(_MultiProcessingLauncher):
    """Lightning's launcher, whose workers live on when one died in training, and get parametrized layers too.

    Args:
        strategy: whose workers are started. What it has as `lost_workers`, the numbers of the workers that are gone for
            good, tells this process at the end for which it need not wait.
        start_method: `"spawn"`, `"fork"` or `"forkserver"`.

    Attributes:
        lost_children: in the process that started them, the exit codes (negative: signals) of the workers that died in
            training, by local rank.
    """

    _strategy: DDPStrategy

    def __init__(self, strategy: DDPStrategy, start_method: Literal["spawn", "fork", "forkserver"] = "spawn") -> None:
        super().__init__(strategy, start_method)
        self.lost_children: dict[int, int] = {}
        self._in_training: MutableSequence[int] | None = None  # shared by all processes, one entry a worker
        self._place: int | None = None  # of this worker in it

    @property
    def survivors_go_on(self) -> bool:
        """Whether this worker's failure ends nobody but itself: the strategy sets it while training goes on."""
        return self._in_training is not None and self._place is not None and bool(self._in_training[self._place])

    @survivors_go_on.setter
    def survivors_go_on(self, value: bool) -> None:
        if self._in_training is not None and self._place is not None:
            self._in_training[self._place] = value

    @override
    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        for argument in (*args, getattr(trainer, "lightning_module", None)):
            if isinstance(argument, LightningModule):
                let_parametrized_layers_travel(argument)
        self._check_can_launch(trainer)
        assert self._strategy.cluster_environment is not None
        # The workers meet at a port that is chosen here, once for all of them.
        os.environ["MASTER_PORT"] = str(self._strategy.cluster_environment.main_port)
        output = self._run_workers([trainer, function, args, kwargs])
        if trainer is None:
            return output
        self._already_fit |= trainer.state.fn == TrainerFn.FITTING
        self._recover_results_in_main_process(output, trainer)
        return output.trainer_results

    def _check_can_launch(self, trainer: Trainer | None) -> None:
        if self._start_method in ("fork", "forkserver"):
            _check_bad_cuda_fork()
        if self._start_method == "spawn":
            _check_missing_main_guard()
        if self._already_fit and trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            raise NotImplementedError(
                "trainer.fit() must be called once on a Trainer that spawns its workers, found a second call; a new"
                " Trainer with fit(ckpt_path=...) goes on where this one ended"
            )

    def _run_workers(self, arguments: list[Any]) -> Any:
        count = self._strategy.num_processes
        context = mp.get_context(self._start_method)
        pipes = [context.Pipe() for _ in range(count)]
        here, there = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
        global_states = _GlobalStateSnapshot.capture() if self._start_method == "spawn" else None
        self._in_training = context.RawArray("b", count)
        try:
            started = mp.start_processes(
                self._work,
                args=[*arguments, here, there, global_states],
                nprocs=count,
                start_method=self._start_method,
                join=False,
            )
            self.procs = started.processes
            for end in there:
                end.close()
            workers = SpawnedWorkers(started, here, self._in_training)
            self.lost_children = workers.lost
            return workers.wait()
        finally:
            self._in_training = None
            for end in here:  # whoever waits for an order waits no longer, also when this process was interrupted
                end.close()

    def _work(
        self,
        place: int,
        trainer: Trainer | None,
        function: Callable,
        args: Any,
        kwargs: Any,
        parents_ends: list[Connection],
        workers_ends: list[Connection],
        global_states: _GlobalStateSnapshot | None,
    ) -> None:
        """What a worker does from its first moment to its last."""
        self._place = place
        end_after_parent()
        # The parent hears that a pipe has ended only when nobody else holds it.
        for pipe in (*parents_ends, *workers_ends[:place], *workers_ends[place + 1 :]):
            pipe.close()
        if global_states is not None:
            global_states.restore()
        if self._start_method == "spawn" and isinstance(self._strategy.accelerator, CPUAccelerator):
            args, kwargs = _disable_module_memory_sharing((args, kwargs))
        _set_num_threads_if_needed(num_processes=self._strategy.num_processes)
        os.environ["LOCAL_RANK"] = str(place)
        try:
            results = function(*args, **kwargs)
        except Exception:
            if self.survivors_go_on:
                log.exception("The worker with local rank %d failed.", place)
            raise
        bring_home(workers_ends[place], self._given_up(), lambda: self._deliverable(trainer, results))

    def _given_up(self) -> set[int]:
        """Local ranks of the workers that the strategy has lost, of those that this launcher started."""
        first = self._strategy.node_rank * self._strategy.num_processes
        lost = getattr(self._strategy, "lost_workers", ())
        return {worker - first for worker in lost} & set(range(self._strategy.num_processes))

    def _deliverable(self, trainer: Trainer | None, results: Any) -> Any:
        if trainer is None:
            return move_data_to_device(results, "cpu")
        checkpoint_callback = trainer.checkpoint_callback
        weights_path = None
        if trainer.state.fn == TrainerFn.FITTING:
            assert trainer.lightning_module is not None
            weights_path = os.path.join(tempfile.mkdtemp(), ".temp.ckpt")
            self._strategy.checkpoint_io.save_checkpoint(trainer.lightning_module.state_dict(), weights_path)
        return _WorkerOutput(
            getattr(checkpoint_callback, "best_model_path", None),
            weights_path,
            trainer.state,
            move_data_to_device(results, "cpu"),
            self.get_extra_results(trainer),
        )


def let_parametrized_layers_travel(module: Module) -> None:
    """Teach multiprocessing how to send the module's parametrized layers to a child process.

    Example:
        >>> import torch
        >>> layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 2))
        >>> let_parametrized_layers_travel(layer)
        >>> ForkingPickler.dumps(layer).nbytes > 0
        True
    """
    for layer in module.modules():
        if parametrize.is_parametrized(layer):
            ForkingPickler.register(type(layer), _take_apart)


def _take_apart(layer: Module) -> tuple[Callable, tuple[type[Module], dict[str, Any]]]:
    return _put_together, (parametrize.type_before_parametrizations(layer), vars(layer))


def _put_together(cls: type[Module], state: dict[str, Any]) -> Module:
    layer = cls.__new__(cls)
    layer.__dict__.update(state)
    # What register_parametrization did to the class; the parametrizations themselves came with the state.
    parametrize._inject_new_class(layer)
    for name in layer.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(layer, name)
    return layer
