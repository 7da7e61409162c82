"""The figures in bits/dim: their keys in `evaluation.json` and their titles."""

from __future__ import annotations

__all__ = ["DENSITY_FIGURES"]

DENSITY_FIGURES = {
    "nll_residual": "bits/dim with residual",
    "nll": "bits/dim without",
    "nelbo": "NELBO",
    "nll_lossless": "bits/dim lossless",
    "nelbo_lossless": "NELBO lossless",
    "nll_learned": "bits/dim, learned dequantiser",
    "nelbo_learned": "NELBO, learned dequantiser",
}
"""The figures in bits/dim, in the order of the table, and their column titles."""
