"""The pictures of method, times and results, from the records in docs/studies.

Run: python docs/tools/pictures.py                # draw docs/images again
     python docs/tools/pictures.py --record RUN   # first, gradient norms of a run of fashion16-soft
"""

from __future__ import annotations

import argparse
import csv
from importlib import resources
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure

from softtrunc import PowerPrior
from softtrunc.records import Anatomy, read_anatomy, read_metrics
from softtrunc.report.plots_base import run_style
from softtrunc.report.plots_scatter import Point, trade_off

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1]
STUDIES, IMAGES = DOCS / "studies", DOCS / "images"
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
# Ends of the bins of tau in the record of gradient norms.
TAUS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.5, 1.0)

# The studies whose density is drawn against distance, and what the distance is called.
FRONTS = {
    "fashion16": "FD(fashion16-cnn)",
    "fashion16-unclipped": "FD(fashion16-cnn)",
    "fashion16-6000": "FD(fashion16-cnn)",
    "cifar16": "FD(EfficientNet-Lite0)",
}
# Recipes without the name of their data, and what they are called; each has one look everywhere.
ARMS = {
    "hard": "hard truncation",
    "soft": "drawn 1",
    "soft-k0.8": "drawn 0.8",
    "expected": "expected 1",
    "expected-k0.8": "expected 0.8",
    "expected-k0.6": "expected 0.6",
    "expected-k0.4": "expected 0.4",
    "variance": "variance",
    "cond": "expected 0.8, by class",
}


