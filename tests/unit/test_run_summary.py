"""What a summary says of a run that ends well, that fails, that goes on later; and the scores that it quotes."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_decgan.callbacks import (
    BatchProgressBar,
    BestCheckpoint,
    FidelityCallback,
    RunSummary,
    StopAfterBatches,
    training_batches,
)
from lightning_decgan.files import write_json_atomically
from lightning_decgan.metrics import ClassifierFeatures


class Toy(LightningModule):
    """A 'generator' with one number: the brightness of its images. The real ones are white (1.0)."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.automatic_optimization = False
        self.brightness = nn.Parameter(torch.tensor(-0.9))
        self.fail_at = fail_at
        self.sizes = []

    def sample(self, n):
        self.sizes.append(n)
        return (self.brightness + 0.05 * torch.randn(n, 1, 8, 8)).clamp(-1, 1)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    def training_step(self, batch, batch_idx):
        if training_batches(self.trainer) == self.fail_at:
            raise RuntimeError("what a worker said:\nValueError: this is the line that counts")
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward((self.brightness - batch[0].mean()).square())
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        pass


def images(count):
    return (0.9 + 0.05 * torch.randn(count, 1, 8, 8)).clamp(-1, 1)


def features():
    torch.manual_seed(0)
    return ClassifierFeatures(channels=1, image_size=8, num_classes=10, name="untrained_cnn").freeze()


