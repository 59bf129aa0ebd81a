"""benchmarks/quality_of_gossip.py and benchmarks/scale.py: tables, plots, lateness, and runs small enough to test."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from lightning_decgan.gossip import EdgeError, Exchange, FlatVector, Gossiper, Neighborhood
from lightning_decgan.topology import build_topology
from tests.distributed.workers import run_workers

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # they are scripts: they import each other by bare names

import quality_of_gossip as quality  # noqa: E402
import quality_report  # noqa: E402
import recording  # noqa: E402
import scale  # noqa: E402
import scale_processes  # noqa: E402
from quality_tasks import TASKS, StepClock, late_exchanges  # noqa: E402
from scale_simulated import QueueEdge, simulate, slowest_start  # noqa: E402

PNG = b"\x89PNG"


# ---- what is kept ----


def test_results_are_kept_with_the_machine_the_command_and_the_settings(tmp_path: Path) -> None:
    path = recording.save_results("some", {"seeds": 3}, [{"loss": math.nan}], tmp_path / "new")
    found = json.loads(path.read_text())
    assert path.name == "some.json"
    assert found["settings"] == {"seeds": 3}
    assert math.isnan(found["results"][0]["loss"])
    assert found["machine"]["cores"] >= 1
    assert found["command"].startswith("python benchmarks/")


def test_a_table_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 cells, found 2"):
        recording.markdown_table(["form", "loss", "verdict"], [["ring", "0.1"]])


# ---- quality: how a form is judged ----


@pytest.mark.parametrize(
    ("values", "lower_is_better", "verdict"),
    [
        ([0.9, 1.1], True, "better"),
        ([1.9, 2.1], True, "within"),
        ([3.0, 3.0], True, "within"),
        ([3.1, 3.2], True, "worse by 1.1"),
        ([3.1, 3.2], False, "better"),
        ([0.4, 0.6], False, "worse by 1.5"),
        ([2.0, math.nan], True, "diverged"),
        ([2.0, math.inf], True, "diverged"),
    ],
)
def test_a_form_is_within_when_its_mean_is_not_worse_than_ddps_worst_seed(
    values: list[float], lower_is_better: bool, verdict: str
) -> None:
    reference = [1.0 + 0.001, 2.0, 3.0 + 0.001] if lower_is_better else [1.0, 2.0, 3.0]
    assert quality_report.compare(values, reference, lower_is_better)[1] == verdict


def test_the_difference_is_counted_in_ddps_spread_and_positive_where_worse() -> None:
    assert quality_report.compare([4.0], [1.0, 2.0, 3.0], lower_is_better=True)[0] == pytest.approx(2.0)
    assert quality_report.compare([4.0], [1.0, 2.0, 3.0], lower_is_better=False)[0] == pytest.approx(-2.0)
    assert math.isnan(quality_report.compare([4.0], [1.0], lower_is_better=True)[0])


def _runs() -> list[dict[str, Any]]:
    figures = {"DDP": (0.10, 0.98, 0.0), "ring": (0.11, 0.97, 0.004), "ring, 4 late": (0.5, 0.90, 0.02)}
    return [
        {
            "form": form,
            "seed": seed,
            "history": [
                {"step": 2, "loss": 9.0, "accuracy": 0.1, "distance": distance, "neighbors": distance},
                {
                    "step": 4,
                    "loss": loss + 0.02 * seed,
                    "accuracy": accuracy - 0.01 * seed,
                    "distance": distance,
                    "neighbors": distance,
                },
            ],
            "late_steps": {"4": 3} if "late" in form else {},
        }
        for seed in range(2)
        for form, (loss, accuracy, distance) in figures.items()
    ]


def test_the_table_has_a_line_a_form_and_judges_the_end_of_the_runs() -> None:
    heading, _, ddp, ring, late = quality_report.table(_runs(), TASKS["classifier"]).splitlines()
    assert [cell.strip() for cell in heading.split("|")[1:3]] == ["form", "validation loss"]
    assert ddp.startswith("| DDP")
    assert "0.1100 ± 0.0141" in ddp
    assert "within" in ring
    assert "0.4 %" in ring
    assert "worse by 0.4" in late
    assert "4.0 (4)" in late


def test_the_report_holds_every_task_of_which_there_are_results(tmp_path: Path) -> None:
    settings = {"workers": 4, "steps": 320}
    recording.save_results("quality_classifier", settings, _runs(), tmp_path)
    text = quality_report.write_report(tmp_path, TASKS).read_text()
    assert "## digits classifier, SGD" in text
    assert "4 workers, 320 steps" in text
    assert "GAN" not in text
    assert quality_report.table(_runs(), TASKS["classifier"]) in text


def test_the_plot_is_drawn_also_when_a_form_is_far_off(tmp_path: Path) -> None:
    runs = _runs()
    runs[2]["history"][-1]["loss"] = 1e9
    runs[1]["history"][-1]["loss"] = math.nan
    path = quality_report.draw(runs, TASKS["classifier"], tmp_path / "quality.png")
    assert path.read_bytes().startswith(PNG)


def test_workers_lateness_is_counted_together_and_their_figures_are_worker_zeros() -> None:
    answers = [{"rank": 0, "loss": 1.0, "late_steps": [0, 1]}, {"rank": 1, "loss": 2.0, "late_steps": [1, 1]}]
    assert quality.merge(answers) == {"loss": 1.0, "late_steps": {"0": 1, "1": 3}}


@pytest.mark.parametrize("name", list(quality.DEFAULT_FORMS))
def test_the_forms_of_every_task_exist_and_begin_with_ddp(name: str) -> None:
    assert set(quality.DEFAULT_FORMS[name]) <= set(quality.FORMS)
    assert quality.DEFAULT_FORMS[name][0] == quality_report.REFERENCE


@pytest.mark.parametrize("form", quality.FORMS.values(), ids=list(quality.FORMS))
def test_every_form_is_a_strategy_that_can_be_made(form: quality.Form) -> None:
    quality.make_strategy(form, seed=0)


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--steps", "6"], ["--delay-ms", "-1"], ["--forms", "none"]])
def test_quality_refuses_arguments_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


# ---- quality: lateness ----


def _pair_of_gossipers(max_delay: int | None) -> list[Gossiper]:
    gossipers = []
    for worker, edge in enumerate(QueueEdge.pair(0, 1)):
        vector = FlatVector([("x", torch.full((1,), float(worker)))])
        exchange = Exchange(vector, Neighborhood(worker, build_topology("ring", 2), {1 - worker: edge}))
        gossipers.append(Gossiper(vector, exchange, max_delay=max_delay))
    return gossipers


@pytest.mark.parametrize("late", [0, 1, 4])
def test_exchanges_are_late_by_exactly_the_steps_that_were_asked_for(late: int) -> None:
    clock, seen = StepClock(), []
    gossipers = _pair_of_gossipers(max_delay=late)
    with late_exchanges(clock, late):
        for _ in range(5 * (late + 1) + 1):
            clock.on_train_batch_start()
            for gossiper in gossipers:
                report = gossiper.step()
                seen += [] if report is None else [report.late_steps]
        clock.on_train_end()
        for gossiper in gossipers:
            gossiper.close()
    assert seen == [late] * 10


def test_an_evaluation_waits_for_nobody() -> None:
    clock = StepClock()
    waiting = threading.Thread(target=clock.wait_for_batch, args=(1_000, 60.0))
    waiting.start()
    clock.on_validation_start()
    waiting.join(timeout=10.0)
    assert not waiting.is_alive()


# ---- quality: real runs ----


@pytest.mark.processes
def test_the_complete_graph_in_the_exact_order_is_ddp() -> None:
    plan = quality.Plan("classifier", ("DDP", "complete, exact order", "ring"), 1, 2, 8, None, ())
    lines: list[str] = []
    ddp, complete, ring = quality.measure(plan, lines.append)
    assert len(lines) == 3
    assert [len(run["history"]) for run in (ddp, complete, ring)] == [quality.EVALUATIONS] * 3
    assert complete["history"][-1]["loss"] == pytest.approx(ddp["history"][-1]["loss"], rel=1e-4)
    assert ddp["history"][-1]["distance"] == ddp["history"][-1]["neighbors"] == 0.0
    assert ring["history"][-1]["neighbors"] > 0
    assert ring["history"][-1]["distance"] > complete["history"][-1]["distance"]


class _AverageGradients(Callback):
    """The all-reduce by hand: what DDP is held against."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


