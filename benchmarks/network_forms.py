"""The columns of `network.py`: the networks, and the ways of training that are compared on them.

To measure another setting of the strategy, add a line to `FORMS`: `gossip(...)` takes the arguments of
`DecentralizedGossipStrategy`, and `Make("Name", ...)` stands for an object of `lightning_decgan` that is made in the
worker.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from communication_floor import Network

__all__ = ["DDP", "FORMS", "NETWORKS", "NO_COMMUNICATION", "Form", "Make", "gossip", "make_settings", "select_forms"]

NETWORKS: dict[str, Network] = {
    "loopback": Network(shaped=False),
    "50ms": Network(delay_ms=50),
    "10ms": Network(delay_ms=10),
    "1gbit_1ms": Network(mbit=1000, delay_ms=1),
    "100mbit_1ms": Network(mbit=100, delay_ms=1),
    "10mbit_50ms": Network(mbit=10, delay_ms=50),
}


@dataclass(frozen=True)
class Make:
    """An object of `lightning_decgan`, by name: a process without torch can hold it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Make it."""
        return getattr(importlib.import_module("lightning_decgan"), self.name)(**self.arguments)


@dataclass(frozen=True)
class Form:
    """One way of training.

    Attributes:
        kind: which loop runs it: `local`, `ddp`, `averaging` and `decent-dp` are plain torch loops (`rivals.py`),
            `lightning-ddp` and `gossip` a Lightning Trainer.
        settings: of that loop or strategy.
        period: steps from one communication to the next. Where it is above 1, most steps have none, so the mean and
            not the median tells the cost of a step.
        own: whether it is this project's.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    period: int = 1
    own: bool = False

    @property
    def loop(self) -> str:
        """`Lightning` or `plain`: a form is compared with the same loop without communication."""
        return "Lightning" if self.kind in ("lightning-ddp", "gossip") else "plain"


def gossip(**settings: Any) -> Form:
    """This project's strategy; gossips more rarely than every 1,000 steps count as none."""
    every = settings.get("gossip_every", 1)
    return Form("gossip", settings, period=1 if every > 1000 else every, own=every <= 1000)


def _one_peer(**settings: Any) -> Form:
    return gossip(topology="one_peer_exponential", **settings)


DDP = "DDP"
NO_COMMUNICATION = {"plain": "no communication, plain loop", "Lightning": "no communication, Lightning"}
FORMS: dict[str, Form] = {
    NO_COMMUNICATION["plain"]: Form("local"),
    NO_COMMUNICATION["Lightning"]: gossip(gossip_every=10**9),
    DDP: Form("ddp"),
    "DDP, bfloat16": Form("ddp", {"hook": "bfloat16"}),
    "DDP, PowerSGD rank 2": Form("ddp", {"hook": "power_sgd", "rank": 2}),
    "DDP of Lightning": Form("lightning-ddp"),
    "averaging every 8": Form("averaging", {"period": 8}, period=8),
    "averaging every 32": Form("averaging", {"period": 32}, period=32),
    "decent-dp, ring": Form("decent-dp", {"topology": "ring"}),
    "decent-dp, one-peer exponential": Form("decent-dp", {"topology": "one-peer-exp"}),
    "gossip, ring": gossip(topology="ring"),
    "gossip, one peer": _one_peer(),
    "gossip, one peer, late": _one_peer(max_delay=None),
    "gossip, one peer, bfloat16": _one_peer(compression="bfloat16"),
    "gossip, one peer, bfloat16, late": _one_peer(compression="bfloat16", max_delay=None),
    "gossip, one peer, int8": _one_peer(compression="int8"),
    "gossip, one peer, int8, late": _one_peer(compression="int8", max_delay=None),
    "gossip, one peer, PowerGossip": _one_peer(compression=Make("PowerGossip", {"rank": 1})),
    "gossip, one peer, PowerGossip, late": _one_peer(compression=Make("PowerGossip", {"rank": 1}), max_delay=None),
    "gossip, one peer, PowerGossip, every 2, late": _one_peer(
        compression=Make("PowerGossip", {"rank": 1}), gossip_every=2, max_delay=None
    ),
    "gossip, one peer, PowerGossip, every 8, late": _one_peer(
        compression=Make("PowerGossip", {"rank": 1}), gossip_every=8, max_delay=None
    ),
    "gossip, one peer, RandomSubset 5 %": _one_peer(compression=Make("RandomSubset", {"fraction": 0.05})),
    "gossip, one peer, every 8, outer step": _one_peer(gossip_every=8, outer=Make("OuterNesterov")),
    "gossip, one peer, every 8, outer step, late": _one_peer(
        gossip_every=8, outer=Make("OuterNesterov"), max_delay=None
    ),
}


def make_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every `Make` made."""
    return {name: value() if isinstance(value, Make) else value for name, value in settings.items()}


def select_forms(filters: list[str] | None) -> list[str]:
    """The forms to run, in order: those whose name contains one of the filters, and those they are compared with.

    Raises:
        ValueError: a filter fits no form.

    Example:
        >>> select_forms(["PowerSGD"])
        ['no communication, plain loop', 'no communication, Lightning', 'DDP, PowerSGD rank 2']
    """
    for text in filters or []:
        if not any(text.lower() in name.lower() for name in FORMS):
            raise ValueError(f"--forms: {text!r} is in the name of no form; there are: {'; '.join(FORMS)}")
    bases = set(NO_COMMUNICATION.values())
    return [
        name
        for name in FORMS
        if filters is None or name in bases or any(text.lower() in name.lower() for text in filters)
    ]
