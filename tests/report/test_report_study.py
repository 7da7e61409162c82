"""Means over seeds and paired differences, against scipy; the page that shows them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import scipy.stats

from softtrunc.jobs.study import _csv
from softtrunc.report import read_run, write_report
from softtrunc.report.study import (
    Estimate,
    Setting,
    paired_difference,
    study_summary,
    trade_off_picture,
)

HARD = [1.885, 1.883, 1.887]
SOFT = [1.927, 1.898, 1.916]


def test_the_paired_difference_is_that_of_the_paired_t_test():
    ours, baseline = (Estimate(dict(enumerate(x))) for x in (SOFT, HARD))
    found = paired_difference(ours, baseline)
    truth = scipy.stats.ttest_rel(SOFT, HARD)
    interval = truth.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(SOFT) - np.mean(HARD))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(truth.pvalue)
    # 4.30 standard errors of two degrees of freedom: three seeds do not settle this one.
    assert not found.significant
    assert ours.standard_error == pytest.approx(scipy.stats.sem(SOFT))


def test_only_seeds_that_both_have_are_paired():
    found = paired_difference(Estimate({0: 3.0, 2: 5.0, 3: 9.0}), Estimate({2: 4.0, 3: 7.0, 4: 0}))
    assert (found.mean, found.seeds) == (1.5, 2)
    assert paired_difference(Estimate({0: 1.0}), Estimate({1: 1.0})) is None
    alone = paired_difference(Estimate({0: 3.0}), Estimate({0: 1.0}))
    assert (alone.mean, alone.seeds, alone.low, alone.significant) == (2.0, 1, None, False)
    assert Estimate({0: 1.0}).standard_error is None


def test_a_difference_without_spread_is_sure():
    found = paired_difference(Estimate({0: 2.0, 1: 3.0}), Estimate({0: 1.0, 1: 2.0}))
    assert (found.low, found.high, found.p) == (1.0, 1.0, 0.0)
    assert found.significant
    assert not paired_difference(Estimate({0: 2.0, 1: 3.0}), Estimate({0: 2.0, 1: 3.0})).significant


@pytest.fixture
def settings(run_folder):
    def runs(name: str, values: list[float], distances: list[float], **fields):
        return {
            seed: read_run(
                run_folder(
                    f"{name}-{seed}",
                    seed=seed,
                    nll_residual=(value, 0.01),
                    distance=(distance, None),
                    **fields,
                )
            )
            for seed, (value, distance) in enumerate(zip(values, distances, strict=True))
        }

    return [
        Setting("k=inf", {"truncation.k": "inf"}, runs("hard", HARD, [0.6, 0.8, 0.7])),
        Setting("k=1", {"truncation.k": "1"}, runs("soft", SOFT, [0.5, 0.69, 0.6], k=1.0), "k=inf"),
    ]


def test_the_table_of_a_study(settings):
    summary = study_summary(settings)
    titles = [column.title for column in summary.columns]
    assert titles[0] == "bits/dim with residual"
    density, distance = 0, titles.index("FD(digits-mlp)")
    # Three seeds settle the distance, and not the density, whose interval holds zero.
    assert [summary.best(i) for i in (density, distance)] == [None, 1]
    heading, hard, soft = summary.mean_rows()
    assert [cell.text for cell in heading[:3]] == ["setting", "seeds", "bits/dim with residual"]
    assert [cell.text for cell in hard[:2]] == ["k=inf", "3"]
    assert hard[2].text == "1.8850 ± 0.0012"
    assert not hard[2].best
    assert (hard[2 + distance].best, soft[2 + distance].best) == (False, True)
    heading, *changes = summary.change_rows()
    assert [cell.text for cell in heading[3:]] == ["change", "95 % interval", "p"]
    assert [cell.text for cell in changes[0][:3]] == ["k=1", "k=inf", "bits/dim with residual"]
    assert [cell.text for cell in changes[distance][:3]] == ["k=1", "k=inf", "FD(digits-mlp)"]
    assert [cell.repeated for cell in changes[density][:3]] == [False] * 3
    assert [cell.repeated for cell in changes[distance][:3]] == [True, True, False]
    truth = scipy.stats.ttest_rel([0.5, 0.69, 0.6], [0.6, 0.8, 0.7])
    low, high = truth.confidence_interval()
    assert [cell.text for cell in changes[distance][3:]] == [
        "-0.103",
        f"{low:.3g} ... {high:.3g}",
        f"{truth.pvalue:.2g}",
    ]
    assert changes[distance][3].best
    assert not changes[density][3].best
    content = summary.to_dict()["settings"][1]
    assert content["runs"] == {0: "soft-0", 1: "soft-1", 2: "soft-2"}
    assert content["figures"][distance]["difference"]["seeds"] == 3
    rows = list(csv.DictReader(io.StringIO(_csv(summary))))
    assert len(rows) == 2 * 3 * len(titles)
    assert rows[0]["truncation.k"] == "inf"
    assert float(rows[0]["value"]) == HARD[0]


def test_figures_of_different_protocols_have_no_best(settings, run_folder):
    other = read_run(run_folder("other", protocol={"rtol": 1e-2}))
    summary = study_summary([*settings, Setting("odd", {}, {0: other})])
    assert summary.best(0) is None
    assert any("rtol" in caution for caution in summary.cautions)


def test_the_plot_and_the_page(settings, tmp_path):
    summary = study_summary(settings)
    drawn = trade_off_picture(summary)
    assert b"k=inf" in drawn.data
    assert b"FD(digits-mlp)" in drawn.data
    assert trade_off_picture(summary, "png").data.startswith(b"\x89PNG")
    runs = [setting.runs[0].path for setting in settings]
    page = write_report(runs, tmp_path / "page.html", study=summary).read_text()
    assert "1.8850 ± 0.0012" in page
    assert "95 % confidence interval" in page
    assert 'id="study"' not in write_report(runs, tmp_path / "plain.html").read_text()


def test_a_study_without_distances_has_no_plot(run_folder):
    run = read_run(run_folder("bare", parts=("recipe",)))
    summary = study_summary([Setting("bare", {}, {0: run})])
    assert summary.columns == ()
    assert trade_off_picture(summary) is None
