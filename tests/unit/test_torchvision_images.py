"""Data sets of torchvision by name, with a stand-in for the package: arguments, labels, the parts, errors.

The real classes read real files in test_torchvision_files.py, where torchvision can be imported.
"""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_decgan.data import TorchvisionDataModule
from lightning_decgan.data import torchvision_source as source
from lightning_decgan.metrics import train_classifier_features


class VisionDataset:
    """As torchvision's: a picture and a target, from a folder that has to exist."""

    opened = 0

    def __init__(self, root, count):
        VisionDataset.opened += 1
        self.root, self.count = root, count

    def __len__(self):
        return self.count

    def _target(self, index):
        return index % 3

    def __getitem__(self, index):
        return Image.new("RGB", (12, 10), (index, 0, 255)), self._target(index)


class Shapes(VisionDataset):
    """In the manner of CIFAR10: parts by `train`, pixels and targets in memory."""

    classes = ("circle", "square", "star")

    def __init__(self, root, train=True, transform=None, download=False):
        super().__init__(root, 30 if train else 12)
        folder = Path(root, "shapes")
        if download:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.targets = [index % 3 for index in range(self.count)]
        self.data = np.arange(self.count, dtype=np.uint8)


class Numbers(VisionDataset):
    """In the manner of SVHN and Flowers102: parts by `split`, labels in an array, no names; labels 7 and 9."""

    def __init__(self, root, split="train"):
        if split not in ("train", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split")
        super().__init__(root, 20)
        self.labels = np.where(np.arange(20) % 2, 9, 7)
        if split == "test":
            self.labels = self.labels[::-1].copy()


class Faces(VisionDataset):
    """In the manner of CelebA: several attributes of each face, the last name empty."""

    attr_names = ("Smiling", "Eyeglasses", "")

    def __init__(self, root, split="train", target_type="attr"):
        super().__init__(root, 16)
        self.attr = torch.stack([torch.arange(16) % 2, torch.arange(16) // 8], dim=1)

    def _target(self, index):
        return self.attr[index]


class LSUN(VisionDataset):
    """A database a category."""

    def __init__(self, root, classes="train"):
        self.classes = ["bedroom_train", "tower_train"] if isinstance(classes, str) else classes
        super().__init__(root, 9)
        self.dbs = [range(6), range(3)]


class Folds(Numbers):
    """In the manner of LFWPeople: by default all images, those for testing too."""

    def __init__(self, root, split="10fold"):
        super().__init__(root, "test" if split == "test" else "train")


class Letters(VisionDataset):
    """In the manner of EMNIST's letters: numbered from 1, with a name for 0 all the same."""

    classes = ("N/A", "a", "b")

    def __init__(self, root):
        super().__init__(root, 12)
        self.targets = [1 + index % 2 for index in range(12)]


class Hidden(VisionDataset):
    """Keeps its targets nowhere to be found."""

    def __init__(self, root):
        super().__init__(root, 9)

    def _target(self, index):
        return torch.tensor(index // 4)


class Signs(Hidden):
    """In the manner of GTSRB: pairs of file and class."""

    def __init__(self, root):
        super().__init__(root)
        self._samples = [(f"{index}.ppm", 8 - index) for index in range(9)]


class Packed(VisionDataset):
    """In the manner of LSUN where lmdb is not installed."""

    def __init__(self, root):
        raise ModuleNotFoundError("No module named 'packing'", name="packing")


class Strings(VisionDataset):
    def __init__(self, root):
        super().__init__(root, 9)

    def _target(self, index):
        return "a caption"


class Arrays(Hidden):
    def __getitem__(self, index):
        return np.zeros((3, 4, 4)), 0


class Empty(VisionDataset):
    def __init__(self, root):
        super().__init__(root, 0)


class Rootless(VisionDataset):
    def __init__(self, size):
        super().__init__("", size)


CLASSES = (
    VisionDataset,
    Shapes,
    Numbers,
    Faces,
    LSUN,
    Folds,
    Letters,
    Hidden,
    Signs,
    Packed,
    Strings,
    Arrays,
    Empty,
    Rootless,
)


@pytest.fixture(autouse=True)
def torchvision(monkeypatch):
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    package.datasets = datasets
    for cls in CLASSES:
        setattr(datasets, cls.__name__, cls)
    datasets.wrap = lambda: None
    datasets.__all__ = [cls.__name__ for cls in CLASSES] + ["wrap"]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "shapes").mkdir()
    return tmp_path


def make(name, root, **arguments):
    return TorchvisionDataModule(name, root, batch_size=4, image_size=8, **arguments)


def test_images_come_at_size_and_in_range_with_their_classes(root):
    module = make("Shapes", root)
    assert (module.name, module.num_classes, module.class_names) == ("shapes", 3, ("circle", "square", "star"))
    module.setup()
    assert (len(module.train_dataset), len(module.val_dataset)) == (27, 3)
    for images, labels in module.train_dataloader():
        assert images.shape == (4, 3, 8, 8)
        assert labels.dtype == torch.int64
        reds = ((images[:, 0, 4, 4] + 1) * 127.5).round().long()  # the red of a picture is its number
        assert torch.equal(reds % 3, labels)
        assert images[:, 1].eq(-1).all()
        assert images[:, 2].eq(1).all()


def test_the_part_for_testing_is_the_test_set(root):
    module = make("Shapes", root)
    module.setup("test")
    assert sum(len(labels) for _, labels in module.test_dataloader()) == 12
    assert source.default_test_arguments("Numbers", {}) == {"split": "test"}
    assert source.default_test_arguments("Hidden", {}) is None
    hidden = make("Hidden", root)
    hidden.setup("test")
    assert len(hidden.test_dataloader().dataset) == len(hidden.val_dataset)


def test_where_all_images_or_those_for_testing_are_trained_on_there_is_no_test_set(root):
    assert source.default_test_arguments("Folds", {}) is None
    assert source.default_test_arguments("Folds", {"split": "train"}) == {"split": "test"}
    assert source.default_test_arguments("Numbers", {"split": "test"}) is None
    assert source.default_test_arguments("Shapes", {"train": False}) is None


def test_a_name_that_stands_for_no_class_is_none(root):
    module = make("Letters", root)
    module.setup()
    assert (module.num_classes, module.class_names) == (2, ("a", "b"))
    assert sorted(set(module.load().labels.tolist())) == [0, 1]


def test_the_parts_of_lsun_are_named_by_category():
    assert source.default_test_arguments("LSUN", {}) == {"classes": "val"}
    classes = {"classes": ["bedroom_train", "tower_train"]}
    assert source.default_test_arguments("LSUN", classes) == {"classes": ["bedroom_val", "tower_val"]}


def test_labels_are_numbered_from_zero_in_training_and_test_alike(root):
    module = make("Numbers", root)
    module.setup()
    assert (module.num_classes, module.class_names) == (2, ("7", "9"))
    assert module.load().labels.tolist() == [0, 1] * 10
    assert module.load_test().labels.tolist() == [1, 0] * 10


def test_labels_of_databases_follow_their_order(root):
    module = make("LSUN", root)
    module.setup("fit")
    assert module.class_names == ("bedroom", "tower")
    assert module.load().labels.tolist() == [0] * 6 + [1] * 3


def test_labels_that_stand_beside_the_files_are_taken_from_there(root):
    assert make("Signs", root).load().labels.tolist() == list(range(8, -1, -1))


def test_an_attribute_makes_two_classes(root):
    module = make("Faces", root, labels="Eyeglasses", partition="by_label")
    module.setup("fit")
    assert module.class_names == ("not_Eyeglasses", "Eyeglasses")
    assert module.load().labels.tolist() == [0] * 8 + [1] * 8
    assert sum(map(sum, module.class_histograms(2))) == len(module.train_dataset)


def test_without_labels_all_are_zero_and_there_are_no_classes(root):
    module = make("Faces", root, labels=False)
    module.setup("fit")
    assert (module.num_classes, module.class_names) == (None, None)
    assert module.train_labels.unique().tolist() == [0]


def test_labels_that_are_kept_nowhere_are_read_from_the_targets(root):
    module = make("Hidden", root)
    module.setup("fit")
    assert module.load().labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_it_travels_to_other_processes_without_its_files_in_hand(root):
    module = make("Shapes", root)
    module.setup("fit")
    copy = pickle.loads(pickle.dumps(module))
    assert copy.load()._dataset is not None
    assert pickle.loads(pickle.dumps(module.load()))._dataset is None
    for mine, theirs in zip(module.val_dataloader(), copy.val_dataloader(), strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])
    assert copy.fingerprint() == module.fingerprint()


def test_labels_that_are_kept_nowhere_are_read_once_for_all_processes(root, monkeypatch):
    module = make("Hidden", root)
    monkeypatch.setattr(source, "read_labels", lambda *_: pytest.fail("every image is read again"))
    module.setup("fit")
    copy = pickle.loads(pickle.dumps(module))
    copy.setup("fit")
    assert torch.equal(copy.train_labels, module.train_labels)


def test_a_database_is_open_once_however_many_read_it_and_not_for_ever(root):
    first, second = make("LSUN", root).load(), make("LSUN", root).load()
    assert first.dataset is second.dataset
    other = make("LSUN", root, arguments={"classes": ["tower_train", "bedroom_train"]}).load()
    assert other.dataset is not first.dataset
    opened = VisionDataset.opened
    assert pickle.loads(pickle.dumps(first)).dataset is first.dataset
    assert VisionDataset.opened == opened
    del first, second
    make("LSUN", root).load()
    assert VisionDataset.opened == opened + 1


def test_the_fingerprint_sees_pixels_labels_and_arguments(root):
    def digest(name, **arguments):
        module = make(name, root, **arguments)
        module.setup("fit")
        return module.fingerprint()

    digests = [digest("Shapes"), digest("Hidden"), digest("Faces", labels=False), digest("Faces", labels="Smiling")]
    digests.append(digest("Numbers"))
    digests.append(digest("Numbers", arguments={"split": "test"}))
    assert len(set(digests)) == len(digests)
    assert digest("Hidden") == digests[1]
    Hidden.__getitem__ = lambda self, index: (Image.new("RGB", (12, 10), (index, 1, 255)), 0)
    try:
        assert digest("Hidden", labels=False) != digests[1]
    finally:
        del Hidden.__getitem__


def test_nothing_is_downloaded_unless_it_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Shapes cannot be read from root=.*Dataset not found.*download=True"):
        make("Shapes", tmp_path)
    assert list(tmp_path.iterdir()) == []
    module = make("Shapes", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
    assert module.num_classes is None
    with pytest.raises(FileNotFoundError):
        module.setup("fit")
    module.prepare_data()
    module.setup("fit")
    assert (tmp_path / "shapes").is_dir()
    assert module.num_classes == 3


def test_a_feature_network_is_trained_on_data_that_were_to_be_downloaded(tmp_path):
    module = make("Shapes", tmp_path / "data", download=True)
    features = train_classifier_features(module, cache_dir=tmp_path / "cache", epochs=1, progress=False)
    assert features.name == "shapes_cnn"


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "message"),
    [
        ("Shape", {}, ValueError, "name must be a data set of torchvision.datasets, found 'Shape'; .* Shapes"),
        ("wrap", {}, ValueError, "found 'wrap'"),
        ("Rootless", {}, ValueError, "found 'Rootless'"),
        ("Shapes", {"arguments": {"trains": 1}}, ValueError, "arguments of Shapes cannot be trains; valid .* train$"),
        ("Shapes", {"arguments": {"transform": 1}}, ValueError, "arguments of Shapes cannot be transform"),
        ("Shapes", {"test_arguments": {"root": "x"}}, ValueError, "arguments of Shapes cannot be root"),
        ("Numbers", {"arguments": {"split": "all"}}, ValueError, "Numbers cannot be made with .*Unknown value 'all'"),
        ("Numbers", {"download": True}, ValueError, "download must be False for Numbers, which torchvision cannot"),
        ("Numbers", {"labels": "Smiling"}, ValueError, "Numbers has no attribute 'Smiling'; valid .* True or False"),
        ("Faces", {"labels": "smile"}, ValueError, "Faces has no attribute 'smile'; valid would be one of .*Smiling"),
        ("Faces", {}, ValueError, r"Faces has Tensor of shape \(2,\); valid .* labels=False, or an attribute, as Smil"),
        ("Strings", {}, ValueError, "labels=True needs an integer for each image, Strings has str; .* labels=False$"),
        ("Faces", {"labels": False, "partition": "by_label"}, ValueError, "'faces' has none"),
        ("Packed", {}, ImportError, "torchvision's Packed needs a package that is not installed: packing"),
        ("Empty", {}, ValueError, "Empty has no images in root="),
        ("Shapes", {"labels": 1}, TypeError, "labels must be True, False or the name of an attribute, found 1"),
        ("Shapes", {"channels": 2}, ValueError, r"channels must be 1 \(grey\) or 3 \(RGB\), found 2"),
    ],
)
def test_what_cannot_be_used_is_said_when_it_is_made(root, name, arguments, kind, message):
    with pytest.raises(kind, match=message):
        make(name, root, **arguments)


def test_images_that_are_no_pictures_or_cannot_be_read_are_named(root, monkeypatch):
    with pytest.raises(TypeError, match=r"torchvision's Arrays\(.*\) must hold Pillow's images, found ndarray"):
        make("Arrays", root).load()[0]
    images = make("Shapes", root).load()
    monkeypatch.setattr(Shapes, "__getitem__", lambda self, index: 1 / 0)
    with pytest.raises(ValueError, match=r"cannot read image 5 of torchvision's Shapes\(.*division"):
        images[5]


def test_a_test_part_with_other_classes_is_an_error(root, monkeypatch):
    module = make("Numbers", root)
    monkeypatch.setattr(source, "read_labels", lambda *_: torch.tensor([7, 8, 9]))
    with pytest.raises(ValueError, match=r"labels must be from 7 to 9, one of 2 classes, found \[8\]"):
        module.load_test()


def test_without_torchvision_the_error_names_the_extra(root, monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision.datasets")
    monkeypatch.setitem(sys.modules, "torchvision", None)  # for `import` as if it were not there
    with pytest.raises(ImportError, match=r"not installed: pip install 'lightning-decgan\[torchvision\]'"):
        make("CIFAR10", root)


def test_a_torchvision_of_another_torch_is_told_from_a_missing_one(root, monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(source.importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"does not fit torch .*operator torchvision::nms does not exist"):
        make("CIFAR10", root)
