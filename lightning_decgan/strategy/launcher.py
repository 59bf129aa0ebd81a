"""Starting workers by spawn or forkserver, for modules that torch refuses to pickle as well.

A parametrized layer (`torch.nn.utils.parametrizations.spectral_norm`) has a class of its own that cannot be pickled, so
plain `ddp_spawn` cannot train a GAN with spectral normalization. Here such layers are taken apart and put together
again on their way into the workers. Pickles go to child processes of this machine, never over a network.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch.nn.utils.parametrize as parametrize
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.nn import Module
from typing_extensions import override

__all__ = ["SpawnLauncher", "let_parametrized_layers_travel"]


class SpawnLauncher(_MultiProcessingLauncher):
    """Lightning's launcher, which also takes modules with parametrized layers to its workers."""

    @override
    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        for argument in (*args, getattr(trainer, "lightning_module", None)):
            if isinstance(argument, LightningModule):
                let_parametrized_layers_travel(argument)
        return super().launch(function, *args, trainer=trainer, **kwargs)


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
