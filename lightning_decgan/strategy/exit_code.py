"""The exit code that tells that a worker was lost, of a process whose script otherwise ends well.

Training goes on without a worker that died, and the script ends as scripts do, with 0. Whoever started it, a shell or a
batch system, should still learn that less was trained than was asked for. Nothing here knows about training.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

__all__ = ["WORKER_LOST", "tell_loss"]

WORKER_LOST = 75
"""The exit code: `EX_TEMPFAIL` of sysexits.h, "temporary failure, the user is invited to retry".

It is none that Python (1, 2), shells (126 and up) or signals (128 + n) use, and few programs use it for anything else.
"""

_exit = sys.exit


def tell_loss() -> None:
    """Let this process end with `WORKER_LOST`, if nothing worse ends it.

    Everything that happens at the end of a script still does: threads are waited for, functions registered with
    `atexit` run, logs and output are flushed. An exception that nobody catches and `sys.exit` with another code than 0
    keep their exit codes, and so does a signal. A bare `raise SystemExit(2)` cannot be told from `raise SystemExit(0)`
    and becomes `WORKER_LOST`. Processes forked afterwards end as they would have. Calling it twice is calling it once.

    Example:
        >>> import subprocess
        >>> script = "from lightning_decgan.strategy.exit_code import tell_loss; tell_loss(); print('done')"
        >>> ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        >>> ended.stdout.strip(), ended.returncode
        ('done', 75)
    """
    global _ending
    if _ending is None:
        _ending = _Ending()
        atexit.register(_ending.decide)


class _Ending:
    """How this process ends: looked at when its functions at exit run, acted upon when nothing is left to do.

    Not in one go, because a function at exit that ended the process would cut off those registered before it, and once
    they have all run Python has forgotten which error ended the script.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._error = _last_error()
        self._status: object = None
        self._last_act: _LastAct | None = None
        sys.exit = self._remember

    def _remember(self, status: object = None, /) -> NoReturn:
        self._status = status
        _exit(status)  # type: ignore[arg-type]

    def decide(self) -> None:
        if os.getpid() != self._process or _last_error() is not self._error:
            return
        # A code of its own is not left to Python: it may have been caught somewhere, and then Python ends with 0.
        if self._status is None or isinstance(self._status, int):
            self._last_act = _LastAct(self._status or WORKER_LOST)
        else:
            self._last_act = _LastAct(1)  # a message, which Python has printed


class _LastAct:
    """An object that is destroyed with the modules, when Python has flushed its files and is about to end."""

    def __init__(self, status: int) -> None:
        self._status = status & 0xFF

    def __del__(self, end=os._exit) -> None:  # type: ignore[no-untyped-def]  # bound now: `os` may be gone by then
        end(self._status)


def _last_error() -> BaseException | None:
    """The error that nobody caught and Python has printed; SystemExit is not one of them."""
    return getattr(sys, "last_value", None)


_ending: _Ending | None = None
