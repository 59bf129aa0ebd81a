"""Rows of the fault table with few seeds; `python benchmarks/faults.py --seeds 10` runs all of it.

What is timed there is not timed here, where other tests share the cores: what must hold whatever the machine does is
that nobody hangs, nothing rubbish is added, the mean stays, and evaluation, checkpoints and metrics go on.
"""

from __future__ import annotations

import pytest

from benchmarks import fault_runs, faults

pytestmark = pytest.mark.processes
TIMED = ("longer than usual", "edges gone after", "graph connected after", "somebody waited for")


def _broken(outcome: faults.Outcome) -> list[str]:
    return [text for text in outcome.broken if not any(timed in text for timed in TIMED)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("row", [faults.kill_one, faults.kill_main, faults.kill_three])
def test_training_outlives_its_workers(row, seed: int) -> None:
    assert _broken(row(seed)) == []


@pytest.mark.parametrize("seed", range(4))
def test_an_evaluation_in_which_somebody_dies_is_the_survivors(seed: int) -> None:
    assert _broken(faults.kill_in_evaluation(seed)) == []


def test_past_the_deadline_only_a_frozen_workers_edges_go() -> None:
    assert _broken(faults.freeze_for_long(0)) == []


def test_nobody_waits_for_a_frozen_worker_where_swaps_may_be_late() -> None:
    assert _broken(faults.freeze(0)) == []


@pytest.mark.parametrize("victim", [0, 5])
def test_the_survivors_of_a_run_may_train_again(victim: int) -> None:
    answers = fault_runs.run(fault_runs.train_again, victim)
    assert sorted(answers) == [worker for worker in range(8) if worker != victim]
    for answer in answers.values():
        assert "error" not in answer, answer.get("error")
        assert answer["worlds"] == [7, 7]
        assert answer["swaps"][1] > 0
    assert len({answer["weight"] for answer in answers.values()}) == 1, "the second run too ends with one consensus"


@pytest.mark.parametrize("case", ["kill", "kill 0", "kill three", "freeze", "late", "rubbish"])
def test_the_mean_of_the_survivors_stays(case: str) -> None:
    outcome = faults.mean(case)(3)
    assert outcome.broken == []
    assert outcome.figures["mean_moved"] < 1e-12


def test_rubbish_is_rejected_by_both_ends_and_never_added() -> None:
    assert faults.rubbish(0, payloads=500).broken == []


def test_a_worker_that_is_isolated_ends_and_the_others_go_on() -> None:
    answers = fault_runs.run(fault_runs.own_parameters_go_bad)
    assert "was given up by the others" in answers.pop(3)["error"]
    assert len(answers) == 7
    for answer in answers.values():
        assert answer["lost"] == (3,)
        assert answer["finite"]
