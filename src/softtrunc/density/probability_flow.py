"""Log-likelihood by the probability-flow ODE, the change of variables of a diffusion model.

`log p_eps(x_eps) = log pi(x_T) + integral over [eps, T] of div(f x - 1/2 g^2 score) dt`
(Song et al. 2021, arXiv 2011.13456, section 4.3), and from eps to the data by the residual
(Kim et al. 2022, arXiv 2106.05527, appendix on the NLL with residual).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.density.bits import Density
from softtrunc.density.residual import (
    Reconstruction,
    check_reconstruction,
    gaussian_residual,
    lossless_residual,
)
from softtrunc.flow.adams import integrate_adams
from softtrunc.flow.chunks import in_chunks
from softtrunc.flow.path import (
    AngleVariable,
    PowerVariable,
    Variable,
    path_point,
    state_scale,
)
from softtrunc.flow.runge_kutta import (
    BOGACKI_SHAMPINE_32,
    DORMAND_PRINCE_54,
    Slope,
    Solution,
    Tableau,
    integrate,
)
from softtrunc.noise import ExampleStreams
from softtrunc.score import ScoreFunction
from softtrunc.sde import expand_to, wide_dtype

__all__ = ["Divergence", "Method", "check_inputs", "probability_flow_nll", "solve_flow"]

Method = Literal["adams", "rk45", "rk23"]
"""Adams' method of order 4, Dormand-Prince 5(4), Bogacki-Shampine 3(2)."""

Divergence = Literal["hutchinson", "exact"]
"""How the divergence is found: by random probes, or from every column of the Jacobian."""

_BASIS_AT_ONCE = 64
"""Columns of the Jacobian taken in one backward pass: their activations are held together."""


class NoiseAndDivergence(NamedTuple):
    """Predicted noise `n = -sigma score` and its divergence in x."""

    noise: Float[Tensor, "n *event"]
    divergence: Float[Tensor, " n"]


@dataclass(frozen=True)
class _Estimator:
    """Noise and divergence of a model; `probes` (P, B, *event), or None for the exact trace."""

    model: ScoreFunction
    probes: Tensor | None

    def __call__(self, x: Tensor, t: Tensor, sigma: Tensor, rows: Tensor) -> NoiseAndDivergence:
        wide = wide_dtype(x.device)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            noise = -expand_to(sigma, x) * self.model.score(x, t).to(x.dtype)
            if not noise.requires_grad:
                raise ValueError(
                    "model.score(x, t) cannot be differentiated in x, so it has no divergence: "
                    "take torch.no_grad, torch.inference_mode and detach out of it"
                )
            if self.probes is not None:
                divergence = self._along_probes(x, noise, self.probes[:, rows], wide)
            else:
                divergence = self._exact(x, noise, wide)
        return NoiseAndDivergence(noise.detach(), divergence)

    @staticmethod
    def _along_probes(x: Tensor, noise: Tensor, probes: Tensor, wide: torch.dtype) -> Tensor:
        total = torch.zeros(x.shape[0], dtype=wide, device=x.device)
        for i, probe in enumerate(probes):
            keep = i + 1 < len(probes)
            (pulled,) = torch.autograd.grad(noise, x, probe, retain_graph=keep)
            # Rounding of a sum over 10^5 products would show in the fourth digit of a bit.
            total += (pulled * probe).flatten(1).to(wide).sum(1)
        return total / len(probes)

    @staticmethod
    def _exact(x: Tensor, noise: Tensor, wide: torch.dtype) -> Tensor:
        dim = x[0].numel()
        total = torch.zeros(x.shape[0], dtype=wide, device=x.device)
        for begin in range(0, dim, _BASIS_AT_ONCE):
            columns = torch.arange(begin, min(begin + _BASIS_AT_ONCE, dim), device=x.device)
            basis = torch.zeros(len(columns), dim, dtype=x.dtype, device=x.device)
            basis[torch.arange(len(columns), device=x.device), columns] = 1.0
            basis = basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            (rows,) = torch.autograd.grad(noise, x, basis, retain_graph=True, is_grads_batched=True)
            picked = rows.flatten(2).gather(2, columns[:, None, None].expand(-1, x.shape[0], 1))
            total += picked.to(wide).sum((0, 2))
        return total


def check_inputs(model: ScoreFunction, x: Tensor, eps: float) -> None:
    """Refuse what no density can be computed of.

    Raises:
        ValueError: if `x` is not floating point, has no event dimension or is not finite, `eps`
            is not in (0, T), or the model would drop units at random.
    """
    if not x.is_floating_point() or x.ndim < 2 or x[:1].numel() == 0:
        raise ValueError(
            f"x: need floating-point examples (B, *event), not {x.dtype} {tuple(x.shape)}: pass "
            "dequantize(x) of integer data"
        )
    if not bool(x.isfinite().all()):
        raise ValueError("x holds nan or inf: repair the data before measuring a density")
    if not 0.0 < eps < model.sde.t_max:
        raise ValueError(f"eps={eps}: need 0 < eps < T = {model.sde.t_max}, e.g. 1e-5")
    if isinstance(model, torch.nn.Module):
        dropout = torch.nn.modules.dropout._DropoutNd
        if any(isinstance(m, dropout) and m.training and m.p > 0.0 for m in model.modules()):
            raise ValueError("the model still drops units at random: call model.eval() first")


