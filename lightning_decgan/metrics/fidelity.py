"""How near generated images are to real ones: Frechet distance, kernel distance, inception score, through torchmetrics.

The scores live in the feature space of a network that the caller names, and every table says which. Because that is
rarely Inception, no score here is called FID, KID or IS. It keeps features, never images; it never moves the global
random numbers, and the same images give the same numbers whatever was computed before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_decgan.metrics.extraction import check_network, extract
from lightning_decgan.metrics.scoring import ScoreSettings, score_with_torchmetrics


class Fidelity(Metric):
    r"""Frechet distance, kernel distance and inception score of generated images over one feature network.

    With features :math:`f` of mean :math:`\mu` and covariance :math:`\Sigma` (r real, g generated), class
    probabilities :math:`p(y \mid x)` and the kernel :math:`k(a, b) = (a^\top b / d + 1)^3` of d-dimensional features:

    .. math::
        \text{frechet\_distance} &= \|\mu_r - \mu_g\|^2
            + \operatorname{tr}(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}) \\
        \text{kernel\_distance} &= \text{mean over subsets of } \frac{\sum_{i \ne j} k(r_i, r_j)
            + \sum_{i \ne j} k(g_i, g_j)}{m (m - 1)} - \frac{2}{m^2} \sum_{i, j} k(r_i, g_j) \\
        \text{inception\_score} &= \exp \mathbb{E}_x \operatorname{KL}(p(y \mid x) \,\|\, p(y))

    Features are kept in single precision and all that follows is computed in double precision, on the CPU. Images
    stay floating point: torchmetrics' own way would round them to 256 levels for some scores and not for others.

    Under ``torch.distributed`` each worker updates with its own images and ``compute`` scores the union, the same
    number on every worker; it is then a collective that all must call. Workers may hold different numbers of batches,
    or none. A ``DistributedSampler`` repeats a few images to make shards equal; they then count twice.

    Args:
        features: The network: ``features(images)`` gives ``(n, num_features)``, ``features.head(those)`` the logits
            ``(n, classes)``; attributes ``num_features`` and ``name``. Without ``head`` there is no inception score.
            It is put into evaluation mode and kept there.
        kernel_subsets: How many random subsets the kernel distance is averaged over.
        kernel_subset_size: Images a subset, m above, at least 2; both sets must have that many.
        inception_splits: In how many parts the inception score is computed and averaged. Parts of less than some
            hundred images bias it downwards; 10 is usual for 50,000 images.
        reset_real_features: ``False`` keeps the real images' features across :meth:`reset`.
        seed: Of the random subsets.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        TypeError: If ``features`` is not a module with ``num_features`` and ``name``, or images are not floating point.
        ValueError: If a number is out of range, real images are not finite or not in [-1, 1], or, in ``compute``, there
            are too few images. Generated images are clamped to [-1, 1], as they would be shown; if any is not finite
            every score that rests on it is NaN, because a diverged generator is a result and not a misuse.

    Example:
        >>> from lightning_decgan.metrics import ClassifierFeatures
        >>> _ = torch.manual_seed(0)
        >>> network = ClassifierFeatures(channels=1, image_size=8, num_classes=10, name="untrained_cnn").freeze()
        >>> fidelity = Fidelity(network, kernel_subsets=5, kernel_subset_size=20)
        >>> images = torch.rand(40, 1, 8, 8) * 2 - 1
        >>> fidelity.update(images, real=True)
        >>> fidelity.update(images, real=False)
        >>> scores = fidelity.compute()
        >>> sorted(scores), scores["frechet_distance"] < 1e-4
        (['frechet_distance', 'inception_score', 'kernel_distance'], True)

    Source:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS
        2017, section 3 (Frechet distance); Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4 (kernel
        distance); Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016, section 4 (inception score).
    """

    higher_is_better = None  # two of the scores are distances, one is not
    is_differentiable = False
    full_state_update = False

    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(
        self,
        features: nn.Module,
        *,
        kernel_subsets: int = 50,
        kernel_subset_size: int = 100,
        inception_splits: int = 1,
        reset_real_features: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        # A worker that got no new images would answer from a cache while the others wait for it to take part.
        super().__init__(**{"compute_with_cache": False, **kwargs})
        self.network = check_network(features).eval()
        if not isinstance(reset_real_features, bool):
            raise TypeError(f"reset_real_features must be True or False, found {reset_real_features!r}")
        self.settings = ScoreSettings(
            kernel_subsets=kernel_subsets,
            kernel_subset_size=kernel_subset_size,
            inception_splits=inception_splits,
            seed=seed,
        )
        self.reset_real_features = reset_real_features
        self.num_features = int(features.num_features)  # type: ignore[arg-type]  # check_network has looked
        self.features_name = str(features.name)
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def train(self, mode: bool = True) -> Fidelity:
        """Stay in evaluation mode, whatever this is part of: scores never depend on batch statistics."""
        return super().train(False)

    def update(self, images: Tensor, real: bool) -> None:
        """Take in a batch.

        Args:
            images: ``(n, c, h, w)``, floating point in [-1, 1], as the feature network takes them.
            real: Whether they are real or generated.
        """
        features = extract(self.network, images, real=real)
        if len(features):
            (self.real_features if real else self.fake_features).append(features)

    def compute(self) -> dict[str, float]:
        """Score all images so far.

        Returns:
            ``frechet_distance``, ``kernel_distance`` (both smaller is better) and, with a ``head``, ``inception_score``
            (from 1 to the number of classes, larger is better).

        Raises:
            ValueError: If there are too few images for a score, on every worker alike.
        """
        try:
            real, fake = dim_zero_cat(self._chunks("real_features")), dim_zero_cat(self._chunks("fake_features"))
            return score_with_torchmetrics(real, fake, self.network, self.settings)
        except Exception:
            if self._is_synced:  # torchmetrics would leave everybody's features in this worker's state
                self.unsync()
            raise

    def forward(self, images: Tensor, real: bool) -> None:
        """The same as :meth:`update`: the scores of a single batch would mean nothing."""
        self.update(images, real)

    def reset(self) -> None:
        """Forget all features, the real ones only if ``reset_real_features``."""
        if self._is_synced:
            self.unsync()
        kept = list(self.real_features)  # a copy: torchmetrics empties the list itself
        super().reset()
        if not self.reset_real_features:
            self.real_features = kept

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather everybody's features; a worker that has none takes part with an array of no rows.

        Without this, torchmetrics would send a one-dimensional nothing to workers that send matrices.
        """
        self.real_features, self.fake_features = self._chunks("real_features"), self._chunks("fake_features")
        super().sync(*args, **kwargs)

    def _chunks(self, state: str) -> Any:
        """A state as torchmetrics has it: a list of matrices, never an empty one, or one matrix once gathered."""
        chunks = getattr(self, state)
        return (
            [torch.empty(0, self.num_features, device=self.device)]
            if isinstance(chunks, list) and not chunks
            else chunks
        )

    def table(self, scores: dict[str, float] | None = None) -> str:
        """Scores as text whose heading names the feature network.

        Args:
            scores: What :meth:`compute` returned; ``None`` computes them now.

        Example:
            >>> from lightning_decgan.metrics import ClassifierFeatures
            >>> fidelity = Fidelity(ClassifierFeatures(1, 8, 10, name="digits_cnn"))
            >>> print(fidelity.table({"frechet_distance": 1.25, "inception_score": 7.5}))
            features of digits_cnn
            frechet_distance     1.2500
            inception_score      7.5000
        """
        scores = self.compute() if scores is None else scores
        accuracy = getattr(self.network, "accuracy", None)
        known = "" if accuracy is None else f" ({100 * accuracy:.1f} % accuracy)"
        lines = [f"{name:<18}{value:>9.4f}" for name, value in scores.items()]
        return "\n".join([f"features of {self.features_name}{known}", *lines])
