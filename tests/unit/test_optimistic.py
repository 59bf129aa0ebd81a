"""The optimistic optimizers against NumPy, against closed forms of games, and against the known mistakes of others."""

import cmath
import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_decgan.optim import OptimisticAdam, OptimisticOptimizer, OptimisticSGD

SHAPES = [(3, 2), (4,), ()]
BOTH = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda params, **kw: OptimisticSGD(params, **{"lr": 0.05, "momentum": 0.3, **kw}), id="sgd"),
        pytest.param(lambda params, **kw: OptimisticAdam(params, **{"lr": 0.05, "betas": (0.5, 0.9), **kw}), id="adam"),
    ],
)
SETTINGS: dict[str, tuple[type[OptimisticOptimizer], dict[str, Any]]] = {
    "sgd": (OptimisticSGD, {}),
    "sgd_maximize": (OptimisticSGD, {"maximize": True}),
    "sgd_weight_decay": (OptimisticSGD, {"weight_decay": 0.1}),
    "sgd_momentum": (OptimisticSGD, {"momentum": 0.6}),
    "sgd_dampening": (OptimisticSGD, {"momentum": 0.6, "dampening": 0.3}),
    "sgd_nesterov": (OptimisticSGD, {"momentum": 0.6, "nesterov": True}),
    "sgd_everything": (
        OptimisticSGD,
        {"momentum": 0.6, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    ),
    "adam": (OptimisticAdam, {}),
    "adam_short_memory": (OptimisticAdam, {"betas": (0.0, 0.9), "eps": 1e-3}),
    "adam_maximize": (OptimisticAdam, {"maximize": True}),
    "adam_amsgrad": (OptimisticAdam, {"amsgrad": True, "betas": (0.5, 0.7)}),
    "adam_weight_decay": (OptimisticAdam, {"weight_decay": 0.1}),
    "adam_decoupled": (OptimisticAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adam_everything": (
        OptimisticAdam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "amsgrad": True, "maximize": True, "betas": (0.5, 0.7)},
    ),
}
SETTINGS |= {
    f"{name}_unfused": (cls, {**options, "fused": False})
    for name, (cls, options) in SETTINGS.items()
    if cls is OptimisticAdam
}


# --- the rule, written a second time, in NumPy -------------------------------------------------------------------


def start() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=shape) for shape in SHAPES]


