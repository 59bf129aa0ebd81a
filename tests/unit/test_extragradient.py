"""Extragradient methods against their equations in NumPy, and what happens out of order."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from lightning_decgan.optim import ExtraAdam, ExtraSGD, get_optimizer


def play(optimizer, loss, steps):
    for _ in range(steps):
        for move in (optimizer.extrapolate, optimizer.step):
            optimizer.zero_grad()
            loss().backward()
            move()


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9])
def test_the_bilinear_game_follows_its_closed_form(lr):
    """z -> (I - lr A + lr^2 A^2) z with A the rotation by a quarter: each step scales by sqrt((1 - lr^2)^2 + lr^2)."""
    x = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    y = torch.nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
    play(ExtraSGD([{"params": [x]}, {"params": [y], "maximize": True}], lr=lr), lambda: x * y, 25)
    rotation = np.array([[0.0, 1.0], [-1.0, 0.0]])
    step = np.eye(2) - lr * rotation + lr**2 * rotation @ rotation
    expected = np.linalg.matrix_power(step, 25) @ [1.0, -0.5]
    np.testing.assert_allclose([x.item(), y.item()], expected, atol=1e-14)
    assert math.hypot(x.item(), y.item()) == pytest.approx(
        math.hypot(1, 0.5) * ((1 - lr**2) ** 2 + lr**2) ** 12.5, rel=1e-12
    )


def test_adams_moments_advance_at_both_gradients():
    lr, (beta1, beta2), eps = 0.1, (0.5, 0.9), 1e-8
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    play(ExtraAdam([weight], lr=lr, betas=(beta1, beta2)), lambda: (weight**2).sum() + weight.prod(), 7)

    x, m, v, k = np.array([2.0, -3.0]), np.zeros(2), np.zeros(2), 0
    for _ in range(7):
        point = x
        for _ in range(2):
            g, k = 2 * point + point[::-1], k + 1
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            point = x - lr * (m / (1 - beta1**k)) / (np.sqrt(v / (1 - beta2**k)) + eps)
        x = point
    np.testing.assert_allclose(weight.detach().numpy(), x, atol=1e-13)


def test_a_parameter_without_gradient_stays_and_one_that_loses_its_gradient_comes_back():
    moved, still = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = ExtraSGD([moved, still], lr=0.1)
    moved.grad = torch.ones(2)
    optimizer.extrapolate()
    assert moved.tolist() == pytest.approx([0.9, 0.9])
    moved.grad = None
    optimizer.step()
    assert moved.tolist() == still.tolist() == [1.0, 1.0]
    assert optimizer.lookahead(moved) is None


def test_the_order_of_calls_is_kept():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = ExtraAdam([weight])
    with pytest.raises(RuntimeError, match=r"step\(\) needs extrapolate\(\) before it"):
        optimizer.step()
    optimizer.extrapolate()
    with pytest.raises(RuntimeError, match=r"extrapolate\(\) was called twice"):
        optimizer.extrapolate()
    optimizer.step()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_goes_on(clone):
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = ExtraAdam([weight], lr=0.1)
    play(optimizer, lambda: (weight**2).sum(), 3)
    twin = clone(optimizer)
    (other,) = twin.param_groups[0]["params"]
    play(optimizer, lambda: (weight**2).sum(), 3)
    play(twin, lambda: (other**2).sum(), 3)
    assert torch.equal(weight, other)


def test_optimizers_by_name():
    assert get_optimizer("ExtraAdam") is ExtraAdam
    assert get_optimizer("SGD") is torch.optim.SGD
    assert get_optimizer(torch.optim.Adam) is torch.optim.Adam
    for wrong in ("Optimizer", "lr_scheduler", "adam", ""):
        with pytest.raises(ValueError, match=r"optimizer must be a class of .*, found"):
            get_optimizer(wrong)


@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_is_taken_where_the_gradient_was_taken(decoupled):
    lr, decay, x, first, second = 0.1, 0.5, 2.0, 1.0, -3.0
    weight = torch.nn.Parameter(torch.tensor([x], dtype=torch.float64))
    if decoupled:
        optimizer = ExtraAdam([weight], lr=lr, betas=(0.0, 0.0), eps=0, weight_decay=decay, decoupled_weight_decay=True)
    else:
        optimizer = ExtraSGD([weight], lr=lr, weight_decay=decay)

    def update(gradient, point):  # with these betas Adam's step is the gradient's sign
        return lr * ((np.sign(gradient) if decoupled else gradient) + decay * point)

    weight.grad = torch.tensor([first], dtype=torch.float64)
    optimizer.extrapolate()
    z = x - update(first, x)
    assert weight.item() == pytest.approx(z, rel=1e-12)
    weight.grad = torch.tensor([second], dtype=torch.float64)
    optimizer.step()
    assert weight.item() == pytest.approx(x - update(second, z), rel=1e-12)
