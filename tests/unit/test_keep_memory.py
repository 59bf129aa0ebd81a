"""Freed memory stays with a process that asked for it, and the page faults of a step go away."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lightning_decgan import memory
from lightning_decgan.callbacks import KeepMemory
from lightning_decgan.callbacks import keep_memory as callback
from lightning_decgan.gan import DecentralizedGANModule, module
from lightning_decgan.gan.networks import DCGANDiscriminator, DCGANGenerator

FAULTS = """
import resource, sys, torch
from lightning_decgan.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    return [torch.ones(10 << 20) for _ in range(3)]  # 40 MiB each: glibc by itself keeps nothing above 32
for _ in range(10):  # until the blocks have found their places
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_a_step_finds_the_memory_of_the_last_one():
    def faults(how):
        words = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout)

    kept, given_back = faults("keep"), faults("plain")
    # Ten steps of three blocks. One block may still be laid out anew, where free memory happened to be in pieces.
    assert given_back > 10 * max(kept, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
@pytest.mark.parametrize(("most", "kept"), [(2**40, True), (2**25, True), (0, False)])
def test_an_older_c_library_keeps_what_it_can(monkeypatch, most, kept):
    asked = []

    def mallopt(option, size):
        asked.append(option)
        return int(option != memory._M_MMAP_THRESHOLD or size <= most)

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert memory.keep_freed_memory.__wrapped__() == kept
    assert memory._M_TRIM_THRESHOLD in asked
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not memory.keep_freed_memory.__wrapped__(), "musl"


@pytest.mark.parametrize(("device", "asked"), [("cpu", 1), ("meta", 0)])
def test_the_callback_asks_on_the_cpu_only(monkeypatch, device, asked):
    calls = []
    monkeypatch.setattr(callback, "keep_freed_memory", lambda: calls.append(1))
    KeepMemory().on_train_start(None, SimpleNamespace(device=torch.device(device)))
    assert len(calls) == asked


@pytest.mark.parametrize(
    ("settings", "device", "asked"), [({}, "cpu", 1), ({"keep_memory": False}, "cpu", 0), ({}, "meta", 0)]
)
def test_a_gan_asks_by_itself_on_the_cpu_unless_told_not_to(monkeypatch, settings, device, asked):
    calls = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: calls.append(1))
    gan = DecentralizedGANModule(DCGANGenerator(image_size=8), DCGANDiscriminator(image_size=8), **settings)
    gan.to(device).on_train_start()
    assert len(calls) == asked
