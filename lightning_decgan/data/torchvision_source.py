"""torchvision's data sets by name: the class, the data set it makes of a folder, and the labels of its images.

torchvision is imported when a class is asked for, and nowhere else in the package. Nothing is downloaded unless
``download=True`` is passed on.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What the part that is kept for testing is called where it is not "test".
_TEST_SPLITS = {"CLEVRClassification": "val", "ImageNet": "val", "Imagenette": "val", "Places365": "val"}
_TRAINING_SPLITS = ("train", "extra", "unlabeled")
# LSUN's databases: lmdb opens each only once in a process, however many DataModules read it.
_DATABASES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_RESERVED = ("root", "download", "transform", "target_transform", "transforms")


def dataset_class(name: str) -> Any:
    """Find a class of ``torchvision.datasets``.

    Args:
        name: Its name, as "CIFAR10".

    Returns:
        The class.

    Raises:
        ImportError: If torchvision is not installed, or does not fit torch.
        ValueError: If there is no such class of images.
    """
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchvision":
            raise
        raise ImportError(
            f"the data set {name} is torchvision's, which is not installed: pip install 'lightning-decgan[torchvision]'"
        ) from error
    # A build for another torch fails where it registers its operators, not where it is looked for.
    except (RuntimeError, OSError) as error:
        raise ImportError(
            f"the data set {name} is torchvision's, which is installed but does not fit torch {torch.__version__}: "
            f"{error}; install the torchvision that belongs to this torch"
        ) from error
    valid = sorted(
        known
        for known in datasets.__all__
        if inspect.isclass(found := getattr(datasets, known))
        and issubclass(found, datasets.VisionDataset)
        and "root" in inspect.signature(found).parameters
    )
    if name not in valid:
        near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4) or valid
        raise ValueError(
            f"name must be a data set of torchvision.datasets, found {name!r}; valid would be {', '.join(near)}"
        )
    return getattr(datasets, name)


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a class of torchvision does not take, or that are not the user's to give.

    Raises:
        ValueError: Naming them, and those that are valid.
    """
    parameters = inspect.signature(dataset_class(name)).parameters
    valid = [key for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD and key not in _RESERVED]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    bad = [key for key in arguments if key in _RESERVED or (key not in valid and not open_ended)]
    if bad:
        raise ValueError(
            f"arguments of {name} cannot be {', '.join(sorted(bad))}; valid would be {', '.join(valid) or 'none'}"
        )


def can_download(name: str) -> bool:
    """Whether torchvision knows where to fetch a data set."""
    return "download" in inspect.signature(dataset_class(name)).parameters


def default_test_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """What makes a class open its part for testing: ``train=False``, ``split="test"``, or ``None`` if it has none.

    Args:
        name: The class in ``torchvision.datasets``.
        arguments: Those that open the part for training.

    Returns:
        What replaces them, or is added; ``None`` too where they open something else than a part for training, which may
        hold the images of the test part.
    """
    parameters = inspect.signature(dataset_class(name)).parameters
    if "train" in parameters:
        return {"train": False} if arguments.get("train", True) else None
    # A split without a default is something else: EMNIST's sets of characters.
    if "split" in parameters and parameters["split"].default is not inspect.Parameter.empty:
        split = str(arguments.get("split", parameters["split"].default))
        if not split.startswith(_TRAINING_SPLITS):  # LFWPeople's "10fold" is everybody, those of its test part too
            return None
        return {"split": _TEST_SPLITS.get(name, "test")}
    if name == "LSUN":
        classes = arguments.get("classes", "train")
        if isinstance(classes, str):
            return {"classes": "val"}
        return {"classes": [f"{category.removesuffix('_train')}_val" for category in classes]}
    return None


