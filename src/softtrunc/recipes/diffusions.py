"""The sde section of a recipe: one class for each kind of forward diffusion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from softtrunc.recipes.values import Section


class VP(Section):
    """Variance-preserving SDE, or sub-variance-preserving with kind "subvp".

    - `kind`: which SDE.
    - `beta_min`, `beta_max`: rate of the noise at t = 0 and t = 1; 0 < beta_min <= beta_max.
    """

    kind: Literal["vp", "subvp"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0


class VE(Section):
    """Variance-exploding SDE; sigmas in units of data in [0, 1].

    - `kind`: which SDE.
    - `sigma_min`, `sigma_max`: the noise at t = 0 and t = 1; 0 < sigma_min < sigma_max.
    """

    kind: Literal["ve"] = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0


class ReciprocalVE(Section):
    """Reciprocal variance-exploding SDE: log sigma is linear in 1/t.

    - `kind`: which SDE.
    - `sigma_min`, `sigma_max`: the noise at t = eps and t = 1; 0 < sigma_min < sigma_max.
    - `eps`: the time at which the noise is `sigma_min`; between 0 and 1.
    """

    kind: Literal["rve"] = "rve"
    sigma_min: float = 1e-3
    sigma_max: float = 50.0
    eps: float = 1e-5


class Tabulated(Section):
    """The schedule of a model trained at discrete noise levels (DDPM), made continuous.

    - `kind`: which SDE.
    - `schedule`: the betas: "linear" (evenly spaced), "scaled_linear" (evenly spaced square roots)
      or "squaredcos_cap_v2" (a cosine).
    - `steps`: number of betas.
    - `beta_start`, `beta_end`: the first and the last one (not for the cosine).
    - `betas`: instead of a schedule, the betas themselves.
    - `single`: compute the noise levels in float32, as diffusers does.
    """

    kind: Literal["tabulated"] = "tabulated"
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    steps: Annotated[int, Field(ge=2, le=10**5, strict=True)] = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    betas: tuple[float, ...] | None = None
    single: bool = False


SDE = Annotated[VP | VE | ReciprocalVE | Tabulated, Field(discriminator="kind")]
