"""How bits per dimension are measured, and what a figure then says of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from softtrunc.data import ImageDataset
from softtrunc.density import Divergence, Method, lossless_eps, spread_range
from softtrunc.evaluation.figure import FORMS, DensityFigure
from softtrunc.sde import SDE


@dataclass(frozen=True)
class DensityProtocol:
    """How bits per dimension are measured.

    - `eps`: smallest diffusion time. `lossless_eps`: that of the lossless figures; None: where
      the noise is 0.4 of a level (`softtrunc.density.lossless_eps`).
    - `solver`, `rtol`, `atol`: of the probability-flow ODE.
    - `divergence`: "hutchinson" with so many `probes` per example, or "exact".
    - `nelbo_draws`: times per example.
    - `passes`: how often each image is counted, each time with fresh noise.
    - `batch_size`: examples at a time (no influence on the numbers).
    - `limit`: only the first so many images; None: all.
    - `seed`: of all noise; an image's draws follow from the seed, the pass and its place.
    - `solver_check`: on so many images the ODE is solved again at a thirtieth of the tolerance.
    - `dequantized`: noise filled each level's cell when the model was trained. False: it saw the
      levels as points spread from end to end of its range; lossless figures are measured there. The
      others put noise into the cells of the model's range, as the public code does: bounds all the
      same, but loose ones, for the model never saw what lies between the levels.
    """

    eps: float = 1e-5
    lossless_eps: float | None = None
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
    dequantized: bool = True

    def images(self, data: ImageDataset) -> int:
        """How many images are measured."""
        return min(len(data), self.limit or len(data))

    def decisive(self) -> dict[str, object]:
        """What an image's numbers depend on."""
        irrelevant = ("passes", "batch_size", "limit", "solver_check")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in irrelevant}

    def cells(
        self, key: DensityFigure, levels: int, value_range: tuple[float, float]
    ) -> tuple[float, float]:
        """The range that the levels' cells fill: the model's, or half a level more at both ends."""
        if FORMS[key].dequantization == "none" and not self.dequantized:
            return spread_range(levels, value_range)
        return value_range

    def smallest_time(
        self, key: DensityFigure, sde: SDE, levels: int, value_range: tuple[float, float]
    ) -> float:
        """The diffusion time at which a figure begins.

        Raises:
            ValueError: if nothing can begin there; or it is lossless, no time is given and the
                diffusion has too little noise.
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
        if FORMS[key].dequantization != "none":
            return self.eps
        if self.lossless_eps is not None:
            return self.lossless_eps
        cells = self.cells(key, levels, value_range)
        return lossless_eps(sde, levels, cells, least=self.eps)

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
        }
        said = dequantization[form.dequantization]
        if form.dequantization != "none" and not self.dequantized:
            said += "; the model was trained without: a loose bound"
        common: dict[str, object] = {
            "passes": self.passes,
            "levels": levels,
            "value_range": list(self.cells(key, levels, value_range)),
            "dequantization": said,
            "residual": form.residual,
            "eps": self.smallest_time(key, sde, levels, value_range),
            "seed": self.seed,
            "estimator": form.estimator,
        }
        if form.estimator == "score-matching bound":
            return common | {"draws": self.nelbo_draws}
        exact = self.divergence == "exact"
        variable = "a power of the noise-to-signal ratio" if self.solver == "adams" else "the angle"
        plural = "s" if self.probes > 1 else ""
        return common | {
            "solver": f"{self.solver} in {variable}, steps per example",
            "rtol": self.rtol,
            "atol": self.atol,
            "divergence": "exact"
            if exact
            else f"Hutchinson, {self.probes} Rademacher probe{plural}",
            "probes": None if exact else self.probes,
        }
