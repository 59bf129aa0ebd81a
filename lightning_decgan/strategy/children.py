"""The processes that a launcher started: who died, whom that concerns, and who brings the results home.

Before training begins and after it has ended workers need each other, and one that fails ends all, as everywhere in
Lightning. In between the others go on without it; who it was is kept in `lost`. Nothing here starts a process, and
nothing here knows what gossip is.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from multiprocessing import connection, parent_process
from typing import Any

from torch.multiprocessing.spawn import ProcessContext

from lightning_decgan.strategy.exit_code import WORKER_LOST, tell_loss

__all__ = ["ChildObserver", "SpawnedWorkers", "bring_home", "end_after_parent"]

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5
"""Between two looks at the children of a script."""

GRACE_SECONDS = 3.0
"""That the others are given to end with an error of their own, which says more, before they are ended."""

PATIENCE_SECONDS = 10.0
"""That a worker which the others lost, but whose process is still there, is given to end after them."""

_ENDED_WELL = (0, WORKER_LOST)  # survivors say with the second that somebody else was lost


class ChildObserver(threading.Thread):
    """Looks after the processes that run a script beside the main one, from a thread of the main one.

    Args:
        children: the processes with the local ranks 1, 2, 3 ...; this process is the one with local rank 0.

    Attributes:
        lost: the exit code of every child that died while the survivors went on, by local rank; negative for a signal.
    """

    def __init__(self, children: Sequence[subprocess.Popen]) -> None:
        super().__init__(daemon=True, name="child-observer")
        self.lost: dict[int, int] = {}
        self._children = children
        self._survivors_go_on = False
        self._looking = threading.Lock()
        self._is_over = False

    @property
    def survivors_go_on(self) -> bool:
        """Whether a child that fails ends nobody but itself."""
        return self._survivors_go_on

    @survivors_go_on.setter
    def survivors_go_on(self, value: bool) -> None:
        self.look()  # what has happened by now is judged by what held until now
        self._survivors_go_on = value

    def run(self) -> None:
        """Look twice a second until all children have ended."""
        while self.look():
            time.sleep(LOOK_EVERY_SECONDS)

    def look(self) -> bool:
        """Look once.

        Returns:
            Whether there is still a child to look after.
        """
        with self._looking:
            if self._is_over:
                return False
            codes = {local_rank: child.poll() for local_rank, child in enumerate(self._children, start=1)}
            for local_rank, code in codes.items():
                if code is None or code in _ENDED_WELL or local_rank in self.lost:
                    continue
                if not self._survivors_go_on:
                    self._end_everybody(local_rank, code)
                    return False
                self.lost[local_rank] = code
                _tell(local_rank, code)
            return None in codes.values()

    def _end_everybody(self, local_rank: int, code: int) -> None:
        self._is_over = True
        log.error(
            "The worker with local rank %d %s, and the others cannot go on without it: all workers of this machine are "
            "ended.",
            local_rank,
            _describe(code),
        )
        end = threading.Timer(GRACE_SECONDS, self._kill_everybody)
        end.daemon = True
        end.start()

    def _kill_everybody(self) -> None:
        # SIGTERM would not end a process that waits in a collective.
        for child in self._children:
            child.send_signal(signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


class SpawnedWorkers:
    """Waits, in the process that spawned them, for all workers to end and for the results of one of them.

    Results come from the lowest worker that is left. Who that is, only this process can know: a worker that has
    finished says so and waits for the order to deliver (`bring_home`). So a worker that died is not waited for, and
    every other one delivers nothing.

    Args:
        context: of `torch.multiprocessing.start_processes`, not joined.
        pipes: to each worker, one end of a pipe whose other end is only the worker's.
        in_training: for each worker, whether it is training; the workers write it, in shared memory.

    Attributes:
        lost: the exit code of every worker that died while it was training, by local rank; negative for a signal.
    """

    def __init__(
        self, context: ProcessContext, pipes: Sequence[connection.Connection], in_training: Sequence[int]
    ) -> None:
        self.lost: dict[int, int] = {}
        self._context = context
        self._processes = context.processes
        self._pipes = dict(enumerate(pipes))
        self._in_training = in_training
        self._living = set(range(len(self._processes)))
        self._finished: set[int] = set()
        self._given_up: set[int] = set()  # by the workers that have finished
        self._killed: set[int] = set()
        self._asked: int | None = None
        self._results: list[Any] = []
        self._patient_until: float | None = None

    def wait(self) -> Any:
        """Wait for everybody.

        Returns:
            What the lowest worker that is left delivered.

        Raises:
            ProcessRaisedException, ProcessExitedException: as torch does, with the worker's traceback or exit code,
                when a worker failed outside training, or when all workers did and none is left; then the first one's.
            RuntimeError: the workers ended, with success, before they had finished.
        """
        while self._living:
            self._listen()
            self._give_orders()
        if not self._results:
            if self.lost:
                self._fail(next(iter(self.lost)))
            raise RuntimeError("workers must deliver their results, found that all of them ended before, with code 0")
        return self._results[0]

    def _listen(self) -> None:
        sentinels = {self._processes[worker].sentinel: worker for worker in sorted(self._living)}
        ready = connection.wait([*sentinels, *self._pipes.values()], self._patience_seconds())
        for worker, pipe in list(self._pipes.items()):  # what a worker said comes before its end
            if pipe in ready:
                self._read(worker, pipe)
        for sentinel, worker in sentinels.items():
            if sentinel in ready:
                self._has_ended(worker)
        if not ready:
            for worker in self._living - self._finished:
                log.warning("The worker with local rank %d was lost and does not end: it is killed.", worker)
                self._killed.add(worker)
                self._processes[worker].kill()

    def _read(self, worker: int, pipe: connection.Connection) -> None:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            del self._pipes[worker]
            return
        if worker == self._asked:
            self._results.append(message)
        else:
            self._finished.add(worker)
            self._given_up.update(message)

    def _has_ended(self, worker: int) -> None:
        process = self._processes[worker]
        process.join()
        del self._context.sentinels[process.sentinel]
        self._living.remove(worker)
        if worker == self._asked:
            self._asked = None
        if process.exitcode in _ENDED_WELL:
            return
        if not (self._in_training[worker] or worker in self._killed):
            self._fail(worker)
        self.lost[worker] = process.exitcode
        _tell(worker, process.exitcode)

    def _give_orders(self) -> None:
        if not self._results:
            candidates = {worker for worker in self._living if worker in self._finished or worker not in self._given_up}
            lowest = min(candidates, default=None)
            if self._asked is None and lowest in self._finished:
                self._asked = lowest
                self._order(lowest, True)
        else:
            for worker in self._finished & self._living & self._pipes.keys():
                self._order(worker, False)

    def _order(self, worker: int | None, deliver: bool) -> None:
        if worker in self._pipes:
            with suppress(OSError):  # it has died, and its sentinel will say so
                self._pipes[worker].send(deliver)
            if not deliver:
                del self._pipes[worker]

    def _patience_seconds(self) -> float | None:
        """How long to wait for workers that all who finished have lost; None, for ever, where some are still awaited.

        A process that is frozen would be waited for until somebody wakes it. One worker that was cut off, and has lost
        all the others, does not decide about them: it takes as many as are decided about.
        """
        remaining = self._living - self._finished - self._killed
        if not (self._results and remaining and remaining <= self._given_up and len(remaining) <= len(self._finished)):
            self._patient_until = None
            return None
        if self._patient_until is None:
            self._patient_until = time.monotonic() + PATIENCE_SECONDS
        return max(0.0, self._patient_until - time.monotonic())

    def _fail(self, worker: int) -> None:
        """Let torch end whoever is left and raise what this worker raised."""
        for pipe in self._pipes.values():
            pipe.close()
        self._context.sentinels = {self._processes[worker].sentinel: worker}
        self._context.join()


def bring_home(pipe: connection.Connection, given_up: Collection[int], results: Any) -> None:
    """Say, in a worker that has finished, that it has, and deliver the results if it is told to.

    Args:
        pipe: to the process that started this one.
        given_up: local ranks of the workers that this one has lost.
        results: a function that makes what to deliver, called at most once.
    """
    with suppress(EOFError, OSError):  # nobody waits any more
        pipe.send(set(given_up))
        while pipe.recv():
            # This process stays until it is told that the results have arrived: tensors travel in its shared memory.
            pipe.send(results())


def end_after_parent() -> None:
    """See to it, in a spawned worker, that it does not outlive the process that started it.

    Results would have nowhere to go, and nobody would end it. On Linux, torch has a spawned process interrupted
    (SIGINT) when its parent dies; a shell starts what stands in the background with that signal ignored, and then
    workers would train for ever. So the worker looks itself, gives an interrupt time to end it in order, and ends.
    """
    parent, number = parent_process(), os.getppid()
    if parent is None:
        return

    def watch() -> None:
        # A pipe tells of the parent's end, unless the other workers, forked, hold that pipe too; then the number does.
        while parent.is_alive() and os.getppid() == number:
            time.sleep(LOOK_EVERY_SECONDS)
        log.error("The process that started this worker is gone: the worker ends.")
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-observer").start()


def _tell(local_rank: int, code: int) -> None:
    log.warning("The worker with local rank %d %s. The others go on without it.", local_rank, _describe(code))
    tell_loss()


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
