"""A run folder says again what was written into it, and old files say what they can."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from softtrunc.records import (
    Evaluation,
    Figure,
    FigureData,
    MetricsLine,
    RecipeRecord,
    TimeBins,
    TrainingCost,
    append_metrics,
    cut_metrics,
    median_rate,
    read_evaluation,
    read_metrics,
    read_recipe,
    write_evaluation,
    write_recipe,
)

TEST = FigureData("digits", "test", 360, "aa", 17, (-1.0, 1.0))
TRAIN = FigureData("digits", "train", 1437, "bb", 17)


def figure(key: str, data: FigureData | None, **protocol: object) -> Figure:
    return Figure(key, key, 1.5, 0.25, "bits/dim", "lower", 2.0, protocol, data)


def evaluation(*figures: Figure) -> Evaluation:
    cost = TrainingCost(10.0, 300.0, 1000, 20, 128)
    return Evaluation("a", 20, "ema", "2026-01-01T00:00:00Z", {"torch": "2.6.0"}, figures, cost)


def line(step: int) -> MetricsLine:
    bins = TimeBins((-2.0, -1.0, 0.0), (0.5, None), (0.25, None), (3, 0))
    return MetricsLine(step, 0.5, (0.1, 0.2), (1.5, 2.5), 1e-4, 100.0 + step, 2.0, bins)


def test_reading_records_needs_no_torch():
    code = "import sys, softtrunc.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_come_back_as_written(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [line(step) for step in (10, 20, 30)]
    for each in lines:
        append_metrics(path, each)
    found = read_metrics(path)
    assert (list(found.lines), found.damaged, found.cut_short) == (lines, (), False)
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["tau"], first["grad_norm"], first["learning_rate"]) == (0.2, 2.5, 1e-4)
    assert median_rate(found.lines) == 120.0
    cut_metrics(path, 20)
    assert [each.step for each in read_metrics(path).lines] == [10, 20]


def test_gradient_norms_are_written_with_five_digits(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, dataclasses.replace(line(1), grad_norms=(1 / 3, 2e4 / 3)))
    assert read_metrics(path).lines[0].grad_norms == (0.33333, 6666.7)


def test_damaged_lines_are_numbered(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n{}\n{"step": 2}\n{"ste')
    found = read_metrics(path)
    assert [each.step for each in found.lines] == [1, 2]
    assert (found.damaged, found.cut_short) == ((3, 5), True)
    assert read_metrics(tmp_path / "none").lines == ()


def test_a_recipe_comes_back_with_its_provenance(tmp_path: Path):
    record = RecipeRecord({"truncation": {"k": float("inf"), "eps": 1e-5}}, {"data": {"n": 3}})
    write_recipe(tmp_path / "recipe.yaml", record)
    assert read_recipe(tmp_path / "recipe.yaml") == record


def test_an_evaluation_comes_back_as_written(tmp_path: Path):
    written = evaluation(
        dataclasses.replace(figure("nll", TEST, split="test"), nfe={"mean": 3.0, "max": 4.0}),
        figure("frechet_distance", TRAIN, samples=100),
    )
    path = tmp_path / "evaluation.json"
    write_evaluation(path, written)
    assert read_evaluation(path) == written
    content = json.loads(path.read_text())
    assert "data" not in content
    assert [f["data"]["fingerprint"] for f in content["figures"]] == ["aa", "bb"]
    assert read_evaluation(tmp_path / "none.json") is None


def old_file(path: Path, block: FigureData) -> list[FigureData | None]:
    """The data of the figures of a file that an earlier version wrote."""
    reference = {"reference": "digits train", "reference_fingerprint": "bb", "n_reference": 1437}
    figures = (
        figure("nll", None, split="test"),
        figure("frechet_distance", None, **reference),
        figure("inception_score", None, samples=100),
    )
    content = dataclasses.asdict(evaluation(*figures)) | {"data": dataclasses.asdict(block)}
    for each in content["figures"]:
        del each["data"]
    path.write_text(json.dumps(content))
    found = read_evaluation(path)
    assert found is not None
    return [each.data for each in found.figures]


def test_the_data_block_of_old_files_goes_to_the_figures_it_is_of(tmp_path: Path):
    assert old_file(tmp_path / "a.json", TEST) == [TEST, TRAIN, None]


def test_a_block_that_calls_training_images_test_is_not_believed(tmp_path: Path):
    mixed = dataclasses.replace(TRAIN, split="test", value_range=(-1.0, 1.0))
    assert old_file(tmp_path / "a.json", mixed) == [None, None, None]


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_evaluation_is_named(tmp_path: Path, text: str):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json: .*`softtrunc evaluate`"):
        read_evaluation(path)
