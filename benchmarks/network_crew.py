"""The workers of one network and load: started once, told form after form, started anew when one is lost.

Nothing here imports torch: the process that holds the network stays small and quick.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from shaped_network import PrivateLoopback, ShapedNetwork

__all__ = ["Crew", "FormFailed", "choose_steps"]

LEAST_STEPS = 3
# Bringing up links and handing out the first weights takes minutes where the network is slow.
_PATIENCE_SECONDS = 300.0
_OTHERS_SECONDS = 20.0
_FIRST_PORT = 29_500


class FormFailed(RuntimeError):
    """A form could not be measured; the message is the first worker's error."""


def choose_steps(wanted: int, period: int, step_seconds: float, floor_seconds: float, limit_seconds: float) -> int:
    """How many steps to measure.

    As many as wanted, but at least three times as long as one exchange takes (one that nobody waits for would not be
    seen otherwise), no longer than the limit, and never fewer than three. Periodic forms take whole periods, at least
    two, whatever the limit says.

    Example: steps of 20 s in 120 s; exchanges of 5 s behind steps of 0.1 s; an average every 32 steps.
        >>> choose_steps(30, 1, 20.0, 18.0, 120.0), choose_steps(30, 1, 0.1, 5.0, 120.0)
        (6, 150)
        >>> choose_steps(30, 32, 0.1, 0.3, 120.0)
        64
    """
    if period > 1:
        return period * max(2, math.ceil(wanted / period))
    long_enough = max(wanted, math.ceil(3 * floor_seconds / step_seconds))
    return max(LEAST_STEPS, min(long_enough, int(limit_seconds / step_seconds)))


class Crew:
    """One process a worker, on the nodes of a network.

    Args:
        network: where they run.
        workers: how many.
        log: what they write to the standard error goes here.
        python_path: folders that their Python looks into as well.
    """

    def __init__(
        self, network: ShapedNetwork | PrivateLoopback, workers: int, log: TextIO, python_path: list[str]
    ) -> None:
        self._network, self._workers, self._log, self._python_path = network, workers, log, python_path
        self._processes: list[subprocess.Popen[str]] = []
        self._events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._port = _FIRST_PORT

    def __enter__(self) -> Crew:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(
        self, command: Mapping[str, Any], steps: Callable[[float, float], int], progress: Callable[[str], None]
    ) -> list[dict[str, Any]]:
        """Train in one form.

        Args:
            command: what the workers are told; a port is added.
            steps: from the seconds of a step and the floor of an exchange to the number of steps to measure.
            progress: told in words how far it is.

        Returns:
            What every worker measured, by rank.

        Raises:
            FormFailed: it could not be measured; the crew is ready for the next form.
        """
        self._port += 1  # the old one may linger
        self._tell({**command, "port": self._port})
        warm: dict[int, dict[str, Any]] = {}
        done: dict[int, dict[str, Any]] = {}
        wanted = 0
        while len(done) < self._workers:
            rank, event = self._next(_PATIENCE_SECONDS)
            if event is None or event["event"] == "error":
                self._fail(rank, event, set(done))
            elif event["event"] == "warm":
                warm[rank] = event
                if len(warm) == self._workers:
                    wanted = steps(
                        max(each["seconds"] for each in warm.values()),
                        max(each["floor_seconds"] for each in warm.values()),
                    )
                    self._tell({"steps": wanted})
            elif event["event"] == "done":
                done[rank] = event
            elif event["event"] == "progress" and rank == 0:
                progress(f"step {event['step']} of {wanted}" if wanted else "warming up")
        self._tell({})
        return [done[rank] for rank in range(self._workers)]

    def _fail(self, rank: int, event: dict[str, Any] | None, ended: set[int]) -> None:
        """Raise `FormFailed`, with a fresh crew if not all workers are ready for more."""
        failed = set() if event is None else {rank}
        message = "a worker has ended, see the log" if event is None else f"{event['kind']}: {event['message']}"
        deadline = time.monotonic() + _OTHERS_SECONDS
        with contextlib.suppress(FormFailed):
            while failed and len(failed) < self._workers and not ended and time.monotonic() < deadline:
                rank, event = self._next(max(deadline - time.monotonic(), 0.1))
                if event is None:
                    break
                if event["event"] == "error":
                    failed.add(rank)
        if len(failed) < self._workers:
            self._end()
            self._start()
        raise FormFailed(" ".join(message.split()))

    def _next(self, seconds: float) -> tuple[int, dict[str, Any] | None]:
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            self._end()
            self._start()
            raise FormFailed(f"no sign of life from any worker for {seconds:g} s") from None

    def _tell(self, command: Mapping[str, Any]) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended; the end of its output will tell
                process.stdin.write(json.dumps(command) + "\n")
                process.stdin.flush()

    def _start(self) -> None:
        self._events = queue.Queue()
        script = str(Path(__file__).resolve().parent / "network_worker.py")
        for rank in range(self._workers):
            process = self._network.popen(
                rank, [sys.executable, script], env=self._environment(rank),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            )  # fmt: skip
            self._processes.append(process)
            threading.Thread(target=self._read, args=(rank, process, self._events), daemon=True).start()
        ready: set[int] = set()
        while len(ready) < self._workers:
            try:
                rank, event = self._events.get(timeout=_PATIENCE_SECONDS)
            except queue.Empty:
                raise RuntimeError("the workers did not start in time") from None
            if event is None:
                raise RuntimeError(f"worker {rank} could not start; its error stands in {self._log.name}")
            ready.add(rank)

    def _environment(self, rank: int) -> dict[str, str]:
        """What torchrun would set if every node had one worker."""
        return {
            "RANK": str(rank), "WORLD_SIZE": str(self._workers), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(rank), "TORCHELASTIC_RUN_ID": "network", "MASTER_ADDR": self._network.address(0),
            "GLOO_SOCKET_IFNAME": self._network.interface, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(path for path in self._python_path if path),
        }  # fmt: skip

    @staticmethod
    def _read(
        rank: int, process: subprocess.Popen[str], events: queue.Queue[tuple[int, dict[str, Any] | None]]
    ) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            events.put((rank, json.loads(line)))
        events.put((rank, None))

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        self._processes = []
