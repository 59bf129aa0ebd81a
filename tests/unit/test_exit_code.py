"""A script that ends well although a worker was lost says so by its exit code, and nothing else changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_decgan.strategy import exit_code

# The file alone, without torch: it needs nothing but Python.
PREAMBLE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("exit_code", {exit_code.__file__!r})
exit_code = importlib.util.module_from_spec(spec)
sys.modules["exit_code"] = exit_code
spec.loader.exec_module(exit_code)
tell_loss = exit_code.tell_loss
"""


def run(script: str, *, preamble: str = PREAMBLE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", preamble + script], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit()",
        "sys.exit(0)",
        "sys.exit(None)",
        "raise SystemExit",
        "raise SystemExit(0)",
        "exit_code.tell_loss()",
        "import threading; threading.Thread(target=tell_loss).start()",
        "import threading; threading.Thread(target=lambda: 1 / 0).start()",
        "try: 1 / 0\nexcept ZeroDivisionError: pass",
        "keep = []; keep.append(keep)",
    ],
)
def test_a_script_that_ends_well_tells_the_loss(ending: str) -> None:
    assert run(f"tell_loss()\n{ending}").returncode == exit_code.WORKER_LOST


def test_a_script_without_a_loss_ends_with_0() -> None:
    assert run("").returncode == 0


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise ValueError('no')", 1),
        ("sys.exit(3)", 3),
        ("sys.exit(True)", 1),
        ("sys.exit('a message')", 1),
        ("sys.exit(-1)", 255),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("def f():\n  try: sys.exit(4)\n  finally: print('f')\nf()", 4),
        ("import argparse; argparse.ArgumentParser().parse_args(['--what'])", 2),
    ],
)
def test_a_worse_ending_keeps_its_code(ending: str, code: int) -> None:
    assert run(f"tell_loss()\n{ending}").returncode == run(ending).returncode == code


def test_the_last_exit_that_was_asked_for_counts() -> None:
    caught = "try: sys.exit(3)\nexcept SystemExit: pass\n"
    assert run(f"tell_loss()\n{caught}sys.exit(0)").returncode == exit_code.WORKER_LOST
    assert run(f"tell_loss()\n{caught}sys.exit(5)").returncode == 5


def test_an_error_printed_before_the_loss_did_not_end_the_script() -> None:
    # what an interactive session leaves behind
    assert run("sys.last_value = ValueError()\ntell_loss()").returncode == exit_code.WORKER_LOST


def test_messages_still_appear() -> None:
    assert "a message" in run("tell_loss()\nsys.exit('a message')").stderr
    assert "ValueError: no" in run("tell_loss()\nraise ValueError('no')").stderr


def test_everything_that_happens_at_the_end_of_a_script_still_does(tmp_path: Path) -> None:
    ended = run(
        f"""
import atexit, logging, logging.handlers, tempfile, threading, time
atexit.register(print, "registered before")
file = logging.FileHandler({str(tmp_path / "log")!r})
logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, target=file))
folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r}, prefix="temporary")
tell_loss()
atexit.register(print, "registered after")
logging.warning("what happened")
threading.Thread(target=lambda: (time.sleep(0.3), print("a thread"))).start()
sys.stderr.write("no end of line")
print("done")
"""
    )
    assert ended.returncode == exit_code.WORKER_LOST
    assert ended.stdout.splitlines() == ["done", "a thread", "registered after", "registered before"]
    assert ended.stderr.startswith("no end of line")
    assert "what happened" in (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("temporary*"))


def test_a_forked_process_ends_as_it_would_have() -> None:
    script = """
import os
tell_loss()
if os.fork() == 0:
    sys.exit()
_, status = os.wait()
print(os.waitstatus_to_exitcode(status))
"""
    ended = run(script)
    assert (ended.stdout, ended.returncode) == ("0\n", exit_code.WORKER_LOST)


@pytest.mark.parametrize(("ending", "code"), [("", exit_code.WORKER_LOST), ("raise ValueError", 1)])
def test_a_spawned_process_tells_it_too(tmp_path: Path, ending: str, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"{PREAMBLE}\nimport multiprocessing\ndef work():\n    tell_loss()\n    {ending or 'pass'}\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n    process.join()\n    sys.exit(process.exitcode)\n"
    )
    assert subprocess.run([sys.executable, script], timeout=60, check=False, capture_output=True).returncode == code


def test_a_process_full_of_torch_and_lightning_ends_in_the_same_way() -> None:
    script = """
import torch, lightning
from lightning_decgan.strategy.exit_code import tell_loss
trainer = lightning.Trainer(accelerator="cpu", logger=False, barebones=True)
torch.randn(64, 64, requires_grad=True).mm(torch.ones(64, 64)).sum().backward()
tell_loss()
print("done")
"""
    ended = run(script, preamble="")
    assert ended.stdout.splitlines()[-1] == "done"
    assert ended.returncode == exit_code.WORKER_LOST, ended.stderr


def test_the_code_is_nobody_elses() -> None:
    assert exit_code.WORKER_LOST == os.EX_TEMPFAIL
    assert exit_code.WORKER_LOST not in {0, 1, 2, *range(126, 256)}
