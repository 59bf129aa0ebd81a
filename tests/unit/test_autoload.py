"""The strategy's name is known without an import, costs next to nothing, and never breaks anybody's program."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lightning_decgan.strategy import autoload

NAMES = [
    "decentralized_gossip",
    "decentralized_gossip_fork",
    "decentralized_gossip_notebook",
    "decentralized_gossip_spawn",
]


def _python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_a_trainer_knows_the_name_with_no_import_and_the_strategy_is_loaded_only_then() -> None:
    found = _python(
        """
        import sys
        from lightning.pytorch import Trainer
        heavy = "lightning_decgan.strategy.gossip_strategy"
        before = heavy in sys.modules
        trainer = Trainer(strategy="decentralized_gossip", accelerator="cpu", devices=2, barebones=True)
        print(before, type(trainer.strategy).__name__, heavy in sys.modules)
        """
    )
    assert found.splitlines()[-1] == "False DecentralizedGossipStrategy True"


def test_with_autoloading_off_the_name_is_unknown_until_the_package_is_imported() -> None:
    found = _python(
        """
        from lightning.pytorch.strategies import StrategyRegistry
        before = "decentralized_gossip" in StrategyRegistry
        import lightning_decgan
        after = sorted(name for name in StrategyRegistry if name.startswith("decentralized"))
        print(before, after)
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert found.splitlines()[-1] == f"False {NAMES}"


def test_with_autoloading_off_the_package_may_also_be_imported_first() -> None:
    found = _python(
        """
        import lightning_decgan
        from lightning.pytorch.strategies import StrategyRegistry
        import lightning.pytorch.strategies as strategies
        print(sorted(name for name in StrategyRegistry if name.startswith("decentralized")))
        print(type(strategies.__spec__.loader).__name__)
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert found.splitlines()[-2:] == [str(NAMES), "SourceFileLoader"]


def test_importing_the_package_imports_neither_torch_nor_lightning_and_takes_milliseconds() -> None:
    found = _python(
        """
        import sys, time, importlib.metadata, logging, typing
        started = time.process_time()
        import lightning_decgan
        seconds = time.process_time() - started
        heavy = {"torch", "lightning", "numpy", "networkx", "matplotlib", "hydra"} & set(sys.modules)
        print(sorted(heavy), seconds)
        """
    )
    heavy, seconds = found.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.02, "milliseconds of processor time; generous, as machines are shared"


def test_a_registry_that_lightning_has_changed_does_not_break_the_import_of_lightning() -> None:
    found = _python(
        """
        import torch
        from lightning_decgan.strategy import autoload
        def broken(strategies):
            raise AttributeError("no StrategyRegistry any more")
        autoload.register = broken
        import lightning
        from lightning.pytorch import Trainer
        print(Trainer(accelerator="cpu", devices=1, barebones=True).world_size)
        """
    )
    assert found.splitlines()[-1] == "1"


def test_torch_alone_loads_nothing_more_of_the_package_than_the_finder() -> None:
    found = _python(
        """
        import sys, torch
        print(sorted(name for name in sys.modules if name.startswith(("lightning_decgan", "lightning."))))
        """
    )
    assert eval(found.splitlines()[-1]) == [
        "lightning_decgan",
        "lightning_decgan.strategy",
        "lightning_decgan.strategy.autoload",
    ]


class _Registry(dict):
    """Lightning's registry: registering a name twice raises."""

    def register(self, name: str, strategy: Any, description: str, **init_params: Any) -> None:
        if name in self:
            raise ValueError(f"'{name}' is already present in the registry")
        self[name] = (strategy, description, init_params)


def test_registering_twice_is_harmless_and_a_users_own_entry_stays() -> None:
    strategies: Any = SimpleNamespace(StrategyRegistry=_Registry(decentralized_gossip="mine"))
    autoload.register(strategies)
    autoload.register(strategies)
    assert sorted(strategies.StrategyRegistry) == NAMES
    assert strategies.StrategyRegistry["decentralized_gossip"] == "mine"
    assert strategies.StrategyRegistry["decentralized_gossip_spawn"][2] == {"start_method": "spawn"}


def test_installing_twice_puts_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoload, "_STRATEGY_MODULES", ("a_module_nobody_has",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = len(sys.meta_path)
    autoload.install()
    autoload.install()
    assert len(sys.meta_path) == before + 1
    assert isinstance(sys.meta_path[0], autoload._Finder)


def test_the_finder_finds_its_one_module_the_usual_way_and_registers_after_it_ran(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_strategies.py").write_text("StrategyRegistry = None\nran = True\n")
    (tmp_path / "unrelated.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(autoload, "_STRATEGY_MODULES", ("fake_strategies",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    registered: list[ModuleType] = []
    monkeypatch.setattr(autoload, "register", registered.append)
    autoload.install()
    import unrelated  # noqa: F401

    assert registered == []
    import fake_strategies

    assert registered == [fake_strategies]
    assert fake_strategies.ran
    assert type(fake_strategies.__spec__.loader).__name__ == "SourceFileLoader"
    for name in ("fake_strategies", "unrelated"):
        del sys.modules[name]


def test_a_module_that_does_not_exist_stays_an_ordinary_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoload, "_STRATEGY_MODULES", ("a_module_nobody_has",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    autoload.install()
    with pytest.raises(ModuleNotFoundError, match="a_module_nobody_has"):
        __import__("a_module_nobody_has")


def test_two_finders_of_this_kind_do_not_ask_each_other_for_ever() -> None:
    code = (
        "import sys, importlib, lightning_decgan.strategy.autoload as a\n"
        "a.install(); first = [f for f in sys.meta_path if getattr(f, 'waits_for', None)]\n"
        "sys.meta_path.remove(first[0]); importlib.reload(a); a.install(); sys.meta_path.insert(0, first[0])\n"
        "import lightning.pytorch.strategies as s; print('decentralized_gossip' in s.StrategyRegistry)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
