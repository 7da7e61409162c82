"""`softtrunc evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Context, Option

from softtrunc.cli.options import (
    Data,
    Ema,
    MaybeRunFolder,
    Overrides,
    Weights,
    as_overrides,
    chosen_weights,
    figures_of,
    offering,
    refuse_unused,
)

if TYPE_CHECKING:
    from softtrunc.records import Figure

Bpd = Annotated[bool, Option("--bpd", help="Bits per dimension; of floats those of density.")]
Fid = Annotated[bool, Option("--fid", help="Frechet distance of samples to real images.")]
InceptionScore = Annotated[bool, Option("--is", help="Inception score of samples, in 10 splits.")]
Kid = Annotated[bool, Option("--kid", help="Kernel distance of samples.")]
Prdc = Annotated[
    bool, Option("--prdc", "--precision-recall", help="Precision and recall of samples.")
]
IntraFid = Annotated[
    bool, Option("--intra-fid", help="Frechet distance within each class, and their mean.")
]
Features = Annotated[
    str | None, Option(metavar="PATH", help="TorchScript extractor instead of the recipe's.")
]
Mode = Annotated[
    str | None,
    Option(
        autocompletion=offering("legacy", "clean"),
        help="How images are resized for the extractor: legacy or clean.",
    ),
]
Samples = Annotated[
    str | None,
    Option(metavar="PATH", help="Instead of a run: images of another model."),
]
Stats = Annotated[
    Path | None,
    Option(metavar="FILE", help="An .npz with mu and sigma, in place of the real images."),
]
Out = Annotated[Path | None, Option(help="With --samples: the JSON file to write.")]
Split = Annotated[
    str | None,
    Option(
        autocompletion=offering("train", "test"),
        help="train or test; unless given, test for bits/dim and train for samples.",
    ),
]
Limit = Annotated[
    int | None, Option(metavar="N", min=1, help="Measure bits/dim on the first N images.")
]
Passes = Annotated[
    int | None,
    Option(metavar="N", min=1, max=100_000, help="Passes over the images, each with fresh noise."),
]
Dequantization = Annotated[
    str | None,
    Option(
        autocompletion=offering("uniform", "none", "learned", "truncated-normal"),
        help="uniform, none (lossless), learned (trains a dequantiser first) or truncated-normal.",
    ),
]
Importance = Annotated[
    int | None,
    Option(
        min=1,
        max=10_000,
        metavar="K",
        help="Weigh K draws of each image: a tighter bound, at K times the cost.",
    ),
]
Eps = Annotated[
    str | None, Option(metavar="TIME,TIME", help="Smallest times; each gives a figure.")
]
Probes = Annotated[
    int | None,
    Option(metavar="N", min=1, max=100_000, help="Random probes for the divergence (Hutchinson)."),
]
PerImage = Annotated[
    Path | None,
    Option(metavar="FILE", help="Write every image's bits/dim to FILE.csv or FILE.parquet."),
]
Checkpoint = Annotated[
    str | None, Option(metavar="STEP|all", help="Measure an earlier checkpoint, or all of them.")
]
Count = Annotated[
    int | None,
    Option("-n", "--n", "--count", metavar="N", min=2, max=10**8, help="How many samples."),
]


_OF_A_RUN = ("checkpoint", "weights", "ema", "overrides")
_OF_BITS = ("limit", "passes", "dequantization", "importance", "eps", "probes", "per_image")
_OF_SAMPLES = ("features", "mode", "count", "stats")


def evaluate(
    context: Context,
    run: MaybeRunFolder = None,
    bpd: Bpd = False,
    fid: Fid = False,
    inception: InceptionScore = False,
    kid: Kid = False,
    prdc: Prdc = False,
    intra: IntraFid = False,
    features: Features = None,
    mode: Mode = None,
    samples: Samples = None,
    out: Out = None,
    data: Data = None,
    stats: Stats = None,
    split: Split = None,
    limit: Limit = None,
    passes: Passes = None,
    dequantization: Dequantization = None,
    importance: Importance = None,
    eps: Eps = None,
    probes: Probes = None,
    per_image: PerImage = None,
    count: Count = None,
    checkpoint: Checkpoint = None,
    weights: Weights = "ema",
    ema: Ema = None,
    overrides: Overrides = None,
) -> None:
    """Measure a run: bits/dim, and the quality of its samples.

    If no figure is named, it measures bits/dim, and the Frechet distance if the recipe names an
    extractor. Every figure is added to RUN/evaluation.json with its whole protocol; those of
    earlier checkpoints and other weights go to RUN/evaluations. After a stop the same command goes
    on. `accelerate launch -m softtrunc evaluate ...` shares the work among processes.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.errors import UserError
    from softtrunc.jobs.measure import measure

    named = {"fid": fid, "is": inception, "kid": kid, "prdc": prdc, "intra": intra}
    figures = [name for name, wanted in named.items() if wanted]
    bpd = bpd or any(given is not None for given in (per_image, dequantization, eps, importance))
    if samples is not None:
        unused = ("run", "bpd", *_OF_BITS, *_OF_A_RUN)
        refuse_unused(context, "images alone have no model", *unused)
        _evaluate_files(samples, data, stats, figures, split, count, features, mode, out)
        return
    if run is None:
        raise UserError("evaluate: name a run folder, or --samples PATH --data PATH")
    if out is not None:
        raise UserError("--out belongs to --samples: a run's figures go to its evaluation.json")
    if figures and not bpd:
        refuse_unused(context, f"no bits/dim are asked for (--{figures[0]} alone)", *_OF_BITS)
    if bpd and not figures:
        refuse_unused(context, "bits/dim alone are asked for", *_OF_SAMPLES)
    keys = {
        "data.source": data,
        "evaluation.features": features,
        "evaluation.resize": mode,
        "evaluation.samples": count,
        "evaluation.probes": probes,
        "evaluation.passes": passes,
        "evaluation.importance": importance,
        "evaluation.figures": figures_of(dequantization),
    }
    which = chosen_weights(context, weights, ema)
    steps = _checkpoints(run, checkpoint)
    if len(steps) > 1 and per_image is not None:
        raise UserError(f"--per-image {per_image}: holds figures of one checkpoint: name one")
    for step in steps:
        found = measure(
            run,
            density=bpd or not figures,
            samples=figures if figures or bpd else None,
            split=split,
            limit=limit,
            eps=_times(eps),
            weights=which,
            checkpoint=step,
            overrides=as_overrides(keys, overrides),
            per_image=per_image,
            stats=stats,
            progress=ConsoleProgress(),
        )
        _print(f"{found.run}: step {found.step}, {found.weights} weights", found.figures)


