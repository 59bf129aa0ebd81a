"""Makes the strategy's names known to a Trainer without an import in the user's code.

A Trainer looks a strategy's name up in Lightning's registry, and Lightning has no entry points for it. torch calls the
entry points of the group `torch.backends` at the end of `import torch`, which precedes every `import lightning`;
`install` then puts a finder on `sys.meta_path` that registers the names once Lightning's strategies have been imported.
It runs at every `import torch` of the environment, so it is tiny, imports nothing heavy and never raises.
`TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off; `import lightning_decgan` registers the names as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["install", "register"]

# A twin for `import pytorch_lightning` would name "pytorch_lightning.strategies" here.
_STRATEGY_MODULES = ("lightning.pytorch.strategies",)

_START_METHODS = {
    "decentralized_gossip": "popen",
    "decentralized_gossip_spawn": "spawn",
    "decentralized_gossip_fork": "fork",
    "decentralized_gossip_notebook": "fork",
}


def register(strategies: ModuleType) -> None:
    """Add the four names to the `StrategyRegistry` of an imported Lightning strategies module, once."""
    registry = strategies.StrategyRegistry
    for name, start_method in _START_METHODS.items():
        if name not in registry:
            registry.register(
                name,
                _make_strategy,
                description=f"neighbour gossip instead of all-reduce, with `start_method` '{start_method}'",
                start_method=start_method,
            )


def _make_strategy(**arguments: Any) -> Any:
    """Import the strategy when a Trainer asks for it, not when Lightning is imported."""
    from lightning_decgan.strategy.gossip_strategy import DecentralizedGossipStrategy

    return DecentralizedGossipStrategy(**arguments)


def install() -> None:
    """Register the names now if Lightning's strategies are imported, otherwise as soon as they are."""
    for name in _STRATEGY_MODULES:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "StrategyRegistry"):
            register(module)
        elif not any(getattr(finder, "waits_for", None) == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder(name))


class _Finder(MetaPathFinder):
    """Finds one module the usual way and lets `register` run after it has been executed."""

    def __init__(self, name: str) -> None:
        self.waits_for = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.waits_for:
            return None
        # Only those behind this one: two of this kind (a reload, a second copy) must not ask each other for ever.
        here = sys.meta_path.index(self) if self in sys.meta_path else -1
        for finder in sys.meta_path[here + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            if find_spec is None:
                continue
            spec = find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


class _RegisteringLoader(Loader):
    """The module's own loader, and one call after it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is its own: tools that look at its loader see the ordinary one.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            register(module)
        except Exception as error:  # an unknown Lightning must not become an ImportError of somebody else's program
            import logging

            logging.getLogger(__name__).debug("decentralized_gossip could not be registered: %r", error)
