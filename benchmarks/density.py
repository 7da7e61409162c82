"""Error against network evaluations of the probability-flow log-likelihood.

For each variable in which the ODE can be integrated, each scaling of the state and each method:
the mean error in bits per dimension of an example, against the same ODE (the same x_eps, the same
Hutchinson probe) solved to 1e-9, over a range of tolerances. The yardstick is
RK45 in t for the batch as a whole, by torchdiffeq's dopri5 at rtol = atol = 1e-5.

    python -m benchmarks.density --sde vp --json mixture-vp.json
    python -m benchmarks.density --model runs/demo/soft --batch 8 --json demo.json
    python -m benchmarks.density --model NAME.pth --config NAME.json --batch 2
    python -m benchmarks.density --plot density.png mixture-vp.json demo.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softtrunc import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE
from softtrunc.density import dequantize
from softtrunc.density.probability_flow import solve_flow
from softtrunc.flow.adams import ADAMS
from softtrunc.flow.path import Variable, angle_variable, power_variable
from softtrunc.flow.runge_kutta import BOGACKI_SHAMPINE_32, DORMAND_PRINCE_54
from softtrunc.flow.steps import StepMethod
from softtrunc.interop import load_score_sde_checkpoint
from softtrunc.recipes.build import build_data
from softtrunc.runs.open_run import open_run
from softtrunc.score import ScoreFunction
from softtrunc.sde import expand_to

SDES: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "rve": ReciprocalVESDE(),
}
LIBRARY = "(std/2 + rho)^(-1/3), scaled state"
"""What `probability_flow_nll` does."""

PAIRS: dict[str, StepMethod] = {
    "Adams": ADAMS,
    "RK23": BOGACKI_SHAMPINE_32,
    "Dormand-Prince 5(4)": DORMAND_PRINCE_54,
}


def time_variable(sde: SDE) -> Variable:
    """u = t."""

    def rho(t: Tensor) -> Tensor:
        return (-0.5 * sde.log_snr(t)).exp()

    def rate(t: Tensor) -> Tensor:
        return 0.5 * rho(t) * (sde.diffusion(t) / sde.marginal(t).sigma).square()

    return Variable(lambda rho: sde.time_of_log_snr(-2.0 * rho.log()), rho, rate)


def asinh_variable(scale: float) -> Variable:
    """u = asinh(rho / scale): linear below the scale, logarithmic above."""
    return Variable(
        lambda rho: torch.asinh(rho / scale),
        lambda u: scale * u.sinh(),
        lambda u: scale * u.cosh(),
    )


LOG_VARIABLE = Variable(torch.log, torch.exp, torch.exp)
"""u = log rho = -log-SNR / 2."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic Gaussians in D dimensions, with its exact score."""

    sde: SDE
    means: Tensor
    stds: Tensor

    @classmethod
    def example(cls, sde: SDE, dim: int, generator: torch.Generator) -> Mixture:
        means = 0.5 * torch.randn(5, dim, generator=generator, dtype=torch.float64).clamp(-2, 2)
        return cls(sde, means, torch.tensor([0.05, 0.1, 0.15, 0.2, 0.3], dtype=torch.float64))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        j = torch.randint(len(self.means), (n,), generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[j] + self.stds[j, None] * z

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.to(x).expand(len(x)) for v in self.sde.marginal(t))
        diff = x[:, None] - alpha[:, None, None] * self.means.to(x)
        var = (alpha[:, None] * self.stds.to(x)).square() + sigma.square()[:, None]
        log_p = -0.5 * (diff.square().sum(2) / var + x.shape[1] * var.log())
        return -(log_p.softmax(1)[:, :, None] * diff / var[:, :, None]).sum(1)


@dataclass(frozen=True)
class Problem:
    model: ScoreFunction
    x: Tensor
    probes: Tensor
    eps: float

    def bits(self, x_end: Tensor, flow: Tensor) -> Tensor:
        nats = flow - self.model.sde.prior_log_prob(x_end)
        return nats / (self.x[0].numel() * math.log(2.0))


@dataclass(frozen=True)
class Row:
    name: str
    pair: str
    tol: float
    nfe: float
    error: float
    worst: float
    seconds: float


