"""What holds for every test: an environment variable that a test sets is gone when the test is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# What Lightning and pytest set in the process that makes a Trainer, and never take back.
_SET_BY_OTHERS = {
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_ORDER",
    "GLOO_SOCKET_IFNAME",
    "GROUP_RANK",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "OMP_NUM_THREADS",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "RANK",
    "WORLD_SIZE",
}


@pytest.fixture(autouse=True)
def no_environment_variable_leaks() -> Iterator[None]:
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    for name in changed - {"PYTEST_CURRENT_TEST"}:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    leaked = sorted(
        name
        for name in changed - _SET_BY_OTHERS
        if not name.startswith(("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_"))
    )
    assert not leaked, f"the test leaves these environment variables changed: {leaked}"
