"""Log-likelihood by the probability-flow ODE, the change of variables of a diffusion model.

`log p_eps(x_eps) = log pi(x_T) + integral over [eps, T] of div(f x - 1/2 g^2 score) dt`
(Song et al. 2021, arXiv 2011.13456, section 4.3), and from eps to the data by the residual
(Kim et al. 2022, arXiv 2106.05527, appendix on the NLL with residual).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softtrunc.density.bits import Density
from softtrunc.density.residual import Reconstruction, residual_nats, start_noise
from softtrunc.flow.adams import ADAMS
from softtrunc.flow.chunks import in_chunks
from softtrunc.flow.path import Path, Variable, angle_variable, power_variable
from softtrunc.flow.runge_kutta import BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54
from softtrunc.flow.steps import Slope, StepMethod, integrate
from softtrunc.noise import Noise
from softtrunc.score import ScoreFunction, rows_of
from softtrunc.sde import expand_to, wide_dtype, widen

Method = Literal["adams", "rk45", "rk23"]
"""Adams' method of order 4, Dormand-Prince 5(4), Bogacki-Shampine 3(2)."""

Divergence = Literal["hutchinson", "exact"]
"""How the divergence is found: by random probes, or from every column of the Jacobian."""

_BASIS_AT_ONCE = 64
"""Columns of the Jacobian taken in one backward pass: their activations are held together."""