def ours(
    problem: Problem, variable: Variable, data_std: float, method: StepMethod, tol: float
) -> tuple[Tensor, float]:
    solution = solve_flow(
        problem.model,
        problem.x,
        problem.probes,
        eps=problem.eps,
        rtol=tol,
        atol=tol,
        variable=variable,
        data_std=data_std,
        method=method,
    )
    return problem.bits(solution.x, solution.flow), float(solution.nfe.double().mean())


def in_time(problem: Problem, tol: float) -> tuple[Tensor, float]:
    """RK45 in t of the whole batch at once, state (x, log-determinant): the usual way."""
    from torchdiffeq import odeint

    model, calls = problem.model, 0
    probe = problem.probes[0]

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        times = t.expand(len(state[0]))
        with torch.enable_grad():
            x = state[0].detach().requires_grad_(True)
            g2 = expand_to(model.sde.diffusion(times).square(), x)
            drift = expand_to(model.sde.drift(times), x) * x - 0.5 * g2 * model.score(x, times)
            (pulled,) = torch.autograd.grad(drift, x, probe)
        return drift.detach(), (pulled * probe).flatten(1).double().sum(1)

    start = (problem.x, torch.zeros(len(problem.x), dtype=torch.float64))
    t = torch.tensor([problem.eps, model.sde.t_max], dtype=torch.float64)
    x, log_det = odeint(field, start, t, rtol=tol, atol=tol, method="dopri5")
    return problem.bits(x[-1], -log_det[-1]), float(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mixture", help='"mixture", a run, or a public .pth')
    parser.add_argument("--config", help="of a public .pth, as JSON")
    parser.add_argument("--sde", choices=sorted(SDES), default="vp", help="for the mixture")
    parser.add_argument("--dim", type=int, default=16, help="for the mixture")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--eps", type=float, default=1e-5)
    parser.add_argument("--data-std", type=float, default=0.5)
    parser.add_argument("--tols", type=float, nargs="+", default=[1e-3, 3e-4, 1e-4, 1e-5])
    parser.add_argument("--reference-tol", type=float, default=1e-9, help="of the truth")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument(
        "--variables", nargs="+", help="only those whose name contains one of these"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="state and model in float32")
    parser.add_argument("--json", type=Path, help="also write every row here")
    parser.add_argument("--plot", nargs="+", type=Path, metavar="FILE", help="a PNG, and rows")
    args = parser.parse_args()
    if args.plot:
        plot(args.plot[0], args.plot[1:])
        return
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)

    if args.model == "mixture":
        model: ScoreFunction = Mixture.example(SDES[args.sde], args.dim, generator)
        x0 = model.sample(args.batch, generator)
    elif args.config:
        model = load_score_sde_checkpoint(args.model, args.config)
        shape = (args.batch, model.network.config.channels, *model.network.config.size)
        low, high = model.value_range
        x0 = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    else:
        opened = open_run(Path(args.model))
        model, data = opened.model, build_data(opened.recipe, "test")
        levels = data.batch(torch.arange(args.batch))
        x0 = dequantize(levels, data.card.levels, model.value_range, generator=generator).double()
    if args.float32:
        x0 = x0.float()
    elif isinstance(model, torch.nn.Module):
        model = model.double()
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    probes = (2 * torch.randint(2, (1, *x0.shape), generator=generator) - 1).to(x0)
    eps = torch.tensor(args.eps, dtype=torch.float64)
    problem = Problem(model, model.sde.perturb(x0, eps, noise), probes, args.eps)

    std = args.data_std
    named: dict[str, tuple[Variable, float]] = {
        "t, state x/alpha": (time_variable(model.sde), math.inf),
        "t, scaled state": (time_variable(model.sde), std),
        "log rho, state x/alpha": (LOG_VARIABLE, math.inf),
        "log rho, scaled state": (LOG_VARIABLE, std),
        "asinh(rho/std), scaled state": (asinh_variable(std), std),
        "asinh(10 rho/std), scaled state": (asinh_variable(0.1 * std), std),
        "angle, state x/alpha": (angle_variable(std), math.inf),
        "angle, scaled state": (angle_variable(std), std),
        "angle(3 rho/std), scaled state": (angle_variable(std / 3.0), std),
        "(std/2 + rho)^(-1/2), scaled state": (power_variable(std / 2.0, 2.0), std),
        LIBRARY: (power_variable(std / 2.0), std),
    }
    truth, _ = ours(problem, angle_variable(std), std, DORMAND_PRINCE_54, args.reference_tol)
    rows: list[Row] = []

    def report(name: str, pair: str, tol: float, run: object) -> None:
        begin = time.perf_counter()
        try:
            bits, nfe = run()  # type: ignore[operator]
        except ArithmeticError as error:
            print(f"{name:34s} {pair:20s} {tol:7.0e}   {error}")
            return
        seconds = time.perf_counter() - begin
        error = (bits - truth).abs()
        row = Row(name, pair, tol, nfe, float(error.mean()), float(error.max()), seconds)
        rows.append(row)
        print(
            f"{row.name:34s} {row.pair:20s} {row.tol:7.0e} {row.nfe:8.1f} {row.error:9.1e} "
            f"{row.worst:9.1e} {row.seconds:8.2f}"
        )

    print(f"{args.model}, {type(model.sde).__name__}, {tuple(x0.shape)}, eps {args.eps:g}")
    head = ("variable", "pair", "tol", "NFE", "mean err", "max err", "seconds")
    print("{:34s} {:20s} {:>7s} {:>8s} {:>9s} {:>9s} {:>8s}".format(*head))
    for tol in (1e-3, 1e-4, 1e-5):
        report(
            "t, state x, whole batch",
            "torchdiffeq dopri5",
            tol,
            lambda tol=tol: in_time(problem, tol),
        )
    for name, (variable, scale) in named.items():
        if args.variables and not any(part in name for part in args.variables):
            continue
        for pair in args.pairs:
            for tol in args.tols:
                report(
                    name,
                    pair,
                    tol,
                    lambda v=variable, s=scale, p=pair, tol=tol: ours(problem, v, s, PAIRS[p], tol),
                )
    yardstick = next(r for r in rows if r.pair == "torchdiffeq dopri5" and r.tol == 1e-5)
    print(f"\nfewest evaluations for a mean error below 1e-3 bits (yardstick {yardstick.nfe:.0f}):")
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.name, row.pair)
        if row.error < 1e-3 and (key not in best or row.nfe < best[key].nfe):
            best[key] = row
    for row in sorted(best.values(), key=lambda r: r.nfe):
        share = row.nfe / yardstick.nfe
        print(f"{row.nfe:8.1f} ({share:4.2f})  {row.name}, {row.pair}, tol {row.tol:.0e}")
    if args.json:
        title = f"{Path(args.model).name}, {type(model.sde).__name__}"
        content = {"title": title, "rows": [vars(r) for r in rows]}
        args.json.write_text(json.dumps(content, indent=1))


