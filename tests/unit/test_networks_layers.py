"""The layers of the networks against closed forms and against NumPy in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_decgan.gan.networks import (
    ConditionalBatchNorm2d,
    LabelledSequential,
    ProjectionHead,
    ResNetDiscriminator,
    SAGANDiscriminator,
    SAGANGenerator,
    SelfAttention,
    SpectralNorm,
    normalize_spectra,
)
from lightning_decgan.gan.networks.blocks import DownBlock, GlobalPool, UpBlock
from lightning_decgan.gan.networks.conditional import batch_norm


def weights(*layers):
    return [layer.weight.detach().numpy().reshape(layer.weight.shape[0], -1) for layer in layers]


# ---- conditional batch normalisation ----


@pytest.fixture
def conditional():
    torch.manual_seed(0)
    norm = ConditionalBatchNorm2d(3, num_classes=4, momentum=0.3).double()
    nn.init.normal_(norm.gain.weight)
    nn.init.normal_(norm.bias.weight)
    return norm, torch.randn(5, 3, 4, 6, dtype=torch.float64) * 2 + 1, torch.tensor([3, 0, 0, 2, 1])


def test_conditional_batch_normalisation_is_its_formula(conditional):
    norm, maps, labels = conditional
    found = norm(maps, labels).detach().numpy()
    x = maps.numpy()
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    gain, bias = (t.weight.detach().numpy()[labels.numpy()][:, :, None, None] for t in (norm.gain, norm.bias))
    np.testing.assert_allclose(found, (1 + gain) * (x - mean) / np.sqrt(variance + 1e-5) + bias, rtol=0, atol=1e-12)


def test_conditional_batch_normalisation_evaluates_with_running_statistics_over_all_classes(conditional):
    norm, maps, labels = conditional
    norm(maps, labels)
    x = maps.numpy()
    mean, variance = 0.3 * x.mean((0, 2, 3)), 0.7 + 0.3 * x.var((0, 2, 3), ddof=0) * 120 / 119
    np.testing.assert_allclose(norm.normalize.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(norm.normalize.running_var, variance, rtol=1e-12)
    gain, bias = (t.weight.detach().numpy()[2] for t in (norm.gain, norm.bias))
    found = norm.eval()(maps[3:4], labels[3:4]).detach().numpy()[0]
    scale = (1 + gain) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(
        found, scale[:, None, None] * (x[3] - mean[:, None, None]) + bias[:, None, None], atol=1e-12
    )


def test_conditional_batch_normalisation_begins_as_a_normalisation_without_gain_and_bias(conditional):
    _, maps, labels = conditional
    plain = nn.BatchNorm2d(3).double()
    torch.testing.assert_close(ConditionalBatchNorm2d(3, 4).double()(maps, labels), plain(maps), rtol=0, atol=1e-14)
    assert sum(p.numel() for p in ConditionalBatchNorm2d(3, 4).parameters()) == 2 * 3 * 4


def test_the_gradient_of_a_class_comes_from_its_own_samples(conditional):
    norm, maps, labels = conditional
    norm(maps, labels)[labels == 0].sum().backward()
    assert (norm.bias.weight.grad[0] == 2 * 4 * 6).all()
    assert not norm.bias.weight.grad[1:].any()


# ---- labels and projection ----


def test_only_labelled_layers_of_a_sequence_get_labels():
    layers = LabelledSequential(nn.Identity(), batch_norm(2, 3), nn.ReLU(), batch_norm(2, None))
    with torch.no_grad():
        layers[1].bias.weight[1] = 100.0
    maps = torch.randn(2, 2, 3, 3)
    out = layers[:3](maps, torch.tensor([1, 0]))
    assert out[0].min() > 90
    assert out[1].max() < 10
    assert layers(maps, torch.tensor([1, 0])).shape == maps.shape


def test_the_projection_is_its_formula():
    torch.manual_seed(0)
    head, features, labels = ProjectionHead(5, 3).double(), torch.randn(4, 5, dtype=torch.float64), [2, 0, 0, 1]
    found = head(features, torch.tensor(labels)).detach().numpy()
    psi, v, phi = head.linear.weight[0].detach().numpy(), head.embedding.weight.detach().numpy(), features.numpy()
    for i, label in enumerate(labels):
        assert found[i] == pytest.approx(psi @ phi[i] + head.linear.bias.item() + v[label] @ phi[i], abs=1e-13)


def test_a_projection_without_classes_is_a_linear_layer():
    torch.manual_seed(0)
    head, features = ProjectionHead(5), torch.randn(4, 5)
    assert torch.equal(head(features), head.linear(features)[:, 0])
    assert head.embedding is None


def test_autocast_leaves_the_projection_in_full_precision():
    torch.manual_seed(0)
    head, features, labels = ProjectionHead(64, 3), torch.randn(4, 64), torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features.bfloat16(), labels)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(features.bfloat16().float(), labels))


# ---- self-attention ----


def attended(maps, attention):
    """The formula place by place."""
    query, key, value, output = weights(attention.query, attention.key, attention.value, attention.output)
    n, channels, height, width = maps.shape

    def pooled(rows):
        blocks = rows.reshape(len(rows), height // 2, 2, width // 2, 2)
        return blocks.max((2, 4)).reshape(len(rows), -1)

    found = np.empty_like(maps)
    for sample in range(n):
        x = maps[sample].reshape(channels, -1)
        keys, values = pooled(key @ x), pooled(value @ x)
        for place in range(height * width):
            scores = np.array([(query @ x[:, place]) @ keys[:, other] for other in range(keys.shape[1])])
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            y = x[:, place] + attention.gamma.item() * output @ (values @ shares)
            found[sample, :, place // width, place % width] = y
    return found


@pytest.mark.parametrize(("features", "height", "width"), [(16, 4, 6), (8, 2, 2), (3, 6, 4)])
def test_self_attention_is_its_formula(features, height, width):
    torch.manual_seed(0)
    attention = SelfAttention(features).double()
    attention.gamma.data.fill_(0.8)
    for parameter in attention.parameters():
        parameter.data.mul_(2)
    maps = torch.randn(2, features, height, width, dtype=torch.float64)
    np.testing.assert_allclose(attention(maps).detach().numpy(), attended(maps.numpy(), attention), rtol=0, atol=1e-12)


def test_self_attention_agrees_with_torchs_own_attention():
    torch.manual_seed(0)
    attention, maps = SelfAttention(16).double(), torch.randn(2, 16, 8, 8, dtype=torch.float64)
    attention.gamma.data.fill_(1.0)
    query, key, value = attention.query(maps), attention.key(maps), attention.value(maps)
    key, value = (functional.max_pool2d(each, 2) for each in (key, value))
    rows = [each.flatten(2).mT for each in (query, key, value)]
    found = functional.scaled_dot_product_attention(*rows, scale=1.0).mT.unflatten(2, (8, 8))
    torch.testing.assert_close(attention(maps), maps + attention.output(found), rtol=0, atol=1e-13)


def test_self_attention_begins_as_the_identity_and_learns_first_how_much_to_add():
    torch.manual_seed(0)
    attention, maps = SelfAttention(16), torch.randn(2, 16, 4, 4)
    out = attention(maps)
    assert torch.equal(out, maps)
    out.square().sum().backward()
    assert attention.gamma.grad != 0
    assert not attention.query.weight.grad.any()


def test_self_attention_has_an_eighth_of_the_channels_as_queries_and_keys_and_half_as_values():
    attention = SelfAttention(64)
    assert [weight.shape for weight in weights(attention.query, attention.key, attention.value, attention.output)] == [
        *((8, 64), (8, 64), (32, 64), (64, 32)),
    ]
    assert all(layer.bias is None for layer in attention.children())


@pytest.mark.parametrize("size", [(3, 4), (4, 5)])
def test_self_attention_refuses_odd_maps(size):
    with pytest.raises(ValueError, match=f"maps must have an even height and width, found {size[0]} x {size[1]}"):
        SelfAttention(8)(torch.zeros(1, 8, *size))


# ---- residual blocks, in the order of the papers ----


def test_a_block_of_a_generator_is_what_the_papers_draw():
    torch.manual_seed(0)
    block, maps = UpBlock(4, 3).double().eval(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    norm1, _, _, conv1, norm2, _, conv2 = block.residual

    def up(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    residual = conv2(norm2(conv1(up(norm1(maps).clamp(min=0)))).clamp(min=0))
    torch.testing.assert_close(block(maps), residual + block.shortcut(up(maps)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_block_of_a_discriminator_is_what_the_papers_draw(layer_norm):
    torch.manual_seed(0)
    block = DownBlock(4, 3, 5, halve=True, layer_norm=layer_norm).double()
    maps = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def down(x):
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def norm(x):
        if not layer_norm:
            return x
        deviation = x - x.mean((1, 2, 3), keepdim=True)
        return deviation / (deviation.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()

    conv1, conv2 = (layer for layer in block.residual if isinstance(layer, nn.Conv2d))
    residual = down(conv2(norm(conv1(norm(maps).clamp(min=0))).clamp(min=0)))
    shortcut = down(block.shortcut[-1](maps))
    torch.testing.assert_close(block(maps), residual + shortcut, rtol=0, atol=1e-13)


def test_a_first_block_sees_negative_pixels_and_an_even_block_leaves_its_input_in():
    torch.manual_seed(0)
    first = DownBlock(1, 4, 4, halve=True, layer_norm=True, first=True)
    assert not any(isinstance(layer, nn.GroupNorm) for layer in first.modules())
    darker, dark = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), -0.5)
    assert not torch.equal(first.residual(darker), first.residual(dark))
    even = DownBlock(4, 4, 4, halve=False)
    maps = torch.randn(2, 4, 3, 3)
    assert torch.equal(even.shortcut(maps), maps)


def test_a_global_mean_is_the_sum_over_the_number_of_places():
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(GlobalPool()(maps), 20 * GlobalPool(mean=True)(maps))


# ---- spectral normalisation ----


def normalized_layers(network):
    return [
        m
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding) and hasattr(m, "parametrizations")
    ]


def norms(network):
    return [torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2).item() for m in normalized_layers(network)]


def converge(network):
    """Power iterations, as many as training forwards would do."""
    with torch.no_grad():
        for layer in normalized_layers(network):
            for _ in range(300):
                layer.weight  # noqa: B018


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: SAGANGenerator(width=8, num_classes=3), 1 + 3 * 3 + 4 + 1),
        (lambda: SAGANDiscriminator(width=8, num_classes=3), 3 + 3 + 2 + 2 + 4 + 2),
        (lambda: ResNetDiscriminator(width=4, norm="spectral", num_classes=3), 3 + 3 + 2 + 2 + 2),
    ],
)
def test_the_largest_singular_value_of_every_weight_becomes_one(make, layers):
    torch.manual_seed(0)
    network = make().double()
    converge(network)
    found = norms(network.eval())
    assert len(found) == layers
    assert found == pytest.approx([1.0] * layers, abs=1e-3)


def test_gains_and_biases_of_classes_are_not_spectrally_normalised():
    generator = SAGANGenerator(width=8, num_classes=3)
    tables = [m for m in generator.modules() if isinstance(m, ConditionalBatchNorm2d)]
    assert len(tables) == 6
    assert not any(hasattr(table, "parametrizations") for m in tables for table in (m.gain, m.bias))


def test_training_normalises_as_torch_does():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3).double()
    theirs = nn.utils.parametrizations.spectral_norm(copy.deepcopy(layer))
    normalize_spectra(nn.Sequential(layer))
    layer.load_state_dict(theirs.state_dict())
    for _ in range(3):
        assert torch.equal(layer.weight, theirs.weight)
    assert torch.equal(layer.parametrizations.weight[0]._u, theirs.parametrizations.weight[0]._u)


def test_evaluation_changes_no_buffer_and_is_the_same_every_time():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    normalize_spectra(layer)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer.weight, layer.weight)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_an_average_of_workers_is_normalised_although_its_singular_vectors_are_none():
    """The consensus averages weights and buffers; an average of unit vectors is shorter than one."""
    torch.manual_seed(0)
    workers = []
    for _ in range(4):
        torch.manual_seed(1)
        layer = nn.Linear(40, 30).double()
        layer.weight.data.add_(torch.outer(torch.ones(30), torch.ones(40)), alpha=0.02)
        normalize_spectra(layer)
        workers.append(layer)
    torch.manual_seed(2)
    for layer in workers:
        layer.parametrizations.weight.original.data.add_(0.04 * torch.randn(30, 40))
    for layer in workers:
        converge(layer)
    consensus = copy.deepcopy(workers[0])
    mean = {name: sum(w.state_dict()[name] for w in workers) / 4 for name in consensus.state_dict()}
    consensus.load_state_dict(mean)
    assert mean["parametrizations.weight.0._u"].norm() < 0.97
    theirs = nn.utils.parametrizations.spectral_norm(nn.Linear(40, 30).double())
    theirs.load_state_dict(mean)
    assert norms(theirs.eval())[0] > 1.03, "what evaluation without further iterations makes of it"
    assert norms(consensus.eval())[0] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_does_not_coarsen_a_normalised_weight(training):
    torch.manual_seed(0)
    weight = torch.randn(20, 30)
    norm = SpectralNorm(weight).train(training)
    mixed = copy.deepcopy(norm)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = mixed(weight)
    assert coarse.dtype == torch.float32
    assert torch.equal(coarse, norm(weight))
    assert torch.equal(mixed._u, norm._u)
