"""The feature network: trained from a seed, cached whole or not at all, frozen, and silent towards the caller."""

import os
import random
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_decgan.data import DigitsDataModule, ImageFolderDataModule
from lightning_decgan.metrics import ClassifierFeatures, feature_cache, train_classifier_features


@pytest.fixture(scope="module")
def digits():
    module = DigitsDataModule()
    module.setup()
    return module


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(digits, cache):
    return train_classifier_features(digits, cache_dir=cache, epochs=2, progress=False)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("image_size", [8, 9, 16, 28, 33, 64])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_size_and_channels_give_features_and_logits(image_size, channels):
    network = ClassifierFeatures(channels, image_size, 7, num_features=48).freeze()
    images = torch.rand(3, channels, image_size, image_size) * 2 - 1
    assert network(images).shape == (3, 48)
    assert network.logits(images).shape == (3, 7)
    torch.testing.assert_close(network.head(network(images)), network.logits(images))


def test_a_frozen_network_stays_in_evaluation_mode_without_gradients():
    network = ClassifierFeatures(1, 8, 10).freeze()
    torch.nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_autocast_and_half_precision_images_do_not_change_what_it_computes():
    network = ClassifierFeatures(1, 8, 10).freeze()
    images = (torch.rand(4, 1, 8, 8) * 2 - 1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = network.logits(images)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, network.logits(images.float()))


def test_bad_shapes_and_arguments_are_named():
    with pytest.raises(ValueError, match=r"images must be \(n, 1, 8, 8\), found \(2, 3, 8, 8\)"):
        ClassifierFeatures(1, 8, 10)(torch.zeros(2, 3, 8, 8))
    for arguments, name in (((4, 8, 10), "channels"), ((1, 7, 10), "image_size"), ((1, 8, 1), "num_classes")):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            ClassifierFeatures(*arguments)


def test_digits_are_told_apart_better_than_ninety_seven_times_in_a_hundred(digits, tmp_path):
    network = train_classifier_features(digits, cache_dir=tmp_path, epochs=8, progress=False)
    images, labels = zip(*digits.val_dataset, strict=True)
    right = (network.logits(torch.stack(images)).argmax(dim=1) == torch.stack(labels)).double().mean().item()
    assert network.accuracy == pytest.approx(right, abs=1e-12)
    assert network.accuracy > 0.97
    assert network.name == "digits_cnn"
    assert network.num_classes == 10
    assert not network.training


def test_the_second_call_loads_what_the_first_trained(digits, cache, trained, monkeypatch):
    monkeypatch.setattr("lightning_decgan.metrics.features._train", lambda *_: pytest.fail("trained again"))
    again = train_classifier_features(digits, cache_dir=cache, epochs=2)
    assert same_weights(trained, again)
    assert again.accuracy == trained.accuracy
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_same_seed_trains_the_same_network_and_another_seed_another(digits, trained, tmp_path):
    torch.manual_seed(123)
    again = train_classifier_features(digits, cache_dir=tmp_path, epochs=2, progress=False)
    other = train_classifier_features(digits, cache_dir=tmp_path, epochs=2, seed=1, progress=False)
    assert same_weights(trained, again)
    assert not same_weights(trained, other)
    assert len(list(tmp_path.glob("digits-*.pt"))) == 2


