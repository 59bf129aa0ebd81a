"""torchmetrics and torch-fidelity agree on the same samples. In an environment of its own: `make test-fidelity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_decgan.cli.main import main
from lightning_decgan.data import DigitsDataModule
from lightning_decgan.metrics import (
    Fidelity,
    ScoreSettings,
    inception,
    inception_features,
    register_network,
    train_classifier_features,
)
from lightning_decgan.metrics.extraction import extract
from lightning_decgan.metrics.scoring import published_names, score_with_torch_fidelity, score_with_torchmetrics
from tests.checkpoints import tiny_checkpoint, with_shards

torch_fidelity: Any = pytest.importorskip(
    "torch_fidelity", reason="needs the extra [fidelity], in an environment of its own: make test-fidelity"
)

AGREEMENT = 1e-3
COUNT = 300


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    module = DigitsDataModule()
    module.setup()
    return module


@pytest.fixture(scope="module")
def network(digits: DigitsDataModule, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return train_classifier_features(digits, cache_dir=tmp_path_factory.mktemp("cache"), epochs=3, progress=False)


@pytest.fixture(scope="module")
def real(digits: DigitsDataModule) -> Tensor:
    """Real images as a PNG holds them."""
    return as_bytes(torch.stack([image for image, _ in digits.val_dataset])[:COUNT])


@pytest.fixture(scope="module")
def fake(digits: DigitsDataModule) -> Tensor:
    """ "Samples": training images with noise, as a PNG holds them."""
    images = torch.stack([image for image, _ in digits.train_dataset])[:COUNT]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return as_bytes(images * 0.9 + 0.25 * noise)


def as_bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def as_floats(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_the_same_samples_score_the_same_by_torchmetrics_and_by_torch_fidelity_from_the_images_on(
    network: nn.Module, real: Tensor, fake: Tensor
) -> None:
    # Each library in its own way from the pixels on; one subset with everything, because they draw subsets differently.
    ours = Fidelity(network, kernel_subsets=1, kernel_subset_size=COUNT)
    ours.update(as_floats(real), real=True)
    ours.update(as_floats(fake), real=False)
    expected = ours.compute()
    found = torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor=register_network(network),
        fid=True,
        kid=True,
        isc=True,
        kid_subsets=1,
        kid_subset_size=COUNT,
        isc_splits=1,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert expected["frechet_distance"] > 0.1, "a distance worth comparing"
    for name, key in (
        ("frechet_distance", torch_fidelity.KEY_METRIC_FID),
        ("kernel_distance", torch_fidelity.KEY_METRIC_KID_MEAN),
        ("inception_score", torch_fidelity.KEY_METRIC_ISC_MEAN),
    ):
        print(f"{name}: torchmetrics {expected[name]:.9g}, torch-fidelity {found[key]:.9g}")
        assert found[key] == pytest.approx(expected[name], rel=AGREEMENT), name


@pytest.fixture(scope="module")
def features(network: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        one, other = (extract(network, as_floats(images), real=True) for images in (real, fake))
    return one, other


def test_our_two_scorers_agree_on_the_same_features(network: nn.Module, features: tuple[Tensor, Tensor]) -> None:
    settings = ScoreSettings(kernel_subsets=1, kernel_subset_size=COUNT)
    one, other = (score(*features, network, settings) for score in (score_with_torchmetrics, score_with_torch_fidelity))
    assert sorted(set(other) - set(one)) == ["precision", "recall"]
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-5), name


def test_with_random_subsets_they_agree_within_what_subsets_vary(
    network: nn.Module, features: tuple[Tensor, Tensor]
) -> None:
    settings = ScoreSettings(kernel_subsets=200, kernel_subset_size=100)
    one, other = (
        score(*features, network, settings)["kernel_distance"]
        for score in (score_with_torchmetrics, score_with_torch_fidelity)
    )
    assert other == pytest.approx(one, rel=0.1)


def reference_precision(first: np.ndarray, second: np.ndarray, neighborhood: int) -> float:
    """The share of `first` within the distance of a `second` to its k-th neighbour, from full distance matrices."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    radii = np.sort(distances(second, second), axis=1)[:, neighborhood]  # column 0 is the point itself
    return float((distances(first, second) <= radii).any(axis=1).mean())


