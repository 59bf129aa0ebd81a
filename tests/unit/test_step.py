"""The step against an independent computation of both players' gradients on separate graphs, in float64."""

import copy

import pytest
import torch
from torch import nn

from lightning_decgan.gan.game import Game
from lightning_decgan.gan.losses import LOSSES, get_loss
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator
from lightning_decgan.gan.penalties import r1
from lightning_decgan.gan.step import alternating_step, extragradient_step, simultaneous_step
from lightning_decgan.optim import ExtraSGD

STEPS = {"simultaneous": simultaneous_step, "alternating": alternating_step}
LR = 0.1


class PlainGame(Game):
    """A game without Lightning: two small networks, a loss, and backward as autograd does it."""

    scaler = None  # a property of the base class

    def __init__(
        self, loss="non_saturating", *, norm=False, spectral_norm=False, with_penalty=False, scaler=None, joint=False
    ):
        torch.manual_seed(0)
        self.generator = DCGANGenerator(latent_dim=3, width=2).double()
        self.discriminator = DCGANDiscriminator(width=2, norm=norm, spectral_norm=spectral_norm).double()
        for network in (self.generator, self.discriminator):  # logits far from zero tell the losses apart
            for parameter in network.parameters():
                parameter.data.mul_(10)
        self.loss = get_loss(loss)
        self.relative, self.joint = getattr(self.loss, "relative", False), joint
        self.scaler = scaler
        self.with_penalty = with_penalty
        self.real = torch.rand(6, 1, 8, 8, dtype=torch.float64) * 2 - 1
        self.latent = torch.randn(6, 3, dtype=torch.float64)
        self.backwards = 0

    def discriminator_loss(self, real_logits, fake_logits):
        return self.loss.discriminator(real_logits, fake_logits)

    def generator_loss(self, fake_logits, *real_logits):
        return self.loss.generator(fake_logits, *real_logits)

    def penalty(self, real, fake):
        assert not fake.requires_grad
        return 10 * r1(self.discriminator, real) if self.with_penalty else None

    def manual_backward(self, loss, **kwargs):
        self.backwards += 1
        (loss if self.scaler is None else self.scaler.scale(loss)).backward(**kwargs)

    def optimizers(self):
        return tuple(torch.optim.SGD(p.parameters(), lr=LR) for p in (self.discriminator, self.generator))

    def play(self, schedule="simultaneous", optimizers=None):
        return STEPS[schedule](self, self.real, self.latent, *(optimizers or self.optimizers()))


