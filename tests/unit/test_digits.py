"""The digits, and what every DataModule here does: split by a seed, full batches, a shard a worker, pickling."""

import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits

from lightning_decgan.data import DigitsDataModule, InMemoryImages
from lightning_decgan.data.images import resize_images


def everything(module: DigitsDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [module.train_dataset[i] for i in range(len(module.train_dataset))]
    pairs += [module.val_dataset[i] for i in range(len(module.val_dataset))]
    images, labels = zip(*pairs, strict=True)
    return torch.stack(images), torch.stack(labels)


def test_training_and_validation_together_are_all_digits_once_scaled_to_minus_one_to_one():
    module = DigitsDataModule()
    module.setup()
    images, labels = everything(module)
    digits = load_digits()
    expected = np.concatenate([digits.images.reshape(-1, 64) / 8.0 - 1.0, digits.target[:, None]], axis=1)
    found = np.concatenate([images.reshape(-1, 64).numpy(), labels[:, None].numpy()], axis=1)
    np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=1e-7)
    assert len(module.val_dataset) == round(0.2 * 1797)
    assert set(module.train_dataset.indices).isdisjoint(module.val_dataset.indices)


def test_the_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first, again, other = DigitsDataModule(seed=3), DigitsDataModule(seed=3), DigitsDataModule(seed=4)
    for module in (first, again, other):
        module.setup()
        torch.rand(7)
    assert first.val_dataset.indices == again.val_dataset.indices
    assert first.val_dataset.indices != other.val_dataset.indices
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_setup_leaves_the_global_random_numbers_alone_and_changes_nothing_the_second_time():
    before = torch.get_rng_state()
    module = DigitsDataModule()
    module.setup("fit")
    images = module.train_dataset.dataset
    module.setup("validate")
    assert module.train_dataset.dataset is images
    assert torch.equal(before, torch.get_rng_state())


def test_training_batches_are_all_full_and_labels_are_int64():
    module = DigitsDataModule(batch_size=100)
    module.setup()
    batches = list(module.train_dataloader())
    assert len(batches) == len(module.train_dataset) // 100
    assert {tuple(images.shape) for images, _ in batches} == {(100, 1, 8, 8)}
    assert {images.dtype for images, _ in batches} == {torch.float32}
    assert {labels.dtype for _, labels in batches} == {torch.int64}
    assert sum(len(labels) for _, labels in module.val_dataloader()) == len(module.val_dataset)
    assert sum(len(labels) for _, labels in module.test_dataloader()) == len(module.val_dataset)


@pytest.mark.parametrize("image_size", [9, 28, 64])
def test_larger_digits_keep_range_and_mean(image_size):
    small, large = DigitsDataModule(), DigitsDataModule(image_size=image_size)
    small.setup()
    large.setup()
    before, after = small.val_dataset[5][0], large.val_dataset[5][0]
    assert after.shape == (1, image_size, image_size)
    assert after.min() >= -1
    assert after.max() <= 1
    assert abs(before.mean() - after.mean()) < 0.05


def test_shrinking_is_antialiased():
    stripes = torch.ones(1, 1, 32, 32)
    stripes[..., ::2] = -1
    assert resize_images(stripes, 8)[..., 2:-2].abs().max() < 0.1  # without antialiasing: 1
    assert resize_images((stripes * 127.5 + 127.5).byte(), 8).dtype == torch.uint8


def test_unsigned_bytes_are_scaled_when_read_one_by_one_or_in_batches():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    images = InMemoryImages(pixels, torch.arange(4))
    expected = pixels.double() / 127.5 - 1
    torch.testing.assert_close(images[2][0].double(), expected[2], atol=1e-7, rtol=0)
    batch = images.__getitems__([3, 0])
    torch.testing.assert_close(torch.stack([image for image, _ in batch]).double(), expected[[3, 0]], atol=1e-7, rtol=0)
    assert [label.item() for _, label in batch] == [3, 0]


def test_the_fingerprint_sees_one_changed_pixel_and_one_changed_label():
    pixels, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    digests = {InMemoryImages(pixels, labels).fingerprint(), InMemoryImages(pixels.clone(), labels).fingerprint()}
    assert len(digests) == 1
    pixels[3, 0, 7, 7] = 1
    digests.add(InMemoryImages(pixels, labels).fingerprint())
    labels[0] = 1
    digests.add(InMemoryImages(pixels, labels).fingerprint())
    assert len(digests) == 3


def test_a_module_that_was_set_up_survives_pickling():
    module = DigitsDataModule(batch_size=8)
    module.setup()
    copy = pickle.loads(pickle.dumps(module))
    for mine, theirs in zip(module.val_dataloader(), copy.val_dataloader(), strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


class FourWorkers:
    world_size = 4
    global_rank = 0


def test_fewer_images_than_one_batch_on_every_worker_is_an_error_naming_the_sizes():
    module = DigitsDataModule(batch_size=400)
    module.setup()
    assert len(module.train_dataloader()) == 3  # alone it is enough
    module.trainer = FourWorkers()
    with pytest.raises(
        ValueError, match=r"batch_size=400 on 4 worker.*needs at least 1600.*found 1438.*batch_size=359"
    ):
        module.train_dataloader()
    module.batch_size = 359
    assert len(module.train_dataloader()) == 4


def test_images_before_setup_are_an_error_that_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"DigitsDataModule.setup\(\) must be called"):
        DigitsDataModule().train_dataloader()


@pytest.mark.parametrize(
    ("argument", "value", "kind", "message"),
    [
        ("batch_size", 0, ValueError, "batch_size must be an integer >= 1, found 0"),
        ("batch_size", 1.5, TypeError, "batch_size must be an integer >= 1, found 1.5"),
        ("batch_size", True, TypeError, "found True"),
        ("image_size", 7, ValueError, "image_size must be an integer from 8 to 64, found 7"),
        ("image_size", 10**6, ValueError, "image_size must be an integer from 8 to 64"),
        ("num_workers", -1, ValueError, "num_workers must be an integer >= 0, found -1"),
        ("seed", -1, ValueError, "seed must be"),
        ("validation_fraction", 0.0, ValueError, "validation_fraction must lie strictly between 0 and 1, found 0.0"),
        ("validation_fraction", float("nan"), ValueError, "validation_fraction"),
        ("validation_fraction", "a", TypeError, "validation_fraction must be a number"),
    ],
)
def test_bad_arguments_are_named(argument, value, kind, message):
    with pytest.raises(kind, match=message):
        DigitsDataModule(**{argument: value})


def test_a_fraction_that_leaves_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="leaves none to train on"):
        DigitsDataModule(validation_fraction=0.9999).setup()


class Counting(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch, _):
        self.seen.append(tuple(batch[0].shape))
        return self.weight * batch[0].mean()

    def validation_step(self, batch, _):
        self.seen.append(tuple(batch[0].shape))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_takes_it(tmp_path):
    model = Counting()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=DigitsDataModule(batch_size=16, image_size=12))
    assert model.seen == [(16, 1, 12, 12)] * 3
