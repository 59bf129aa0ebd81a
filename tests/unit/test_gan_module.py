"""The LightningModule: it trains, takes turns, averages, samples, logs, saves, and lets a subclass have its way."""

import copy
import functools
import logging
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan.gan import DCGANDiscriminator, DCGANGenerator, DecentralizedGANModule
from lightning_decgan.gan.ema import averaged_copy, update_average, warmed_up
from lightning_decgan.gan.loss_watch import LossWatch
from lightning_decgan.gan.losses import Wasserstein
from lightning_decgan.gan.penalties import LazyPenalty, dragan, r1
from lightning_decgan.optim import OptimisticAdam

SGD = functools.partial(torch.optim.SGD)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*|.*no `val_dataloader`.*|.*LeafSpec.*")
        yield


def networks(width=2, **settings):
    return DCGANGenerator(latent_dim=4, width=width), DCGANDiscriminator(width=width, **settings)


def make(kind=DecentralizedGANModule, **settings):
    torch.manual_seed(0)
    return kind(*networks(), **settings)


def loader(batches=4, batch_size=4):
    images = torch.rand(batches * batch_size, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.zeros(len(images), dtype=torch.int64)
    own = torch.Generator()  # or the loader draws a number from the global random state
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, generator=own)


def trainer(tmp_path, batches=4, **settings):
    settings = {"enable_checkpointing": False, "logger": False, "limit_train_batches": batches, **settings}
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=settings.pop("max_epochs", 1),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fit(gan, tmp_path, batches=4, ckpt_path=None, **settings):
    seed_everything(3, verbose=False)
    run = trainer(tmp_path, batches, **settings)
    run.fit(gan, loader(batches), loader(2) if settings.get("limit_val_batches") else None, ckpt_path=ckpt_path)
    return run


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before, module, prefix):
    return [n for n, p in module.named_parameters() if n.startswith(prefix) and not torch.equal(before[n], p)]


class Watch(Callback):
    """Who moved on which batch, and what was logged then."""

    def __init__(self):
        self.moved, self.logged = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = snapshot(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        players = ("discriminator", "generator", "ema_generator")
        self.moved.append({player[0] for player in players if changed(self.before, pl_module, player + ".")})
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


# Training


@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "wasserstein", "least_squares"])
@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_both_players_change_in_every_parameter(tmp_path, loss, schedule):
    gan = make(loss=loss, schedule=schedule)
    before, storages = snapshot(gan), {n: p.data_ptr() for n, p in gan.named_parameters()}
    run = fit(gan, tmp_path)
    # The bias of the last layer cancels in a difference of logits.
    unmoved = {"discriminator.head.linear.bias"} if loss in ("wasserstein", "hinge") else set()
    moved = set(changed(before, gan, ""))
    assert {n for n, _ in gan.named_parameters()} - moved <= unmoved
    assert {n: p.data_ptr() for n, p in gan.named_parameters()} == storages
    assert run.global_step == 8  # Lightning counts the steps of optimizers
    assert gan.batches_seen == 4
    assert all(value.isfinite().all() for value in gan.state_dict().values())


def test_the_default_optimizer_is_optimistic_adam_with_a_rate_for_each_player_discriminator_first(tmp_path):
    gan = make(generator_lr=1e-3, discriminator_lr=4e-3)
    discriminator, generator = gan.configure_optimizers()
    assert type(discriminator) is type(generator) is OptimisticAdam
    assert discriminator.param_groups[0]["lr"] == 4e-3
    assert generator.param_groups[0]["lr"] == 1e-3
    assert discriminator.param_groups[0]["betas"] == (0.5, 0.9)
    assert {id(p) for p in discriminator.param_groups[0]["params"]} == {id(p) for p in gan.discriminator.parameters()}
    assert {id(p) for p in generator.param_groups[0]["params"]} == {id(p) for p in gan.generator.parameters()}


def test_a_generator_every_third_batch_and_a_discriminator_every_batch(tmp_path):
    watch = Watch()
    fit(make(generator_every_steps=3), tmp_path, batches=7, callbacks=[watch])
    assert watch.moved == [{"d", "g", "e"} if batch % 3 == 0 else {"d"} for batch in range(7)]


def test_a_discriminator_every_second_batch_and_its_penalty_every_second_time(tmp_path):
    watch, asked = Watch(), []

    class Asked(DecentralizedGANModule):
        def penalty(self, real, fake):
            term = super().penalty(real, fake)
            asked.append((self.batches_seen, term is not None))
            return term

    gan = make(Asked, discriminator_every_steps=2, penalty="r1", penalty_every_steps=2)
    fit(gan, tmp_path, batches=8, callbacks=[watch])
    assert watch.moved == [{"d", "g", "e"} if batch % 2 == 0 else {"g", "e"} for batch in range(8)]
    assert asked == [(0, True), (2, False), (4, True), (6, False)]


