"""A run folder is read as far as it goes, and the table says what the JSON says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from softtrunc.report import read_run, summary_rows
from softtrunc.report.runs import run_labels
from softtrunc.report.summary import format_setting, format_value, protocol_differences

Folder = Callable[..., Path]


def test_reads_a_whole_run(two_runs: tuple[Path, Path]) -> None:
    run = read_run(two_runs[1])
    assert run.name == "soft"
    assert run.missing == ()
    assert run.skipped_lines == 0
    assert [line.step for line in run.metrics] == list(range(100, 4001, 100))
    assert sum(len(line.taus) for line in run.metrics) == 4000
    assert run.truncation is not None
    assert (run.truncation.k, run.truncation.eps, run.truncation.tau_max) == (1.0, 1e-5, 1.0)
    assert run.cost.parameters == 240_193
    assert run.provenance["data"]["fingerprint"] == "sha256:6f1d0c5a"
    assert "provenance" not in run.recipe
    written = [json.loads(line) for line in (run.path / "metrics.jsonl").open()]
    bins = run.metrics[7].by_log10_t
    assert bins is not None
    assert list(bins.error) == written[7]["by_log10_t"]["error"]
    assert run.metrics[7].loss == written[7]["loss"]


def test_hard_truncation_is_an_infinite_k(two_runs: tuple[Path, Path]) -> None:
    law = read_run(two_runs[0]).truncation
    assert law is not None
    assert law.hard
    assert math.isinf(law.k)


@pytest.mark.parametrize("keep", [1, 17, 400, -2])
def test_a_cut_last_line_is_skipped(run_folder: Folder, keep: int) -> None:
    metrics = run_folder("a") / "metrics.jsonl"
    *whole, last = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(whole) + last[:keep])
    run = read_run(metrics.parent)
    assert len(run.metrics) == len(whole)
    assert run.metrics[-1].step == 900
    assert run.skipped_lines == 1


def test_a_resumed_run_counts_each_step_once(run_folder: Folder) -> None:
    metrics = run_folder("a") / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    again = [json.dumps(json.loads(line) | {"loss": 7.0}) + "\n" for line in lines[6:8]]
    metrics.write_text("".join([*lines[:9], '{"step": 10', "\n", *again]))
    run = read_run(metrics.parent)
    assert [line.step for line in run.metrics] == [100, 200, 300, 400, 500, 600, 700, 800]
    assert [line.loss for line in run.metrics[-2:]] == [7.0, 7.0]


def test_values_that_are_not_finite_are_unknown(run_folder: Folder) -> None:
    metrics = run_folder("a") / "metrics.jsonl"
    metrics.write_text('{"step": 5, "loss": NaN, "images_per_second": Infinity, "tau": 0.1}\n')
    (line,) = read_run(metrics.parent).metrics
    assert line.loss is None
    assert line.images_per_second is None
    assert line.taus == (0.1,)
    assert line.by_log10_t is None


def test_numbers_that_yaml_reads_as_text(run_folder: Folder) -> None:
    recipe = run_folder("a") / "recipe.yaml"
    recipe.write_text("truncation: {k: 2, eps: 1e-5, tau_max: 5e-1}\n")
    law = read_run(recipe.parent).truncation
    assert law is not None
    assert (law.k, law.eps, law.tau_max) == (2.0, 1e-5, 0.5)


@pytest.mark.parametrize("part", ["recipe", "metrics", "samples", "evaluation"])
def test_each_missing_part_is_said(run_folder: Folder, part: str) -> None:
    parts = tuple(p for p in ("recipe", "metrics", "samples", "evaluation") if p != part)
    run = read_run(run_folder("a", parts=parts))
    said = {"samples": "sample"}.get(part, part)
    assert any(said in sentence for sentence in run.missing)
    (row,) = summary_rows([run]).rows
    assert row[0].text == "a"


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder; give .*\Z"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a run folder \(none of recipe.yaml.*\Z") as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "text"),
    [("evaluation.json", '{"figures": ['), ("evaluation.json", "[]"), ("recipe.yaml", "a: [")],
)
def test_damaged_files_are_named(run_folder: Folder, part: str, text: str) -> None:
    folder = run_folder("a")
    (folder / part).write_text(text)
    with pytest.raises(ValueError, match=part) as error:
        read_run(folder)
    assert "\n" not in str(error.value)


def test_labels_are_as_short_as_they_can_be(tmp_path: Path, run_folder: Folder) -> None:
    a, b = run_folder("x/run"), run_folder("y/run")
    assert run_labels([read_run(a), read_run(b)]) == ["x/run", "y/run"]
    assert run_labels([read_run(a), read_run(a)]) == ["run", "run"]


def test_only_lossless_figures_may_begin_at_times_of_their_own(run_folder: Folder) -> None:
    paths = run_folder("a", protocol={"eps": 1e-5}), run_folder("b", protocol={"eps": 1e-3})
    runs = [read_run(path) for path in paths]
    assert protocol_differences(runs, "nelbo", None) == ["eps"]
    for path in paths:
        text = (path / "evaluation.json").read_text()
        (path / "evaluation.json").write_text(text.replace('"nelbo"', '"nelbo_lossless"'))
    runs = [read_run(path) for path in paths]
    assert runs[0].figure("nelbo_lossless", None) is not None
    assert protocol_differences(runs, "nelbo_lossless", None) == []


def test_figures_differ_in_data_only_where_their_own_data_differ(run_folder: Folder) -> None:
    paths = [run_folder(name) for name in ("a", "b")]
    for path, later in zip(paths, ("test", "train"), strict=True):
        content = json.loads((path / "evaluation.json").read_text())
        block = content.pop("data")
        for figure in content["figures"]:
            density = figure["unit"] == "bits/dim"
            figure["data"] = block if density else block | {"fingerprint": later}
        (path / "evaluation.json").write_text(json.dumps(content))
    runs = [read_run(path) for path in paths]
    assert protocol_differences(runs, "nelbo", None) == []
    assert protocol_differences(runs, "frechet_distance", "FD(digits-mlp)") == ["data"]
    # Images that an older version did not record differ from none.
    content = json.loads((paths[0] / "evaluation.json").read_text())
    del content["figures"][3]["data"]
    (paths[0] / "evaluation.json").write_text(json.dumps(content))
    runs[0] = read_run(paths[0])
    assert protocol_differences(runs, "frechet_distance", "FD(digits-mlp)") == []


def test_table_values_equal_the_json(two_runs: tuple[Path, Path]) -> None:
    table = summary_rows([read_run(path) for path in two_runs])
    keys = [column.key for column in table.columns]
    titles = {column.key: column.title for column in table.columns}
    assert keys[:3] == ["run", "weighting", "truncation"]
    assert titles["nll_residual"] == "bits/dim with residual"
    assert titles["frechet_distance"] == "FD(digits-mlp)"
    assert table.cautions == ()
    for path, row in zip(two_runs, table.rows, strict=True):
        cells = dict(zip(keys, row, strict=True))
        written = json.loads((path / "evaluation.json").read_text())
        for figure in written["figures"]:
            cell = cells[figure["key"]]
            assert (cell.value, cell.standard_error) == (figure["value"], figure["standard_error"])
            assert cell.text == format_value(figure["value"], figure["standard_error"])
        assert cells["training_seconds"].value == written["training"]["seconds"]
        assert cells["nfe_nll"].value == 52.0
        assert cells["nfe_sampling"].value == 35.0
    best = {key: [row[i].best for row in table.rows] for i, key in enumerate(keys)}
    # Both have errors, and are further apart than these make; evaluations have none.
    assert best["nll_residual"] == [True, False]
    assert best["frechet_distance"] == [False, True]
    assert best["nfe_nll"] == [False, False]
    assert [row[2].text for row in table.rows] == ["hard", "soft, k = 1"]


def test_nothing_is_best_under_different_protocols(run_folder: Folder) -> None:
    runs = [
        read_run(run_folder("a", nll_residual=(1.0, None))),
        read_run(run_folder("b", nll_residual=(2.0, None), seed=3, protocol={"passes": 5})),
    ]
    table = summary_rows(runs)
    assert not any(cell.best for row in table.rows for cell in row)
    assert "passes" in table.cautions[0]
    assert "seed" not in table.cautions[0]


def test_distances_of_different_names_are_different_columns(run_folder: Folder) -> None:
    a, b = run_folder("a"), run_folder("b")
    text = (b / "evaluation.json").read_text()
    (b / "evaluation.json").write_text(text.replace("FD(digits-mlp)", "FD(inception)"))
    table = summary_rows([read_run(a), read_run(b)])
    by_title = {c.title: [row[i] for row in table.rows] for i, c in enumerate(table.columns)}
    assert [c.value is None for c in by_title["FD(digits-mlp)"]] == [False, True]
    assert [c.value is None for c in by_title["FD(inception)"]] == [True, False]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.80312, 0.0123, "1.803 ± 0.012"),
        (1.80312, 0.00999, "1.8031 ± 0.0100"),
        (3.8127, 0.21, "3.81 ± 0.21"),
        (1234.56, 12.3, "1,235 ± 12"),
        (3.8127, None, "3.813"),
        (38.127, None, "38.13"),
        (0.001234, None, "0.00123"),
        (0.0, 0.0, "0.000"),
    ],
)
def test_value_format(value: float, error: float | None, text: str) -> None:
    assert format_value(value, error) == text


def test_setting_format() -> None:
    values = [1e-5, 5e-5, 0.9, 128.0, math.inf, 0.0, 1.3e6]
    assert [format_setting(v) for v in values] == [
        "1e-5", "5e-5", "0.9", "128", "infinity", "0", "1.3e6",
    ]  # fmt: skip
