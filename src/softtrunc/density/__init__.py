"""Density: nats and bits per dimension of data under a score model."""

from softtrunc.density.bits import (
    Density,
    Mean,
    bits_per_dim,
    check_continuous,
    check_levels,
    check_on_grid,
    density_bits_per_dim,
    mean_with_error,
)
from softtrunc.density.bound import nelbo
from softtrunc.density.dequantize import bin_centers, bin_index, dequantize, spread_range
from softtrunc.density.importance import importance_weighted
from softtrunc.density.learned import Dequantizer, DrawnNoise, train_dequantizer
from softtrunc.density.probability_flow import Divergence, Method, probability_flow_nll
from softtrunc.density.residual import (
    Reconstruction,
    discrete_log_prob,
    gaussian_residual,
    lossless_eps,
    lossless_residual,
)
from softtrunc.density.truncated import (
    SIGMAS,
    TruncatedNormal,
    sigmas_in_half_a_cell,
    truncated_times,
)
from softtrunc.flow.steps import StepUnderflowError

__all__ = [
    "SIGMAS",
    "Density",
    "Dequantizer",
    "Divergence",
    "DrawnNoise",
    "Mean",
    "Method",
    "Reconstruction",
    "StepUnderflowError",
    "TruncatedNormal",
    "bin_centers",
    "bin_index",
    "bits_per_dim",
    "check_continuous",
    "check_levels",
    "check_on_grid",
    "density_bits_per_dim",
    "dequantize",
    "discrete_log_prob",
    "gaussian_residual",
    "importance_weighted",
    "lossless_eps",
    "lossless_residual",
    "mean_with_error",
    "nelbo",
    "probability_flow_nll",
    "sigmas_in_half_a_cell",
    "spread_range",
    "train_dequantizer",
    "truncated_times",
]
