"""An outer optimizer between gossips: local steps give a direction, gossip averages it, momentum carries it on.

With H local steps between gossips (`gossip_every=H`) a worker moves from an outer point `phi` to `theta`. Gossip mixes
`theta`; the outer step takes what that changed as a gradient:

    d   = (W^t theta)_i - phi_i
    v   <- momentum v + d
    phi <- phi + lr (momentum v + d)          and training goes on from phi

On the mean over workers this is DiLoCo's Nesterov step (Douillard et al. 2023, arXiv:2311.08105), and SlowMo's (Wang et
al. 2020, arXiv:1910.00643) with Nesterov momentum. On the differences between workers it is what NoLoCo (2025,
arXiv:2506.10911) asks for: the same step also pulls a worker towards those that it met. NoLoCo weighs that pull with a
constant of its own; here it is `lr`, because then one message holds all that is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_decgan.gossip.vector import FlatBuffer, FlatVector

__all__ = ["OuterNesterov", "OuterState"]


@dataclass(frozen=True)
class OuterNesterov:
    """Nesterov momentum on the change between two gossips; `lr=1, momentum=0` is plain local steps with gossip.

    The defaults suit short intervals (`gossip_every=8`, say). With hundreds of local steps DiLoCo's authors use
    momentum 0.9; at 8 steps that diverged here under SGD with momentum (`benchmarks/quality_of_gossip.py`).

    Args:
        lr: outer learning rate, in (0, 2].
        momentum: in [0, 1).

    Raises:
        TypeError, ValueError: a value that is no number, or out of its range.

    Example:
        >>> OuterNesterov(lr=0.7)
        OuterNesterov(lr=0.7, momentum=0.5)
    """

    lr: float = 0.7
    momentum: float = 0.5

    def __post_init__(self) -> None:
        for name, found in (("lr", self.lr), ("momentum", self.momentum)):
            if isinstance(found, bool) or not isinstance(found, int | float):
                raise TypeError(f"{name} of OuterNesterov must be a number, found {found!r}")
        if not 0 < self.lr <= 2:
            raise ValueError(f"lr of OuterNesterov must be in (0, 2], found {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum of OuterNesterov must be in [0, 1), found {self.momentum}")

    def begin(self, vector: FlatVector) -> OuterState:
        """The state of a run that begins at the vector's present values."""
        state = OuterState(self, vector)
        vector.write(state.point)
        vector.wait_until_written()
        return state


class OuterState:
    """The outer point and its momentum: two vectors of the size of the parameters, in host memory."""

    def __init__(self, settings: OuterNesterov, vector: FlatVector) -> None:
        self.settings = settings
        self.point, self.velocity = vector.new_buffer(), vector.new_buffer()
        self._change = vector.new_buffer()

    def step(self, snapshot: FlatBuffer, increments: FlatBuffer) -> None:
        """Turn gossip's increments into those of the outer step: afterwards `snapshot + increments` is the new point.

        A snapshot that is not finite leaves the outer state alone.
        """
        if not math.isfinite(snapshot.norm()):
            return
        lr, momentum = self.settings.lr, self.settings.momentum
        change = self._change.copy_(snapshot).add_(increments).sub_(self.point)
        self.velocity.mul_(momentum).add_(change)
        self.point.add_(self.velocity, alpha=lr * momentum).add_(change, alpha=lr)
        increments.copy_(self.point).sub_(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """The two vectors, as bytes."""
        return {"point": self.point.bytes.clone(), "velocity": self.velocity.bytes.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: the state is of another size.
        """
        for name, buffer in (("point", self.point), ("velocity", self.velocity)):
            if state[name].shape != buffer.bytes.shape:
                raise ValueError(
                    f"the outer {name} in the checkpoint has {state[name].numel()} bytes, not {buffer.bytes.numel()}"
                )
            buffer.bytes.copy_(state[name])
