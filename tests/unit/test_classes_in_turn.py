"""Many images of a conditional GAN, a batch at a time, on many workers: every class as often as any other."""

from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch import nn

from lightning_decgan import DecentralizedGANModule
from lightning_decgan.callbacks import FidelityCallback
from lightning_decgan.callbacks.sample_grid import draw as draw_in_callback
from lightning_decgan.cli.generated import generated_batches, generated_images
from lightning_decgan.cli.sample import draw
from lightning_decgan.metrics import ClassifierFeatures

CLASSES = 300  # more than are drawn at a time


class Telltale(nn.Module):
    """Images that say of which class they are."""

    latent_dim, num_classes = 2, CLASSES

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, latent, labels):
        return self.weight * labels.view(-1, 1, 1, 1).float().expand(-1, 1, 8, 8)


class Critic(Telltale):
    def forward(self, images, labels):
        return self.weight * images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def gan():
    return DecentralizedGANModule(Telltale(), Critic())


def counts(images):
    found = torch.bincount(images[:, 0, 0, 0].long(), minlength=CLASSES)
    return int(found.min()), int(found.max())


def test_what_is_scored_has_every_class_alike(gan):
    images = torch.cat(list(generated_batches(gan, 1000, seed=0)))
    assert counts(images) == (3, 4)
    rows = [0, 255, 256, 511, 999]
    assert torch.equal(generated_images(gan, rows, 1000, 0), images[rows])


def test_what_is_drawn_has_every_class_alike(gan):
    assert counts(draw(gan, 2 * CLASSES)) == (2, 2)
    assert counts(draw(gan, 5, labels=7)) == (0, 5)


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_all_workers_together_score_every_class_alike(gan, workers):
    drawn = []
    for worker in range(workers):
        callback = FidelityCallback(ClassifierFeatures(1, 8, 10), samples=1001, batch_size=64)
        callback.fidelity = Mock(compute=dict, update=lambda images, real: drawn.append(images))
        trainer = SimpleNamespace(
            world_size=workers,
            global_rank=worker,
            sanity_checking=False,
            global_step=0,
            strategy=Mock(),
            fit_loop=MagicMock(),
        )
        callback.on_validation_epoch_end(trainer, gan)
    images = torch.cat(drawn)
    assert len(images) == 1001
    assert counts(images) == (3, 4)


def test_a_module_that_is_no_gan_of_ours_is_asked_as_it_was():
    asked = []
    draw_in_callback(SimpleNamespace(sample=lambda n: asked.append(n), num_classes=3), 5, None, first=2)
    assert asked == [5]