def _noise_and_divergence(
    model: ScoreFunction, x: Tensor, t: Tensor, sigma: Tensor, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Predicted noise `n = -sigma score` and its divergence in x, (n,).

    `probes` are Rademacher `(P, n, *event)`, or None for the exact trace.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        noise = -expand_to(sigma, x) * model.score(x, t).to(x.dtype)
        if not noise.requires_grad:
            raise ValueError(
                "model.score(x, t) cannot be differentiated in x, so it has no divergence: "
                "take torch.no_grad, torch.inference_mode and detach out of it"
            )
        divergence = _exact(x, noise) if probes is None else _along_probes(x, noise, probes)
    return noise.detach(), divergence


def _along_probes(x: Tensor, noise: Tensor, probes: Tensor) -> Tensor:
    total = torch.zeros(x.shape[0], dtype=wide_dtype(x.device), device=x.device)
    for i, probe in enumerate(probes):
        (pulled,) = torch.autograd.grad(noise, x, probe, retain_graph=i + 1 < len(probes))
        # Rounding of a sum over 10^5 products would show in the fourth digit of a bit.
        total += widen((pulled * probe).flatten(1)).sum(1)
    return total / len(probes)


def _exact(x: Tensor, noise: Tensor) -> Tensor:
    dim = x[0].numel()
    total = torch.zeros(x.shape[0], dtype=wide_dtype(x.device), device=x.device)
    for begin in range(0, dim, _BASIS_AT_ONCE):
        columns = torch.arange(begin, min(begin + _BASIS_AT_ONCE, dim), device=x.device)
        basis = torch.zeros(len(columns), dim, dtype=x.dtype, device=x.device)
        basis[torch.arange(len(columns), device=x.device), columns] = 1.0
        basis = basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        (rows,) = torch.autograd.grad(noise, x, basis, retain_graph=True, is_grads_batched=True)
        picked = rows.flatten(2).gather(2, columns[:, None, None].expand(-1, x.shape[0], 1))
        total += widen(picked).sum((0, 2))
    return total


def check_inputs(
    model: ScoreFunction, x: Tensor, eps: float, data_std: float, reconstruction: Reconstruction
) -> None:
    """Refuse what no density can be computed of, or not so.

    Raises:
        ValueError: if `x` is not floating point, has no event dimension or is not finite, another
            argument is out of range, or the model would drop units at random.
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
    if not data_std > 0.0:
        raise ValueError(f"data_std={data_std}: need a number > 0, e.g. 0.5 for data in [-1, 1]")
    if reconstruction not in get_args(Reconstruction):
        allowed = " or ".join(f'"{name}"' for name in get_args(Reconstruction))
        raise ValueError(f"reconstruction {reconstruction!r} is unknown: write {allowed}")
    if isinstance(model, torch.nn.Module):
        dropout = torch.nn.modules.dropout._DropoutNd
        if any(isinstance(m, dropout) and m.training and m.p > 0.0 for m in model.modules()):
            raise ValueError("the model still drops units at random: call model.eval() first")


def _scheme(method: Method, data_std: float) -> tuple[StepMethod, Variable]:
    """The formulas of a method and the variable that suits it."""
    if method not in get_args(Method):
        allowed = " or ".join(f'"{name}"' for name in get_args(Method))
        raise ValueError(f"method {method!r} is unknown: write {allowed}")
    if method == "adams":
        return ADAMS, power_variable(0.5 * data_std)
    pair = DORMAND_PRINCE_54 if method == "rk45" else BOGACKI_SHAMPINE_32
    return pair, angle_variable(data_std)


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
    method: StepMethod,
) -> FlowSolution:
    """Carry `x`, states at time eps, to T.

    `probes` (Rademacher) are those of Hutchinson's estimate, None for the exact divergence;
    `variable` is that of integration, `data_std` sets the state's scale (`state_scale`).
    """
    dim = x[0].numel()
    times = torch.tensor([eps, model.sde.t_max], dtype=torch.float64)
    path = Path(model.sde, variable, data_std, widen(times, x.device))
    first, last = path.scales

    def evaluate(z: Tensor, u: Tensor, rows: Tensor) -> tuple[Tensor, Slope]:
        p = path.point(u)
        signs = None if probes is None else probes[:, rows]
        noise, divergence = _noise_and_divergence(
            rows_of(model, rows, len(x)), expand_to(p.scale, z) * z, p.t, p.sigma, signs
        )
        return noise, Slope(p.velocity(z, noise), p.volume * divergence - dim * p.decay)

    z = x / first.to(x)
    noise, slope = evaluate(z, path.ends[0].expand(len(x)), torch.arange(len(x), device=x.device))
    solution = integrate(
        lambda z, u, rows: evaluate(z, u, rows)[1],
        z,
        *path.ends,
        method=method,
        slope=slope,
        rtol=rtol,
        atol=atol,
        describe=path.describe,
    )
    flow = -solution.log_volume - dim * (last / first).log()
    return FlowSolution(solution.state * last.to(x), flow, noise, solution.nfe)


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
    probe_seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
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

    A step of the solver passes when the RMS over dimensions of its estimated error in
    `z = x / sqrt(alpha^2 + sigma^2 / data_std^2)` is at most `atol + rtol |z|`, and that of the
    log-density at most `atol` nats per dimension. The default is far stricter than a figure of
    three decimals needs: on closed-form mixtures it leaves an error of 2e-5 bits per dimension
    (docs/density.md). With `seeds` an example's value does not depend on its batch, up to the
    network's rounding; where that tips a step of the solver over to another length, which fixed
    lengths make rare, up to the solver's error.

    Args:
        model: anything with `.sde` and `.score(x, t)`, differentiable in x.
        x: examples in the model's data range: dequantised, or bin centres for "discrete" and
            "truncated". The ODE's state has their dtype, log-determinants are float64.
        eps: smallest time, in (0, T).
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        method: "adams" for networks, which are rough in t; "rk45" (Dormand-Prince 5(4)) for smooth
            scores and tight tolerances; "rk23" (Bogacki-Shampine 3(2)).
        divergence: "hutchinson" (unbiased, random) or "exact" (D backward passes per evaluation).
        probes: Rademacher probes of Hutchinson's estimate, fixed along a path and averaged.
        residual: whether to account for [0, eps].
        reconstruction: "gaussian" gives a density of dequantised data; "discrete" ("lossless") and
            "truncated" (truncated-normal dequantisation, `softtrunc.density.truncated`) the
            probability of the levels, and `bits_per_dim` then adds no offset. "truncated" cuts the
            noise in x_eps to the level's cell, and the residual is its log-density alone.
        levels: number of levels, where their probability is meant.
        value_range: low and high of its bins: the model's data range, or `spread_range` of it for
            a model trained without dequantisation.
        data_std: rough standard deviation of the data: changes the cost, not the result.
        seeds: one integer per example: its noise and probes then do not depend on the batch.
        probe_seeds: of the probes, if not those of `seeds`: several draws of one image that are
            weighed against each other (`importance_weighted`) are to share theirs.
        generator: source of randomness without `seeds`.
        chunk_size: examples solved at a time; None takes all and halves when memory runs out.

    Raises:
        ValueError: if an argument is out of range or the score cannot be differentiated.
        StepUnderflowError: (an ArithmeticError) if the solver cannot go on, naming t.
    """
    check_inputs(model, x, eps, data_std, reconstruction)
    if divergence not in get_args(Divergence):
        raise ValueError(f'divergence {divergence!r} is unknown: write "hutchinson" or "exact"')
    if probes < 1:
        raise ValueError(f"probes={probes}: need at least 1")
    if not (rtol >= 0.0 and atol > 0.0):
        raise ValueError(f"rtol={rtol}, atol={atol}: need rtol >= 0 and atol > 0, e.g. 1e-5")
    formulas, variable = _scheme(method, data_std)
    discrete = reconstruction != "gaussian"
    if discrete and not residual:
        raise ValueError(
            f"a {reconstruction} reconstruction is a residual: write residual=True, or "
            'reconstruction="gaussian" without one'
        )
    x, sde = x.detach(), model.sde
    streams = Noise(len(x), seeds, generator, purpose="probability flow")
    law = start_noise(sde, x, eps, reconstruction, levels, value_range)
    noise = None
    if residual:
        noise = streams.like(x) if law is None else widen(law.draw(streams), x.device).to(x.dtype)
    shared = streams if probe_seeds is None else Noise(len(x), probe_seeds, None, purpose="probes")
    signs = shared.signs(x, probes) if divergence == "hutchinson" else None
    low = torch.full((), eps, dtype=wide_dtype(x.device), device=x.device)
    start = x if noise is None else sde.perturb(x, low, noise)
    index = torch.arange(len(x), device=x.device)

    def solve(part: slice) -> Density:
        x_end, flow, predicted, nfe = solve_flow(
            rows_of(model, index[part], len(x)),
            start[part],
            None if signs is None else signs[:, part],
            eps=eps,
            rtol=rtol,
            atol=atol,
            variable=variable,
            data_std=data_std,
            method=formulas,
        )
        prior, gap = -sde.prior_log_prob(x_end), torch.zeros_like(flow)
        if noise is not None:
            terms = x[part], noise[part], predicted, *sde.marginal(low)
            gap = residual_nats(*terms, reconstruction, levels, value_range)
        nats = prior + flow + gap
        return Density(prior, flow, gap, nats, nfe, x[0].numel(), levels if discrete else None)

    return Density.join(in_chunks(solve, len(x), chunk_size))
