"""Fidelity of generated images, in the feature space of a small classifier that is trained on the data's own labels."""

from lightning_decgan.metrics.features import ClassifierFeatures, train_classifier_features
from lightning_decgan.metrics.fidelity import Fidelity

__all__ = ["ClassifierFeatures", "Fidelity", "train_classifier_features"]
