"""`decgan evaluate` beyond one table: each worker, other scorers and features, copies of training images."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from lightning_decgan.cli import checkpoint as checkpoints
from lightning_decgan.cli import evaluation
from lightning_decgan.cli.checkpoint import EmbedConfig, load_trained, worker_weights
from lightning_decgan.cli.errors import UsageError
from lightning_decgan.cli.evaluation import evaluate, memorization_report
from lightning_decgan.cli.generated import generated_batches, generated_images
from lightning_decgan.cli.main import main
from lightning_decgan.data import DigitsDataModule, ImageFolderDataModule, InMemoryImages
from lightning_decgan.metrics import ClassifierFeatures, ExtractorFeatures, extractors, real_features
from tests.checkpoints import tiny_checkpoint, with_shards


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def scored(feature_cache, tmp_path, monkeypatch, capsys):
    """Runs `decgan evaluate WORDS --json ...` and returns the file's content and what was printed, in one line."""
    monkeypatch.setenv("COLUMNS", "250")

    def run(*words):
        path = tmp_path / "scores.json"
        common = ["--samples", "150", "--cache-dir", str(feature_cache), "--json", str(path)]
        assert main(["evaluate", *map(str, words), *common]) == 0
        return json.loads(path.read_text()), " ".join(capsys.readouterr().out.split())

    return run


def fails(capsys, *words):
    """The one line that `decgan evaluate WORDS` ends with."""
    assert main(["evaluate", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("decgan evaluate: error: ")


def test_each_worker_is_scored_by_its_own_weights(checkpoint, tmp_path, scored):
    path = with_shards(checkpoint, tmp_path / "run.ckpt", [1.0, 0.5, 1.0])
    result, printed = scored(path, "--per-worker", "--scorer", "torchmetrics")
    own = [entry["scores"] for entry in result["workers"]]
    assert [entry["worker"] for entry in result["workers"]] == [0, 1, 2]
    assert own[0] == own[2] == result["scores"], "these have the weights of the consensus"
    assert own[1] != own[0]
    for name in ("consensus", "worker 0", "worker 1", "worker 2", "frechet_distance", "lower is better"):
        assert name in printed
    assert f"{own[1]['frechet_distance']:.5g}" in printed
    alone, _ = scored(path, "--scorer", "torchmetrics")
    assert alone["scores"] == result["scores"]
    assert "workers" not in alone


def test_the_workers_that_are_left_keep_their_numbers(checkpoint, tmp_path, scored):
    path = with_shards(checkpoint, tmp_path / "run.ckpt", [1.0, 0.5], workers=[1, 3])
    result, printed = scored(path, "--per-worker", "--scorer", "torchmetrics")
    assert [entry["worker"] for entry in result["workers"]] == [1, 3]
    assert "worker 3" in printed
    assert "worker 0" not in printed


def test_the_share_of_each_class_is_told_where_the_network_knows_the_classes(checkpoint, scored):
    result, printed = scored(checkpoint, "--scorer", "torchmetrics")
    shares = result["classes"]
    assert list(shares) == [str(digit) for digit in range(10)]
    assert sum(shares.values()) == pytest.approx(1)
    least = min(shares, key=shares.get)
    assert f"classes as digits_cnn sees the samples: from {least}, {100 * shares[least]:.1f} %, to" in printed


def test_the_part_that_is_scored_against_is_named_and_must_exist(checkpoint, scored, capsys, feature_cache):
    result, printed = scored(checkpoint, "--scorer", "torchmetrics")
    assert result["part"] == "validation"
    assert "against 359 validation images of digits" in printed
    line = fails(capsys, checkpoint, "--part", "test", "--samples", 150, "--cache-dir", feature_cache)
    assert line == "part test is not to be had: digits has no test set of its own; use validation"


def test_a_checkpoint_without_workers_says_so(checkpoint, capsys, feature_cache):
    line = fails(capsys, checkpoint, "--per-worker", "--samples", 150, "--cache-dir", feature_cache)
    assert line.endswith("was not saved by a decentralized run of decgan train; leave out --per-worker")


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "its shard .* is missing"), ("altered", "has been altered"), ("empty", "'state_dict'")],
)
def test_a_workers_shard_that_cannot_be_used_is_named(checkpoint, tmp_path, damage, message):
    path = with_shards(checkpoint, tmp_path / "run.ckpt", [1.0, 0.5])
    (shard,) = (tmp_path / "run.ckpt.workers").glob("worker-1.*")
    trained = load_trained(path)
    if damage == "missing":
        shard.unlink()
    elif damage == "altered":
        raw = bytearray(shard.read_bytes())
        raw[-1] ^= 1
        shard.write_bytes(raw)
    else:
        trained.shards[1] = checkpoints.checkpoints.write_shards(path, 1, lambda: {"checkpoint": {}}, {})["shards"][0]
    weights = worker_weights(trained)
    assert set(next(weights)) == set(trained.model.state_dict())
    with pytest.raises(UsageError, match=f"worker 1 of .*run.ckpt cannot be read: .*{message}"):
        next(weights)