def parameters(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    return [Parameter(torch.tensor(value, dtype=dtype)) for value in start()]


def objective(params: list[Any], step: int, sin: Callable[[Any], Any] = torch.sin) -> Any:
    """Changes from step to step, so that no update is like the one before."""
    return sum(((1 + i) * (p - 0.3 * step) ** 2 / 50 + sin(2 * p + step)).sum() for i, p in enumerate(params))


def gradient(value: np.ndarray, index: int, step: int) -> np.ndarray:
    return 2 * (1 + index) * (value - 0.3 * step) / 50 + 2 * np.cos(2 * value + step)


def learning_rate(step: int) -> float:
    return 0.05 / (1 + 0.3 * (step % 7))


def sgd_update(state: dict[str, Any], g: np.ndarray, z: np.ndarray, lr: float, options: dict[str, Any]) -> np.ndarray:
    mu = options.get("momentum", 0.0)
    g = (-g if options.get("maximize") else g) + options.get("weight_decay", 0.0) * z
    if mu == 0:
        return lr * g
    damped = (1 - options.get("dampening", 0.0)) * g
    state["b"] = mu * state["b"] + damped if "b" in state else g
    return lr * (g + mu * state["b"] if options.get("nesterov") else state["b"])


def adam_update(state: dict[str, Any], g: np.ndarray, z: np.ndarray, lr: float, options: dict[str, Any]) -> np.ndarray:
    (beta1, beta2), decay = options.get("betas", (0.9, 0.999)), options.get("weight_decay", 0.0)
    g = -g if options.get("maximize") else g
    if not options.get("decoupled_weight_decay"):
        g, decay = g + decay * z, 0.0
    state["k"] = k = state.get("k", 0) + 1
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    state["largest"] = np.maximum(state.get("largest", 0.0), state["v"])
    v = state["largest"] if options.get("amsgrad") else state["v"]
    m_hat, v_hat = state["m"] / (1 - beta1**k), v / (1 - beta2**k)
    return lr * (m_hat / (np.sqrt(v_hat) + options.get("eps", 1e-8)) + decay * z)


def reference(name: str, steps: int) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Anchors X_k and updates u_k after each step, by `Z = X - u_{k-1}; X = X - u_k`."""
    cls, options = SETTINGS[name]
    update = sgd_update if cls is OptimisticSGD else adam_update
    anchors, last = start(), [np.zeros(shape) for shape in SHAPES]
    states: list[dict[str, Any]] = [{} for _ in SHAPES]
    for k in range(steps):
        for i, state in enumerate(states):
            live = anchors[i] - last[i]
            last[i] = update(state, gradient(live, i, k), live, learning_rate(k), options)
            anchors[i] = anchors[i] - last[i]
        yield list(anchors), list(last)


def train(optimizer: torch.optim.Optimizer, params: list[Parameter], steps: range) -> None:
    for k in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(k)
        optimizer.zero_grad()
        objective(params, k).backward()
        optimizer.step()


def update_of(optimizer: OptimisticOptimizer, parameter: Tensor) -> Tensor:
    ahead = optimizer.lookahead(parameter)
    assert ahead is not None
    return ahead


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_equals_the_equations_in_numpy(name: str, foreach: bool) -> None:
    params = parameters()
    cls, options = SETTINGS[name]
    optimizer = cls(params, lr=123.0, foreach=foreach, **options)
    for k, (anchors, updates) in enumerate(reference(name, 50)):
        train(optimizer, params, range(k, k + 1))
        for parameter, anchor, update in zip(params, anchors, updates, strict=True):
            ahead = update_of(optimizer, parameter).numpy()
            np.testing.assert_allclose(ahead, update, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(parameter.detach().numpy(), anchor - update, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(parameter.detach().numpy() + ahead, anchor, rtol=1e-12, atol=1e-12)


def test_the_reference_takes_the_gradient_that_autograd_takes() -> None:
    params = parameters()
    objective(params, 3).backward()
    for i, (parameter, value) in enumerate(zip(params, start(), strict=True)):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), gradient(value, i, 3), rtol=1e-13)


@pytest.mark.parametrize(
    ("base", "name"),
    [(torch.optim.SGD, n) for n in ("sgd", "sgd_momentum", "sgd_dampening", "sgd_nesterov", "sgd_maximize")]
    + [(torch.optim.Adam, n) for n in ("adam", "adam_short_memory", "adam_amsgrad", "adam_maximize")],
)
def test_the_anchor_moves_as_torch_would_with_the_gradients_of_the_live_point(base: Any, name: str) -> None:
    """torch.optim on the anchor, fed with the gradients taken at the live parameters, is the same method."""
    cls, options = SETTINGS[name]
    params, anchors = parameters(), parameters()
    optimizer, plain = cls(params, lr=0.02, **options), base(anchors, lr=0.02, **options)
    for k in range(30):
        optimizer.zero_grad()
        objective(params, k).backward()
        for parameter, anchor in zip(params, anchors, strict=True):
            assert parameter.grad is not None
            anchor.grad = parameter.grad.clone()
        optimizer.step()
        plain.step()
        for parameter, anchor in zip(params, anchors, strict=True):
            torch.testing.assert_close(parameter + update_of(optimizer, parameter), anchor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lists_and_loop_give_the_same_bits(name: str, dtype: torch.dtype) -> None:
    cls, options = SETTINGS[name]
    runs = []
    for foreach in (False, True):
        params = [*parameters(dtype), Parameter(torch.linspace(-1, 1, 5, dtype=torch.float32))]  # two dtypes in a group
        train(cls(params, lr=1.0, foreach=foreach, **options), params, range(20))
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], parameters(dtype)[0])


# --- games and objectives: every optimizer through the same table ------------------------------------------------


def play(make: Callable[[Any], torch.optim.Optimizer], steps: int) -> list[complex]:
    """min_x max_y x y from (1, 1), both gradients at one point; the live points as x + i y."""
    x, y = (Parameter(torch.tensor(1.0, dtype=torch.float64)) for _ in "xy")
    optimizer = make([{"params": [x]}, {"params": [y], "maximize": True}])
    path = [complex(x.item(), y.item())]
    for _ in range(steps):
        optimizer.zero_grad()
        (x * y).backward()
        optimizer.step()
        path.append(complex(x.item(), y.item()))
    return path


@pytest.mark.parametrize(
    ("make", "solves_the_game"),
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1), False, id="plain_sgd"),
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.1), False, id="plain_sgd_momentum"),
        pytest.param(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999)), False, id="plain_adam"),
        pytest.param(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999), amsgrad=True), False, id="plain_ams"),
        pytest.param(lambda p: OptimisticSGD(p, lr=0.2), True, id="sgd"),
        pytest.param(lambda p: OptimisticSGD(p, lr=0.2, momentum=0.1), True, id="sgd_momentum"),
        pytest.param(lambda p: OptimisticSGD(p, lr=0.2, momentum=0.1, nesterov=True), True, id="sgd_nesterov"),
        pytest.param(lambda p: OptimisticAdam(p, lr=0.1, betas=(0.0, 0.999)), True, id="adam"),
        pytest.param(lambda p: OptimisticAdam(p, lr=0.1, betas=(0.0, 0.999), amsgrad=True), True, id="adam_amsgrad"),
        pytest.param(
            lambda p: OptimisticAdam(p, lr=0.1, betas=(0.0, 0.999), weight_decay=1e-2, decoupled_weight_decay=True),
            True,
            id="adam_decoupled",
        ),
    ],
)
def test_all_solve_a_quadratic_and_the_optimistic_ones_the_bilinear_game(make: Any, solves_the_game: bool) -> None:
    weight = Parameter(torch.tensor([0.5, -0.7], dtype=torch.float64))
    optimizer = make([weight])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(400):
        optimizer.zero_grad()
        (weight.square() * torch.tensor([1.0, 2.0])).sum().backward()
        optimizer.step()
        schedule.step()
    assert weight.abs().max() < 1e-3

    distance = abs(play(make, 400)[-1])
    assert distance < 1e-3 if solves_the_game else distance > 2 * math.sqrt(2)


@pytest.mark.parametrize("lr", [0.05, 0.3, 0.45])
def test_the_bilinear_game_follows_its_closed_form(lr: float) -> None:
    """As w = x + i y the update is -i a w: w_{k+1} = (1 + 2 i a) w_k - i a w_{k-1}, with |root|^2 = (1±s)/2."""
    root = cmath.sqrt(1 - 4 * lr**2)
    fast, slow = (1 - root) / 2 + 1j * lr, (1 + root) / 2 + 1j * lr
    w0 = complex(1, 1)
    w1 = w0 * (1 + 2j * lr)  # u_0 = 0
    slow_part = (w1 - fast * w0) / (slow - fast)
    path = play(lambda p: OptimisticSGD(p, lr=lr), 200)
    expected = [slow_part * slow**k + (w0 - slow_part) * fast**k for k in range(201)]
    np.testing.assert_allclose(path, expected, rtol=1e-11, atol=1e-13)
    assert abs(slow) == pytest.approx(math.sqrt((1 + math.sqrt(1 - 4 * lr**2)) / 2))
    assert abs(slow) < 1

    plain = play(lambda p: torch.optim.SGD(p, lr=lr), 50)
    np.testing.assert_allclose(np.abs(plain), math.sqrt(2) * (1 + lr**2) ** (np.arange(51) / 2), rtol=1e-12)


@pytest.mark.parametrize("overlap", [False, True], ids=["exact", "overlap"])
def test_gossip_on_the_anchors_makes_dposg(overlap: bool) -> None:
    """Four workers on a ring, different games, increments added to the live parameters alone: DPOSG's equations."""
    workers, lr = 4, 0.2
    mixing = np.array([[0.5 if i == j else 0.25 * ((i - j) % workers != 2) for j in range(workers)] for i in range(4)])
    field = np.array([[[0.0, 1.0 + 0.2 * i], [-1.0 - 0.2 * i, 0.0]] for i in range(workers)])
    shift = np.arange(8.0).reshape(workers, 2) / 10

    anchors = np.ones((workers, 2)) + shift
    last = np.zeros_like(anchors)
    params = [Parameter(torch.tensor(row)) for row in anchors]
    optimizers = [OptimisticSGD([p], lr=lr) for p in params]
    for k in range(60):
        # exact: Z = W X - u; X = W X - u'    overlapped: Z = X - u; X = W X - u'
        mixed = mixing @ anchors
        live = (anchors if overlap or k == 0 else mixed) - last
        base = mixed if overlap or k > 0 else anchors
        last = lr * (np.einsum("wij,wj->wi", field, live) + shift)
        anchors = base - last

        increments = mixing @ stacked_anchors(params, optimizers) - stacked_anchors(params, optimizers)
        if not overlap and k > 0:
            add(params, increments)
        for i, (parameter, optimizer) in enumerate(zip(params, optimizers, strict=True)):
            np.testing.assert_allclose(parameter.detach().numpy(), live[i], rtol=0, atol=1e-12)
            parameter.grad = torch.tensor(field[i]) @ parameter.detach() + torch.tensor(shift[i])
            optimizer.step()
        if overlap:
            add(params, increments)
        np.testing.assert_allclose(stacked_anchors(params, optimizers), anchors, rtol=0, atol=1e-12)
    assert np.abs(anchors).max() < 2


def stacked_anchors(params: list[Parameter], optimizers: list[OptimisticSGD]) -> np.ndarray:
    zeros = torch.zeros(2, dtype=torch.float64)
    ahead = [o.lookahead(p) for p, o in zip(params, optimizers, strict=True)]
    return np.stack([(p.detach() + (zeros if a is None else a)).numpy() for p, a in zip(params, ahead, strict=True)])


def add(params: list[Parameter], increments: np.ndarray) -> None:
    with torch.no_grad():
        for parameter, increment in zip(params, increments, strict=True):
            parameter += torch.tensor(increment)


# --- what others get wrong ---------------------------------------------------------------------------------------


@BOTH
def test_the_first_step_moves_the_anchor_once_and_the_live_point_one_look_ahead_of_it(make: Any) -> None:
    params = parameters()
    plain = parameters()
    optimizer = make(params)
    assert all(optimizer.lookahead(p) is None for p in params)
    train(optimizer, params, range(1))
    base = torch.optim.SGD if isinstance(optimizer, OptimisticSGD) else torch.optim.Adam
    train(base(plain, lr=1.0), plain, range(1))
    for parameter, once in zip(params, plain, strict=True):
        ahead = update_of(optimizer, parameter)
        torch.testing.assert_close(parameter + ahead, once, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(parameter, once - ahead, rtol=1e-14, atol=1e-14)


def test_bias_correction_counts_the_steps_of_each_parameter() -> None:
    """The first update of a parameter is lr * sign(gradient), whenever it comes; another count would scale it."""
    early, late = Parameter(torch.zeros(2, dtype=torch.float64)), Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = OptimisticAdam([early, late], lr=0.1, eps=0.0, foreach=True)
    for k in range(5):
        early.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
        late.grad = torch.tensor([3.0, -4.0], dtype=torch.float64) if k == 4 else None
        optimizer.step()
    expected = 0.1 * torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(update_of(optimizer, late), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(update_of(optimizer, early), expected, rtol=1e-12, atol=0)  # a constant gradient
    assert (optimizer.state[early]["step"], optimizer.state[late]["step"]) == (5, 1)


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
def test_gradients_zeroed_or_overwritten_in_place_leave_no_trace(make: Any, foreach: bool) -> None:
    runs = []
    for keep in (False, True):
        params = parameters()
        optimizer = make(params, foreach=foreach)
        for k in range(10):
            optimizer.zero_grad(set_to_none=not keep)
            objective(params, k).backward()
            before = [p.grad.clone() for p in params if p.grad is not None]
            optimizer.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
            if keep:
                for parameter in params:
                    assert parameter.grad is not None
                    parameter.grad.fill_(math.nan)
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
def test_a_parameter_without_gradient_stays_and_those_after_it_move(make: Any, foreach: bool) -> None:
    params = parameters()
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], foreach=foreach)
    train(optimizer, params, range(3))
    live, ahead = params[0].detach().clone(), update_of(optimizer, params[0]).clone()
    state = copy.deepcopy(optimizer.state[params[0]])
    others = [p.detach().clone() for p in params[1:]]
    optimizer.zero_grad()
    objective(params[1:], 3).backward()
    optimizer.step()
    assert torch.equal(params[0], live)
    assert torch.equal(update_of(optimizer, params[0]), ahead)
    assert all(torch.equal(optimizer.state[params[0]][key], value) for key, value in state.items())
    assert not any(torch.equal(p, old) for p, old in zip(params[1:], others, strict=True))


@BOTH
def test_a_step_without_any_gradient_changes_nothing(make: Any) -> None:
    params = parameters()
    optimizer = make(params)
    optimizer.step()
    assert not optimizer.state
    assert all(np.array_equal(p.detach().numpy(), value) for p, value in zip(params, start(), strict=True))


@BOTH
def test_a_player_left_out_is_the_same_as_its_optimizer_not_stepped(make: Any) -> None:
    """Every third iteration trains the generator; the critic always: one optimizer for both, or one for each."""
    finals = []
    for together in (True, False):
        critic, generator = (Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64)) for _ in range(2))
        optimizers = [make([critic, generator])] if together else [make([critic]), make([generator])]
        for k in range(9):
            critic.grad, generator.grad = generator.detach() + k, None
            if k % 3 == 2:
                generator.grad = critic.detach() - k
            stepped = optimizers if together or k % 3 == 2 else optimizers[:1]
            for optimizer in stepped:
                optimizer.step()
        holder = optimizers[-1]
        finals.append((critic.detach(), generator.detach(), update_of(holder, generator)))
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


