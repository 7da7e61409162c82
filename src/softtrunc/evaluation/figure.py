"""One measured number with everything that it means."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["DENSITY_FIGURES", "Figure"]

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


@dataclass(frozen=True)
class Figure:
    """A number of `evaluation.json`.

    - `key`: machine name, e.g. "nll_residual"; `name`: what a person reads.
    - `value`, `standard_error` (None: not known), `unit` ("" if it has none).
    - `better`: "lower" or "higher".
    - `seconds`: what measuring took. `nfe`: network evaluations per example, mean and max.
    - `solver_error`: of an ODE, measured on a few images against a far tighter tolerance: mean and
      root mean square of the difference per image.
    - `protocol`: split, counts, solver, tolerances: all that another must know to repeat it.
    """

    key: str
    name: str
    value: float
    standard_error: float | None
    unit: str
    better: str
    seconds: float
    protocol: dict[str, Any]
    nfe: dict[str, float] | None = field(default=None)
    solver_error: dict[str, float] | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
