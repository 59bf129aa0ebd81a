"""Milliseconds a step on slow and far networks: this strategy in its forms, and the other ways of training.

    sudo python benchmarks/network.py --networks 50ms 100mbit_1ms --workers 4 --loads accelerator

Makes each network by itself (`shaped_network.py`; Linux, root), starts one worker on each of its nodes and trains the
same model on the same data in every form of `network_forms.py`, one after another. README.md beside this file says what
is measured and how to read it. Results are written after each network to `network.json`, `network.md` and one picture
for each load and number of workers; `--replot network.json` draws them again.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from network_crew import Crew, FormFailed, choose_steps
from network_forms import FORMS, NETWORKS, NO_COMMUNICATION, select_forms
from network_report import load_results, merge_run, save_results, summarise, table
from recording import describe_machine
from shaped_network import NetworkUnavailable, PrivateLoopback, ShapedNetwork, stop_on_sigterm, why_unavailable

_LOADS = ("accelerator", "cpu")


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends the program with a message when something cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME",
                        help=f"some of: {', '.join(NETWORKS)}; all by default")  # fmt: skip
    parser.add_argument("--workers", nargs="+", type=int, default=[4], help="numbers of workers, such as 4 8")
    parser.add_argument("--loads", nargs="+", default=list(_LOADS), choices=_LOADS)
    parser.add_argument("--forms", nargs="+", help="only forms whose names contain one of these, and no communication")
    parser.add_argument("--steps", type=int, default=30, help="measured, of each form")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them; at least 4, as PowerSGD needs")
    parser.add_argument("--time-limit", type=float, default=120, metavar="SECONDS",
                        help="of the measured steps of a form: slower ones take fewer steps, at least 3")  # fmt: skip
    parser.add_argument("--batch", type=int, default=8, help="images a worker and step")
    parser.add_argument("--width", type=int, default=42, help="of the DCGAN; 42 makes 11 MB of parameters")
    parser.add_argument("--decent-dp", metavar="FOLDER", help="where decent-dp was installed with pip's --target")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "results", metavar="FOLDER")
    parser.add_argument("--replot", type=Path, metavar="network.json", help="draw and write again what was measured")
    arguments = parser.parse_args(given)
    least = {"steps": 3, "warmup": 4, "time_limit": 1, "batch": 1, "width": 1}
    for name, value in least.items():
        if getattr(arguments, name) < value:
            parser.error(f"--{name.replace('_', '-')} must be at least {value}, found {getattr(arguments, name)}")
    if min(arguments.workers) < 2:
        parser.error(f"--workers must be at least 2, found {min(arguments.workers)}")
    if arguments.decent_dp and not (Path(arguments.decent_dp) / "decent_dp").is_dir():
        parser.error(
            f"--decent-dp: {arguments.decent_dp} holds no decent_dp; install it there with"
            f" `pip install --no-deps --target {arguments.decent_dp} decent-dp loguru`"
        )
    try:
        arguments.selected = select_forms(arguments.forms)
    except ValueError as error:
        parser.error(str(error))
    if arguments.replot is None and (reason := why_unavailable()) is not None:
        parser.error(reason)
    return arguments


def measure_run(name: str, workers: int, load: str, arguments: argparse.Namespace, log: Any) -> dict[str, Any]:
    """All forms on one network with one load, one after another; those without communication again at the end.

    What has been measured so far stands in `network_unfinished.json` meanwhile.
    """
    unfinished = arguments.output / "network_unfinished.json"
    network = NETWORKS[name]
    run: dict[str, Any] = {
        "network": name, "mbit": network.mbit, "delay_ms": network.delay_ms, "workers": workers, "load": load,
        "batch": arguments.batch, "width": arguments.width, "warmup": arguments.warmup,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(), "rows": [],
    }  # fmt: skip
    lab = ShapedNetwork(workers, network.mbit, network.delay_ms) if network.shaped else PrivateLoopback()
    order = arguments.selected + list(NO_COMMUNICATION.values())
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(arguments.decent_dp).resolve()) if arguments.decent_dp else ""]
    with lab, Crew(lab, workers, log, paths) as crew:
        for place, form in enumerate(order):
            title = f"{name}, {workers} workers, {load}  [{place + 1}/{len(order)}] {form}"
            command = {
                "form": form, "load": load, "width": arguments.width, "batch": arguments.batch, "workers": workers,
                "warmup": arguments.warmup, "interface": lab.interface,
                "network": {"mbit": network.mbit, "delay_ms": network.delay_ms},
            }  # fmt: skip
            row: dict[str, Any] = {"form": form, "again": place >= len(arguments.selected)}
            try:
                results = crew.run(
                    command,
                    steps=lambda step, floor, period=FORMS[form].period: choose_steps(  # type: ignore[misc]
                        arguments.steps, period, step, floor, arguments.time_limit
                    ),
                    progress=functools.partial(_show, title),
                )
                row |= summarise(results)
                run["parameter_bytes"] = results[0]["parameter_bytes"]
                _show(title, f"median {row['median_ms']:.1f} ms, mean {row['mean_ms']:.1f} ms", last=True)
            except FormFailed as error:
                row["error"] = str(error)
                _show(title, str(error)[:100], last=True)
            run["rows"].append(row)
            unfinished.write_text(json.dumps(run))
    unfinished.unlink()
    return run


def _show(title: str, text: str, last: bool = False) -> None:
    """One line that is written over until its form is measured; only the last where nobody looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{title}: {text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(f"{title}: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, or draw again."""
    arguments = parse_arguments()
    if arguments.replot is not None:
        save_results(load_results(arguments.replot), arguments.replot.parent)
        return 0
    stop_on_sigterm()
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        with (arguments.output / "network.log").open("w") as log:
            for workers in arguments.workers:
                for load in arguments.loads:
                    for name in arguments.networks:
                        run = measure_run(name, workers, load, arguments, log)
                        results = merge_run(load_results(arguments.output / "network.json"), run)
                        save_results(results, arguments.output)
                        print(table(run), flush=True)
    except NetworkUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was measured stands in the output folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
