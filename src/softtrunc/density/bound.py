"""The evidence bound of a diffusion model: its log-likelihood without solving anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.density.bits import Density
from softtrunc.density.probability_flow import check_inputs
from softtrunc.density.residual import Reconstruction, residual_nats, start_noise
from softtrunc.density.truncated import LaterNoise, TruncatedNormal
from softtrunc.flow.chunks import in_chunks
from softtrunc.flow.path import state_scale
from softtrunc.noise import Noise
from softtrunc.score import ScoreFunction, rows_of
from softtrunc.sde import expand_to, wide_dtype, widen
from softtrunc.times import ImportanceTimes


def expected_prior(
    model: ScoreFunction, x: Tensor, mean: Tensor | None = None, square: Tensor | None = None
) -> Tensor:
    """`E[-log pi(x_T) | x_0]` in closed form, (B,).

    `mean` (B, *event) and `square` (B,) are E z and E ||z||^2 of the noise in x_T: 0 and D unless
    given.
    """
    sde, flat = model.sde, widen(x).flatten(1)
    alpha, sigma = sde.marginal(flat.new_full((), sde.t_max))
    dim, variance = flat.shape[1], sde.prior_std**2
    squares = alpha.square() * flat.square().sum(1)
    squares += sigma.square() * (dim if square is None else square)
    if mean is not None:
        squares += 2.0 * alpha * sigma * (flat * mean.flatten(1)).sum(1)
    return 0.5 * (squares / variance + dim * math.log(2.0 * math.pi * variance))


class BoundTerms(NamedTuple):
    """What the bound of each example is added up from; n is the number of drawn times.

    - `prior`, `residual` (B,): as in `nelbo`, in nats.
    - `t` (B, n): the times, one in each of n equal cells of log-SNR, in random order.
    - `integrand` (B, n): `sigma^2 (||score - grad||^2 - ||grad||^2)` there, unbiased, with the
      control variate of `nelbo`. Half its mean times the range of log-SNR is the first integral.
    - `error` (B, n): `||sigma score + z||^2` there (of z's best prediction, where it was cut).
    - `nfe`: network evaluations of each example.
    """

    prior: Float[Tensor, " b"]
    residual: Float[Tensor, " b"]
    t: Float[Tensor, "b n"]
    integrand: Float[Tensor, "b n"]
    error: Float[Tensor, "b n"]
    nfe: int


def bound_terms(
    model: ScoreFunction,
    x: Float[Tensor, "b *event"],
    *,
    eps: float,
    draws: int,
    reconstruction: Reconstruction,
    levels: int,
    value_range: tuple[float, float],
    data_std: float,
    seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> BoundTerms:
    """The terms of `nelbo`, time by time; arguments and refusals are those of `nelbo`."""
    check_inputs(model, x, eps, data_std, reconstruction)
    if draws < 1:
        raise ValueError(f"draws={draws}: need at least 1")
    x, sde = x.detach(), model.sde
    wide, device, dim = wide_dtype(x.device), x.device, x[0].numel()
    streams = Noise(len(x), seeds, generator, purpose="nelbo")
    low = torch.full((), eps, dtype=wide, device=device)
    times = ImportanceTimes(sde, stratified=True)
    t = torch.stack([times.draw(draws, eps, generator=g).t for g in streams.generators])
    t = widen(t, device)

    index = torch.arange(len(x), device=device)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        def work(part: slice) -> Tensor:
            x_t = sde.perturb(x[part], t[part], z[part])
            sigma = expand_to(sde.marginal(t[part]).sigma, x)
            with torch.no_grad():
                score = rows_of(model, index[part], len(x)).score(x_t, t[part])
            return -sigma * score.to(x.dtype)

        return torch.cat(in_chunks(work, len(x), chunk_size))

    marginal = sde.marginal(low)
    law = start_noise(sde, x, eps, reconstruction, levels, value_range)
    residual_draws = math.ceil(draws / 8) if law is None else 0
    if law is None:
        residual = torch.zeros(len(x), dtype=wide, device=device)
        for _ in range(residual_draws):
            z = streams.like(x)
            n = predict(z, low.expand(len(x)))
            gap = residual_nats(x, z, n, *marginal, reconstruction, levels, value_range)
            residual += gap / residual_draws
    else:
        residual = -widen(law.entropy(), device) - dim * marginal.sigma.log()

    log_snr = sde.log_snr(low)
    integrand, error = torch.empty_like(t), torch.empty_like(t)
    for i in range(draws):
        later = _noise(law, streams, x, log_snr - sde.log_snr(t[:, i]))
        n = predict(later.z.to(x.dtype), t[:, i])
        # sigma^2 (||score - grad||^2 - ||grad||^2), its noise ||z||^2 replaced by its mean.
        a, s = sde.marginal(t[:, i])
        share = (a / state_scale(a, s, data_std)).pow(4)
        n, target = n.to(wide).flatten(1), later.target.to(wide).flatten(1)
        gap = (n * (n - 2.0 * target)).sum(1)
        length = later.z.to(wide).flatten(1).square().sum(1)
        integrand[:, i] = gap + (1.0 - share) * (length - later.square)
        error[:, i] = gap + target.square().sum(1)
    return BoundTerms(
        _prior(model, x, law, log_snr), residual, t, integrand, error, draws + residual_draws
    )


def _noise(law: TruncatedNormal | None, streams: Noise, x: Tensor, gap: Tensor) -> LaterNoise:
    """Noise in x_t, on the device of x; `gap` (B,) is how much log-SNR has fallen since eps."""
    if law is None:
        z = streams.like(x)
        return LaterNoise(z, z, gap.new_full((), x[0].numel()))
    return LaterNoise(*(widen(v, x.device) for v in law.later(streams, gap)))


def _prior(model: ScoreFunction, x: Tensor, law: TruncatedNormal | None, log_snr: Tensor) -> Tensor:
    """`expected_prior` of noise that was cut where log-SNR was `log_snr`."""
    if law is None:
        return expected_prior(model, x)
    gap = (log_snr - model.sde.log_snr(torch.full_like(log_snr, model.sde.t_max))).expand(len(x))
    return expected_prior(model, x, *(widen(v, x.device) for v in law.moments(gap)))


def nelbo(
    model: ScoreFunction,
    x: Float[Tensor, "b *event"],
    *,
    eps: float = 1e-5,
    draws: int = 32,
    reconstruction: Reconstruction = "gaussian",
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    data_std: float = 0.5,
    seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Density:
    """Negative evidence lower bound of each example, in its score-matching form.

    (Song et al. 2021, arXiv 2101.09258, theorem 3; Huang et al. 2021, arXiv 2106.02808.)

    - `prior = E[-log pi(x_T) | x]`, in closed form,
    - `flow = 1/2 integral over [eps, T] of g^2 E(||score - grad||^2 - ||grad||^2) dt
      - D integral of f dt`, where grad is that of `log p(x_t | x)`; the first integral is
      estimated from `draws` times, stratified in log-SNR for each example, the second is exact,
    - `residual`, as in `probability_flow_nll`, from one draw of x_eps for every eight of `draws`;
      exact, and without an evaluation, for "truncated".

    The estimate is unbiased. Its variance is lowered by a control variate: for Gaussian data of
    standard deviation `data_std` the noise's length explains all of the integrand's noise.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        x: examples in the model's data range: dequantised, or bin centres for "discrete" and
            "truncated".
        eps: smallest time, in (0, T).
        draws: network evaluations per example for the integral.
        reconstruction: see `probability_flow_nll`.
        levels: see `probability_flow_nll`.
        value_range: see `probability_flow_nll`.
        data_std: rough standard deviation of the data, for the control variate only.
        seeds: one integer per example: its draws then do not depend on the batch.
        generator: source of randomness without `seeds`.
        chunk_size: examples evaluated at a time; None takes all and halves when memory runs out.

    Raises:
        ValueError: if an argument is out of range.
    """
    terms = bound_terms(
        model,
        x,
        eps=eps,
        draws=draws,
        reconstruction=reconstruction,
        levels=levels,
        value_range=value_range,
        data_std=data_std,
        seeds=seeds,
        generator=generator,
        chunk_size=chunk_size,
    )
    sde, dim = model.sde, x[0].numel()
    low, high = (terms.t.new_full((), t) for t in (eps, sde.t_max))
    log_snr_range = sde.log_snr(low) - sde.log_snr(high)
    drift = (sde.marginal(high).alpha / sde.marginal(low).alpha).log()
    integrand = torch.zeros_like(terms.residual)
    for part in terms.integrand.unbind(1):
        integrand += part / draws
    flow = 0.5 * log_snr_range * integrand - dim * drift
    return Density(
        terms.prior,
        flow,
        terms.residual,
        terms.prior + flow + terms.residual,
        torch.full((len(x),), terms.nfe, device=x.device),
        dim=dim,
        levels=None if reconstruction == "gaussian" else levels,
    )
