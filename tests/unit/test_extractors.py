"""Extractors of torch-fidelity's kind as feature networks, and what is said where torch-fidelity cannot be had."""

import importlib
import urllib.error

import pytest
import torch
from torch import nn

from lightning_decgan.metrics import (
    ExtractorFeatures,
    MissingExtraError,
    ScoreSettings,
    extractors,
    inception,
    inception_features,
    register_network,
)
from lightning_decgan.metrics.extraction import extract
from lightning_decgan.metrics.scoring import SCORERS, published_names


class Pixels(nn.Module):
    """An extractor whose features are the pixels of the first column."""

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1] == 3
        return (pixels[:, :, 0, 0].float(),)


def test_images_become_what_a_png_would_hold_and_grey_becomes_three_channels():
    network = ExtractorFeatures(Pixels(), "pixels")
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 0.999])
    found = network(values.reshape(-1, 1, 1, 1))
    assert torch.equal(found, ((values + 1) * 127.5).round().unsqueeze(1).expand(-1, 3))
    colour = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    assert network(colour).tolist() == [[255.0, 128.0, 0.0]]


def test_a_diverged_image_has_no_features_although_bytes_know_no_nan():
    network = ExtractorFeatures(Pixels(), "pixels")
    images = torch.zeros(2, 1, 4, 4)
    images[1] = float("nan")
    found = extract(network, images, real=False)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_an_extractor_of_another_kind_is_refused():
    class Two(nn.Module):
        def forward(self, pixels):
            return pixels.flatten(1).float(), pixels

    with pytest.raises(ValueError, match=r"extractor must give one feature \(n, d\) in a tuple, found \[\(1, 3072\)"):
        ExtractorFeatures(Two(), "two")
    with pytest.raises(ValueError, match="found Tensor"):
        ExtractorFeatures(nn.Flatten(), "flatten")
    with pytest.raises(ValueError, match=r"images must be \(n, 1 or 3, h, w\), found \(1, 2, 4, 4\)"):
        ExtractorFeatures(Pixels(), "pixels")(torch.zeros(1, 2, 4, 4))


def test_only_the_published_network_gives_a_score_the_name_fid():
    scores = {"frechet_distance": 1.0, "kernel_distance": 2.0, "inception_score": 3.0, "precision": 0.5}
    assert published_names(scores, ExtractorFeatures(Pixels(), "inception-v3-compat")) == scores
    published = published_names(scores, ExtractorFeatures(Pixels(), "inception-v3-compat", is_inception=True))
    assert published == {"fid": 1.0, "kid": 2.0, "inception_score": 3.0, "precision": 0.5}


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(extractors, "torch_fidelity_version", lambda: None)


def test_a_missing_extra_is_an_error_that_says_what_to_install(not_installed):
    features = torch.rand(200, 4)
    for use in (
        lambda: SCORERS["torch-fidelity"](features, features, nn.Identity(), ScoreSettings()),
        lambda: register_network(nn.Identity()),
        inception_features,
    ):
        with pytest.raises(MissingExtraError, match=r"not installed: pip install .*lightning-decgan\[fidelity\]"):
            use()


def test_a_torchvision_that_does_not_fit_is_an_error_that_says_so(monkeypatch):
    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(extractors, "torch_fidelity_version", lambda: "0.4.0")
    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(MissingExtraError, match=r"nms does not exist.*torchvision that was built for torch 2"):
        extractors.require_torch_fidelity()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's folder of downloads, and no network."""

    def unreachable(url, path, **_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "checkpoints"


def test_weights_that_cannot_be_had_are_named_with_where_they_belong_and_how_to_bring_them(hub):
    with pytest.raises(FileNotFoundError) as caught:
        inception.published_weights("https://example.org/weights.pth")
    text = str(caught.value)
    assert text.startswith("weights-inception-2015-12-05-6726825d.pth, the weights of inception-v3-compat, ")
    assert f"is not in {hub} and could not be fetched" in text
    assert "no network" in text
    assert "Bring https://example.org/weights.pth to that folder by hand" in text
    assert "--weights" in text


def test_weights_that_are_there_are_taken_and_nothing_is_fetched(hub):
    hub.mkdir()
    (hub / inception.WEIGHTS_FILE).write_bytes(b"weights")
    assert inception.published_weights("https://example.org/weights.pth") == hub / inception.WEIGHTS_FILE