@pytest.mark.parametrize("neighborhood", [1, 3])
def test_precision_and_recall_are_those_of_the_paper_and_not_the_other_way_round(
    network: nn.Module, features: tuple[Tensor, Tensor], neighborhood: int
) -> None:
    real, fake = features[0], features[1][:120]
    found = score_with_torch_fidelity(real, fake, network, ScoreSettings(neighborhood=neighborhood))
    one, other = real.double().numpy(), fake.double().numpy()
    assert found["precision"] == pytest.approx(reference_precision(other, one, neighborhood), abs=1e-6)
    assert found["recall"] == pytest.approx(reference_precision(one, other, neighborhood), abs=1e-6)
    assert found["precision"] != found["recall"]


def test_equal_sets_are_at_no_distance_and_of_full_precision(
    network: nn.Module, features: tuple[Tensor, Tensor]
) -> None:
    found = score_with_torch_fidelity(features[0], features[0].flip(0), network, ScoreSettings())
    assert 0.0 <= found["frechet_distance"] < 1e-3
    assert found["precision"] == found["recall"] == 1.0


def test_a_diverged_generator_scores_nan_and_too_few_images_are_an_error(
    network: nn.Module, features: tuple[Tensor, Tensor]
) -> None:
    broken = features[1].clone()
    broken[0] = float("nan")
    found = score_with_torch_fidelity(features[0], broken, network, ScoreSettings())
    assert len(found) == 5
    assert np.isnan(list(found.values())).all()
    with pytest.raises(ValueError, match="found 300 real and 99 generated"):
        score_with_torch_fidelity(features[0], broken[:99], network, ScoreSettings())
    with pytest.raises(ValueError, match=r"neighborhood=3 needs more real .* found 3 real"):
        score_with_torch_fidelity(features[0][:3], broken, network, ScoreSettings(kernel_subset_size=2))


def test_a_network_without_a_head_has_no_inception_score(features: tuple[Tensor, Tensor]) -> None:
    found = score_with_torch_fidelity(*features, nn.Identity(), ScoreSettings())
    assert sorted(found) == ["frechet_distance", "kernel_distance", "precision", "recall"]


def test_the_global_random_numbers_stay(network: nn.Module, features: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    score_with_torch_fidelity(*features, network, ScoreSettings())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights that fit Inception, though nobody trained them."""
    module = torch_fidelity.feature_extractor_inceptionv3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_and_other_weights_than_the_published_are_named_otherwise(weights: Path) -> None:
    network = inception_features(weights)
    assert network.name == f"inception-v3-compat-{inception.file_digest(weights)[:8]}"
    assert not network.is_inception
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    theirs = torch_fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    features, logits = theirs(as_bytes(images).expand(-1, 3, -1, -1))
    found = extract(network, images, real=True)
    torch.testing.assert_close(found, features)
    torch.testing.assert_close(network.head(found), logits)


def test_the_published_weights_make_it_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "PUBLISHED_DIGEST", inception.file_digest(weights)[:8])
    network = inception_features(weights)
    assert (network.name, network.is_inception) == ("inception-v3-compat", True)
    assert published_names({"frechet_distance": 2.0}, network) == {"fid": 2.0}


def test_a_file_that_does_not_hold_the_weights_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"Conv2d_1a_3x3.conv.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        inception_features(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of inception-v3-compat"):
        inception_features(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        inception_features(tmp_path / "none.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.WEIGHTS_FILE).write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged: its SHA-256 begins with"):
        inception_features()


def test_the_command_uses_torch_fidelity_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("DECGAN_CACHE_DIR", str(tmp_path / "cache"))
    checkpoint = with_shards(tiny_checkpoint(tmp_path), tmp_path / "run.ckpt", [1.0, 0.5])
    found = {}
    for scorer in ("auto", "torchmetrics"):
        words = ["--scorer", scorer, "--samples", "359", "--kernel-subset-size", "359", "--per-worker"]
        assert main(["evaluate", str(checkpoint), *words, "--json", str(tmp_path / scorer)]) == 0
        found[scorer] = json.loads((tmp_path / scorer).read_text())
    printed = capsys.readouterr().out
    assert "computed by torch-fidelity 0.4.0" in printed
    assert "features: digits_cnn" in printed
    assert "fid" not in printed.lower().replace("torch-fidelity", "")
    one, other = found["auto"], found["torchmetrics"]
    assert one["scorer"] == "torch-fidelity"
    assert 0 <= one["scores"]["recall"] <= 1
    pairs = [(one["scores"], other["scores"])]
    pairs += [(a["scores"], b["scores"]) for a, b in zip(one["workers"], other["workers"], strict=True)]
    for own, theirs in pairs:
        for name in ("frechet_distance", "kernel_distance", "inception_score"):
            assert own[name] == pytest.approx(theirs[name], rel=AGREEMENT), name
