r"""From features to scores, by either of two libraries: torchmetrics or torch-fidelity.

Both get the same features, both compute in double precision, so that they must agree; torch-fidelity adds precision and
recall. A score keeps its plain name unless the features are those of the published Inception network: only then is a
Frechet distance called FID and a kernel distance KID. Global random numbers are never moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_decgan.checks import check_integer

_LOWEST_LOG_PROBABILITY = -600.0  # below it a probability in double precision is 0, and 0 * (-inf) is not a number
_ROWS_AT_A_TIME = 2048


@dataclass(frozen=True)
class ScoreSettings:
    """The numbers that a score depends on besides the images.

    Args:
        kernel_subsets: How many random subsets the kernel distance is averaged over.
        kernel_subset_size: Images a subset, at least 2; both sets of images must have that many.
        inception_splits: In how many parts the inception score is computed and averaged.
        neighborhood: Which nearest neighbour's distance is the radius of precision and recall (k = 3 in the paper).
        seed: Of the random subsets and the order of the parts.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is out of range.

    Example:
        >>> ScoreSettings(kernel_subset_size=1)
        Traceback (most recent call last):
        ValueError: kernel_subset_size must be an integer >= 2, found 1
    """

    kernel_subsets: int = 50
    kernel_subset_size: int = 100
    inception_splits: int = 1
    neighborhood: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("kernel_subsets", self.kernel_subsets, 1)
        check_integer("kernel_subset_size", self.kernel_subset_size, 2)
        check_integer("inception_splits", self.inception_splits, 1)
        check_integer("neighborhood", self.neighborhood, 1)
        check_integer("seed", self.seed, 0, 2**63 - 1)

    def check_counts(self, real: int, fake: int) -> None:
        """Refuse numbers of images that are too small for a score.

        Raises:
            ValueError: Naming both numbers.
        """
        if min(real, fake) < self.kernel_subset_size:
            raise ValueError(
                f"kernel_subset_size={self.kernel_subset_size} needs at least that many real and generated images, "
                f"found {real} real and {fake} generated; update with more or choose a smaller size"
            )
        if fake < self.inception_splits:
            raise ValueError(
                f"inception_splits={self.inception_splits} needs at least that many generated images, found {fake}"
            )


PUBLISHED_INCEPTION = ScoreSettings(kernel_subsets=100, kernel_subset_size=1000, inception_splits=10)
"""What papers use with Inception features: KID over 100 subsets of 1,000 (Binkowski et al.), IS in 10 parts."""


class _Given(nn.Module):
    """The "feature network" that torchmetrics is handed: features come in, features go out.

    The real network then runs once an image and not once a score, and nothing is rounded to uint8 on the way.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def score_with_torchmetrics(
    real: Tensor, fake: Tensor, network: nn.Module, settings: ScoreSettings
) -> dict[str, float]:
    """Frechet distance, kernel distance and, where the network has a ``head``, inception score, by torchmetrics.

    Args:
        real: Features of real images, ``(n, d)``, finite.
        fake: Features of generated images, ``(m, d)``. If one is not finite every score that rests on it is NaN.
        network: The network that the features come from.
        settings: See there.

    Raises:
        ValueError: If there are too few images.

    Example:
        >>> from lightning_decgan.metrics import ClassifierFeatures
        >>> network = ClassifierFeatures(1, 8, 10, num_features=4).freeze()
        >>> features = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
        >>> scores = score_with_torchmetrics(features[:100], features[100:], network, ScoreSettings())
        >>> sorted(scores), scores["frechet_distance"] < 0.1
        (['frechet_distance', 'inception_score', 'kernel_distance'], True)
    """
    settings.check_counts(len(real), len(fake))
    # torch-fidelity, where it is installed beside torchmetrics, takes seconds to import: only where scores are made
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    given = _Given(real.shape[1])
    # Features that are scored were gathered already: the metrics must not gather again.
    alone: dict[str, Any] = {"sync_on_compute": False}
    scores = {"frechet_distance": float("nan"), "kernel_distance": float("nan")}
    log_probabilities = _log_probabilities(network, fake)
    if log_probabilities is not None:
        scores["inception_score"] = float("nan")
    if not torch.isfinite(fake).all():
        return scores
    # By double precision from here on (which not every accelerator has): a distance is a small difference of sums.
    real, fake = real.cpu().double(), fake.cpu().double()
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
    ):
        # torchmetrics draws from the CPU's global generator; torch.manual_seed would seed accelerators as well.
        torch.random.default_generator.manual_seed(settings.seed)
        # Not for users: that features are kept is this module's documented way, and no standard deviation is shown.
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features in buffer")
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom is <= 0")
        frechet = FrechetInceptionDistance(feature=given, normalize=True, **alone)
        kernel = KernelInceptionDistance(
            feature=given,
            subsets=settings.kernel_subsets,
            subset_size=settings.kernel_subset_size,
            normalize=True,
            **alone,
        )
        for metric in (frechet, kernel):
            metric.update(real, real=True)
            metric.update(fake, real=False)
        # Rounding can take the distance of equal sets a little below zero.
        scores["frechet_distance"] = max(0.0, float(frechet.compute()))
        scores["kernel_distance"] = float(kernel.compute()[0])
        if log_probabilities is not None:
            # normalize=False: otherwise InceptionScore turns what it is given into uint8.
            inception = InceptionScore(feature=given, splits=settings.inception_splits, normalize=False, **alone)
            inception.update(log_probabilities)
            scores["inception_score"] = float(inception.compute()[0])
    return scores


