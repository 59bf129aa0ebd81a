"""`decgan topology`: what a topology costs and how fast it brings workers to agreement, before anything is trained.

Prints who meets whom, the mixing matrix, its spectral gap, the rounds to 1e-2, messages and bytes a step, and draws a
picture on request. It starts no process: everything it says comes from
`lightning_decgan.topology`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from lightning_decgan.checks import check_integer
from lightning_decgan.cli.errors import UsageError, one_line
from lightning_decgan.topology import TOPOLOGIES, Topology, build_topology

DESCRIPTION = "Show who talks to whom, how fast a topology brings workers to agreement, and what it costs a step."

TARGET = 1e-2
"""The fraction of the disagreement to which rounds and steps are counted."""

MOST_WORKERS = 100_000
MOST_ROUNDS = 4
MOST_MATRIX_WORKERS = 16
MOST_LISTED_WORKERS = 64
SAMPLED_STEPS = 64
LARGEST_RATE_WORKERS = 2048


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse would print the usage as well and leave the process."""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints."""
        raise UsageError(message)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to a parser of several commands.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returns.

    Returns:
        The parser of this command; its default ``run`` takes the parsed arguments and returns the exit status.
    """
    parser = subparsers.add_parser("topology", help="print (and draw) a topology: neighbours, weights, speed, bytes")
    return _with_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments after ``decgan topology``; None takes them from the process.

    Returns:
        0, or 2 after one line on stderr that says which argument is wrong, what was found and what would be valid.

    Example:
        >>> main(["ring", "--workers", "2"])
        ring, 2 workers, the same in every round
        <BLANKLINE>
        neighbours
          worker 0  1
          worker 1  0
        <BLANKLINE>
        mixing matrix W
          0.500  0.500
          0.500  0.500
        <BLANKLINE>
        spectral gap               1
        consensus rate             0 a round
        rounds to 0.01             1
        steps to 0.01              1 (1 round a step)
        messages a step            1 a worker
        bytes a step               11.20 MB sent by a worker, as many received (a message is 11.20 MB)
        all-reduce for comparison  11.20 MB sent by a worker
        0
    """
    parser = _with_arguments(_Parser(prog="decgan topology", description=DESCRIPTION))
    try:
        arguments = parser.parse_args(argv)
        return int(arguments.run(arguments))
    except UsageError as error:
        print(f"decgan topology: error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Print (and draw) what the parsed arguments ask for.

    Raises:
        UsageError: a topology, a number or a path that is not valid.
    """
    try:
        rounds = check_integer("--rounds", arguments.rounds, 1)
        model_bytes = _model_bytes(arguments)
        workers = check_integer("--workers", arguments.workers, 1, MOST_WORKERS)
        topology = build_topology(arguments.topology, workers, seed=arguments.seed, rounds=rounds)
        if arguments.plot is not None:
            # matplotlib takes a second to import: only those who want a picture wait for it. Drawn before anything is
            # printed, so that a path that cannot be written is one line, not the end of a report.
            from lightning_decgan.cli.plots import plot_topology

            plot_topology(topology, arguments.plot)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(one_line(error)) from error
    for line in report(topology, rounds, model_bytes):
        print(line)
    if arguments.plot is not None:
        print(f"picture                    {arguments.plot}")
    return 0


def report(topology: Topology, rounds: int, model_bytes: int) -> Iterator[str]:
    """What the command prints, line by line.

    Args:
        topology: of any class.
        rounds: gossip rounds a step.
        model_bytes: of one copy of all parameters, which is one message.

    Yields:
        Lines without their end.

    Example:
        >>> from lightning_decgan.topology import Complete
        >>> next(report(Complete(8), rounds=1, model_bytes=1_000_000))
        'complete, 8 workers, the same in every round'
    """
    changes = {None: "drawn anew for ever", 1: "the same in every round"}
    schedule = changes.get(topology.period, f"a schedule of {topology.period} rounds")
    yield f"{topology.name}, {_count(topology.workers, 'worker')}, {schedule}"
    shown = min(MOST_ROUNDS, topology.period or MOST_ROUNDS)
    yield ""
    yield from _neighbors(topology, shown)
    yield ""
    yield from _matrices(topology, shown)
    yield ""
    yield from _speed(topology, rounds)
    yield from _cost(topology, rounds, model_bytes)


def _neighbors(topology: Topology, shown: int) -> Iterator[str]:
    listed = min(topology.workers, MOST_LISTED_WORKERS)
    cells = [[_neighbor_list(topology.neighbors(worker, round)) for round in range(shown)] for worker in range(listed)]
    widths = [max(len(f"round {round}"), *(len(row[round]) for row in cells)) for round in range(shown)]
    label = len(f"worker {listed - 1}")
    yield "neighbours"
    if shown > 1:
        yield "  " + " " * label + "  " + "  ".join(f"round {r}".ljust(w) for r, w in enumerate(widths)).rstrip()
    for worker, row in enumerate(cells):
        columns = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {f'worker {worker}'.ljust(label)}  {columns}".rstrip()
    if listed < topology.workers:
        yield f"  ... and {topology.workers - listed} more"