def test_global_random_numbers_and_the_number_of_threads_stay_as_they_were(digits, tmp_path):
    usual = torch.get_num_threads()
    torch.set_num_threads(threads := usual + 1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train_classifier_features(digits, cache_dir=tmp_path, epochs=1, progress=False)
    train_classifier_features(digits, cache_dir=tmp_path, epochs=1, progress=False)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(usual)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_it_trains_inside_inference_mode_and_autocast_and_its_result_is_usable_outside(trained, tmp_path):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        network = train_classifier_features(DigitsDataModule(), cache_dir=tmp_path, epochs=2, progress=False)
    assert same_weights(trained, network)
    images = torch.zeros(1, 1, 8, 8, requires_grad=True)
    network(images).sum().backward()
    assert images.grad is not None


def damaged_copies(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    flipped = bytearray(content)
    flipped[middle] ^= 1  # inside a tensor: torch loads this without a word
    return {"empty": b"", "text": b"no network", "truncated": content[:middle], "flipped": bytes(flipped)}


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped"])
def test_a_damaged_file_is_reported_and_trained_again(digits, cache, trained, tmp_path, damage):
    (original,) = cache.glob("*.pt")
    (tmp_path / original.name).write_bytes(damaged_copies(original.read_bytes())[damage])
    with pytest.warns(UserWarning, match="is not usable .* training it again") as caught:
        network = train_classifier_features(digits, cache_dir=tmp_path, epochs=2, progress=False)
    assert original.name in str(caught[0].message)
    assert same_weights(trained, network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_classifier_features(digits, cache_dir=tmp_path, epochs=2, progress=False)


def test_a_file_of_another_network_or_of_another_size_is_not_used(tmp_path):
    small, large = ClassifierFeatures(1, 8, 10), ClassifierFeatures(1, 8, 12)
    path = tmp_path / "network.pt"
    feature_cache.save_weights(path, "key", small, 0.5)
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    with pytest.warns(UserWarning, match="weights of another origin"):
        assert feature_cache.load_weights(path, "other key", small) is None
    with pytest.warns(UserWarning, match="other names or shapes"):
        assert feature_cache.load_weights(path, "key", large) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in large.state_dict().items())
    path.write_bytes(path.read_bytes() + bytes(4 * 2**20))
    with pytest.warns(UserWarning, match="at most"):
        assert feature_cache.load_weights(path, "key", small) is None


class Attack:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_file_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"key": "key", "accuracy": 0.5, "weights": Attack()}, tmp_path / "network.pt")
    with pytest.warns(UserWarning, match="not usable"):
        assert feature_cache.load_weights(tmp_path / "network.pt", "key", ClassifierFeatures(1, 8, 10)) is None
    assert not (tmp_path / "pwned").exists()


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(digits, trained, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be cached"):
        network = train_classifier_features(digits, cache_dir=tmp_path / "file", epochs=2, progress=False)
    assert same_weights(trained, network)


def test_nothing_but_the_network_and_its_lock_is_left_behind(cache, trained):
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".pt"]


def test_one_waits_for_the_other_and_finds_its_file(tmp_path):
    path, held = tmp_path / "network.pt", threading.Event()

    def train_slowly() -> None:  # file locks belong to open files: a thread stands for a process here
        with feature_cache.exclusive(path):
            held.set()
            time.sleep(0.3)
            path.write_text("trained")

    other = threading.Thread(target=train_slowly)
    other.start()
    held.wait()
    assert not path.exists()
    with feature_cache.exclusive(path):
        assert path.read_text() == "trained"
    other.join()


def test_a_holder_that_never_ends_is_waited_for_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_LOCK_TIMEOUT_SECONDS", 0.2)
    with feature_cache.exclusive(tmp_path / "network.pt"):
        began = time.monotonic()
        with feature_cache.exclusive(tmp_path / "network.pt"):
            assert 0.2 <= time.monotonic() - began < 5


def test_the_cache_lies_where_the_platform_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert feature_cache.default_cache_dir() == tmp_path / ".cache" / "lightning_decgan" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert feature_cache.default_cache_dir() == tmp_path / ".cache" / "lightning_decgan" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert feature_cache.default_cache_dir() == tmp_path / "xdg" / "lightning_decgan" / "features"


def test_data_without_labels_is_an_error_that_says_what_to_do(tmp_path):
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    unlabelled = ImageFolderDataModule(tmp_path, image_size=8, channels=1, name="plain")
    with pytest.raises(ValueError, match=r"'plain'.*no labels.*sub-folder of its own"):
        train_classifier_features(unlabelled)
    with pytest.raises(TypeError, match="datamodule must be an ImageDataModule, found list"):
        train_classifier_features([])


def test_a_handful_of_images_is_enough_to_train_on(tmp_path):
    for number in range(4):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (60 * number, 9, 9)).save(tmp_path / folder / f"{number}.png")
    data = ImageFolderDataModule(tmp_path, image_size=8, name="few")
    network = train_classifier_features(data, cache_dir=tmp_path / "cache", epochs=1, progress=False)
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_the_progress_bar_appears_only_when_it_takes_long(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lightning_decgan.metrics.features._SHOW_PROGRESS_AFTER_SECONDS", 1e9)
    train_classifier_features(digits, cache_dir=tmp_path / "quick", epochs=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("lightning_decgan.metrics.features._SHOW_PROGRESS_AFTER_SECONDS", 0.0)
    train_classifier_features(digits, cache_dir=tmp_path / "off", epochs=1, progress=False)
    assert capsys.readouterr().err == ""
    train_classifier_features(digits, cache_dir=tmp_path / "log", epochs=1)
    assert capsys.readouterr().err == "training digits_cnn: once, it is kept for the next time\n"
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    train_classifier_features(digits, cache_dir=tmp_path / "slow", epochs=1)
    assert "training digits_cnn" in capsys.readouterr().err
