"""One user's script, started in every way that Lightning knows: both players change on every worker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.workers import free_port

pytestmark = pytest.mark.processes

BATCHES = 6

# A plain script: it neither imports lightning_decgan nor knows how it is started.
SCRIPT = '''
import json
import os
import sys

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

sys.path.insert(0, os.environ["REPOSITORY"])
from tests.distributed.models import UsersGAN


class Note(Callback):
    """Writes a file per worker, from within the worker: a spawned one returns nothing."""

    def on_fit_start(self, trainer, module):
        with open(os.path.join(os.environ["FOLDER"], f"pid-{trainer.global_rank}.txt"), "w") as file:
            file.write(str(os.getpid()))
        self.start = {name: p.detach().clone() for name, p in module.named_parameters()}

    def on_fit_end(self, trainer, module):
        changed = [name for name, p in module.named_parameters() if not torch.equal(p, self.start[name])]
        with open(os.path.join(os.environ["FOLDER"], f"worker-{trainer.global_rank}.json"), "w") as file:
            json.dump({
                "changed": changed,
                "swaps": trainer.strategy.totals.swaps,
                "world_size": trainer.world_size,
                "node": trainer.node_rank,
                "local_rank": trainer.local_rank,
                "strategy": type(trainer.strategy).__name__,
                "norm": float(sum(p.detach().double().square().sum() for p in module.parameters())),
            }, file)


if __name__ == "__main__":
    seed_everything(1)
    arguments = json.loads(os.environ["TRAINER"])
    trainer = Trainer(**{
        "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 6, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0,
        "callbacks": [Note()], **arguments,
    })
    gan = UsersGAN()
    if "spawn" in arguments["strategy"]:
        gan.discriminator[0] = torch.nn.Linear(16, 24)  # torch refuses to pickle parametrized layers
    trainer.fit(gan)
'''


class Run:
    """The script in a folder, and the processes started with it, none of which outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        (folder / "train.py").write_text(SCRIPT)

    def start(self, command: list[str], trainer: dict[str, Any], **variables: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
        environment |= {
            "REPOSITORY": str(Path(__file__).parents[2]), "FOLDER": str(self.folder), "OMP_NUM_THREADS": "1",
            "TRAINER": json.dumps(trainer),
        }  # fmt: skip
        output = (self.folder / f"output-{len(self.processes)}.txt").open("w")
        process = subprocess.Popen(
            [*command, str(self.folder / "train.py")],
            env=environment | variables,
            cwd=self.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)

    def finish(self, timeout_seconds: float = 200.0) -> dict[int, dict[str, Any]]:
        try:
            codes = [process.wait(timeout_seconds) for process in self.processes]
        finally:
            self.end()
        output = "\n".join(path.read_text() for path in sorted(self.folder.glob("output-*.txt")))
        assert codes == [0] * len(codes), output[-6000:]
        return {
            int(path.stem.removeprefix("worker-")): json.loads(path.read_text())
            for path in self.folder.glob("worker-*.json")
        }

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()


def _assert_trained(workers: dict[int, dict[str, Any]], count: int) -> None:
    assert sorted(workers) == list(range(count))
    for worker in workers.values():
        assert worker["strategy"] == "DecentralizedGossipStrategy"
        assert worker["world_size"] == count
        for player in ("generator.", "discriminator.", "ema."):
            changed = [name for name in worker["changed"] if name.startswith(player)]
            assert len(changed) >= 3, f"{player} {worker}"
        # Overlapped, the last exchange is in flight when training ends; of two workers each has one neighbour.
        assert worker["swaps"] == (BATCHES - 1 if count == 2 else 0)
    assert len({worker["norm"] for worker in workers.values()}) == 1, "fit ends with the consensus on every worker"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("name", ["decentralized_gossip", "decentralized_gossip_spawn", "decentralized_gossip_fork"])
def test_lightning_starts_the_workers(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path)
    run.start([sys.executable], {"strategy": name, "devices": 2})
    _assert_trained(run.finish(), 2)


def test_spawned_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    """A shell ignores SIGINT for what it starts in the background, and that is what torch sends to orphans."""
    run = Run(tmp_path)
    in_background = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable]
    run.start(in_background, {"strategy": "decentralized_gossip_spawn", "devices": 2, "max_epochs": -1})
    try:
        workers = [_read_number(tmp_path / f"pid-{worker}.txt") for worker in range(2)]
        assert all(map(_lives, workers))
        run.processes[0].kill()
        run.processes[0].wait()
        deadline = time.monotonic() + 30.0
        while any(map(_lives, workers)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(map(_lives, workers))
        assert "The process that started this worker is gone" in (tmp_path / "output-0.txt").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.processes[0].pid, 9)


def _read_number(path: Path) -> int:
    deadline = time.monotonic() + 120.0
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.1)
    return int(path.read_text())


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("strategy", ["decentralized_gossip", "decentralized_gossip_spawn"])
def test_a_worker_alone_trains_and_gossips_with_nobody(tmp_path: Path, strategy: str) -> None:
    run = Run(tmp_path)
    run.start([sys.executable], {"strategy": strategy, "devices": 1})
    _assert_trained(run.finish(), 1)


def test_torchrun_starts_the_workers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start([*TORCHRUN, "--standalone", "--nproc-per-node", "2"], {"strategy": "decentralized_gossip", "devices": 2})
    _assert_trained(run.finish(), 2)


def test_two_torchruns_are_two_nodes(tmp_path: Path) -> None:
    run, port = Run(tmp_path), free_port()
    for node in range(2):
        run.start(
            [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node), "--rdzv-backend", "c10d",
             "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "two-nodes"],
            {"strategy": "decentralized_gossip", "devices": 1, "num_nodes": 2},
        )  # fmt: skip
    workers = run.finish()
    _assert_trained(workers, 2)
    assert sorted(worker["node"] for worker in workers.values()) == [0, 1]
    assert [worker["local_rank"] for worker in workers.values()] == [0, 0]


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 1)])
def test_slurm_starts_the_workers(tmp_path: Path, nodes: int, per_node: int) -> None:
    run, port = Run(tmp_path), free_port()
    for task in range(2):
        run.start(
            [sys.executable],
            {"strategy": "decentralized_gossip", "devices": per_node, "num_nodes": nodes},
            SLURM_JOB_ID="4711", SLURM_JOB_NAME="gan", SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE=str(per_node),
            SLURM_NNODES=str(nodes), SLURM_PROCID=str(task), SLURM_LOCALID=str(task % per_node),
            SLURM_NODEID=str(task // per_node), SLURM_NODELIST="127.0.0.1", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )  # fmt: skip
    workers = run.finish()
    _assert_trained(workers, 2)
    assert sorted(worker["node"] for worker in workers.values()) == sorted(task // per_node for task in range(2))
