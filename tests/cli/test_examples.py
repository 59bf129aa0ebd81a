"""The examples run as they are written, and every player changes on every worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.distributed.workers import free_port

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parents[2] / "examples"

# Lightning adds the callbacks of installed packages to every Trainer: this one watches the examples from outside.
WATCHER = """
import json
import os

import torch
from lightning.pytorch import Callback


class Watcher(Callback):
    def on_fit_start(self, trainer, module):
        self.start = {name: p.detach().clone() for name, p in module.named_parameters()}

    def on_fit_end(self, trainer, module):
        changed = [name for name, p in module.named_parameters() if not torch.equal(p, self.start[name])]
        found = {
            "changed": changed,
            "still": sorted(set(self.start) - set(changed)),
            "swaps": trainer.strategy.totals.swaps,
            "workers": trainer.world_size,
            "node": trainer.node_rank,
            "norm": float(sum(p.detach().double().square().sum() for p in module.parameters())),
        }
        with open(os.path.join(os.environ["WATCHED"], f"worker-{trainer.global_rank}.json"), "w") as file:
            json.dump(found, file)


def make():
    return [Watcher()]
"""


def _run(folder: Path, command: list[str], **variables: str) -> tuple[dict[int, dict[str, Any]], str]:
    """What every worker of an example found, and what the example printed."""
    package = folder / "watcher-1.0.dist-info"
    package.mkdir()
    (folder / "watcher_of_examples.py").write_text(WATCHER)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: watcher\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[lightning.pytorch.callbacks_factory]\nw = watcher_of_examples:make\n")
    watched = folder / "watched"
    watched.mkdir()
    environment = os.environ | {"PYTHONPATH": str(folder), "WATCHED": str(watched), "OMP_NUM_THREADS": "1"} | variables
    # A session of its own, so that nothing that an example starts outlives the test.
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        raise
    assert process.returncode == 0, output[-6000:]
    return {
        int(path.stem.removeprefix("worker-")): json.loads(path.read_text()) for path in watched.glob("*.json")
    }, output


def _assert_trained(workers: dict[int, dict[str, Any]], count: int, players: tuple[str, ...]) -> None:
    assert sorted(workers) == list(range(count))
    for worker in workers.values():
        assert worker["workers"] == count
        assert worker["swaps"] > 0
        for player in players:
            changed = [name for name in worker["changed"] if name.startswith(player)]
            assert changed, f"{player} did not change: {worker}"
            assert not [name for name in worker["still"] if name.startswith(player)]
    assert len({worker["norm"] for worker in workers.values()}) == 1, "the consensus on every worker"


def test_an_existing_gan_with_one_line_changed(tmp_path: Path) -> None:
    source = (EXAMPLES / "01_existing_gan.py").read_text()
    assert "import lightning_decgan" not in source
    assert "from lightning_decgan" not in source
    assert source.count('strategy="decentralized_gossip",  # the only line that changes') == 1
    workers, output = _run(
        tmp_path, [sys.executable, str(EXAMPLES / "01_existing_gan.py"), "--epochs", "1", "--workers", "2"]
    )
    _assert_trained(workers, 2, ("generator.", "discriminator."))
    picture = Image.open(tmp_path / "outputs" / "01_existing_gan" / "digits.png")
    assert picture.size == (640, 640)
    assert len(picture.getcolors(256)) > 20, "grey levels"
    assert "drawn by the average of 2 workers: outputs/01_existing_gan/digits.png" in output


def test_a_decentralized_gan_in_thirty_lines(tmp_path: Path) -> None:
    workers, output = _run(
        tmp_path, [sys.executable, str(EXAMPLES / "02_decentralized_gan.py"), "--epochs", "1", "--workers", "4"]
    )
    _assert_trained(workers, 4, ("generator.", "discriminator.", "ema_generator."))
    pictures = sorted((tmp_path / "outputs" / "02_decentralized_gan" / "samples").glob("*.png"))
    assert len(pictures) >= 1
    assert Image.open(pictures[-1]).size[0] > 300
    assert "samples of the average of all workers" in output


def test_a_classifier(tmp_path: Path) -> None:
    workers, output = _run(
        tmp_path, [sys.executable, str(EXAMPLES / "03_classifier.py"), "--epochs", "3", "--workers", "2"]
    )
    _assert_trained(workers, 2, ("network.",))
    (line,) = [line for line in output.splitlines() if line.startswith("accuracy of the average of 2 workers: ")]
    assert float(line.rsplit(" ", 1)[1]) > 0.7, "ten classes; chance is 0.1"


def test_two_nodes_under_torchrun(tmp_path: Path) -> None:
    workers, output = _run(
        tmp_path, ["bash", str(EXAMPLES / "04_two_nodes.sh"), "--epochs", "1"],
        PYTHON=sys.executable, PORT=str(free_port()), WORKERS_PER_NODE="1",
    )  # fmt: skip
    _assert_trained(workers, 2, ("generator.", "discriminator.", "ema_generator."))
    assert sorted(worker["node"] for worker in workers.values()) == [0, 1]
    assert list((tmp_path / "outputs" / "04_two_nodes" / "samples").glob("*.png"))
    for node in range(2):
        assert f"node {node}, worker {node} of 2: done" in output


def test_every_example_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.iterdir():
        if file.suffix in (".py", ".sh"):
            assert f"[{file.name}]({file.name})" in table
