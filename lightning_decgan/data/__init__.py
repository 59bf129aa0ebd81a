"""DataModules of images for GANs: batches are ``(images in [-1, 1], labels)``, and nothing is ever downloaded."""

from lightning_decgan.data.base import ImageDataModule, InMemoryImages
from lightning_decgan.data.digits import DigitsDataModule
from lightning_decgan.data.fashion_mnist import FashionMNISTDataModule
from lightning_decgan.data.idx import IdxError, read_idx
from lightning_decgan.data.image_folder import FolderImages, ImageFolderDataModule, read_image

__all__ = [
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FolderImages",
    "IdxError",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryImages",
    "read_idx",
    "read_image",
]
