"""What having the strategy costs where the network is free: milliseconds a step over loopback, as ratios of one run.

    python benchmarks/overhead.py --workers 4 --steps 40 --blocks 3

The same workers, model and data take the same steps without any communication, with overlapped gossip and with gossip
in the exact order, in turns, so that whatever else the machine does falls on all of them alike. Two loads: `cpu`
computes real convolutions, and all workers share the cores with the exchange; `accelerator` leaves the processor idle
for 100 ms a step and makes cheap gradients, as when a GPU computes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from crew import Place, end_with_parent, quiet_lightning, worker_environment
from lightning.pytorch import Trainer
from recording import RESULTS, machine_line, save_results
from torch.utils.data import DataLoader
from workload import LOADS, Images, StepTimes, make_module

from lightning_decgan import DecentralizedGossipStrategy

WARMUP_STEPS = 5
FORMS: dict[str, dict[str, Any]] = {
    "no communication": {"gossip_every": 10**9},
    "ring, overlapped": {"topology": "ring", "overlap": True},
    "ring, exact order": {"topology": "ring", "overlap": False},
    "one-peer exponential, overlapped": {"topology": "one_peer_exponential", "overlap": True},
}


def run_worker(rank: int, arguments: argparse.Namespace, port: int, results: Any) -> None:
    """One worker's part of every form, in turns."""
    end_with_parent()
    worker_environment(rank, arguments.workers, port)
    quiet_lightning()
    images = Images(arguments.workers * arguments.steps * arguments.batch)
    for load in arguments.loads:
        for block in range(arguments.blocks):
            for form, settings in FORMS.items():
                torch.manual_seed(block)
                module, times = make_module(load, arguments.width), StepTimes()
                strategy = DecentralizedGossipStrategy(**settings, evaluate="local", timeout=timedelta(seconds=120))
                trainer = Trainer(
                    strategy=strategy, accelerator="cpu", devices=arguments.workers, max_epochs=1, barebones=False,
                    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                    callbacks=[times],
                )  # fmt: skip
                trainer.fit(module, DataLoader(images, batch_size=arguments.batch))
                size = sum(p.numel() * p.element_size() for p in module.parameters())
                waited = strategy.totals.wait_seconds / max(strategy.totals.steps, 1)
                results.put((load, form, rank, times.seconds[WARMUP_STEPS:], waited, size))
                if rank == 0:
                    print(f"{load}, block {block + 1}/{arguments.blocks}, {form}", file=sys.stderr, flush=True)


def table(rows: list[tuple[str, str, int, list[float], float, int]], loads: list[str]) -> str:
    """Median and quartiles over all workers and blocks, and the ratio of medians."""
    lines = []
    for load in loads:
        size = next(row[5] for row in rows if row[0] == load)
        lines += [f"\n{load} load, {size / 2**20:.1f} MiB of parameters, ms a step",
                  f"{'':34} {'median':>8} {'quartiles':>17} {'ratio':>7} {'waited':>8}"]  # fmt: skip
        base = 0.0
        for form in FORMS:
            seconds = [s for row in rows if row[:2] == (load, form) for s in row[3]]
            waited = statistics.mean(row[4] for row in rows if row[:2] == (load, form))
            low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
            base = base or median
            lines.append(f"{form:34} {median:8.1f} {low:8.1f} {high:8.1f} {median / base:7.3f} {1e3 * waited:8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Run all forms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40, help="a form, load and block")
    parser.add_argument("--blocks", type=int, default=3, help="turns that every form takes")
    parser.add_argument("--batch", type=int, default=8, help="images a worker and step")
    parser.add_argument("--width", type=int, default=42, help="of the DCGAN")
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=LOADS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()
    port = Place.on(None, arguments.workers).port
    results = mp.get_context("spawn").Queue()
    context = mp.start_processes(
        run_worker, (arguments, port, results), nprocs=arguments.workers, join=False, start_method="spawn"
    )
    expected = arguments.workers * len(FORMS) * arguments.blocks * len(arguments.loads)
    rows: list[tuple[str, str, int, list[float], float, int]] = []
    while len(rows) < expected:
        rows.append(results.get(timeout=600))
    while not context.join():
        pass
    text = f"{machine_line()}, {arguments.workers} workers, {arguments.blocks} x {arguments.steps} steps a form\n"
    text += table(rows, arguments.loads)
    print(text)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    kept = [{"load": row[0], "form": row[1], "worker": row[2], "seconds": row[3]} for row in rows]
    path = save_results("overhead", settings, kept, arguments.output)
    path.with_suffix(".txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
