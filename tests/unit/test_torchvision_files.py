"""The real classes of torchvision read real files of their formats: small ones, written here, or a package's own.

Skipped where torchvision is not installed; see tests/torchvision_shim.py for where it is.
"""

import gzip
import hashlib
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_decgan.data import FashionMNISTDataModule, TorchvisionDataModule
from lightning_decgan.data.fashion_mnist import SYSTEM_FOLDER
from lightning_decgan.data.torchvision_source import dataset_class

pytest.importorskip("torchvision", reason="torchvision is not installed")


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10's pickled batches with four images each; torchvision checks their sums as it does the real ones'."""
    cls = dataset_class("CIFAR10")
    folder = tmp_path / cls.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for number, (file, _) in enumerate([*cls.train_list, *cls.test_list]):
        batch = {
            "data": pixels.integers(0, 256, (4, 3072), dtype=np.uint8),
            "labels": [(number + index) % 10 for index in range(4)],
        }
        (folder / file).write_bytes(pickle.dumps(batch))
    meta = {"label_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]}
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps(meta))
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(cls, table, [[file, md5(folder / file)] for file, _ in getattr(cls, table)])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(folder / cls.meta["filename"])})
    return tmp_path


def test_cifar_10_is_read_from_its_batches(cifar):
    module = TorchvisionDataModule("CIFAR10", cifar, batch_size=4, image_size=32)
    assert module.class_names[:2] == ("airplane", "automobile")
    module.setup()
    batches = [pickle.loads((cifar / "cifar-10-batches-py" / f"data_batch_{n}").read_bytes()) for n in range(1, 6)]
    expected = np.concatenate([batch["data"] for batch in batches]).reshape(20, 3, 32, 32) / 127.5 - 1
    images = module.load()
    found = torch.stack([images[i][0] for i in range(20)]).double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert images.labels.tolist() == [label for batch in batches for label in batch["labels"]]
    assert len(module.test_dataloader().dataset) == 4
    assert [tuple(images.shape) for images, _ in module.train_dataloader()] == [(4, 3, 32, 32)] * 4


def test_cifar_10_can_be_grey_smaller_and_dealt_out_by_label(cifar):
    module = TorchvisionDataModule(
        "CIFAR10", cifar, batch_size=2, image_size=16, channels=1, partition="by_label", validation_fraction=0.05
    )
    module.setup("fit")
    images, _ = next(iter(module.train_dataloader()))
    assert images.shape == (2, 1, 16, 16)
    owners = [{int(module.train_labels[i]) for i in shard} for shard in module.shards(2)]
    assert owners[0].isdisjoint(owners[1])


def test_a_damaged_batch_is_found_and_nothing_is_fetched(cifar):
    (cifar / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"rubbish")
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 cannot be read from root=.*corrupted.*or pass download=True"):
        TorchvisionDataModule("CIFAR10", cifar)


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Twelve faces: eight for training, two for validation, two for testing; torchvision's own tables around them."""
    cls = dataset_class("CelebA")
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    files = [f"{number:06d}.jpg" for number in range(1, 13)]
    for number, file in enumerate(files):
        Image.new("RGB", (178, 218), (20 * number, 0, 0)).save(folder / "img_align_celeba" / file)
    smiles = [1 if number % 2 else -1 for number in range(12)]
    table = "".join(f"{file} {smile:2d} -1\n" for file, smile in zip(files, smiles, strict=True))
    (folder / "list_attr_celeba.txt").write_text(f"12\nSmiling Young \n{table}")
    (folder / "identity_CelebA.txt").write_text("".join(f"{file} {900 + n}\n" for n, file in enumerate(files)))
    (folder / "list_bbox_celeba.txt").write_text(
        "12\nimage_id x_1 y_1 width height\n" + "".join(f"{file} 0 0 9 9\n" for file in files)
    )
    (folder / "list_landmarks_align_celeba.txt").write_text(
        "12\n" + " ".join("abcdefghij") + "\n" + "".join(f"{file}{' 1' * 10}\n" for file in files)
    )
    parts = [0] * 8 + [1] * 2 + [2] * 2
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{file} {part}\n" for file, part in zip(files, parts, strict=True))
    )
    sums = [(key, None if file.endswith("zip") else md5(folder / file), file) for key, _, file in cls.file_list]
    monkeypatch.setattr(cls, "file_list", sums)
    return tmp_path