def test_a_lazy_penalty_weighs_as_much_on_the_whole_as_one_of_every_step():
    gan = make(penalty="r1", penalty_weight=3.0, penalty_every_steps=4)
    real = torch.rand(5, 1, 8, 8)
    terms = []
    for gan.batches_seen in range(8):
        terms.append(gan.penalty(real, real))
    assert [term is not None for term in terms] == [True, False, False, False] * 2
    torch.testing.assert_close(terms[0], 4 * 3.0 * r1(gan.discriminator, real), rtol=1e-6, atol=0)
    assert make(penalty="r1", penalty_weight=0).penalty(real, real) is None


def test_several_penalties_add_up_each_at_its_own_steps():
    gan = make(penalty=[LazyPenalty("r1", 1.0, every_steps=2), LazyPenalty("dragan", 3.0, every_steps=3)])
    real, fake = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    for gan.batches_seen in range(7):
        torch.manual_seed(0)
        found = gan.penalty(real, fake)
        torch.manual_seed(0)
        expected = [2 * r1(gan.discriminator, real, fake)] if gan.batches_seen % 2 == 0 else []
        expected += [9 * dragan(gan.discriminator, real, fake)] if gan.batches_seen % 3 == 0 else []
        assert (found is None) == (not expected)
        if found is not None:
            torch.testing.assert_close(found, sum(expected))


def test_a_wholly_frozen_player_rests_and_the_other_goes_on(tmp_path):
    watch, gan = Watch(), make()
    gan.generator.requires_grad_(False)
    fit(gan, tmp_path, callbacks=[watch])
    assert watch.moved == [{"d"}] * 4


def test_beside_a_frozen_player_a_batch_on_which_the_other_is_not_on_turn_moves_nobody(tmp_path):
    watch, gan = Watch(), make(generator_every_steps=2)
    gan.discriminator.requires_grad_(False)
    fit(gan, tmp_path, callbacks=[watch])
    assert watch.moved == [{"g", "e"}, set()] * 2
    assert gan.batches_seen == 4


