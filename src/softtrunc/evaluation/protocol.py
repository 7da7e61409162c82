"""How bits per dimension are measured, and what a figure then says of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from softtrunc.data import ImageDataset
from softtrunc.density import (
    SIGMAS,
    Divergence,
    Method,
    lossless_eps,
    sigmas_in_half_a_cell,
    spread_range,
    truncated_times,
)
from softtrunc.evaluation.figure import FORMS, DensityFigure
from softtrunc.sde import SDE


@dataclass(frozen=True)
class DensityProtocol:
    """How bits per dimension are measured.

    - `eps`: smallest diffusion time. `lossless_eps`: that of the lossless figures; None: where
      the noise is 0.4 of a level (`softtrunc.density.lossless_eps`).
    - `truncated_eps`: that of truncated-normal dequantisation; None: still to be chosen, the best
      of `times_to_try`.
    - `importance`: draws of an image's noise that are weighed against each other, in every pass
      (`softtrunc.density.importance_weighted`); of the ODE's figures.
    - `solver`, `rtol`, `atol`: of the probability-flow ODE.
    - `divergence`: "hutchinson" with so many `probes` per example, or "exact".
    - `nelbo_draws`: times per example.
    - `passes`: how often each image is counted, each time with fresh noise.
    - `batch_size`: examples at a time (no influence on the numbers).
    - `limit`: only the first so many images; None: all.
    - `seed`: of all noise; an image's draws follow from the seed, the pass and its place.
    - `solver_check`: on so many images the ODE is solved again at a thirtieth of the tolerance.
    - `solver_correction`: the mean error found there is taken off the figure. A loose tolerance for
      all images and a tight one for few then cost less than a tight one for all, for the same
      standard error (a control variate).
    - `dequantized`: noise filled each level's cell when the model was trained. False: it saw the
      levels as points spread from end to end of its range; lossless figures are measured there. The
      others put noise into the cells of the model's range, as the public code does: bounds all the
      same, but loose ones, for the model never saw what lies between the levels.
    - `labels`: the model is given each image's class: the bits are those of an image whose class is
      known.
    - `data_range`: of floats, the range from which they are mapped to the model's; None: images.
    """

    eps: float = 1e-5
    lossless_eps: float | None = None
    truncated_eps: float | None = None
    importance: int = 1
    solver: Method = "adams"
    rtol: float = 1e-3
    atol: float = 1e-3
    divergence: Divergence = "hutchinson"
    probes: int = 1
    nelbo_draws: int = 32
    passes: int = 1
    batch_size: int = 256
    limit: int | None = None
    seed: int = 0
    solver_check: int = 8
    solver_correction: bool = False
    dequantized: bool = True
    labels: bool = False
    data_range: tuple[float, float] | None = None

    def images(self, data: ImageDataset) -> int:
        """How many images are measured."""
        return min(len(data), self.limit or len(data))

    def decisive(self) -> dict[str, object]:
        """What an image's numbers depend on."""
        irrelevant = ("passes", "batch_size", "limit", "solver_check", "solver_correction")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in irrelevant}

    def cells(
        self, key: DensityFigure, levels: int, value_range: tuple[float, float]
    ) -> tuple[float, float]:
        """The range that the levels' cells fill: the model's, or half a level more at both ends."""
        if FORMS[key].of_levels and not self.dequantized:
            return spread_range(levels, value_range)
        return value_range

    def draws(self, key: DensityFigure) -> int:
        """How many draws of an image are weighed against each other."""
        return self.importance if FORMS[key].weighable else 1

    def is_open(self, key: DensityFigure) -> bool:
        """Whether the time at which a figure begins is still to be chosen."""
        return FORMS[key].dequantization == "truncated-normal" and self.truncated_eps is None

    def times_to_try(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> dict[float, float]:
        """The times to choose from, by the noise's standard deviations in half a level's cell.

        Raises:
            ValueError: if the diffusion has too little noise.
        """
        cells = self.cells(key, levels, value_range)
        return truncated_times(sde, levels, cells, sigmas=SIGMAS, least=self.eps)

    def check(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> None:
        """Refuse, with a ValueError, a figure that can begin nowhere."""
        if self.is_open(key):
            self.times_to_try(key, sde, levels, value_range)
        else:
            self.smallest_time(key, sde, levels, value_range)

    def smallest_time(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> float:
        """The diffusion time at which a figure begins.

        Raises:
            ValueError: if nothing can begin there; it is lossless, no time is given and the
                diffusion has too little noise; or it is still to be chosen.
        """
        found = self._smallest_time(key, sde, levels, value_range)
        try:
            sde.check_smallest_time(found)
        except ValueError as error:
            raise ValueError(f"evaluation.eps={error}") from error
        return found

    def _smallest_time(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> float:
        if self.is_open(key):
            raise ValueError(f"{key}: choose truncated_eps, the best of times_to_try, first")
        if FORMS[key].dequantization == "truncated-normal" and self.truncated_eps is not None:
            return self.truncated_eps
        if FORMS[key].dequantization != "none":
            return self.eps
        if self.lossless_eps is not None:
            return self.lossless_eps
        cells = self.cells(key, levels, value_range)
        return lossless_eps(sde, levels, cells, least=self.eps)

    def _start(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> dict[str, object]:
        if self.is_open(key):
            tried = self.times_to_try(key, sde, levels, value_range)
            return {"eps_chosen": {"split": "train", "sigmas": list(tried)}}
        eps = self.smallest_time(key, sde, levels, value_range)
        if FORMS[key].dequantization != "truncated-normal":
            return {"eps": eps}
        cells = self.cells(key, levels, value_range)
        return {"eps": eps, "eps_in_sigmas": sigmas_in_half_a_cell(sde, eps, levels, cells)}

    def describe(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> dict[str, object]:
        """What stands in `evaluation.json`, as far as it does not depend on the images.

        Raises:
            ValueError: as `smallest_time`.
        """
        form = FORMS[key]
        where = "in cells" if self.dequantized else "spread from end to end"
        dequantization = {
            "uniform": "uniform",
            "none": f"none: probability of the levels, {where}",
            "learned": "learned (variational flow)",
            "truncated-normal": f"noise of eps cut to each level's cell, {where}",
            "continuous": "none: the data are on no grid; a density in their own units",
        }
        said = dequantization[form.dequantization]
        if not (form.of_levels or form.of_floats or self.dequantized):
            said += "; the model was trained without: a loose bound"
        common: dict[str, object] = {
            **({"given": "each image's class"} if self.labels else {}),
            "passes": self.passes,
            **({"data_range": list(self.data_range)} if self.data_range else {"levels": levels}),
            "value_range": list(self.cells(key, levels, value_range)),
            "dequantization": said,
            "residual": form.residual,
            **self._start(key, sde, levels, value_range),
            "seed": self.seed,
            "estimator": form.estimator,
        }
        if form.estimator == "score-matching bound":
            return common | {"draws": self.nelbo_draws}
        exact = self.divergence == "exact"
        variable = "a power of the noise-to-signal ratio" if self.solver == "adams" else "the angle"
        plural = "s" if self.probes > 1 else ""
        return common | {
            "importance": self.importance,
            "solver": f"{self.solver} in {variable}, steps per example",
            "rtol": self.rtol,
            "atol": self.atol,
            **({"solver_correction": self.solver_check} if self.solver_correction else {}),
            "divergence": "exact"
            if exact
            else f"Hutchinson, {self.probes} Rademacher probe{plural}",
            "probes": None if exact else self.probes,
        }
