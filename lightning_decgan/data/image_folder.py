"""A folder of images as a DataModule, decoded by Pillow when they are asked for.

It lists the folder when it is made and reads pixels only when a batch needs them. It never writes into the folder,
never follows symbolic links to other folders, and never skips an image that cannot be read: that is an error naming it.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from lightning_decgan.checks import check_integer
from lightning_decgan.data.base import ImageDataModule
from lightning_decgan.data.partition import Partition

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAXIMUM_IMAGE_SIZE = 1024


def read_image(path: str | os.PathLike[str], image_size: int, channels: int) -> Tensor:
    """Read an image file: turned upright, center-cropped to a square, resized, grey or colour, in [-1, 1].

    The largest centred square is cut out and resized by Pillow's antialiased bicubic filter. Transparent pixels are
    laid on white. Sixteen-bit grey is scaled to eight bits.

    Args:
        path: A PNG, JPEG, WebP or BMP file, told by its content.
        image_size: The side in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        ``(channels, image_size, image_size)``, ``float32``.

    Raises:
        ValueError: If the file cannot be read as such an image, or has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels
            (checked before they are decoded). The message names the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 20), "white").save(f"{folder}/white.png")
        ...     read_image(f"{folder}/white.png", 8, channels=1).unique()
        tensor([1.])
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            pixels, allowed = file.width * file.height, Image.MAX_IMAGE_PIXELS
            if allowed is not None and pixels > allowed:
                raise ValueError(f"{file.width} x {file.height} pixels, allowed are {allowed} in all")
            return image_to_tensor(ImageOps.exif_transpose(file), image_size, channels)
    # Pillow's readers raise many kinds on damaged files; whichever it is, the user needs the file's name.
    except Exception as error:
        raise ValueError(f"cannot read image {os.fspath(path)}: {error}") from error


def image_to_tensor(image: Image.Image, image_size: int, channels: int) -> Tensor:
    """Bring one of Pillow's images to the networks' size, channels and range, as :func:`read_image` says.

    Args:
        image: An image of any mode.
        image_size: The side in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        ``(channels, image_size, image_size)``, ``float32`` in [-1, 1].

    Example:
        >>> image_to_tensor(Image.new("L", (40, 20), 255), 8, channels=3).shape
        torch.Size([3, 8, 8])
    """
    image = _eight_bits(image, "L" if channels == 1 else "RGB")
    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(image, dtype=np.float32)).div_(127.5).sub_(1.0)
    return values.unsqueeze(0) if channels == 1 else values.permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert to ``mode`` ("L" or "RGB"): sixteen-bit grey is not clipped, what lies under alpha is not shown."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert(mode)
    return image.convert(mode)


