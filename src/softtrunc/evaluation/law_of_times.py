"""Which times training looks at: shares of draws, and the weight that errors get in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.objective import MixedLoss, SoftTruncationLoss
from softtrunc.times import LogSNRTimes, TimeLaw, UniformTimes

_QUANTILES = 1 << 16
"""Of tau; every integral over its law is a mean over them."""

_POINTS = 256
"""Of log-SNR in a bin, for the mean weight."""


class LawOfTimes(NamedTuple):
    """What an objective makes of the times, in bins of log-SNR; float64 on the CPU throughout.

    - `log_snr` (bins + 1,): ends of the bins, as given.
    - `share` (bins,): of the drawn times, in expectation over tau.
    - `weight` (bins,): of the squared error `||sigma score + z||^2` in the expected loss, the mean
      over the bin in log-SNR. For the likelihood weighting and hard truncation it is 1; for Soft
      Truncation with it `P(tau <= t)`, that is `w_P / g^2`.
    - `clipped` (bins,): the same with each step scaled by what clipping left of its gradient; None
      where no steps were given. What counts is how it compares between bins: the size of a step is
      lost to Adam.
    """

    log_snr: Float[Tensor, " edges"]
    share: Float[Tensor, " bins"]
    weight: Float[Tensor, " bins"]
    clipped: Float[Tensor, " bins"] | None


def law_of_times(
    objective: SoftTruncationLoss | MixedLoss,
    edges: Float[Tensor, " edges"],
    *,
    taus: Sequence[float] | Float[Tensor, " steps"] | None = None,
    grad_norms: Sequence[float] | Float[Tensor, " steps"] | None = None,
    clip: float | None = None,
) -> LawOfTimes:
    """How often each bin of log-SNR is drawn, and what its errors weigh.

    The share and the weight come from the objective alone. Clipping scales a step of gradient norm
    `n` by `min(1, clip / n)`. Norms fall with tau, so that steps of small tau lose the most; which
    norms a run had only the run can tell.

    A mixed loss draws half of its times by each law, and its weight is the sum of its halves', the
    second times its coefficient.

    Args:
        objective: prior, law of the times and weighting; two of these in a mixed loss.
        edges: log-SNRs at the ends of the bins, rising or falling.
        taus: truncation times of recorded steps.
        grad_norms: gradient norms of the same steps, before clipping.
        clip: the largest norm that was let through; None: no clipping.

    Raises:
        ValueError: if the edges do not rise or fall, taus and norms are not as many, or a mixed
            loss is balanced: its halves are then weighed by their errors, which are not known here.
    """
    if isinstance(objective, MixedLoss):
        if objective.balanced:
            raise ValueError("law_of_times: a balanced loss has no weight without its errors")
        halves = (objective.likelihood, objective.variance)
        first, second = (
            law_of_times(half, edges, taus=taus, grad_norms=grad_norms, clip=clip)
            for half in halves
        )
        return _mixed(first, second, objective.coefficient)
    edges = edges.cpu().double()
    steps = edges.diff()
    if len(edges) < 2 or not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise ValueError("law_of_times: edges: need two or more log-SNRs that rise, or that fall")
    if (taus is None) != (grad_norms is None):
        raise ValueError("law_of_times: give taus and grad_norms of the same steps, or neither")
    tau = objective.prior.icdf((torch.arange(_QUANTILES).double() + 0.5) / _QUANTILES)
    ends = objective.sde.time_of_log_snr(edges).clamp(max=objective.sde.t_max)
    below = torch.stack([objective.times.cdf(t, tau).mean() for t in ends])
    clipped = None
    if taus is not None and grad_norms is not None:
        clipped = _mean_weight(objective, edges, _recorded(objective, taus, grad_norms, clip))
    weight = _mean_weight(objective, edges, _expected(objective, tau))
    return LawOfTimes(edges, below.diff().abs(), weight, clipped)


def _mixed(first: LawOfTimes, second: LawOfTimes, coefficient: float) -> LawOfTimes:
    """The law of two halves of a batch, whose mean losses are added, the second's scaled."""
    clipped = None
    if first.clipped is not None and second.clipped is not None:
        clipped = first.clipped + coefficient * second.clipped
    share = (first.share + second.share) / 2
    return LawOfTimes(first.log_snr, share, first.weight + coefficient * second.weight, clipped)


_SoFar = Callable[[Tensor], Tensor]
"""`E[scale(tau); tau <= t]` as a function of t."""


def _expected(objective: SoftTruncationLoss, tau: Tensor) -> _SoFar:
    """By the prior: the quantiles up to t, the last of them in part."""
    scale = _scale(objective.times, tau)
    sums = torch.cat([scale.new_zeros(1), scale.cumsum(0)])

    def so_far(t: Tensor) -> Tensor:
        place = objective.prior.cdf(t) * _QUANTILES
        whole = place.floor().long().clamp(max=_QUANTILES - 1)
        return (sums[whole] + (place - whole) * scale[whole]) / _QUANTILES

    return so_far


def _recorded(
    objective: SoftTruncationLoss,
    taus: Sequence[float] | Tensor,
    grad_norms: Sequence[float] | Tensor,
    clip: float | None,
) -> _SoFar:
    """By the steps of a run, each scaled as clipping did."""
    tau, norms = (
        v.cpu().double() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64)
        for v in (taus, grad_norms)
    )
    if len(tau) != len(norms) or not len(norms):
        raise ValueError(
            f"law_of_times: {len(tau)} taus and {len(norms)} grad_norms: give one of each for "
            "every step"
        )
    tau, order = tau.sort()
    kept = torch.ones_like(norms) if clip is None else (clip / norms[order]).clamp(max=1.0)
    scale = _scale(objective.times, tau) * kept
    sums = torch.cat([scale.new_zeros(1), scale.cumsum(0)]) / len(norms)
    return lambda t: sums[torch.searchsorted(tau, t.contiguous(), right=True)]


def _mean_weight(objective: SoftTruncationLoss, edges: Tensor, so_far: _SoFar) -> Tensor:
    """The mean over each bin, by the midpoint rule."""
    share = (torch.arange(_POINTS).double() + 0.5) / _POINTS
    t = objective.sde.time_of_log_snr(edges[:-1, None] + edges.diff()[:, None] * share)
    # The error counts `w / sigma^2` of the law's own measure: dt, or g^2 / sigma^2 dt.
    by_log_snr = isinstance(objective.times, LogSNRTimes)
    plain = objective.sde.marginal(t).sigma if by_log_snr else objective.sde.diffusion(t)
    return (so_far(t) * objective.weighting(t) / plain.square()).mean(1)


def _scale(times: TimeLaw, tau: Tensor) -> Tensor:
    """What the whole integral over [tau, T] is multiplied by: 1, or 1 over its length."""
    match times:
        case UniformTimes(sde=sde, average=True):
            return 1.0 / (sde.t_max - tau)
        case LogSNRTimes(sde=sde, average=True):
            return 1.0 / (sde.log_snr(tau) - sde.log_snr(torch.full_like(tau, sde.t_max)))
        case _:
            return torch.ones_like(tau)
