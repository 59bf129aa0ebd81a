"""Which worker trains on which images: shards by label or by a Dirichlet draw, for workers whose data differ.

A partition is a pure function of labels, number of workers and seed, so every worker computes all of it by itself and
finds the same. Nothing here reads an image, talks to anybody, or touches a global random number generator. How often a
worker sees the images of its shard is :mod:`lightning_decgan.data.shard_sampler`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lightning_decgan.checks import check_integer

Partition = Literal["iid", "by_label", "dirichlet"]
PARTITIONS: tuple[str, ...] = get_args(Partition)
_ALPHA_RANGE = (1e-6, 1e6)  # beyond these, shares are 0 and 1, or equal, to the last image of any data set

Labels = npt.ArrayLike
Shard = npt.NDArray[np.int64]


def check_partition(partition: Any, alpha: Any) -> None:
    """Refuse what is no partition.

    Args:
        partition: One of "iid", "by_label", "dirichlet".
        alpha: The Dirichlet concentration, from 1e-6 to 1e6.

    Raises:
        TypeError: If ``alpha`` is not a number.
        ValueError: If ``partition`` is another word, or ``alpha`` is out of range.

    Example:
        >>> check_partition("by_labels", 0.5)
        Traceback (most recent call last):
        ValueError: partition must be one of 'iid', 'by_label', 'dirichlet', found 'by_labels'
    """
    if partition not in PARTITIONS:
        raise ValueError(f"partition must be one of {', '.join(map(repr, PARTITIONS))}, found {partition!r}")
    least, most = _ALPHA_RANGE
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"alpha must be a number from {least:g} to {most:g}, found {alpha!r}")
    if not least <= alpha <= most:
        raise ValueError(f"alpha must be a number from {least:g} to {most:g}, found {alpha!r}")


def make_shards(
    partition: Literal["by_label", "dirichlet"], labels: Labels, workers: int, seed: int, alpha: float = 0.5
) -> list[Shard]:
    """Deal the images out: every image to exactly one worker, and to every worker at least one image.

    Args:
        partition: "by_label" (:func:`shards_by_label`) or "dirichlet" (:func:`dirichlet_shards`). "iid" has no shards:
            there, a sampler deals all images anew every epoch.
        labels: ``(n,)`` integers, one an image.
        workers: N.
        seed: Of the deal.
        alpha: Of "dirichlet" only.

    Returns:
        N arrays of positions in ``labels``, ascending, disjoint, together all of 0 .. n - 1.

    Raises:
        TypeError, ValueError: As the two functions say, or if ``partition`` is another word.

    Example:
        >>> [shard.tolist() for shard in make_shards("by_label", [0, 1, 0, 1], workers=2, seed=0)]
        [[0, 2], [1, 3]]
    """
    if partition == "by_label":
        return shards_by_label(labels, workers, seed)
    if partition == "dirichlet":
        return dirichlet_shards(labels, workers, seed, alpha)
    raise ValueError(f"partition must be 'by_label' or 'dirichlet' to have shards, found {partition!r}")


def shards_by_label(labels: Labels, workers: int, seed: int) -> list[Shard]:
    """Each worker sees a part of the classes, and shares a class only if there are more workers than classes.

    The classes are shuffled by ``seed`` and dealt in turn. With C classes and N <= C workers, each worker has all
    images of ``floor(C / N)`` or ``ceil(C / N)`` classes. With N > C, worker i has a part of one class, the i-th modulo
    C in the shuffled order; the workers of a class divide its images among themselves, by one image equally.

    Args:
        labels: ``(n,)`` integers; the classes are the values that occur.
        workers: N.
        seed: Of the order of classes, and of who gets which image of a class that is shared.

    Returns:
        N arrays of positions in ``labels``, ascending, disjoint, together all of them.

    Raises:
        TypeError: If labels are not integers, or ``workers`` or ``seed`` is not an integer.
        ValueError: If there are no labels, they are not a vector, ``workers`` < 1, ``seed`` < 0, or a class has fewer
            images than workers that share it.

    Example:
        >>> labels = [0, 1, 2, 3] * 2
        >>> [sorted({labels[i] for i in shard}) for shard in shards_by_label(labels, workers=2, seed=0)]
        [[1, 2], [0, 3]]
    """
    by_class = _positions_by_class(labels, workers, seed)
    random = np.random.default_rng(seed)
    order = random.permutation(len(by_class))
    pieces: list[list[Shard]] = [[] for _ in range(workers)]
    for turn, number in enumerate(order):
        # Either one worker, or, where workers outnumber classes, all those whose number is this turn's modulo C.
        owners = range(turn, workers, len(by_class)) if workers > len(by_class) else [turn % workers]
        label, positions = by_class[number]
        if len(positions) < len(owners):
            raise ValueError(
                f"partition='by_label': {len(owners)} of {workers} workers would share class {label}, which has "
                f"{len(positions)} training image(s); valid would be fewer workers, or more images of that class"
            )
        for owner, piece in zip(owners, np.array_split(random.permutation(positions), len(owners)), strict=True):
            pieces[owner].append(piece)
    return [np.sort(np.concatenate(piece)) for piece in pieces]


def dirichlet_shards(labels: Labels, workers: int, seed: int, alpha: float = 0.5) -> list[Shard]:
    r"""For each class, the workers' shares of it are drawn from a symmetric Dirichlet distribution.

    .. math:: (p_{k1}, \ldots, p_{kN}) \sim \mathrm{Dir}(\alpha, \ldots, \alpha) \text{ for each class } k,

    and worker i gets the images of class k between the fractions :math:`\sum_{j<i} p_{kj}` and
    :math:`\sum_{j\le i} p_{kj}`, rounded to whole images, of the class in random order. A share has mean :math:`1/N`
    and variance :math:`(1/N)(1 - 1/N) / (N\alpha + 1)`: a large ``alpha`` gives every worker the same mixture, a small
    one gives most classes to one worker each. Shards differ in size. A worker that would be left without images gets
    one from the worker that has most, so that all can train.

    Args:
        labels: ``(n,)`` integers; the classes are the values that occur.
        workers: N.
        seed: Of all draws.
        alpha: The concentration, from 1e-6 to 1e6.

    Returns:
        N arrays of positions in ``labels``, ascending, disjoint, together all of them, none empty.

    Raises:
        TypeError: If labels are not integers, or another argument is not a number of its kind.
        ValueError: If there are no labels, they are not a vector, there are fewer images than workers, ``workers`` < 1,
            ``seed`` < 0, or ``alpha`` is out of range.

    Example:
        >>> labels = [0, 1] * 50
        >>> shards = dirichlet_shards(labels, workers=2, seed=0, alpha=1e6)
        >>> [class_histogram([labels[i] for i in shard], 2) for shard in shards]
        [[25, 25], [25, 25]]

    Source:
        Shares of each class: M. Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", 2019,
        arXiv:1905.12022, section 4. The idea of ``alpha`` as the dial from equal to different workers: T.-M. H. Hsu,
        H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019, arXiv:1909.06335, section 3; there each worker's mixture of classes is drawn, for workers
        with equally many images. Giving the empty an image is ours.
    """
    check_partition("dirichlet", alpha)
    by_class = _positions_by_class(labels, workers, seed)
    count = sum(len(positions) for _, positions in by_class)
    if count < workers:
        raise ValueError(
            f"partition='dirichlet' needs at least one training image a worker, found {count} images for {workers} "
            f"workers; valid would be at most {count} workers"
        )
    random = np.random.default_rng(seed)
    pieces: list[list[Shard]] = [[] for _ in range(workers)]
    for _, positions in by_class:
        shares = random.dirichlet(np.full(workers, float(alpha)))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(positions)).astype(np.int64)
        for worker, piece in enumerate(np.split(random.permutation(positions), cuts)):
            pieces[worker].append(piece)
    shards = [random.permutation(np.concatenate(piece)) for piece in pieces]
    for worker, shard in enumerate(shards):
        if not len(shard):
            richest = max(range(workers), key=lambda other: len(shards[other]))
            shards[worker], shards[richest] = shards[richest][:1], shards[richest][1:]
    return [np.sort(shard) for shard in shards]


def class_histogram(labels: Labels, num_classes: int) -> list[int]:
    """Count the images of each class.

    Args:
        labels: ``(n,)`` integers from 0 to ``num_classes`` - 1; may be empty.
        num_classes: C.

    Returns:
        C counts.

    Raises:
        ValueError: If a label is out of range.

    Example:
        >>> class_histogram([2, 0, 2], num_classes=4)
        [1, 0, 2, 0]
    """
    values = np.asarray(labels, dtype=np.int64)
    if values.size and not (values.min() >= 0 and values.max() < num_classes):
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, found {values.min()} to {values.max()}")
    return np.bincount(values, minlength=num_classes).tolist()


def epoch_images(shards: Sequence[Shard]) -> int:
    """How many images each worker takes an epoch: the mean size of the shards, rounded up, the same for all.

    Example:
        >>> epoch_images([np.arange(5), np.arange(2)])
        4
    """
    return math.ceil(sum(map(len, shards)) / len(shards))


def _positions_by_class(labels: Labels, workers: Any, seed: Any) -> list[tuple[int, Shard]]:
    """The classes that occur, in ascending order, each with the positions of its images; checks all arguments."""
    check_integer("workers", workers, 1)
    check_integer("seed", seed, 0)
    values = np.asarray(labels)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"labels must be a vector with one label an image, found the shape {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"labels must be integers, found {values.dtype}")
    order = np.argsort(values, kind="stable").astype(np.int64)
    classes, starts = np.unique(values[order], return_index=True)
    return list(zip(classes.tolist(), np.split(order, starts[1:]), strict=True))
