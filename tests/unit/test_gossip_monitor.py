"""What the monitor logs of a strategy's counters, and that it keeps quiet where there is nothing to log."""

from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan.callbacks import GossipMonitor


@dataclass(frozen=True)
class Report:
    neighbor_distance: float | None


@dataclass(frozen=True)
class Totals:
    steps: int = 0
    bytes_sent: int = 0
    wait_seconds: float = 0.0


class Talkative(SingleDeviceStrategy):
    """A strategy that counts like one that gossips: 1,000,000 bytes and 2 ms of waiting in every batch."""

    evaluate = "consensus"
    consensus_distance: float | None = None
    relative_consensus_distance: float | None = None

    def __init__(self):
        super().__init__(device=torch.device("cpu"))
        self.totals = Totals()
        self.last_report = None

    def training_step(self, *args, **kwargs):
        output = super().training_step(*args, **kwargs)
        steps = self.totals.steps + 1
        self.totals = Totals(steps, 1_000_000 * steps, 0.002 * steps)
        # as with random matchings: there are rounds in which this worker meets nobody
        self.last_report = Report(0.5 * (steps - 1) if steps % 3 == 1 and steps > 1 else None)
        return output

    def on_validation_start(self):
        self.consensus_distance, self.relative_consensus_distance = 0.25, 0.125


class Recorder(DummyLogger):
    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, {name: value for name, value in metrics.items() if name.startswith("gossip/")}))


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


def fit(strategy, monitor, batches=8):
    logger = Recorder()
    trainer = Trainer(
        strategy=strategy,
        max_epochs=1,
        callbacks=[monitor],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
    )
    data = DataLoader(TensorDataset(torch.ones(batches, 1)))
    trainer.fit(Line(), data, data)
    return trainer, [entry for entry in logger.logged if entry[1]]


def test_bytes_add_up_and_waiting_is_a_mean_over_the_batches_since_the_last_time():
    _, logged = fit(Talkative(), GossipMonitor(every_n_steps=4))
    assert [step for step, _ in logged] == [3, 7, 7], "whatever log_every_n_steps is; a step is the index of a batch"
    assert [entry["gossip/megabytes_sent"] for _, entry in logged[:2] if "gossip/megabytes_sent" in entry]
    during = [entry for _, entry in logged if "gossip/wait_ms" in entry]
    assert [entry["gossip/megabytes_sent"] for entry in during] == [4.0, 8.0]
    assert [entry["gossip/wait_ms"] for entry in during] == pytest.approx([2.0, 2.0])


def test_a_distance_reported_between_two_loggings_is_not_lost():
    _, logged = fit(Talkative(), GossipMonitor(every_n_steps=3))
    during = [entry for _, entry in logged if "gossip/wait_ms" in entry]
    assert "gossip/neighbor_distance" not in during[0], "nobody was met by the third batch"
    assert during[1]["gossip/neighbor_distance"] == 1.5, "reported in the fourth"


def test_the_consensus_distance_is_logged_at_validation_and_shown_on_the_bar():
    trainer, logged = fit(Talkative(), GossipMonitor(every_n_steps=4))
    assert logged[-1][1]["gossip/consensus_distance"] == 0.25
    assert logged[-1][1]["gossip/relative_consensus_distance"] == 0.125
    shown = trainer.progress_bar_metrics
    assert shown["gossip/relative_consensus_distance"] == 0.125
    assert shown["gossip/wait_ms"] == pytest.approx(2.0)


def test_where_workers_evaluate_their_own_models_no_distance_of_another_moment_is_logged():
    strategy = Talkative()
    strategy.evaluate = "local"
    _, logged = fit(strategy, GossipMonitor(every_n_steps=4))
    assert not any("gossip/consensus_distance" in metrics for _, metrics in logged)


def test_under_a_strategy_without_gossip_it_says_so_once_and_logs_nothing():
    with pytest.warns(UserWarning, match="the strategy SingleDeviceStrategy does not gossip") as caught:
        _, logged = fit(SingleDeviceStrategy(device=torch.device("cpu")), GossipMonitor(every_n_steps=1))
    assert len([warning for warning in caught if "does not gossip" in str(warning.message)]) == 1
    assert logged == []


@pytest.mark.parametrize("value", [0, -1, 2.0, "10"])
def test_an_interval_that_is_no_count_is_refused(value):
    with pytest.raises(ValueError if type(value) is int else TypeError, match="every_n_steps must be an integer >= 1"):
        GossipMonitor(every_n_steps=value)