def test_celeba_has_faces_without_classes_or_two_classes_of_an_attribute(celeba):
    plain = TorchvisionDataModule("CelebA", celeba, batch_size=2, image_size=64, labels=False)
    plain.setup()
    assert plain.num_classes is None
    assert len(plain.train_dataset) + len(plain.val_dataset) == 8
    assert len(plain.test_dataloader().dataset) == 2
    image, _ = plain.load()[5]
    assert image.shape == (3, 64, 64)
    assert image[0].mean().item() == pytest.approx(100 / 127.5 - 1, abs=0.03)
    smiling = TorchvisionDataModule("CelebA", celeba, batch_size=2, labels="Smiling")
    assert smiling.class_names == ("not_Smiling", "Smiling")
    assert smiling.load().labels.tolist() == [0, 1] * 4
    with pytest.raises(ValueError, match=r"CelebA has Tensor of shape \(2,\); .* labels=False, or an attribute"):
        TorchvisionDataModule("CelebA", celeba)


def test_imagenet_has_its_classes_and_its_validation_part(tmp_path):
    torch.save(({"n01": ("tench", "Tinca tinca"), "n02": ("goldfish",)}, ["n01"]), tmp_path / "meta.bin")
    for part, count in (("train", 6), ("val", 2)):
        for wnid, colour in (("n01", "red"), ("n02", "blue")):
            (tmp_path / part / wnid).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (50, 40), colour).save(tmp_path / part / wnid / f"{wnid}_{number}.JPEG")
    module = TorchvisionDataModule("ImageNet", tmp_path, batch_size=2, image_size=32, validation_fraction=0.2)
    module.setup()
    assert module.class_names == ("tench", "goldfish")
    assert len(module.test_dataloader().dataset) == 4
    for images, labels in module.train_dataloader():
        assert images[:, 0].mean(dim=(1, 2)).lt(0).tolist() == labels.bool().tolist()
    with pytest.raises(ValueError, match="download must be False for ImageNet, which torchvision cannot fetch"):
        TorchvisionDataModule("ImageNet", tmp_path, download=True)


def test_lsun_is_read_from_its_databases_in_this_process_and_in_loaders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # torchvision leaves a list of keys in the working directory
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    for category, colour, count in (("bedroom", "red", 8), ("tower", "blue", 4)):
        for part in ("train", "val"):
            path = tmp_path / f"{category}_{part}_lmdb"
            database = lmdb.open(str(path), map_size=2**20)
            with database.begin(write=True) as writer:
                for number in range(count):
                    picture = tmp_path / "picture.webp"
                    Image.new("RGB", (60, 48), colour).save(picture)
                    writer.put(f"{number:04d}".encode(), picture.read_bytes())
            database.close()
    arguments = {"classes": ["bedroom_train", "tower_train"]}
    for num_workers in (0, 1):
        module = TorchvisionDataModule(
            "LSUN", tmp_path, batch_size=2, image_size=16, num_workers=num_workers, arguments=arguments
        )
        module.setup("fit")
        assert module.class_names == ("bedroom", "tower")
        assert module.load().labels.tolist() == [0] * 8 + [1] * 4
        for images, labels in module.train_dataloader():
            assert images[:, 0].mean(dim=(1, 2)).lt(0).tolist() == labels.bool().tolist()


@pytest.mark.skipif(not SYSTEM_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_what_our_own_reader_finds(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in SYSTEM_FOLDER.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    theirs = TorchvisionDataModule(
        "FashionMNIST", tmp_path, image_size=28, channels=1, validation_fraction=1 / 12, partition="dirichlet"
    )
    ours = FashionMNISTDataModule(partition="dirichlet")
    for module in (theirs, ours):
        module.setup()
    assert theirs.num_classes == ours.num_classes
    assert torch.equal(theirs.train_labels, ours.train_labels)
    for index in random.Random(0).sample(range(55_000), 50):
        mine, its = ours.train_dataset[index], theirs.train_dataset[index]
        torch.testing.assert_close(mine[0], its[0], atol=1e-6, rtol=0)
    assert [a.tolist() for a in theirs.shards(4)] == [a.tolist() for a in ours.shards(4)]


@pytest.mark.parametrize("name", ["CIFAR100", "SVHN", "STL10", "MNIST", "Flowers102", "Food101", "LSUN", "GTSRB"])
def test_files_that_are_not_there_are_said_for_every_class_alike(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((FileNotFoundError, ImportError), match=f"torchvision's {name} (cannot be read|needs)"):
            TorchvisionDataModule(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_gets_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"found 'Cifar10'; valid would be .*CIFAR10"):
        TorchvisionDataModule("Cifar10", tmp_path)
