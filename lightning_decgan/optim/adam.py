"""Optimistic Adam: the optimizer that GANs are usually trained with, looking one step ahead.

What an update of Adam is, and nothing else; the optimistic step itself is in `optimistic.py`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_decgan.optim.optimistic import (
    Bundle,
    OptimisticOptimizer,
    TensorList,
    checked_flag,
    checked_number,
    is_plain,
)

# Where torch has Adam's update as one kernel, and this package has run it.
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


class OptimisticAdam(OptimisticOptimizer):
    r"""Adam that looks one step ahead, as games need; with AMSGrad and with AdamW's weight decay.

    With the gradient `g_k` at the live parameters `Z_k` (maximize: `-g_k`):

    .. math::
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1)\, g_k, \qquad v_k = \beta_2 v_{k-1} + (1 - \beta_2)\, g_k^2 \\
        \hat m_k &= m_k / (1 - \beta_1^k), \qquad\qquad\quad
            \hat v_k = v_k / (1 - \beta_2^k) \quad\text{(amsgrad: } \max_{i \le k} v_i / (1 - \beta_2^k)) \\
        u_k &= \gamma_k\, \hat m_k / (\sqrt{\hat v_k} + \epsilon) \\
        Z_{k+1} &= Z_k + u_{k-1} - 2 u_k, \qquad u_0 = 0

    The moments advance once a step; the anchor is `X_k = X_{k-1} - u_k = Z_{k+1} + u_k` (:meth:`lookahead`). `k` counts
    the steps in which that parameter had a gradient. What applies to every optimistic optimizer (missing and sparse
    gradients, complex parameters, 16 bits) is said at :class:`OptimisticOptimizer`.

    Weight decay is L2 by default, `g_k + weight_decay Z_k`. Decoupled, it is part of the update,
    `u_k = gamma_k (m_hat / (sqrt(v_hat) + eps) + weight_decay Z_k)`. Both act at the live point, not at the anchor:
    optimism guesses the next update from the last, and the guess holds only for a decay that was taken where the
    gradient was taken and is taken back with it.

    The settings and their defaults are those of `torch.optim.Adam`, so that one can replace the other and a state
    dictionary of `torch.optim.Adam` or `AdamW` can be loaded (the look-ahead then starts from 0). GANs mostly want less
    memory than the default `betas=(0.9, 0.999)`: (0.5, 0.9) and (0.5, 0.999) are usual, (0.0, 0.9) with penalties. The
    first moment is momentum, which adds to the turning that optimism takes away: on the game `min_x max_y x y` with
    learning rate 0.1, `betas=(0.0, 0.999)` converges and (0.5, 0.999) does not. To stay at the solution rather than be
    thrown out again when `v_k` has forgotten the way there, it wants `amsgrad=True` or a falling learning rate.

    Args:
        params: Parameters, named parameters, or dictionaries of parameters with settings of their own.
        lr: Learning rate, >= 0; a tensor of one element is read at each step, and not differentiated through.
        betas: Decay rates of the first and second moment, each in [0, 1).
        eps: Added to the denominator, >= 0.
        weight_decay: Weight decay, >= 0.
        amsgrad: Divide by the largest second moment so far.
        foreach: Update parameters by lists (more memory, fewer kernels), one by one (False), or by lists where that is
            faster (None: on CUDA and XPU). The results are the same bit for bit.
        fused: Compute the update in one kernel that passes over memory once, or in one for each operation (False); None
            is the first on CPUs and CUDA. They differ by rounding.
        maximize: Ascend instead of descend. Weight decay still shrinks.
        decoupled_weight_decay: Weight decay as in AdamW instead of L2.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range. The text names it, what was found, and what would be valid.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        >>> optimizer = OptimisticAdam([weight], lr=0.1, betas=(0.5, 0.9))
        >>> optimizer.lookahead(weight) is None
        True
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach(), weight.detach() + optimizer.lookahead(weight)  # the live point is a look ahead
        (tensor([ 1.8000, -2.8000]), tensor([ 1.9000, -2.9000]))

    Sources:
        Optimistic Adam: C. Daskalakis, A. Ilyas, V. Syrgkanis, H. Zeng, "Training GANs with Optimism", ICLR 2018,
        arXiv:1711.00141, Algorithm 1. Its decentralized form: M. Liu et al., "A Decentralized Parallel Algorithm for
        Training Generative Adversarial Nets", NeurIPS 2020, arXiv:1910.12999. The point of the look ahead: L. D. Popov,
        Mathematical Notes 28, 1980. Adam: arXiv:1412.6980. AMSGrad: S. Reddi, S. Kale, S. Kumar, ICLR 2018. Decoupled
        decay: I. Loshchilov, F. Hutter, arXiv:1711.05101.
    """

    _absent: ClassVar[dict[str, Any]] = {
        **OptimisticOptimizer._absent,
        "amsgrad": False,
        "fused": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # torch's AdamW has not always said so: what this optimizer was made with holds
            group.setdefault("decoupled_weight_decay", self.defaults["decoupled_weight_decay"])
        for parameter_state in self.state.values():
            if "step" in parameter_state and not isinstance(parameter_state["step"], Tensor):
                parameter_state["step"] = torch.tensor(float(parameter_state["step"]), dtype=torch.float32)

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        settings = super()._checked(settings)
        betas = settings["betas"]
        # Any sequence: configuration files bring lists.
        if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers >= 0 and < 1, found {betas!r} ({type(betas).__name__})")
        settings["betas"] = tuple(checked_number(f"betas[{i}]", beta, below=1.0) for i, beta in enumerate(betas))
        settings["eps"] = checked_number("eps", settings["eps"])
        checked_flag("amsgrad", settings["amsgrad"])
        checked_flag("decoupled_weight_decay", settings["decoupled_weight_decay"])
        if settings["fused"] is not None:
            checked_flag("fused", settings["fused"])
        return settings

    def _updates(self, group: dict[str, Any], bundle: Bundle) -> TensorList:
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        moments = [bundle.kept(name) for name in names]
        in_one_kernel = _fuses(group, bundle, moments)
        updates = (_fused_updates if in_one_kernel else _unfused_updates)(group, bundle, moments)
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            torch._foreach_add_(updates, bundle.points, alpha=float(group["lr"]) * group["weight_decay"])
        return updates


def _fuses(group: dict[str, Any], bundle: Bundle, moments: list[list[Tensor]]) -> bool:
    """Whether the kernel for everything at once is wanted, and right for moments that came from elsewhere.

    It takes tensors for runs of numbers, so the moments of a parameter have to lie alike in memory.
    """
    if group["fused"] is None:
        wanted = all(is_plain(parameter) for parameter in bundle.parameters)
        wanted = wanted and bundle.parameters[0].device.type in _FUSED_DEVICES
    else:
        wanted = group["fused"]
    return wanted and all(len({moment.stride() for moment in its}) == 1 for its in zip(*moments, strict=True))


def _fused_updates(group: dict[str, Any], bundle: Bundle, moments: list[list[Tensor]]) -> TensorList:
    first_moments, second_moments, *largest = moments
    beta1, beta2 = group["betas"]
    gradients = [
        gradient if gradient.stride() == moment.stride() else torch.empty_like(moment).copy_(gradient)
        for gradient, moment in zip(bundle.gradients, first_moments, strict=True)
    ]
    # The kernel counts on the parameters' device, and nobody waits for it.
    steps = _steps(bundle, bundle.parameters[0].device)
    torch._foreach_add_(steps, 1)
    # It takes what it computes from a parameter: from zero, with a negative learning rate, that is the update itself.
    # Zeros out of moments: one call for all of them, and a moment that is not finite spoils the update anyway.
    updates = torch._foreach_mul(first_moments, 0)
    torch._fused_adam_(
        updates,
        gradients,
        first_moments,
        second_moments,
        largest[0] if largest else [],
        steps,
        lr=-float(group["lr"]),
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        amsgrad=group["amsgrad"],
        # What these two would do has been done to the gradients.
        weight_decay=0.0,
        maximize=False,
    )
    return updates


def _unfused_updates(group: dict[str, Any], bundle: Bundle, moments: list[list[Tensor]]) -> TensorList:
    first_moments, second_moments, *largest = moments
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    counts = _steps(bundle, torch.device("cpu"))  # they are read here, which must not wait for a device
    torch._foreach_add_(counts, 1)
    steps = [float(count) for count in counts]
    torch._foreach_lerp_(first_moments, bundle.gradients, 1 - beta1)
    torch._foreach_mul_(second_moments, beta2)
    torch._foreach_addcmul_(second_moments, bundle.gradients, bundle.gradients, 1 - beta2)
    if largest:
        torch._foreach_maximum_(largest[0], second_moments)
        second_moments = largest[0]

    denominators = torch._foreach_sqrt(second_moments)
    torch._foreach_div_(denominators, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(denominators, group["eps"])
    updates = torch._foreach_div(first_moments, denominators)
    torch._foreach_mul_(updates, [lr / (1 - beta1**step) for step in steps])
    return updates


def _steps(bundle: Bundle, device: torch.device) -> list[Tensor]:
    """The steps of each parameter so far, as `torch.optim` keeps them: floats, never cast when state is loaded."""
    for state in bundle.states:
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        elif state["step"].device != device or state["step"].dtype != torch.float32:
            state["step"] = state["step"].to(device, torch.float32)
    return [state["step"] for state in bundle.states]
