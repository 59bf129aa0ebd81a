r"""Has the generator learnt its training images by heart? Nearest neighbours in feature space, against a yardstick.

How near a sample lies to its nearest training image says nothing by itself: it depends on the data, on how many
training images there are and on the features. The yardstick is how near real images that were held back from training
lie to theirs. This module measures and compares; it draws no picture and passes no sentence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_decgan.checks import check_integer

_QUERY_ROWS, _REFERENCE_ROWS = 1024, 8192
_LOW_QUANTILE = 0.01


def nearest_neighbors(queries: Tensor, references: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The nearest references of each query by Euclidean distance, exactly.

    Candidates are found by matrix products in double precision, a block at a time; their distances are then taken of
    the differences, so that an exact copy is at distance 0.

    Args:
        queries: ``(n, d)``, finite.
        references: ``(m, d)``, finite.
        count: Neighbours for each query, 1 to m.

    Returns:
        Distances ``(n, count)`` in ``float64``, ascending, and the rows of ``references``, ``(n, count)``.

    Raises:
        TypeError: If ``count`` is not an integer.
        ValueError: If ``count`` is not between 1 and m, or the dimensions differ.

    Example:
        >>> distances, rows = nearest_neighbors(torch.tensor([[0.0], [4.0]]), torch.tensor([[5.0], [1.0], [4.0]]), 2)
        >>> distances.tolist(), rows.tolist()
        ([[1.0, 4.0], [0.0, 1.0]], [[1, 2], [2, 0]])
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ValueError(
            "queries and references must be (n, d) and (m, d), "
            f"found {tuple(queries.shape)} and {tuple(references.shape)}"
        )
    count = check_integer("count", count, 1, len(references))
    # A common shift changes no distance, and keeps the squares small whose differences are taken.
    center = references.double().mean(dim=0)
    distances = torch.empty(len(queries), count, dtype=torch.float64)
    rows = torch.empty(len(queries), count, dtype=torch.int64)
    for first in range(0, len(queries), _QUERY_ROWS):
        block = queries[first : first + _QUERY_ROWS].double() - center
        best_squares = torch.full((len(block), 0), 0.0, dtype=torch.float64)
        best_rows = torch.zeros((len(block), 0), dtype=torch.int64)
        for start in range(0, len(references), _REFERENCE_ROWS):
            others = references[start : start + _REFERENCE_ROWS].double() - center
            squares = others.square().sum(dim=1) - 2 * block @ others.T  # without |query|^2, equal for all references
            squares = torch.cat([best_squares, squares], dim=1)
            numbers = torch.arange(start, start + len(others)).expand(len(block), -1)
            numbers = torch.cat([best_rows, numbers], dim=1)
            best_squares, picked = squares.topk(min(count, squares.shape[1]), dim=1, largest=False)
            best_rows = numbers.gather(1, picked)
        exact = (queries[first : first + _QUERY_ROWS, None].double() - references[best_rows].double()).norm(dim=2)
        exact, order = exact.sort(dim=1, stable=True)
        distances[first : first + len(block)] = exact
        rows[first : first + len(block)] = best_rows.gather(1, order)
    return distances, rows


def rank_test(first: Tensor, second: Tensor) -> tuple[float, float]:
    r"""Mann and Whitney's comparison of two sets of numbers.

    With n and m numbers, U = the number of pairs in which the first is the larger, ties counting a half, and the normal
    approximation with its correction for ties, where t runs over the sizes of groups of equal numbers and N = n + m:

    .. math::
        z = \frac{U - n m / 2}{\sqrt{\frac{n m}{12} \left(N + 1 - \sum_t \frac{t^3 - t}{N (N - 1)}\right)}}

    Args:
        first: ``(n,)``.
        second: ``(m,)``.

    Returns:
        The probability that a number of the first set is below one of the second (ties count a half), and z. If both
        sets come from one distribution z is about standard normal; below about -3 the first set is the smaller one. If
        all numbers are equal z is 0.

    Raises:
        ValueError: If a set is empty.

    Example:
        >>> below, z = rank_test(torch.zeros(20), torch.ones(20))
        >>> below, round(z, 2)
        (1.0, -6.24)

    Source:
        Mann and Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other",
        Annals of Mathematical Statistics 18, 1947.
    """
    n, m = len(first), len(second)
    if min(n, m) == 0:
        raise ValueError(f"both sets must hold numbers, found {n} and {m}")
    _, group, sizes = torch.cat([first, second]).unique(return_inverse=True, return_counts=True)
    sizes = sizes.double()
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[group]  # a group of equal numbers shares the mean of its ranks
    larger = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float((sizes**3 - sizes).sum()) / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - ties)
    z = 0.0 if variance <= 0 else (larger - n * m / 2) / math.sqrt(variance)
    return 1 - larger / (n * m), z


@dataclass(frozen=True)
class Memorization:
    """How near generated and held-out real images lie to training images.

    Attributes:
        distances: Of each generated image to its nearest training images, ``(n, k)``, ascending along k.
        neighbors: Which these are, ``(n, k)``.
        held_out_distances: The same for held-out real images, ``(m, k)``.
        held_out_neighbors: ``(m, k)``.
        held_out_rows: Which held-out images were taken, ``(m,)``.
        training_images: How many there are.
    """

    distances: Tensor
    neighbors: Tensor
    held_out_distances: Tensor
    held_out_neighbors: Tensor
    held_out_rows: Tensor
    training_images: int

    @property
    def numbers(self) -> dict[str, float | int]:
        """The comparison in numbers.

        ``ratio`` is the median distance of samples over that of held-out images: about 1 for a generator that draws new
        images as the data does, towards 0 for one that copies. ``nearer`` is the probability that a sample lies nearer
        to its training image than a held-out image does to its own, 0.5 for new images, 1 for copies, and ``z`` tells
        whether that is chance (see :func:`rank_test`). ``share_below_1_percent`` is the share of samples that are
        as near as the nearest hundredth of the held-out images, or nearer: 0.01 for new images, 1 for copies.

        A generator that draws only the most typical images has a small ratio too without copying any: look at the
        pictures. Many samples farther than held-out images (``z`` above 3) are samples unlike the data.
        """
        own, yardstick = self.distances[:, 0], self.held_out_distances[:, 0]
        median, held_out_median = float(own.median()), float(yardstick.median())
        nearer, z = rank_test(own, yardstick)
        low = torch.quantile(yardstick, _LOW_QUANTILE)
        return {
            "samples": len(own),
            "held_out_images": len(yardstick),
            "training_images": self.training_images,
            "median_distance": median,
            "held_out_median_distance": held_out_median,
            "ratio": median / held_out_median if held_out_median > 0 else float("nan"),
            "nearer": nearer,
            "z": z,
            "share_below_1_percent": float((own <= low).double().mean()),
        }


def check_memorization(
    generated: Tensor, training: Tensor, held_out: Tensor, *, neighbors: int = 3, seed: int = 0
) -> Memorization:
    """Compare generated images' distances to the training images with those of held-out real images.

    Args:
        generated: Features of generated images, ``(n, d)``, finite.
        training: Features of the training images, ``(t, d)``.
        held_out: Features of real images that were not trained on, ``(m, d)``. If there are more than generated ones,
            as many as those are drawn.
        neighbors: Nearest training images to find for each.
        seed: Of which held-out images are drawn.

    Returns:
        The comparison.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a set is empty, features are not finite or of other dimensions, or ``neighbors`` is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> training, held_out = torch.randn(200, 4, generator=generator), torch.randn(50, 4, generator=generator)
        >>> copies = check_memorization(training[:50], training, held_out).numbers
        >>> copies["ratio"], copies["nearer"], copies["z"] < -8
        (0.0, 1.0, True)

    Source:
        Meehan, Chaudhuri, Dasgupta, "A Three Sample Test to Detect Data-Copying in Generative Models", AISTATS 2020,
        section 3: the rank test of distances to the training set, here over the whole feature space at once.
    """
    for name, features in (("generated", generated), ("training", training), ("held_out", held_out)):
        if len(features) == 0:
            raise ValueError(f"{name} must hold features of at least one image, found none")
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} must be finite, found features that are not: the generator has diverged")
    seed = check_integer("seed", seed, 0, 2**63 - 1)
    neighbors = check_integer("neighbors", neighbors, 1, len(training))
    rows = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[: len(generated)].sort().values
    distances, nearest = nearest_neighbors(generated, training, neighbors)
    held_out_distances, held_out_nearest = nearest_neighbors(held_out[rows], training, neighbors)
    return Memorization(distances, nearest, held_out_distances, held_out_nearest, rows, len(training))
