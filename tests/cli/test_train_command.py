"""`decgan train` as a user starts it: what a run and a sweep leave behind, and what bad input is answered with."""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def run(decgan, tmp_path_factory):
    """Two workers that gossip for four batches, through everything that a real run passes through."""
    folder = tmp_path_factory.mktemp("run")
    result = decgan("train", "debug=default", "strategy.rounds=2", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def only(folder):
    (entry,) = folder.iterdir()
    return entry


def run_folder(folder):
    return only(only(only(folder)))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.processes
def test_a_run_leaves_one_folder_with_everything_in_it(run):
    folder, _ = run
    assert only(folder).name == "outputs", "nothing else appears where the command was started"
    entries = {path.name for path in run_folder(folder).iterdir()}
    assert entries == {
        *("config.yaml", ".hydra", "train.log", "csv", "tensorboard", "samples", "checkpoints", "summary.json"),
        "curves.png",
    }
    for path in sorted((run_folder(folder) / "samples").iterdir()):
        with Image.open(path) as image:
            image.verify()
    assert [path.name for path in sorted((run_folder(folder) / "samples").iterdir())] == [
        f"step-00000{step}-consensus.png" for step in (0, 2, 4)
    ]


@pytest.mark.processes
def test_the_summary_tells_of_all_workers(run):
    summary = summary_of(run_folder(run[0]))
    told = (summary["status"], summary["workers"], summary["topology"], summary["rounds"])
    assert told == ("finished", 2, "one_peer_exponential", 2)
    assert (summary["steps"], summary["images_seen"]) == (4, 2 * 4 * 8)
    assert summary["spectral_gap"] == pytest.approx(1.0)
    assert len(summary["bytes_sent_per_worker"]) == 2
    assert summary["bytes_sent_per_worker"][0] == summary["bytes_sent_per_worker"][1] > 0
    assert summary["consensus_distance"] > 0
    assert summary["features"] == "digits_cnn"
    assert summary["scores"] != summary["scores_before"]


@pytest.mark.processes
def test_the_rival_trains_the_same_networks_parametrized_ones_too(decgan, tmp_path):
    result = decgan("train", "debug=default", "strategy=ddp", "model=dcgan_spectral", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = summary_of(run_folder(tmp_path))
    assert (summary["status"], summary["workers"], summary["topology"]) == ("finished", 2, None)


@pytest.mark.processes
def test_the_metrics_are_in_csv_and_in_tensorboard(run):
    folder = run_folder(run[0])
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("d_loss", "gossip/megabytes_sent", "gossip/neighbor_distance", "gossip/consensus_distance"):
        assert any(row[name] for row in rows), name
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert "fidelity/digits_cnn/frechet_distance" in events.Tags()["scalars"]
    assert [image.step for image in events.Images("samples/consensus")] == [0, 2, 4]


@pytest.mark.processes
def test_the_configuration_of_a_run_is_resolved_and_names_its_own_folder(run):
    folder = run_folder(run[0])
    text = (folder / "config.yaml").read_text()
    assert "${" not in text
    config = OmegaConf.create(text)
    assert Path(config.run_dir) == folder
    assert config.strategy.rounds == 2
    assert config.callbacks.sample_grid.dirpath == f"{folder}/samples"


@pytest.mark.processes
def test_the_last_words_are_where_the_results_are_and_how_good(run):
    folder, result = run
    lines = result.stdout.strip().splitlines()
    assert lines[-1] == f"summary:    {run_folder(folder) / 'summary.json'}"
    assert f"samples:    {run_folder(folder) / 'samples' / 'step-000004-consensus.png'}" in lines
    assert f"best:       {run_folder(folder) / 'checkpoints' / 'best.ckpt'}" in lines
    assert f"curves:     {run_folder(folder) / 'curves.png'}" in lines
    assert any(
        line.startswith("frechet_distance (features: digits_cnn): ") and " before, " in line and " after" in line
        for line in lines
    )
    assert "Traceback" not in result.stderr


@pytest.mark.processes
def test_a_run_goes_on_from_its_checkpoint_and_the_checkpoint_unpickles_nothing(run, decgan, tmp_path):
    checkpoint = run_folder(run[0]) / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert "_target_" in content["decgan"]
    assert len(content["decgan_split"]) == 64
    result = decgan("train", "debug=default", "strategy.rounds=2", "steps=6", f"ckpt_path={checkpoint}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "other images are held back" not in result.stderr
    before, after = summary_of(run_folder(run[0])), summary_of(run_folder(tmp_path))
    assert (after["steps"], after["images_seen"]) == (6, 2 * 6 * 8)
    assert after["scores_before"] == before["scores_before"]


@pytest.mark.processes
def test_the_best_checkpoint_is_that_of_the_best_score(run):
    folder = run_folder(run[0])
    kept = {name: torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")}
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["fidelity/digits_cnn/frechet_distance"]]
    best = min(rows, key=lambda row: float(row["fidelity/digits_cnn/frechet_distance"]))
    assert kept["best"]["batches_seen"] == int(best["step"]) + 1
    assert kept["last"]["batches_seen"] == 4
    assert (folder / "checkpoints" / "best.ckpt.workers").is_dir()


@pytest.mark.processes
def test_the_workers_of_a_run_are_drawn_side_by_side(run, decgan, tmp_path):
    checkpoint = run_folder(run[0]) / "checkpoints" / "last.ckpt"
    result = decgan("sample", str(checkpoint), "--per-worker", "-o", "workers.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["worker 0", "worker 1"]
    assert all(0 < float(line.split()[2]) < 1 for line in lines[:2]), "near each other, and not the same"


@pytest.mark.processes
def test_the_consensus_and_each_worker_of_a_run_can_be_scored(run, decgan, tmp_path):
    checkpoint = run_folder(run[0]) / "checkpoints" / "last.ckpt"
    words = ("--per-worker", "--scorer", "torchmetrics", "--samples", "200", "--json", "scores.json")
    result = decgan("evaluate", str(checkpoint), *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "scores.json").read_text())
    own = [entry["scores"]["frechet_distance"] for entry in found["workers"]]
    assert len({found["scores"]["frechet_distance"], *own}) == 3, "two workers that differ, and their mean"


@pytest.mark.processes
def test_a_sweep_is_one_folder_with_a_folder_for_each_run(decgan, tmp_path):
    words = ("topology=ring,complete", "seed=1,2", "steps=2", "~callbacks.fidelity")
    result = decgan("train", "-m", "debug=default", *words, cwd=tmp_path, timeout=500)
    assert result.returncode == 0, result.stderr
    assert only(tmp_path).name == "multirun"
    sweep = run_folder(tmp_path)
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "2", "3", "multirun.yaml"}
    ran = [(summary_of(sweep / name)["topology"], OmegaConf.load(sweep / name / "config.yaml").seed) for name in "0123"]
    assert ran == [("ring", 1), ("ring", 2), ("complete", 1), ("complete", 2)]
    assert {summary_of(sweep / name)["status"] for name in "0123"} == {"finished"}


@pytest.mark.processes
def test_a_sweep_with_two_runs_at_a_time_keeps_them_apart(decgan, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("seed=1,2", "steps=2", "~callbacks.fidelity", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    result = decgan("train", "-m", "debug=default", *words, cwd=tmp_path, timeout=500)
    assert result.returncode == 0, result.stderr
    assert only(tmp_path).name == "multirun"
    sweep = run_folder(tmp_path)
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml"}
    for name in "01":
        assert summary_of(sweep / name)["status"] == "finished"
        assert (sweep / name / "checkpoints" / "last.ckpt").is_file()


def test_one_worker_alone_trains_too(decgan, tmp_path):
    result = decgan("train", "debug=default", "strategy=single", "logger=csv", "~callbacks.fidelity", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = summary_of(run_folder(tmp_path))
    assert (summary["workers"], summary["topology"], summary["steps"]) == (1, None, 4)
    assert summary["last_sample_grid"].endswith("step-000004-model.png")


@pytest.mark.processes
def test_workers_with_classes_of_their_own_are_told_of(decgan, tmp_path):
    result = decgan("train", "debug=default", "partition=by_label", "~callbacks.fidelity", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = summary_of(run_folder(tmp_path))["data"]
    assert (data["name"], data["partition"]) == ("digits", "by_label")
    first, second = data["class_histogram_per_worker"]
    assert [bool(one) + bool(other) for one, other in zip(first, second, strict=True)] == [1] * 10
    table = [line.split() for line in result.stderr.splitlines() if line.split()[:1] in (["worker"], ["0"], ["1"])]
    assert [line[1] for line in table] == ["images", str(sum(first)), str(sum(second))]


def test_an_option_that_does_not_exist_is_answered_with_those_that_do(decgan, tmp_path):
    result = decgan("train", "topology=triangle", cwd=tmp_path)
    assert result.returncode == 1
    assert "Could not find 'topology/triangle'" in result.stderr
    assert "one_peer_exponential" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_cannot_be_used_is_said_in_one_line_before_any_worker_starts(decgan, tmp_path):
    words = ("train", "debug=default", "callbacks=none", "strategy.rounds=0")
    result = decgan(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert "strategy: rounds must be an integer >= 1, found 0" in result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert "Initializing distributed" not in result.stderr + result.stdout
    asked_for_more = decgan(*words, cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert asked_for_more.returncode == 2
    assert "Traceback" in asked_for_more.stderr
    assert "check_settings" in asked_for_more.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["batch_size=4000"], "data: batch_size=4000 on 2 worker(s) needs at least 8000 training images, found 1438"),
        (
            ["callbacks.fidelity.samples=1000", "callbacks.fidelity.kernel_subset_size=500"],
            "callbacks.fidelity: kernel_subset_size=500 needs at least that many validation images, found 359",
        ),
        (["model.schedule=extragradient"], "found schedule='extragradient' with OptimisticAdam"),
        (["model.optimizer=Muon"], "model.optimizer or model.lr_scheduler: Muon only supports 2D parameters"),
    ],
    ids=str,
)
def test_too_few_images_and_settings_that_do_not_fit_end_a_run_before_any_worker_starts(
    decgan, tmp_path, words, reason
):
    result = decgan("train", "debug=default", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert "Initializing distributed" not in result.stderr + result.stdout


@pytest.mark.parametrize(("command", "code"), [(("train", "debug=default"), 2), (("evaluate", "run.ckpt"), 1)], ids=str)
def test_a_torchvision_that_was_built_for_another_torch_is_named(decgan, tmp_path, command, code):
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "site" / "torchvision-0.99.dist-info").mkdir()
    (tmp_path / "site" / "torchvision-0.99.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.99\n")
    (tmp_path / "run.ckpt").write_bytes(b"")
    result = decgan(*command, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(package.parent), *sys.path]))
    assert result.returncode == code
    assert f"torchvision 0.99 was not built for torch {torch.__version__}" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_accident_in_a_run_ends_it_with_a_code_a_reason_and_a_summary_that_says_so(decgan, tmp_path):
    words = ["model.optimizer=SGD", "model.discriminator_lr=1e38", "model.generator_lr=1e38", "~callbacks.fidelity"]
    result = decgan("train", "debug=default", *words, cwd=tmp_path)
    assert result.returncode == 1
    assert "terminate_on_nan=False" in result.stderr
    summary = summary_of(run_folder(tmp_path))
    assert summary["status"] == "failed"
    assert "terminate_on_nan=False" in summary["error"]
    assert "training failed: " in (run_folder(tmp_path) / "train.log").read_text()


@pytest.mark.processes
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_end_takes_its_workers_with_it(start_decgan, tmp_path, number, code):
    words = ("steps=1000000", "validate_every_steps=1000000", "~callbacks.fidelity", "~callbacks.progress_bar")
    with start_decgan("train", "debug=default", *words, cwd=tmp_path) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob("outputs/*/*/samples/step-000000-*.png")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
            assert len(workers) == 2
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    summary = summary_of(run_folder(tmp_path))
    assert (summary["status"], summary["workers"]) == ("failed", 2)


@pytest.mark.processes
def test_a_run_that_is_killed_leaves_the_checkpoint_of_its_last_validation(start_decgan, tmp_path):
    words = ("steps=1000000", "validate_every_steps=5", "~callbacks.fidelity", "~callbacks.progress_bar")
    with start_decgan("train", "debug=default", *words, cwd=tmp_path) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob("outputs/*/*/samples/step-000010-*.png")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.terminate()
            process.wait(60)
        finally:
            process.kill()
    kept = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    assert torch.load(kept, weights_only=True)["batches_seen"] >= 5
    assert [path.name for path in kept.parent.glob("*.ckpt")] == ["last.ckpt"], "no scores, no best one"


def test_options_of_ones_own_are_found_in_a_folder_of_ones_own(decgan, tmp_path):
    mine = tmp_path / "mine" / "topology"
    mine.mkdir(parents=True)
    (mine / "pair.yaml").write_text("_target_: lightning_decgan.topology.Torus\nworkers: ${workers}\n")
    result = decgan("train", "--config-dir", "mine", "topology=pair", "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert OmegaConf.create(result.stdout).topology._target_ == "lightning_decgan.topology.Torus"


def test_help_answers_at_once_and_names_the_groups(decgan, tmp_path):
    result = decgan("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "lightning_decgan.cli.errors" in imported
    assert not imported & {"torch", "lightning", "hydra"}, "they take seconds"
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("train", "sample", "evaluate", "topology"))
    groups = decgan("train", "--help", cwd=tmp_path)
    assert groups.returncode == 0
    assert "topology: complete, exponential, hypercube" in groups.stdout
    assert decgan("--version", cwd=tmp_path).stdout.startswith("decgan 0.")
    wrong = decgan("paint", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "decgan: error: unknown command 'paint'; "
        "there are train, sample, interpolate, evaluate, curves, timeline, topology\n"
    )
    assert list(tmp_path.iterdir()) == []
