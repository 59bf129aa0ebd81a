"""`decgan` as a user starts it: in a process of its own, in an empty folder, with an environment of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory):
    """One cache of feature networks for all runs, not the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def start_decgan(feature_cache):
    """Starts `decgan WORDS` in a folder and returns the running process."""

    def start(*words, cwd, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "MASTER_"))}
        environment |= {"XDG_CACHE_HOME": str(feature_cache), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        search = [str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(search)
        return subprocess.Popen(
            [sys.executable, "-m", "lightning_decgan.cli.main", *words],
            cwd=cwd,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background ignores Ctrl-C, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture(scope="session")
def decgan(start_decgan):
    """Runs `decgan WORDS` in a folder and returns its exit code and what it printed."""

    def run(*words, cwd, timeout=240, **variables):
        with start_decgan(*words, cwd=cwd, **variables) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    return run