def test_a_flipped_byte_in_a_decentralized_checkpoint_is_not_sampled_silently(checkpoint, tmp_path, capsys):
    path = with_shards(checkpoint, tmp_path / "run.ckpt", [1.0])
    content = torch.load(path, weights_only=True)
    next(value for value in content["state_dict"].values() if value.is_floating_point()).view(-1)[0] += 1e-6
    torch.save(content, path)
    assert "has been altered: the SHA-256 of its weights" in fails(capsys, path)


def test_the_file_says_what_the_scores_rest_on(checkpoint, scored):
    result, printed = scored(checkpoint, "--scorer", "torchmetrics", "--kernel-subset-size", "50")
    assert result["features"] == "digits_cnn"
    assert result["scorer"] == "torchmetrics"
    assert len(result["features_sha256"]) == len(result["data_sha256"]) == 64
    assert result["features_accuracy"] > 0.9
    assert result["settings"]["kernel_subset_size"] == 50
    assert "computed by torchmetrics 1." in printed
    assert "fid" not in printed.lower()


def test_features_of_real_images_are_computed_once(checkpoint, scored, feature_cache, monkeypatch):
    first, _ = scored(checkpoint, "--scorer", "torchmetrics")
    assert list(feature_cache.glob("digits-validation-digits_cnn-*.features.pt"))
    seen, usual = [], ClassifierFeatures.forward

    def forward(self, images):
        seen.append(len(images))
        return usual(self, images)

    monkeypatch.setattr(ClassifierFeatures, "forward", forward)
    again, _ = scored(checkpoint, "--scorer", "torchmetrics")
    assert sum(seen) == 150 + 4, "the generated images, and the few real ones that are compared with what was kept"
    assert again == first


def test_without_the_extra_the_default_is_torchmetrics_and_torch_fidelity_is_refused(
    checkpoint, scored, capsys, monkeypatch
):
    monkeypatch.setattr(extractors, "torch_fidelity_version", lambda: None)
    result, _ = scored(checkpoint)
    assert result["scorer"] == "torchmetrics"
    line = fails(capsys, checkpoint, "--scorer", "torch-fidelity")
    assert line.startswith("scorer torch-fidelity: this needs torch-fidelity, which is not installed: pip install")
    assert line.endswith("or use --scorer torchmetrics")
    line = fails(capsys, checkpoint, "--scorer", "torchmetrics", "--features", "inception")
    assert line.startswith("features: this needs torch-fidelity, which is not installed: pip install")


class Thumbnails(nn.Module):
    """Stands for Inception: sixteen features."""

    def forward(self, pixels):
        return (nn.functional.adaptive_avg_pool2d(pixels.float(), 4)[:, 0].flatten(1),)


@pytest.mark.parametrize("published", [True, False])
def test_a_distance_is_called_fid_with_published_inception_features_only(checkpoint, scored, monkeypatch, published):
    stand_in = ExtractorFeatures(Thumbnails(), "inception-v3-compat", is_inception=published)
    monkeypatch.setattr("lightning_decgan.metrics.inception.inception_features", lambda weights: stand_in)
    words = ("--features", "inception", "--kernel-subset-size", "100", "--scorer", "torchmetrics")
    result, printed = scored(checkpoint, *words)
    assert sorted(result["scores"]) == (["fid", "kid"] if published else ["frechet_distance", "kernel_distance"])
    assert result["settings"]["kernel_subsets"] == 100
    assert ("fid" in printed) == published
    assert "features: inception-v3-compat; against 359 validation images of digits" in printed


