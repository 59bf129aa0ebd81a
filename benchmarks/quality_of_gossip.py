"""What each form of gossip costs in quality: the same steps, data and seeds as DDP, loss or score at the end.

    python benchmarks/quality_of_gossip.py                       both tasks, every form of each, three seeds
    python benchmarks/quality_of_gossip.py --task classifier --forms "ring" "one peer, int8" --seeds 5

Every run is a `Trainer.fit` as users call it. The workers are started once and go through all runs in turn. A form that
is to be late has each of its exchanges held back until so many further batches have begun, so that lateness does not
depend on the machine; `--delay-ms` holds back all exchanges of all forms by a time instead.

DDP is Lightning's DDPStrategy. It accepts the GAN because the simultaneous step has one backward pass for both players:
their gradients are averaged over the workers before either optimizer steps. That is CP-OAdam, the centralized form of
DPOSG's Adam; tests/unit/test_gossip_benchmarks.py holds it against an all-reduce by hand.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from crew import go_through
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from quality_report import REFERENCE, draw, section, write_report
from quality_tasks import TASKS, Recorder, StepClock, late_exchanges
from recording import RESULTS, save_results

from lightning_decgan import DecentralizedGossipStrategy, OuterNesterov, PowerGossip, RandomSubset


@dataclass(frozen=True)
class Form:
    """A way to keep workers together.

    Attributes:
        settings: of the strategy; `None` for DDP.
        late_steps: how many steps late its exchanges are made to be.
    """

    settings: dict[str, Any] | None = field(default_factory=dict)
    late_steps: int = 0


LOCAL_STEPS = 8
RANK_1 = {"compression": PowerGossip(rank=1)}
FORMS: dict[str, Form] = {
    REFERENCE: Form(None),
    "no communication": Form({"gossip_every": 10**9}),
    "one peer": Form({}),  # the default topology, one-peer exponential
    "ring": Form({"topology": "ring"}),
    "one peer, exact order": Form({"overlap": False}),
    "one peer, 3 rounds": Form({"rounds": 3}),
    "random_matching": Form({"topology": "random_matching"}),
    "exponential": Form({"topology": "exponential"}),
    "complete, exact order": Form({"topology": "complete", "overlap": False}),
    "one peer, max_delay=1, 1 late": Form({"max_delay": 1}, late_steps=1),
    "one peer, max_delay=4, 4 late": Form({"max_delay": 4}, late_steps=4),
    "one peer, max_delay=None, in time": Form({"max_delay": None}),
    "one peer, max_delay=None, 4 late": Form({"max_delay": None}, late_steps=4),
    "one peer, max_delay=None, 8 late": Form({"max_delay": None}, late_steps=8),
    "one peer, max_delay=None, 16 late": Form({"max_delay": None}, late_steps=16),
    "one peer, bfloat16": Form({"compression": "bfloat16"}),
    "one peer, bfloat16, max_delay=None, 4 late": Form({"compression": "bfloat16", "max_delay": None}, late_steps=4),
    "one peer, int8": Form({"compression": "int8"}),
    "one peer, RandomSubset(0.1)": Form({"compression": RandomSubset(fraction=0.1)}),
    "one peer, PowerGossip(1)": Form(RANK_1),
    "one peer, PowerGossip(1), 1 late": Form({**RANK_1, "max_delay": None}, late_steps=1),
    "one peer, PowerGossip(1), every 2, 1 late": Form({**RANK_1, "max_delay": None, "gossip_every": 2}, late_steps=1),
    "one peer, PowerGossip(1), every 8, 1 late": Form(
        {**RANK_1, "max_delay": None, "gossip_every": LOCAL_STEPS}, late_steps=1
    ),
    "one peer, every 8": Form({"gossip_every": LOCAL_STEPS}),
    "one peer, every 8, OuterNesterov(0.7, 0.9)": Form({"gossip_every": LOCAL_STEPS, "outer": OuterNesterov(0.7, 0.9)}),
    "one peer, every 8, OuterNesterov(0.7, 0.5)": Form({"gossip_every": LOCAL_STEPS, "outer": OuterNesterov(0.7, 0.5)}),
}
GAN_FORMS = [
    REFERENCE,
    "no communication",
    "ring",
    "one peer",
    "one peer, max_delay=None, 4 late",
    "one peer, max_delay=None, 8 late",
    "one peer, bfloat16",
    "one peer, bfloat16, max_delay=None, 4 late",
    "one peer, int8",
    "one peer, PowerGossip(1)",
    "one peer, RandomSubset(0.1)",
    "one peer, PowerGossip(1), 1 late",
    "one peer, PowerGossip(1), every 2, 1 late",
    "one peer, PowerGossip(1), every 8, 1 late",
    "one peer, every 8, OuterNesterov(0.7, 0.5)",
]
ADAM_FORMS = [
    REFERENCE,
    "complete, exact order",
    "ring",
    "one peer",
    "one peer, PowerGossip(1), 1 late",
    "one peer, PowerGossip(1), every 8, 1 late",
    "one peer, max_delay=None, 4 late",
    "one peer, every 8, OuterNesterov(0.7, 0.9)",
    "one peer, every 8, OuterNesterov(0.7, 0.5)",
]
DEFAULT_FORMS = {"classifier": list(FORMS), "classifier_adamw": ADAM_FORMS, "gan": GAN_FORMS}
EVALUATIONS = 4


@dataclass(frozen=True)
class Plan:
    """What every worker goes through, in order."""

    task: str
    forms: tuple[str, ...]
    seeds: int
    workers: int
    steps: int
    delay_seconds: float | None
    callbacks: tuple[Callback, ...]

    def runs(self) -> list[tuple[int, str]]:
        """(seed, form): seeds outermost, so that whatever else the machine does falls on all forms alike."""
        return [(seed, form) for seed in range(self.seeds) for form in self.forms]


def make_strategy(form: Form, seed: int) -> DDPStrategy:
    """A strategy as a user would make it."""
    if form.settings is None:
        return DDPStrategy()
    return DecentralizedGossipStrategy(**form.settings, seed=seed, timeout=timedelta(seconds=120))


def train(plan: Plan, form: Form, seed: int) -> Recorder:
    """One run of one form, on this worker."""
    task = TASKS[plan.task]
    os.environ["PL_GLOBAL_SEED"] = str(seed)  # Lightning's sampler takes the order of the data from it
    torch.manual_seed(seed)
    recorder, clock = Recorder(task, seed), StepClock()
    trainer = Trainer(
        strategy=make_strategy(form, seed),
        accelerator="cpu",
        devices=plan.workers,
        max_steps=plan.steps * task.optimizer_steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=plan.steps // EVALUATIONS,
        num_sanity_val_steps=0,
        callbacks=[recorder, clock, *plan.callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with late_exchanges(clock, form.late_steps, plan.delay_seconds):
        trainer.fit(task.module(plan.steps), datamodule=task.data())
    return recorder


def answer(plan: Plan, form: str, seed: int) -> dict[str, Any]:
    """What a worker says of its part of a run."""
    recorder = train(plan, FORMS[form], seed)
    return {"history": recorder.history, "late_steps": recorder.late_steps}


def merge(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """One run from its workers' answers: figures are worker 0's (all agree), lateness is everybody's, counted.

    Example:
        >>> merge([{"rank": 0, "late_steps": [0, 2]}, {"rank": 1, "late_steps": [2]}])
        {'late_steps': {'0': 1, '2': 2}}
    """
    run = {key: value for key, value in answers[0].items() if key != "rank"}
    counts = Counter(steps for answer in answers for steps in answer["late_steps"])
    return run | {"late_steps": {str(steps): counts[steps] for steps in sorted(counts)}}


def measure(
    plan: Plan, say: Callable[[str], None], keep: Callable[[list[dict[str, Any]]], Any] = lambda runs: None
) -> list[dict[str, Any]]:
    """Start the workers, follow them, and return all runs in order.

    Args:
        plan: what to run.
        say: is told of each run that has ended.
        keep: is given all runs so far after each: who ends this early keeps what there is.

    Raises:
        ProcessRaisedException: a worker failed; its traceback is in the message.
    """
    runs = []
    metric = TASKS[plan.task].metrics[0]
    for answers, minutes_left in go_through(plan.runs(), functools.partial(answer, plan), plan.workers):
        runs.append(run := merge(answers))
        keep(runs)
        say(
            f"{len(runs)}/{len(plan.runs())} seed {run['seed']}, {run['form']}: {metric.heading}"
            f" {run['history'][-1][metric.key]:.4f} ({run['seconds']:.1f} s; about {minutes_left:.0f} min left)"
        )
    return runs


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), help="DDP is always among them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, help="batches of a worker in a run; a multiple of 4")
    parser.add_argument("--delay-ms", type=float, help="hold every exchange of every form back by this time instead")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results and plots")
    found = parser.parse_args(arguments)
    if found.seeds < 1 or found.workers < 1:
        parser.error(f"--seeds and --workers must be at least 1, found {found.seeds} and {found.workers}")
    if found.steps is not None and (found.steps < EVALUATIONS or found.steps % EVALUATIONS):
        parser.error(f"--steps must be a positive multiple of {EVALUATIONS}, found {found.steps}")
    if found.delay_ms is not None and found.delay_ms < 0:
        parser.error(f"--delay-ms must not be negative, found {found.delay_ms}")
    return found


def main() -> None:
    """Run everything that was asked for, print the tables, keep results and plots."""
    arguments = parse()
    for name in arguments.task:
        task = TASKS[name]
        forms = [form for form in arguments.forms or DEFAULT_FORMS[name] if form != REFERENCE]
        plan = Plan(
            name,
            (REFERENCE, *forms),
            arguments.seeds,
            arguments.workers,
            arguments.steps or task.steps,
            None if arguments.delay_ms is None else arguments.delay_ms / 1e3,
            tuple(task.callbacks()),
        )
        settings = {"task": name, "seeds": plan.seeds, "workers": plan.workers, "steps": plan.steps}
        settings["delay_ms"] = arguments.delay_ms
        keep = functools.partial(save_results, f"quality_{name}", settings, folder=arguments.output)
        runs = measure(plan, lambda text: print(text, file=sys.stderr, flush=True), keep)
        path = keep(runs)
        picture = draw(runs, task, path.with_suffix(".png"))
        print("\n" + section(json.loads(path.read_text()), task))
        print(f"{path} and {picture}")
    print(write_report(arguments.output, TASKS))


if __name__ == "__main__":
    main()
