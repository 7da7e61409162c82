"""The anatomy of runs: one form of results, paired, resumable, and a line for each mistake."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from accelerate import Accelerator

from softtrunc.cli import main
from softtrunc.feedback.locks import only_one
from softtrunc.jobs import anatomy_samples
from softtrunc.jobs.anatomy import anatomy
from softtrunc.records import read_anatomy
from softtrunc.report import write_report
from softtrunc.report.anatomy import write_anatomy_page

pytestmark = pytest.mark.usefixtures("unchecked")

SMALL = {"images": 6, "samples": 20, "bins": 3, "draws": 1, "times": 2}


def train(folder, *options):
    options = (*options, "network.options={base_channels: 8}", "training.batch_size=16")
    options = (*options, "training.steps=4", "training.log_every=1", "training.samples=4")
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of four steps, soft and hard."""
    folder = tmp_path_factory.mktemp("runs")
    return train(folder / "soft"), train(folder / "hard", "truncation.k=inf", "training.seed=1")


def test_one_run(runs, tmp_path, capsys):
    options = ["-n", "6", "--bins", "3", "--draws", "1", "--times", "2"]
    assert main(["anatomy", str(runs[0]), "--out", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert "the bound by time" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    content = json.loads((tmp_path / "anatomy.json").read_text())
    (run,) = content["runs"]
    assert run["name"] == "soft"
    assert [len(part["log_snr"]) for part in run["bins"]] == [2, 2, 2]
    parts = sum(part["bits_per_dim"] for part in run["bins"])
    parts += run["prior"] + run["residual"] + run["offset"]
    assert parts == pytest.approx(run["total_bits_per_dim"], rel=1e-9)
    assert sum(part["share_of_draws"] for part in run["bins"]) == pytest.approx(1.0)
    assert all(0.0 < part["clipped_weight"] <= 1.0 for part in run["bins"][1:])
    assert content["chimera"] == []
    assert len(content["regeneration"]) == 2
    assert (tmp_path / "regeneration.png").is_file()
    page = (tmp_path / "anatomy.html").read_text()
    for name in ("prior", "residual", "offset"):
        assert f'<td>{name}</td><td></td><td class="number">{run[name]:.4f}</td>' in page
    assert "soft: filled" in page
    assert page.count("<img") == 6  # three of the bound, regeneration and its grid, the law
    assert not (tmp_path / "anatomy.partial").exists()


class Bars:
    """Progress that keeps how far each bar came."""

    def __init__(self):
        self.bars = []

    @contextmanager
    def task(self, label, total, done=0):
        self.bars.append([label, done, total])
        yield self

    def advance(self, n=1, note=""):
        self.bars[-1][1] += n

    def say(self, line):
        raise AssertionError(line)


@pytest.mark.parametrize(
    "labels",
    [
        ["bound by time, soft", "regenerate, soft"],
        ["bound by time, soft", "bound by time, hard", "sample soft", "features of digits train",
         "sample hard", *2 * ["soft above t"], *2 * ["hard above t"]],
    ],
    ids=["one run", "two runs"],
)  # fmt: skip
def test_every_bar_reaches_its_total(runs, tmp_path, labels):
    progress = Bars()
    anatomy(runs if "sample hard" in labels else runs[:1], tmp_path, **SMALL, progress=progress)
    assert [label.partition(" = ")[0] for label, _, _ in progress.bars] == labels
    for label, done, total in progress.bars:
        assert done == total > 0, label


@pytest.mark.parametrize("balanced", [False, True])
def test_the_law_of_a_mixed_loss(tmp_path, capsys, balanced):
    run = train(
        tmp_path / "run",
        f"objective={{weighting: mixed, mixed: {{coefficient: 2.0, balanced: {balanced}}}}}",
    )
    options = ["-n", "2", "--bins", "3", "--draws", "1", "--times", "1"]
    assert main(["anatomy", str(run), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = (run / "anatomy" / "anatomy.html").read_text()
    bins = read_anatomy(run / "anatomy" / "anatomy.json").runs[0].bins
    for told, text in (("weights are not known", printed), ("run: not known.", page)):
        assert (told in text) == balanced
    assert all((part.weight is None) == balanced for part in bins)
    if not balanced:
        assert sum(part.share_of_draws for part in bins) == pytest.approx(1.0)


def test_two_runs(runs, tmp_path, capsys):
    options = ["-n", "6", "--samples", "20", "--bins", "3", "--draws", "1", "--times", "2"]
    assert main(["anatomy", *map(str, runs), "--out", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    content = json.loads((tmp_path / "anatomy.json").read_text())
    first, second = content["runs"]
    for run in (first, second):
        assert {"name", "bins", "total_bits_per_dim", "standard_error"} <= run.keys()
        bits = [part["bits_per_dim"] for part in run["bins"]]
        for i, part in enumerate(run["bins"]):
            assert {"log_snr", "t", "bits_per_dim", "standard_error", "error"} <= part.keys()
            assert part["share_below"] == pytest.approx(sum(bits[: i + 1]) / sum(bits), rel=1e-9)
        assert run["bins"][-1]["share_below"] == 1
    for point in content["chimera"]:
        assert {"above", "below", "t", "distance"} <= point.keys()
    # The two tables: every bin with its paired change, and every distance under its own name.
    lines = [line.split() for line in printed.splitlines()]
    for ours, theirs, change in zip(
        first["bins"], second["bins"], content["difference"]["bins"], strict=True
    ):
        cells = [f"{part['bits_per_dim']:.4f}" for part in (ours, theirs)]
        assert [*cells, f"{change['bits_per_dim']:+.4f}"] in [line[4:7] for line in lines]
    assert ["total", *(f"{run['total_bits_per_dim']:.4f}" for run in (first, second))] in [
        line[:3] for line in lines
    ]
    name = "FD(digits-mlp)"
    assert content["distance_name"] == name
    assert f"{name} of samples to the training images" in " ".join(printed.split())
    a, b = (f"{run['distance']:.3f}" for run in (first, second))
    assert ["none", "below", a, b] in lines
    assert ["none", "above", b, a] in lines
    for one, other in zip(content["chimera"][:2], content["chimera"][2:], strict=True):
        distances = [f"{part['distance']:.3f}" for part in (one, other)]
        assert [f"{one['t']:.2g}", f"{one['log_snr']:.1f}", *distances] in lines
    protocol = content["protocol"]
    assert protocol["extractor"] == "digits-mlp"
    assert len(protocol["extractor_hash"]) == 64
    assert protocol["reference"] == "digits train"
    page = (tmp_path / "anatomy.html").read_text()
    assert f"20 samples for every {name} to the images of digits train" in page
    assert f"{name} of chimeras" in page


def test_a_file_of_an_older_version_is_read(runs, tmp_path):
    anatomy(runs, tmp_path, **SMALL)
    path = tmp_path / "anatomy.json"
    content = json.loads(path.read_text())
    del content["distance_name"]
    for key in ("extractor", "extractor_hash", "resize", "reference"):
        del content["protocol"][key]
    path.write_text(json.dumps(content))
    page = write_anatomy_page(tmp_path).read_text()
    assert "20 samples for every distance." in page
    assert "distance of chimeras" in page


def test_two_runs_go_on_where_they_were_stopped(runs, tmp_path, monkeypatch, capsys):
    whole = anatomy(runs, tmp_path / "whole", **SMALL)
    assert {(c.above, c.below) for c in whole.chimera} == {
        ("soft", "hard"),
        ("hard", "soft"),
    }
    assert len(whole.chimera) == 4
    change = [b.bits_per_dim - a.bits_per_dim for a, b in zip(*_bins(whole), strict=True)]
    paired = [part.bits_per_dim for part in whole.difference.bins]
    torch.testing.assert_close(torch.tensor(paired), torch.tensor(change))
    drawn = []
    draw = anatomy_samples.draw_batches

    def stopping(opened, parts, *, seed):
        drawn.append(parts)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(opened, parts, seed=seed)

    monkeypatch.setattr(anatomy_samples, "draw_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        anatomy(runs, tmp_path / "stopped", **SMALL)
    again = anatomy(runs, tmp_path / "stopped", **SMALL)
    assert len(drawn) == 7  # six sets of samples, and the one that was stopped
    for key in ("runs", "difference", "chimera"):
        assert getattr(again, key) == getattr(whole, key)
    assert (tmp_path / "stopped" / "chimera-2-above-1.png").is_file()
    assert read_anatomy(tmp_path / "stopped" / "anatomy.json") == again
    page = (tmp_path / "stopped" / "anatomy.html").read_text()
    # Bound, below, error, two changes, chimeras, their two grids, two laws.
    assert page.count("<img") == 10


def test_the_report_shows_the_anatomy_that_lies_in_a_run(runs, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    anatomy(copies, **SMALL)
    page = write_report(copies, tmp_path / "report.html").read_text()
    assert "Which times decide density" in page
    assert "FD(digits-mlp) of chimeras" in page
    damaged = copies[0] / "anatomy" / "anatomy.json"
    damaged.write_text(damaged.read_text()[:-30])
    with pytest.raises(ValueError, match="damaged"):
        write_report(copies, tmp_path / "report.html")


def _bins(content):
    return [run.bins for run in content.runs]


def test_a_run_and_its_copy_differ_by_nothing(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    content = anatomy([runs[0], copy], tmp_path / "out", **SMALL)
    assert content.difference.total_bits_per_dim == 0.0
    assert content.difference.standard_error == 0.0
    distances = {c.distance for c in content.chimera}
    assert distances == {run.distance for run in content.runs}
    assert len(distances) == 1


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    other = train(tmp_path / "wide", "sde.beta_max=10")
    for arguments, words in (
        ([runs[0], other], "same SDE"),
        ([runs[0], runs[0]], "one run twice"),
        ([runs[0], *runs], "3 runs"),
        ([tmp_path], "no run here"),
    ):
        capsys.readouterr()
        assert main(["anatomy", *map(str, arguments)]) == 2
        told = capsys.readouterr().err.strip()
        assert words in told
        assert "\n" not in told


def test_several_processes_are_refused_in_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    assert main(["anatomy", str(runs[0]), "--out", str(tmp_path / "a")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "anatomy works in one process: call it without `accelerate launch`" in line
    assert not (tmp_path / "a").exists()


def test_two_anatomies_do_not_write_one_place(runs, tmp_path, capsys):
    out = tmp_path / "a"
    with only_one(out, "busy there"):
        assert main(["anatomy", str(runs[0]), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{out}: another process is writing this anatomy" in line
    assert not out.exists()
