"""benchmarks/network.py: its arithmetic, table, picture and command line, and a network where there can be one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # they are scripts: they import each other by bare names

import network  # noqa: E402
import network_worker  # noqa: E402
import shaped_network  # noqa: E402
from communication_floor import Network, all_reduce_seconds, power_sgd_bytes, swap_seconds  # noqa: E402
from network_crew import choose_steps  # noqa: E402
from network_forms import FORMS, NETWORKS, NO_COMMUNICATION, Form, gossip, select_forms  # noqa: E402
from network_report import (  # noqa: E402
    draw,
    load_results,
    merge_run,
    save_results,
    summarise,
    table,
    with_ratios,
)
from workload import LATENT_SIZE, make_objective  # noqa: E402

LOOPBACK = Network(shaped=False)
SLOW = Network(mbit=80, delay_ms=50)  # 10 MB a second


# ---- communication floor ----


@pytest.mark.parametrize("workers", [2, 4, 8, 32])
def test_an_all_reduce_takes_as_long_as_its_ring_step_by_step(workers: int) -> None:
    size_bytes, seconds = 11_000_000, 0.0
    for _ in range(workers - 1):  # scatter
        seconds += size_bytes / workers / 10e6 + 0.05
    for _ in range(workers - 1):  # gather
        seconds += size_bytes / workers / 10e6 + 0.05
    assert all_reduce_seconds(SLOW, workers, size_bytes) == pytest.approx(seconds)


def test_without_a_rate_limit_only_latencies_count() -> None:
    far = Network(delay_ms=50)
    assert all_reduce_seconds(far, 4, 1e12) == pytest.approx(6 * 0.05)
    assert swap_seconds(far, neighbors=2, size_bytes=1e12, messages=3) == pytest.approx(3 * 0.05)
    assert all_reduce_seconds(LOOPBACK, 4, 1e12) == 0.0


def test_a_matrix_that_factors_would_not_halve_travels_whole() -> None:
    # (100, 100) at rank 2: 400 numbers for 10,000; (10, 10): 40 numbers for 100, and 2 x 40 < 100; (4, 4): no.
    assert power_sgd_bytes([(100, 100), (10, 2, 5), (4, 4), (7,)], rank=2) == (4 * (16 + 7), 4 * 220, 4 * 220)


@pytest.fixture(scope="module")
def objective() -> Any:
    return make_objective("accelerator", width=4)


def floor(form: Form, objective: Any, workers: int = 4) -> float:
    return network_worker.floor_seconds(form, SLOW, workers, objective)


def test_the_objective_of_plain_loops_has_each_players_own_gradient() -> None:
    torch.manual_seed(0)
    game = make_objective("cpu", width=4).double()
    generator, discriminator = game.players
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)  # of the latents that it draws
    try:
        torch.manual_seed(1)
        game(images).backward()
        torch.manual_seed(1)
        latents = torch.randn(4, LATENT_SIZE)
    finally:
        torch.set_default_dtype(torch.float32)
    found = [parameter.grad for parameter in game.parameters()]
    fake = generator(latents)
    own = torch.autograd.grad(functional.softplus(-discriminator(fake)).mean(), list(generator.parameters()))
    cut = fake.detach()
    loss = functional.softplus(-discriminator(images)).mean() + functional.softplus(discriminator(cut)).mean()
    own += torch.autograd.grad(loss, list(discriminator.parameters()))
    for gradient, expected in zip(found, own, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_floors_of_the_forms_follow_from_what_they_send(objective: Any) -> None:
    size_bytes = sum(4 * parameter.numel() for parameter in objective.parameters())
    reduce = all_reduce_seconds(SLOW, 4, size_bytes)
    assert floor(FORMS["no communication, plain loop"], objective) == 0.0
    assert floor(FORMS["no communication, Lightning"], objective) == 0.0
    assert floor(FORMS["DDP"], objective) == pytest.approx(reduce)
    assert floor(FORMS["DDP of Lightning"], objective) == pytest.approx(reduce)
    assert floor(FORMS["DDP, bfloat16"], objective) == pytest.approx(all_reduce_seconds(SLOW, 4, size_bytes / 2))
    assert floor(FORMS["averaging every 8"], objective) == pytest.approx(reduce / 8)
    assert floor(FORMS["decent-dp, ring"], objective) == pytest.approx(size_bytes / 10e6 + 0.05)
    assert floor(gossip(topology="ring"), objective) == pytest.approx(2 * size_bytes / 10e6 + 0.05)
    assert floor(gossip(topology="one_peer_exponential"), objective) == pytest.approx(size_bytes / 10e6 + 0.05)
    assert floor(gossip(topology="ring", gossip_every=8), objective) == pytest.approx(
        (2 * size_bytes / 10e6 + 0.05) / 8
    )


# ---- numbers, table, picture ----


def worker(seconds: list[float], **more: Any) -> dict[str, Any]:
    return {"seconds": seconds, "bytes_a_step": 1e6, "floor_seconds": 0.05, **more}


def a_run(network_name: str = "50ms", **rows: dict[str, Any]) -> dict[str, Any]:
    """A run whose rows are given by steps in ms, or by an error."""
    base = {"bytes_a_step": 1e6, "floor_ms": 50.0, "again": False}
    measured = [
        {"form": form, "again": False, "error": value}
        if isinstance(value, str)
        else {**base, "form": form, **summarise([worker([each / 1e3 for each in value])])}
        for form, value in rows.items()
    ]
    return {
        "network": network_name, "mbit": None, "delay_ms": 50.0, "workers": 4, "load": "accelerator", "batch": 8,
        "started": "2026-01-02T03:04:05+00:00", "machine": {"processor": "A|B", "cores": 2, "torch": "2.13"},
        "parameter_bytes": 11_000_000, "rows": measured,
    }  # fmt: skip


NONE_PLAIN, NONE_LIGHTNING = NO_COMMUNICATION["plain"], NO_COMMUNICATION["Lightning"]


def test_a_step_takes_what_it_takes_on_average_over_workers() -> None:
    row = summarise(
        [worker([1.0, 2.0, 3.0, 4.0], gossips_a_step=1.0), worker([3.0, 2.0, 1.0, 8.0], gossips_a_step=0.5)]
    )
    assert row["steps_ms"] == [2000, 2000, 2000, 6000]
    assert (row["median_ms"], row["lower_quartile_ms"], row["upper_quartile_ms"]) == (2000, 2000, 3000)
    assert (row["mean_ms"], row["gossips_a_step"], row["floor_ms"]) == (3000, 0.75, 50.0)


def test_workers_that_counted_different_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        summarise([worker([1.0, 2.0]), worker([1.0, 2.0, 3.0])])


def test_ratios_are_to_the_same_loop_and_periodic_forms_count_by_their_mean() -> None:
    run = a_run(**{
        NONE_PLAIN: [100, 100, 100], NONE_LIGHTNING: [200, 200, 200], "DDP": [500, 500, 500],
        "gossip, ring": [220, 220, 220], "averaging every 8": [100, 100, 100, 500],
    })  # fmt: skip
    rows = {row["form"]: row for row in with_ratios(run)}
    assert rows["DDP"]["to_none"] == pytest.approx(5)
    assert rows["gossip, ring"]["to_none"] == pytest.approx(1.1)
    assert rows["gossip, ring"]["ddp_to_this"] == pytest.approx(500 / 220)
    assert rows["averaging every 8"]["to_none"] == pytest.approx(2)
    assert rows["averaging every 8"]["ddp_to_this"] == pytest.approx(2.5)


def test_both_turns_without_communication_are_the_base() -> None:
    run = a_run(**{NONE_PLAIN: [100, 100, 100], "DDP": [500, 500, 500]})
    run["rows"].append({**run["rows"][0], "again": True, **summarise([worker([0.3, 0.3, 0.3])])})
    assert [row["to_none"] for row in with_ratios(run)] == pytest.approx([0.5, 2.5, 1.5])


def test_the_table_shows_numbers_and_errors_and_stays_a_table() -> None:
    text = table(a_run(**{NONE_PLAIN: [100, 100, 100], "DDP": [250, 250, 250], "gossip, ring": "EdgeError: a | b"}))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {10}
    assert "| DDP | 3 | 250.0 | 250.0 - 250.0 | 250.0 | 2.50 | 1.00 x | 1.000 | 50.0 |" in lines
    assert "EdgeError: a / b" in text
    assert "no rate limit, 50 ms one way, 4 workers, accelerator load" in text


def test_a_run_without_ddp_or_base_has_a_table_and_a_picture(tmp_path: Path) -> None:
    run = a_run(**{"gossip, ring": [100, 100, 100]})
    assert "| gossip, ring | 3 | 100.0 |" in table(run)
    draw([run], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_results_are_kept_by_network_workers_and_load(tmp_path: Path) -> None:
    first = a_run("50ms", **{NONE_PLAIN: [100, 100, 100], "DDP": [900, 900, 900]})
    results = merge_run(load_results(tmp_path / "network.json"), first)
    results = merge_run(results, a_run("loopback", **{NONE_PLAIN: [100, 100, 100], "DDP": [150, 150, 150]}))
    results = merge_run(results, a_run("50ms", **{NONE_PLAIN: [100, 100, 100], "DDP": [800, 800, 800]}))
    assert [run["network"] for run in results["runs"]] == ["loopback", "50ms"]
    save_results(results, tmp_path)
    assert load_results(tmp_path / "network.json") == results
    assert "800.0" in (tmp_path / "network.md").read_text()
    assert "900.0" not in (tmp_path / "network.md").read_text()
    picture = (tmp_path / "network_4_workers_accelerator.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_another_file_is_no_result_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json is not a result file"):
        load_results(tmp_path / "other.json")


# ---- steps, forms, command line ----


@pytest.mark.parametrize(
    ("step_seconds", "floor_seconds", "period", "steps"),
    [(0.1, 0.05, 1, 30), (60.0, 20.0, 1, 3), (500.0, 20.0, 1, 3), (0.1, 9.0, 1, 270), (0.1, 90.0, 1, 1200),
     (0.1, 0.0, 8, 32), (0.1, 0.0, 32, 64)],
)  # fmt: skip
def test_as_many_steps_as_wanted_and_possible(
    step_seconds: float, floor_seconds: float, period: int, steps: int
) -> None:
    assert choose_steps(30, period, step_seconds, floor_seconds, limit_seconds=120) == steps


def test_the_clock_measures_after_the_warm_up_and_one_step_more() -> None:
    asked: list[float] = []
    sent = iter([1000, 4000])

    def ask(seconds: float) -> int:
        asked.append(seconds)
        return 3

    clock = network_worker.StepClock(warmup=2, ask=ask, sent_bytes=lambda: next(sent))
    ended = 0
    while clock.step_ended():
        ended += 1
    assert ended + 1 == 2 + 1 + 3
    assert (len(asked), len(clock.seconds), clock.bytes_sent) == (1, 3, 3000)


def test_sent_bytes_are_read_from_the_kernels_table(tmp_path: Path) -> None:
    (tmp_path / "dev").write_text(
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier\n"
        "    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0:1001 2 3 4 5 6 7 8 42 10 11 12 13 14 15 16\n"
    )
    assert network_worker.read_sent_bytes("eth0", str(tmp_path / "dev")) == 42
    with pytest.raises(ValueError, match="no interface 'eth1'"):
        network_worker.read_sent_bytes("eth1", str(tmp_path / "dev"))


def test_filters_keep_the_order_and_what_is_compared_with() -> None:
    assert select_forms(None) == list(FORMS)
    assert select_forms(["POWERSGD", "ring"])[:2] == list(NO_COMMUNICATION.values())
    assert "DDP, PowerSGD rank 2" in select_forms(["powersgd"])
    with pytest.raises(ValueError, match="'telepathy' is in the name of no form"):
        select_forms(["telepathy"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps", "2"], "--steps must be at least 3, found 2"),
        (["--warmup", "1"], "--warmup must be at least 4, found 1"),
        (["--workers", "4", "1"], "--workers must be at least 2, found 1"),
        (["--networks", "moon"], "invalid choice: 'moon'"),
        (["--forms", "telepathy"], "in the name of no form"),
        (["--decent-dp", "/nowhere"], "/nowhere holds no decent_dp; install it there with `pip install --no-deps"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        network.parse_arguments(given)
    assert message in capsys.readouterr().err


def test_it_refuses_where_there_can_be_no_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        network.parse_arguments(["--steps", "5"])
    assert "needs root" in capsys.readouterr().err
    assert network.parse_arguments(["--replot", "network.json"]).replot == Path("network.json")
    with pytest.raises(shaped_network.NetworkUnavailable, match="the user id is 1000"):
        shaped_network.ShapedNetwork(2)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in str(shaped_network.why_unavailable())


# ---- a real run ----


@pytest.fixture(scope="module")
def root_and_tun() -> None:
    if (reason := shaped_network.why_unavailable()) is not None:
        print(f"skipped: {reason}")
        pytest.skip(reason)


@pytest.mark.processes
@pytest.mark.usefixtures("root_and_tun")
def test_a_benchmark_on_a_shaped_network_measures_every_form_and_records_what_fails(tmp_path: Path) -> None:
    command = [
        sys.executable, str(BENCHMARKS / "network.py"), "--networks", "10ms", "--workers", "2",
        "--loads", "accelerator", "--width", "4", "--steps", "3",
        "--forms", "gossip, ring", "averaging every 8", "decent-dp, ring",
        "--output", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr + (tmp_path / "network.log").read_text()
    (run,) = json.loads((tmp_path / "network.json").read_text())["runs"]
    rows = {row["form"]: row for row in run["rows"]}
    assert list(rows) == [NONE_PLAIN, NONE_LIGHTNING, "averaging every 8", "decent-dp, ring", "gossip, ring"]
    assert len(run["rows"]) == 5 + 2  # those without communication twice
    assert rows["decent-dp, ring"]["error"].startswith("NotInstalled: not installed")
    size_bytes = run["parameter_bytes"]
    assert rows[NONE_PLAIN]["bytes_a_step"] < 0.02 * size_bytes
    assert 0.6 * size_bytes < rows["gossip, ring"]["bytes_a_step"] < 1.8 * size_bytes  # of two workers: one neighbour
    assert 0.9 * size_bytes / 8 < rows["averaging every 8"]["bytes_a_step"] < 1.5 * size_bytes / 8
    assert rows["averaging every 8"]["steps"] == 16
    assert rows[NONE_PLAIN]["median_ms"] >= 100
    assert "gossip, ring" in done.stdout
    assert set(NETWORKS) >= {run["network"]}
