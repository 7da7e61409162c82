"""What the noise of a density figure costs: the same evaluations spent in different ways.

Standard deviation over repetitions, within an image, in bits/dim:

- of the bound's integral from 32 evaluations: times independent or stratified, noise independent or
  antithetic (z and -z at the same time, or at the times of two neighbouring cells);
- of the ODE's NLL: one pass, two probes, two passes, two antithetic passes (u and 1 - u, z and -z),
  and the cost of each in forward passes of the network (a backward pass counts for two);
- and over images: how well a cheap estimate (a loose tolerance, the NELBO) explains the dear one,
  and what standard error control variates would then leave at equal cost.

    python -m benchmarks.variance RUN --images 8 --repeat 4
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from softtrunc.density import dequantize, nelbo, probability_flow_nll
from softtrunc.flow.path import state_scale
from softtrunc.jobs.adopt import shipped_run
from softtrunc.noise import Noise
from softtrunc.recipes.build import build_data
from softtrunc.runs.open_run import open_run
from softtrunc.score import ScoreModel
from softtrunc.sde import expand_to

DRAWS = 32


def integrand(model: ScoreModel, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """What `nelbo` averages over log-SNR, (B,)."""
    a, s = model.sde.marginal(t)
    with torch.no_grad():
        n = -expand_to(s, x) * model.score(model.sde.perturb(x, t, z), t)
    share = (a / state_scale(a, s, 0.5)).pow(4)
    n, z = n.double().flatten(1), z.double().flatten(1)
    length = z.square().sum(1)
    return (n * (n - 2 * z)).sum(1) + (1 - share) * (length - z.shape[1])


def cells(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """A number in each of `count` equal cells of [0, 1), (count, batch)."""
    u = torch.rand(count, batch, generator=generator, dtype=torch.float64)
    return (torch.arange(count)[:, None] + u) / count


def designs(batch: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Callable]]:
    """Places in log-SNR (32, batch) and, given noise of 32 draws, what is used of it."""
    half = cells(DRAWS // 2, batch, generator).repeat_interleave(2, 0)

    def pairs(z: Tensor) -> Tensor:
        return torch.stack([z[0::2], -z[0::2]], 1).flatten(0, 1)

    independent = torch.rand(DRAWS, batch, generator=generator, dtype=torch.float64)
    stratified = cells(DRAWS, batch, generator)
    return {
        "independent times": (independent, lambda z: z),
        "stratified (ours)": (stratified, lambda z: z),
        "stratified, -z in the next cell": (stratified, pairs),
        "16 cells, z and -z in each": (half, pairs),
    }


def bound_noise(model: ScoreModel, x: Tensor, repeat: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([1e-5, model.sde.t_max], dtype=torch.float64)
    high, low = model.sde.log_snr(ends)
    found: dict[str, list[Tensor]] = {}
    for _ in range(repeat):
        z = torch.randn(DRAWS, *x.shape, generator=generator)
        for name, (place, use) in designs(len(x), generator).items():
            t = model.sde.time_of_log_snr(high + (low - high) * place).clamp(1e-5, 1.0)
            terms = [integrand(model, x, t[i], use(z)[i]) for i in range(DRAWS)]
            bits = 0.5 * (high - low) * torch.stack(terms).mean(0) / x[0].numel() / math.log(2)
            found.setdefault(name, []).append(bits)
    return {name: float(torch.stack(all_).var(0).mean().sqrt()) for name, all_ in found.items()}


class _Mirrored(Noise):
    """-z in the place of z."""

    def like(self, x: Tensor) -> Tensor:
        return -super().like(x)


def nll(
    model: ScoreModel, levels: Tensor, seed: int, *, mirror: bool = False, **options: object
) -> tuple[Tensor, float]:
    seeds = torch.arange(len(levels)) + 10_007 * seed
    u = Noise(len(levels), seeds, None, purpose="u").uniform(levels, torch.float64)
    x = dequantize(levels, noise=1 - u if mirror else u, value_range=model.value_range)
    options = {"rtol": 1e-3, "atol": 1e-3, "seeds": seeds} | options
    kind = _Mirrored if mirror else Noise
    with mock.patch("softtrunc.density.probability_flow.Noise", kind):
        found = probability_flow_nll(model, x, **options)  # type: ignore[arg-type]
    return found.bits_per_dim(value_range=model.value_range), float(found.nfe.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder, or fashion16")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=4)
    args = parser.parse_args()
    opened = open_run(shipped_run(args.run) or Path(args.run))
    model, data = opened.model.eval(), build_data(opened.recipe, "test")
    levels = data.batch(torch.arange(args.images))
    x = dequantize(levels, seeds=range(args.images), value_range=model.value_range)
    for name, std in bound_noise(model, x, 2 * args.repeat).items():
        print(f"bound, {DRAWS} evaluations, {name:32s} {std:.4f}", flush=True)

    def spread(pairs: list[Tensor]) -> float:
        return float(torch.stack(pairs).var(0).mean().sqrt())

    single = [nll(model, levels, r) for r in range(2 * args.repeat)]
    bits, nfe = [b for b, _ in single], single[0][1]
    two_probes = [nll(model, levels, 100 + r, probes=2)[0] for r in range(args.repeat)]
    mirrored = [0.5 * (bits[r] + nll(model, levels, r, mirror=True)[0]) for r in range(args.repeat)]
    two = [0.5 * (a + b) for a, b in zip(bits[::2], bits[1::2], strict=True)]
    for name, values, cost in (
        ("one pass", bits, 3 * nfe),
        ("two probes", two_probes, 5 * nfe),
        ("two passes", two, 6 * nfe),
        ("two antithetic passes, one probe", mirrored, 6 * nfe),
    ):
        std = spread(values)
        print(f"ODE, {name:34s} {std:.4f}  cost {cost:5.0f}  std sqrt(cost) {std * cost**0.5:.3f}")
    dear, cost = bits[0], 3 * nfe
    loose, loose_nfe = nll(model, levels, 0, rtol=1e-2, atol=1e-2)
    bound = nelbo(model, x, draws=8, seeds=range(args.images))
    cheap = bound.bits_per_dim(value_range=model.value_range)
    for name, values, price in (
        ("the same at 1e-2", loose, 3 * loose_nfe),
        ("NELBO of 9 evaluations", cheap, float(bound.nfe[0])),
    ):
        gap, std = (dear - values).std(), dear.std()
        left = (price**0.5 * values.std() + (price + cost) ** 0.5 * gap) / (cost**0.5 * std)
        print(
            f"control variate, {name:24s} std of the difference {gap:.4f} of {std:.4f}, cost "
            f"{price:.0f} of {cost:.0f}: standard error at equal cost {float(left):.2f}"
        )


if __name__ == "__main__":
    main()
