"""Checks of what the user hands in: the errors name the argument, what was found and what would be valid."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_decgan.checks import check_integer

__all__ = [
    "check_classes",
    "check_images",
    "check_length",
    "check_optimizer",
    "check_range",
    "class_labels",
    "image_batch",
    "length_of",
    "number",
    "number_of_classes",
    "scalar",
    "separate_players",
]

_ROUNDING = 0.01
"""Interpolation and half precision may leave [-1, 1] by this much."""


def number(name: str, value: Any, wanted: str, holds: Callable[[float], bool]) -> float:
    """``value`` as a float if it is a finite number and ``holds(value)``; ``wanted`` says so in words.

    Raises:
        ValueError: It is not.

    Example:
        >>> number("lr", -1.0, "> 0", lambda lr: lr > 0)
        Traceback (most recent call last):
        ...
        ValueError: lr must be a finite number > 0, found -1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be a finite number {wanted}, found {value!r}")
    return float(value)


def scalar(name: str, value: Any) -> Tensor:
    """``value`` if it is a tensor without dimensions; ``name`` is what returned it.

    Raises:
        ValueError: It is not.

    Example:
        >>> scalar("penalty", torch.zeros(4))
        Traceback (most recent call last):
        ...
        ValueError: penalty must return a scalar tensor, found (4,)
    """
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a scalar tensor, found {found}")
    return value


def image_batch(batch: Any) -> Tensor:
    """The images of a batch: the batch itself, or the first element of a sequence such as ``(images, labels)``.

    Raises:
        TypeError: What is found there is not a floating-point tensor ``(n, C, H, W)``.

    Example:
        >>> import torch
        >>> image_batch((torch.zeros(2, 1, 8, 8), torch.zeros(2))).shape
        torch.Size([2, 1, 8, 8])
    """
    images = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise TypeError(f"batch must be images or begin with images, found {type(images).__name__}")
    if images.ndim != 4 or not images.is_floating_point():
        raise TypeError(
            "batch must hold floating-point images (n, C, H, W) in [-1, 1], "
            f"found {images.dtype} of shape {tuple(images.shape)}"
        )
    return images


def check_optimizer(factory: Callable[..., Optimizer], schedule: str) -> None:
    """Compare what makes the optimizers with how the players take turns, as far as a class or a partial tells.

    Args:
        factory: ``(params, lr=...) -> Optimizer``.
        schedule: ``"simultaneous"``, ``"alternating"`` or ``"extragradient"``.

    Raises:
        ValueError: It brings a learning rate, which the players' own would override; its steps need a closure, or
            sparse gradients; or one of the two takes two gradients a step and the other one.

    Example:
        >>> check_optimizer(torch.optim.LBFGS, "simultaneous")
        Traceback (most recent call last):
        ...
        ValueError: optimizer must step without a closure, as a game has no single loss to evaluate anew, found LBFGS
    """
    if "lr" in getattr(factory, "keywords", {}):  # of a functools.partial: the call would override it
        raise ValueError(
            "optimizer must leave the learning rate to generator_lr and discriminator_lr, found one with"
            f" lr={factory.keywords['lr']!r}"  # type: ignore[attr-defined]
        )
    kind = factory.func if isinstance(factory, functools.partial) else factory
    if not isinstance(kind, type):
        return
    if issubclass(kind, torch.optim.LBFGS):
        raise ValueError(
            "optimizer must step without a closure, as a game has no single loss to evaluate anew, found LBFGS"
        )
    if issubclass(kind, torch.optim.SparseAdam):
        raise ValueError("optimizer must take dense gradients, as those of images' networks are, found SparseAdam")
    if callable(getattr(kind, "extrapolate", None)) != (schedule == "extragradient"):
        raise ValueError(
            "schedule='extragradient' and the optimizers ExtraAdam and ExtraSGD need each other, found"
            f" schedule={schedule!r} with {kind.__name__}"
        )


def check_range(images: Tensor) -> None:
    """Look whether images are scaled as generators draw them; one look waits for the device.

    Raises:
        ValueError: Values are outside [-1, 1].

    Warns:
        UserWarning: All are above zero, as between 0 and 1.

    Example:
        >>> import torch
        >>> check_range(torch.tensor([0.0, 255.0]))
        Traceback (most recent call last):
        ...
        ValueError: images must have values in [-1, 1], as a generator draws them, found 0 to 255: scale them where ...
    """
    low, high = (float(value) for value in images.aminmax())
    if low < -1 - _ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"images must have values in [-1, 1], as a generator draws them, found {low:.4g} to {high:.4g}: scale them"
            " where they are loaded, or in a subclass's real_images"
        )
    if low >= 0 and high > 0:
        warnings.warn(
            f"the images of the first batch have values from {low:.4g} to {high:.4g}; a generator draws from -1 to 1,"
            " so a discriminator could tell the two apart by their range",
            stacklevel=2,
        )


_LENGTHS = ("total_iters", "T_max", "total_steps")
"""What torch's schedulers call the step at which they are done."""


def length_of(scheduler: LRScheduler) -> dict[str, int]:
    """The step at which a schedule is done, by the name that it has there; nothing for one without an end.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        >>> length_of(torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=50))
        {'total_iters': 50}
    """
    return {name: getattr(scheduler, name) for name in _LENGTHS if hasattr(scheduler, name)}


