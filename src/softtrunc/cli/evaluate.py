"""`softtrunc evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    bpd: Annotated[bool, typer.Option("--bpd", help="Bits per dimension.")] = False,
    fid: Annotated[bool, typer.Option("--fid", help="Frechet distance of samples.")] = False,
    inception: Annotated[
        bool, typer.Option("--is", help="Inception score of samples, in 10 splits.")
    ] = False,
    kid: Annotated[bool, typer.Option("--kid", help="Kernel distance of samples.")] = False,
    prdc: Annotated[
        bool, typer.Option("--prdc", "--precision-recall", help="Precision and recall of samples.")
    ] = False,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="TorchScript extractor; the standard Inception network unless recipe or this say.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="How images come to the extractor's size: legacy or clean."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Instead of a run: images that anybody made, in a folder, archive or array, "
            "against --data.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --samples: the JSON file; beside the samples unless given."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The images, where they are not where training read them.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train or test. Unless given: bits/dim of held-out images, samples against "
            "training images."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many images for bits/dim.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images, each with fresh noise.")
    ] = None,
    dequantization: Annotated[
        str | None,
        typer.Option(
            help="Which bits/dim: uniform (with and without residual, NELBO), none (probability "
            "of the levels, lossless) or learned (a dequantizer trained on the spot)."
        ),
    ] = None,
    probes: Annotated[
        int | None, typer.Option(min=1, help="Hutchinson probes of the divergence.")
    ] = None,
    per_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Every image's bits/dim, to FILE.csv or FILE.parquet."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--n", "--count", min=2, help="How many samples.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set evaluation.eps=1e-4"),
    ] = None,
) -> None:
    """Measure a run: bits/dim on held-out images, distances and scores of samples.

    Without a figure named, bits/dim are measured, and the Frechet distance if the recipe names a
    feature extractor. Figures go to RUN/evaluation.json one by one with their whole protocol;
    figures measured before stay unless they are measured again. An evaluation of bits/dim that was
    stopped goes on where it was when the same command is given again. `accelerate launch -m
    softtrunc evaluate ...` shares the work.
    """
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.cli.options import data_override, figures_override, quoted, weights_of

    named = {"fid": fid, "is": inception, "kid": kid, "prdc": prdc}
    figures = [name for name, wanted in named.items() if wanted]
    if samples is not None:
        _evaluate_files(run, samples, data, figures, split, count, features, mode, out, bpd)
        return
    from softtrunc.feedback.errors import UserError
    from softtrunc.jobs.measure import measure

    if run is None:
        raise UserError("evaluate: name a run folder, or --samples PATH --data PATH")
    if out is not None:
        raise UserError("--out belongs to --samples: a run's figures go to its evaluation.json")
    changes = list(overrides or [])
    if passes is not None:
        changes.insert(0, f"evaluation.passes={passes}")
    if probes is not None:
        changes.insert(0, f"evaluation.probes={probes}")
    if dequantization is not None:
        changes.insert(0, figures_override(dequantization))
    if count is not None:
        changes.insert(0, f"evaluation.samples={count}")
    if mode is not None:
        changes.insert(0, f"evaluation.resize={mode}")
    if features is not None:
        changes.insert(0, f"evaluation.features={quoted(features)}")
    if data is not None:
        changes.insert(0, data_override(data))
    bpd = bpd or per_image is not None or dequantization is not None
    evaluation = measure(
        run,
        density=bpd or not figures,
        samples=figures if figures or bpd else None,
        split=split,
        limit=limit,
        weights=weights_of(weights),
        overrides=changes,
        per_image=per_image,
        progress=ConsoleProgress(),
    )
    kind = f"{evaluation['weights']} weights"
    _print(f"{evaluation['run']}: step {evaluation['step']}, {kind}", evaluation["figures"])


def _evaluate_files(
    run: Path | None,
    samples: str,
    data: str | None,
    figures: list[str],
    split: str | None,
    count: int | None,
    features: str | None,
    mode: str | None,
    out: Path | None,
    bpd: bool,
) -> None:
    from softtrunc.cli.console import ConsoleProgress
    from softtrunc.feedback.errors import UserError
    from softtrunc.jobs.measure_files import measure_files

    if run is not None or bpd:
        what = f"a run ({run})" if run is not None else "--bpd"
        raise UserError(f"--samples and {what}: images alone have no model: leave one of them out")
    if data is None:
        raise UserError("--samples: add --data PATH, the images to compare with")
    evaluation = measure_files(
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
    _print(f"{samples}: {evaluation['n']:,} images", evaluation["figures"])


def _print(title: str, figures: list[dict[str, Any]]) -> None:
    from softtrunc.cli.console import stdout
    from softtrunc.cli.table import figure_table

    stdout().print(figure_table(title, figures))