def fit(folder, module, *, steps=6, callbacks=(), ckpt_path=None, sanity=-1, enable_checkpointing=False):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=3,
        num_sanity_val_steps=sanity,
        callbacks=[StopAfterBatches(steps), RunSummary(folder / "summary.json"), *callbacks],
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=enable_checkpointing,
        enable_progress_bar=any(isinstance(callback, BatchProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )
    train = DataLoader(TensorDataset(images(20), torch.zeros(20, dtype=torch.int64)), batch_size=5)
    validate = DataLoader(TensorDataset(images(32), torch.zeros(32, dtype=torch.int64)), batch_size=16)
    trainer.fit(module, train, validate, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def read(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_finished_run_says_how_long_it_was_in_batches_and_images(tmp_path):
    trainer = fit(tmp_path, Toy(), steps=6)
    summary = read(tmp_path)
    assert trainer.global_step == 12, "Lightning counts the steps of both optimizers"
    assert summary["status"] == "finished"
    assert (summary["steps"], summary["images_seen"], summary["workers"]) == (6, 30, 1)
    assert 0 < summary["validation_seconds"] < summary["seconds"] < 60
    training_seconds = summary["seconds"] - summary["validation_seconds"]
    assert summary["images_per_second"] == pytest.approx(30 / training_seconds, rel=0.2, abs=0.2)
    assert summary["versions"]["torch"] == torch.__version__


def test_what_does_not_apply_to_a_strategy_is_null(tmp_path):
    fit(tmp_path, Toy())
    summary = read(tmp_path)
    for field in ("topology", "spectral_gap", "rounds", "bytes_sent_per_worker", "consensus_distance", "scores"):
        assert summary[field] is None, field
    assert summary["strategy"] == "SingleDeviceStrategy"


def test_the_run_stops_after_so_many_batches_in_the_middle_of_an_epoch_and_validates_once_more(tmp_path):
    callback = FidelityCallback(features(), samples=40, kernel_subset_size=16)
    trainer = fit(tmp_path, Toy(), steps=7, callbacks=[callback])
    assert training_batches(trainer) == 7, "an epoch has four"
    assert [entry["step"] for entry in callback.history] == [0, 3, 6, 7]


def test_a_failed_run_says_why_in_one_line(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, Toy(fail_at=4))
    summary = read(tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"] == "ValueError: this is the line that counts"
    assert (summary["steps"], summary["images_seen"]) == (4, 20)


def test_scores_before_and_after_are_of_the_same_network_and_get_better_as_the_images_do(tmp_path):
    module = Toy()
    callback = FidelityCallback(features(), samples=40, batch_size=16, kernel_subset_size=16)
    trainer = fit(tmp_path, module, steps=30, callbacks=[callback])
    summary = read(tmp_path)
    assert summary["features"] == "untrained_cnn"
    assert set(summary["scores"]) == {"frechet_distance", "kernel_distance", "inception_score"}
    assert summary["scores"]["frechet_distance"] < 0.1 * summary["scores_before"]["frechet_distance"]
    assert module.sizes[:3] == [16, 16, 8], "40 images, at most 16 at a time"
    logged = trainer.callback_metrics["fidelity/untrained_cnn/frechet_distance"]
    assert float(logged) == pytest.approx(summary["scores"]["frechet_distance"])
    assert "fidelity/untrained_cnn/frechet_distance" in trainer.progress_bar_metrics


@pytest.mark.parametrize("sanity", [0, -1, 1])
def test_too_few_validation_images_for_a_score_are_found_before_training(tmp_path, sanity):
    module = Toy()
    score = FidelityCallback(features(), samples=100, kernel_subset_size=100)
    with pytest.raises(ValueError, match=r"kernel_subset_size=100 needs .* found 32"):
        fit(tmp_path, module, callbacks=[score], sanity=sanity)
    assert module.brightness.item() == pytest.approx(-0.9)


@pytest.mark.parametrize(
    ("score", "better"), [("frechet_distance", min), ("kernel_distance", min), ("inception_score", max)]
)
def test_the_best_of_a_score_is_kept_whichever_way_it_is_better(tmp_path, score, better):
    scores, best = FidelityCallback(features(), samples=40, kernel_subset_size=16), BestCheckpoint(tmp_path, score)
    fit(tmp_path, Toy(), steps=30, callbacks=[scores, best], enable_checkpointing=True)
    found = [entry[score] for entry in scores.history if entry["step"]]
    assert min(found) < max(found)
    assert float(best.best_model_score) == pytest.approx(better(found))


def test_a_sanity_check_on_a_part_of_the_images_is_not_scored(tmp_path):
    callback = FidelityCallback(features(), samples=40, kernel_subset_size=16)
    fit(tmp_path, Toy(), callbacks=[callback], sanity=1)
    assert [entry["step"] for entry in callback.history] == [3, 6]


def test_two_batches_of_a_loader_without_a_length_are_not_taken_for_all_images(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(images(32))

    callback = FidelityCallback(features(), samples=40, kernel_subset_size=16)
    settings = {"limit_train_batches": 2, "enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, **settings)
    trainer.fit(Toy(), DataLoader(TensorDataset(images(20)), batch_size=5), DataLoader(Stream(), batch_size=4))
    assert [entry["step"] for entry in callback.history] == [2]


def test_kept_real_images_are_taken_anew_once_they_are_dealt_to_fewer_workers(tmp_path):
    callback = FidelityCallback(features(), samples=40, kernel_subset_size=16, reset_real_features=False)
    trainer = fit(tmp_path, Toy(), callbacks=[callback])
    kept = len(callback.fidelity.real_features)
    callback.on_validation_epoch_start(trainer, trainer.lightning_module)
    assert (len(callback.fidelity.real_features), callback._knows_real) == (kept, True)
    trainer.val_dataloaders.sampler.num_replicas = 3
    callback.on_validation_epoch_start(trainer, trainer.lightning_module)
    assert (len(callback.fidelity.real_features), callback._knows_real) == (0, False)


def test_real_images_that_are_kept_give_the_same_scores_and_are_seen_once(tmp_path):
    histories, seen = [], []
    for again in (True, False):
        callback = FidelityCallback(features(), samples=40, kernel_subset_size=16, reset_real_features=again)
        update = callback.fidelity.update
        calls = []
        callback.fidelity.update = lambda images, real, calls=calls, update=update: (
            calls.append(real),
            update(images, real),
        )
        torch.manual_seed(1)
        fit(tmp_path, Toy(), callbacks=[callback])
        histories.append(callback.history)
        seen.append(sum(calls))
    assert histories[0] == histories[1]
    assert seen[0] == len(histories[0]) * seen[1] > 0


def test_a_score_can_be_watched_by_its_short_name_and_the_best_checkpoint_is_kept(tmp_path):
    score = FidelityCallback(features(), samples=40, kernel_subset_size=16)
    best = BestCheckpoint(tmp_path)
    stopping = EarlyStopping("frechet_distance", mode="min", patience=1, min_delta=1e9)
    trainer = fit(tmp_path, Toy(), steps=30, callbacks=[score, best, stopping], enable_checkpointing=True)
    assert [entry["step"] for entry in score.history] == [0, 3, 6], "nothing is better by a billion: stopped"
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["best.ckpt"]
    distances = [entry["frechet_distance"] for entry in score.history if entry["step"]]
    assert float(best.best_model_score) == pytest.approx(min(distances))
    assert "frechet_distance" in trainer.callback_metrics
    assert "frechet_distance" not in trainer.logged_metrics, "in files a score goes with the name of its features"


def test_without_scores_there_is_no_best_checkpoint_and_no_error(tmp_path):
    fit(tmp_path, Toy(), callbacks=[BestCheckpoint(tmp_path)], enable_checkpointing=True)
    assert not list(tmp_path.glob("*.ckpt"))


def test_scoring_does_not_change_the_training(tmp_path):
    class Noisy(Toy):
        def training_step(self, batch, batch_idx):
            super().training_step((batch[0] + torch.randn(()),), batch_idx)

    values = []
    for callbacks in ([], [FidelityCallback(features(), samples=40, kernel_subset_size=16)]):
        torch.manual_seed(1)
        module = Noisy()
        fit(tmp_path, module, callbacks=callbacks, sanity=0)
        values.append(module.brightness.item())
    assert values[0] == values[1]


def test_a_resumed_run_goes_on_counting_and_remembers_where_it_began(tmp_path):
    first = FidelityCallback(features(), samples=40, kernel_subset_size=16)
    trainer = fit(tmp_path, Toy(), steps=6, callbacks=[first])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    seconds = read(tmp_path)["seconds"]
    second = FidelityCallback(features(), samples=40, kernel_subset_size=16)
    fit(tmp_path, Toy(), steps=10, callbacks=[second], ckpt_path=tmp_path / "half.ckpt")
    summary = read(tmp_path)
    assert (summary["steps"], summary["images_seen"]) == (10, 50)
    assert summary["seconds"] > seconds
    assert second.scores_before == first.scores_before
    assert [entry["step"] for entry in second.history] == [0, 3, 6, 9, 10]


def test_a_second_fit_with_the_same_callbacks_goes_on_counting(tmp_path):
    summary, found = RunSummary(tmp_path / "summary.json"), []
    settings = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    for _ in range(2):
        trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[summary], default_root_dir=tmp_path, **settings)
        trainer.fit(Toy(), DataLoader(TensorDataset(images(20)), batch_size=5))
        found.append(read(tmp_path))
    once, twice = found
    assert twice["seconds"] > once["seconds"]
    assert (once["images_seen"], twice["images_seen"]) == (20, 40)
    training_seconds = twice["seconds"] - twice["validation_seconds"]
    assert twice["images_per_second"] == pytest.approx(twice["images_seen"] / training_seconds, rel=0.2, abs=0.2)


@pytest.mark.parametrize(("before", "after", "share"), [(4, 2, 200.0), (2, 4, 50.0), (4, 4, 100.0), (None, 4, 100.0)])
def test_other_workers_go_on_counting_what_all_had_seen(tmp_path, before, after, share):
    summary = RunSummary(tmp_path / "summary.json")
    summary.load_state_dict({"images": 100, "workers": before, "seconds": 1.0, "validation_seconds": 0.0})
    summary.on_train_start(SimpleNamespace(world_size=after), None)
    assert (summary.state_dict()["images"], summary.state_dict()["workers"]) == (share, after)


def test_one_bar_runs_from_the_first_batch_to_the_last(tmp_path):
    bar = BatchProgressBar(steps=10, refresh_rate=1)
    seen = []

    class Watch(Toy):
        def on_train_batch_end(self, *_):
            seen.append((bar.train_progress_bar.n, bar.train_progress_bar.total))

    fit(tmp_path, Watch(), steps=10, callbacks=[bar])
    assert seen == [(n, 10) for n in range(1, 11)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_summary_is_json_for_every_reader_also_when_a_score_is_not_finite(tmp_path, value):
    path = write_json_atomically(tmp_path / "a.json", {"scores": {"frechet_distance": value}, "list": [value, 1]})
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict == {"scores": {"frechet_distance": None}, "list": [None, 1]}


@pytest.mark.parametrize("bad", [0, -5, 2.5])
def test_a_number_of_batches_that_is_no_count_is_refused(bad):
    with pytest.raises(ValueError if type(bad) is int else TypeError, match="steps must be an integer >= 1"):
        StopAfterBatches(bad)
    with pytest.raises(ValueError if type(bad) is int else TypeError, match="samples must be an integer >= 2"):
        FidelityCallback(features(), samples=bad)


def test_features_must_be_a_network():
    with pytest.raises(TypeError, match=r"features must be a torch\.nn\.Module"):
        FidelityCallback("inception")
