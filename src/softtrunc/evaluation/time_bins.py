"""Which times decide density: the bound, and the error of the score, in bins of log-SNR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.density.bits import Mean, bits_per_dim, mean_with_error
from softtrunc.density.bound import bound_terms
from softtrunc.density.residual import Reconstruction
from softtrunc.score import ScoreFunction


class TimeBin(NamedTuple):
    """A bin of log-SNR; means over images, with their standard errors.

    - `log_snr`, `t`: its ends, low and high. The low time belongs to the high log-SNR.
    - `bits_per_dim`, `standard_error`: what the bin adds to the bound. It may be negative: at the
      times where structure appears the bound falls from the prior's bits to the data's.
    - `error`, `error_standard_error`: `||sigma score + z||^2` per dimension, between 0 (the noise
      is known) and about 1 (nothing is known of it).
    - `bits_below`: what all times below the bin's high end add, in bits/dim.
    """

    log_snr: tuple[float, float]
    t: tuple[float, float]
    bits_per_dim: float
    standard_error: float
    error: float
    error_standard_error: float
    bits_below: float


@dataclass(frozen=True)
class ByTime:
    """The bound of each of n images, bin by bin; all on the CPU in float64.

    - `t` (bins + 1,): ends of the bins, from eps up to T. `log_snr` (bins + 1,): theirs, downwards.
    - `bits` (n, bins): bits/dim that each bin adds. `error` (n, bins): `||sigma score + z||^2` per
      dimension, the mean over each bin in log-SNR.
    - `prior`, `residual` (n,): the two terms of `nelbo` beside its integral, in bits/dim.
    - `offset`: bits/dim that turn a density over the value range into one over the levels.
    """

    t: Float[Tensor, " edges"]
    log_snr: Float[Tensor, " edges"]
    bits: Float[Tensor, "n bins"]
    error: Float[Tensor, "n bins"]
    prior: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    offset: float

    @property
    def bits_per_dim(self) -> Float[Tensor, " n"]:
        """The whole bound of each image: that of `nelbo` with the same draws, to rounding."""
        return self.prior + self.bits.sum(1) + self.residual + self.offset

    @property
    def total(self) -> Mean:
        """Bits/dim, the standard error of their mean, and the number of images."""
        return mean_with_error(self.bits_per_dim)

    @property
    def bins(self) -> tuple[TimeBin, ...]:
        """The means over images, from eps up to T."""
        found = []
        below = 0.0
        for i in range(self.bits.shape[1]):
            bits, error = mean_with_error(self.bits[:, i]), mean_with_error(self.error[:, i])
            below += bits.mean
            found.append(
                TimeBin(
                    log_snr=(float(self.log_snr[i + 1]), float(self.log_snr[i])),
                    t=(float(self.t[i]), float(self.t[i + 1])),
                    bits_per_dim=bits.mean,
                    standard_error=bits.standard_error,
                    error=error.mean,
                    error_standard_error=error.standard_error,
                    bits_below=below,
                )
            )
        return tuple(found)

    def minus(self, other: ByTime) -> ByTime:
        """Image by image how much larger each number is than another model's.

        Given the same images and seeds both models saw the same times and noise. The differences'
        own standard errors, far smaller than those of the two, are then those of the comparison.

        Raises:
            ValueError: if the other was measured on other images or in other bins.
        """
        same = self.bits.shape == other.bits.shape and torch.equal(self.t, other.t)
        if not (same and torch.allclose(self.prior, other.prior, rtol=1e-9)):
            raise ValueError(
                "minus: measured on other images or in other bins: give both models the same "
                "images, SDE, eps and bins"
            )
        return ByTime(
            self.t,
            self.log_snr,
            self.bits - other.bits,
            self.error - other.error,
            self.prior - other.prior,
            self.residual - other.residual,
            self.offset - other.offset,
        )

    @classmethod
    def join(cls, parts: Iterable[ByTime]) -> ByTime:
        """The images of several batches as those of one.

        Raises:
            ValueError: if there are none, or they differ in their bins or offset.
        """
        parts = list(parts)
        if not parts or any(
            not torch.equal(p.t, parts[0].t) or p.offset != parts[0].offset for p in parts
        ):
            raise ValueError("join: need at least one batch, all in the same bins and range")
        return cls(
            parts[0].t,
            parts[0].log_snr,
            torch.cat([p.bits for p in parts]),
            torch.cat([p.error for p in parts]),
            torch.cat([p.prior for p in parts]),
            torch.cat([p.residual for p in parts]),
            parts[0].offset,
        )


def by_time(
    model: ScoreFunction,
    x: Float[Tensor, "b *event"],
    *,
    eps: float = 1e-5,
    bins: int = 24,
    draws: int = 2,
    reconstruction: Reconstruction = "gaussian",
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    data_std: float = 0.5,
    seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> ByTime:
    """The evidence bound of each image, told apart by diffusion time.

    Bins are equally wide in log-SNR, and so is every draw's cell within them: the draws are those
    of `softtrunc.density.nelbo` with `draws=bins * draws`, whose numbers the bins add up to. A bin
    adds `1/2 integral of g^2 E(||score - grad||^2 - ||grad||^2) dt - D integral of f dt`.

    Times and noise of an image follow from its seed alone, so that two models given the same seeds
    can be compared by `ByTime.minus`. Measure many images batch by batch and `join` the results.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        x: images in the model's data range: dequantised (`softtrunc.density.dequantize`), or bin
            centres for the "discrete" and "truncated" reconstructions.
        eps: smallest time, in (0, T).
        bins: number of bins.
        draws: times per image in each bin.
        reconstruction: of the residual, see `softtrunc.density.probability_flow_nll`.
        levels: number of grey levels behind the data.
        value_range: low and high that the levels' cells fill.
        data_std: rough standard deviation of the data, for the control variate only.
        seeds: one integer per image: its draws then do not depend on the batch.
        generator: source of randomness without `seeds`.
        chunk_size: images evaluated at a time; None takes all and halves when memory runs out.

    Raises:
        ValueError: if an argument is out of range.
    """
    for name, count in (("bins", bins), ("draws", draws)):
        if count < 1:
            raise ValueError(f"{name}={count}: need at least 1")
    terms = bound_terms(
        model,
        x,
        eps=eps,
        draws=bins * draws,
        reconstruction=reconstruction,
        levels=levels,
        value_range=value_range,
        data_std=data_std,
        seeds=seeds,
        generator=generator,
        chunk_size=chunk_size,
    )
    sde, dim = model.sde, x[0].numel()
    ends = torch.tensor([eps, sde.t_max], dtype=torch.float64)
    highest, lowest = sde.log_snr(ends)
    log_snr = highest + (lowest - highest) * torch.linspace(0.0, 1.0, bins + 1).double()
    t = sde.time_of_log_snr(log_snr)
    t[0], t[-1] = ends
    # There is one draw in each cell, so its place in the order of times says which cell that is.
    order = terms.t.argsort(1)

    def by_bin(values: Tensor) -> Tensor:
        return values.gather(1, order).cpu().double().reshape(-1, bins, draws).mean(2)

    nats_per_bit = dim * math.log(2.0)
    width = (highest - lowest) / bins
    drift = sde.marginal(t).alpha.log().diff()
    discrete = reconstruction != "gaussian"
    return ByTime(
        t=t,
        log_snr=log_snr,
        bits=(0.5 * width * by_bin(terms.integrand) - dim * drift) / nats_per_bit,
        error=by_bin(terms.error) / dim,
        prior=terms.prior.cpu().double() / nats_per_bit,
        residual=terms.residual.cpu().double() / nats_per_bit,
        offset=0.0
        if discrete
        else float(bits_per_dim(torch.zeros(1), dim, levels=levels, value_range=value_range)),
    )
