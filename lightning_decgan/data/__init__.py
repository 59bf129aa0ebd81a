"""DataModules of images for GANs: batches are ``(images in [-1, 1], labels)``; nothing is downloaded unasked."""

from lightning_decgan.data.base import ImageDataModule
from lightning_decgan.data.digits import DigitsDataModule
from lightning_decgan.data.fashion_mnist import FashionMNISTDataModule
from lightning_decgan.data.idx import IdxError, read_idx
from lightning_decgan.data.image_folder import FolderImages, ImageFolderDataModule, read_image
from lightning_decgan.data.images import InMemoryImages
from lightning_decgan.data.partition import dirichlet_shards, shards_by_label
from lightning_decgan.data.shard_sampler import ShardSampler
from lightning_decgan.data.torchvision_images import TorchvisionDataModule

__all__ = [
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FolderImages",
    "IdxError",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryImages",
    "ShardSampler",
    "TorchvisionDataModule",
    "dirichlet_shards",
    "read_idx",
    "read_image",
    "shards_by_label",
]
