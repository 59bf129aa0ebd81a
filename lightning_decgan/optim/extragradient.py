r"""Extragradient methods: look ahead with one gradient, then step with the gradient found there. For comparison.

    Z_k     = X_k - u(g(X_k))        extrapolate()
    X_{k+1} = X_k - u(g(Z_k))        step()

Optimistic methods take the last update for the first of the two and so save a gradient. Between `extrapolate` and
`step` the live parameters are `Z_k`; after `step` they are `X_{k+1}`, so there is no look-ahead for others to know of.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_decgan.optim.adam import OptimisticAdam
from lightning_decgan.optim.optimistic import Bundle, OptimisticOptimizer, TensorList
from lightning_decgan.optim.sgd import OptimisticSGD


class Extragradient(OptimisticOptimizer):
    """What makes an extragradient method of a base method; mixed in before the class that says what its update is."""

    def __init__(self, params: ParamsT, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        # Between `extrapolate` and `step` only, so it is no state to be saved.
        self._anchors: dict[Tensor, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._anchors = {}

    @torch.no_grad()
    def extrapolate(self) -> None:
        """Look ahead: the parameters move by one update; the next `step` starts from where they are now.

        Raises:
            RuntimeError: It was called already since the last step, or a gradient is sparse. Nothing has changed then.
        """
        if self._anchors:
            raise RuntimeError(f"{type(self).__name__}.extrapolate() was called twice without a step() in between")
        self._refuse_sparse_gradients()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        anchors = {parameter: parameter.detach().clone() for parameter in parameters}
        super().step()
        self._anchors.update(anchors)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Go back to where `extrapolate` was called, and take the step with the present gradients from there.

        Args:
            closure: Evaluates the loss anew, with gradients enabled, and returns it.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: `extrapolate` was not called before, or a gradient is sparse.
        """
        if not self._anchors:
            raise RuntimeError(
                f"{type(self).__name__}.step() needs extrapolate() before it, with gradients of its own; in"
                " DecentralizedGANModule that is schedule='extragradient'"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse_gradients()
        super().step()
        for parameter, anchor in self._anchors.items():  # those without a second gradient
            parameter.copy_(anchor)
        self._anchors.clear()
        return loss

    def lookahead(self, parameter: Tensor) -> Tensor | None:
        """None: after a step the live parameters are the point where the method stands."""
        return None

    def _move(self, bundle: Bundle, updates: TensorList) -> None:
        # Only now: weight decay, part of the update, is taken where the gradient was taken.
        for parameter in bundle.parameters:
            if (anchor := self._anchors.pop(parameter, None)) is not None:
                parameter.copy_(anchor)
        torch._foreach_sub_(bundle.points, updates)


class ExtraSGD(Extragradient, OptimisticSGD):
    """Extragradient descent; settings as for :class:`OptimisticSGD`, whose update it takes twice a step.

    Example: two players, `min_x max_y x y`.
        >>> x, y = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.tensor(1.0))
        >>> players = ExtraSGD([{"params": [x]}, {"params": [y], "maximize": True}], lr=0.3)
        >>> for _ in range(200):
        ...     for move in (players.extrapolate, players.step):
        ...         players.zero_grad()
        ...         (x * y).backward()
        ...         move()
        >>> bool(torch.hypot(x, y) < 1e-3)
        True

    Source: G. M. Korpelevich, "The extragradient method for finding saddle points and other problems", Matecon 12,
    1976.
    """


class ExtraAdam(Extragradient, OptimisticAdam):
    """Adam as an extragradient method: the moments advance at both gradients; settings as for :class:`OptimisticAdam`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = ExtraAdam([weight], lr=0.1, betas=(0.5, 0.9))
        >>> for move in (optimizer.extrapolate, optimizer.step):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     move()
        >>> round(weight.item(), 3)
        1.901

    Source: G. Gidel et al., "A Variational Inequality Perspective on Generative Adversarial Networks", ICLR 2019,
    arXiv:1802.10551, Algorithm 4.
    """
