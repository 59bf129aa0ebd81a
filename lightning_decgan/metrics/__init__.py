"""Fidelity of generated images: scores in the feature space of a network that is always named, and a copying check."""

from lightning_decgan.metrics.extractors import ExtractorFeatures, MissingExtraError, register_network
from lightning_decgan.metrics.features import ClassifierFeatures, train_classifier_features
from lightning_decgan.metrics.fidelity import Fidelity
from lightning_decgan.metrics.importing import import_features
from lightning_decgan.metrics.inception import inception_features
from lightning_decgan.metrics.memorization import Memorization, check_memorization
from lightning_decgan.metrics.real_images import real_features
from lightning_decgan.metrics.scoring import PUBLISHED_INCEPTION, SCORERS, ScoreSettings

__all__ = [
    "PUBLISHED_INCEPTION",
    "SCORERS",
    "ClassifierFeatures",
    "ExtractorFeatures",
    "Fidelity",
    "Memorization",
    "MissingExtraError",
    "ScoreSettings",
    "check_memorization",
    "import_features",
    "inception_features",
    "real_features",
    "register_network",
    "train_classifier_features",
]
