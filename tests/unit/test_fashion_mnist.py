"""Fashion-MNIST is read from idx files, whole or not at all; most tests bring small files of their own."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from lightning_decgan.data import FashionMNISTDataModule, IdxError
from lightning_decgan.data.fashion_mnist import SYSTEM_FOLDER


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(folder, *, train=60, test=20, suffix="", side=28, classes=10):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[part] = rng.integers(0, 256, (count, side, side), dtype=np.uint8), np.arange(count) % classes
        for name, values in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), arrays[part], strict=True):
            content = idx_bytes(values.astype(np.uint8))
            (folder / f"{part}-{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_images_are_those_of_the_files_scaled_to_minus_one_to_one(tmp_path, suffix, below):
    pixels, labels = write(tmp_path / below, suffix=suffix)["train"]
    module = FashionMNISTDataModule(tmp_path, validation_fraction=0.25)
    module.setup()
    assert (len(module.train_dataset), len(module.val_dataset)) == (45, 15)
    for index, (image, label) in zip(module.val_dataset.indices, module.val_dataset, strict=True):
        np.testing.assert_allclose(image[0].numpy(), pixels[index] / 127.5 - 1, atol=1e-6)
        assert label.item() == labels[index]


def test_the_test_set_is_the_other_pair_of_files(tmp_path):
    pixels, labels = write(tmp_path)["t10k"]
    module = FashionMNISTDataModule(tmp_path, batch_size=8)
    module.setup("test")
    images, found = (torch.cat(parts) for parts in zip(*module.test_dataloader(), strict=True))
    np.testing.assert_allclose(images[:, 0].numpy(), pixels / 127.5 - 1, atol=1e-6)
    assert found.tolist() == labels.tolist()


def test_another_size_and_a_pickle_round_trip(tmp_path):
    write(tmp_path)
    module = FashionMNISTDataModule(tmp_path, batch_size=4, image_size=16)
    module.setup()
    images, labels = next(iter(pickle.loads(pickle.dumps(module)).train_dataloader()))
    assert images.shape == (4, 1, 16, 16)
    assert images.abs().max() <= 1
    assert labels.dtype == torch.int64
    assert module.train_dataset.dataset.images.dtype == torch.uint8


def test_missing_files_are_named_with_the_folders_and_the_remedy_before_any_worker_starts(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        FashionMNISTDataModule(tmp_path)
    message = str(caught.value)
    assert "t10k-labels-idx1-ubyte[.gz] not found" in message
    assert "train-images" not in message
    for part in (str(tmp_path), str(tmp_path / "FashionMNIST" / "raw"), "dataset-fashion-mnist", str(SYSTEM_FOLDER)):
        assert part in message


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((60, 27, 28), np.uint8), r"valid is \(n, 28, 28\).*found \(60, 27, 28\)"),
        ("train-labels-idx1-ubyte", np.zeros(59, np.uint8), r"valid is \(60,\) of uint8, found \(59,\)"),
        ("train-labels-idx1-ubyte", np.full(60, 10, np.uint8), "labels go from 0 to 9, found 10"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, name, values, message):
    write(tmp_path)
    (tmp_path / name).write_bytes(idx_bytes(values))
    with pytest.raises(IdxError, match=message) as caught:
        FashionMNISTDataModule(tmp_path).setup("fit")
    assert name in str(caught.value)


def test_a_truncated_download_is_an_error(tmp_path):
    write(tmp_path, suffix=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IdxError, match="cut short"):
        FashionMNISTDataModule(tmp_path).setup("fit")


@pytest.mark.skipif(
    not (SYSTEM_FOLDER / "train-images-idx3-ubyte.gz").is_file(), reason="dataset-fashion-mnist is absent"
)
def test_the_debian_package_is_found_without_root():
    module = FashionMNISTDataModule()
    module.setup()
    assert (len(module.train_dataset), len(module.val_dataset)) == (55_000, 5_000)
    images = module.train_dataset.dataset
    assert torch.bincount(images.labels).tolist() == [6_000] * 10
    assert images.images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-4)  # the data set's known mean
    assert module.class_names[int(images.labels[0])] == "ankle_boot"
