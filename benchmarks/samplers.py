"""Quality of samples against network evaluations: our samplers, and diffusers' on the same network.

On a run of the digits: the Frechet distance over digits-mlp features and the sliced Wasserstein
distance of pixels, both to the training images. On a mixture of Gaussians with its exact score:
the sliced Wasserstein distance to exact draws. On both, for deterministic samplers, the distance
of each sample to where the exact probability flow ends from the same noise, which has no
statistical error. All start from the same noise, so Frechet distances are also compared pair by
pair: the error of a difference is that of the bootstrap over the same samples.

    python -m benchmarks.samplers RUN --json rows.json --plot docs/images/samplers-nfe.png
    python -m benchmarks.samplers mixture --json rows.json

Rows that the JSON file has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.density import Mixture
from softtrunc import VPSDE
from softtrunc.metrics import DigitsFeatures, FeatureStatistics, frechet_distance
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)
from softtrunc.score import ScoreFunction
from softtrunc.sde import SDE

BUDGETS = (5, 8, 10, 15, 20, 30)
# So many samples are compared with the end of the exact flow.
EXACT = 256
REPLICATES = 50
Draw = Callable[[ScoreFunction, Tensor, torch.Generator], tuple[Tensor, int]]


@dataclass
class Problem:
    """A model, and how far samples `(N, *event)` are from what they should be."""

    name: str
    model: ScoreFunction
    event: tuple[int, ...]
    reference: Tensor
    features: Callable[[Tensor], Tensor] | None = None
    finish: Callable[[Tensor], Tensor] = lambda x: x
    lines: Tensor = field(init=False)
    projected: Tensor = field(init=False)
    statistics: FeatureStatistics | None = None

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        dim = self.reference[0].numel()
        lines = torch.randn(dim, 256, generator=generator)
        self.lines = lines / lines.norm(dim=0)
        self.projected = self._quantiles(self.reference)
        if self.features is not None:
            self.statistics = self._statistics(self.features(self.reference))

    @staticmethod
    def _statistics(features: Tensor) -> FeatureStatistics:
        statistics = FeatureStatistics(features.shape[1])
        statistics.update(features)
        return statistics

    def frechet(self, x: Tensor) -> tuple[float, list[float]] | None:
        """Distance in features, and what the bootstrap makes of it.

        The samples drawn again are the same ones of every `x` of one length.
        """
        if self.features is None or self.statistics is None:
            return None
        theirs, found = self.statistics, self.features(x)

        def distance(rows: Tensor) -> float:
            ours = self._statistics(rows)
            return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)

        generator = torch.Generator().manual_seed(1)
        again = [
            distance(found[torch.randint(len(found), (len(found),), generator=generator)])
            for _ in range(REPLICATES)
        ]
        return distance(found), again

    def sliced_wasserstein(self, x: Tensor) -> float:
        """Mean over 256 directions of the 1-Wasserstein distance of projections."""
        return float((self._quantiles(x) - self.projected).abs().mean())

    def _quantiles(self, x: Tensor) -> Tensor:
        ordered = (x.flatten(1).float() @ self.lines).sort(0).values
        place = (torch.arange(1000) + 0.5) / 1000 * len(x) - 0.5
        low = place.floor().long().clamp(0, len(x) - 2)
        return torch.lerp(ordered[low], ordered[low + 1], (place - low)[:, None].clamp(0, 1))


def digits(path: Path) -> Problem:
    """A run of the digits; distances are measured on grey levels, as images are stored."""
    from softtrunc.recipes.build import build_data
    from softtrunc.runs.draw import to_data
    from softtrunc.runs.open_run import open_run

    opened = open_run(path)
    train = build_data(opened.recipe, "train")
    extractor = DigitsFeatures(train.images, train.labels)
    return Problem(
        "digits",
        opened.model,
        train.images.shape[1:],
        torch.from_numpy(train.images),
        extractor,
        lambda x: to_data(opened, x),
    )


def mixture() -> Problem:
    generator = torch.Generator().manual_seed(0)
    model = Mixture.example(VPSDE(), 16, generator)
    return Problem("mixture", model, (16,), model.sample(100_000, generator).float())


def ours(sampler: Any) -> Draw:
    def draw(model: ScoreFunction, z: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        x = model.sde.prior_std * z
        return sampler.sample(model, x.shape, x_init=x, generator=generator)

    return draw


def diffusers_inputs(sde: SDE, times: int = 1000) -> list[float]:
    """Our schedule as diffusers' betas: alphas_cumprod at t = 1/1000, ..., 1 are alpha^2."""
    t = torch.arange(1, times + 1, dtype=torch.float64) / times
    kept = sde.marginal(t).alpha.square()
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return (1.0 - kept / before).tolist()


