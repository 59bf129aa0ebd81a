"""Features of real images: kept by what determines them, and made anew when their file is damaged."""

import os
import resource
import signal
import warnings

import pytest
import torch

from lightning_decgan.data import DigitsDataModule, ImageDataModule, InMemoryImages
from lightning_decgan.metrics import ClassifierFeatures, real_features
from lightning_decgan.metrics.extraction import extract
from lightning_decgan.metrics.extractors import network_digest
from lightning_decgan.metrics.feature_cache import write_tensors


class Squares(ImageDataModule):
    """Forty small random images."""

    name = "squares"
    channels = 1
    num_classes = 2
    class_names = ("a", "b")

    def __init__(self, change: float = 0.0, fraction: float = 0.25, seed: int = 0) -> None:
        super().__init__(4, 8, fraction, 0, seed, maximum_image_size=8)
        self.images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
        self.images[7, 0, 0, 0] += change

    def load(self) -> InMemoryImages:
        return InMemoryImages(self.images, torch.zeros(40, dtype=torch.int64))


class Counting(ClassifierFeatures):
    """Knows how many images it has seen."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


def network(seed: int = 0, name: str = "net") -> Counting:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Counting(1, 8, 2, num_features=5, name=name).freeze()


def test_features_are_those_of_the_images_in_the_order_of_the_data_set(tmp_path):
    data, net = Squares(), network()
    data.setup()
    for part, dataset in (("train", data.train_dataset), ("validation", data.val_dataset)):
        images = torch.stack([image for image, _ in dataset])
        found = real_features(data, net, part, cache_dir=tmp_path, batch_size=7)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, extract(net, images, real=True))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".lock", ".pt", ".pt"]


class WithTestSet(Squares):
    """The same with a test set of its own."""

    def load_test(self) -> InMemoryImages:
        return InMemoryImages(-self.images[:6], torch.zeros(6, dtype=torch.int64))


def test_features_of_a_test_set_are_those_of_its_images_and_kept_by_them(tmp_path):
    net = network()
    found = real_features(WithTestSet(), net, "test", cache_dir=tmp_path)
    torch.testing.assert_close(found, extract(net, -WithTestSet().images[:6], real=True))
    negative = WithTestSet()
    negative.images.neg_()
    torch.testing.assert_close(
        real_features(negative, net, "test", cache_dir=tmp_path), extract(net, WithTestSet().images[:6], real=True)
    )
    with pytest.raises(ValueError, match="part test is not to be had: squares has no test set of its own"):
        real_features(Squares(), net, "test", cache_dir=tmp_path)


def test_the_second_time_a_few_images_are_compared_and_no_more(tmp_path):
    net = network()
    first = real_features(Squares(), net, cache_dir=tmp_path)
    assert net.seen == 10
    assert torch.equal(real_features(Squares(), net, cache_dir=tmp_path), first)
    assert net.seen == 14


def test_features_of_a_network_whose_code_has_changed_are_computed_again(tmp_path, monkeypatch):
    net = network()
    first = real_features(Squares(), net, cache_dir=tmp_path)
    digest, plain = network_digest(net), Counting.forward
    monkeypatch.setattr(Counting, "forward", lambda self, images: plain(self, images.flip(-1)))
    assert network_digest(net) == digest, "the weights are the same"
    with pytest.warns(
        UserWarning, match=r"cached real features .* are not what net computes now; computing them again"
    ):
        changed = real_features(Squares(), net, cache_dir=tmp_path)
    assert not torch.allclose(changed, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(real_features(Squares(), net, cache_dir=tmp_path), changed)


@pytest.mark.parametrize(
    ("data", "other", "part"),
    [
        (Squares(change=1e-3), network(), "validation"),
        (Squares(fraction=0.5), network(), "validation"),
        (Squares(seed=3), network(), "validation"),
        (Squares(), network(seed=1), "validation"),
        (Squares(), network(name="other"), "validation"),
        (Squares(), network(), "train"),
    ],
    ids=["one pixel", "the size of the split", "the split", "the network's weights", "its name", "the part"],
)
def test_anything_else_is_another_file(tmp_path, data, other, part):
    real_features(Squares(), network(), cache_dir=tmp_path)
    other.seen = 0
    real_features(data, other, part, cache_dir=tmp_path)
    assert other.seen == (len(data.train_dataset) if part == "train" else len(data.val_dataset))
    assert len(list(tmp_path.glob("*.features.pt"))) == 2


class Attack:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped", "huge", "code", "not finite", "float64"])
def test_a_damaged_file_is_reported_and_computed_again(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    net = network()
    right = real_features(Squares(), net, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.features.pt")
    content = torch.load(path, weights_only=True)
    if damage == "huge":
        path.write_bytes(path.read_bytes() + bytes(2 * 2**20))
    elif damage == "code":
        torch.save({**content, "features": Attack()}, path)
    elif damage in ("not finite", "float64"):
        wrong = right * float("nan") if damage == "not finite" else right.double()
        write_tensors(path, content["key"], "features", {"features": wrong})
    elif damage == "flipped":
        raw = bytearray(path.read_bytes())
        raw[raw.index(right.numpy().tobytes()) + 3] ^= 1  # inside the tensor: torch loads this without a word
        path.write_bytes(raw)
    else:
        raw = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"no features", "truncated": raw[: len(raw) // 2]}[damage])
    with pytest.warns(UserWarning, match=r"cached real features .* are not usable .* computing them again"):
        assert torch.equal(real_features(Squares(), net, cache_dir=tmp_path), right)
    assert not (tmp_path / "pwned").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(real_features(Squares(), net, cache_dir=tmp_path), right)


def test_the_environment_names_the_folder_and_an_argument_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DECGAN_CACHE_DIR", str(tmp_path / "named"))
    real_features(Squares(), network())
    assert len(list((tmp_path / "named").glob("squares-validation-net-*.features.pt"))) == 1
    real_features(Squares(), network(), cache_dir=tmp_path / "argument")
    assert len(list((tmp_path / "argument").glob("*.features.pt"))) == 1


def test_a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be cached"):
        found = real_features(Squares(), network(), cache_dir=tmp_path / "file")
    assert torch.equal(found, real_features(Squares(), network(), cache_dir=tmp_path))


def test_a_disk_that_is_full_costs_a_warning_and_leaves_nothing_behind(tmp_path):
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.warns(UserWarning, match="could not be cached"):
            real_features(Squares(), network(), "train", cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_cache_is_for_everybody_whom_the_umask_lets_in(tmp_path):
    before = os.umask(0o002)
    try:
        real_features(Squares(), network(), cache_dir=tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o664}


def test_the_digest_of_a_network_covers_every_buffer_and_dtype():
    one, other = network(), network()
    assert network_digest(one) == network_digest(other)
    other.body[1].running_mean[0] += 1e-6
    assert network_digest(one) != network_digest(other)
    assert network_digest(one) != network_digest(network().double())
    assert len(network_digest(torch.nn.Flatten())) == 64
    assert len(network_digest(torch.nn.Linear(2, 2, dtype=torch.bfloat16))) == 64


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="part must be one of train, validation, test, found 'all'"):
        real_features(Squares(), network(), "all", cache_dir=tmp_path)
    with pytest.raises(TypeError, match="datamodule must be an ImageDataModule, found list"):
        real_features([], network(), cache_dir=tmp_path)
    with pytest.raises(TypeError, match="features must be a torch"):
        real_features(Squares(), torch.nn.Identity(), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"images must be \(n, 1, 16, 16\), found \(10, 1, 8, 8\)"):
        real_features(Squares(), ClassifierFeatures(1, 16, 10).freeze(), cache_dir=tmp_path)
    colours = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.Flatten())
    colours.name, colours.num_features = "colours", 5
    with pytest.raises(ValueError, match=r"network 'colours' must take images \(n, 1, 8, 8\): .*3 channels"):
        real_features(Squares(), colours, cache_dir=tmp_path)
    digits = DigitsDataModule()
    assert real_features(digits, ClassifierFeatures(1, 8, 10).freeze(), cache_dir=tmp_path).shape == (359, 64)