def check_length(scheduler: LRScheduler, asked: dict[str, int]) -> None:
    """Compare a schedule with the one that was asked for before a checkpoint was restored, whose length it takes.

    Warns:
        UserWarning: They differ: the rates of a run that goes on for longer would stay where they ended.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        >>> check_length(torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=50), {"total_iters": 50})
    """
    for name, found in length_of(scheduler).items():
        if found != asked[name]:
            warnings.warn(
                f"the learning rates follow the checkpoint's schedule, {type(scheduler).__name__} with {name}={found},"
                f" and not {name}={asked[name]}: from step {found} on they stay where they are then. To train for"
                " longer with rates that move, start from the checkpoint's weights alone (load_from_checkpoint, then"
                " fit without ckpt_path)",
                stacklevel=2,
            )


def class_labels(batch: Any, num_classes: int) -> Tensor:
    """The classes of a batch ``(images, labels)``.

    Raises:
        TypeError: What is found there is not an integer tensor ``(n,)``.

    Example:
        >>> import torch
        >>> class_labels((torch.zeros(2, 1, 8, 8), torch.tensor([3, 1])), num_classes=10)
        tensor([3, 1])
    """
    labels = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        found = (
            f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        )
        raise TypeError(
            f"batch must be (images, labels) with integer labels (n,) from 0 to {num_classes - 1}, because the networks"
            f" are class-conditional; found {found} for labels"
        )
    return labels.long()


def check_images(generator: nn.Module, discriminator: nn.Module, data: object) -> None:
    """Compare the size and the channels that the players are for with those of a DataModule's images.

    Attributes that one of the two sides has not (networks and DataModules of one's own) are not compared.

    Args:
        generator: May have ``image_size`` and ``channels``.
        discriminator: Likewise.
        data: Likewise.

    Raises:
        ValueError: They differ.

    Example:
        >>> class Colours:
        ...     image_size, channels = 32, 3
        >>> class Grey(nn.Identity):
        ...     image_size, channels = 32, 1
        >>> check_images(Grey(), Grey(), Colours())
        Traceback (most recent call last):
        ...
        ValueError: the generator's channels must be 3, that of the images of Colours, found 1
    """
    for player, name in ((generator, "generator"), (discriminator, "discriminator")):
        for attribute in ("image_size", "channels"):
            mine, its = getattr(player, attribute, None), getattr(data, attribute, None)
            if isinstance(mine, int) and isinstance(its, int) and mine != its:
                raise ValueError(
                    f"the {name}'s {attribute} must be {its}, that of the images of {type(data).__name__}, found {mine}"
                )


def check_classes(classes: int | None, data: object) -> None:
    """Compare the classes that class-conditional players know with those of a DataModule that has been set up.

    Args:
        classes: How many; None and nothing is compared.
        data: May have ``num_classes``, None where its labels say nothing.

    Raises:
        ValueError: They differ, or the images have no labels.

    Example:
        >>> class Unlabelled:
        ...     num_classes = None
        >>> check_classes(10, Unlabelled())
        Traceback (most recent call last):
        ...
        ValueError: the networks tell 10 classes apart, but the images of Unlabelled have no labels: ...
    """
    if classes is not None and hasattr(data, "num_classes"):
        its = data.num_classes
        if its is None:
            raise ValueError(
                f"the networks tell {classes} classes apart, but the images of {type(data).__name__} have no labels:"
                " leave num_classes out, or bring labels"
            )
        if its != classes:
            raise ValueError(f"num_classes must be {its}, the classes of {type(data).__name__}, found {classes}")


def number_of_classes(generator: nn.Module, discriminator: nn.Module) -> int | None:
    """Of how many classes both players know, their attribute ``num_classes``; None if they know of none.

    Raises:
        ValueError: One knows of others than the other.

    Example:
        >>> number_of_classes(nn.Linear(2, 3), nn.Linear(3, 1)) is None
        True
    """
    classes = [getattr(player, "num_classes", None) for player in (generator, discriminator)]
    if classes[0] != classes[1]:
        raise ValueError(
            f"generator and discriminator must have the same num_classes, found {classes[0]} and {classes[1]}"
        )
    return None if classes[0] is None else check_integer("num_classes", classes[0], 1)


def separate_players(generator: nn.Module, discriminator: nn.Module) -> None:
    """Both players are networks with parameters, and none of these is in both.

    Raises:
        TypeError: One is not a ``torch.nn.Module``.
        ValueError: One has no parameters, or they share some.

    Example:
        >>> separate_players(nn.Linear(2, 3), nn.Linear(3, 1))
    """
    for name, player in (("generator", generator), ("discriminator", discriminator)):
        if not isinstance(player, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, found {type(player).__name__}")
        if next(player.parameters(), None) is None:
            raise ValueError(f"{name} must have parameters, found none in {type(player).__name__}")
    held = {id(parameter) for parameter in generator.parameters()}
    shared = [name for name, parameter in discriminator.named_parameters() if id(parameter) in held]
    if shared:
        raise ValueError(f"generator and discriminator must not share parameters, found {', '.join(shared)} in both")
