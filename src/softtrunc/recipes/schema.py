"""What a recipe may say: every key, its meaning, its range and its default.

A recipe is a frozen tree of pydantic models. An unknown key is an error that names the nearest
known one. Nothing here builds anything: `build.py` turns a recipe into objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from softtrunc.evaluation.figure import FIGURES_BY_DEQUANTIZATION, DensityFigure
from softtrunc.recipes.diffusions import SDE, VP, Tabulated
from softtrunc.recipes.sampling import DPMSolverSampling, Sampling
from softtrunc.recipes.training import Training
from softtrunc.recipes.values import (
    Channels,
    Count,
    Held,
    Natural,
    Positive,
    Rate,
    Section,
    Seed,
    Side,
    Time,
)

DIFFUSERS = "diffusers"
"""The preset that is the `UNet2DModel` of diffusers."""

CONTINUOUS = FIGURES_BY_DEQUANTIZATION["continuous"]
"""The figures of data that are on no grid."""

__all__ = [
    "DIFFUSERS",
    "FIGURES_BY_DEQUANTIZATION",
    "DPMSolverSampling",
    "Data",
    "Evaluation",
    "Recipe",
    "Sampling",
    "Tabulated",
]


class Data(Section):
    """Where the images come from and how they reach the model.

    - `preset`: the data set that the recipe is for and the protocol that the data must follow, one
      of `softtrunc data presets`; null: any images.
    - `source`: "digits", "fashion16", hf://OWNER/NAME, or the path of an image folder, archive,
      released or prepared data set; null: must be given on the command line.
    - `image_size`: side, or [height, width], to resize images to; null: as they are.
    - `channels`: 1 or 3; null: as they are. Of floats the number that they have.
    - `value_range`: the data are no images but floats (N, C, H, W), an autoencoder's latents say,
      all of them between low and high; null: images. There is a density of them and no bits/dim;
      they are neither mirrored nor dequantised.
    - `flip`: mirror left-right at random while training.
    - `dequantize`: uniform noise fills each grey level's cell; needed for bits/dim.
    - `labels`: the network is given each image's class (`network.options.num_classes` of them).
    """

    preset: str | None = None
    source: str | None = None
    image_size: Side | tuple[Side, Side] | None = None
    channels: Channels | None = None
    value_range: tuple[float, float] | None = None
    flip: bool = True
    dequantize: bool = True
    labels: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_floats(cls, values: object) -> object:
        """What is done to images is not done to floats, unless it is asked for."""
        if isinstance(values, Mapping) and values.get("value_range") is not None:
            return {"flip": False, "dequantize": False, **values}
        return values

    @model_validator(mode="after")
    def _kind(self) -> Data:
        if self.value_range is None:
            if self.channels not in (None, 1, 3):
                raise ValueError(
                    f"channels={self.channels}: images have 1 or 3; of floats write value_range too"
                )
            return self
        low, high = self.value_range
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"value_range={[low, high]}: write two numbers, the low one first")
        for name, done in (("flip", "mirrored"), ("dequantize", "dequantised")):
            if getattr(self, name):
                raise ValueError(
                    f"{name}: true beside value_range: floats are not {done}: write {name}: false"
                )
        if self.preset is not None:
            raise ValueError(f"preset={self.preset}: is of images, value_range of floats: drop one")
        return self

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """What `image_size` says."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


class Truncation(Section):
    """The law of the truncation time tau: its density is proportional to tau^-k on [eps, tau_max].

    - `k`: at least 0; small k favours samples, large k density. `.inf` is hard truncation.
    - `eps`: the smallest tau; hard truncation's only one.
    - `tau_max`: the largest tau, at most T = 1.
    """

    k: Annotated[float, Field(ge=0.0)] = 1.0
    eps: float = 1e-5
    tau_max: float = 1.0

    @property
    def hard(self) -> bool:
        """Whether tau is always eps."""
        return self.k == math.inf

    @property
    def words(self) -> str:
        """The law in short."""
        return "hard" if self.hard else f"k = {self.k:g}"


class Mixed(Section):
    """Half a batch g^2 with importance-sampled times, half sigma^2 with uniform ones.

    - `coefficient`: weight of the sigma^2 half.
    - `balanced`: also multiply it by the ratio of the two losses.
    """

    coefficient: Positive = 100.0
    balanced: bool = False


