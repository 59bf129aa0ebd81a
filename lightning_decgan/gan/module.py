"""The LightningModule of a two-player game: two networks, a loss, an optimizer each, an averaged generator.

It decides who moves on which batch and what is logged; the step itself is in :mod:`lightning_decgan.gan.step`. It
trains under any Lightning strategy and knows of none: it never communicates on the training path and never asks for its
rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from lightning_decgan.gan.checks import count, image_batch, number, separate_players
from lightning_decgan.gan.ema import averaged_copy, update_average
from lightning_decgan.gan.losses import LossSpec, get_loss
from lightning_decgan.gan.penalties import PenaltySpec, get_penalty
from lightning_decgan.gan.sampling import evaluating, seeded
from lightning_decgan.gan.step import StepReport, alternating_step, full_precision, judge, simultaneous_step
from lightning_decgan.optim import OptimisticAdam

__all__ = ["DEFAULT_OPTIMIZER", "SCHEDULES", "DecentralizedGANModule"]

OptimizerFactory: TypeAlias = Callable[..., Optimizer]
SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]

DEFAULT_OPTIMIZER: OptimizerFactory = functools.partial(OptimisticAdam, betas=(0.5, 0.9))
"""Optimistic Adam with the betas that are usual for GANs."""

SCHEDULES = {"simultaneous": simultaneous_step, "alternating": alternating_step}
"""How the two players take turns within a batch."""


class DecentralizedGANModule(LightningModule):
    """A GAN whose two players move at once, by default with optimistic Adam, under whatever strategy the Trainer has.

    Override one method to change one thing: :meth:`discriminator_loss`, :meth:`generator_loss`, :meth:`penalty`,
    :meth:`sample_latent`, :meth:`real_images`.

    Args:
        generator: Maps latents ``(n, latent_dim)`` to images ``(n, C, H, W)`` in [-1, 1].
        discriminator: Maps images to logits ``(n,)`` (no sigmoid). The two networks share no parameter.
        latent_dim: Length of a latent vector; ``generator.latent_dim`` by default.
        loss: A name of :data:`~lightning_decgan.gan.losses.LOSSES`, an object with its two methods, or a pair of
            callables ``(discriminator, generator)``.
        penalty: None, ``"r1"``, ``"wgan_gp"``, or a callable ``(discriminator, real, fake) -> scalar``.
        penalty_weight: Factor of the penalty (the papers' gamma and lambda).
        penalty_every_steps: Compute the penalty on each n-th step of the discriminator only, with n times the weight
            (lazy regularization: Karras et al. 2020, arXiv:1912.04958, appendix B).
        optimizer: A callable ``(params, lr=...) -> torch.optim.Optimizer`` that makes each player's optimizer.
        generator_lr: Learning rate of the generator.
        discriminator_lr: Learning rate of the discriminator.
        lr_scheduler: A callable ``optimizer -> scheduler``; stepped once per training batch.
        ema_decay: Decay per generator step of the averaged generator; None keeps no average.
        generator_every_steps: The generator moves on each n-th training batch, the first included. With n the
            discriminator moves n times as often (``n_critic``).
        discriminator_every_steps: The same for the discriminator. One of the two must be 1.
        schedule: ``"simultaneous"`` or ``"alternating"`` (the generator meets the discriminator after its step).

    Attributes:
        batches_seen: Training batches so far. Saved in checkpoints, so that turns go on where they stopped.
        ema_generator: The averaged generator or None. In the state dict, in no optimizer.

    Raises:
        ValueError: A setting is out of range or unknown, or the players share parameters.
        TypeError: An argument is of the wrong kind.

    Only plain settings are saved as hyperparameters: ``load_from_checkpoint(path, generator=..., discriminator=...)``
    needs the networks again, and whatever else was given as an object (a loss, a penalty, an optimizer).

    Example:
        >>> from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator
        >>> gan = DecentralizedGANModule(DCGANGenerator(image_size=8), DCGANDiscriminator(image_size=8), loss="hinge")
        >>> gan.sample(2, seed=0).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        latent_dim: int | None = None,
        loss: LossSpec = "non_saturating",
        penalty: PenaltySpec = None,
        penalty_weight: float = 10.0,
        penalty_every_steps: int = 1,
        optimizer: OptimizerFactory = DEFAULT_OPTIMIZER,
        generator_lr: float = 2e-4,
        discriminator_lr: float = 2e-4,
        lr_scheduler: SchedulerFactory | None = None,
        ema_decay: float | None = 0.999,
        generator_every_steps: int = 1,
        discriminator_every_steps: int = 1,
        schedule: str = "simultaneous",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        separate_players(generator, discriminator)
        if latent_dim is None:
            if not hasattr(generator, "latent_dim"):
                raise ValueError(f"latent_dim must be given: {type(generator).__name__} has no attribute latent_dim")
            latent_dim = int(generator.latent_dim)  # type: ignore[arg-type]
        if not callable(optimizer):
            raise TypeError(f"optimizer must be a callable (params, lr=...), found {type(optimizer).__name__}")
        if lr_scheduler is not None and not callable(lr_scheduler):
            raise TypeError(f"lr_scheduler must be a callable of an optimizer, found {type(lr_scheduler).__name__}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, found {schedule!r}")
        self.latent_dim = count("latent_dim", latent_dim)
        self.penalty_weight = number("penalty_weight", penalty_weight, ">= 0", lambda weight: weight >= 0)
        self.penalty_every_steps = count("penalty_every_steps", penalty_every_steps)
        self.generator_lr = number("generator_lr", generator_lr, "> 0", lambda lr: lr > 0)
        self.discriminator_lr = number("discriminator_lr", discriminator_lr, "> 0", lambda lr: lr > 0)
        self.generator_every_steps = count("generator_every_steps", generator_every_steps)
        self.discriminator_every_steps = count("discriminator_every_steps", discriminator_every_steps)
        if min(generator_every_steps, discriminator_every_steps) > 1:
            raise ValueError(
                "one of generator_every_steps and discriminator_every_steps must be 1, "
                f"found {generator_every_steps} and {discriminator_every_steps}: on some batches nobody would move"
            )
        if ema_decay is not None:
            number("ema_decay", ema_decay, "in [0, 1), or None", lambda decay: 0 <= decay < 1)
        self.ema_decay = ema_decay
        self.schedule = schedule
        self.loss = get_loss(loss)
        self.batches_seen = 0
        self._penalty = get_penalty(penalty)
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler

        self.generator, self.discriminator = generator, discriminator
        self.ema_generator = None if ema_decay is None else averaged_copy(generator)

        objects = {"loss": loss, "penalty": penalty}
        plain = [name for name, value in objects.items() if value is None or isinstance(value, str)]
        self.save_hyperparameters(
            *plain,
            *("latent_dim", "penalty_weight", "penalty_every_steps", "generator_lr", "discriminator_lr", "ema_decay"),
            *("generator_every_steps", "discriminator_every_steps", "schedule"),
        )

    # What a subclass may want to say differently

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The scalar that the discriminator minimises, without the penalty; logits are ``(n,)``, float32 or better."""
        return self.loss.discriminator(real_logits, fake_logits)

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        """The scalar that the generator minimises."""
        return self.loss.generator(fake_logits)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor | None:
        """The weighted scalar added to the discriminator's loss in this step, or None.

        Args:
            real: Real images.
            fake: Generated images, without a graph.
        """
        if self._penalty is None or self.penalty_weight == 0 or not self.penalty_due:
            return None
        return self.penalty_weight * self.penalty_every_steps * self._penalty(self.discriminator, real, fake)

    def sample_latent(self, n: int) -> Tensor:
        """Latents ``(n, latent_dim)`` from N(0, I), of the generator's dtype and device, from the global RNG."""
        like = next(self.generator.parameters())
        return torch.randn(n, self.latent_dim, device=like.device, dtype=like.dtype)

    def real_images(self, batch: Any) -> Tensor:
        """The real images ``(n, C, H, W)`` of a batch: the batch itself or the first element of a sequence."""
        return image_batch(batch)

    # What one calls

    @override
    def forward(self, latent: Tensor) -> Tensor:
        """Images ``(n, C, H, W)`` from latents, by the generator in training."""
        return self.generator(latent)

    @torch.no_grad()
    def sample(self, n: int, *, seed: int | None = None, ema: bool = True) -> Tensor:
        """Generate images, in evaluation mode; the mode is put back afterwards.

        Args:
            n: How many.
            seed: Seed of the latents. The same seed gives the same latents on the same kind of device, and the global
                random state stays untouched. None draws from the global random state.
            ema: Use the averaged generator, where there is one.

        Returns:
            ``(n, C, H, W)`` in [-1, 1], on the module's device.

        Raises:
            ValueError: ``n`` is not a positive integer.
        """
        count("n", n)
        network = self.ema_generator if ema and self.ema_generator is not None else self.generator
        with evaluating(network), seeded(seed, self._sampling_device):
            return full_precision(network(self.sample_latent(n)))

    # What Lightning calls

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """``[discriminator's optimizer, generator's optimizer]``, in this order, and as many schedulers."""
        players = ((self.discriminator, self.discriminator_lr), (self.generator, self.generator_lr))
        optimizers = [self._make_optimizer(player.parameters(), lr=lr) for player, lr in players]
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise TypeError(f"optimizer must make a torch.optim.Optimizer, found {type(optimizer).__name__}")
        if self._make_scheduler is None:
            return optimizers
        schedulers = [self._make_scheduler(optimizer) for optimizer in optimizers]
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise TypeError(
                    f"lr_scheduler must make a scheduler that steps without a metric, found {type(scheduler).__name__}"
                )
        return optimizers, schedulers

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step of the game; logs the losses, the penalty and the mean logits of this worker."""
        real = self.real_images(batch)
        optimizers: list[Optimizer] = self.optimizers()  # type: ignore[assignment]
        discriminator_optimizer = self._on_turn(optimizers[0], self.discriminator_every_steps)
        generator_optimizer = self._on_turn(optimizers[1], self.generator_every_steps)
        step, latent = SCHEDULES[self.schedule], self.sample_latent(len(real))
        report = step(self, real, latent, discriminator_optimizer, generator_optimizer)
        if generator_optimizer is not None and self.ema_generator is not None and self.ema_decay is not None:
            update_average(self.ema_generator, self.generator, self.ema_decay)
        if self._make_scheduler is not None:
            for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
                scheduler.step()
        self.batches_seen += 1
        self._log("", report, len(real), prog_bar=True)

    @override
    @torch.no_grad()
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Both losses on a batch, without penalty, as ``val/...``; updates nothing, the random state included."""
        real = self.real_images(batch)
        with seeded(batch_idx, self._sampling_device):
            fake = self.generator(self.sample_latent(len(real)))
        real_logits, fake_logits = judge(self.discriminator, real, fake)
        assert real_logits is not None
        report = StepReport(
            discriminator_loss=self.discriminator_loss(real_logits, fake_logits),
            generator_loss=self.generator_loss(fake_logits),
            real_logits=real_logits.mean(),
            fake_logits=fake_logits.mean(),
        )
        self._log("val/", report, len(real), sync_dist=True)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of batches, on which the players' turns depend."""
        checkpoint["batches_seen"] = self.batches_seen

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the count of batches back."""
        self.batches_seen = int(checkpoint.get("batches_seen", 0))

    # What the step asks for

    @property
    def penalty_due(self) -> bool:
        """Whether the discriminator's present step is one with a penalty."""
        return (self.batches_seen // self.discriminator_every_steps) % self.penalty_every_steps == 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of 16-bit mixed precision, None with any other precision."""
        return None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)

    @property
    def _sampling_device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def _on_turn(self, optimizer: Optimizer, every_steps: int) -> Optimizer | None:
        """The optimizer of a player that moves on this batch; a player that is wholly frozen rests."""
        trained = any(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"])
        return optimizer if trained and self.batches_seen % every_steps == 0 else None

    @torch.compiler.disable  # Lightning's logging cannot be traced where the whole module is compiled
    def _log(self, prefix: str, report: StepReport, batch_size: int, *, prog_bar: bool = False, **how: Any) -> None:
        losses = {"d_loss": report.discriminator_loss, "g_loss": report.generator_loss}
        others = {"penalty": report.penalty, "d_real": report.real_logits, "d_fake": report.fake_logits}
        for values, shown in ((losses, prog_bar), (others, False)):
            found = {prefix + name: value for name, value in values.items() if value is not None}
            self.log_dict(found, prog_bar=shown, batch_size=batch_size, **how)