@pytest.mark.parametrize("name", ["make", "network", "Extractor"])
def test_ones_own_features_are_imported_and_named(checkpoint, scored, tmp_path, monkeypatch, name):
    (tmp_path / "own_features.py").write_text(
        "from torch import nn\n"
        "from tests.cli.test_evaluate import Thumbnails\n"
        "from lightning_decgan.metrics import ExtractorFeatures\n"
        "def make():\n"
        "    return ExtractorFeatures(Thumbnails(), 'thumbnails')\n"
        "network = make()\n"
        "class Extractor(Thumbnails):\n"
        "    def __init__(self, name, features_list):\n"
        "        super().__init__()\n"
        "    @staticmethod\n"
        "    def get_default_feature_layer_for_metric(metric):\n"
        "        return '16'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_features", raising=False)
    result, _ = scored(checkpoint, "--features", f"own_features:{name}", "--scorer", "torchmetrics")
    assert result["features"] == ("Extractor-16" if name == "Extractor" else "thumbnails")
    assert sorted(result["scores"]) == ["frechet_distance", "kernel_distance"]


def test_inceptions_scores_need_a_thousand_images_unless_told_otherwise(checkpoint, capsys, monkeypatch):
    stand_in = ExtractorFeatures(Thumbnails(), "inception-v3-compat", is_inception=True)
    monkeypatch.setattr("lightning_decgan.metrics.inception.inception_features", lambda weights: stand_in)
    line = fails(capsys, checkpoint, "--features", "inception", "--scorer", "torchmetrics")
    assert line.startswith("kernel_subset_size=1000 needs at least that many real and generated images, found 359 real")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--weights", "x.pth"), "weights are those of --features inception"),
        (("--memorization", "--picture", "x.jpg"), "picture must end in .png, found x.jpg"),
        (("--picture", "x.png"), "picture is that of --memorization"),
        (("--kernel-subset-size", "1"), "kernel-subset-size must be an integer from 2"),
        (("--device", "abacus"), "device 'abacus' is not to be had here"),
        (("--features", "vgg"), "features must be cnn, inception or MODULE:NAME, found 'vgg'"),
        (
            ("--features", "json:loads"),
            "features 'json:loads' cannot be called without arguments (missing a required argument: 's'): it must be a"
            " feature network, or a function or class that makes one without arguments",
        ),
        (("--features", "no_such:thing"), "features 'no_such:thing' cannot be imported: No module named 'no_such'"),
    ],
)
def test_words_that_cannot_be_used_are_answered_in_one_line(checkpoint, capsys, words, message):
    assert message in fails(capsys, checkpoint, *words)


def test_the_nearest_training_images_are_pictured_in_the_runs_folder(checkpoint, tmp_path, scored):
    (tmp_path / "checkpoints").mkdir()
    moved = tmp_path / "checkpoints" / "last.ckpt"
    moved.write_bytes(checkpoint.read_bytes())
    result, printed = scored(moved, "--scorer", "torchmetrics", "--memorization")
    found = result["memorization"]
    assert found["picture"] == str(tmp_path / "memorization.png")
    assert (found["features"], found["training_images"], found["samples"], found["held_out_images"]) == (
        "digits_cnn", 1438, 150, 150,
    )  # fmt: skip
    assert found["ratio"] > 1.5, "two batches of training draw noise, far from every digit"
    assert found["z"] > 10
    nearest = [pair["distances"][0] for pair in found["nearest"]]
    assert len(nearest) == 8
    assert nearest == sorted(nearest)
    with Image.open(found["picture"]) as picture:
        assert "features of digits_cnn" in picture.info["Title"]
        assert "1438 training images" in picture.info["Description"]
        assert picture.size[0] > picture.size[1] > 500
    assert "x as far as from held-out images (median)" in printed
    assert found["picture"] in printed


class Copier(nn.Module):
    """A "GAN" that draws training images."""

    device = torch.device("cpu")

    def __init__(self, images):
        super().__init__()
        self.images = images

    def classes_in_turn(self, n, first=0):
        return None

    def sample(self, n, ema=True, labels=None):
        return self.images[torch.randint(len(self.images), (n,))]


def test_a_generator_that_copies_is_found_out(tmp_path, feature_cache):
    data = DigitsDataModule()
    data.setup()
    network = ClassifierFeatures(1, 8, 10, name="untrained_cnn").freeze()
    train = torch.stack([image for image, _ in data.train_dataset])
    real = real_features(data, network, cache_dir=tmp_path)
    copier = Copier(train)
    scores, fake = evaluate(copier, network, real, samples=300, seed=3)
    assert sorted(scores) == ["frechet_distance", "inception_score", "kernel_distance"]
    report = memorization_report(copier, data, network, real, fake, tmp_path / "m.png", seed=3, cache_dir=tmp_path)
    assert report["ratio"] < 1e-3, "zero, but for rounding that depends on the batch"
    assert (report["nearer"], report["share_below_1_percent"]) == (1.0, 1.0)
    assert report["z"] < -15
    rows = [pair["sample"] for pair in report["nearest"]]
    shown = generated_images(copier, rows, 300, 3)
    for image, pair in zip(shown, report["nearest"], strict=True):
        assert torch.equal(image, train[pair["training_images"][0]]), "the picture shows the sample that was measured"
    diverged = torch.full_like(fake, float("nan"))
    assert memorization_report(copier, data, network, real, diverged, tmp_path / "n.png") is None