class LogNormal(Section):
    """The law of log(sigma / alpha) of data in [-1, 1] (EDM).

    - `mean`, `std`: of the normal law.
    """

    mean: Annotated[float, Field(ge=-100.0, le=100.0)] = -1.2
    std: Annotated[float, Field(gt=0.0, le=100.0)] = 1.2


class Objective(Section):
    """The loss.

    - `weighting`: "likelihood" (g^2), "variance" (sigma^2), "edm" (Karras et al. 2022, with
      `log_normal` and `network.sigma_data`) or "mixed" (see `mixed`).
    - `times`: how t is drawn: "importance" (evenly in log-SNR, the loss an integral over time),
      "uniform" (evenly in t), "log_snr" (evenly in log-SNR, the loss an integral over log-SNR; for
      VE the same as "uniform", for RVE the same as for VE), or "log_normal" (EDM's, see
      `log_normal`; the loss an integral over time).
    - `stratified`: divide the range into batch-size equal cells, and draw one time in each.
    - `average`: divide the integral by the length of its range (with times: uniform or log_snr).
    - `expected`: instead of drawing tau, train under hard truncation with the weight P(tau <= t),
      which Soft Truncation has on average. The mean gradient is the same only without clipping.
    - `reduction`: "mean" or "sum" over the dimensions.
    """

    weighting: Literal["likelihood", "variance", "edm", "mixed"] = "likelihood"
    times: Literal["importance", "uniform", "log_snr", "log_normal"] = "importance"
    log_normal: LogNormal = LogNormal()
    stratified: bool = True
    average: bool = False
    expected: bool = False
    reduction: Literal["mean", "sum"] = "mean"
    mixed: Mixed = Mixed()

    @model_validator(mode="after")
    def _combinations(self) -> Objective:
        over_time = self.times in ("importance", "log_normal")
        if self.average and over_time and self.weighting != "mixed":
            raise ValueError(
                "average: true belongs to uniform times: write times: uniform, or average: false"
            )
        if self.expected and self.weighting == "mixed":
            raise ValueError("expected: true has no mixed form: choose likelihood or variance")
        return self


Option = bool | int | float | str | list[int] | list[float] | list[str] | None


class Network(Section):
    """The network.

    - `preset`: name of a preset of `softtrunc.networks`, or "diffusers" for the `UNet2DModel` of
      that library.
    - `options`: fields of the preset to change, e.g. {dropout: 0.0}; for "diffusers" the arguments
      of the network.
    - `conditioning`: the noise label that the network is given; null: by the SDE, or "edm" for the
      prediction "edm".
    - `prediction`: what the output means: "noise", "scaled_score", "velocity", "sample" (x_0) or
      "edm" (preconditioned as by Karras et al. 2022); null: by the SDE.
    - `sigma_data`: for "edm", the standard deviation of the data in [-1, 1].
    - `value_range`: the range to which grey levels are scaled; null: by the SDE.
    """

    preset: str
    options: dict[str, Option] = Field({})
    conditioning: (
        Literal[
            "time",
            "unbounded_time",
            "reversed_time",
            "timestep",
            "log_sigma",
            "unbounded_sigma",
            "edm",
        ]
        | None
    ) = None
    prediction: Literal["noise", "scaled_score", "velocity", "sample", "edm"] | None = None
    sigma_data: Positive = 0.5
    value_range: tuple[float, float] | None = None


class Dequantizer(Section):
    """A learned dequantiser, trained after the model on the training images.

    - `layers`, `width`: of its couplings.
    - `steps`, `batch_size`, `learning_rate`: of its training.
    """

    layers: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 4
    width: Held = 32
    steps: Count = 2000
    batch_size: Held = 128
    learning_rate: Rate = 1e-3


