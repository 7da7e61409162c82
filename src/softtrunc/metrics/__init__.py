"""Metrics of samples: feature extractors and the Frechet distance between their statistics."""

from softtrunc.metrics.features import (
    DigitsFeatures,
    FeatureExtractor,
    TorchScriptFeatures,
    distance_name,
)
from softtrunc.metrics.frechet import FeatureStatistics, frechet_distance

__all__ = [
    "DigitsFeatures",
    "FeatureExtractor",
    "FeatureStatistics",
    "TorchScriptFeatures",
    "distance_name",
    "frechet_distance",
]