def _train_gan_both_ways() -> list[list[torch.Tensor]]:
    task, found = TASKS["gan"], []
    plan = quality.Plan("gan", (), 1, 2, 4, None, ())
    for form, callbacks in ((quality.FORMS["DDP"], []), (quality.FORMS["no communication"], [_AverageGradients()])):
        torch.manual_seed(0)
        module = task.module(plan.steps)
        trainer = Trainer(
            strategy=quality.make_strategy(form, 0), accelerator="cpu", devices=2, max_steps=2 * plan.steps,
            limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[quality.Recorder(task, 0), *callbacks],
        )  # fmt: skip
        start = [parameter.detach().clone() for parameter in module.parameters() if parameter.requires_grad]
        trainer.fit(module, datamodule=task.data())
        end = [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]
        found.append([after - before for before, after in zip(start, end, strict=True)])
    return found


@pytest.mark.processes
def test_ddp_averages_the_gradients_of_both_players() -> None:
    for ddp, by_hand in run_workers(2, _train_gan_both_ways):
        for moved, expected in zip(ddp, by_hand, strict=True):
            assert float(expected.abs().max()) > 1e-4
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)


# ---- scale: simulated workers ----


@pytest.mark.parametrize("name", ["ring", "exponential", "torus"])
def test_from_the_slowest_start_consensus_comes_exactly_as_the_spectrum_says(name: str) -> None:
    topology = build_topology(name, 12)
    history = simulate(topology, rounds=10)
    expected = topology.consensus_rate() ** np.arange(11)
    np.testing.assert_allclose(history["slowest"], expected, rtol=1e-9)
    assert history["random"][-1] <= expected[-1] * (1 + 1e-9)
    assert history["mean_moved"][0] < 1e-14
    assert scale.measured_rate(history, topology) == pytest.approx(topology.consensus_rate(), rel=1e-9)


