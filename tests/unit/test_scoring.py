"""What a score depends on is checked, and scores of features are those of the images."""

import numpy as np
import pytest
import torch

from lightning_decgan.metrics import PUBLISHED_INCEPTION, ClassifierFeatures, Fidelity, ScoreSettings
from lightning_decgan.metrics.extraction import extract
from lightning_decgan.metrics.scoring import score_with_torchmetrics


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_scored_directly_score_as_the_metric_scores_their_images():
    network = ClassifierFeatures(1, 8, 10).freeze()
    real, fake = images(60, 1), images(50, 2) * 0.7
    metric = Fidelity(network, kernel_subset_size=20, kernel_subsets=4, inception_splits=2, seed=5)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    settings = ScoreSettings(kernel_subset_size=20, kernel_subsets=4, inception_splits=2, seed=5)
    with torch.no_grad():
        features = [extract(network, batch, real=False) for batch in (real, fake)]
    assert score_with_torchmetrics(*features, network, settings) == metric.compute()


def test_scoring_leaves_global_random_numbers_alone():
    network = ClassifierFeatures(1, 8, 10).freeze()
    features = torch.rand(50, 64)
    before = torch.get_rng_state()
    score_with_torchmetrics(features, features, network, ScoreSettings(kernel_subset_size=20))
    assert torch.equal(before, torch.get_rng_state())


def test_generated_features_that_are_not_finite_make_every_score_nan():
    network = ClassifierFeatures(1, 8, 10).freeze()
    features = torch.rand(50, 64)
    broken = features.clone()
    broken[3, 7] = float("inf")
    found = score_with_torchmetrics(features, broken, network, ScoreSettings(kernel_subset_size=20))
    assert sorted(found) == ["frechet_distance", "inception_score", "kernel_distance"]
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("kernel_subsets", 0, ValueError),
        ("kernel_subset_size", 1, ValueError),
        ("inception_splits", 0, ValueError),
        ("neighborhood", 0, ValueError),
        ("seed", -1, ValueError),
        ("kernel_subset_size", 2.5, TypeError),
    ],
)
def test_settings_out_of_range_are_named(name, value, error):
    with pytest.raises(error, match=f"{name} must be an integer"):
        ScoreSettings(**{name: value})


def test_too_few_images_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"kernel_subset_size=1000 needs .* found 359 real and 5000 generated"):
        PUBLISHED_INCEPTION.check_counts(359, 5000)
    with pytest.raises(ValueError, match="inception_splits=10 needs at least that many generated images, found 9"):
        ScoreSettings(kernel_subset_size=5, inception_splits=10).check_counts(20, 9)
    ScoreSettings(kernel_subset_size=5).check_counts(5, 5)