def _neighbor_list(neighbors: tuple[int, ...]) -> str:
    if not neighbors:
        return "-"
    if len(neighbors) <= 16:
        return " ".join(map(str, neighbors))
    return " ".join(map(str, neighbors[:12])) + f" ... ({len(neighbors)})"


def _matrices(topology: Topology, shown: int) -> Iterator[str]:
    if topology.workers > MOST_MATRIX_WORKERS:
        yield f"mixing matrix W             {topology.workers} x {topology.workers}, too large to print"
        return
    for round in range(shown):
        if round > 0:
            yield ""
        yield f"mixing matrix W, round {round}" if shown > 1 else "mixing matrix W"
        for row in topology.mixing_matrix(round):
            yield "  " + "  ".join(f"{entry:.3f}" if entry > 1e-12 else "    ." for entry in row)


def _speed(topology: Topology, rounds: int) -> Iterator[str]:
    if topology.workers > LARGEST_RATE_WORKERS:
        yield f"spectral gap               not computed for more than {LARGEST_RATE_WORKERS} workers"
        return
    rate = topology.consensus_rate()
    needed = topology.rounds_for(TARGET)
    mean = " (root mean square over the draws)" if topology.period is None else ""
    yield f"spectral gap               {1 - rate:.6g}"
    yield f"consensus rate             {rate:.6g} a round{mean}"
    yield f"rounds to {TARGET:g}             {needed}"
    yield f"steps to {TARGET:g}              {math.ceil(needed / rounds)} ({_count(rounds, 'round')} a step)"


def _cost(topology: Topology, rounds: int, model_bytes: int) -> Iterator[str]:
    fewest, mean, most = _messages(topology, rounds)
    if fewest == most:
        messages, sent = f"{most} a worker", f"{_size(most * model_bytes)} sent by a worker"
    else:
        messages = f"{mean:.4g} a worker on average, {fewest} to {most}"
        sent = f"{_size(mean * model_bytes)} sent by a worker on average, at most {_size(most * model_bytes)}"
    all_reduce = 2 * (topology.workers - 1) / topology.workers * model_bytes
    yield f"messages a step            {messages}"
    yield f"bytes a step               {sent}, as many received (a message is {_size(model_bytes)})"
    yield f"all-reduce for comparison  {_size(all_reduce)} sent by a worker"


def _messages(topology: Topology, rounds: int) -> tuple[int, float, int]:
    """The fewest, mean and most messages that a worker sends in a step, over one period or 64 steps."""
    workers = range(topology.workers)
    if topology.period == 1:
        counts = [topology.degree(worker) * rounds for worker in workers]
    else:
        # The steps of a period may begin anywhere in it, so as many steps as it has rounds pass through all of them.
        steps = topology.period or max(1, SAMPLED_STEPS // rounds)
        length = topology.period or steps * rounds
        degrees = [[topology.degree(worker, round) for worker in workers] for round in range(length)]
        totals = [sum(degrees[round][worker] for round in range(length)) for worker in workers]
        counts = []
        for step in range(steps):
            turns, rest = divmod(rounds, length)
            window = [(step * rounds + extra) % length for extra in range(rest)]
            counts += [turns * totals[w] + sum(degrees[round][w] for round in window) for w in workers]
    return min(counts), sum(counts) / len(counts), max(counts)


def _size(size_bytes: float) -> str:
    """Bytes in the decimal unit that leaves the fewest digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes:.0f} B"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _model_bytes(arguments: argparse.Namespace) -> int:
    dtype_bytes = check_integer("--dtype-bytes", arguments.dtype_bytes, 1)
    if arguments.megabytes is None:
        return check_integer("--parameters", arguments.parameters, 1) * dtype_bytes
    if not (math.isfinite(arguments.megabytes) and arguments.megabytes > 0):
        raise ValueError(f"--megabytes must be a positive number, found {arguments.megabytes}")
    return round(arguments.megabytes * 1e6)


def _with_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("topology", help=f"one of {', '.join(sorted(TOPOLOGIES))}")
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="how many workers take part")
    parser.add_argument("--rounds", type=int, default=1, metavar="T", help="gossip rounds a step (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of random topologies (default 0)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--parameters",
        type=int,
        default=2_800_000,
        metavar="P",
        help="of the model, all players together (default 2800000)",
    )
    size.add_argument(
        "--megabytes", type=float, metavar="MB", help="of the model, in 10^6 bytes, instead of parameters"
    )
    parser.add_argument("--dtype-bytes", type=int, default=4, metavar="B", help="of one parameter (default 4)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the graph into a .png, .svg or .pdf")
    parser.set_defaults(run=run)
    return parser
