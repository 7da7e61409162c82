"""The anatomy of runs: one form of results, paired, resumable, and a line for each mistake."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from accelerate import Accelerator

from softtrunc.cli import main
from softtrunc.jobs import anatomy_samples
from softtrunc.jobs.anatomy import anatomy
from softtrunc.records import read_anatomy
from softtrunc.report import write_report

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
    assert page.count("<img") == 6  # three of the bound, regeneration and its grid, the law
    assert not (tmp_path / "anatomy.partial").exists()


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
    assert "Chimeras" in page
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
