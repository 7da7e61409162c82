"""The pictures of the docs are drawn from committed records, by a committed script."""

from __future__ import annotations

import csv
import math
import statistics

from documents import ROOT
from pictures import FRONTS, PICTURES, draw, front
from PIL import Image


def test_every_picture_is_drawn_from_the_records(tmp_path):
    draw(tmp_path)
    studies = {study for study in FRONTS if front(study)}
    assert {"fashion16", "fashion16-unclipped", "fashion16-6000"} <= studies
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*PICTURES, *(f"{study}.png" for study in studies)}
    for name in names:
        drawn, shown = (Image.open(each / name) for each in (tmp_path, ROOT / "docs" / "images"))
        assert drawn.size == shown.size
        assert len(drawn.convert("L").getcolors()) > 20


def test_a_point_is_the_mean_over_the_seeds_of_its_arm():
    with (ROOT / "docs" / "studies" / "fashion16.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["study"] == "fashion16"]
    points = {point.label: point for point in front("fashion16")}
    assert len(points) == len({row["recipe"] for row in rows})
    for label, recipe in (("hard truncation", "hard"), ("expected 0.8", "expected-k0.8")):
        runs = [row for row in rows if row["recipe"] == f"fashion16-{recipe}"]
        x, y = ([float(run[key]) for run in runs] for key in ("nelbo", "frechet_distance"))
        point = points[label]
        assert (point.x, point.y) == (statistics.mean(x), statistics.mean(y))
        assert math.isclose(point.x_error, statistics.stdev(x) / math.sqrt(len(x)))
        assert math.isclose(point.y_error, statistics.stdev(y) / math.sqrt(len(y)))