class Evaluation(Section):
    """What `softtrunc evaluate` measures unless told otherwise.

    - `eps`: the smallest time, at which the model's density is taken. `lossless_eps`: that of the
      lossless figures; null: where the noise is 0.4 of a grey level, at least `eps`.
      `truncated_eps`: that of truncated-normal dequantisation; null: the best of several, from
      `eps` on, on 32 training images.
    - `figures`: the bits/dim to measure; `--dequantization` names the usual groups. Of floats
      (`data.value_range`) those of density.
    - `solver`, `rtol`, `atol`: of the probability-flow ODE: "adams", or the Runge-Kutta pairs
      "rk45" and "rk23". `solver_check`: the number of images on which the solver's error is
      measured. `solver_correction`: take its mean off the figure (docs/density.md).
    - `divergence`: "hutchinson" (estimated) or "exact" (one backward pass per dimension).
    - `probes`: random vectors per example for "hutchinson".
    - `dequantizer`: settings of the learned dequantiser.
    - `passes`: how often every image is measured, each time with fresh noise.
    - `importance`: draws of each image's noise in every pass for importance weighting, in figures
      by the ODE: a tighter bound at so many times the cost.
    - `nelbo_draws`: times per example and pass for the NELBO.
    - `samples`: images drawn for the distance. `batch_size`: examples per forward pass.
    - `features`: "digits-mlp", "fashion16-cnn", "inception" (the standard network, found or
      downloaded), or the path of a TorchScript extractor; null: a distance only if you ask for
      one, over "inception".
    - `resize`: how images are resized for the extractor: "legacy" (by the network itself) or
      "clean" (Pillow, antialiased).
    - `seed`: of every draw of the evaluation.
    """

    eps: Time = 1e-5
    lossless_eps: Time | None = None
    truncated_eps: Time | None = None
    figures: Annotated[tuple[DensityFigure, ...], Field(min_length=1)] = FIGURES_BY_DEQUANTIZATION[
        "uniform"
    ]
    solver: Literal["adams", "rk45", "rk23"] = "adams"
    rtol: Positive = 1e-3
    atol: Positive = 1e-3
    solver_check: Natural = 8
    solver_correction: bool = False
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    probes: Held = 1
    passes: Held = 1
    importance: Held = 1
    nelbo_draws: Held = 32
    samples: Count = 50_000
    batch_size: Held = 256
    features: str | None = None
    resize: Literal["legacy", "clean"] = "legacy"
    seed: Seed = 0
    dequantizer: Dequantizer = Dequantizer()

    @model_validator(mode="after")
    def _correctable(self) -> Evaluation:
        if self.solver_correction and self.solver_check < 2:
            raise ValueError(
                f"solver_correction: true with solver_check={self.solver_check}: the error is to "
                "be measured on 2 images at least: write solver_check: 64"
            )
        return self


class Paper(Section):
    """What the paper reports for a recipe (its authors, where `note` says so); null: nothing.

    - `fid`, `inception_score`, `bits_per_dim`: the figure. `note`: about them.
    """

    fid: float | None = None
    inception_score: float | None = None
    bits_per_dim: float | None = None
    note: str = ""


class Recipe(Section):
    """A whole experiment: data, SDE, truncation, loss, network, training, sampling, evaluation.

    - `name`: of the recipe and, unless `--out` says otherwise, of the run's folder.
    - `description`: one line for lists and reports.
    """

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$", max_length=120)]
    description: str = ""
    data: Data = Data()
    sde: SDE = VP()
    truncation: Truncation = Truncation()
    objective: Objective = Objective()
    network: Network
    training: Training
    sampling: Sampling = DPMSolverSampling()
    evaluation: Evaluation = Evaluation()
    paper: Paper | None = None

    @model_validator(mode="before")
    @classmethod
    def _figures_of_floats(cls, values: object) -> object:
        """Without a word about figures, those of density."""
        if not isinstance(values, Mapping):
            return values
        data, told = values.get("data"), values.get("evaluation", {})
        floats = data.get("value_range") if isinstance(data, Mapping) else None
        if floats is None or not isinstance(told, Mapping) or "figures" in told:
            return values
        return {**values, "evaluation": {**told, "figures": CONTINUOUS}}

    @model_validator(mode="after")
    def _measurable(self) -> Recipe:
        floats = self.data.value_range is not None
        for key in self.evaluation.figures:
            if (key in CONTINUOUS) == floats:
                continue
            if floats:
                raise ValueError(
                    f"evaluation.figures: {key}: these data are not on a grid: density yes, "
                    f"bits/dim no: write {' or '.join(CONTINUOUS)}"
                )
            raise ValueError(
                f"evaluation.figures: {key}: is of floats (data.value_range); images have levels, "
                f"and bits/dim: write {', '.join(FIGURES_BY_DEQUANTIZATION['uniform'])}"
            )
        if floats and self.evaluation.features is not None:
            raise ValueError(
                f"evaluation.features={self.evaluation.features}: features are of images, these "
                "data are floats: write evaluation.features=null"
            )
        return self