@BOTH
def test_storages_are_never_replaced(make: Any) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1))
    tensors = [*params, *(t for p in params for t in optimizer.state[p].values())]
    addresses = [t.data_ptr() for t in tensors]
    train(optimizer, params, range(1, 6))
    assert [t.data_ptr() for t in tensors] == addresses
    now = [t for p in params for t in optimizer.state[p].values()]
    assert all(before is after for before, after in zip(tensors[len(params) :], now, strict=True))


@BOTH
def test_state_shares_memory_with_nothing(make: Any) -> None:
    params = parameters()
    optimizer = make(params, foreach=True)
    train(optimizer, params, range(2))
    tensors = [t for p in params for t in (p, p.grad, *optimizer.state[p].values())]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_the_look_ahead_is_taken_back_with_the_learning_rate_it_was_made_with() -> None:
    weight = Parameter(torch.tensor([5.0], dtype=torch.float64))
    optimizer = OptimisticSGD([weight], lr=1.0)
    for lr, g in ((1.0, 1.0), (0.1, 2.0)):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    assert weight.item() == pytest.approx(5.0 - 2 * 1.0 + (1.0 - 2 * 0.1 * 2.0))


def test_moments_advance_once_a_step() -> None:
    params, plain = parameters(), parameters()
    optimizer = OptimisticAdam(params, lr=0.0, amsgrad=True)  # lr 0 keeps both at one point
    other = torch.optim.Adam(plain, lr=0.0, amsgrad=True)
    for k in range(6):
        for opt, ps in ((optimizer, params), (other, plain)):
            opt.zero_grad()
            objective(ps, k).backward()
            opt.step()
    for mine, theirs in zip(params, plain, strict=True):
        for key, value in other.state[theirs].items():
            torch.testing.assert_close(optimizer.state[mine][key], value, rtol=1e-14, atol=0)


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
def test_stepping_one_player_before_the_other_has_its_gradient_is_an_error(make: Any, foreach: bool) -> None:
    """Writes are seen by autograd (no `.data`): the generator's gradient cannot silently see the new discriminator."""
    generator, discriminator = (Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = make([discriminator], foreach=foreach)
    fake_score = (generator * discriminator).sum()
    discriminator.grad = torch.ones_like(discriminator)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fake_score.backward()


# --- state: saving, loading, pickling ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("split", [1, 7])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(name: str, split: int) -> None:
    cls, options = SETTINGS[name]
    straight = parameters()
    reference_optimizer = cls(straight, lr=1.0, **options)
    train(reference_optimizer, straight, range(15))

    first = parameters()
    optimizer = cls(first, lr=1.0, **options)
    train(optimizer, first, range(split))
    file = io.BytesIO()
    torch.save({"parameters": [p.detach() for p in first], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = [Parameter(value) for value in saved["parameters"]]
    optimizer = cls(second, lr=9.0)  # the settings come out of the state
    optimizer.load_state_dict(saved["optimizer"])
    train(optimizer, second, range(split, 15))
    assert all(torch.equal(a, b) for a, b in zip(straight, second, strict=True))
    for a, b in zip(straight, second, strict=True):
        assert reference_optimizer.state[a].keys() == optimizer.state[b].keys()
        assert all(
            torch.equal(reference_optimizer.state[a][key], optimizer.state[b][key]) for key in optimizer.state[b]
        )


@BOTH
@pytest.mark.parametrize(
    "clone", [lambda pair: pickle.loads(pickle.dumps(pair)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_a_copied_optimizer_goes_on_alone_and_alike(make: Any, clone: Any) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(4))
    other_params, other = clone((params, optimizer))
    before = [p.detach().clone() for p in params]
    train(other, other_params, range(4, 9))
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    train(optimizer, params, range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(params, other_params, strict=True))


@BOTH
def test_a_loaded_state_is_not_shared_with_the_optimizer_that_saved_it(make: Any) -> None:
    params, others = parameters(), parameters()
    saver, loader = make(params), make(others)
    train(saver, params, range(3))
    loader.load_state_dict(saver.state_dict())
    kept = copy.deepcopy(loader.state_dict())
    train(saver, params, range(3, 6))
    for index, state in loader.state_dict()["state"].items():
        assert all(torch.equal(value, kept["state"][index][key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("cls", "plain", "options"),
    [
        (OptimisticSGD, torch.optim.SGD, {"momentum": 0.5}),
        (OptimisticAdam, torch.optim.Adam, {"amsgrad": True}),
        (OptimisticAdam, torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_a_run_of_torch_optim_can_go_on_optimistically(cls: Any, plain: Any, options: Any) -> None:
    params, others = parameters(), parameters()
    torch_optimizer = plain(params, lr=0.01, **options)
    train(torch_optimizer, params, range(3))
    with torch.no_grad():
        for p, other in zip(params, others, strict=True):
            other.copy_(p)
    optimizer = cls(others, lr=0.5)
    optimizer.load_state_dict(copy.deepcopy(torch_optimizer.state_dict()))
    assert all(optimizer.lookahead(p) is None for p in others)
    train(torch_optimizer, params, range(3, 4))
    train(optimizer, others, range(3, 4))
    for p, other in zip(params, others, strict=True):  # with u_0 = 0 the anchor goes where torch.optim goes
        torch.testing.assert_close(other + update_of(optimizer, other), p, rtol=1e-12, atol=1e-12)


def test_states_saved_before_an_option_existed_load_with_the_option_off() -> None:
    params = parameters()
    optimizer = OptimisticAdam(params)
    train(optimizer, params, range(3))
    old = copy.deepcopy(optimizer.state_dict())
    for name in ("amsgrad", "maximize", "foreach", "decoupled_weight_decay", "fused"):
        del old["param_groups"][0][name]
    for state in old["state"].values():
        state["step"] = int(state["step"])
    loaded = OptimisticAdam(parameters(), maximize=True)
    loaded.load_state_dict(old)
    group = loaded.param_groups[0]
    assert not any(group[name] for name in ("amsgrad", "maximize", "decoupled_weight_decay", "fused"))
    steps = [state["step"] for state in loaded.state.values()]
    assert all(isinstance(step, Tensor) and step.dtype == torch.float32 and step == 3 for step in steps)
    train(loaded, loaded.param_groups[0]["params"], range(3, 4))

    decoupled = OptimisticAdam(parameters(), decoupled_weight_decay=True)  # for a state of torch's AdamW, which had no
    decoupled.load_state_dict(old)  # such setting once
    assert decoupled.param_groups[0]["decoupled_weight_decay"]

    sgd = OptimisticSGD(parameters())
    old = sgd.state_dict()
    for name in ("nesterov", "maximize", "foreach"):
        del old["param_groups"][0][name]
    sgd.load_state_dict(old)
    train(sgd, sgd.param_groups[0]["params"], range(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_state_has_the_dtype_of_its_parameter_and_the_count_stays_float(dtype: torch.dtype) -> None:
    weight = Parameter(torch.ones(4, dtype=dtype))
    optimizer = OptimisticAdam([weight], lr=0.01, eps=1e-4, amsgrad=True)
    for _ in range(3):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    loaded = OptimisticAdam([weight], lr=0.01)
    loaded.load_state_dict(optimizer.state_dict())
    for holder in (optimizer, loaded):
        state = dict(holder.state[weight])
        assert state.pop("step").dtype == torch.float32
        assert set(state) == {"previous_update", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert {value.dtype for value in state.values()} == {dtype}
    assert torch.isfinite(weight).all()
    assert weight.max() < 1


def test_amsgrad_can_be_turned_on_later() -> None:
    params = parameters()
    optimizer = OptimisticAdam(params, betas=(0.5, 0.7))
    train(optimizer, params, range(3))
    optimizer.param_groups[0]["amsgrad"] = True
    train(optimizer, params, range(3, 4))
    state = optimizer.state[params[0]]
    assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])


# --- the conventions of torch.optim ------------------------------------------------------------------------------


@BOTH
def test_the_look_ahead_is_the_stored_tensor_and_asking_stores_nothing(make: Any) -> None:
    params = parameters()
    optimizer = make(params)
    assert optimizer.lookahead(params[0]) is None
    assert optimizer.lookahead(Parameter(torch.ones(1))) is None
    assert not optimizer.state
    train(optimizer, params, range(1))
    assert optimizer.lookahead(params[0]) is optimizer.state[params[0]]["previous_update"]


@BOTH
def test_what_user_code_writes_into_a_parameter_moves_its_anchor_along(make: Any) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(2))
    ahead = update_of(optimizer, params[0]).clone()
    with torch.no_grad():
        params[0].clamp_(-0.01, 0.01)
    assert torch.equal(update_of(optimizer, params[0]), ahead)
    assert params[0].abs().max() <= 0.01


@BOTH
def test_a_closure_runs_with_gradients_and_its_loss_comes_back(make: Any) -> None:
    params, others = parameters(), parameters()
    optimizer, other = make(params), make(others)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = objective(params, 0)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert float(loss.detach()) == pytest.approx(float(objective(others, 0).detach()))
    objective(others, 0).backward()
    assert other.step() is None
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


@BOTH
def test_hooks_run_around_a_step_once(make: Any) -> None:
    params = parameters()
    optimizer, calls = make(params), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


@BOTH
def test_groups_keep_settings_of_their_own_and_join_late(make: Any) -> None:
    params, others = parameters(), parameters()
    optimizer = make([{"params": [params[0]], "lr": 0.5}], lr=0.01)
    late = {"params": [params[1]], "maximize": True}
    optimizer.add_param_group(late)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.01]
    assert [group["maximize"] for group in optimizer.param_groups] == [False, True]
    assert set(late) == {"params", "maximize"}  # the caller's dictionary is the caller's
    apart = [make([others[0]], lr=0.5), make([others[1]], lr=0.01, maximize=True)]
    for k in range(4):
        for opts, ps in (([optimizer], params), (apart, others)):
            for opt in opts:
                opt.zero_grad()
            objective(ps[:2], k).backward()
            for opt in opts:
                opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params[:2], others[:2], strict=True))
    with pytest.raises(ValueError, match=r"lr must be a number >= 0 and finite, found -1"):
        optimizer.add_param_group({"params": [params[2]], "lr": -1})
    assert len(optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [params[0]]})


@BOTH
def test_schedulers_of_torch_drive_it(make: Any) -> None:
    params, others = parameters(), parameters()
    optimizer, other = make(params, lr=0.1), make(others, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    for k in range(9):
        other.param_groups[0]["lr"] = 0.1 * 0.5 ** (k // 3)
        for opt, ps in ((optimizer, params), (other, others)):
            opt.zero_grad()
            objective(ps, k).backward()
            opt.step()
        schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))

    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=10)  # moves betas or momentum too
    for k in range(9):
        optimizer.zero_grad()
        objective(params, k).backward()
        optimizer.step()
        cycle.step()
    assert all(torch.isfinite(p).all() for p in params)


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learning_rate_may_be_a_tensor_and_is_read_at_each_step(make: Any, foreach: bool, shape: Any) -> None:
    params, others = parameters(), parameters()
    lr = torch.full(shape, 0.25, dtype=torch.float64)
    optimizer, other = make(params, lr=lr, foreach=foreach), make(others, lr=0.25)
    for k, value in enumerate((0.25, 0.125, 0.5)):
        lr.fill_(value)
        other.param_groups[0]["lr"] = value
        for opt, ps in ((optimizer, params), (other, others)):
            opt.zero_grad()
            objective(ps, k).backward()
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("foreach", [False, True])
def test_a_complex_parameter_is_a_pair_of_real_ones(name: str, foreach: bool) -> None:
    cls, options = SETTINGS[name]
    pair = Parameter(torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    number = Parameter(torch.view_as_complex(pair.detach().clone()))
    one, two = cls([number], lr=0.1, foreach=foreach, **options), cls([pair], lr=0.1, foreach=foreach, **options)
    for k in range(5):
        for opt, value in ((one, torch.view_as_real(number)), (two, pair)):
            opt.zero_grad()
            objective([value], k).backward()
            opt.step()
    assert torch.equal(torch.view_as_real(number.detach()), pair)
    assert update_of(one, number).dtype == torch.complex128
    assert torch.equal(torch.view_as_real(update_of(one, number)), update_of(two, pair))


def test_a_conjugated_gradient_is_understood() -> None:
    weight = Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = OptimisticSGD([weight], lr=0.5)
    weight.grad = torch.tensor([1 + 2j, 3 - 1j]).conj()
    optimizer.step()
    assert torch.equal(update_of(optimizer, weight), torch.tensor([0.5 - 1j, 1.5 + 0.5j]))


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
def test_a_gradient_whose_sign_autograd_turns_round_later_is_understood(make: Any, foreach: bool) -> None:
    x, y, plain = (Parameter(torch.ones(())) for _ in range(3))
    optimizer, other = make([x, y], foreach=foreach), make([plain])
    (torch.complex(x, y).conj() ** 2).real.backward()
    assert y.grad is not None
    assert y.grad.is_neg()
    plain.grad = y.grad.resolve_neg()
    optimizer.step()
    other.step()
    assert torch.equal(y, plain)
    assert y != 1


@BOTH
def test_a_parameter_that_is_only_a_view_is_not_silently_left_as_it_is(make: Any) -> None:
    weight = Parameter(torch.ones(2, dtype=torch.complex64).conj())
    weight.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="conj"):
        make([weight]).step()


@BOTH
def test_a_sparse_gradient_is_refused_by_name_before_anything_moves(make: Any) -> None:
    dense, table = Parameter(torch.ones(2)), Parameter(torch.ones(4, 2))
    dense.grad = torch.ones(2)
    table.grad = torch.sparse_coo_tensor([[1]], [[1.0, 1.0]], (4, 2), check_invariants=True)
    for named, which in ((False, "1 of group 0"), (True, "'table'")):
        optimizer = make([("dense", dense), ("table", table)] if named else [dense, table])
        with pytest.raises(RuntimeError, match=rf"dense gradients, found .*sparse.* parameter {which}.*\(4, 2\)"):
            optimizer.step()
        assert torch.equal(dense, torch.ones(2))
        assert not optimizer.state


@BOTH
def test_a_batch_that_the_gradient_scaler_skips_leaves_no_trace(make: Any) -> None:
    runs = []
    for overflow in (True, False):
        params = parameters(torch.float32)
        optimizer = make(params)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # powers of two: scaling is exact
        for k in itertools.chain(range(3), [None] if overflow else [], range(3, 6)):
            optimizer.zero_grad()
            loss = objective(params, 0) * math.inf if k is None else objective(params, k)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append([*params, *(update_of(optimizer, p) for p in params)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_weight_decay_acts_at_the_live_point() -> None:
    """Without a gradient of its own, u_k = lr * decay * Z_k, in both forms for SGD and decoupled Adam."""
    for make in (
        lambda p: OptimisticSGD(p, lr=0.5, weight_decay=0.2),
        lambda p: OptimisticAdam(p, lr=0.5, weight_decay=0.2, decoupled_weight_decay=True),
    ):
        weight = Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer = make([weight])
        for _ in range(5):
            live = weight.detach().clone()
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            torch.testing.assert_close(update_of(optimizer, weight), 0.1 * live, rtol=1e-14, atol=0)
        assert weight.abs().max() < 2


@pytest.mark.parametrize("fused", [None, True, False])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_gradient_of_another_memory_layout_is_read_as_what_it_is(fused: bool | None, foreach: bool) -> None:
    gradient = torch.arange(6.0).view(3, 2).t()  # stands in memory in another order than the weights
    weights = [Parameter(torch.zeros(2, 3)) for _ in range(2)]
    straight = OptimisticAdam(weights[:1], lr=0.1, eps=1.0, fused=False)
    turned = OptimisticAdam(weights[1:], lr=0.1, eps=1.0, fused=fused, foreach=foreach)
    weights[0].grad, weights[1].grad = gradient.contiguous(), gradient
    assert weights[1].grad.stride() != weights[1].stride()
    for _ in range(3):
        straight.step()
        turned.step()
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=0)


def test_one_gradient_of_another_layout_changes_nothing_for_the_others() -> None:
    convolution = torch.nn.Conv2d(4, 4, 3, groups=4)
    runs = []
    for foreach in (False, True):
        network = torch.nn.Sequential(copy.deepcopy(convolution), torch.nn.Conv2d(4, 1, 1))
        torch.nn.init.ones_(network[1].weight)
        torch.nn.init.zeros_(network[1].bias)
        optimizer = OptimisticAdam(network.parameters(), foreach=foreach)
        images = torch.linspace(-1, 1, 400).view(1, 4, 10, 10).to(memory_format=torch.channels_last)
        for _ in range(3):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()
        assert network[0].weight.grad.stride() != network[0].weight.stride()
        runs.append([parameter.detach() for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("step", [2, torch.tensor(2.0, dtype=torch.float64)])
def test_the_count_is_single_precision_wherever_it_comes_from(step: Any) -> None:
    """The kernel on a GPU reads its bits as such."""
    params = parameters()
    optimizer = OptimisticAdam(params)
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = step
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(2, 3))
    assert all(state["step"].dtype == torch.float32 and state["step"] == 3 for state in optimizer.state.values())


def test_the_kernel_counts_where_the_parameters_are() -> None:
    """Nobody then waits for a device; "meta" stands for one here."""
    weight = Parameter(torch.zeros(2, device="meta"))
    optimizer = OptimisticAdam([weight], fused=True)
    weight.grad = torch.zeros(2, device="meta")
    optimizer.step()
    assert optimizer.state[weight]["step"].device.type == "meta"
    optimizer.state[weight]["step"] = torch.tensor(1.0)  # of a run without the kernel
    optimizer.step()
    assert optimizer.state[weight]["step"].device.type == "meta"


@pytest.mark.parametrize("foreach", [None, True, False])
def test_memory_layout_and_empty_parameters_are_kept(foreach: bool | None) -> None:
    image = Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    empty = Parameter(torch.empty(0, 3))
    optimizer = OptimisticAdam([image, empty], foreach=foreach)
    (image.square().sum() + empty.sum()).backward()
    optimizer.step()
    assert update_of(optimizer, image).is_contiguous(memory_format=torch.channels_last)
    assert update_of(optimizer, empty).shape == (0, 3)


@pytest.mark.parametrize(
    ("cls", "options", "error", "text"),
    [
        (OptimisticSGD, {"lr": -0.1}, ValueError, "lr must be a number >= 0 and finite, found -0.1"),
        (OptimisticSGD, {"lr": math.nan}, ValueError, "lr must be .* found nan"),
        (OptimisticAdam, {"lr": math.inf}, ValueError, "lr must be .* found inf"),
        (OptimisticAdam, {"lr": "0.1"}, TypeError, r"lr must be a number .* found '0.1' \(str\)"),
        (OptimisticAdam, {"lr": True}, TypeError, r"lr must be a number .* found True \(bool\)"),
        (OptimisticSGD, {"lr": torch.ones(2)}, ValueError, r"lr must be .* one element, found torch.float32 \(2,\)"),
        (OptimisticSGD, {"lr": torch.tensor(1)}, ValueError, "lr must be .* floating-point"),
        (OptimisticSGD, {"lr": torch.tensor(-1.0)}, ValueError, "lr must be .* found -1.0"),
        (OptimisticAdam, {"lr": torch.tensor(0.1, requires_grad=True)}, ValueError, "lr must not require a gradient"),
        (OptimisticSGD, {"momentum": -1}, ValueError, "momentum must be .* found -1"),
        (OptimisticSGD, {"dampening": math.inf}, ValueError, "dampening must be a number that is finite, found inf"),
        (OptimisticSGD, {"nesterov": True}, ValueError, "nesterov must be False unless momentum > 0"),
        (OptimisticSGD, {"nesterov": True, "momentum": 0.5, "dampening": 0.1}, ValueError, "nesterov must be False"),
        (OptimisticSGD, {"weight_decay": -1e-9}, ValueError, "weight_decay must be .* found -1e-09"),
        (OptimisticSGD, {"weight_decay": torch.tensor(0.1)}, TypeError, "weight_decay must be a number"),
        (OptimisticAdam, {"betas": (0.5, 1.0)}, ValueError, r"betas\[1\] must be a number >= 0 and < 1, found 1.0"),
        (OptimisticAdam, {"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] must be .* found -0.1"),
        (OptimisticAdam, {"betas": (0.5,)}, TypeError, "betas must be two numbers"),
        (OptimisticAdam, {"betas": 0.5}, TypeError, r"betas must be two numbers .* found 0.5 \(float\)"),
        (OptimisticAdam, {"eps": -1.0}, ValueError, "eps must be .* found -1.0"),
        (OptimisticAdam, {"amsgrad": "False"}, TypeError, "amsgrad must be True or False, found 'False'"),
        (OptimisticAdam, {"decoupled_weight_decay": 1}, TypeError, "decoupled_weight_decay must be True or False"),
        (OptimisticAdam, {"maximize": None}, TypeError, "maximize must be True or False, found None"),
        (OptimisticAdam, {"foreach": "auto"}, TypeError, "foreach must be True or False, found 'auto'"),
        (OptimisticAdam, {"fused": 1}, TypeError, "fused must be True or False, found 1"),
    ],
)
def test_bad_settings_are_refused_by_name(cls: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cls(parameters(), **options)
    with pytest.raises(error, match=text):
        cls([{"params": parameters(), **options}])


def test_numbers_of_other_kinds_are_taken_and_kept_as_plain_floats() -> None:
    optimizer = OptimisticAdam(parameters(), lr=np.float64(0.1), betas=[0, np.float32(0.5)], weight_decay=0)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.1, (0.0, 0.5))
    assert {type(value) for value in (group["lr"], *group["betas"], group["weight_decay"])} == {float}


def test_a_base_method_without_an_update_says_so() -> None:
    weight = Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    defaults = {"lr": 0.1, "weight_decay": 0.0, "maximize": False, "foreach": None}
    with pytest.raises(NotImplementedError, match="OptimisticOptimizer does not say what its update is"):
        OptimisticOptimizer([weight], defaults).step()


def test_a_lightning_optimizer_still_looks_ahead() -> None:
    from lightning.pytorch.core.optimizer import LightningOptimizer

    params = parameters()
    wrapped = LightningOptimizer(OptimisticAdam(params))
    train(wrapped.optimizer, params, range(1))
    assert wrapped.lookahead(params[0]) is wrapped.optimizer.lookahead(params[0])