def _scheme(method: Method, data_std: float) -> tuple[Tableau | None, Variable]:
    """Coefficients of a Runge-Kutta method (None: Adams') and the variable that suits it."""
    if method not in get_args(Method):
        allowed = " or ".join(f'"{name}"' for name in get_args(Method))
        raise ValueError(f"method {method!r} is unknown: write {allowed}")
    if method == "adams":
        return None, PowerVariable(0.5 * data_std)
    pair = DORMAND_PRINCE_54 if method == "rk45" else BOGACKI_SHAMPINE_32
    return pair, AngleVariable(data_std)


class FlowSolution(NamedTuple):
    """The flow of a batch from eps to T, and what the model said at its start."""

    x: Float[Tensor, "b *event"]
    flow: Float[Tensor, " b"]
    noise: Float[Tensor, "b *event"]
    nfe: Int[Tensor, " b"]


def solve_flow(
    model: ScoreFunction,
    x: Float[Tensor, "b *event"],
    probes: Float[Tensor, "p b *event"] | None,
    *,
    eps: float,
    rtol: float,
    atol: float,
    variable: Variable,
    data_std: float,
    tableau: Tableau | None,
) -> FlowSolution:
    """Carry `x` from eps to T.

    Args:
        model: anything with `.sde` and `.score(x, t)`.
        x: states at time eps.
        probes: Rademacher probes of Hutchinson's estimate; None for the exact divergence.
        eps: where to begin.
        rtol: see `probability_flow_nll`.
        atol: see `probability_flow_nll`.
        variable: in which the ODE is integrated.
        data_std: of which the state is scaled, see `state_scale`.
        tableau: the Runge-Kutta pair; None: Adams' method.
    """
    sde, dim = model.sde, x[0].numel()
    wide = wide_dtype(x.device)
    low = torch.tensor(eps, dtype=wide, device=x.device)
    high = torch.tensor(sde.t_max, dtype=wide, device=x.device)
    ends = [variable.of_rho((-0.5 * sde.log_snr(t)).exp()) for t in (low, high)]
    first, last = (state_scale(*sde.marginal(t), data_std) for t in (low, high))
    estimator = _Estimator(model, probes)

    def evaluate(z: Tensor, u: Tensor, rows: Tensor) -> tuple[NoiseAndDivergence, Slope]:
        p = path_point(sde, variable, data_std, u, low, high)
        seen = estimator(expand_to(p.scale, z) * z, p.t, p.sigma, rows)
        state = expand_to(p.gain, z) * seen.noise - expand_to(p.decay, z) * z
        return seen, Slope(state, p.volume * seen.divergence - dim * p.decay)

    def time_of(u: float) -> str:
        point = torch.tensor(u, dtype=wide, device=x.device)
        return f"t = {float(path_point(sde, variable, data_std, point, low, high).t):.3g}"

    z = x / first.to(x)
    rows = torch.arange(len(x), device=x.device)
    seen, slope = evaluate(z, ends[0].expand(len(x)), rows)

    def field(z: Tensor, u: Tensor, rows: Tensor) -> Slope:
        return evaluate(z, u, rows)[1]

    solution: Solution
    if tableau is None:
        solution = integrate_adams(
            field, z, *ends, slope=slope, rtol=rtol, atol=atol, describe=time_of
        )
    else:
        solution = integrate(
            field, z, *ends, slope=slope, rtol=rtol, atol=atol, tableau=tableau, describe=time_of
        )
    flow = -solution.log_volume - dim * (last.to(wide) / first.to(wide)).log()
    return FlowSolution(solution.state * last.to(x), flow, seen.noise, solution.nfe)