def test_one_peer_exponential_reaches_the_mean_after_its_period_and_stops_there() -> None:
    topology = build_topology("one_peer_exponential", 16)
    history = simulate(topology, rounds=30)
    assert history["random"][3] > 0.1
    assert history["random"][4] < 1e-14
    assert len(history["random"]) < 10
    assert scale.measured_rate(history, topology) == 0.0


def test_the_slowest_start_of_a_schedule_is_what_its_product_shrinks_least() -> None:
    topology = build_topology("one_peer_exponential", 12)
    start = slowest_start(topology)
    after = start
    for round in range(topology.period or 0):
        after = topology.mixing_matrix(round) @ after
    assert np.linalg.norm(start) == pytest.approx(1.0)
    assert np.linalg.norm(after) == pytest.approx(topology.consensus_rate() ** (topology.period or 0))


def test_a_random_schedule_has_the_rate_of_its_mean_square() -> None:
    topology = build_topology("random_matching", 64, seed=0)
    assert scale.measured_rate(simulate(topology, rounds=30), topology) == pytest.approx(
        topology.consensus_rate(), rel=0.05
    )


def test_a_simulated_link_that_closes_or_stays_silent_is_an_edge_error() -> None:
    here, there = QueueEdge.pair(0, 1)
    memory = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(EdgeError, match="no answer from neighbour 1"):
        here.swap(memory, memory, tag=0).wait(deadline=0.0)
    there.close()
    with pytest.raises(EdgeError, match="closed"):
        here.swap(memory, memory, tag=0).wait(deadline=time.monotonic() + 10.0)


def test_the_simulated_table_and_plot_hold_every_row(tmp_path: Path) -> None:
    rows = scale.measure_simulated([4, 6], rounds=5)
    assert len(rows) == 2 * len(scale.SIMULATED_TOPOLOGIES) - 1  # no hypercube of six
    lines = scale.simulated_table(rows).splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(rows)
    assert scale.draw_simulated(rows, tmp_path / "simulated.png").read_bytes().startswith(PNG)


# ---- scale: real processes ----


@pytest.mark.processes
def test_a_workers_buffers_follow_its_links_and_not_the_number_of_workers() -> None:
    ring, complete = (scale_processes.measure(4, name, parameters=1_000, steps=3) for name in ("ring", "complete"))
    buffer_bytes = ring["buffer_bytes"] / 4  # snapshot, increments, and one for each of two links
    assert 4_000 <= buffer_bytes < 4_300
    assert complete["buffer_bytes"] == 5 * buffer_bytes
    assert (ring["neighbors"], complete["neighbors"]) == (2, 3)
    assert ring["cpu_ms"] > 0.0


@pytest.mark.processes
def test_a_worker_that_fails_ends_the_measurement_with_its_error() -> None:
    with pytest.raises(scale_processes.WorkerFailed, match="hypercube"):
        scale_processes.measure(3, "hypercube", parameters=10, steps=1)


def test_the_process_table_tells_what_the_neighbours_alone_would_cost(tmp_path: Path) -> None:
    rows = [
        {
            "topology": name, "workers": workers, "neighbors": neighbors, "links": neighbors, "wall_ms": 9.0,
            "cpu_ms": 1.0 + 0.5 * neighbors, "buffer_bytes": 2**20 * neighbors, "grown_bytes": 2**24,
        }
        for workers in (4, 8)
        for name, neighbors in (("ring", 2), ("complete", workers - 1))
    ]  # fmt: skip
    text = scale.process_table(rows)
    assert "1.00 + 0.50 x neighbours" in text
    assert [line.split("|")[5].strip() for line in text.splitlines()[2:6]] == ["2.00", "2.00", "2.50", "4.50"]
    assert scale.draw_processes(rows, tmp_path / "processes.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("arguments", [["--processes", "1"], ["--steps", "0"], ["--rounds", "0"], ["--simulated", "1"]])
def test_scale_refuses_arguments_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_a_command_is_kept_without_the_folder_of_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/scale.py", "--seeds", "3", "--output", "/my/own", "--only", "a b"])
    assert recording.command_line() == "python benchmarks/scale.py --seeds 3 --only 'a b'"