def record_gradients(run: Path) -> None:
    """Quartiles of the gradient norm by tau, over the second half of a run's steps."""
    metrics = read_metrics(run / "metrics.jsonl").lines
    taus = np.array([tau for line in metrics for tau in line.taus])
    norms = np.array([norm for line in metrics for norm in line.grad_norms])
    taus, norms = taus[len(taus) // 2 :], norms[len(norms) // 2 :]
    with (STUDIES / "gradient-norms.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["tau_low", "tau_high", "steps", "norm_p25", "norm_p50", "norm_p75"])
        for low, high in pairwise(TAUS):
            inside = norms[(taus >= low) & (taus < high)]
            quartiles = np.quantile(inside, [0.25, 0.5, 0.75])
            table.writerow([low, high, len(inside), *(f"{q:.4g}" for q in quartiles)])


def tau_law() -> Figure:
    """Density in log tau, and the share of steps whose times reach down to t."""
    figure, (left, right) = _panels()
    tau = torch.logspace(-5, 0, 400, dtype=torch.float64)
    for k, colour in ((0.0, PINK), (0.8, ORANGE), (1.0, BLUE), (2.0, GREEN)):
        prior = PowerPrior(k)
        density = prior.log_prob(tau).exp() * tau * np.log(10)
        left.plot(tau, density, color=colour, label=f"k = {k:g}")
        right.plot(tau, prior.cdf(tau), color=colour)
    left.set(xscale="log", ylim=(0, 2.4), xlabel="τ", ylabel="density per factor of 10")
    right.set(xscale="log", ylim=(0, 1.05), xlabel="t", ylabel="share of steps that train t")
    left.legend(frameon=False)
    return figure


def loss_by_time() -> Figure:
    """The error of the score, and the bits that each time takes off the cost of pure noise."""
    figure, (left, right) = _panels()
    bins = _read("anatomy-fashion16.json").runs[0].bins
    t = [(one.t[0] * one.t[1]) ** 0.5 for one in bins]
    left.plot(t, [one.error for one in bins], "o-", color=BLUE, markersize=3)
    left.set(xscale="log", ylim=(0, 1.05), xlabel="t", ylabel="error of the score, per dimension")
    right.bar(
        t,
        [-one.bits_per_dim for one in bins],
        width=[one.t[1] - one.t[0] for one in bins],
        color=ORANGE,
        edgecolor="white",
        linewidth=0.5,
    )
    right.set(xscale="log", xlabel="t", ylabel="bits/dim taken off in each bin")
    return figure


def clipping() -> Figure:
    """Gradient norms by tau, and the weight that drawing tau amounts to, clipped and not."""
    figure, (left, right) = _panels()
    with (STUDIES / "gradient-norms.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    tau = [(row["tau_low"] * row["tau_high"]) ** 0.5 for row in rows]
    middle = [row["norm_p50"] for row in rows]
    low, high = ([row[key] for row in rows] for key in ("norm_p25", "norm_p75"))
    left.fill_between(tau, low, high, color=BLUE, alpha=0.2, linewidth=0)
    left.plot(tau, middle, "o-", color=BLUE, markersize=4, label="median, with quartiles")
    left.axhline(1.0, color=ORANGE, linestyle="--", label="clip")
    left.set(xscale="log", ylim=(0, 8), xlabel="τ of the step", ylabel="gradient norm")
    left.legend(frameon=False)
    bins = _read("anatomy-soft.json").runs[0].bins
    t = np.array([(one.t[0] * one.t[1]) ** 0.5 for one in bins])
    for values, colour, label in (
        ([one.weight for one in bins], BLUE, "without clipping: P(τ ≤ t)"),
        ([one.clipped_weight for one in bins], ORANGE, "clipped at 1"),
    ):
        known = np.array([np.nan if value is None else value for value in values])
        right.plot(t, known / np.nanmax(known), color=colour, label=label)
    right.set(xscale="log", ylim=(0, 1.05), xlabel="t", ylabel="weight relative to the largest")
    right.legend(frameon=False)
    return figure


def which_times() -> Figure:
    """Samples of two models as one: the distance as the time of taking over moves."""
    figure = Figure(figsize=(5.6, 3.0), dpi=160, layout="constrained")
    axes = figure.subplots()
    with (STUDIES / "which-times.csv").open() as file:
        rows = list(csv.DictReader(file))
    t = [float(row["t"]) for row in rows]
    for key, colour, marker in (("hard_above", BLUE, "o-"), ("soft_above", ORANGE, "s-")):
        label = f"{key.removesuffix('_above')} above t, the other below"
        axes.plot(t, [float(row[key]) for row in rows], marker, color=colour, label=label)
    axes.set(xscale="log", ylim=(0, 115), xlabel="t at which one takes over from the other")
    axes.set(ylabel="FD(fashion16-cnn)")
    axes.legend(frameon=False)
    return figure


def front(study: str) -> list[Point]:
    """Density and distance of each arm of a study: the means over seeds and their errors."""
    with (STUDIES / "fashion16.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["study"] == study]
    points = []
    for i, (arm, label) in enumerate(ARMS.items()):
        runs = [row for row in rows if row["recipe"].partition("-")[2] == arm]
        if not runs:
            continue
        x, y = ([float(run[key]) for run in runs] for key in ("nelbo", "frechet_distance"))
        errors = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else None for v in (x, y)]
        points.append(Point(run_style(i), label, mean(x), mean(y), *errors))
    return sorted(points, key=lambda point: point.y)  # in this order labels find room


def _panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(8.4, 2.9), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)


def _read(name: str) -> Anatomy:
    found = read_anatomy(STUDIES / name)
    if found is None:
        raise FileNotFoundError(STUDIES / name)
    return found


PICTURES = {
    "tau-law.png": tau_law,
    "loss-by-time.png": loss_by_time,
    "clipping.png": clipping,
    "which-times.png": which_times,
}


def draw(folder: Path) -> None:
    """Draw every picture into a folder."""
    style = Path(str(resources.files("softtrunc.report"))) / "paper.mplstyle"
    # The report writes no powers; these pictures have axes of them.
    with matplotlib.style.context([style, {"text.parse_math": True}]):
        for name, picture in PICTURES.items():
            picture().savefig(folder / name, facecolor="white", metadata={"Software": None})
    for study, distance in FRONTS.items():
        if points := front(study):  # a study that is still to come has none
            drawn = trade_off(points, "NELBO, bits/dim", distance, encoding="png")
            (folder / f"{study}.png").write_bytes(drawn.data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the pictures of the docs.")
    parser.add_argument("--record", type=Path, metavar="RUN")
    run = parser.parse_args().record
    if run is not None:
        record_gradients(run)
    draw(IMAGES)