def _checkpoints(run: Path, wanted: str | None) -> list[int | None]:
    """The steps that are meant; None is the newest."""
    from softtrunc.feedback.errors import UserError
    from softtrunc.runs.open_run import checkpoint_steps

    if wanted is None:
        return [None]
    if wanted == "all":
        return [*checkpoint_steps(run)] or [None]
    if not wanted.isdecimal() or len(wanted) > 18:
        raise UserError(f"--checkpoint {wanted}: write a step, or all")
    return [int(wanted)]


def _times(text: str | None) -> list[float]:
    from softtrunc.feedback.errors import UserError

    try:
        return list(dict.fromkeys(float(part) for part in text.split(","))) if text else []
    except ValueError:
        raise UserError(f"--eps {text}: write times with commas, e.g. 1e-5,1e-4") from None


def _evaluate_files(
    samples: str,
    data: str | None,
    stats: Path | None,
    figures: Sequence[str],
    split: str | None,
    count: int | None,
    features: str | None,
    mode: str | None,
    out: Path | None,
) -> None:
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.errors import UserError
    from softtrunc.jobs.measure_files import measure_files

    if data is None and stats is None:
        raise UserError("--samples: add --data PATH, the images to compare with, or --stats FILE")
    found = measure_files(
        samples,
        data,
        stats=stats,
        figures=figures or ["fid"],
        split=split or "train",
        limit=count,
        features=features,
        resize=mode or "legacy",
        out=out,
        progress=ConsoleProgress(),
    )
    _print(f"{samples}: {found.n:,} images", found.figures)


def _print(title: str, figures: Sequence[Figure]) -> None:
    from softtrunc.cli.console import stdout
    from softtrunc.cli.table import figure_table

    stdout().print(figure_table(title, figures))
