r"""The optimistic step, once, for every base method: where gradients are taken and where the method stands.

An optimistic method keeps two points. Gradients are taken at the live parameters `Z_k`, the method itself stands at
the anchor `X_k`, and one update `u_k` (what the base method wants at `Z_k`) moves both:

    X_k     = X_{k-1} - u_k                         the anchor: the point that others average
    Z_{k+1} = X_k - u_k = Z_k + u_{k-1} - 2 u_k     the live parameters: one look ahead of the anchor;   u_0 = 0

Only `u_k` is stored, as `previous_update`. Not the gradient: `u_k` holds the learning rate it was made with, so that a
schedule takes back exactly what was added. Not the anchor: the live parameters stay the only truth, and what user code
writes into them moves the anchor along. This module never replaces a parameter's storage, never keeps a reference to a
gradient, and never writes into one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

TensorList: TypeAlias = list[Tensor] | tuple[Tensor, ...]

# The devices on which one call over a list of tensors is one kernel. Elsewhere it is a loop that holds more memory.
_FOREACH_DEVICES = frozenset({"cuda", "xpu"})


@dataclass(frozen=True)
class Bundle:
    """Parameters that are moved together: all of one device and dtype, or a single one. Complex ones are seen as real.

    Attributes:
        parameters: As the user has them.
        states: What the optimizer keeps of each; the dictionaries themselves.
        points: Their live values `Z_k`; complex ones as real tensors with a last dimension of 2.
        gradients: At those points and of their shapes. They may be the user's own: not to be written into.
    """

    parameters: list[Tensor]
    states: list[dict[str, Any]]
    points: TensorList
    gradients: TensorList

    def kept(self, name: str) -> list[Tensor]:
        """The state tensors of a name, zeros where there are none yet; of the points' shapes."""
        for parameter, state in zip(self.parameters, self.states, strict=True):
            if state.get(name) is None:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return _as_real([state[name] for state in self.states])


class OptimisticOptimizer(Optimizer):
    r"""What optimistic optimizers share: the two points, the step, its state, and the conventions of `torch.optim`.

    A base method becomes optimistic by subclassing and saying what its update is (:meth:`_updates`); everything else
    is here. Use :class:`OptimisticSGD` or :class:`OptimisticAdam`.

    A parameter whose gradient is None in a step is left as it is, as in `torch.optim`: live value, `previous_update`
    and moments stay, and so the anchor stays; the others are updated. It is the same whether a parameter is left out
    or the whole optimizer is not stepped in an iteration (one player trained more often than the other): `k` counts
    the updates of that parameter. A gradient of zeros is a gradient.

    A sparse gradient is refused before anything has changed. Complex parameters are treated as pairs of real numbers.
    `capturable` and `differentiable` of `torch.optim` are not offered: a step under CUDA graph capture raises, and
    autograd does not pass through a step. State has its parameter's dtype, as in `torch.optim`; parameters of 16
    bits have moments of 16 bits, so mixed precision wants float32 parameters under autocast.

    Args:
        params: Parameters, named parameters, or dictionaries of parameters with settings of their own.
        defaults: Settings of every group that does not bring its own.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range. The text names it, what was found, and what would be valid.
    """

    # What an option meant before it existed: for state dictionaries that were saved without it.
    _absent: ClassVar[dict[str, Any]] = {"maximize": False, "foreach": None}

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, self._checked(defaults))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self._absent.items():
                group.setdefault(name, value)
        for name, value in self._absent.items():
            self.defaults.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own, which are checked like the constructor's.

        Args:
            param_group: `params`, and any setting that shall differ from the defaults.

        Raises:
            TypeError: `param_group` is no dictionary, or a setting has the wrong type.
            ValueError: A setting is out of range, or a parameter is in another group already.
        """
        if isinstance(param_group, dict):
            settings = {name: param_group.get(name, default) for name, default in self.defaults.items()}
            param_group = {**param_group, **self._checked(settings)}
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and own it: `torch.optim` would share the tensors with whoever saved them in this process.

        Save and load the live parameters with it (`module.state_dict()`): the anchor is where both say it is.

        Args:
            state_dict: From :meth:`state_dict`; or from the optimizer of `torch.optim` that has the same base method,
                whose run then goes on with `u_0 = 0`.

        Raises:
            ValueError: The groups differ in number or size.
        """
        super().load_state_dict(state_dict)
        for parameter in self.state.keys() & {p for group in self.param_groups for p in group["params"]}:
            state = self.state[parameter]
            self.state[parameter] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}

    def lookahead(self, parameter: Tensor) -> Tensor | None:
        """How far a live parameter is from its anchor.

        The anchor `X` of a parameter is `parameter + lookahead(parameter)`, or the parameter itself where this is None.

        Args:
            parameter: A parameter, any shape.

        Returns:
            The stored update `u_k` itself (same shape, dtype and device; not a copy, so do not write into it), or None
            when the parameter is its own anchor: it has not been updated yet, or is not this optimizer's.
        """
        return self.state[parameter].get("previous_update") if parameter in self.state else None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step: `Z += u_{k-1} - 2 u_k` in place, with `u_k` computed from the gradients at `Z`.

        Args:
            closure: Evaluates the loss anew, with gradients enabled, and returns it.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: A gradient is sparse, or a CUDA graph is being captured. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self).__name__}.step() cannot be captured in a CUDA graph: learning rate and step count would "
                "be frozen in it; call step() outside of the capture"
            )
        self._refuse_sparse_gradients()
        for group in self.param_groups:
            for parameters in _together(group):
                states = [self.state[parameter] for parameter in parameters]
                points, gradients = _as_real(parameters), _as_real(_gradients(parameters))
                self._advance(group, Bundle(parameters, states, points, gradients))
        return loss

    def _advance(self, group: dict[str, Any], bundle: Bundle) -> None:
        """Move a bundle of parameters: the heart of this module."""
        if group["maximize"]:
            bundle = replace(bundle, gradients=torch._foreach_neg(bundle.gradients))
        if group["weight_decay"] and not group.get("decoupled_weight_decay", False):
            decayed = torch._foreach_add(bundle.gradients, bundle.points, alpha=group["weight_decay"])
            bundle = replace(bundle, gradients=decayed)
        self._move(bundle, self._updates(group, bundle))

    def _move(self, bundle: Bundle, updates: TensorList) -> None:
        """Move the live points, given what the base method wants: `Z += u_{k-1} - 2 u_k`."""
        previous = bundle.kept("previous_update")
        # The small numbers meet first, so that the parameter is rounded once a step.
        torch._foreach_sub_(previous, updates, alpha=2)
        torch._foreach_add_(bundle.points, previous)
        torch._foreach_copy_(previous, updates)

    def _updates(self, group: dict[str, Any], bundle: Bundle) -> TensorList:
        """The updates `u_k` that the base method wants, as new tensors; its own state advances by one step.

        Args:
            group: The settings.
            bundle: The parameters; their gradients turned round for `maximize`, with L2 weight decay in them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its update is")

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of a group with numbers as floats, or an error that names the first bad one."""
        return {
            **settings,
            "lr": _checked_lr(settings["lr"]),
            "weight_decay": checked_number("weight_decay", settings["weight_decay"]),
            "maximize": checked_flag("maximize", settings["maximize"]),
            "foreach": None if settings["foreach"] is None else checked_flag("foreach", settings["foreach"]),
        }

    def _refuse_sparse_gradients(self) -> None:
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None and parameter.grad.layout != torch.strided:
                    names = group.get("param_names")
                    which = f"{names[index]!r}" if names else f"{index} of group {number}"
                    raise RuntimeError(
                        f"{type(self).__name__} takes dense gradients, found layout {parameter.grad.layout} at "
                        f"parameter {which} of shape {tuple(parameter.shape)}; torch.nn.Embedding(sparse=False) "
                        "makes dense ones"
                    )