def parameters(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def discriminator_gradient(game):
    """Of a copy, on a graph of its own; the losses themselves as well."""
    generator, discriminator = copy.deepcopy(game.generator), copy.deepcopy(game.discriminator)
    with torch.no_grad():
        fake = generator(game.latent)
    loss = game.loss.discriminator(discriminator(game.real), discriminator(fake))
    penalty = 10 * r1(discriminator, game.real) if game.with_penalty else 0
    return loss.item(), torch.autograd.grad(loss + penalty, list(discriminator.parameters()))


def generator_gradient(game):
    generator, discriminator = copy.deepcopy(game.generator), copy.deepcopy(game.discriminator).requires_grad_(False)
    if any(isinstance(module, nn.utils.parametrizations._SpectralNorm) for module in discriminator.modules()):
        discriminator(game.real)  # the power iteration has seen the real images first
    real_logits = [discriminator(game.real)] if game.relative else []
    loss = game.loss.generator(discriminator(generator(game.latent)), *real_logits)
    return loss.item(), torch.autograd.grad(loss, list(generator.parameters()))


def assert_stepped(before, network, gradients):
    for old, parameter, gradient in zip(before, network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - LR * gradient, rtol=0, atol=1e-12)


GAMES = [
    *({"loss": name, "joint": joint} for name in LOSSES for joint in (False, True)),
    {"norm": True},
    {"with_penalty": True},
    {"with_penalty": True, "joint": True},
    {"spectral_norm": True, "loss": "hinge"},
]


@pytest.mark.parametrize("settings", GAMES, ids=str)
def test_both_players_step_with_their_own_gradient_at_the_point_before_anybody_moves(settings):
    game = PlainGame(**settings)
    d_loss, d_gradient = discriminator_gradient(game)
    g_loss, g_gradient = generator_gradient(game)
    d_before, g_before = parameters(game.discriminator), parameters(game.generator)

    report = game.play()

    assert_stepped(d_before, game.discriminator, d_gradient)
    assert_stepped(g_before, game.generator, g_gradient)
    assert report.discriminator_loss.item() == pytest.approx(d_loss, abs=1e-12)
    assert report.generator_loss.item() == pytest.approx(g_loss, abs=1e-12)
    assert d_gradient[0].abs().max() > 1e-6  # in the first layer of each
    assert g_gradient[0].abs().max() > 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_alternating_the_generator_meets_the_discriminator_as_it_has_become(loss):
    game = PlainGame(loss)
    _, d_gradient = discriminator_gradient(game)
    d_before, g_before = parameters(game.discriminator), parameters(game.generator)
    new = copy.copy(game)
    new.discriminator = copy.deepcopy(game.discriminator)
    for parameter, gradient in zip(new.discriminator.parameters(), d_gradient, strict=True):
        parameter.data.sub_(LR * gradient)
    _, g_gradient = generator_gradient(new)
    _, g_gradient_at_old = generator_gradient(game)

    game.play("alternating")

    assert_stepped(d_before, game.discriminator, d_gradient)
    assert_stepped(g_before, game.generator, g_gradient)
    assert max((a - b).abs().max() for a, b in zip(g_gradient, g_gradient_at_old, strict=True)) > 1e-6


@pytest.mark.parametrize("schedule", STEPS)
@pytest.mark.parametrize("resting", ["discriminator", "generator"])
def test_a_player_that_rests_keeps_its_parameters_and_gets_no_gradient(schedule, resting):
    game = PlainGame(with_penalty=True)
    d_optimizer, g_optimizer = game.optimizers()
    d_before, g_before = parameters(game.discriminator), parameters(game.generator)
    if resting == "discriminator":
        _, gradient = generator_gradient(game)
        report = game.play(schedule, (None, g_optimizer))
        assert_stepped(g_before, game.generator, gradient)
        assert report.discriminator_loss is report.penalty is report.real_logits is None
        idle, before = game.discriminator, d_before
    else:
        _, gradient = discriminator_gradient(game)
        report = game.play(schedule, (d_optimizer, None))
        assert_stepped(d_before, game.discriminator, gradient)
        assert report.penalty is not None
        idle, before = game.generator, g_before
    assert all(parameter.grad is None for parameter in idle.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, parameters(idle), strict=True))


def test_a_second_step_starts_from_gradients_of_zero():
    game = PlainGame()
    optimizers = game.optimizers()
    game.play(optimizers=optimizers)
    _, d_gradient = discriminator_gradient(game)
    _, g_gradient = generator_gradient(game)
    d_before, g_before = parameters(game.discriminator), parameters(game.generator)
    game.play(optimizers=optimizers)
    assert_stepped(d_before, game.discriminator, d_gradient)
    assert_stepped(g_before, game.generator, g_gradient)


@pytest.mark.parametrize(("schedule", "over_fakes", "backwards"), [("simultaneous", 1, 1), ("alternating", 2, 2)])
def test_forwards_and_backwards_of_a_step_are_counted(schedule, over_fakes, backwards):
    game = PlainGame()
    generated, judged = [], []
    game.generator.register_forward_hook(lambda module, inputs, output: generated.append(output))
    game.discriminator.register_forward_hook(lambda module, inputs, output: judged.append(inputs[0]))
    game.play(schedule)
    assert len(generated) == 1
    assert sum(torch.equal(images, generated[0]) for images in judged) == over_fakes
    assert sum(images is game.real for images in judged) == 1
    assert len(judged) == over_fakes + 1
    assert game.backwards == backwards


def test_real_and_generated_images_are_judged_in_batches_of_their_own():
    game = PlainGame(norm=True)
    sizes = []
    game.discriminator.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    game.play()
    assert sizes == [6, 6]


