"""What the DataModules hand to each worker: its shard, as many batches as everybody's, whatever the partition."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from lightning_decgan.data import DigitsDataModule, ImageDataModule, ImageFolderDataModule, InMemoryImages, ShardSampler


class Place:
    """What a DataModule asks its Trainer."""

    def __init__(self, rank, workers):
        self.global_rank, self.world_size = rank, workers


def loaders(workers, **arguments):
    for rank in range(workers):
        module = DigitsDataModule(batch_size=20, **arguments)
        module.trainer = Place(rank, workers)
        module.setup("fit")
        yield module, module.train_dataloader()


def labels_in(loader):
    return {int(label) for _, labels in loader for label in labels}


def test_by_label_each_worker_sees_its_classes_and_nothing_else():
    seen = [labels_in(loader) for _, loader in loaders(4, partition="by_label")]
    assert sorted(map(len, seen)) == [2, 2, 3, 3]
    assert set.union(*seen) == set(range(10))
    assert sum(map(len, seen)) == 10


def test_the_images_that_come_are_those_that_were_dealt():
    for rank, (module, loader) in enumerate(loaders(3, partition="dirichlet", alpha=0.3)):
        own = module.shards(3)[rank]
        mine = {tuple(module.train_dataset[i][0].flatten().tolist()) for i in own}
        assert {tuple(image.flatten().tolist()) for images, _ in loader for image in images} <= mine


@pytest.mark.parametrize("workers", [1, 3, 7])
@pytest.mark.parametrize("partition", ["by_label", "dirichlet"])
def test_all_workers_have_as_many_batches_as_with_iid(partition, workers):
    for rank, (module, loader) in enumerate(loaders(workers, partition=partition, alpha=0.2)):
        everything = module.train_dataset
        dealt_anew = DistributedSampler(everything, num_replicas=workers, rank=rank)
        assert len(loader) == len(DataLoader(everything, batch_size=20, sampler=dealt_anew, drop_last=True))
        assert len(list(loader)) == len(loader)
        assert len(loader.sampler) == math.ceil(len(everything) / workers)


def test_iid_stays_a_plain_shuffled_loader_for_lightning_to_shard():
    for module, loader in loaders(2):
        assert module.partition == "iid"
        assert type(loader.sampler) is RandomSampler
        assert len(loader.dataset) == len(module.train_dataset) == len(module.shards(2)[1])


@pytest.mark.parametrize("strategy", ["ddp", "decentralized_gossip"])
@pytest.mark.parametrize(("partition", "replaced"), [("iid", True), ("by_label", False), ("dirichlet", False)])
def test_lightning_puts_its_sampler_only_where_all_images_are_dealt_anew(strategy, partition, replaced):
    trainer = Trainer(strategy=strategy, accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    for _, loader in loaders(2, partition=partition):
        assert trainer._data_connector._requires_distributed_sampler(loader) is replaced


def test_the_order_follows_the_seed_of_the_run(monkeypatch):
    def first_labels(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        (_, loader), *_ = loaders(2, partition="by_label")
        assert isinstance(loader.sampler, ShardSampler)
        return next(iter(loader))[1].tolist()

    assert first_labels(1) == first_labels(1) != first_labels(2)


def test_the_partition_changes_with_its_own_seed_while_the_split_stays():
    modules = [DigitsDataModule(partition="by_label", partition_seed=seed) for seed in (None, 0, 5)]
    for module in modules:
        module.setup()
    default, same, other = ([shard.tolist() for shard in module.shards(4)] for module in modules)
    assert default == same != other
    assert len({module.fingerprint() for module in modules}) == 1
    assert len({tuple(module.val_dataset.indices) for module in modules}) == 1
    assert DigitsDataModule(seed=3).partition_seed == 3


def test_labels_are_those_of_the_training_images_in_order():
    module = DigitsDataModule()
    module.setup()
    assert module.train_labels.tolist() == [int(module.train_dataset[i][1]) for i in range(len(module.train_dataset))]
    assert module.train_labels.dtype == torch.int64


def test_histograms_count_what_each_worker_trains_on():
    module = DigitsDataModule(partition="dirichlet", alpha=0.5)
    module.setup()
    rows = module.class_histograms(3)
    labels = module.train_labels.tolist()
    assert [sum(row) for row in rows] == [len(shard) for shard in module.shards(3)]
    assert [sum(column) for column in zip(*rows, strict=True)] == [labels.count(label) for label in range(10)]
    iid = DigitsDataModule()
    iid.setup()
    assert iid.class_histograms(2) == [[labels.count(label) for label in range(10)]] * 2, "all draw from all"


def test_loaders_made_anew_within_a_fit_keep_the_worker_its_shard():
    """Workers that are lost change ranks and numbers at another moment on every worker."""
    ((_, _), (module, before)) = loaders(2, partition="by_label")
    module.trainer = Place(0, 1)
    assert labels_in(module.train_dataloader()) == labels_in(before)
    module.setup("fit")
    assert labels_in(module.train_dataloader()) == set(range(10)), "another fit deals anew"


def test_a_shard_smaller_than_a_batch_is_said_and_repeated():
    (module, *_) = (module for module, _ in loaders(2, partition="by_label"))
    module.shards = lambda workers: [[0, 1, 2], list(range(3, 60))]
    with pytest.warns(UserWarning, match=r"gives worker 0 3 training image\(s\), fewer than batch_size=20"):
        loader = module.train_dataloader()
    counts = torch.tensor([index for batch in loader.batch_sampler for index in batch]).bincount()
    assert sorted(counts.tolist()) == [6, 7, 7]


def test_two_partitions_have_one_digest_only_if_they_are_the_same():
    def digest(**arguments):
        module = DigitsDataModule(**arguments)
        module.setup()
        return module.partition_digest()

    assert digest(partition="by_label") == digest(partition="by_label", batch_size=3)
    others = [{}, {"partition": "by_label"}, {"partition": "dirichlet"}, {"partition": "dirichlet", "alpha": 2}]
    others += [{"partition": "by_label", "partition_seed": 1}, {"partition": "by_label", "seed": 1}]
    assert len({digest(**arguments) for arguments in others}) == len(others)
    assert 0 <= digest() < 2**62


def test_a_data_set_that_keeps_no_labels_is_read_for_them():
    class Pairs(ImageDataModule):
        name, channels, num_classes, class_names = "pairs", 1, 2, ("even", "odd")

        def load(self):
            images = InMemoryImages(torch.zeros(40, 1, 8, 8), torch.arange(40) % 2)
            return [images[i] for i in range(40)]

    module = Pairs(4, 8, 0.1, 0, 0, maximum_image_size=8, partition="by_label")
    module.setup()
    assert sorted(map(tuple, module.class_histograms(2))) == [
        (0, sum(i % 2 for i in module.train_dataset.indices)),
        (sum(i % 2 == 0 for i in module.train_dataset.indices), 0),
    ]


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "green", "blue"):
        (tmp_path / colour).mkdir()
        for number in range(8):
            Image.new("RGB", (9, 9), colour).save(tmp_path / colour / f"{number}.png")
    return tmp_path


def test_folders_are_classes_to_be_dealt_out(folder):
    module = ImageFolderDataModule(folder, batch_size=2, image_size=8, partition="by_label", validation_fraction=0.25)
    module.trainer = Place(1, 3)
    module.setup("fit")
    colours = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "green": (-1.0, 0.004, -1.0)}
    for images, labels in module.train_dataloader():
        (label,) = set(labels.tolist())
        for image in images:
            assert image[:, 4, 4].tolist() == pytest.approx(colours[module.class_names[label]], abs=1e-3)


def test_images_without_labels_cannot_be_dealt_out_by_them(folder):
    for partition in ("by_label", "dirichlet"):
        with pytest.raises(ValueError, match=rf"partition='{partition}' deals images out by their labels, and .* none"):
            ImageFolderDataModule(folder, labels=False, partition=partition)
    ImageFolderDataModule(folder, labels=False)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"partition": "label"}, ValueError, "partition must be one of 'iid', 'by_label', 'dirichlet', found 'label'"),
        ({"alpha": 0}, ValueError, "alpha must be a number"),
        ({"partition_seed": -1}, ValueError, "partition_seed must be an integer from 0"),
        ({"partition_seed": 0.5}, TypeError, "partition_seed must be an integer from 0"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        DigitsDataModule(**arguments)


def test_more_workers_than_a_class_has_images_is_an_error_when_the_loader_is_made():
    module = DigitsDataModule(batch_size=1, partition="by_label", validation_fraction=0.98)
    module.trainer = Place(0, 35)
    module.setup("fit")
    with pytest.raises(ValueError, match=r"would share class \d"):
        module.train_dataloader()
