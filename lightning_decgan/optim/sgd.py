"""Optimistic gradient descent: the method of choice for games whose gradients need no rescaling.

What an update of SGD is, and nothing else; the optimistic step itself is in `optimistic.py`.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_decgan.optim.optimistic import Bundle, OptimisticOptimizer, TensorList, checked_flag, checked_number


class OptimisticSGD(OptimisticOptimizer):
    r"""Stochastic gradient descent that looks one step ahead, as games need.

    Simultaneous gradient descent turns round the solution of a game and drifts outwards: on `min_x max_y x y` each step
    of learning rate `a` multiplies the distance to the solution by `sqrt(1 + a^2)`. Taking the gradient where the next
    update is expected to lead, with the last update as the guess, turns the spiral inwards at one gradient a step: for
    `a < 1/2` the distance there falls as `((1 + sqrt(1 - 4 a^2)) / 2)^(k/2)`.

    With the gradient `g_k` at the live parameters `Z_k` (weight decay: `g_k + weight_decay Z_k`; maximize: `-g_k`):

    .. math::
        b_k &= \mu\, b_{k-1} + (1 - \tau)\, g_k, \qquad b_1 = g_1 \\
        u_k &= \gamma_k\, b_k \quad\text{(nesterov: } \gamma_k (g_k + \mu\, b_k)\text{; no momentum: } \gamma_k g_k) \\
        Z_{k+1} &= Z_k + u_{k-1} - 2 u_k, \qquad u_0 = 0

    with learning rate :math:`\gamma_k`, momentum :math:`\mu` and dampening :math:`\tau`, as in `torch.optim.SGD`. The
    anchor is `X_k = X_{k-1} - u_k = Z_{k+1} + u_k` (:meth:`lookahead`). What applies to every optimistic optimizer
    (missing and sparse gradients, complex parameters, 16 bits) is said at :class:`OptimisticOptimizer`. Momentum adds
    to the turning: on the game above 0.1 still converges at learning rate 0.2, and 0.5 diverges.

    Args:
        params: Parameters, named parameters, or dictionaries of parameters with settings of their own.
        lr: Learning rate, >= 0; a tensor of one element is read at each step, and not differentiated through.
        momentum: Momentum factor, >= 0.
        dampening: Dampening of the momentum; the first gradient is not damped.
        weight_decay: L2 penalty, >= 0, taken at the live parameters like the gradient that it is.
        nesterov: Nesterov momentum; wants momentum > 0 and no dampening.
        maximize: Ascend instead of descend. Weight decay still shrinks.
        foreach: Update parameters by lists (more memory, fewer kernels), one by one (False), or by lists where that is
            faster (None: on CUDA and XPU). The results are the same bit for bit.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range. The text names it, what was found, and what would be valid.

    Example:
        Two players, `min_x max_y x y`, both gradients taken before either moves:

        >>> x, y = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.tensor(1.0))
        >>> players = OptimisticSGD([{"params": [x]}, {"params": [y], "maximize": True}], lr=0.3)
        >>> for _ in range(200):
        ...     players.zero_grad()
        ...     (x * y).backward()
        ...     players.step()
        >>> bool(torch.hypot(x, y) < 1e-4)
        True

    Sources:
        L. D. Popov, "A modification of the Arrow-Hurwicz method for search of saddle points", Mathematical Notes 28,
        1980. C. Daskalakis, A. Ilyas, V. Syrgkanis, H. Zeng, "Training GANs with Optimism", ICLR 2018,
        arXiv:1711.00141. The form with an anchor that workers average: M. Liu et al., "A Decentralized Parallel
        Algorithm for Training Generative Adversarial Nets" (DPOSG), NeurIPS 2020, arXiv:1910.12999.
    """

    _absent: ClassVar[dict[str, Any]] = {**OptimisticOptimizer._absent, "nesterov": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        settings = super()._checked(settings)
        momentum = settings["momentum"] = checked_number("momentum", settings["momentum"])
        dampening = settings["dampening"] = checked_number("dampening", settings["dampening"], minimum=-math.inf)
        if checked_flag("nesterov", settings["nesterov"]) and (momentum == 0 or dampening != 0):
            raise ValueError(
                f"nesterov must be False unless momentum > 0 and dampening == 0, found nesterov=True with momentum "
                f"{momentum} and dampening {dampening}"
            )
        return settings

    def _updates(self, group: dict[str, Any], bundle: Bundle) -> TensorList:
        lr, momentum, gradients = float(group["lr"]), group["momentum"], bundle.gradients
        if momentum == 0:
            return torch._foreach_mul(gradients, lr)
        first = [state.get("momentum_buffer") is None for state in bundle.states]
        buffers = bundle.kept("momentum_buffer")
        torch._foreach_mul_(buffers, momentum)
        incoming = gradients
        if group["dampening"] != 0:
            # A first gradient has no past to weigh it against: it is not damped, in whatever step it comes.
            weights = [1.0 if is_first else 1 - group["dampening"] for is_first in first]
            incoming = torch._foreach_mul(gradients, weights)
        torch._foreach_add_(buffers, incoming)
        if group["nesterov"]:
            directions = torch._foreach_add(gradients, buffers, alpha=momentum)
            return torch._foreach_mul(directions, lr)
        return torch._foreach_mul(buffers, lr)
