"""The LightningModule of a two-player game: two networks, a loss, an optimizer each, an averaged generator.

It decides who moves on which batch and what is logged; the step itself is in :mod:`lightning_decgan.gan.step`. It
trains under any Lightning strategy and knows of none: it never communicates on the training path and never asks for its
rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from lightning_decgan.checks import check_integer
from lightning_decgan.gan.augment import AugmentSpec, DiffAugment, get_augment
from lightning_decgan.gan.checks import (
    check_classes,
    check_images,
    check_length,
    check_optimizer,
    check_range,
    class_labels,
    image_batch,
    length_of,
    number,
    number_of_classes,
    separate_players,
)
from lightning_decgan.gan.ema import averaged_copy, precisely, update_average, warmed_up
from lightning_decgan.gan.game import Game, Labels
from lightning_decgan.gan.independence import treats_samples_independently
from lightning_decgan.gan.loss_watch import LossWatch, check_finite
from lightning_decgan.gan.losses import LossSpec, get_loss
from lightning_decgan.gan.penalties import LazyPenalty, PenaltySpec, lazy_penalties
from lightning_decgan.gan.sampling import Sampling, evaluating, seeded
from lightning_decgan.gan.step import StepReport, alternating_step, extragradient_step, simultaneous_step
from lightning_decgan.memory import keep_freed_memory
from lightning_decgan.optim import OptimisticAdam, get_optimizer

__all__ = ["DEFAULT_OPTIMIZER", "SCHEDULES", "DecentralizedGANModule"]

OptimizerFactory: TypeAlias = Callable[..., Optimizer]
SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]

DEFAULT_OPTIMIZER: OptimizerFactory = functools.partial(OptimisticAdam, betas=(0.5, 0.9))
"""Optimistic Adam with the betas that are usual for GANs."""

SCHEDULES = {
    "simultaneous": simultaneous_step,
    "alternating": alternating_step,
    "extragradient": extragradient_step,
}
"""How the two players take turns within a batch."""

GENERATED_LABELS = ("uniform", "batch")
"""Where the classes that a conditional generator is asked for in training come from."""


class DecentralizedGANModule(LightningModule, Game, Sampling):
    """A GAN whose two players move at once, by default with optimistic Adam, under whatever strategy the Trainer has.

    Override one method to change one thing: :meth:`discriminator_loss`, :meth:`generator_loss`, :meth:`penalty`,
    :meth:`sample_latent`, :meth:`sample_labels`, :meth:`real_images`, :meth:`real_labels`.

    Args:
        generator: Maps latents ``(n, latent_dim)`` to images ``(n, C, H, W)`` in [-1, 1]. With an attribute
            ``num_classes`` that is not None it is called with labels ``(n,)`` as well, and so is the discriminator,
            which must have as many; batches are then ``(images, labels)``.
        discriminator: Maps images to logits ``(n,)`` (no sigmoid). The two networks share no parameter.
        latent_dim: Length of a latent vector; ``generator.latent_dim`` by default.
        loss: A name of :data:`~lightning_decgan.gan.losses.LOSSES`, an object with its two methods, or a pair of
            callables ``(discriminator, generator)``.
        penalty: None, a name of :data:`~lightning_decgan.gan.penalties.PENALTIES`, a callable
            ``(discriminator, real, fake) -> scalar``, or one or a list of
            :class:`~lightning_decgan.gan.penalties.LazyPenalty`, each with a weight and an interval of its own.
        penalty_weight: Factor of a single penalty (the papers' gamma and lambda).
        penalty_every_steps: Compute a single penalty on each n-th step of the discriminator only, with n times the
            weight (lazy regularization: Karras et al. 2020, arXiv:1912.04958, appendix B).
        augment: What real and generated images go through before the discriminator sees them: None, a policy such as
            ``"color,translation,cutout"`` or a list of such names (:class:`~lightning_decgan.gan.augment.DiffAugment`),
            or a differentiable callable of images.
        optimizer: A callable ``(params, lr=...) -> torch.optim.Optimizer`` that makes each player's optimizer, or the
            name of one in :mod:`lightning_decgan.optim` or :mod:`torch.optim`.
        generator_lr: Learning rate of the generator.
        discriminator_lr: Learning rate of the discriminator.
        lr_scheduler: A callable ``optimizer -> scheduler``; stepped once per training batch.
        generator_clip_norm: Shorten the generator's gradient to this Euclidean norm; None leaves it.
        discriminator_clip_norm: The same for the discriminator.
        ema_decay: Decay per generator step of the averaged generator; None keeps no average.
        ema_warmup: Begin with a short memory, of decay ``(1 + n) / (10 + n)`` after n generator steps.
        generator_every_steps: The generator moves on each n-th training batch, the first included. With n the
            discriminator moves n times as often (``n_critic``).
        discriminator_every_steps: The same for the discriminator. One of the two must be 1.
        schedule: ``"simultaneous"``, ``"alternating"`` (the generator meets the discriminator after its step), or
            ``"extragradient"`` (two gradients a step; needs ``ExtraAdam`` or ``ExtraSGD``).
        terminate_on_nan: Stop with an error at a loss that is not finite, as none after it will be. Looked at after
            each batch on the CPU; elsewhere, where looking waits for the device, after each 50th and at validation.
        generated_labels: Which classes a conditional generator is asked for in a training step: ``"uniform"``, drawn
            uniformly (:meth:`sample_labels`), or ``"batch"``, those of the real images. With ``"batch"`` a worker whose
            data has some of the classes only never teaches its discriminator that all images of the others are fakes.
        joint: Run the discriminator over real and generated images in one batch, and take both players' gradients from
            one backward through it; right where it treats samples independently. None finds out at the first batch.
        keep_memory: On a CPU, what a step has freed stays with the process for the next step, which is up to a quarter
            faster (:func:`~lightning_decgan.memory.keep_freed_memory`). It applies to all of the process, from the
            start of training on.

    Attributes:
        batches_seen: Training batches so far. Saved in checkpoints, so that turns go on where they stopped.
        ema_generator: The averaged generator or None. In the state dict, in no optimizer.

    Raises:
        ValueError: A setting is out of range or unknown, or the players share parameters.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: While training, at a loss that is not finite; names the batch, the player and what it was
            before.

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
        penalty: PenaltySpec | Sequence[LazyPenalty] = None,
        penalty_weight: float = 10.0,
        penalty_every_steps: int = 1,
        augment: AugmentSpec = None,
        optimizer: str | OptimizerFactory = DEFAULT_OPTIMIZER,
        generator_lr: float = 2e-4,
        discriminator_lr: float = 2e-4,
        lr_scheduler: SchedulerFactory | None = None,
        generator_clip_norm: float | None = None,
        discriminator_clip_norm: float | None = None,
        ema_decay: float | None = 0.999,
        ema_warmup: bool = True,
        generator_every_steps: int = 1,
        discriminator_every_steps: int = 1,
        schedule: str = "simultaneous",
        terminate_on_nan: bool = True,
        generated_labels: str = "uniform",
        joint: bool | None = None,
        keep_memory: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        separate_players(generator, discriminator)
        if latent_dim is None:
            if not hasattr(generator, "latent_dim"):
                raise ValueError(f"latent_dim must be given: {type(generator).__name__} has no attribute latent_dim")
            latent_dim = int(generator.latent_dim)  # type: ignore[arg-type]
        self.num_classes = number_of_classes(generator, discriminator)
        make_optimizer = get_optimizer(optimizer)
        if lr_scheduler is not None and not callable(lr_scheduler):
            raise TypeError(f"lr_scheduler must be a callable of an optimizer, found {type(lr_scheduler).__name__}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, found {schedule!r}")
        if generated_labels not in GENERATED_LABELS:
            raise ValueError(
                f"generated_labels must be one of {', '.join(GENERATED_LABELS)}, found {generated_labels!r}"
            )
        check_optimizer(make_optimizer, schedule)
        self.generated_labels = generated_labels
        self.latent_dim = check_integer("latent_dim", latent_dim, 1)
        self.penalty_weight = number("penalty_weight", penalty_weight, ">= 0", lambda weight: weight >= 0)
        self.penalty_every_steps = check_integer("penalty_every_steps", penalty_every_steps, 1)
        self.generator_lr = number("generator_lr", generator_lr, "> 0", lambda lr: lr > 0)
        self.discriminator_lr = number("discriminator_lr", discriminator_lr, "> 0", lambda lr: lr > 0)
        self.generator_every_steps = check_integer("generator_every_steps", generator_every_steps, 1)
        self.discriminator_every_steps = check_integer("discriminator_every_steps", discriminator_every_steps, 1)
        if min(generator_every_steps, discriminator_every_steps) > 1:
            raise ValueError(
                "one of generator_every_steps and discriminator_every_steps must be 1, "
                f"found {generator_every_steps} and {discriminator_every_steps}: on some batches nobody would move"
            )
        if ema_decay is not None:
            number("ema_decay", ema_decay, "in [0, 1), or None", lambda decay: 0 <= decay < 1)
        for name, norm in (
            ("generator_clip_norm", generator_clip_norm),
            ("discriminator_clip_norm", discriminator_clip_norm),
        ):
            if norm is not None:
                number(name, norm, "> 0, or None", lambda norm: norm > 0)
        self.generator_clip_norm, self.discriminator_clip_norm = generator_clip_norm, discriminator_clip_norm
        self.ema_decay, self.ema_warmup = ema_decay, ema_warmup
        self.schedule = schedule
        self.loss = get_loss(loss)
        self.relative = bool(getattr(self.loss, "relative", False))
        self.augment = get_augment(augment)
        self.batches_seen = 0
        self.keep_memory = keep_memory
        self._joint, self.joint = joint, bool(joint)
        self._watch = LossWatch() if terminate_on_nan else None
        self._penalties = lazy_penalties(penalty, self.penalty_weight, self.penalty_every_steps)
        self._make_optimizer = make_optimizer
        self._make_scheduler = lr_scheduler

        self.generator, self.discriminator = generator, discriminator
        self.ema_generator = None if ema_decay is None else averaged_copy(generator)

        if isinstance(self.augment, DiffAugment):
            augment = self.augment.policy  # of a list as well: a plain setting to save
        objects = {"loss": loss, "penalty": penalty, "augment": augment, "optimizer": optimizer}
        plain = [name for name, value in objects.items() if value is None or isinstance(value, str)]
        self.save_hyperparameters(
            *plain,
            *("latent_dim", "penalty_weight", "penalty_every_steps", "generator_lr", "discriminator_lr", "ema_decay"),
            *("generator_every_steps", "discriminator_every_steps", "schedule", "ema_warmup", "joint"),
            *("terminate_on_nan", "generated_labels", "keep_memory"),
            *("generator_clip_norm", "discriminator_clip_norm"),
        )

    # What a subclass may want to say differently

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The scalar that the discriminator minimises, without the penalty; logits are ``(n,)``, float32 or better."""
        return self.loss.discriminator(real_logits, fake_logits)

    @override
    def generator_loss(self, fake_logits: Tensor, *real_logits: Tensor) -> Tensor:
        """The scalar that the generator minimises; the real logits come along where the loss is relative."""
        return self.loss.generator(fake_logits, *real_logits)

    @override
    def penalty(self, real: Tensor, fake: Tensor, *labels: Tensor) -> Tensor | None:
        """The weighted scalar added to the discriminator's loss in this step, or None.

        Args:
            real: Real images.
            fake: Generated images, without a graph.
            labels: The real images' classes, where the game is conditional.
        """
        step = self.batches_seen // self.discriminator_every_steps
        due = [penalty for penalty in self._penalties if penalty.is_due(step)]
        plain = self.augment is None and not labels
        critic = self.discriminator if plain else lambda images: self.judge(images, *labels)
        return torch.stack([penalty(critic, real, fake) for penalty in due]).sum() if due else None

    def real_images(self, batch: Any) -> Tensor:
        """The real images ``(n, C, H, W)`` of a batch: the batch itself or the first element of a sequence."""
        return image_batch(batch)

    def real_labels(self, batch: Any) -> Tensor:
        """The classes ``(n,)`` of the real images: the second element of a batch; for conditional games only."""
        assert self.num_classes is not None
        return class_labels(batch, self.num_classes)

    # What one calls

    @override
    def forward(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``(n, C, H, W)`` from latents, by the generator in training."""
        return self.generate(latent, labels)

    # What Lightning calls

    @override
    def setup(self, stage: str) -> None:
        """Refuse what cannot go well before anything is trained: data of another kind than the networks are for."""
        if getattr(self, "_compiler_ctx", None) is not None:  # what Lightning leaves there
            raise ValueError(
                "the players are what to compile, found the whole module compiled: a step is backwards and optimizers,"
                " which torch.compile does not trace. Call module.generator.compile() and"
                " module.discriminator.compile() and give the module itself to the Trainer"
            )
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        if data is not None:
            check_images(self.generator, self.discriminator, data)
            check_classes(self.num_classes, data)

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
        self._lengths = [length_of(scheduler) for scheduler in schedulers]
        return optimizers, schedulers

    @override
    def on_train_start(self) -> None:
        """Say so where a checkpoint has brought schedules of another length than was asked for; keep freed memory."""
        if self.keep_memory and self.device.type == "cpu":
            keep_freed_memory()
        if self._make_scheduler is not None:
            for scheduler, asked in zip(self._schedulers(), self._lengths, strict=True):
                check_length(scheduler, asked)

    @override
    def on_fit_end(self) -> None:
        """Say so where there was nothing to train on, which Lightning takes for a finished run."""
        trainer = self.trainer
        if trainer.num_training_batches == 0 and trainer.limit_train_batches != 0:
            raise ValueError(
                "the training data must give each worker at least one batch, found none: with drop_last=True a loader"
                f" on {trainer.world_size} worker(s) needs {trainer.world_size} times its batch_size of samples"
            )

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step of the game; logs the losses, the penalty and the mean logits of this worker."""
        real, labels = self.real_images(batch), self._labels(batch)
        if self.batches_seen == 0:
            check_range(real)
        optimizers: list[Optimizer] = self.optimizers()  # type: ignore[assignment]
        discriminator_optimizer = self._on_turn(optimizers[0], self.discriminator_every_steps)
        generator_optimizer = self._on_turn(optimizers[1], self.generator_every_steps)
        step, latent = SCHEDULES[self.schedule], self.sample_latent(len(real))
        if self._joint is None:
            self._joint = self.joint = self._may_be_joint(real, latent, labels)
        if discriminator_optimizer is None and generator_optimizer is None:  # one is frozen, the other not on turn
            report = StepReport()
        else:
            report = step(self, real, latent, discriminator_optimizer, generator_optimizer, labels)
        if generator_optimizer is not None and self.ema_generator is not None and self.ema_decay is not None:
            updates = self.batches_seen // self.generator_every_steps
            decay = warmed_up(self.ema_decay, updates) if self.ema_warmup else self.ema_decay
            update_average(self.ema_generator, self.generator, decay)
        if self._make_scheduler is not None:
            for scheduler in self._schedulers():
                scheduler.step()
        self.batches_seen += 1
        if self._watch is not None:
            self._watch.note(self.batches_seen, report)
        self._log("", report, len(real), prog_bar=True)

    @override
    @torch.no_grad()
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Both losses on a batch, without penalty, as ``val/...``; updates nothing, the random state included."""
        real = self.real_images(batch)
        with seeded(batch_idx, self._sampling_device):
            labels = self._labels(batch)
            real_labels, fake_labels = labels or (None, None)
            fake = self.generate(self.sample_latent(len(real)), fake_labels)
            real_logits, fake_logits = self.judge(real, real_labels), self.judge(fake, fake_labels)
        report = StepReport(
            discriminator_loss=self.discriminator_loss(real_logits, fake_logits),
            generator_loss=self.generator_loss(fake_logits, *([real_logits] if self.relative else [])),
            real_logits=real_logits.mean(),
            fake_logits=fake_logits.mean(),
        )
        self._log("val/", report, len(real), sync_dist=True)

    @override
    def on_validation_start(self) -> None:
        """Look at the losses before others judge the model, and before a good checkpoint gives way to a bad one."""
        if self._watch is not None:
            self._watch.look()

    on_train_epoch_end = on_validation_start

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of batches, on which the players' turns depend.

        Raises:
            FloatingPointError: A weight is not finite: a good checkpoint must not give way to it.
        """
        if self._watch is not None:
            check_finite(checkpoint["state_dict"])
        checkpoint["batches_seen"] = self.batches_seen

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the count of batches back."""
        self.batches_seen = int(checkpoint.get("batches_seen", 0))

    # What the step asks for

    @property
    @override
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of 16-bit mixed precision, None with any other precision."""
        return None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Lightning puts a module into the players' precision again at every start, a resumed one too.
        average, self.ema_generator = self.ema_generator, None
        try:
            super()._apply(fn, recurse)
        finally:
            self.ema_generator = average
        if average is not None and recurse:
            average._apply(precisely(fn))
        return self

    def _schedulers(self) -> list[LRScheduler]:
        return self.lr_schedulers()  # type: ignore[return-value]  # there are two

    def _labels(self, batch: Any) -> Labels | None:
        """The classes of a batch's real images and those to generate, where the game is conditional."""
        if self.num_classes is None:
            return None
        real = self.real_labels(batch)
        return real, real if self.generated_labels == "batch" else self.sample_labels(len(real))

    @torch.no_grad()
    def _may_be_joint(self, real: Tensor, latent: Tensor, labels: Labels | None) -> bool:
        """Try the discriminator with a first batch; the training that follows is as if this had not been."""
        with seeded(0, self._sampling_device), evaluating(self.generator):
            fake = self.generate(latent, None if labels is None else labels[1])
        independent = fake.shape == real.shape and treats_samples_independently(self, real, fake, labels)
        torch.clear_autocast_cache()  # older torch keeps weights there that know no gradient
        return independent

    def _on_turn(self, optimizer: Optimizer, every_steps: int) -> Optimizer | None:
        """The optimizer of a player that moves on this batch; a player that is wholly frozen rests."""
        trained = any(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"])
        return optimizer if trained and self.batches_seen % every_steps == 0 else None

    def _log(self, prefix: str, report: StepReport, batch_size: int, *, prog_bar: bool = False, **how: Any) -> None:
        losses = {"d_loss": report.discriminator_loss, "g_loss": report.generator_loss}
        others = {"penalty": report.penalty, "d_real": report.real_logits, "d_fake": report.fake_logits}
        for values, shown in ((losses, prog_bar), (others, False)):
            found = {prefix + name: value for name, value in values.items() if value is not None}
            self.log_dict(found, prog_bar=shown, batch_size=batch_size, **how)