def score_with_torch_fidelity(
    real: Tensor, fake: Tensor, network: nn.Module, settings: ScoreSettings
) -> dict[str, float]:
    r"""The same scores by torch-fidelity, and precision and recall.

    .. math::
        \text{precision} = \frac{1}{|F|} \sum_{f \in F} \max_{r \in R} \, [\, \|f - r\| \le d_k(r, R) \,], \qquad
        \text{recall} = \frac{1}{|R|} \sum_{r \in R} \max_{f \in F} \, [\, \|r - f\| \le d_k(f, F) \,]

    with the features ``R`` of real and ``F`` of generated images, and ``d_k(x, X)`` the distance from ``x`` to its k-th
    nearest neighbour in ``X``.

    Args:
        real: See :func:`score_with_torchmetrics`.
        fake: See there.
        network: See there.
        settings: See there. The seed is taken modulo 2**32, NumPy's range.

    Raises:
        MissingExtraError: If torch-fidelity is not installed, or cannot be imported.
        ValueError: If there are too few images.

    Example:
        >>> scores = score_with_torch_fidelity(real, fake, network, ScoreSettings())  # doctest: +SKIP

    Source:
        A. Obukhov et al., "High-fidelity performance metrics for generative models in PyTorch", version 0.4.0;
        Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019,
        section 2.
    """
    from lightning_decgan.metrics.extractors import FeatureRows, given_extractor, require_torch_fidelity

    settings.check_counts(len(real), len(fake))
    if min(len(real), len(fake)) <= settings.neighborhood:
        raise ValueError(
            f"neighborhood={settings.neighborhood} needs more real and more generated images than that, "
            f"found {len(real)} real and {len(fake)} generated"
        )
    torch_fidelity = require_torch_fidelity()
    fake_log_probabilities = _log_probabilities(network, fake)
    has_head = fake_log_probabilities is not None
    names = {
        "frechet_distance": torch_fidelity.KEY_METRIC_FID,
        "kernel_distance": torch_fidelity.KEY_METRIC_KID_MEAN,
        **({"inception_score": torch_fidelity.KEY_METRIC_ISC_MEAN} if has_head else {}),
        "precision": torch_fidelity.KEY_METRIC_PRECISION,
        "recall": torch_fidelity.KEY_METRIC_RECALL,
    }
    if not torch.isfinite(fake).all():
        return dict.fromkeys(names, float("nan"))
    real_rows = FeatureRows(real.cpu().double(), _log_probabilities(network, real))
    fake_rows = FeatureRows(fake.cpu().double(), fake_log_probabilities)
    # Its loaders draw a seed from the CPU's global generator.
    with torch.random.fork_rng(devices=[]):
        found = torch_fidelity.calculate_metrics(
            input1=fake_rows,
            input2=real_rows,
            feature_extractor=given_extractor(real.shape[1]),
            fid=True,
            kid=True,
            isc=has_head,
            prc=True,
            kid_subsets=settings.kernel_subsets,
            kid_subset_size=settings.kernel_subset_size,
            isc_splits=settings.inception_splits,
            prc_neighborhood=settings.neighborhood,
            prc_batch_size=_ROWS_AT_A_TIME,
            batch_size=_ROWS_AT_A_TIME,
            rng_seed=settings.seed % 2**32,
            cuda=False,
            # Its own cache unpickles; ours, in real_images.py, does not.
            cache=False,
            # No loader processes for rows that are in memory, and distances a piece at a time.
            save_cpu_ram=True,
            verbose=False,
        )
    scores = {name: float(found[key]) for name, key in names.items()}
    return scores | {"frechet_distance": max(0.0, scores["frechet_distance"])}


Scorer: TypeAlias = Callable[[Tensor, Tensor, nn.Module, ScoreSettings], dict[str, float]]

SCORERS: dict[str, Scorer] = {"torchmetrics": score_with_torchmetrics, "torch-fidelity": score_with_torch_fidelity}
"""Libraries that make scores of features, by name."""


def published_names(scores: dict[str, float], network: nn.Module) -> dict[str, float]:
    """Call a Frechet distance FID and a kernel distance KID, if and only if the features are Inception's.

    Args:
        scores: By their plain names.
        network: The network that the features come from: Inception with its published weights has a true attribute
            ``is_inception``.

    Example:
        >>> published_names({"frechet_distance": 3.5}, nn.Identity())
        {'frechet_distance': 3.5}
    """
    if not getattr(network, "is_inception", False):
        return dict(scores)
    names = {"frechet_distance": "fid", "kernel_distance": "kid"}
    return {names.get(name, name): value for name, value in scores.items()}


def _log_probabilities(network: nn.Module, features: Tensor) -> Tensor | None:
    """Logarithms of the class probabilities in double precision on the CPU, None without a ``head``."""
    head: Any = getattr(network, "head", None)
    if head is None:
        return None
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        weight = next(head.parameters(), features)
        logits = head(features.to(weight.device))
    return logits.cpu().double().log_softmax(dim=1).clamp_min(_LOWEST_LOG_PROBABILITY)