def checked_number(name: str, value: object, minimum: float = 0.0, below: float = math.inf) -> float:
    """A setting as a float in [minimum, below), or TypeError or ValueError with its name, its value and the range.

    >>> checked_number("eps", 1)
    1.0
    >>> checked_number("betas[0]", 1.5, below=1.0)
    Traceback (most recent call last):
        ...
    ValueError: betas[0] must be a number >= 0 and < 1, found 1.5
    """
    lower = "" if minimum == -math.inf else f" >= {minimum:g}"
    upper = "finite" if below == math.inf else f"< {below:g}"
    valid = f"a number{lower}{' and' if lower else ' that is'} {upper}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {valid}, found {value!r} ({type(value).__name__})")
    # Not a number compares as False with everything, so it is refused too; -inf needs a word of its own.
    number = float(value)
    if not (minimum <= number < below) or not math.isfinite(number):
        raise ValueError(f"{name} must be {valid}, found {value!r}")
    return number


def checked_flag(name: str, value: object) -> bool:
    """A setting that is True or False, or TypeError: the text "False" out of a file is not taken for True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, found {value!r} ({type(value).__name__})")
    return value


def is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is an ordinary tensor, not of a class that may compute in a way of its own."""
    return type(parameter) in (Tensor, torch.nn.Parameter)


def _checked_lr(lr: object) -> float | Tensor:
    if not isinstance(lr, Tensor):
        return checked_number("lr", lr)
    if lr.numel() != 1 or not lr.is_floating_point():
        raise ValueError(
            f"lr must be a number or a floating-point tensor of one element, found {lr.dtype} {tuple(lr.shape)}"
        )
    if lr.requires_grad:
        raise ValueError("lr must not require a gradient: none passes through a step; lr.detach() would be valid")
    checked_number("lr", lr.item())
    return lr  # kept as it is: schedulers, and whoever else holds it, write into it


def _as_real(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of one dtype, complex ones as pairs of real numbers."""
    return [torch.view_as_real(tensor) for tensor in tensors] if tensors[0].is_complex() else tensors


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters of one dtype, which all have one, in that dtype; no views that turn a sign round."""
    gradients = [p.grad.resolve_conj().resolve_neg() for p in parameters if p.grad is not None]
    return [
        gradient if gradient.dtype == parameters[0].dtype else gradient.to(parameters[0].dtype)
        for gradient in gradients
    ]


def _together(group: dict[str, Any]) -> Iterator[list[Tensor]]:
    """The parameters with gradients that are moved together: all of one device and dtype, or one at a time.

    The loop over single parameters is the same code on lists of one, so both ways give the same bits.
    """
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    foreach = group["foreach"]
    if foreach is None:
        foreach = all(is_plain(parameter) and parameter.device.type in _FOREACH_DEVICES for parameter in parameters)
    if not foreach:
        yield from ([parameter] for parameter in parameters)
        return
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    yield from alike.values()
