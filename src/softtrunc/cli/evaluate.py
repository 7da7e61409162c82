"""`softtrunc evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from softtrunc.records import Figure

__all__ = ["evaluate"]

_Option = typer.Option
Run = Annotated[Path | None, typer.Argument(help="A run folder.")]
Bpd = Annotated[bool, _Option("--bpd", help="Bits per dimension.")]
Fid = Annotated[bool, _Option("--fid", help="Frechet distance of samples.")]
InceptionScore = Annotated[bool, _Option("--is", help="Inception score of samples, in 10 splits.")]
Kid = Annotated[bool, _Option("--kid", help="Kernel distance of samples.")]
Prdc = Annotated[
    bool, _Option("--prdc", "--precision-recall", help="Precision and recall of samples.")
]
Features = Annotated[
    str | None,
    _Option(
        metavar="PATH",
        help="TorchScript extractor; the standard Inception network unless recipe or this say.",
    ),
]
Mode = Annotated[
    str | None, _Option(help="How images come to the extractor's size: legacy or clean.")
]
Samples = Annotated[
    str | None,
    _Option(
        metavar="PATH",
        help="Instead of a run: images that anybody made, in a folder, archive or array, "
        "against --data.",
    ),
]
Out = Annotated[
    Path | None, _Option(help="With --samples: the JSON file; beside the samples unless given.")
]
Data = Annotated[
    str | None, _Option(help="The images, where they are not where training read them.")
]
Split = Annotated[
    str | None,
    _Option(
        help="train or test. Unless given: bits/dim of held-out images, samples against training "
        "images."
    ),
]
Limit = Annotated[int | None, _Option(min=1, help="Only so many images for bits/dim.")]
Passes = Annotated[int | None, _Option(min=1, help="Passes over the images, with fresh noise.")]
Dequantization = Annotated[
    str | None,
    _Option(
        help="Which bits/dim: uniform (with and without residual, NELBO), none (probability of the "
        "levels, lossless) or learned (a dequantizer trained on the spot)."
    ),
]
Eps = Annotated[
    str | None,
    _Option(metavar="TIME,TIME,...", help="Bits/dim at each of these smallest diffusion times."),
]
Probes = Annotated[int | None, _Option(min=1, help="Hutchinson probes of the divergence.")]
PerImage = Annotated[
    Path | None,
    _Option(metavar="FILE", help="Every image's bits/dim, to FILE.csv or FILE.parquet."),
]
Count = Annotated[int | None, _Option("-n", "--n", "--count", min=2, help="How many samples.")]
Weights = Annotated[str, _Option(help="ema or raw.")]
Overrides = Annotated[
    list[str] | None,
    _Option("--set", metavar="KEY=VALUE", help="Change a key: --set evaluation.rtol=1e-4"),
]


def evaluate(
    run: Run = None,
    bpd: Bpd = False,
    fid: Fid = False,
    inception: InceptionScore = False,
    kid: Kid = False,
    prdc: Prdc = False,
    features: Features = None,
    mode: Mode = None,
    samples: Samples = None,
    out: Out = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    passes: Passes = None,
    dequantization: Dequantization = None,
    eps: Eps = None,
    probes: Probes = None,
    per_image: PerImage = None,
    count: Count = None,
    weights: Weights = "ema",
    overrides: Overrides = None,
) -> None:
    """Measure a run: bits/dim on held-out images, distances and scores of samples.

    Without a figure named, bits/dim are measured, and the Frechet distance if the recipe names a
    feature extractor. Figures go to RUN/evaluation.json one by one with their whole protocol;
    figures measured before stay unless they are measured again. An evaluation of bits/dim that was
    stopped goes on where it was when the same command is given again. `accelerate launch -m
    softtrunc evaluate ...` shares the work.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.cli.options import figures_override, weights_of
    from softtrunc.feedback.errors import UserError
    from softtrunc.jobs.measure import measure

    named = {"fid": fid, "is": inception, "kid": kid, "prdc": prdc}
    figures = [name for name, wanted in named.items() if wanted]
    bpd = bpd or per_image is not None or dequantization is not None or eps is not None
    if samples is not None:
        if run is not None or bpd:
            what = f"a run ({run})" if run is not None else "bits/dim"
            raise UserError(
                f"--samples and {what}: images alone have no model: leave one of them out"
            )
        _evaluate_files(samples, data, figures, split, count, features, mode, out)
        return
    if run is None:
        raise UserError("evaluate: name a run folder, or --samples PATH --data PATH")
    if out is not None:
        raise UserError("--out belongs to --samples: a run's figures go to its evaluation.json")
    keys = {
        "data.source": data,
        "evaluation.features": features,
        "evaluation.resize": mode,
        "evaluation.samples": count,
        "evaluation.probes": probes,
        "evaluation.passes": passes,
    }
    # JSON's quotes are YAML's too, whatever a path holds.
    changes = [f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None]
    if dequantization is not None:
        changes.append(figures_override(dequantization))
    found = measure(
        run,
        density=bpd or not figures,
        samples=figures if figures or bpd else None,
        split=split,
        limit=limit,
        eps=_times(eps),
        weights=weights_of(weights),
        overrides=[*changes, *(overrides or [])],
        per_image=per_image,
        progress=ConsoleProgress(),
    )
    _print(f"{found.run}: step {found.step}, {found.weights} weights", found.figures)


def _times(text: str | None) -> list[float]:
    from softtrunc.feedback.errors import UserError

    try:
        return list(dict.fromkeys(float(part) for part in text.split(","))) if text else []
    except ValueError:
        raise UserError(f"--eps {text}: write times with commas, e.g. 1e-5,1e-4") from None


def _evaluate_files(
    samples: str,
    data: str | None,
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

    if data is None:
        raise UserError("--samples: add --data PATH, the images to compare with")
    found = measure_files(
        samples,
        data,
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