def test_a_joint_step_takes_the_discriminator_once_forward_and_once_back():
    game = PlainGame(joint=True)
    generated, judged, back = [], [], []
    game.generator.register_forward_hook(lambda module, inputs, output: generated.append(len(output)))
    game.discriminator.register_forward_hook(lambda module, inputs, output: judged.append(len(inputs[0])))
    game.discriminator.layers[2].register_full_backward_hook(
        lambda module, inputs, outputs: back.append(len(outputs[0]))
    )
    game.play()
    assert (generated, judged, back, game.backwards) == ([6], [12], [12], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", ["hinge", "non_saturating", "least_squares"])
def test_a_joint_step_is_exact_where_the_discriminator_no_longer_learns_from_an_image(loss, dtype):
    """Logits far on the right side of the margin: the discriminator's slope there is zero, or next to it."""

    def gradients(joint):
        game = PlainGame(loss, joint=joint)
        game.generator.to(dtype), game.discriminator.to(dtype)
        game.real, game.latent = game.real.to(dtype), game.latent.to(dtype)
        offset = torch.tensor([-70.0, 0.0, -1000.0, -3.0, 0.0, -0.5], dtype=dtype)
        judge = game.judge
        game.judge = lambda images, labels=None: (
            judge(images) + (torch.cat([0 * offset, offset]) if joint else offset * (images is not game.real))
        )
        game.play()
        return [[p.grad for p in player.parameters()] for player in (game.discriminator, game.generator)]

    for plain, joint in zip(gradients(False), gradients(True), strict=True):
        size = max(float(gradient.abs().max()) for gradient in plain)
        assert size > 0
        for one, other in zip(plain, joint, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=16 * size * torch.finfo(dtype).eps)


def test_an_image_of_which_neither_player_learns_moves_neither():
    def gradients(joint):
        game = PlainGame("least_squares", joint=joint)
        heard = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
        game.discriminator_loss = lambda real, fake: (real - fake * heard).sum()
        game.generator_loss = lambda fake: (fake * heard).square().sum()
        game.play()
        return [parameter.grad for player in (game.discriminator, game.generator) for parameter in player.parameters()]

    for plain, joint in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(joint, plain, rtol=1e-10, atol=1e-10)


def test_a_joint_step_follows_what_a_loss_says_of_the_weights():
    games = [PlainGame(joint=joint) for joint in (False, True)]
    for game in games:
        plain = game.discriminator_loss
        weight = game.discriminator.layers[0].weight
        game.discriminator_loss = lambda real, fake, plain=plain, weight=weight: (
            plain(real, fake) + weight.square().sum()
        )
        game.play()
    for one, other in zip(*(parameters(game.discriminator) for game in games), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", STEPS)
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("loss", ["non_saturating", "relativistic_average"])
def test_the_generator_follows_what_its_loss_says_of_its_weights(schedule, joint, loss):
    """Beside the same game without that term: the difference is the term's gradient where the step began."""
    moved = []
    for weight_term in (0.0, 0.25):
        game = PlainGame(loss, joint=joint)
        plain, weight = game.generator_loss, next(game.generator.parameters())
        before = weight.detach().clone()
        game.generator_loss = lambda *logits, plain=plain, weight=weight, factor=weight_term: (
            plain(*logits) + factor * weight.square().sum()
        )
        game.play(schedule)
        moved.append((weight.detach().clone(), parameters(game.discriminator)))
    (without, d_without), (with_term, d_with_term) = moved
    torch.testing.assert_close(with_term, without - LR * 0.5 * before, rtol=0, atol=1e-12)
    for one, other in zip(d_without, d_with_term, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_joint_game_with_patches_of_logits_is_refused():
    game = PlainGame(joint=True)
    game.discriminator = nn.Conv2d(1, 1, 3).double()
    with pytest.raises(ValueError, match=r"one logit a sample.*found logits of shape \(12, 1, 6, 6\) for 12 images"):
        game.play()


@pytest.mark.parametrize("schedule", STEPS)
def test_each_players_gradient_is_clipped_by_itself(schedule):
    game = PlainGame()
    game.generator_clip_norm = 1e-3
    g_before, d_before = parameters(game.generator), parameters(game.discriminator)
    _, d_gradient = discriminator_gradient(game)
    game.play(schedule)
    moved = torch.cat([(a - b).flatten() for a, b in zip(parameters(game.generator), g_before, strict=True)])
    assert float(moved.norm()) == pytest.approx(LR * 1e-3, rel=1e-3)
    assert_stepped(d_before, game.discriminator, d_gradient)


def test_what_is_clipped_does_not_depend_on_the_loss_scale():
    games = [PlainGame(), PlainGame(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))]
    for game in games:
        game.generator_clip_norm = game.discriminator_clip_norm = 1e-2
    games[0].play()
    players = (games[1].discriminator, games[1].generator)
    games[1].play(optimizers=[ScaledOptimizer(player.parameters(), games[1].scaler) for player in players])
    for one, other in zip(*(parameters(game.generator) for game in games), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_extragradient_steps_from_where_it_was_with_the_gradient_of_a_step_ahead():
    game = PlainGame()
    before = [parameters(player) for player in (game.discriminator, game.generator)]
    ahead = copy.deepcopy(game)
    for player, gradient in ((ahead.discriminator, discriminator_gradient), (ahead.generator, generator_gradient)):
        for parameter, slope in zip(player.parameters(), gradient(game)[1], strict=True):
            parameter.data.sub_(LR * slope)
    expected = discriminator_gradient(ahead)[1], generator_gradient(ahead)[1]
    optimizers = [ExtraSGD(p.parameters(), lr=LR) for p in (game.discriminator, game.generator)]
    extragradient_step(game, game.real, game.latent, *optimizers)
    assert_stepped(before[0], game.discriminator, expected[0])
    assert_stepped(before[1], game.generator, expected[1])


def test_extragradient_refuses_other_optimizers():
    game = PlainGame()
    with pytest.raises(
        TypeError, match=r"need optimizers with a method extrapolate \(ExtraAdam, ExtraSGD\), found SGD"
    ):
        extragradient_step(game, game.real, game.latent, *game.optimizers())


def test_frozen_layers_of_a_player_stay_where_they_are():
    game = PlainGame()
    frozen = game.discriminator.layers[0].requires_grad_(False)
    before = parameters(frozen)
    rest = parameters(game.discriminator.layers[2])
    game.play()
    assert all(torch.equal(*pair) for pair in zip(before, parameters(frozen), strict=True))
    assert not torch.equal(rest[0], game.discriminator.layers[2].weight)
    assert frozen.weight.grad is None


class ScaledOptimizer(torch.optim.SGD):
    """Steps as under 16-bit precision: the scaler unscales, steps, and may move its scale after each player."""

    def __init__(self, params, scaler):
        super().__init__(params, lr=LR)
        self.scaler = scaler
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=LR)

    def step(self):
        self.scaler.step(self.inner)
        self.scaler.update()


@pytest.mark.parametrize("schedule", STEPS)
def test_a_loss_scale_that_moves_between_the_two_steps_changes_no_step(schedule):
    plain = PlainGame()
    plain.play(schedule)
    scaled = PlainGame(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1))
    players = (scaled.discriminator, scaled.generator)
    scaled.play(schedule, [ScaledOptimizer(player.parameters(), scaled.scaler) for player in players])
    assert scaled.scaler.get_scale() == 2.0**12  # it did move, twice
    for mine, theirs in ((plain.generator, scaled.generator), (plain.discriminator, scaled.discriminator)):
        for a, b in zip(parameters(mine), parameters(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_slope_too_small_for_half_precision_reaches_the_generator_through_the_loss_scale():
    def generator_gradient(scaler):
        game = PlainGame("wasserstein", scaler=scaler)
        game.generator, game.discriminator = nn.Linear(3, 4), nn.Linear(4, 1)
        game.discriminator.weight.data.fill_(2.0**-16)
        game.real, game.latent = torch.rand(1024, 4), torch.ones(1024, 3)  # the slope is 2^-16 / 1024: 0 in float16
        with torch.autocast("cpu", dtype=torch.float16):
            players = (game.discriminator, game.generator)
            game.play(optimizers=[ScaledOptimizer(p.parameters(), scaler) for p in players] if scaler else None)
        return game.generator.bias.grad

    scaled = generator_gradient(torch.amp.GradScaler("cpu", init_scale=2.0**12))
    torch.testing.assert_close(scaled, torch.full((4,), -(2.0**-16)), rtol=1e-3, atol=0)
    assert not generator_gradient(None).any()


def test_under_autocast_the_generator_meets_the_new_discriminator_and_not_its_cached_weights():
    def generator_after(schedule, cache_enabled):
        game = PlainGame("wasserstein")
        game.generator.float(), game.discriminator.float()
        game.real, game.latent = game.real.float(), game.latent.float()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled):
            game.play(schedule)
        return torch.cat([parameter.flatten() for parameter in parameters(game.generator)])

    expected = generator_after("alternating", cache_enabled=False)
    met_the_old = generator_after("simultaneous", cache_enabled=False)
    found = generator_after("alternating", cache_enabled=True)
    assert (found - expected).norm() < 0.1 * (met_the_old - expected).norm()


@pytest.mark.parametrize("schedule", STEPS)
def test_misfits_are_named(schedule):
    game = PlainGame()
    with pytest.raises(ValueError, match="one of discriminator_optimizer and generator_optimizer must be given"):
        game.play(schedule, (None, None))
    game.generator_loss = lambda fake_logits: fake_logits
    with pytest.raises(ValueError, match=r"generator_loss must return a scalar tensor, found \(6,\)"):
        game.play(schedule)
    game.discriminator_loss = lambda real_logits, fake_logits: 1.0
    with pytest.raises(ValueError, match="discriminator_loss must return a scalar tensor, found float"):
        game.play(schedule)
    game.real = torch.zeros(6, 1, 9, 9)
    with pytest.raises(ValueError, match=r"shape of the batch, \(6, 1, 9, 9\), found \(6, 1, 8, 8\)"):
        game.play(schedule)
