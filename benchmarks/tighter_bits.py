"""The same weights under every dequantisation, with K draws weighed against each other.

For each way to make the levels continuous: the NELBO, then K draws of each of the first n held-out
images by the probability-flow ODE, all with the image's own probe, and from them the bound of 1, 5,
... K draws (the mean over the groups that K draws hold), its standard error over images, the paired
difference to the uniform bound of one draw, and the network evaluations of an image. The eps of
truncated-normal dequantisation is the best on the grid of `softtrunc.density.truncated_times`, by
the NELBO of training images.

    python -m benchmarks.tighter_bits RUN --images 48 --draws 20
    python -m benchmarks.tighter_bits RUN --probes-alone    # what probes do to the weights
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softtrunc.data import ImageDataset
from softtrunc.density import (
    Dequantizer,
    bin_centers,
    dequantize,
    importance_weighted,
    lossless_eps,
    mean_with_error,
    nelbo,
    probability_flow_nll,
    spread_range,
    train_dequantizer,
    truncated_times,
)
from softtrunc.jobs.adopt import shipped_run
from softtrunc.recipes.build import build_data
from softtrunc.runs.open_run import open_run
from softtrunc.score import ScoreModel

KINDS = ("uniform", "truncated-normal", "lossless", "learned")


@dataclass(frozen=True)
class Subject:
    """A model, and where it saw its levels."""

    model: ScoreModel
    levels: int
    plain: bool

    def cells(self, kind: str) -> tuple[float, float]:
        span = self.model.value_range
        point = kind in ("lossless", "truncated-normal")
        return spread_range(self.levels, span) if self.plain and point else span


@dataclass(frozen=True)
class Drawn:
    """Bits/dim of each image and draw (n, K), and evaluations of one draw."""

    bits: Tensor
    nfe: float


def measure(
    subject: Subject,
    levels: Tensor,
    kind: str,
    *,
    draws: int,
    eps: float,
    flow: Dequantizer | None = None,
    bound: bool = False,
    probes: int = 1,
    own_probes: bool = False,
    batch: int = 32,
) -> Drawn:
    """All draws of some images, `batch` at a time."""
    index = torch.arange(len(levels)).repeat_interleave(draws)
    seeds = torch.arange(len(index)) + 1_000_003
    span, parts, nfe = subject.cells(kind), [], []
    words = {"uniform": "gaussian", "learned": "gaussian", "lossless": "discrete"}
    for part in torch.arange(len(index)).split(batch):
        rows, log_q = levels[index[part]], torch.zeros(len(part))
        if kind == "uniform":
            x = dequantize(rows, subject.levels, span, seeds=seeds[part])
        elif kind == "learned" and flow is not None:
            drawn = flow.draw(rows, seeds=seeds[part])
            x, log_q = dequantize(rows, subject.levels, span, noise=drawn.noise), drawn.log_prob
        else:
            x = bin_centers(rows, subject.levels, span)
        shared = {
            "eps": eps,
            "reconstruction": words.get(kind, "truncated"),
            "levels": subject.levels,
            "value_range": span,
            "seeds": seeds[part],
        }
        if bound:
            found = nelbo(subject.model, x, draws=32, **shared)
        else:
            found = probability_flow_nll(
                subject.model,
                x,
                rtol=1e-3,
                atol=1e-3,
                probes=probes,
                probe_seeds=None if own_probes else index[part],
                **shared,
            )
        nats = found.nats + log_q
        offset = found.bits_per_dim(subject.levels, span) - found.nats / (
            x[0].numel() * torch.log(torch.tensor(2.0)).double()
        )
        parts.append(nats / (x[0].numel() * torch.log(torch.tensor(2.0)).double()) + offset)
        nfe.append(found.nfe.double())
    return Drawn(torch.cat(parts).reshape(-1, draws), float(torch.cat(nfe).mean()))


def grouped(bits: Tensor, draws: int, dim: int) -> Tensor:
    """Bits/dim of each image's bound of so many draws, over all groups of them, (n,)."""
    per_bit = dim * torch.log(torch.tensor(2.0)).double()
    groups = bits[:, : bits.shape[1] // draws * draws].reshape(-1, draws)
    return (importance_weighted(groups * per_bit) / per_bit).reshape(len(bits), -1).mean(1)


def endless(data: ImageDataset, size: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield data.batch(torch.randint(len(data), (size,), generator=generator))


def best_eps(subject: Subject, levels: Tensor) -> tuple[float, float, dict[float, float]]:
    """Sigmas and eps that are best on these images, and bits/dim at all."""
    span = subject.cells("truncated-normal")
    times = truncated_times(subject.model.sde, subject.levels, span)
    found = {
        s: float(
            measure(subject, levels, "truncated-normal", draws=1, eps=t, bound=True).bits.mean()
        )
        for s, t in times.items()
    }
    best = min(found, key=found.__getitem__)
    return best, times[best], found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder, or fashion16")
    parser.add_argument("--images", type=int, default=48, help="for the ODE; 0: none")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--bound-images", type=int, default=128, help="for the NELBO")
    parser.add_argument("--grid-images", type=int, default=32)
    parser.add_argument("--dequantizer-steps", type=int, default=400)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--eps", type=float, help="of truncated-normal, in the place of the grid's")
    parser.add_argument("--probes-alone", action="store_true")
    parser.add_argument("--out", type=Path, help="every draw, as JSON")
    args = parser.parse_args()
    opened = open_run(shipped_run(args.run) or Path(args.run))
    train, test = (build_data(opened.recipe, split) for split in ("train", "test"))
    subject = Subject(opened.model.eval(), test.card.levels, not opened.recipe.data.dequantize)
    levels, dim = test.batch(torch.arange(args.images)), test.batch(torch.arange(1))[0].numel()
    kept: dict[str, object] = {"run": args.run, "images": args.images}

    first: dict[bool, Tensor] = {}

    def report(name: str, drawn: Drawn, counts: list[int], bound: bool = False) -> None:
        for count in counts:
            bits = grouped(drawn.bits, count, dim)
            mean, error, _ = mean_with_error(bits)
            gain, spread, _ = mean_with_error(bits - first.setdefault(bound, bits))
            print(
                f"{name:28s} K {count:3d} {mean:8.4f} +- {error:.4f} against uniform "
                f"{gain:8.4f} +- {spread:.4f} {drawn.nfe * count:8.0f} evaluations",
                flush=True,
            )
        kept[name] = {"bits": drawn.bits.tolist(), "nfe": drawn.nfe}
        if args.out is not None:
            args.out.write_text(json.dumps(kept))

    counts = [k for k in (1, 5, 20, 100) if k <= args.draws]
    if args.probes_alone:
        for name, more in (
            ("own probe each", {"own_probes": True}),
            ("shared probe", {}),
            ("8 shared probes", {"probes": 8}),
        ):
            drawn = measure(subject, levels, "uniform", draws=args.draws, eps=1e-5, **more)
            report(name, drawn, counts)
        return
    eps = args.eps
    if eps is None and "truncated-normal" in args.kinds:
        sigmas, eps, grid = best_eps(subject, train.batch(torch.arange(args.grid_images)))
        kept["grid"] = grid
        print("truncated-normal, grid:", {f"{s:.2f}": round(b, 4) for s, b in grid.items()})
        print(f"best at {sigmas:.2f} sigmas, eps {eps:.3g}", flush=True)
    c, h, w = levels.shape[1:]
    torch.manual_seed(0)
    flow = Dequantizer((c, h, w), levels=subject.levels)
    times = {
        "uniform": 1e-5,
        "learned": 1e-5,
        "lossless": lossless_eps(subject.model.sde, subject.levels, subject.cells("lossless")),
        "truncated-normal": eps,
    }
    more = test.batch(torch.arange(args.bound_images))
    for kind in args.kinds:
        if kind == "learned":
            for _ in train_dequantizer(
                flow,
                subject.model,
                endless(train, 32),
                steps=args.dequantizer_steps,
                value_range=subject.model.value_range,
            ):
                pass
            flow.eval()
        options = {"eps": times[kind], "flow": flow}
        if len(more):
            bound = measure(subject, more, kind, draws=1, bound=True, **options)
            report(f"{kind} NELBO", bound, [1], bound=True)
        if len(levels):
            drawn = measure(subject, levels, kind, draws=args.draws, **options)
            report(kind, drawn, counts)


if __name__ == "__main__":
    main()
