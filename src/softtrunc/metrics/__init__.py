"""Metrics of samples: feature extractors, and distances and scores over what they give."""

from softtrunc.metrics.classifiers import DigitsFeatures, Fashion16Features
from softtrunc.metrics.features import (
    FeatureExtractor,
    TorchScriptFeatures,
    figure_name,
)
from softtrunc.metrics.fetch import cache_folder, inception_file
from softtrunc.metrics.frechet import frechet_distance
from softtrunc.metrics.inception_score import InceptionScore, inception_score
from softtrunc.metrics.kernel import KernelDistance, kernel_inception_distance
from softtrunc.metrics.manifold import PrecisionRecall, precision_recall
from softtrunc.metrics.statistics import FeatureStatistics, Provenance

__all__ = [
    "DigitsFeatures",
    "Fashion16Features",
    "FeatureExtractor",
    "FeatureStatistics",
    "InceptionScore",
    "KernelDistance",
    "PrecisionRecall",
    "Provenance",
    "TorchScriptFeatures",
    "cache_folder",
    "figure_name",
    "frechet_distance",
    "inception_file",
    "inception_score",
    "kernel_inception_distance",
    "precision_recall",
]