def open_dataset(name: str, root: str | Path, arguments: Mapping[str, Any], download: bool = False) -> Any:
    """Make a data set of the files in a folder.

    Args:
        name: The class in ``torchvision.datasets``.
        root: The folder.
        arguments: More arguments of the class.
        download: Let torchvision fetch what is missing.

    Returns:
        torchvision's object; its images are Pillow's.

    Raises:
        FileNotFoundError: If torchvision cannot read the files, mostly because they are not there.
        ValueError: If it refuses an argument, or finds no images.
    """
    cls = dataset_class(name)
    key = repr((name, str(root), sorted(arguments.items())))
    shared = _DATABASES.get(key)
    if shared is not None:
        return shared
    try:
        dataset = cls(root=str(root), **arguments, **({"download": True} if download else {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"torchvision's {name} cannot be made with arguments={dict(arguments)}: {error}") from error
    except ModuleNotFoundError as error:
        raise ImportError(f"torchvision's {name} needs a package that is not installed: {error.name}") from error
    # Each of the classes says in a way of its own that files are missing or damaged; lmdb has errors of its own too.
    except Exception as error:
        remedy = "or pass download=True" if can_download(name) else "torchvision cannot download this one"
        raise FileNotFoundError(
            f"torchvision's {name} cannot be read from root={str(root)!r} ({type(error).__name__}: {error}). Bring its "
            f"files there, {remedy}"
        ) from error
    if not len(dataset):
        raise ValueError(f"torchvision's {name} has no images in root={str(root)!r}")
    if hasattr(dataset, "dbs"):
        _DATABASES[key] = dataset
    return dataset


def read_labels(name: str, dataset: Any, choice: bool | str) -> Tensor:
    """Read the label of every image as the data set numbers them, without reading images where that is possible.

    Args:
        name: The class in ``torchvision.datasets``, for errors.
        dataset: What :func:`open_dataset` returned.
        choice: ``True``: its classes; ``False``: 0 for every image; the name of an attribute, where images have several
            (CelebA): 0 without it, 1 with it.

    Returns:
        ``(n,)`` ``int64``.

    Raises:
        ValueError: If there is no such attribute, or targets are not one integer an image.
    """
    if choice is False:
        return torch.zeros(len(dataset), dtype=torch.int64)
    attributes = [attribute for attribute in getattr(dataset, "attr_names", ()) if attribute]
    if isinstance(choice, str):
        if choice not in attributes:
            near = difflib.get_close_matches(choice, attributes, n=3, cutoff=0.4) or attributes
            valid = f"one of its attributes, as {', '.join(near)}" if attributes else "True or False"
            raise ValueError(f"labels: {name} has no attribute {choice!r}; valid would be {valid}")
        return dataset.attr[:, dataset.attr_names.index(choice)].to(torch.int64)
    if hasattr(dataset, "dbs"):  # LSUN: a database a category, one after the other
        return torch.repeat_interleave(torch.tensor([len(database) for database in dataset.dbs]))
    for place in ("targets", "labels", "_labels", "y"):
        found = _integers(getattr(dataset, place, None), len(dataset))
        if found is not None:
            return found
    pairs = getattr(dataset, "_samples", None)  # GTSRB, StanfordCars: (file, class)
    found = _integers([pair[-1] for pair in pairs], len(dataset)) if isinstance(pairs, list) else None
    if found is not None:
        return found
    targets = []
    for index in range(len(dataset)):
        found = _integers([dataset[index][1]], 1)
        if found is None:
            other = f", or an attribute, as {', '.join(attributes[:3])}" if attributes else ""
            raise ValueError(
                f"labels=True needs an integer for each image, {name} has {_describe(dataset[index][1])}; valid would "
                f"be labels=False{other}"
            )
        targets.append(int(found))
    return torch.tensor(targets)


def read_classes(dataset: Any, labels: Tensor, choice: bool | str) -> dict[int, str] | None:
    """Name the classes of a data set.

    Args:
        dataset: What :func:`open_dataset` returned.
        labels: What :func:`read_labels` returned.
        choice: As there.

    Returns:
        The name of each label in ascending order: the data set's own ``classes``, else those labels that occur, by
        their numbers; ``None`` if there are no labels.
    """
    if choice is False:
        return None
    if isinstance(choice, str):
        return {0: f"not_{choice}", 1: choice}
    names = getattr(dataset, "classes", None)
    if isinstance(names, (list, tuple)) and names:
        # ImageNet has several names a class; LSUN's say which part of the data they are.
        first = (name if isinstance(name, str) else str(name[0]) for name in names)
        named = {number: name.removesuffix("_train") for number, name in enumerate(first)}
        return {number: name for number, name in named.items() if name != "N/A"}  # EMNIST's letters begin at 1
    return {label: str(label) for label in labels.unique().tolist()}


def number_labels(labels: Tensor, classes: Mapping[int, str] | None) -> Tensor:
    """Number labels by their place among the classes: 0 .. ``len(classes) - 1``.

    Args:
        labels: ``(n,)`` ``int64``.
        classes: What :func:`read_classes` returned for the training images.

    Returns:
        ``(n,)`` ``int64``.

    Raises:
        ValueError: If a label is none of the classes.

    Example:
        >>> number_labels(torch.tensor([7, 3, 7]), {3: "cat", 7: "dog"})
        tensor([1, 0, 1])
    """
    if classes is None:
        return labels
    values = torch.tensor(sorted(classes))
    strangers = labels[~torch.isin(labels, values)]
    if len(strangers):
        raise ValueError(
            f"labels must be from {values.min()} to {values.max()}, one of {len(values)} classes, found "
            f"{sorted(set(strangers.tolist()))[:3]}"
        )
    return torch.searchsorted(values, labels.contiguous())


def _integers(values: Any, count: int) -> Tensor | None:
    """A vector of ``count`` integers, or None if it is something else."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        return None
    if array.shape == (count, 1):
        array = array[:, 0]
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        return None
    return torch.from_numpy(array.astype(np.int64))


def _describe(target: Any) -> str:
    shape = getattr(target, "shape", None)
    return f"{type(target).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
