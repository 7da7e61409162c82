"""The numbers behind the pictures, and that the pictures are sound drawings."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softtrunc import HardTruncation, PowerPrior
from softtrunc.records import MetricsLine, TimeBins
from softtrunc.report import plots, plots_base, plots_scatter
from softtrunc.report.plots import Series
from softtrunc.report.plots_scatter import Point
from softtrunc.report.runs import Truncation, read_run

STYLE = plots_base.run_style(0)


def line(step: int, error: tuple[float | None, ...], count: tuple[int, ...]) -> MetricsLine:
    bins = TimeBins((-2.0, -1.0, 0.0), error, error, count)
    return MetricsLine(step, 1.0, (0.1,), images_per_second=100.0, seconds=1.0, by_log10_t=bins)


def words(picture: plots_base.Picture) -> set[str]:
    root = ElementTree.fromstring(picture.data)
    return {"".join(text.itertext()).strip() for text in root.iter() if text.tag.endswith("}text")}


def test_late_means_weigh_examples_of_the_last_third() -> None:
    lines = [
        line(10, (100.0, 100.0), (5, 5)),
        line(20, (100.0, 100.0), (5, 5)),
        line(25, (1.0, None), (10, 0)),
        line(30, (4.0, None), (20, 0)),
    ]
    assert plots.late_means(lines, "error") == ([-1.5], [3.0])
    assert plots.late_means([], "loss") == ([], [])


def test_example_share_counts_every_line() -> None:
    lines = [line(10, (1.0, None), (6, 0)), line(20, (1.0, 1.0), (0, 2))]
    assert plots.example_share(lines) == ([-1.5, -0.5], [0.75, 0.25])


@pytest.mark.parametrize("k", [0.0, 0.8, 0.9, 1.0, 1.1, 2.0, 3.0, 50.0])
@pytest.mark.parametrize("tau_max", [1.0, 0.3])
def test_prior_share_is_the_law_of_tau(k: float, tau_max: float) -> None:
    edges = np.linspace(-5.0, 0.0, 21)
    share = plots.prior_share(Truncation(k, 1e-5, tau_max), edges.tolist())
    cdf = PowerPrior(k, 1e-5, tau_max).cdf(torch.from_numpy(10.0**edges)).numpy()
    np.testing.assert_allclose(share, np.diff(cdf), atol=1e-12)
    assert sum(share) == pytest.approx(1.0, abs=1e-12)


def test_hard_truncation_is_a_spike_at_eps() -> None:
    law = Truncation(math.inf, 1e-5, 1.0)
    edges = np.linspace(-5.0, 0.0, 21).tolist()
    assert plots.prior_share(law, edges) == [1.0] + [0.0] * 19
    assert float(HardTruncation(1e-5).cdf(torch.tensor(10.0 ** edges[1]))) == 1.0
    picture = plots.tau_histogram([1e-5] * 7, law, STYLE)
    assert "100 %" in words(picture)


def test_smoothing_keeps_constants_and_means() -> None:
    assert plots.smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    np.testing.assert_allclose(plots.smoothed([0.0, 3.0, 6.0]), [1.5, 3.0, 4.5])


def test_styles_of_eight_runs_differ_in_colour_and_in_marker() -> None:
    styles = [plots_base.run_style(i) for i in range(8)]
    assert len({s.colour for s in styles}) == len({s.marker for s in styles}) == 8
    assert len({plots_base.run_style(i) for i in range(64)}) == 64


def test_trade_off_labels_every_point_and_reads_no_mathematics() -> None:
    points = [
        Point(plots_base.run_style(i), name, 1.8 + 0.01 * i, 3.0 - 0.1 * i, 0.01, None)
        for i, name in enumerate(["a$b$", "<i>x</i>&", "ラン", "z" * 60])
    ]
    picture = plots_scatter.trade_off(points, "NLL, bits/dim", "FD $d$")
    shown = words(picture)
    assert {"a$b$", "<i>x</i>&", "ラン", "NLL, bits/dim", "FD $d$", "better"} <= shown
    assert f"{'z' * 12}…{'z' * 13}" in shown


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    from matplotlib.transforms import Bbox

    close = [(1.8 + 1e-3 * (i % 3), 3.0 + 1e-2 * i) for i in range(6)]
    points = [
        Point(plots_base.run_style(i), f"run-number-{i}", x, y)
        for i, (x, y) in enumerate([*close, (1.9, 4.0)])
    ]
    with plots_base.drawing() as (figure, axes):
        plots_scatter._frame_points(axes, points)
        plots_scatter._place_labels(figure, axes, points)
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 7
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(Bbox.intersection(a, b) for a, b in pairs)


def test_pictures_are_deterministic_and_leave_matplotlib_alone(two_runs: tuple[Path, Path]) -> None:
    import matplotlib

    run = read_run(two_runs[1])
    draw = [
        lambda: plots.error_map(run.metrics, (0.01, 4.0)),
        lambda: plots.tau_histogram([1e-3, 1e-2], run.truncation, STYLE),
        lambda: plots.curves(
            [Series(STYLE, [1.0, 2.0], [1.0, 100.0])], "x", "y", x_scale="steps", y_scale="auto"
        ),
    ]
    with matplotlib.rc_context({"font.size": 30.0, "lines.linewidth": 9.0, "axes.labelsize": 30.0}):
        own = [one() for one in draw]
        assert matplotlib.rcParams["font.size"] == 30.0
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    for one, first in zip(draw, own, strict=True):
        assert first is not None
        assert first == one()
        ElementTree.fromstring(first.data)


def test_awkward_series_are_drawn() -> None:
    for y in ([0.0], [-1.0, 2.0], [], [1e-9, 1e9], [5.0, 5.0]):
        for scale in ("log", "zero", "auto"):
            x = [float(i + 1) for i in range(len(y))]
            picture = plots.curves([Series(STYLE, x, y)], "x", "y", x_scale="steps", y_scale=scale)
            ElementTree.fromstring(picture.data)


def test_long_lines_stay_small() -> None:
    n = 20_000
    steps = [float(i) for i in range(n)]
    noise = np.random.default_rng(0).normal(1.0, 0.1, n).tolist()
    picture = plots.curves(
        [Series(STYLE, steps, plots.smoothed(noise), noise)],
        "step", "loss", x_scale="steps", y_scale="auto",
    )  # fmt: skip
    assert len(picture.data) < 60_000


def test_images_are_kept_or_reduced(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("L", (80, 40)).save(small)
    Image.new("RGB", (2400, 1200), "red").save(large)
    kept, reduced = plots_base.image(small), plots_base.image(large)
    assert kept is not None
    assert reduced is not None
    assert (kept.data, kept.width, kept.height) == (small.read_bytes(), 80, 40)
    assert (reduced.width, reduced.height, reduced.reduced) == (1200, 600, True)
    assert Image.open(io.BytesIO(reduced.data)).size == (1200, 600)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"", lambda b: b"<svg/>"])
def test_damaged_images_are_left_out(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(damage(path.read_bytes()))
    assert plots_base.image(path) is None


def steps(taus: list[float], norms: list[float]) -> MetricsLine:
    return MetricsLine(1, 1.0, tuple(taus), tuple(norms))


def test_norms_are_gathered_by_half_decades_of_tau() -> None:
    lines = [
        steps([1e-5, 1e-5, 0.5], [1.0, 3.0, 0.5]),
        steps([1.2e-5, 0.5], [2.0, 2.5]),
        MetricsLine(2, 1.0, (0.5,)),  # an older version recorded no norms
    ]
    small, large = plots.norms_by_tau(lines, 1.0)
    assert (small.steps, large.steps) == (3, 2)
    assert (small.median, large.median) == (2.0, 1.5)
    assert small.low == pytest.approx(1.2)
    assert small.high == pytest.approx(2.8)
    # A norm equal to the threshold is left as it is.
    assert (small.clipped, large.clipped) == pytest.approx((2 / 3, 0.5))
    assert small.log_tau == pytest.approx(math.log10(1e-5 * 1.2 ** (1 / 3)))
    assert [each.clipped for each in plots.norms_by_tau(lines, None)] == [0.0, 0.0]
    assert plots.norms_by_tau(lines[2:], 1.0) == []


def test_the_norm_plot_draws_the_threshold() -> None:
    bins = plots.norms_by_tau([steps([1e-5, 1e-3, 0.5], [4.0, 2.0, 0.5])], 1.0)
    with_line, without = (plots.norm_plot(bins, clip, STYLE) for clip in (1.0, None))
    assert {"gradient norm", "truncation time τ"} <= words(with_line)
    assert with_line.data.count(b"stroke-dasharray") > without.data.count(b"stroke-dasharray")