def probability_flow_nll(
    model: ScoreFunction,
    x: Float[Tensor, "b *event"],
    *,
    eps: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: Method = "adams",
    divergence: Divergence = "hutchinson",
    probes: int = 1,
    residual: bool = True,
    reconstruction: Reconstruction = "gaussian",
    levels: int = 256,
    value_range: tuple[float, float] = (-1.0, 1.0),
    data_std: float = 0.5,
    seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Density:
    """Negative log-likelihood by the probability-flow ODE.

    With residual, one `x_eps = alpha x + sigma z` is drawn and

    - `prior = -log pi(x_T)`, x_T being where the ODE carries x_eps,
    - `flow = -(integral over [eps, T] of div(f x - 1/2 g^2 score) dt)` along that path,
    - `residual = log p(x_eps | x) - log p_theta(x | x_eps)` for the same draw,

    whose sum is in expectation an upper bound of `-log p(x)`. Without residual the ODE starts at
    `x` itself at time eps and `residual = 0`, an older convention that bounds nothing; never
    compare the two.

    The ODE is solved by an embedded Runge-Kutta pair in the variable and for the state that
    `softtrunc.flow.path` describes, with step control for each example. A step passes when the
    RMS over dimensions of its estimated error in `z = x / sqrt(alpha^2 + sigma^2 / data_std^2)`
    (in units of the data) is at most `atol + rtol |z|`, and that of the log-density at most
    `atol` nats per dimension. The default of 1e-5 is far stricter than a figure of three decimals
    needs: on closed-form mixtures it leaves an error of 2e-5 bits per dimension, and 3e-4 one of
    8e-4 for 0.6 of the evaluations. A network is rough in t and costs many times more; there
    "rk23" gives more than "rk45" for the same evaluations (`benchmarks/density.py`).

    Args:
        model: anything with `.sde` and `.score(x, t)`, differentiable in x.
        x: examples in the model's data range: dequantised, or bin centres for "discrete". The ODE's
            state has their dtype, log-determinants are float64.
        eps: smallest time, in (0, T).
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        method: "rk45" (Dormand-Prince 5(4)) for smooth scores and tight tolerances, "rk23"
            (Bogacki-Shampine 3(2)) for rough ones and loose tolerances.
        divergence: "hutchinson" (unbiased, random) or "exact" (D backward passes per evaluation).
        probes: Rademacher probes of Hutchinson's estimate, fixed along a path and averaged.
        residual: whether to account for [0, eps].
        reconstruction: "gaussian" gives a density of dequantised data; "discrete" ("lossless")
            the probability of the levels, and `bits_per_dim` then adds no offset.
        levels: number of levels of a discrete reconstruction.
        value_range: low and high of the bins of a discrete reconstruction: the model's data range,
            or `spread_range` of it for a model trained without dequantisation.
        data_std: rough standard deviation of the data, which scales the state; it changes the
            cost, not the result.
        seeds: one integer per example: its noise and probes then do not depend on the batch.
        generator: source of randomness without `seeds`.
        chunk_size: examples solved at a time; None takes all and halves when memory runs out.

    Raises:
        ValueError: if an argument is out of range or the score cannot be differentiated.
        StepUnderflowError: (an ArithmeticError) if the solver cannot go on, naming t.
    """
    check_inputs(model, x, eps)
    check_reconstruction(reconstruction)
    if divergence not in get_args(Divergence):
        raise ValueError(f'divergence {divergence!r} is unknown: write "hutchinson" or "exact"')
    if probes < 1:
        raise ValueError(f"probes={probes}: need at least 1")
    if not (rtol >= 0.0 and atol > 0.0):
        raise ValueError(f"rtol={rtol}, atol={atol}: need rtol >= 0 and atol > 0, e.g. 1e-5")
    if not data_std > 0.0:
        raise ValueError(f"data_std={data_std}: need a number > 0, e.g. 0.5 for data in [-1, 1]")
    tableau, variable = _scheme(method, data_std)
    discrete = reconstruction == "discrete"
    if discrete and not residual:
        raise ValueError(
            "a discrete reconstruction is a residual: write residual=True, or "
            'reconstruction="gaussian" without one'
        )
    x = x.detach()
    streams = ExampleStreams(len(x), purpose="probability flow", seeds=seeds, generator=generator)
    noise = streams.normal(x) if residual else None
    signs = streams.signs(x, probes) if divergence == "hutchinson" else None
    alpha, sigma = model.sde.marginal(torch.tensor(eps, dtype=wide_dtype(x.device)))

    def solve(part: slice) -> Density:
        x0 = x[part]
        z = None if noise is None else noise[part]
        start = x0 if z is None else alpha.to(x0) * x0 + sigma.to(x0) * z
        solution = solve_flow(
            model,
            start,
            None if signs is None else signs[:, part],
            eps=eps,
            rtol=rtol,
            atol=atol,
            variable=variable,
            data_std=data_std,
            tableau=tableau,
        )
        prior = -model.sde.prior_log_prob(solution.x)
        if z is None:
            gap = torch.zeros_like(prior)
        elif discrete:
            gap = lossless_residual(
                x0, z, solution.noise, alpha, sigma, levels=levels, value_range=value_range
            )
        else:
            gap = gaussian_residual(z, solution.noise, alpha)
        return Density(
            prior,
            solution.flow,
            gap,
            prior + solution.flow + gap,
            solution.nfe,
            dim=x0[0].numel(),
            levels=levels if discrete else None,
        )

    return Density.join(in_chunks(solve, len(x), chunk_size))
