"""Drawing images from a generator, also in the middle of its training, without a trace in it.

Two context managers put a network into evaluation mode and back, and make random numbers from a seed; the mix-in
:class:`Sampling` draws latents, labels and images. Nothing here trains or knows of a discriminator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.game import full_precision

__all__ = ["Sampling", "evaluating", "seeded"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; each submodule is put back into the mode that it was in.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` within the block, and the global state as it was after it.

    Args:
        seed: None changes nothing: random numbers come from the global state.
        device: The device on which random numbers are drawn, besides the CPU. Other devices are left alone.

    Example:
        >>> with seeded(0, torch.device("cpu")):
        ...     first = torch.rand(3)
        >>> with seeded(0, torch.device("cpu")):
        ...     bool((torch.rand(3) == first).all())
        True
    """
    if seed is None:
        yield
    elif device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    else:
        module = torch.get_device_module(device)
        with torch.random.fork_rng(devices=[device], device_type=device.type), device:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every device
            # of several GPUs the current one would be seeded, which need not be this one
            with module.device(device) if hasattr(module, "device") else nullcontext():
                module.manual_seed(seed)
            yield


class Sampling:
    """What one can draw from a module that has a generator.

    Attributes:
        generator: The generator in training.
        ema_generator: Its average or None.
        latent_dim: Length of a latent vector.
        num_classes: Of a conditional generator, else None.
    """

    generator: nn.Module
    ema_generator: nn.Module | None
    latent_dim: int
    num_classes: int | None

    def sample_latent(self, n: int) -> Tensor:
        """Latents ``(n, latent_dim)`` from N(0, I), of the generator's dtype and device, from the global RNG."""
        like = next(self.generator.parameters())
        return torch.randn(n, self.latent_dim, device=like.device, dtype=like.dtype)

    def sample_labels(self, n: int) -> Tensor:
        """Classes ``(n,)`` to generate, drawn uniformly from the global RNG; for conditional generators only."""
        assert self.num_classes is not None
        return torch.randint(self.num_classes, (n,), device=self._sampling_device)

    def classes_in_turn(self, n: int, first: int = 0) -> Tensor | None:
        """The classes of ``n`` images from image ``first`` on, taken in turn; None for a generator without classes.

        Whoever draws many images a batch at a time passes them on, or every batch would begin with class 0 anew.
        """
        if self.num_classes is None:
            return None
        return torch.arange(first, first + n, device=self._sampling_device) % self.num_classes

    @torch.no_grad()
    def sample(
        self, n: int, *, labels: Tensor | int | None = None, seed: int | None = None, ema: bool = True
    ) -> Tensor:
        """Generate images, in evaluation mode; the mode is put back afterwards.

        Args:
            n: How many.
            labels: For a conditional generator: the classes ``(n,)``, or one class for all. None takes the classes in
                turn, 0, 1, 2, ...; see :meth:`classes_in_turn` for more images than are drawn at a time.
            seed: Seed of the latents. The same seed gives the same latents on the same kind of device, and the global
                random state stays untouched. None draws from the global random state.
            ema: Use the averaged generator, where there is one.

        Returns:
            ``(n, C, H, W)`` in [-1, 1], on the module's device.

        Raises:
            TypeError: ``n`` is not an integer.
            ValueError: ``n`` is below 1, or labels are given to a generator without classes, or are not classes.
        """
        check_integer("n", n, 1)
        with seeded(seed, self._sampling_device):
            return self.render(self.sample_latent(n), labels=labels, ema=ema)

    @torch.no_grad()
    def render(self, latent: Tensor, *, labels: Tensor | int | None = None, ema: bool = True) -> Tensor:
        """The images of latents, in evaluation mode; the mode is put back afterwards.

        Args:
            latent: ``(n, latent_dim)``.
            labels: As in :meth:`sample`.
            ema: Use the averaged generator, where there is one.

        Returns:
            ``(n, C, H, W)`` in [-1, 1], on the module's device.

        Raises:
            ValueError: The labels are not classes, or are given to a generator without any.
        """
        network = self.ema_generator if ema and self.ema_generator is not None else self.generator
        asked = self._asked_labels(len(latent), labels)
        with evaluating(network):
            return full_precision(network(latent.to(next(network.parameters()).dtype), *asked))

    @property
    def _sampling_device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def _asked_labels(self, n: int, labels: Tensor | int | None) -> tuple[Tensor, ...]:
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("labels must be None: the generator has no classes (num_classes)")
            return ()
        device = self._sampling_device
        if labels is None:
            labels = self.classes_in_turn(n)
        asked = torch.full((n,), labels) if isinstance(labels, int) else torch.as_tensor(labels)
        if (
            asked.shape != (n,)
            or asked.is_floating_point()
            or not bool(((asked >= 0) & (asked < self.num_classes)).all())
        ):
            raise ValueError(f"labels must be {n} classes from 0 to {self.num_classes - 1}, found {labels!r}")
        return (asked.to(device),)
