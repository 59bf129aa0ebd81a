"""What happens when workers die, freeze or send rubbish: the fault table, with real processes.

    python benchmarks/faults.py --seeds 10
    python benchmarks/faults.py --seeds 10 --only "SIGKILL one"      (replaces these rows of the results)

Eight workers on a ring with chords. Training rows run through `Trainer` and `DecentralizedGossipStrategy`, faults come
from `FaultInjector`; the rows about the mean gossip without training, in float64, so that nothing else moves it. Every
row is run once per seed, a seed draws who is hit and when, and a row holds only if it holds for every seed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import networkx as nx
import torch

from benchmarks import fault_runs
from benchmarks.fault_runs import WORKERS, ring_with_chords, run
from benchmarks.recording import RESULTS, machine_line, markdown_table, save_results
from lightning_decgan.callbacks.fault_injector import Freeze, Kill
from lightning_decgan.strategy.checkpoint import MANIFEST_KEY

BATCHES, STEP_SECONDS = 60, 0.05
# About what an evaluation with a checkpoint takes.
EVALUATION_SECONDS = 0.6
# What a step may take longer than the longest one before the fault.
ALLOWED_SECONDS = 0.05


@dataclass
class Outcome:
    """One run of one row: what was measured, and what did not hold."""

    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def require(self, holds: bool, text: str) -> None:
        """Note what did not hold."""
        if not holds:
            self.broken.append(text)

    def all_well(self, answers: dict[int, dict[str, Any]]) -> bool:
        """Note what workers failed with; whether everything has held so far."""
        for worker, answer in sorted(answers.items()):
            self.require("error" not in answer, f"worker {worker}: {answer.get('error', '')[-400:]}")
        return not self.broken


def steps_around(answer: dict[str, Any], fault: float) -> tuple[float, float]:
    """The longest step before the fault and from it on, of one survivor, without the steps that hold an evaluation."""
    ends, epoch = answer["ends"], answer["batches"]
    steps = [(now, now - last) for place, (last, now) in enumerate(itertools.pairwise(ends), start=1) if place % epoch]
    before = [length for end, length in steps[5:] if end < fault]
    return max(before), max(length for end, length in steps if end >= fault)


def train_with_kills(victims: dict[int, tuple[int, float]], settings: dict[str, Any]) -> Outcome:
    """Kill workers (at a batch, some seconds into it) and look at the survivors."""
    outcome, folder = Outcome(), tempfile.mkdtemp()
    kills = tuple(Kill(worker, step, delay_seconds=delay) for worker, (step, delay) in victims.items())
    answers = run(fault_runs.train, kills, settings, folder, BATCHES, STEP_SECONDS)
    survivors = set(range(WORKERS)) - set(victims)
    outcome.require(set(answers) == survivors, f"survivors {sorted(survivors)}, answers of {sorted(answers)}")
    if not outcome.all_well(answers):
        return outcome
    graph = ring_with_chords()
    deaths = {victim: moment_of(folder, victim) for victim in victims}
    gone, waits = [], []
    for worker, answer in answers.items():
        outcome.require(len(answer["ends"]) == 2 * BATCHES, f"worker {worker} took {len(answer['ends'])} steps")
        outcome.require(set(answer["lost"]) == set(victims), f"worker {worker} knows of {answer['lost']}")
        outcome.require(answer["world"] == len(survivors), f"world size {answer['world']}")
        lost = {neighbor: at for kind, neighbor, at, _ in answer["events"] if kind == "edge_lost"}
        reknit = [at for kind, _, at, _ in answer["events"] if kind == "reknit"]
        for victim, death in deaths.items():
            if worker in graph[victim] and not (reknit and victim not in lost):
                outcome.require(victim in lost, f"worker {worker} still has its edge to {victim}")
                gone.append(lost.get(victim, float("inf")) - death)
        usual, longest = steps_around(answer, min(deaths.values()))
        waits.append(longest - usual)
        if len(victims) > 1:
            outcome.require(bool(reknit), f"worker {worker} did not see the graph knit anew")
            outcome.figures["reknit_s"] = max(
                outcome.figures.get("reknit_s", 0.0), max(reknit, default=9e9) - max(deaths.values())
            )
    outcome.figures |= {"edges_gone_s": max(gone, default=0.0), "step_beyond_usual_ms": 1e3 * max(waits)}
    outcome.require(max(gone, default=0.0) <= 1.0, f"edges gone after {max(gone, default=0):.2f} s")
    outcome.require(
        outcome.figures.get("reknit_s", 0.0) <= 2.0, f"graph connected after {outcome.figures.get('reknit_s', 0):.2f} s"
    )
    outcome.require(max(waits) <= ALLOWED_SECONDS, f"a step took {1e3 * max(waits):.0f} ms longer than usual")
    check_what_the_run_left(outcome, answers, folder)
    shutil.rmtree(folder)
    return outcome


def moment_of(folder: str, worker: int) -> float:
    """When the fault of a worker began, as that worker wrote it down."""
    return float(Path(folder, f"fault-{worker}").read_text())


def check_what_the_run_left(outcome: Outcome, answers: dict[int, Any], folder: str, metrics: bool = True) -> None:
    """The checkpoints and metrics of a run go on, whoever is the main worker."""
    checkpoints = sorted(path.name for path in Path(folder).glob("*.ckpt"))
    outcome.require(checkpoints == ["epoch=0.ckpt", "epoch=1.ckpt"], f"checkpoints {checkpoints}")
    for name in checkpoints[-1:]:
        manifest = torch.load(Path(folder, name), weights_only=True)[MANIFEST_KEY]
        shards = [entry["worker"] for entry in manifest["shards"]]
        outcome.require(shards == sorted(answers), f"{name} has the shards of workers {shards}")
    validated = {answer["validated"] for answer in answers.values()}
    share = math.ceil(WORKERS * fault_runs.VALIDATION_BATCHES / len(answers))
    outcome.require(validated == {share}, f"the survivors validated on {validated} images each, not on {share}")
    losses = {answer["validation_loss"] for answer in answers.values()}
    outcome.require(len(losses) == 1, f"the survivors' validation losses differ: {losses}")
    if metrics:
        with Path(folder, "log", "metrics.csv").open() as file:
            validated = sum(bool(row.get("validation_loss")) for row in csv.DictReader(file))
        outcome.require(validated == 2, f"metrics.csv has {validated} validations")


def kill_one(seed: int) -> Outcome:
    """SIGKILL somebody who is not the main worker, in the midst of a step."""
    draw = random.Random(seed)
    return train_with_kills({draw.randrange(1, WORKERS): (draw.randrange(20, 50), STEP_SECONDS * draw.random())}, {})


def kill_main(seed: int) -> Outcome:
    """SIGKILL the main worker, who hosts the rendezvous, logs and saves."""
    draw = random.Random(seed)
    return train_with_kills({0: (draw.randrange(20, 50), STEP_SECONDS * draw.random())}, {})


def kill_three(seed: int) -> Outcome:
    """All three neighbours of somebody, who is then alone until the graph is knit anew."""
    draw = random.Random(seed)
    alone = draw.randrange(WORKERS)
    victims = draw.sample(sorted(ring_with_chords()[alone]), 3)
    moments = sorted(draw.sample(range(15, 50), 3))
    return train_with_kills(
        {v: (step, STEP_SECONDS * draw.random()) for v, step in zip(victims, moments, strict=True)}, {}
    )


def kill_in_evaluation(seed: int) -> Outcome:
    """SIGKILL somebody, the main worker as well, while all of them evaluate and save after the first epoch."""
    draw = random.Random(seed)
    victim, delay = draw.randrange(WORKERS), STEP_SECONDS + EVALUATION_SECONDS * draw.random()
    outcome, folder = Outcome(), tempfile.mkdtemp()
    answers = run(fault_runs.train, (Kill(victim, BATCHES, delay_seconds=delay),), {}, folder, BATCHES, STEP_SECONDS)
    outcome.require(set(answers) == set(range(WORKERS)) - {victim}, f"victim {victim}, answers of {sorted(answers)}")
    if not outcome.all_well(answers):
        return outcome
    for worker, answer in answers.items():
        outcome.require(len(answer["ends"]) == 2 * BATCHES, f"worker {worker} took {len(answer['ends'])} steps")
        outcome.require(answer["lost"] == (victim,), f"worker {worker} knows of {answer['lost']}")
        outcome.require(answer["world"] == WORKERS - 1, f"world size {answer['world']}")
    pauses = [max(b - a for a, b in itertools.pairwise(answer["ends"])) for answer in answers.values()]
    outcome.figures["evaluation_with_a_loss_s"] = max(pauses)
    check_what_the_run_left(outcome, answers, folder, metrics=victim != 0)
    shutil.rmtree(folder)
    return outcome


def freeze_for_long(seed: int) -> Outcome:
    """SIGSTOP somebody for longer than the deadline where steps wait: its edges go, and no others."""
    draw = random.Random(seed)
    outcome, folder = Outcome(), tempfile.mkdtemp()
    victim, step = draw.randrange(WORKERS), draw.randrange(20, 40)
    settings = {"timeout": timedelta(seconds=2)}
    answers = run(fault_runs.train, (Freeze(victim, step, 9.0),), settings, folder, BATCHES, STEP_SECONDS)
    awake = answers.pop(victim, {"error": "it did not answer"})
    outcome.require("given up by the others" in awake.get("error", ""), f"the victim {str(awake)[-400:]}")
    if not outcome.all_well(answers):
        return outcome
    for worker, answer in answers.items():
        gone = {neighbor for kind, neighbor, _, _ in answer["events"] if kind == "edge_lost"}
        outcome.require(gone <= {victim}, f"worker {worker} lost its edges to {gone}, not only to {victim}")
        outcome.require(answer["lost"] == (victim,), f"worker {worker} knows of {answer['lost']}")
        outcome.require(len(answer["ends"]) == 2 * BATCHES, f"worker {worker} took {len(answer['ends'])} steps")
    pauses = [max(b - a for a, b in itertools.pairwise(answer["ends"])) for answer in answers.values()]
    outcome.figures["longest_wait_s"] = max(pauses)
    outcome.require(max(pauses) < 6.0, f"somebody waited for {max(pauses):.1f} s")
    shutil.rmtree(folder)
    return outcome


def freeze(seed: int) -> Outcome:
    """SIGSTOP somebody for three seconds where no step ever waits."""
    draw = random.Random(seed)
    outcome, folder = Outcome(), tempfile.mkdtemp()
    victim, step = draw.randrange(WORKERS), draw.randrange(20, 40)
    answers = run(
        fault_runs.train, (Freeze(victim, step, 3.0),), {"max_delay": None}, folder, 2 * BATCHES, STEP_SECONDS
    )
    if not outcome.all_well(answers):
        return outcome
    others = [answer for worker, answer in answers.items() if worker != victim]
    moment = moment_of(folder, victim)
    for answer in answers.values():
        lost = [event for event in answer["events"] if event[0] in ("edge_lost", "worker_lost")]
        outcome.require(not lost, f"lost {lost}")
        outcome.require(len(answer["ends"]) == 4 * BATCHES, f"{len(answer['ends'])} steps")
    frozen = max(b - a for a, b in zip(answers[victim]["ends"][2:], answers[victim]["ends"][3:], strict=False))
    outcome.require(frozen > 2.9, f"the victim stood still for {frozen:.2f} s only")
    waits = []
    for answer in others:
        usual, _ = steps_around(answer, moment)
        during = [b - a for a, b in zip(answer["ends"], answer["ends"][1:], strict=False) if moment < b < moment + 3.5]
        waits.append(max(during) - usual)
    outcome.figures["step_beyond_usual_ms"] = 1e3 * max(waits)
    outcome.require(max(waits) <= ALLOWED_SECONDS, f"a step took {1e3 * max(waits):.0f} ms longer than usual")
    shutil.rmtree(folder)
    return outcome


def rubbish(seed: int, payloads: int = 10_000) -> Outcome:
    """Count what is rejected of payloads that are NaN, infinite or far away."""
    outcome = Outcome()
    answers = run(fault_runs.rubbish, payloads, seed, workers=4)
    if not outcome.all_well(answers):
        return outcome
    sent = sum(answer["sent"] for answer in answers.values())
    rejected = sum(answer["rejected"] for answer in answers.values())
    outcome.figures |= {"rubbish": sent, "rejected_by_both_ends": rejected}
    outcome.require(sent >= payloads, f"only {sent} were sent")
    outcome.require(rejected == 2 * sent, f"{sent} were sent, and rejected {rejected} times, not twice each")
    outcome.require(not any(answer["added"] for answer in answers.values()), "rubbish was added")
    outcome.require(all(answer["edges"] == 2 for answer in answers.values()), "an edge was given up")
    return outcome


def mean(case: str) -> Callable[[int], Outcome]:
    """A row about the mean of the survivors: the kind of fault that happens while they gossip."""

    def measure(seed: int) -> Outcome:
        outcome = Outcome()
        answers = run(fault_runs.mean_after, case, seed)
        if not outcome.all_well(answers):
            return outcome
        members = {tuple(answer["members"]) for answer in answers.values()}
        outcome.require(members == {tuple(sorted(answers))}, f"members {members}, answers of {sorted(answers)}")
        first, last = (
            torch.tensor([a[key] for a in answers.values()], dtype=torch.float64) for key in ("first", "last")
        )
        moved = float((last.mean(0) - first.mean(0)).norm() / first.mean(0).norm())
        spread = float((last - last.mean(0)).norm() / (first - first.mean(0)).norm())
        outcome.figures |= {"mean_moved": moved, "disagreement_left": spread}
        outcome.require(moved < 1e-6, f"the mean moved by {moved:.2e}")
        outcome.require(spread < 0.5, f"{spread:.2f} of the disagreement was left")
        return outcome

    return measure


def soak(seed: int, rounds: int = 10_000, every: int = 50) -> Outcome:
    """Many rounds with many faults: does a worker hold on to more and more?"""
    outcome = Outcome()
    answers = run(fault_runs.soak, rounds, every, seed, seconds=900.0)
    if not outcome.all_well(answers):
        return outcome
    for name in ("threads", "files", "memory"):
        growth = max(answer["held"][-1][name] / answer["held"][1][name] - 1 for answer in answers.values())
        outcome.figures[f"{name}_growth"] = growth
        outcome.require(growth <= 0.02, f"{name} grew by {100 * growth:.1f} %")
    least = min(answer["rounds"] for answer in answers.values())
    outcome.figures["rounds"] = least
    outcome.require(least >= rounds, f"{least} rounds")
    outcome.require(all(answer["edges"] == 3 for answer in answers.values()), "an edge was given up")
    return outcome


ROWS: dict[str, Callable[[int], Outcome]] = {
    "SIGKILL one": kill_one,
    "SIGKILL rank 0": kill_main,
    "SIGKILL three, one after another": kill_three,
    "SIGKILL one in an evaluation": kill_in_evaluation,
    "freeze 3 s, max_delay=None": freeze,
    "freeze for longer than the deadline": freeze_for_long,
    "NaN, Inf, outlier payloads": rubbish,
    "mean of survivors: SIGKILL one": mean("kill"),
    "mean of survivors: SIGKILL rank 0": mean("kill 0"),
    "mean of survivors: SIGKILL three": mean("kill three"),
    "mean of survivors: freeze 1 s": mean("freeze"),
    "mean of survivors: late now and then": mean("late"),
    "mean of survivors: rubbish": mean("rubbish"),
    "soak: 10,000 rounds, a fault every 50": soak,
}


def runs(names: list[str], seeds: int) -> Iterator[tuple[str, int, Outcome]]:
    """All rows and seeds, with a line of progress."""
    for name in names:
        for seed in range(seeds):
            started = time.monotonic()
            try:
                outcome = ROWS[name](seed)
            except Exception as error:  # one run that fails must not lose the others
                outcome = Outcome(broken=[f"{type(error).__name__}: {error}"])
            text = "holds" if not outcome.broken else "; ".join(outcome.broken)
            print(f"{name}, seed {seed} ({time.monotonic() - started:.0f} s): {text}", file=sys.stderr, flush=True)
            yield name, seed, outcome


def table(found: dict[str, list[Outcome]]) -> str:
    """The fault table."""
    rows = []
    for name, outcomes in found.items():
        held = sum(not outcome.broken for outcome in outcomes)
        worst = {key: max(o.figures[key] for o in outcomes if key in o.figures) for o in outcomes for key in o.figures}
        figures = ", ".join(f"{key} {value:.3g}" for key, value in worst.items())
        rows.append([name, f"{held} of {len(outcomes)}", figures])
    return markdown_table(["fault", "held", "worst of all seeds"], rows)


def earlier(folder: Path) -> dict[str, list[Outcome]]:
    """The rows that the folder holds from runs before: a run replaces its own rows only."""
    file = folder / "faults.json"
    if not file.exists():
        return {}
    results = json.loads(file.read_text())["results"]
    return {name: [Outcome(**outcome) for outcome in outcomes] for name, outcomes in results.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the rows; 1 if one did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this; may be repeated")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    names = [name for name in ROWS if not options.only or any(part in name for part in options.only)]
    if options.seeds < 1 or not names:
        parser.error(f"--seeds must be at least 1 and --only part of one of {list(ROWS)}")
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    for name, _, outcome in runs(names, options.seeds):
        found[name].append(outcome)
    print(table(found))
    everything = earlier(options.output) | found
    everything = {name: everything[name] for name in ROWS if name in everything}
    results = {name: [vars(outcome) for outcome in outcomes] for name, outcomes in everything.items()}
    settings = {"seeds": options.seeds, "graph": nx.to_dict_of_lists(ring_with_chords())}
    path = save_results("faults", settings, results, options.output)
    path.with_suffix(".md").write_text(
        f"`python benchmarks/faults.py --seeds 10`, rows may be of different runs (`--only`); {machine_line()}\n\n"
        f"{table(everything)}\n"
    )
    print(path)
    return int(any(outcome.broken for outcomes in found.values() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