class MoreTestsThanValidations(DigitsDataModule):
    """Digits with 400 test images, where 359 are for validation."""

    def load_test(self):
        self.setup("fit")
        images = torch.stack([self.train_dataset[row][0] for row in range(400)])
        return InMemoryImages(images.neg(), torch.zeros(400, dtype=torch.int64))


def test_copies_are_looked_for_beside_the_images_of_the_part_that_is_held_out(tmp_path, monkeypatch):
    data, network = MoreTestsThanValidations(), ClassifierFeatures(1, 8, 10, name="untrained_cnn").freeze()
    real = real_features(data, network, "test", cache_dir=tmp_path)
    copier = Copier(torch.stack([image for image, _ in data.train_dataset]))
    _, fake = evaluate(copier, network, real, samples=300, seed=3)
    shown = []
    monkeypatch.setattr(evaluation, "beside_neighbors", lambda images, *_: shown.append(images))
    monkeypatch.setattr(evaluation, "draw_neighbors", lambda path, *_: path)
    memorization_report(copier, data, network, real, fake, tmp_path / "m.png", part="test", cache_dir=tmp_path)
    held_out = torch.stack([image for image, _ in data.test_dataset])
    assert all((held_out == image).flatten(1).all(1).any() for image in shown[1])


def test_a_sample_can_be_drawn_again_by_its_number(checkpoint):
    model = load_trained(checkpoint).model
    everything = torch.cat(list(generated_batches(model, 300, seed=2)))
    assert len(everything) == 300
    rows = [299, 0, 255, 256]
    assert torch.equal(generated_images(model, rows, 300, seed=2), everything[rows])


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A folder of 40 grey images, and a checkpoint trained on them."""
    folder, generator = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for number in range(40):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    words = ["data=image_folder", f"data.root={folder / 'images'}", "channels=1", "++data.validation_fraction=0.5"]
    return tiny_checkpoint(folder, *words), folder / "images"


def test_images_that_may_have_been_trained_on_are_not_taken_for_held_out_ones(folder_run, tmp_path, capsys, scored):
    checkpoint, folder = folder_run
    words = ("--scorer", "torchmetrics", "--kernel-subset-size", "5")
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    result, _ = scored(checkpoint, "--data-root", moved, *words)
    assert result["real_images"] == 20
    (moved / "a" / "0.png").rename(moved / "a" / "99.png")
    for memorization in ((), ("--memorization",)):
        line = fails(capsys, checkpoint, "--data-root", moved, *words, *memorization)
        assert line.startswith("data: the images or their split are not those that")
        assert "--part test" in line


def test_a_resumed_run_with_other_images_says_so(folder_run, recwarn):
    checkpoint, folder = folder_run
    content = torch.load(checkpoint, weights_only=True)
    data = ImageFolderDataModule(folder, batch_size=4, image_size=8, channels=1, validation_fraction=0.5)
    data.setup("fit")
    callback, trainer = EmbedConfig(""), SimpleNamespace(datamodule=data)
    callback.on_load_checkpoint(trainer, None, content)
    assert not [warning for warning in recwarn if "other images are held back" in str(warning.message)]
    other = ImageFolderDataModule(folder, batch_size=4, image_size=8, channels=1, validation_fraction=0.4)
    other.setup("fit")
    with pytest.warns(UserWarning, match="other images are held back now"):
        callback.on_load_checkpoint(SimpleNamespace(datamodule=other), None, content)
    callback.on_load_checkpoint(SimpleNamespace(datamodule=None), None, content)


def test_data_of_another_kind_than_images_is_named(checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load(content["decgan"])
    config["data"] = {"_target_": "lightning.pytorch.LightningDataModule"}
    torch.save(content | {"decgan": yaml.safe_dump(config)}, tmp_path / "other.ckpt")
    line = fails(capsys, tmp_path / "other.ckpt", "--trust-targets")
    assert line == "data must be an ImageDataModule to be scored, found LightningDataModule"
