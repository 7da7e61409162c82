"""Classifier-free guidance: two answers of one model, and how far to go from one past the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.score import BoundModel, GivenModel, ScoreFunction, ScoreModel
from softtrunc.sde import SDE, expand_to


class GuidedModel(BoundModel):
    """The score `(1 + scale) s(x, t | condition) - scale s(x, t | null)`; see `guided`."""

    def __init__(
        self,
        conditional: GivenModel,
        null: GivenModel,
        scale: float,
        interval: tuple[float, float] | None,
    ) -> None:
        super().__init__()
        self.conditional = conditional
        self.null = null
        self.scale = scale
        self.interval = interval

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self.conditional.sde

    @property
    def value_range(self) -> tuple[float, float]:
        """The range in which the data are given."""
        return self.conditional.value_range

    def score(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "b *event"]:
        """The guided score; the network is asked twice where guidance applies, else once."""
        score = self.conditional.score(x, t)
        if self.scale == 0.0:
            return score
        scale: float | Tensor = self.scale
        if self.interval is not None:
            low, high = self.interval
            sigma = self.sde.marginal(t).sigma
            inside = (low <= sigma) & (sigma <= high)
            if not bool(inside.any()):  # waits for times of a device: see `at`
                return score
            scale = self.scale * expand_to(inside.to(sigma.dtype), x)
        return score + scale * (score - self.null.score(x, t))

    def at(self, t: float) -> ScoreFunction:
        """Without an interval: the conditional model outside of it, guidance inside."""
        if self.interval is None:
            return self
        low, high = self.interval
        sigma = float(self.sde.marginal(torch.tensor(t, dtype=torch.float64)).sigma)
        if not low <= sigma <= high:
            return self.conditional
        return GuidedModel(self.conditional, self.null, self.scale, None)

    def rows(self, index: Int[Tensor, " n"], batch: int | None = None) -> GuidedModel:
        """The same for the examples at these places of a batch, in their order."""
        return GuidedModel(
            self.conditional.rows(index, batch),
            self.null.rows(index, batch),
            self.scale,
            self.interval,
        )


def guided(
    model: ScoreModel,
    scale: float,
    condition: Mapping[str, Any],
    null: Mapping[str, Any] | None = None,
    interval: tuple[float, float] | None = None,
) -> GuidedModel:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    The score becomes `(1 + scale) s(x, t | condition) - scale s(x, t | null)`, for every sampler.
    No density has this score at all times: densities take `model.given(**condition)`.

    Args:
        model: trained with the condition left out now and then (`training.label_dropout`).
        scale: 0 is the conditional model, -1 the one without a condition; usual values are 0 to 4.
            Some libraries count from 1: their w is `1 + scale`.
        condition: what the network is given, by name, as `ScoreModel.given` takes it.
        null: what it is given in its place for "anything"; None: nothing at all, which is what a
            `ScoreUNet` takes for its null label.
        interval: guide only where sigma lies in [low, high] (Kynkaanniemi et al. 2024, arXiv
            2404.07724); elsewhere the network is asked once, for the condition.

    Raises:
        ValueError: if scale is not finite, or interval not 0 <= low < high.
    """
    if not math.isfinite(scale):
        raise ValueError(f"guided: scale={scale}: need a number, e.g. 1.5")
    if interval is not None and not 0.0 <= interval[0] < interval[1]:
        raise ValueError(f"guided: interval={interval}: need 0 <= low < high, in units of sigma")
    return GuidedModel(model.given(**condition), model.given(**(null or {})), scale, interval)