def plot(out: Path, files: list[Path]) -> None:
    """Error against evaluations, one panel a file; the best variable of each method in colour."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    columns = min(len(files), 3)
    lines = math.ceil(len(files) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    styles = {"torchdiffeq dopri5": "k^-", "Adams": "o-", "RK23": "s-", "Dormand-Prince 5(4)": "v-"}
    for ax, file in zip(axes, files, strict=False):
        content = json.loads(file.read_text())
        series: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for row in content["rows"]:
            series.setdefault((row["name"], row["pair"]), []).append((row["nfe"], row["error"]))
        for (name, pair), points in series.items():
            known = name == LIBRARY or pair.startswith("torchdiffeq")
            label = pair + ("" if pair.startswith("torchdiffeq") else ", ours") if known else None
            style = styles[pair] if known else styles[pair][0] + "-"
            look = {"lw": 1.6, "ms": 4} if known else {"lw": 0.6, "ms": 2, "color": "0.75"}
            ax.plot(*zip(*sorted(points), strict=True), style, label=label, **look)
        ax.axhline(1e-3, color="0.5", lw=0.8, ls=":")
        ax.set(xscale="log", yscale="log", title=content["title"], xlabel="network evaluations")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_ylabel("mean error of an example, bits/dim")
        ax.legend(fontsize=7)
    for ax in axes[len(files) :]:
        ax.remove()
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main()