def test_a_rate_schedule_steps_once_per_training_batch_for_both_players(tmp_path):
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    halve = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    gan = make(lr_scheduler=halve, discriminator_lr=4e-3, generator_lr=1e-3, generator_every_steps=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*lr_scheduler.step.*")  # before any optimizer.step
        fit(gan, tmp_path, batches=3, callbacks=[Rates()])
    assert rates == [[2e-3, 5e-4], [1e-3, 2.5e-4], [5e-4, 1.25e-4]]


def test_the_step_under_a_trainer_is_the_step_of_the_paper(tmp_path):
    """One batch of SGD, both players' gradients taken by hand at the starting point, in float64."""
    gan = make(loss="least_squares", optimizer=SGD, generator_lr=0.1, discriminator_lr=0.2, ema_decay=None).double()
    generator, discriminator = copy.deepcopy(gan.generator), copy.deepcopy(gan.discriminator)
    real, latent = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    gan.sample_latent = lambda n: latent
    trainer(tmp_path, 1).fit(gan, DataLoader([real[i] for i in range(4)], batch_size=4))

    fake = generator(latent)
    d_loss = Wasserstein().discriminator(torch.zeros(1), torch.zeros(1)) + 0.5 * (
        (discriminator(real) - 1).square().mean() + discriminator(fake).square().mean()
    )
    g_loss = 0.5 * (discriminator(fake) - 1).square().mean()
    for loss, mine, theirs, lr in (
        (d_loss, discriminator, gan.discriminator, 0.2),
        (g_loss, generator, gan.generator, 0.1),
    ):
        gradients = torch.autograd.grad(loss, list(mine.parameters()), retain_graph=True)
        for old, gradient, new in zip(mine.parameters(), gradients, theirs.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), old.detach() - lr * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("penalty", ["r1", "wgan_gp"])
def test_other_precisions_train(tmp_path, precision, penalty):
    gan = make(penalty=penalty)
    before = snapshot(gan)
    fit(gan, tmp_path, batches=2, precision=precision)
    assert changed(before, gan.float(), "generator.")
    assert changed(before, gan.float(), "discriminator.")
    assert all(value.isfinite().all() for value in gan.state_dict().values())


def test_a_slow_average_moves_where_the_weights_have_half_precision(tmp_path):
    gan = make(ema_decay=0.999, ema_warmup=False, generator_lr=0.01)
    before = copy.deepcopy(gan.ema_generator)
    fit(gan, tmp_path, batches=4, precision="bf16-true")
    for old, average, weight in zip(
        before.parameters(), gan.ema_generator.parameters(), gan.generator.parameters(), strict=True
    ):
        assert (average.dtype, weight.dtype) == (torch.float32, torch.bfloat16)
        assert not torch.equal(average, old.bfloat16().float())
    assert gan.sample(2, seed=0).dtype == torch.float32


def test_a_resumed_average_is_the_one_that_was_saved_where_the_weights_have_half_precision(tmp_path):
    settings = {"ema_decay": 0.999, "generator_lr": 0.01}
    saved = make(**settings)
    fit(saved, tmp_path, batches=2, precision="bf16-true").save_checkpoint(tmp_path / "two.ckpt")
    found = {}
    note = LambdaCallback(on_train_start=lambda _, gan: found.update(copy.deepcopy(gan.ema_generator.state_dict())))
    again = {"max_epochs": 2, "ckpt_path": tmp_path / "two.ckpt"}
    fit(make(**settings), tmp_path, batches=2, precision="bf16-true", callbacks=[note], **again)
    for name, value in saved.ema_generator.state_dict().items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_an_average_keeps_its_precision_through_conversions_of_the_module():
    gan = make(ema_decay=0.9)
    average = copy.deepcopy(gan.ema_generator.state_dict())
    gan.bfloat16()
    for name, value in gan.ema_generator.state_dict().items():
        assert torch.equal(value, average[name])
    assert next(gan.generator.parameters()).dtype == torch.bfloat16
    assert next(gan.double().ema_generator.parameters()).dtype == torch.float64
    assert next(make(ema_decay=None).half().parameters()).dtype == torch.float16


def test_a_longer_run_is_told_that_its_rates_follow_the_checkpoint(tmp_path):
    def falling(steps):
        return make(lr_scheduler=functools.partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=steps))

    fit(falling(2), tmp_path, batches=2).save_checkpoint(tmp_path / "two.ckpt")
    again = {"max_epochs": 2, "ckpt_path": tmp_path / "two.ckpt"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the learning rates follow")
        fit(falling(2), tmp_path, batches=2, **again)
    with pytest.warns(UserWarning, match="LinearLR with total_iters=2, and not total_iters=4: from step 2 on they"):
        fit(falling(4), tmp_path, batches=2, **again)


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_16_bit_precision_with_a_loss_scaler_steps_like_32_bit(tmp_path, schedule):
    settings = {"optimizer": SGD, "generator_lr": 0.05, "discriminator_lr": 0.05, "schedule": schedule}
    exact, half = make(**settings), make(**settings)
    start = snapshot(exact)
    fit(exact, tmp_path, batches=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    fit(half, tmp_path, batches=2, plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler))
    assert scaler.get_scale() == 2.0**12
    for player in ("discriminator.", "generator."):
        moves, gaps = [], []
        for (name, a), b in zip(exact.named_parameters(), half.parameters(), strict=True):
            if name.startswith(player):
                moves.append((a - start[name]).flatten())
                gaps.append((a - b).flatten())
        assert torch.cat(gaps).norm() < 0.05 * torch.cat(moves).norm()


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_compiled_networks_train_to_the_same_parameters(tmp_path, schedule):
    plain, compiled = make(penalty="r1", schedule=schedule), make(penalty="r1", schedule=schedule)
    fit(plain, tmp_path, batches=2)
    generator = torch.compile(compiled.generator, backend="aot_eager")
    discriminator = torch.compile(compiled.discriminator, backend="aot_eager")
    wrapped = DecentralizedGANModule(generator, discriminator, penalty="r1", schedule=schedule)
    fit(wrapped, tmp_path, batches=2)
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert wrapped.sample(2).shape == (2, 1, 8, 8)


def test_a_module_compiled_as_a_whole_is_refused_with_what_to_compile(tmp_path):
    with pytest.raises(ValueError, match=r"found the whole module compiled.*module\.generator\.compile\(\)"):
        fit(torch.compile(make(), backend="eager"), tmp_path)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_discriminator_with_batch_statistics_serves_both_players(tmp_path, in_place):
    """Its graph is walked once for each player."""
    torch._dynamo.reset()

    def play(compiled):
        torch.manual_seed(0)
        discriminator = DCGANDiscriminator(width=2, norm=True)
        if compiled and in_place:
            discriminator.compile(backend="aot_eager")
        elif compiled:
            discriminator = torch.compile(discriminator, backend="aot_eager")
        gan = DecentralizedGANModule(DCGANGenerator(latent_dim=4, width=2), discriminator)
        fit(gan, tmp_path, batches=2)
        assert not gan.joint
        return gan

    for a, b in zip(play(False).parameters(), play(True).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# The averaged generator


def test_the_average_of_a_path_is_its_closed_form_for_weights_and_statistics_and_counters_are_copied():
    network = nn.BatchNorm1d(3).double()
    ema, decay = averaged_copy(network), 0.9
    pointers = [parameter.data_ptr() for parameter in ema.parameters()]
    path = torch.randn(20, 3, dtype=torch.float64)
    expected = decay**20 * torch.ones(3, dtype=torch.float64)
    for step, point in enumerate(path):
        network.weight.data.copy_(point)
        network.running_mean.fill_(step)
        network.num_batches_tracked.fill_(step)
        update_average(ema, network, decay)
        expected += (1 - decay) * decay ** (19 - step) * point
    torch.testing.assert_close(ema.weight.detach(), expected, rtol=0, atol=1e-14)
    mean = sum((1 - decay) * decay ** (19 - step) * step for step in range(20))
    torch.testing.assert_close(ema.running_mean, torch.full((3,), mean, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ema.num_batches_tracked == 19
    assert [parameter.data_ptr() for parameter in ema.parameters()] == pointers


def test_the_average_follows_the_generator_after_each_of_its_steps(tmp_path):
    path = []

    class Path(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            path.append(torch.cat([p.detach().flatten() for p in pl_module.generator.parameters()]))

    gan = make(ema_decay=0.5, ema_warmup=False)
    expected = torch.cat([p.detach().flatten() for p in gan.generator.parameters()])
    fit(gan, tmp_path, callbacks=[Path()])
    for point in path:
        expected = 0.5 * expected + 0.5 * point
    found = torch.cat([p.flatten() for p in gan.ema_generator.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert not any(p.requires_grad or p.grad is not None for p in gan.ema_generator.parameters())


def test_a_young_average_has_a_short_memory(tmp_path):
    gan = make(ema_decay=0.999, generator_every_steps=2)
    start = torch.cat([p.detach().flatten() for p in gan.generator.parameters()])
    fit(gan, tmp_path, batches=1)
    now, mean = (torch.cat([p.detach().flatten() for p in n.parameters()]) for n in (gan.generator, gan.ema_generator))
    torch.testing.assert_close(mean, 0.1 * start + 0.9 * now, rtol=0, atol=1e-7)
    assert [warmed_up(0.999, n) for n in (0, 90, 10**6)] == [0.1, 0.91, 0.999]


def test_without_an_average_there_is_none():
    gan = make(ema_decay=None)
    assert gan.ema_generator is None
    assert not any("ema" in name for name in gan.state_dict())
    assert torch.equal(gan.sample(2, seed=0), gan.sample(2, seed=0, ema=False))


# Classes


class ConditionalGenerator(nn.Module):
    """Images whose brightness is their class."""

    latent_dim, num_classes = 4, 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 64)

    def forward(self, latent, labels):
        return torch.tanh(self.layer(latent)).view(-1, 1, 8, 8) * 1e-3 + labels.view(-1, 1, 1, 1).float() - 1


class ConditionalDiscriminator(nn.Module):
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.layer, self.classes, self.asked = nn.Linear(64, 1), nn.Embedding(3, 64), []

    def forward(self, images, labels):
        self.asked.append(labels)
        return self.layer(images.flatten(1)).flatten() + (self.classes(labels) * images.flatten(1)).sum(1)


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("penalty", [None, "r1", "wgan_gp"])
def test_classes_reach_both_players_in_training_penalties_validation_and_samples(tmp_path, schedule, penalty):
    torch.manual_seed(0)
    gan = DecentralizedGANModule(ConditionalGenerator(), ConditionalDiscriminator(), schedule=schedule, penalty=penalty)
    before = snapshot(gan)
    images = torch.rand(8, 1, 8, 8) * 2 - 1
    data = DataLoader(TensorDataset(images, torch.full((8,), 2)), batch_size=4)
    trainer(tmp_path, 2, limit_val_batches=1).fit(gan, data, data)
    assert changed(before, gan, "generator.")
    assert {"discriminator.classes.weight", "discriminator.layer.weight"} <= set(changed(before, gan, "discriminator."))
    assert all(len(labels) in (4, 8) and int(labels.max()) <= 2 for labels in gan.discriminator.asked)
    assert any(bool((labels == 2).all()) for labels in gan.discriminator.asked if len(labels) == 4) or gan.joint
    shades = gan.sample(6, seed=0).mean((1, 2, 3)).round().tolist()
    assert shades == [-1, 0, 1, -1, 0, 1]
    assert gan.sample(2, labels=2, seed=0).mean().round() == 1
    assert gan.sample(2, labels=torch.tensor([1, 0]), seed=0).mean((1, 2, 3)).round().tolist() == [0, -1]


@pytest.mark.parametrize(("generated_labels", "others"), [("batch", False), ("uniform", True)])
def test_in_training_a_worker_asks_for_the_classes_of_its_data_or_for_all(tmp_path, generated_labels, others):
    torch.manual_seed(0)
    gan = DecentralizedGANModule(
        ConditionalGenerator(), ConditionalDiscriminator(), generated_labels=generated_labels, joint=False
    )
    images, labels = torch.rand(32, 1, 8, 8) * 2 - 1, torch.arange(32) % 2
    trainer(tmp_path, 4).fit(gan, DataLoader(TensorDataset(images, labels), batch_size=8))
    asked = torch.cat(gan.discriminator.asked)
    assert bool((asked == 2).any()) == others
    if not others:
        assert torch.equal(asked, labels.view(4, 8).repeat_interleave(2, 0).flatten()), "real, generated, real, ..."


def test_labels_that_are_no_classes_are_named(tmp_path):
    gan = DecentralizedGANModule(ConditionalGenerator(), ConditionalDiscriminator())
    with pytest.raises(ValueError, match="labels must be 2 classes from 0 to 2, found 3"):
        gan.sample(2, labels=3)
    with pytest.raises(ValueError, match="labels must be None: the generator has no classes"):
        make().sample(2, labels=1)
    with pytest.raises(TypeError, match=r"batch must be \(images, labels\) .* from 0 to 2.* found NoneType for labels"):
        trainer(tmp_path).fit(gan, DataLoader(torch.zeros(2, 1, 8, 8), batch_size=2))
    with pytest.raises(ValueError, match="must have the same num_classes, found 3 and None"):
        DecentralizedGANModule(ConditionalGenerator(), DCGANDiscriminator(width=2))


class Labelled(LightningDataModule):
    """Four black images, whose labels say nothing where there are no classes."""

    def __init__(self, num_classes, image_size=8):
        super().__init__()
        self.num_classes, self.image_size, self.channels = num_classes, image_size, 1

    def train_dataloader(self):
        images = torch.zeros(4, 1, 8, 8)
        return DataLoader(TensorDataset(images, torch.zeros(4, dtype=torch.int64)), batch_size=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Labelled(None), "the networks tell 3 classes apart, but the images of Labelled have no labels"),
        (Labelled(10), "num_classes must be 10, the classes of Labelled, found 3"),
        (Labelled(2), "num_classes must be 2, the classes of Labelled, found 3"),
    ],
)
def test_a_conditional_gan_refuses_data_of_other_classes_or_none(tmp_path, data, message):
    gan = DecentralizedGANModule(ConditionalGenerator(), ConditionalDiscriminator())
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(gan, datamodule=data)


def test_images_of_another_size_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"generator's image_size must be 16, that of the images of \w+, found 8"):
        trainer(tmp_path).fit(make(), datamodule=Labelled(None, image_size=16))


# The joint pass and other ways to train


@pytest.mark.parametrize("settings", [{}, {"loss": "hinge"}, {"loss": "relativistic_average"}, {"penalty": "wgan_gp"}])
def test_the_joint_pass_is_found_out_and_trains_to_the_same_parameters(tmp_path, settings):
    joint, cut = make(**settings, optimizer=SGD).double(), make(**settings, optimizer=SGD, joint=False).double()
    for gan in (joint, cut):
        torch.manual_seed(5)
        images = torch.rand(16, 1, 8, 8, dtype=torch.float64) * 2 - 1
        seed_everything(3, verbose=False)
        trainer(tmp_path).fit(gan, DataLoader(images, batch_size=4, generator=torch.Generator()))
    assert joint.joint
    assert not cut.joint
    for one, other in zip(joint.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "color,translation,cutout"},
        {"optimizer": "RMSprop"},
        {"optimizer": "ExtraAdam", "schedule": "extragradient"},
        {"penalty": [LazyPenalty("r1", 1.0, every_steps=2), LazyPenalty("dragan", 1.0)]},
        {"generator_clip_norm": 1.0, "discriminator_clip_norm": 1.0},
    ],
    ids=str,
)
def test_it_trains_with(tmp_path, settings):
    gan = make(**settings)
    before = snapshot(gan)
    fit(gan, tmp_path, limit_val_batches=1)
    assert changed(before, gan, "generator.")
    assert changed(before, gan, "discriminator.")
    assert all(bool(torch.isfinite(p).all()) for p in gan.parameters())


def test_an_augmentation_may_be_a_torch_module():
    class Darker(nn.Module):
        def forward(self, images):
            return images - 0.5

    gan = make(augment=Darker())
    assert gan.augmented(torch.zeros(1, 1, 8, 8)).mean() == -0.5


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_loss_that_is_not_finite_ends_the_training_and_is_named(tmp_path, player):
    class Fails(DecentralizedGANModule):
        def discriminator_loss(self, real_logits, fake_logits):
            return super().discriminator_loss(real_logits, fake_logits) / (self.fails("discriminator"))

        def generator_loss(self, fake_logits):
            return super().generator_loss(fake_logits) / (self.fails("generator"))

        def fails(self, who):
            return 0.0 if who == player and self.batches_seen == 2 else 1.0

    message = rf"the {player}'s loss is inf after batch 3; last finite losses: discriminator 1.\d+, .* \(batch 2\)"
    with pytest.raises(FloatingPointError, match=message):
        fit(make(Fails), tmp_path)
    gan = make(Fails, terminate_on_nan=False)
    fit(gan, tmp_path)
    assert gan.batches_seen == 4


@pytest.mark.parametrize("every_batch", [True, False])
def test_a_good_checkpoint_does_not_give_way_to_one_after_a_loss_that_is_not_finite(tmp_path, monkeypatch, every_batch):
    class Fails(DecentralizedGANModule):
        def discriminator_loss(self, real_logits, fake_logits):
            loss = super().discriminator_loss(real_logits, fake_logits)
            return loss * torch.nan if self.training and self.batches_seen == 5 else loss

    if not every_batch:  # as where looking waits for a device
        monkeypatch.setattr(LossWatch, "note", lambda watch, *newest: setattr(watch, "_newest", newest))
    checkpoint = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    with pytest.raises(FloatingPointError, match=r"the discriminator's loss is nan after batch [68];"):
        fit(make(Fails), tmp_path, max_epochs=3, callbacks=[checkpoint], enable_checkpointing=True)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert 0 < kept["batches_seen"] <= 5
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_weights_that_a_step_has_spoilt_are_not_saved_over_good_ones(tmp_path):
    """The losses of that batch, taken before its step, are finite."""

    class Spoils(DecentralizedGANModule):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if self.batches_seen == 4:
                with torch.no_grad():
                    next(self.generator.parameters()).fill_(torch.inf)

    checkpoint = ModelCheckpoint(tmp_path, "last", every_n_train_steps=4, enable_version_counter=False)
    with pytest.raises(FloatingPointError, match=r"generator\..* holds values that are not finite"):
        fit(make(Spoils), tmp_path, max_epochs=3, callbacks=[checkpoint], enable_checkpointing=True)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["batches_seen"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


# Samples


def test_samples_of_a_seed_are_the_same_and_leave_no_trace():
    gan = make()
    gan.generator.layers[2].eval()
    modes = [module.training for module in gan.modules()]
    state = torch.get_rng_state()
    first = gan.sample(5, seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gan.sample(5, seed=11), first)
    assert not torch.equal(gan.sample(5, seed=12), first)
    assert [module.training for module in gan.modules()] == modes
    assert not first.requires_grad
    assert first.shape == (5, 1, 8, 8)
    assert first.abs().max() <= 1


def test_samples_without_a_seed_differ_and_follow_the_global_random_state():
    gan = make()
    torch.manual_seed(5)
    first, second = gan.sample(3), gan.sample(3)
    torch.manual_seed(5)
    assert torch.equal(gan.sample(3), first)
    assert not torch.equal(first, second)


def test_samples_are_made_in_evaluation_mode_from_the_chosen_generator():
    gan = make()
    for parameter in gan.generator.parameters():
        parameter.data.mul_(3)
    torch.manual_seed(0)
    latent = gan.sample_latent(6)
    for ema, network in ((True, gan.ema_generator), (False, gan.generator)):
        torch.manual_seed(0)
        images = gan.sample(6, ema=ema)
        with torch.no_grad():
            assert torch.equal(images, copy.deepcopy(network).eval()(latent))


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_number_of_samples_below_one_is_refused(n):
    with pytest.raises(ValueError if type(n) is int else TypeError, match=f"n must be an integer >= 1, found {n}"):
        make().sample(n)


# Validation and logs


def test_validation_logs_both_losses_and_updates_nothing_not_even_the_random_state(tmp_path):
    gan = make(loss="hinge", penalty="r1")
    before, state = snapshot(gan), torch.get_rng_state()
    run = trainer(tmp_path)
    first = run.validate(gan, loader(3), verbose=False)[0]
    assert set(first) == {"val/d_loss", "val/g_loss", "val/d_real", "val/d_fake"}
    assert first["val/g_loss"] == pytest.approx(-first["val/d_fake"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in gan.state_dict().items())
    assert run.validate(gan, loader(3), verbose=False)[0] == first


def test_training_with_validation_in_between_gives_the_same_parameters(tmp_path):
    alone, validated = make(), make()
    fit(alone, tmp_path, max_epochs=2)
    fit(validated, tmp_path, max_epochs=2, limit_val_batches=2, num_sanity_val_steps=1)
    for a, b in zip(alone.state_dict().values(), validated.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_training_logs_losses_penalty_and_mean_logits(tmp_path):
    watch = Watch()
    run = fit(make(penalty="r1", loss="wasserstein"), tmp_path, batches=2, callbacks=[watch])
    for logged in watch.logged:
        assert set(logged) == {"d_loss", "g_loss", "penalty", "d_real", "d_fake"}
        assert logged["g_loss"] == pytest.approx(-logged["d_fake"])
        assert logged["d_loss"] == pytest.approx(logged["d_fake"] - logged["d_real"], abs=1e-6)
        assert logged["penalty"] > 0
    assert set(run.progress_bar_metrics) == {"d_loss", "g_loss"}


# Subclasses


def test_every_hook_that_a_subclass_overrides_is_used(tmp_path):
    calls = []

    class Mine(DecentralizedGANModule):
        def discriminator_loss(self, real_logits, fake_logits):
            calls.append("discriminator_loss")
            return (real_logits - 3).square().mean() + (fake_logits + 3).square().mean()

        def generator_loss(self, fake_logits):
            calls.append("generator_loss")
            return (fake_logits - 3).square().mean()

        def penalty(self, real, fake):
            calls.append("penalty")
            return 7 * self.discriminator(real).square().mean()

        def sample_latent(self, n):
            calls.append("sample_latent")
            return torch.rand(n, 4)

        def real_images(self, batch):
            calls.append("real_images")
            return batch["pixels"].float() / 127.5 - 1

    gan = make(Mine)
    before = snapshot(gan)
    data = [{"pixels": torch.randint(256, (1, 8, 8), dtype=torch.uint8)} for _ in range(4)]
    watch = Watch()
    trainer(tmp_path, 1, callbacks=[watch]).fit(gan, DataLoader(data, batch_size=4))
    assert sorted(calls) == sorted(["real_images", "sample_latent", "discriminator_loss", "penalty", "generator_loss"])
    assert watch.logged[0]["d_loss"] == pytest.approx(18, abs=0.5)  # logits are near zero at the start
    assert changed(before, gan, "generator.")
    assert changed(before, gan, "discriminator.")
    gan.sample(2, seed=0)
    assert calls[-1] == "sample_latent"


def test_functions_can_be_given_for_loss_and_penalty(tmp_path):
    def flat(discriminator, real, fake):
        return discriminator(real - fake).square().mean()

    pair = (lambda real, fake: (fake - real).mean(), lambda fake: -fake.mean())
    gan = make(loss=pair, penalty=flat, penalty_weight=2.0)
    fit(gan, tmp_path, batches=2)
    assert "loss" not in gan.hparams
    assert "penalty" not in gan.hparams


# Checkpoints


def test_a_checkpoint_loads_with_the_networks_alone_and_keeps_the_settings(tmp_path):
    gan = make(loss="hinge", penalty="r1", ema_decay=0.9, generator_every_steps=2, optimizer="RMSprop")
    run = fit(gan, tmp_path, batches=3)
    run.save_checkpoint(tmp_path / "gan.ckpt")
    content = torch.load(tmp_path / "gan.ckpt", weights_only=True)
    assert content["hyper_parameters"]["loss"] == "hinge"
    generator, discriminator = networks()
    loaded = DecentralizedGANModule.load_from_checkpoint(
        tmp_path / "gan.ckpt", generator=generator, discriminator=discriminator, weights_only=True
    )
    assert dict(loaded.hparams) == dict(gan.hparams)
    assert {type(one).__name__ for one in loaded.configure_optimizers()} == {"RMSprop"}
    assert (loaded.ema_decay, loaded.generator_every_steps, loaded.batches_seen) == (0.9, 2, 3)
    assert torch.equal(loaded.sample(3, seed=0), gan.sample(3, seed=0))


def test_stopping_and_going_on_takes_the_same_turns_and_reaches_the_same_parameters(tmp_path):
    class Counted(DecentralizedGANModule):
        def sample_latent(self, n):  # latents that do not depend on where the random state was left
            return torch.randn(n, 4, generator=torch.Generator().manual_seed(self.batches_seen))

    settings = {"generator_every_steps": 3, "penalty": "r1", "penalty_every_steps": 2, "ema_decay": 0.9}
    straight = make(Counted, **settings)
    fit(straight, tmp_path, max_epochs=2)

    first = make(Counted, **settings)
    fit(first, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    second, watch = make(Counted, **settings), Watch()
    trainer(tmp_path, max_epochs=2, callbacks=[watch]).fit(
        second, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert watch.moved == [{"d"}, {"d"}, {"d", "g", "e"}, {"d"}]  # batches 4 to 7
    assert second.batches_seen == 8
    for (name, a), b in zip(straight.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_module_can_be_sent_to_another_process():
    gan = make(penalty="wgan_gp")
    twin = pickle.loads(pickle.dumps(gan))
    assert torch.equal(twin.sample(2, seed=0), gan.sample(2, seed=0))
    assert isinstance(twin.configure_optimizers()[0], OptimisticAdam)


# Bad input


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"generator_lr": 0}, ValueError, "generator_lr must be a finite number > 0, found 0"),
        ({"discriminator_lr": -1e-3}, ValueError, "discriminator_lr must be a finite number > 0, found -0.001"),
        ({"generator_lr": float("nan")}, ValueError, "generator_lr must be a finite number > 0, found nan"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be a finite number in \[0, 1\), or None, found 1.0"),
        ({"ema_decay": -0.1}, ValueError, "ema_decay must be"),
        ({"generator_every_steps": 0}, ValueError, "generator_every_steps must be an integer >= 1, found 0"),
        ({"discriminator_every_steps": 1.5}, TypeError, "discriminator_every_steps must be an integer >= 1"),
        ({"penalty_every_steps": True}, TypeError, "penalty_every_steps must be an integer >= 1, found True"),
        ({"generator_every_steps": 2, "discriminator_every_steps": 3}, ValueError, "must be 1, found 2 and 3"),
        ({"penalty_weight": -1.0}, ValueError, "penalty_weight must be a finite number >= 0, found -1.0"),
        ({"latent_dim": 0}, ValueError, "latent_dim must be an integer >= 1, found 0"),
        ({"loss": "hing"}, ValueError, "loss must be one of non_saturating"),
        ({"penalty": "r3"}, ValueError, "penalty must be one of r1, wgan_gp, dragan or None"),
        ({"generated_labels": "all"}, ValueError, "generated_labels must be one of uniform, batch, found 'all'"),
        (
            {"schedule": "random"},
            ValueError,
            "schedule must be one of simultaneous, alternating, extragradient, found 'random'",
        ),
        ({"optimizer": "adam"}, ValueError, "optimizer must be a class of .* or torch.optim, .* found 'adam'"),
        ({"optimizer": 3}, TypeError, r"optimizer must be a name or a callable \(params, lr=...\), found int"),
        ({"generator_clip_norm": 0}, ValueError, "generator_clip_norm must be a finite number > 0, or None, found 0"),
        ({"augment": "colour"}, ValueError, "augment must be names of color, translation, .* found 'colour'"),
        ({"penalty": ["r1"]}, TypeError, "penalty as a list must hold LazyPenalty objects, found str"),
        ({"lr_scheduler": "cosine"}, TypeError, "lr_scheduler must be a callable of an optimizer, found str"),
    ],
)
def test_a_bad_setting_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        make(**settings)


def test_networks_that_cannot_play_are_named():
    generator, discriminator = networks()
    linear = nn.Linear(4, 64)
    with pytest.raises(ValueError, match="latent_dim must be given: Linear has no attribute latent_dim"):
        DecentralizedGANModule(linear, discriminator)
    with pytest.raises(TypeError, match=r"generator must be a torch.nn.Module, found builtin_function_or_method"):
        DecentralizedGANModule(len, discriminator)
    with pytest.raises(ValueError, match="discriminator must have parameters, found none in Flatten"):
        DecentralizedGANModule(generator, nn.Flatten())
    with pytest.raises(ValueError, match=r"must not share parameters, found 0.weight, 0.bias in both"):
        DecentralizedGANModule(linear, nn.Sequential(linear), latent_dim=4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": torch.zeros(2, 1, 8, 8)}, "batch must be images or begin with images, found dict"),
        ([], "found list"),
        (torch.zeros(2, 8, 8), r"found torch.float32 of shape \(2, 8, 8\)"),
        ((torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None), r"\[-1, 1\], found torch.uint8 of shape"),
    ],
)
def test_a_batch_that_is_not_images_is_named(batch, message):
    with pytest.raises(TypeError, match=message):
        make().real_images(batch)


def test_images_of_another_range_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"images must have values in \[-1, 1\], .* found 0 to 255: scale them"):
        trainer(tmp_path).fit(make(), DataLoader(torch.tensor([0.0, 255.0]).repeat(8, 1, 8, 4), batch_size=8))
    with pytest.warns(UserWarning, match="from 0.* a discriminator could tell the two apart by their range"):
        trainer(tmp_path).fit(make(), DataLoader(torch.rand(8, 1, 8, 8), batch_size=8))


def test_images_of_another_size_than_the_generators_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"shape of the batch, \(2, 1, 12, 12\), found \(2, 1, 8, 8\)"):
        trainer(tmp_path).fit(make(), DataLoader(torch.zeros(2, 1, 12, 12), batch_size=2))


def test_factories_that_make_something_else_are_named():
    with pytest.raises(TypeError, match=r"optimizer must make a torch.optim.Optimizer, found tuple"):
        make(optimizer=lambda params, lr: (params, lr)).configure_optimizers()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(TypeError, match="steps without a metric, found ReduceLROnPlateau"):
        make(lr_scheduler=plateau).configure_optimizers()


def test_an_optimizer_that_brings_a_rate_which_would_have_no_effect_is_refused():
    with pytest.raises(
        ValueError, match=r"optimizer must leave the learning rate to generator_lr .* found one with lr=-1"
    ):
        DecentralizedGANModule(
            DCGANGenerator(image_size=8),
            DCGANDiscriminator(image_size=8),
            optimizer=functools.partial(torch.optim.Adam, lr=-1),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "extragradient"}, "found schedule='extragradient' with OptimisticAdam"),
        ({"optimizer": "ExtraAdam"}, "found schedule='simultaneous' with ExtraAdam"),
        (
            {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "schedule": "extragradient"},
            "ExtraAdam and ExtraSGD need each other, found schedule='extragradient' with SGD",
        ),
        ({"optimizer": "LBFGS"}, "must step without a closure, .* found LBFGS"),
        ({"optimizer": "SparseAdam"}, "must take dense gradients, .* found SparseAdam"),
    ],
    ids=str,
)
def test_an_optimizer_that_does_not_fit_the_order_of_play_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_data_without_a_single_batch_is_an_error_and_not_a_finished_run(tmp_path):
    gan, images = make(), torch.rand(6, 1, 8, 8)
    loader = DataLoader(TensorDataset(images), batch_size=8, drop_last=True)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path, barebones=True)
    with pytest.raises(ValueError, match=r"must give each worker at least one batch, found none: .* needs 1 times"):
        trainer.fit(gan, loader)
    none = Trainer(accelerator="cpu", max_epochs=1, logger=False, limit_train_batches=0, barebones=True)
    none.fit(gan, loader)  # as was asked