class FolderImages(Dataset[tuple[Tensor, int]]):
    """Image files, read one by one when asked for.

    Args:
        root: The folder that ``paths`` are relative to.
        paths: Relative paths.
        labels: One label a path.
        image_size: See :func:`read_image`.
        channels: See :func:`read_image`.
    """

    def __init__(self, root: Path, paths: list[str], labels: list[int], image_size: int, channels: int) -> None:
        self.root = root
        self.paths = paths
        self.labels = labels
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.root / self.paths[index], self.image_size, self.channels), self.labels[index]

    def fingerprint(self) -> str:
        """SHA-256 of every file's relative path, label and bytes: reads all files once, decodes none."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            with (self.root / path).open("rb") as file:
                digest.update(f"{path}\0{label}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()


class ImageFolderDataModule(ImageDataModule):
    """The images in a folder and its sub-folders, center-cropped and resized (see :func:`read_image`).

    If the folder has sub-folders with images, each is a class, numbered in the order of their sorted names; images
    deeper inside belong to the sub-folder they are under. Without sub-folders there are no labels: every label is 0,
    ``num_classes`` and ``class_names`` are ``None``. Names that begin with a dot are passed over.

    Args:
        root: The folder.
        batch_size: Images in a batch of one worker.
        image_size: The side in pixels, from 8 to 1024.
        channels: 1 for grey, 3 for RGB.
        validation_fraction: The share of images kept for validation.
        num_workers: Loader processes of each worker; decoding is the cost here, so more than 0 often pays.
        seed: Of the split into training and validation.
        labels: ``False`` takes sub-folders as mere storage: no labels.
        name: What the data is called; ``None`` takes the folder's name.
        partition, alpha, partition_seed: What each worker trains on; see :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: When it is made, if the folder does not exist or has no image in it.
        NotADirectoryError: If ``root`` is a file.
        TypeError: If an integer argument is not an integer.
        ValueError: If an argument is out of range, images lie both in sub-folders and beside them, or ``partition``
            needs labels that there are not. Later, while batches are read, if a file cannot be read as an image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for colour in ("red", "blue"):
        ...         Path(folder, colour).mkdir()
        ...         for number in range(4):
        ...             Image.new("RGB", (20, 30), colour).save(f"{folder}/{colour}/{number}.png")
        ...     data = ImageFolderDataModule(folder, batch_size=2, image_size=16)
        ...     data.setup()
        ...     images, labels = next(iter(data.train_dataloader()))
        >>> data.class_names, images.shape, labels.dtype
        (('blue', 'red'), torch.Size([2, 3, 16, 16]), torch.int64)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 64,
        image_size: int = 64,
        channels: int = 3,
        validation_fraction: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
        labels: bool = True,
        name: str | None = None,
        partition: Partition = "iid",
        alpha: float = 0.5,
        partition_seed: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            image_size,
            validation_fraction,
            num_workers,
            seed,
            maximum_image_size=MAXIMUM_IMAGE_SIZE,
            partition=partition,
            alpha=alpha,
            partition_seed=partition_seed,
        )
        self.channels = check_integer("channels", channels, 1, 3)
        if self.channels == 2:
            raise ValueError("channels must be 1 (grey) or 3 (RGB), found 2")
        # Relative roots are bound now: loader processes and workers may stand in another folder.
        self.root = Path(root).expanduser().absolute()
        # Listed at once: a folder without images is then an error before any worker is started.
        self._paths = list_images(self.root)
        classes = [Path(path).parts[0] if len(Path(path).parts) > 1 else None for path in self._paths]
        self.class_names = _class_names(self.root, classes) if labels else None
        self.num_classes = None if self.class_names is None else len(self.class_names)
        numbers = {label: number for number, label in enumerate(self.class_names or ())}
        self._labels = [numbers.get(label, 0) if label is not None else 0 for label in classes]
        chosen = self.root.name if name is None else name
        self.name = re.sub(r"[^a-z0-9]+", "_", chosen.lower()).strip("_") or "images"
        self._check_partition_has_labels()

    def load(self) -> FolderImages:
        """Return all images, in the order of their sorted relative paths."""
        return FolderImages(self.root, self._paths, self._labels, self.image_size, self.channels)


def list_images(root: Path) -> list[str]:
    """List the image files below ``root`` as sorted relative paths with forward slashes.

    Raises:
        FileNotFoundError: If ``root`` does not exist or holds no image file.
        NotADirectoryError: If it is not a folder.
    """
    if not root.exists():
        raise FileNotFoundError(f"root: the image folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"root must be a folder of images, found the file {root}")
    paths: list[str] = []
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [
            Path(folder, name).relative_to(root).as_posix()
            for name in files
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    if not paths:
        raise FileNotFoundError(f"root: no image in {root} or below; valid extensions are {', '.join(EXTENSIONS)}")
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def _class_names(root: Path, classes: list[str | None]) -> tuple[str, ...] | None:
    names = sorted({label for label in classes if label is not None})
    beside = classes.count(None)
    if names and beside:
        raise ValueError(
            f"{root} has {beside} image(s) beside its sub-folders and {len(classes) - beside} in them, so the "
            f"labels are not clear: put every image into a sub-folder, or pass labels=False"
        )
    return tuple(names) or None