def theirs(make: Callable[[list[float]], Any], steps: int) -> Draw:
    """A scheduler of diffusers with the network asked at the very noise level of each step.

    diffusers itself rounds Karras' and Lu's noise levels to the nearest of 1000 times before it
    asks the network; here it gets the exact one, which favours it if anything.
    """

    def draw(model: ScoreFunction, z: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        scheduler = make(diffusers_inputs(model.sde))
        scheduler.set_timesteps(steps)
        x, calls = z * scheduler.init_noise_sigma, 0
        with torch.no_grad():
            for i, timestep in enumerate(scheduler.timesteps):
                ratio = scheduler.sigmas[i].double()
                t = model.sde.time_of_log_snr(-2.0 * ratio.log()).clamp(max=model.sde.t_max)
                inputs = scheduler.scale_model_input(x, timestep)
                score = model.score(inputs, t.expand(len(x)).to(x.dtype))
                noise = -float(model.sde.marginal(t).sigma) * score
                calls += 1
                x = scheduler.step(noise, timestep, x, generator=generator).prev_sample
        return x, calls

    return draw


@dataclass(frozen=True)
class Case:
    name: str
    budget: int
    draw: Draw
    deterministic: bool = False


def our_cases() -> Iterator[Case]:
    for n in BUDGETS:
        yield Case("DPM-Solver++ 2M", n, ours(DPMSolver(n)), True)
        yield Case("DPM-Solver++ 3M", n, ours(DPMSolver(n, order=3)), True)
        yield Case("DPM-Solver++ 2M, t_end=0.05", n, ours(DPMSolver(n, t_end=0.05)), True)
        yield Case("DPM-Solver++ 2M, log-SNR grid", n, ours(DPMSolver(n, grid="log_snr")), True)
        yield Case("DPM-Solver++ 2M, EDM grid", n, ours(DPMSolver(n, grid="edm")), True)
        yield Case("DPM-Solver++ 2M SDE", n, ours(DPMSolver(n, stochastic=True)))
        yield Case("Heun", n, ours(Heun((n + 1) // 2)), True)
        yield Case("DDIM (order 1)", n, ours(DPMSolver(n, order=1)), True)
    for n in (20, 50, 200):
        yield Case("Ancestral", n, ours(Ancestral(n)))
        yield Case("Euler-Maruyama", n, ours(EulerMaruyama(n)))
        yield Case("PC", n, ours(PredictorCorrector(n // 2)))
    for tolerance in (1e-2, 1e-3):
        flow = ProbabilityFlow(tolerance, tolerance)
        yield Case("Probability flow", round(-math.log10(tolerance)), ours(flow), True)


def diffusers_cases() -> Iterator[Case]:
    from diffusers import DPMSolverMultistepScheduler as Multistep
    from diffusers import EulerDiscreteScheduler as Euler

    kinds: dict[str, Callable[[list[float]], Any]] = {
        "diffusers Euler": lambda b: Euler(trained_betas=b),
        "diffusers Euler, Karras": lambda b: Euler(trained_betas=b, use_karras_sigmas=True),
    }
    grids = {
        "": {},
        ", Karras": {"use_karras_sigmas": True},
        ", Lu": {"use_lu_lambdas": True},
    }
    variants: dict[str, dict[str, Any]] = {
        "diffusers DPM 3M": {"solver_order": 3},
        **{f"diffusers DPM 2M{suffix}": grid for suffix, grid in grids.items()},
        **{
            f"diffusers DPM 2M SDE{suffix}": {"algorithm_type": "sde-dpmsolver++", **grid}
            for suffix, grid in grids.items()
        },
    }
    for name, options in variants.items():
        kinds[name] = lambda b, o=options: Multistep(trained_betas=b, **o)
    for name, make in kinds.items():
        for n in BUDGETS:
            yield Case(name, n, theirs(make, n), "SDE" not in name)


def measure(problem: Problem, case: Case, count: int, batch: int, exact: Tensor) -> dict[str, Any]:
    """One row; every case starts from the same noise."""
    z = torch.randn((count, *problem.event), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    begin, parts, nfe = time.perf_counter(), [], 0
    for start in z.split(batch):
        x, calls = case.draw(problem.model, start, generator)
        parts.append(x)
        nfe = max(nfe, calls)
    x = torch.cat(parts)
    row: dict[str, Any] = {"name": case.name, "budget": case.budget, "nfe": nfe}
    row["count"] = count
    row["seconds"] = time.perf_counter() - begin
    if case.deterministic and len(exact):
        row["flow_error"] = float((x[: len(exact)] - exact).square().mean().sqrt())
    images = problem.finish(x)
    if (found := problem.frechet(images)) is not None:
        row["frechet"], row["bootstrap"] = found
        row["frechet_se"] = float(torch.tensor(row["bootstrap"]).std())
    row["sliced_wasserstein"] = problem.sliced_wasserstein(images)
    return row


def print_row(row: dict[str, Any]) -> None:
    figures = [row.get(k) for k in ("frechet", "frechet_se", "sliced_wasserstein", "flow_error")]
    cells = ["" if v is None else f"{v:.4f}" for v in figures]
    print(f"{row['name']:32s} {row['nfe']:5d} " + " ".join(f"{c:>9s}" for c in cells), flush=True)


def compare(rows: list[dict[str, Any]]) -> None:
    """Frechet distance of our two forms less that of diffusers' at equal budgets."""
    table = {(row["name"], row["budget"]): row for row in rows if "bootstrap" in row}
    theirs = dict.fromkeys(name for name, _ in table if name.startswith("diffusers"))
    for name in theirs:
        base = "DPM-Solver++ 2M SDE" if "SDE" in name else "DPM-Solver++ 2M"
        pairs = [(n, table.get((base, n)), table.get((name, n))) for n in BUDGETS]
        gaps = []
        for n, us, them in pairs:
            if us is None or them is None or us["count"] != them["count"]:
                continue
            error = (torch.tensor(us["bootstrap"]) - torch.tensor(them["bootstrap"])).std()
            gaps.append(f"{n}: {us['frechet'] - them['frechet']:+.2f} ± {float(error):.2f}")
        if gaps:
            print(f"{base} less {name}: " + ", ".join(gaps))


def plot(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (p, key, label)
        for p, key, label in (
            ("digits", "frechet", "FD(digits-mlp) to the training images"),
            ("digits", "flow_error", "digits: RMS distance to the exact flow"),
            ("mixture", "sliced_wasserstein", "mixture in 16-D: sliced Wasserstein distance"),
            ("mixture", "flow_error", "mixture in 16-D: RMS distance to the exact flow"),
        )
        if p in rows
    ]
    figure, grid = pyplot.subplots(
        math.ceil(len(panels) / 2), 2, figsize=(11, 4.2 * math.ceil(len(panels) / 2)), squeeze=False
    )
    for axes, (problem, key, label) in zip(grid.flat, panels, strict=False):
        names = list(dict.fromkeys(row["name"] for row in rows[problem]))
        for name in (n for n in names if n in SHOWN):
            points = [r for r in rows[problem] if r["name"] == name and key in r]
            color, style = SHOWN[name]
            nfe = [r["nfe"] for r in points]
            axes.plot(nfe, [r[key] for r in points], style, color=color, label=name, ms=4, lw=1.3)
        for row in rows[problem]:
            if row["name"] == "PC, 1000 steps" and key in row:
                axes.axhline(row[key], color="black", lw=1, label="PC, 1000 steps (NFE 2000)")
        # Heun in a step or two is off every scale that shows the others.
        best = [r[key] for r in rows[problem] if key in r and r["nfe"] <= BUDGETS[-1]]
        axes.set_ylim(0.8 * min(best), 40 * sorted(best)[len(best) // 4])
        axes.set(
            xscale="log", yscale="log", xlabel="network evaluations", title=label, xlim=(4, 60)
        )
        axes.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


SHOWN = {
    "DPM-Solver++ 2M": ("tab:blue", "o-"),
    "DPM-Solver++ 3M": ("tab:green", "o-"),
    "DPM-Solver++ 2M SDE": ("tab:purple", "o-"),
    "DPM-Solver++ 2M, log-SNR grid": ("tab:red", "o-"),
    "Heun": ("tab:orange", "o-"),
    "DDIM (order 1)": ("tab:gray", "o-"),
    "diffusers DPM 2M": ("tab:blue", "x:"),
    "diffusers DPM 2M, Karras": ("tab:cyan", "x:"),
    "diffusers DPM 2M, Lu": ("tab:brown", "x:"),
    "diffusers DPM 3M": ("tab:green", "x:"),
    "diffusers DPM 2M SDE": ("tab:purple", "x:"),
    "diffusers Euler": ("tab:gray", "x:"),
    "diffusers Euler, Karras": ("tab:pink", "x:"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help='a run folder of the digits, or "mixture"')
    parser.add_argument("-n", "--count", type=int, default=2000, help="samples of each case")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--only", nargs="*", help="cases whose name contains one of these")
    parser.add_argument("--pc", action="store_true", help="also PC with 1000 steps: slow")
    parser.add_argument("--json", type=Path, help="rows measured so far, and now")
    parser.add_argument("--plot", type=Path, help="draw what the JSON file has")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem = mixture() if args.run == "mixture" else digits(Path(args.run))
    everything: dict[str, Any] = {}
    if args.json and args.json.exists():
        everything = json.loads(args.json.read_text())
    rows: list[dict[str, Any]] = everything.setdefault(problem.name, [])
    have = {(row["name"], row["budget"]) for row in rows}
    cases = [*our_cases(), *diffusers_cases()]
    if args.pc:
        cases.append(Case("PC, 1000 steps", 1000, ours(PredictorCorrector())))
    cases = [c for c in cases if not args.only or any(part in c.name for part in args.only)]
    cases = [c for c in cases if (c.name, c.budget) not in have]
    exact = torch.empty(0)
    if any(c.deterministic for c in cases):
        z = torch.randn((args.count, *problem.event), generator=torch.Generator().manual_seed(0))
        flow = ours(ProbabilityFlow(1e-5, 1e-5))
        exact = torch.cat(
            [flow(problem.model, z[i : i + 64], torch.Generator())[0] for i in range(0, EXACT, 64)]
        )
    head = ("FD", "SE", "SW", "to flow")
    print(f"{'sampler':32s} {'NFE':>5s} " + " ".join(f"{c:>9s}" for c in head))
    for row in rows:
        print_row(row)
    for case in cases:
        rows.append(measure(problem, case, args.count, args.batch, exact))
        print_row(rows[-1])
        if args.json:
            args.json.write_text(json.dumps(everything, indent=1) + "\n")
    compare(rows)
    if args.plot:
        plot(everything, args.plot)


if __name__ == "__main__":
    main()
