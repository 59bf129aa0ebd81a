"""Evaluation looks at the average of all workers and leaves no trace; after fit the model is that average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from lightning_decgan.strategy import DecentralizedGossipStrategy
from tests.distributed import users_modules as users
from tests.distributed.models import UsersGAN, make_trainer
from tests.distributed.workers import run_workers

pytestmark = pytest.mark.processes


class Watch(Callback):
    """Copies the module's state before, within and after the last validation."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Tensor]] = {}

    def _note(self, moment: str, module: LightningModule) -> None:
        self.states[moment] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._note("before", module)

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._note("first", module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._note("last", module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._note("after", module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._note("end of fit", module)


def _watch(evaluate: str) -> dict[str, Any]:
    seed_everything(1)
    watch, model = Watch(), UsersGAN()
    model.double_weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))  # another dtype, in no optimizer
    strategy = DecentralizedGossipStrategy(evaluate=evaluate)  # type: ignore[arg-type]
    trainer = make_trainer(strategy, 3, max_epochs=1, limit_train_batches=6, callbacks=[watch])
    trainer.fit(model)
    return {
        "states": watch.states,
        "after fit": {name: value.clone() for name, value in model.state_dict().items()},
        "distance": strategy.consensus_distance,
        "relative": strategy.relative_consensus_distance,
        "parameters": [name for name, _ in model.named_parameters()],
    }


def test_validation_sees_the_average_bit_for_bit_and_every_worker_gets_its_own_model_back() -> None:
    workers = run_workers(3, _watch, "consensus")
    before = [worker["states"]["before"] for worker in workers]
    away = size = 0.0
    for name, own in before[0].items():
        values = torch.stack([state[name].double() for state in before])
        mean = values.sum(dim=0) / 3
        for worker, state in zip(workers, before, strict=True):
            seen = worker["states"]["first"][name]
            assert torch.equal(seen, mean.to(own.dtype) if own.is_floating_point() else state[name]), name
            for moment in ("last", "end of fit"):
                assert torch.equal(worker["states"]["last"][name], seen), (moment, name)
            assert torch.equal(worker["states"]["after"][name], state[name]), name
        if name in workers[0]["parameters"]:
            away += float((values - mean).square().sum())
            size += float(mean.square().sum())
    assert away > 0, "the workers' models differ"
    for worker in workers:
        assert worker["distance"] == pytest.approx((away / 3) ** 0.5, rel=1e-9)
        assert worker["relative"] == pytest.approx((away / 3) ** 0.5 / size**0.5, rel=1e-9)


def test_fit_ends_with_the_consensus_in_the_model() -> None:
    workers = run_workers(3, _watch, "consensus")
    for name, value in workers[0]["after fit"].items():
        if value.is_floating_point():
            own = torch.stack([worker["states"]["after"][name].double() for worker in workers])
            for worker in workers:
                assert torch.equal(worker["after fit"][name], (own.sum(dim=0) / 3).to(value.dtype)), name


def test_local_evaluation_looks_at_each_workers_own_model_and_so_does_the_code_after_fit() -> None:
    workers = run_workers(3, _watch, "local")
    for worker in workers:
        assert worker["distance"] is None
        for state in (*(worker["states"][moment] for moment in ("first", "last", "end of fit")), worker["after fit"]):
            for name, value in worker["states"]["before"].items():
                assert torch.equal(state[name], value), name
    name = "generator.0.weight"
    assert not torch.equal(workers[0]["after fit"][name], workers[1]["after fit"][name])


class Evaluated(users.BatchNorm):
    """Notes what evaluation sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def _note(self) -> None:
        self.seen.append(torch.cat([value.double().flatten() for value in self.state_dict().values()]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._note()
        self.log("loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._note()
        return self(batch[0])


def _evaluate_after_fit(evaluate: str) -> dict[str, Any]:
    seed_everything(1)
    model = Evaluated()
    trainer = make_trainer(DecentralizedGossipStrategy(evaluate=evaluate), 2, max_epochs=1)  # type: ignore[arg-type]
    trainer.fit(model, val_dataloaders=[])
    trained = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    loader = model.val_dataloader()
    (validated,) = trainer.validate(model, loader, verbose=False)
    (tested,) = trainer.test(model, loader, verbose=False)
    predicted = trainer.predict(model, loader)
    assert predicted is not None
    with torch.no_grad():
        whole = float(
            torch.nn.functional.mse_loss(model.eval()(users.pairs(16).tensors[0]), users.pairs(16).tensors[1])
        )
    return {
        "trained": trained,
        "seen": model.seen,
        "losses": [validated["loss"], tested["loss"]],
        "predicted": torch.cat(predicted),  # type: ignore[arg-type]
        "expected": whole,
    }


def test_validate_test_and_predict_after_fit_use_the_trained_consensus() -> None:
    workers = run_workers(2, _evaluate_after_fit, "consensus")
    for worker in workers:
        assert torch.equal(worker["trained"], workers[0]["trained"])
        assert len(worker["seen"]) == 6
        assert all(torch.equal(seen, worker["trained"]) for seen in worker["seen"])
        assert worker["losses"] == pytest.approx([worker["expected"]] * 2, rel=1e-5)
        assert worker["predicted"].shape == (8, 3), "each worker predicts its own shard"


def test_with_local_evaluation_each_worker_tests_the_model_it_trained() -> None:
    workers = run_workers(2, _evaluate_after_fit, "local")
    assert not torch.equal(workers[0]["trained"], workers[1]["trained"])
    for worker in workers:
        assert all(torch.equal(seen, worker["trained"]) for seen in worker["seen"])


def _evaluate_without_fit() -> dict[str, Any]:
    seed_everything(torch.initial_seed() % 1000)
    model = Evaluated()
    trainer = make_trainer("decentralized_gossip", 2)
    trainer.test(model, model.val_dataloader(), verbose=False)
    return {"seen": model.seen[0], "group": torch.distributed.get_world_size()}


def test_evaluation_without_training_starts_from_worker_zero() -> None:
    first, second = run_workers(2, _evaluate_without_fit)
    assert torch.equal(first["seen"], second["seen"])
    assert first["group"] == 2


def _fit_thrice() -> list[dict[str, Any]]:
    """The same Trainer goes on; then another Trainer trains the same model."""
    seed_everything(1)
    model = users.Regression()
    strategy = DecentralizedGossipStrategy(overlap=True)
    trainer = make_trainer(strategy, 2, max_epochs=1)
    found = []

    def note(used: Any) -> None:
        found.append({"weight": model.net.weight.detach().clone(), "swaps": used.totals.swaps})

    trainer.fit(model)
    note(strategy)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model)
    note(strategy)
    other = DecentralizedGossipStrategy(topology="complete", overlap=False)
    make_trainer(other, 2, max_epochs=1).fit(model)
    note(other)
    return found


def test_a_second_fit_goes_on_with_the_same_trainer_and_with_another() -> None:
    first, second = run_workers(2, _fit_thrice)
    # Overlapped, the last exchange is still in flight when fit ends; the next fit starts from the consensus anyway.
    assert [fit["swaps"] for fit in first] == [5, 11, 6]
    for mine, its in zip(first, second, strict=True):
        assert torch.equal(mine["weight"], its["weight"]), "fit ends with the consensus"
    assert not torch.equal(first[0]["weight"], first[1]["weight"])
    assert not torch.equal(first[1]["weight"], first[2]["weight"])


def _singular_values(model_class: str) -> list[float]:
    seed_everything(1)
    model = getattr(users, model_class)()
    trainer = make_trainer("decentralized_gossip", 2, max_epochs=5)
    trainer.fit(model)
    with torch.no_grad():
        model.eval()(torch.zeros(1, users.INPUTS))  # recomputes the normalized weight without a power iteration
        return [float(torch.linalg.matrix_norm(model.net[0].weight, ord=2))]


@pytest.mark.parametrize("model_class", ["OldSpectralNorm", "Parametrized"])
def test_the_consensus_of_spectrally_normalized_layers_is_normalized(model_class: str) -> None:
    first, second = run_workers(2, _singular_values, model_class)
    assert first == second
    assert first[0] == pytest.approx(1.0, abs=0.05)
