"""What the log and the summary say of each worker's data, and that workers who deal differently are found out."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_decgan.callbacks import ClassHistogram, RunSummary, class_histogram
from lightning_decgan.callbacks.class_histogram import histogram_table
from lightning_decgan.data import DigitsDataModule


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(class_histogram, "rank_zero_info", lambda text: lines.extend(text.splitlines()))
    return lines


class Still(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        return self.weight * batch[0].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *callbacks, **data):
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(Still(), **data)
    return trainer


def test_the_log_and_the_summary_tell_what_a_worker_trains_on(tmp_path, log):
    digits, histogram = DigitsDataModule(partition="dirichlet", alpha=2), ClassHistogram()
    fit(tmp_path, histogram, RunSummary(tmp_path / "summary.json"), datamodule=digits)
    counts = [digits.train_labels.tolist().count(label) for label in range(10)]
    told = json.loads((tmp_path / "summary.json").read_text())["data"]
    assert told == {
        "name": "digits",
        "partition": "dirichlet",
        "alpha": 2.0,
        "partition_seed": 0,
        "class_names": [str(digit) for digit in range(10)],
        "class_histogram_per_worker": [counts],
    }
    assert log[0] == "digits, partition=dirichlet: training images of each worker"
    assert log[2].split() == ["0", str(sum(counts)), *map(str, counts)]


def test_iid_has_no_seed_and_no_alpha(tmp_path, log):
    histogram = ClassHistogram()
    fit(tmp_path, histogram, datamodule=DigitsDataModule())
    assert (histogram.facts["alpha"], histogram.facts["partition_seed"]) == (None, None)
    assert sum(histogram.facts["class_histogram_per_worker"][0]) == 1438


def test_a_summary_without_the_callback_says_nothing(tmp_path):
    fit(tmp_path, RunSummary(tmp_path / "summary.json"), datamodule=DigitsDataModule())
    assert json.loads((tmp_path / "summary.json").read_text())["data"] is None


def test_data_of_another_kind_have_no_histogram(tmp_path, log):
    images = torch.utils.data.TensorDataset(torch.zeros(4, 1, 8, 8))
    with pytest.warns(UserWarning, match="ClassHistogram has nothing to show: .* found no DataModule"):
        fit(tmp_path, ClassHistogram(), train_dataloaders=torch.utils.data.DataLoader(images))
    assert log == []


class TwoWorkers:
    """A Trainer of two workers, of which this is the first; what the second says is known."""

    world_size, global_rank, is_global_zero = 2, 0, True

    def __init__(self, mine, its):
        self.datamodule, self.its = mine, its
        self.strategy = self
        self.root_device = torch.device("cpu")
        self.rows = iter([[its.partition_digest(), its.num_classes], its.class_histograms(2)[1]])

    def reduce(self, table, reduce_op):
        assert reduce_op == "sum"
        assert not table[1].any()
        row = next(self.rows)
        table[1, : len(row)] = torch.tensor(row)
        return table


def digits(**arguments):
    module = DigitsDataModule(**arguments)
    module.setup()
    return module


def test_each_worker_tells_its_own_row(log):
    callback, module = ClassHistogram(), digits(partition="by_label")
    callback.on_fit_start(TwoWorkers(module, digits(partition="by_label")), Still())
    assert callback.facts["class_histogram_per_worker"] == module.class_histograms(2)
    assert len(log) == 4


@pytest.mark.parametrize("other", [{"partition_seed": 1}, {"seed": 1}, {"validation_fraction": 0.5}])
def test_workers_that_deal_differently_are_an_error_before_the_first_batch(other, log):
    mine, its = digits(partition="by_label"), digits(**({"partition": "by_label"} | other))
    with pytest.raises(ValueError, match=r"workers \[1\] have other training labels, .* shards would overlap"):
        ClassHistogram().on_fit_start(TwoWorkers(mine, its), Still())


def test_with_iid_workers_may_have_data_of_their_own(log):
    callback, mine, its = ClassHistogram(), digits(), digits(validation_fraction=0.5)
    callback.on_fit_start(TwoWorkers(mine, its), Still())
    rows = callback.facts["class_histogram_per_worker"]
    assert [sum(row) for row in rows] == [1438, len(its.train_dataset)]


def test_many_classes_are_summed_up_and_none_are_only_counted():
    names = [f"n{number}" for number in range(100)]
    rows = [[3] * 50 + [0] * 49 + [7], [0] * 50 + [1] * 50]
    assert histogram_table(rows, names) == [
        "worker  images  classes  largest class",
        "     0     157       51        n99 (7)",
        "     1      50       50        n50 (1)",
    ]
    assert histogram_table([[5], [6]], None) == ["worker  images", "     0       5", "     1       6"]
