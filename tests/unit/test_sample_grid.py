"""Pictures: the layout of a grid, what is drawn when, and that drawing changes nothing."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_decgan.callbacks import SampleGrid, image_grid, save_png


class Painter(LightningModule):
    """Trains a layer a little and paints random images through dropout, so that modes and random numbers show."""

    def __init__(self, channels=1, optimizers=1):
        super().__init__()
        self.automatic_optimization = False
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout()
        self.channels = channels
        self.number_of_optimizers = optimizers
        self.drawn = []

    def sample(self, n):
        assert not self.dropout.training
        assert not torch.is_grad_enabled()
        image = torch.rand(n, self.channels, 8, 8) * 2 - 1
        self.drawn.append(image)
        return image

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(self.number_of_optimizers)]

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers() if self.number_of_optimizers > 1 else [self.optimizers()]
        for optimizer in optimizers:
            optimizer.zero_grad()
            self.manual_backward(self.layer(self.dropout(batch[0])).square().mean())
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        pass


def fit(module, callback, folder, batches=4, logger=False):
    data = DataLoader(TensorDataset(torch.arange(4.0 * batches).reshape(batches, 4)))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback] if callback else [],
        logger=logger,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, data)
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_grid_holds_every_image_enlarged_and_in_reading_order():
    images = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    grid = image_grid(images, columns=3)
    side, gap = 48, 2  # 8 pixels become 48 by a factor of 6
    assert grid.shape == (1, 2 * (side + gap) + gap, 3 * (side + gap) + gap)
    assert grid.dtype == torch.uint8
    for index, value in enumerate((0, 64, 128, 191, 255)):
        top, left = gap + (index // 3) * (side + gap), gap + (index % 3) * (side + gap)
        assert grid[0, top : top + side, left : left + side].unique().tolist() == [value]
    assert grid[0, -side - gap :, -side - gap :].unique().tolist() == [96], "the place of the sixth image is empty"


def test_enlarging_repeats_pixels_and_invents_none():
    image = torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]])
    grid = image_grid(image)[0, 2:-2, 2:-2]
    assert grid.shape == (48, 48)
    assert grid[:24, :24].unique().tolist() == [0]
    assert grid[:24, 24:].unique().tolist() == [255]


def test_values_outside_the_range_are_clamped_not_wrapped():
    grid = image_grid(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1))
    assert set(grid.unique().tolist()) == {0, 96, 255}


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 2, 8, 8), (1, 8, 8), (4, 3, 0, 8)])
def test_what_is_no_stack_of_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must have the shape .* found \("):
        image_grid(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_of_its_grid(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    path = save_png(image, tmp_path / "deep" / "image.png")
    with Image.open(path) as opened:
        assert opened.size == (7, 5)
        pixels = torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.uint8).reshape(5, 7, channels)
    assert torch.equal(pixels.permute(2, 0, 1), image)
    assert names(tmp_path / "deep") == ["image.png"], "no temporary file stays behind"


def test_a_write_that_fails_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path, monkeypatch):
    target = tmp_path / "image.png"
    target.write_bytes(b"the picture before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_png(torch.zeros(1, 4, 4, dtype=torch.uint8), target)
    assert names(tmp_path) == ["image.png"]
    assert target.read_bytes() == b"the picture before"


def test_by_default_pictures_are_drawn_before_training_and_at_validation_only(tmp_path):
    fit(Painter(), SampleGrid(samples=4), tmp_path)
    assert names(tmp_path / "samples") == ["step-000000-model.png", "step-000004-model.png"]


def test_steps_are_batches_however_many_optimizers_step_in_each(tmp_path):
    fit(Painter(optimizers=2), SampleGrid(every_n_steps=2, samples=4), tmp_path, batches=5)
    assert names(tmp_path / "samples") == [f"step-00000{step}-model.png" for step in (0, 2, 4, 5)]


def test_every_picture_of_a_run_is_of_the_same_latent_points(tmp_path):
    module = Painter()
    fit(module, SampleGrid(every_n_steps=1, samples=4, seed=3), tmp_path)
    assert len(module.drawn) > 3
    assert all(torch.equal(images, module.drawn[0]) for images in module.drawn)


def test_drawing_does_not_change_the_training(tmp_path):
    weights = []
    for callback in (None, SampleGrid(every_n_steps=1, samples=4)):
        torch.manual_seed(0)
        module = Painter()
        fit(module, callback, tmp_path)
        weights.append(module.layer.weight.detach().clone())
        assert module.training
    assert torch.equal(*weights)


def test_a_function_of_ones_own_draws_for_a_module_that_cannot(tmp_path):
    class Silent(Painter):
        sample = None

    callback = SampleGrid(samples=6, sample=lambda module, n: torch.zeros(n, 3, 8, 8), dirpath=tmp_path / "mine")
    fit(Silent(), callback, tmp_path)
    assert names(tmp_path / "mine") == ["step-000000-model.png", "step-000004-model.png"]
    assert callback.last_path == tmp_path / "mine" / "step-000004-model.png"
    with pytest.raises(TypeError, match=r"SampleGrid needs a module with a method sample\(n\), found Silent"):
        fit(Silent(), SampleGrid(), tmp_path)


def test_the_picture_says_whose_model_it_shows(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    callback = SampleGrid(samples=2, dirpath=tmp_path)
    for evaluate, training, name in [
        ("consensus", False, "consensus"),
        ("consensus", True, "worker-0"),
        ("local", False, "worker-0"),
    ]:
        trainer.strategy.evaluate = evaluate
        callback._draw(trainer, Painter(), training=training)
        assert callback.last_path.name == f"step-000000-{name}.png"


def test_tensorboard_gets_the_same_pictures(tmp_path):
    fit(
        Painter(), SampleGrid(samples=4, columns=2), tmp_path, logger=TensorBoardLogger(tmp_path, name="", version="tb")
    )
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    images = events.Images("samples/model")
    assert [image.step for image in images] == [0, 4]
    assert (images[0].width, images[0].height) == (102, 102)


@pytest.mark.parametrize("setting", ["every_n_steps", "samples", "columns", "seed"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_settings_that_are_no_counts_are_refused(setting, value):
    with pytest.raises(
        ValueError if type(value) is int else TypeError, match=rf"{setting} must be an integer >= \d, found {value}"
    ):
        SampleGrid(**{setting: value})
