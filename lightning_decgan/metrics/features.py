"""A small classifier whose inner layer is the feature space of fidelity scores, trained on the data's own labels.

Inception's weights suit photographs and are a download; digits and clothes need neither. The network is trained once,
cached on disk under a name that depends on everything that determines it, and frozen. It never downloads, never
unpickles, never leaves a half-written file, and never moves the caller's random numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lightning_decgan.checks import check_integer
from lightning_decgan.data.base import MINIMUM_IMAGE_SIZE, ImageDataModule
from lightning_decgan.metrics.feature_cache import cache_key, default_cache_dir, exclusive, load_weights, save_weights

ARCHITECTURE_VERSION = 1
"""Counts changes of the network or of its training, so that a cache of an older one is not taken for this one."""

_SMALLEST_MAP = 4
_SHOW_PROGRESS_AFTER_SECONDS = 2.0
_TRAINING_IMAGES = 60_000  # epochs are chosen so that about this many images are seen ...
_EPOCHS_RANGE = (4, 30)  # ... within these bounds
_BATCH_IMAGES = 64
_LEARNING_RATE = 4e-3


class ClassifierFeatures(nn.Module):
    """A convolutional classifier: images -> features -> logits, the features being the last hidden layer.

    Convolutions of stride 2 halve the images until the maps are at most 4 x 4, one of stride 1 follows, maps are
    averaged to 2 x 2, and a linear layer with a rectifier gives the features; one linear layer, ``head``, gives the
    logits. In ``float32``, whatever autocast says.

    Args:
        channels: 1 to 3.
        image_size: The side of the square images in pixels, at least 8.
        num_classes: At least 2.
        num_features: The dimension of the features.
        name: Names the network in tables, e.g. ``"digits_cnn"``.

    Attributes:
        accuracy: The share of validation images classified rightly, ``None`` for a network that was not trained here.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is out of range, or images have another shape.

    Example:
        >>> network = ClassifierFeatures(channels=1, image_size=28, num_classes=10).freeze()
        >>> images = torch.zeros(5, 1, 28, 28)
        >>> network(images).shape, network.logits(images).shape
        (torch.Size([5, 64]), torch.Size([5, 10]))
    """

    def __init__(
        self, channels: int, image_size: int, num_classes: int, *, num_features: int = 64, name: str = "cnn"
    ) -> None:
        super().__init__()
        self.channels = check_integer("channels", channels, 1, 3)
        self.image_size = check_integer("image_size", image_size, MINIMUM_IMAGE_SIZE)
        self.num_classes = check_integer("num_classes", num_classes, 2)
        self.num_features = check_integer("num_features", num_features, 1)
        self.name = name
        self.accuracy: float | None = None
        self._frozen = False
        widths = [16 if self.image_size > 2 * MINIMUM_IMAGE_SIZE else 32]
        side = self.image_size
        layers: list[nn.Module] = []
        previous = self.channels
        while side > _SMALLEST_MAP:
            layers += _convolution(previous, widths[-1], stride=2)
            previous, side = widths[-1], math.ceil(side / 2)
            widths.append(min(2 * previous, 64))
        layers += [*_convolution(previous, widths[-1], stride=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        self.body = nn.Sequential(*layers, nn.Linear(4 * widths[-1], self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: ``(n, channels, image_size, image_size)`` in [-1, 1].

        Returns:
            ``(n, num_features)``, ``float32``.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images must be (n, {', '.join(map(str, expected))}), found {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            return self.body(images.to(self.head.weight.dtype))

    def logits(self, images: Tensor) -> Tensor:
        """Return the class scores before softmax, ``(n, num_classes)``."""
        with torch.autocast(images.device.type, enabled=False):
            return self.head(self(images))

    def freeze(self) -> ClassifierFeatures:
        """Put the network into evaluation mode for good, without gradients for its parameters; returns itself."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> ClassifierFeatures:
        """Like ``nn.Module.train``, but a frozen network stays in evaluation mode whatever it is part of."""
        return super().train(mode and not self._frozen)


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def train_classifier_features(
    datamodule: ImageDataModule,
    *,
    cache_dir: str | Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ClassifierFeatures:
    """Train a :class:`ClassifierFeatures` on a DataModule's labels, or load the one trained before.

    Training is AdamW on cross entropy with a one-cycle learning rate, from ``seed`` alone. The global random number
    generators stay untouched, and it works inside ``torch.no_grad``, ``torch.inference_mode`` and autocast, so it may
    be called from a hook. Processes that call it at once with the same cache take turns: one trains, the others load.
    A cached file that is damaged is reported by a warning and replaced; a folder that cannot be written is reported
    and done without.

    On different machines without a common cache the networks may differ in the last bits: for scores over several
    machines, copy the cached file or share the folder.

    Args:
        datamodule: The data; it is set up if it was not.
        cache_dir: Where trained networks are kept; ``None``: ``$DECGAN_CACHE_DIR``, or ``lightning_decgan/features`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``. The file is called ``<name>-<digest of data, network, epochs and
            seed>.pt``.
        epochs: Passes over the training images; ``None``: as many as make about 60,000 images, between 4 and 30.
        seed: Of the initial weights and the order of images.
        device: Where it is trained; the network returned is on the CPU.
        progress: Show a bar on standard error if training takes longer than two seconds.

    Returns:
        The frozen network, ``name`` being the data's name and ``_cnn``, with its validation ``accuracy``.

    Raises:
        TypeError: If ``datamodule`` is not an ImageDataModule or a number is not an integer.
        ValueError: If the data has no labels, or fewer than two classes.

    Example:
        >>> import tempfile
        >>> from lightning_decgan.data import DigitsDataModule
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     features = train_classifier_features(DigitsDataModule(), cache_dir=folder, epochs=2, progress=False)
        >>> features.name, features.num_features, features.accuracy > 0.5
        ('digits_cnn', 64, True)
    """
    if not isinstance(datamodule, ImageDataModule):
        raise TypeError(f"datamodule must be an ImageDataModule, found {type(datamodule).__name__}")
    datamodule.prepare_data()
    if datamodule.num_classes is None or datamodule.num_classes < 2:
        found = "no labels" if datamodule.num_classes is None else "only one class"
        raise ValueError(
            f"a classifier cannot be trained on {datamodule.name!r}: it has {found}. Put the images of each class into "
            f"a sub-folder of its own, or hand Fidelity a feature network of your own"
        )
    seed = check_integer("seed", seed, 0, 2**63 - 1)
    epochs = None if epochs is None else check_integer("epochs", epochs, 1)
    device = torch.device(device)
    with _own_world(device.type, seed):
        return _load_or_train(datamodule, cache_dir, epochs, seed, device, progress)


def _load_or_train(
    datamodule: ImageDataModule,
    cache_dir: str | Path | None,
    epochs: int | None,
    seed: int,
    device: torch.device,
    progress: bool,
) -> ClassifierFeatures:
    datamodule.setup("fit")
    train, validation = datamodule.train_dataset, datamodule.val_dataset
    if epochs is None:
        fewest, most = _EPOCHS_RANGE
        epochs = min(max(round(_TRAINING_IMAGES / len(train)), fewest), most)
    network = ClassifierFeatures(
        datamodule.channels, datamodule.image_size, datamodule.num_classes or 0, name=f"{datamodule.name}_cnn"
    ).float()
    shape = (datamodule.channels, datamodule.image_size, datamodule.num_classes, ARCHITECTURE_VERSION)
    key = cache_key(data=datamodule.fingerprint(), shape=shape, epochs=epochs, seed=seed, device=device.type)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    path = folder / f"{datamodule.name}-{key[:16]}.pt"
    with exclusive(path):
        accuracy = load_weights(path, key, network)
        if accuracy is None:
            accuracy = _train(network, train, validation, epochs, seed, device, datamodule.num_workers, progress)
            save_weights(path, key, network, accuracy)
    network.accuracy = accuracy
    return network.freeze()


@contextmanager
def _own_world(device_type: str, seed: int) -> Iterator[None]:
    """Gradients on, autocast off, new tensors on the CPU, its generator seeded, one thread; all put back afterwards.

    Where this is often called is a hook of an evaluation: a module made in inference mode could never be used outside,
    and a backward pass under autocast multiplies in half precision though its forward pass did not.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device_type, enabled=False),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
    ):
        # torch.manual_seed would seed every accelerator too, and fork_rng puts back only the CPU's.
        torch.random.default_generator.manual_seed(seed)
        # So small a network gains little by threads, loses tenfold where workers crowd the cores, and rounds by them.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _train(
    network: ClassifierFeatures,
    train: Dataset,
    validation: Dataset,
    epochs: int,
    seed: int,
    device: torch.device,
    num_workers: int,
    progress: bool,
) -> float:
    """Train in place and return the validation accuracy; the network ends on the CPU."""
    images = len(train)  # type: ignore[arg-type]
    loader = DataLoader(
        train,
        batch_size=min(_BATCH_IMAGES, images),
        shuffle=True,
        drop_last=True,  # batch normalization needs more than one image
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs * len(loader))
    with progress_bar(f"training {network.name}", epochs * len(loader), progress) as advance:
        for _ in range(epochs):
            for batch, labels in loader:
                loss = functional.cross_entropy(network.logits(batch.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance()
    network.eval()
    right = 0
    with torch.no_grad():
        for batch, labels in DataLoader(validation, batch_size=512, num_workers=num_workers):
            right += int((network.logits(batch.to(device)).argmax(dim=1).cpu() == labels).sum())
    network.to("cpu")
    return right / len(validation)  # type: ignore[arg-type]


@contextmanager
def progress_bar(text: str, steps: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """Give a function to call each step; once two seconds have passed a bar appears, in a log file one line."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True)
    task = bar.add_task(text, total=steps)
    began = time.monotonic()
    shown = False

    def advance() -> None:
        nonlocal shown
        bar.advance(task)
        if wanted and not shown and time.monotonic() - began > _SHOW_PROGRESS_AFTER_SECONDS:
            shown = True
            if console.is_terminal:
                bar.start()
            else:
                console.print(f"{text}: once, it is kept for the next time")

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
