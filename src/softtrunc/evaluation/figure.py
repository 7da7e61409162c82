"""The figures of density: their keys in `evaluation.json`, their titles, and what each one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DensityFigure = Literal[
    "nll_residual",
    "nll",
    "nelbo",
    "nll_lossless",
    "nelbo_lossless",
    "nll_learned",
    "nelbo_learned",
    "nll_truncated",
    "nelbo_truncated",
    "nll_continuous",
    "nelbo_continuous",
]
Dequantization = Literal["uniform", "none", "learned", "truncated-normal", "continuous"]
Estimator = Literal["probability-flow ODE", "score-matching bound"]
Residual = Literal[
    "none",
    "Gaussian",
    "discretised Gaussian, entropy term kept",
    "nothing to pay: x_eps lies in the level's cell",
]

_ODE: Estimator = "probability-flow ODE"
_BOUND: Estimator = "score-matching bound"
_DISCRETE: Residual = "discretised Gaussian, entropy term kept"
_CELL: Residual = "nothing to pay: x_eps lies in the level's cell"


@dataclass(frozen=True)
class DensityForm:
    """What a figure of density is.

    - `title`: over the column of a table.
    - `dequantization`: what fills a grey level's cell: uniform noise, nothing (the figure is a
      probability of the levels, lossless), noise that was learned, or that of eps cut to the cell;
      "continuous": the data are floats, on no grid.
    - `estimator`: of the model's density. `residual`: the step from the smallest time to the data.
    """

    title: str
    dequantization: Dequantization
    estimator: Estimator
    residual: Residual

    @property
    def of_levels(self) -> bool:
        """Whether it is a probability of the levels where the model saw them, cells around them."""
        return self.dequantization in ("none", "truncated-normal")

    @property
    def of_floats(self) -> bool:
        """Whether it is a density of data that are on no grid, in their own units."""
        return self.dequantization == "continuous"

    @property
    def unit(self) -> str:
        """Of its value."""
        return "bits/dim of density" if self.of_floats else "bits/dim"

    @property
    def weighable(self) -> bool:
        """Whether draws can be weighed against each other: a bound's estimate is no weight."""
        return self.estimator == _ODE


FORMS: dict[DensityFigure, DensityForm] = {
    "nll_residual": DensityForm("bits/dim with residual", "uniform", _ODE, "Gaussian"),
    "nll": DensityForm("bits/dim without residual", "uniform", _ODE, "none"),
    "nelbo": DensityForm("NELBO", "uniform", _BOUND, "Gaussian"),
    "nll_lossless": DensityForm("bits/dim lossless", "none", _ODE, _DISCRETE),
    "nelbo_lossless": DensityForm("NELBO lossless", "none", _BOUND, _DISCRETE),
    "nll_learned": DensityForm("bits/dim, learned dequantiser", "learned", _ODE, "Gaussian"),
    "nelbo_learned": DensityForm("NELBO, learned dequantiser", "learned", _BOUND, "Gaussian"),
    "nll_truncated": DensityForm("bits/dim, truncated normal", "truncated-normal", _ODE, _CELL),
    "nelbo_truncated": DensityForm("NELBO, truncated normal", "truncated-normal", _BOUND, _CELL),
    "nll_continuous": DensityForm("NLL of floats", "continuous", _ODE, "Gaussian"),
    "nelbo_continuous": DensityForm("NELBO of floats", "continuous", _BOUND, "Gaussian"),
}
"""All of them, in the order of a table."""

DENSITY_FIGURES: dict[str, str] = {key: form.title for key, form in FORMS.items()}
"""Their titles by key."""

FIGURES_BY_DEQUANTIZATION: dict[str, tuple[DensityFigure, ...]] = {
    name: tuple(key for key, form in FORMS.items() if form.dequantization == name)
    for name in ("uniform", "none", "learned", "truncated-normal", "continuous")
}
"""The keys of each way to make discrete levels continuous."""
